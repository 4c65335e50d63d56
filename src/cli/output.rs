//! Standard output: the result of a command, as text or as one JSON object. Knows no command.

use std::io::{self, Write};

use serde::Serialize;

use super::{error::CliError, paint::Palette};

/// The colours of standard output.
pub(super) fn palette() -> Palette {
    Palette::of(&io::stdout())
}

/// Writes text as it is.
pub(super) fn text(text: &str) -> Result<(), CliError> {
    let mut out = anstream::stdout().lock();
    quiet_when_closed(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Writes bytes for another program.
pub(super) fn bytes(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    quiet_when_closed(out.write_all(bytes).and_then(|()| out.flush()))
}

/// Writes one object on one line.
pub(super) fn json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string(value).expect("results are plain data with string keys");
    bytes((text + "\n").as_bytes())
}

/// `mla-run … | head` is no failure.
fn quiet_when_closed(result: io::Result<()>) -> Result<(), CliError> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::failed(format!("cannot write the result: {e}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reader_that_stopped_reading_is_forgiven() {
        for (kind, forgiven) in [
            (io::ErrorKind::BrokenPipe, true),
            (io::ErrorKind::StorageFull, false),
            (io::ErrorKind::PermissionDenied, false),
        ] {
            assert_eq!(quiet_when_closed(Err(kind.into())).is_ok(), forgiven, "{kind}");
        }
        let error = quiet_when_closed(Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert!(error.to_string().starts_with("cannot write the result: "), "{error}");
    }
}
