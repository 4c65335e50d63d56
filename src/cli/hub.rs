//! The hub as the environment describes it. Knows no stage.

use std::sync::Arc;

use crate::engine::hub::Hub;

/// The Hugging Face hub, with what the environment says about it; nothing is asked of it yet.
#[cfg(feature = "hub")]
pub(super) fn open() -> Arc<dyn Hub> {
    #[expect(clippy::disallowed_methods, reason = "here is where the environment is read")]
    let offline = std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| is_true(&value));
    let settings = crate::hub::Settings { offline, ..crate::hub::Settings::default() };
    Arc::new(crate::hub::HuggingFace::new(settings))
}

/// This program was built without it.
#[cfg(not(feature = "hub"))]
pub(super) fn open() -> Arc<dyn Hub> {
    Arc::new(crate::engine::hub::NoHub)
}

/// As `huggingface_hub` reads it.
#[cfg(feature = "hub")]
fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&&*value.to_ascii_uppercase())
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use super::*;

    #[test]
    fn what_counts_as_set() {
        assert_eq!(["1", "on", "True", "YES"].map(is_true), [true; 4]);
        assert_eq!(["", "0", "off", "no", "2"].map(is_true), [false; 5]);
    }
}
