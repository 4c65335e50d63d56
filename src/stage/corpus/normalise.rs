//! The canonical form of a text, and its id. Knows no file and no source.

use unicode_normalization::{UnicodeNormalization, is_nfc};

/// UTF-8 without a byte order mark, line feeds only, NFC. `None` where the bytes are not UTF-8.
pub(super) fn canonical(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(canonical_text)
}

/// [`canonical`] for what is UTF-8 already.
pub(super) fn canonical_text(text: &str) -> String {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text =
        if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text.to_owned() };
    if is_nfc(&text) { text } else { text.nfc().collect() }
}

/// The id of a canonical text: BLAKE3, 64 hex digits.
pub(super) fn id(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_composition_and_byte_order_marks_do_not_matter() {
        let unix = canonical("caf\u{e9}\nnext\n\n".as_bytes()).unwrap();
        for other in ["cafe\u{301}\r\nnext\r\n\r\n", "\u{feff}caf\u{e9}\rnext\r\r"] {
            assert_eq!(canonical(other.as_bytes()).unwrap(), unix);
        }
        assert_ne!(id(&unix), id("caf\u{e9}\nnext\n"));
    }

    #[test]
    fn bytes_that_are_not_utf8_have_no_canonical_form() {
        assert_eq!(canonical(b"caf\xe9"), None);
        assert_eq!(canonical(b"").as_deref(), Some(""));
    }

    #[test]
    fn ids_are_plain_blake3() {
        // The BLAKE3 of the empty string, from the specification's test vectors.
        assert_eq!(id(""), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
    }
}
