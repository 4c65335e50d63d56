//! The canonical form of a text. Knows no file and no source.

use unicode_normalization::{UnicodeNormalization, is_nfc};

/// UTF-8 without a byte order mark, line feeds only, NFC. `None` where the bytes are not UTF-8.
pub(super) fn canonical(bytes: Vec<u8>) -> Option<String> {
    String::from_utf8(bytes).ok().map(canonical_text)
}

/// [`canonical`] for what is UTF-8 already. A text that is canonical is not copied.
pub(super) fn canonical_text(mut text: String) -> String {
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    if text.contains('\r') {
        text = text.replace("\r\n", "\n").replace('\r', "\n");
    }
    if is_nfc(&text) { text } else { text.nfc().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_composition_and_byte_order_marks_do_not_matter() {
        let canonical = |text: &str| canonical(text.as_bytes().to_vec());
        let unix = canonical("caf\u{e9}\nnext\n\n").unwrap();
        for other in ["cafe\u{301}\r\nnext\r\n\r\n", "\u{feff}caf\u{e9}\rnext\r\r"] {
            assert_eq!(canonical(other).unwrap(), unix);
        }
        assert_ne!(canonical("caf\u{e9}\nnext\n").unwrap(), unix, "lines at the end count");
    }

    #[test]
    fn bytes_that_are_not_utf8_have_no_canonical_form() {
        assert_eq!(canonical(b"caf\xe9".to_vec()), None);
        assert_eq!(canonical(Vec::new()).as_deref(), Some(""));
    }
}
