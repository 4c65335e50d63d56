//! Keys that sign records and keys that are trusted, and their text forms. Knows the bytes of a record, not their meaning.

use std::{
    fmt, fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    str::FromStr,
};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use super::error::{KeyFileError, Refusal};
use crate::store::Digest;

/// Before the bytes that are signed, so that a signature says nothing about anything else.
const CONTEXT: &[u8] = b"mla-run 2026-11 record signature v1\n";
const LINE: &str = "ed25519";
const SECRET: &str = "mla-run secret key 1 ";

/// A key that checks signatures, written as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(Digest); // its 32 bytes, which have such a text form

/// A key that signs. Its text form goes to its file alone.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

/// A text that is no public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected the 64 lower-case hex digits of a public key, as `mla-run cache key show FILE` prints them"
)]
pub struct NotAKey;

impl SecretKey {
    /// A new key.
    pub fn generate() -> Result<Self, KeyFileError> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|e| KeyFileError::Random(e.to_string()))?;
        Ok(Self(SigningKey::from_bytes(&bytes)))
    }

    /// A key that anybody can make.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn known(byte: u8) -> Self {
        Self(SigningKey::from_bytes(&[byte; 32]))
    }

    /// Reads a key file.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let io = |source| KeyFileError::Io { doing: "read", path: path.to_owned(), source };
        let text = fs::read_to_string(path).map_err(io)?;
        let key = text.trim_end().strip_prefix(SECRET).and_then(|hex| hex.parse::<Digest>().ok());
        let key = key.ok_or_else(|| KeyFileError::Form { path: path.to_owned() })?;
        Ok(Self(SigningKey::from_bytes(key.as_bytes())))
    }

    /// Writes a new file that only its owner may read. One that is there stays.
    pub fn write_new(&self, path: &Path) -> Result<(), KeyFileError> {
        let write = || {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            writeln!(file, "{SECRET}{}", Digest::from_bytes(self.0.to_bytes()))?;
            file.sync_all()
        };
        write().map_err(|source| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::AlreadyExists => KeyFileError::Exists { path },
                _ => KeyFileError::Io { doing: "write", path, source },
            }
        })
    }

    /// The key that checks this one's signatures.
    pub fn public(&self) -> PublicKey {
        PublicKey(Digest::from_bytes(self.0.verifying_key().to_bytes()))
    }

    /// A sealed record and the line with its signature.
    pub(crate) fn sign(&self, sealed: &[u8]) -> Vec<u8> {
        let (one, two) = halves(&self.0.sign(&message(sealed)).to_bytes());
        let mut signed = sealed.to_vec();
        signed.extend_from_slice(format!("{LINE} {} {one}{two}\n", self.public()).as_bytes());
        signed
    }
}

/// The sealed record in what a remote holds: it is signed by a trusted key, or no key is asked for.
pub(crate) fn verified<'b>(bytes: &'b [u8], trust: &[PublicKey]) -> Result<&'b [u8], Refusal> {
    let start = bytes.strip_suffix(b"\n").and_then(|body| body.iter().rposition(|&b| b == b'\n'));
    let (sealed, line) = bytes.split_at(start.map_or(0, |newline| newline + 1));
    let Some(line) = line.strip_prefix(LINE.as_bytes()) else {
        return if trust.is_empty() { Ok(bytes) } else { Err(Refusal::Unsigned) };
    };
    if trust.is_empty() {
        return Ok(sealed);
    }
    let (signer, signature) = parse(line).ok_or(Refusal::SignatureForm)?;
    if !trust.contains(&signer) {
        return Err(Refusal::UnknownSigner(signer));
    }
    let checked = VerifyingKey::from_bytes(signer.0.as_bytes())
        .and_then(|key| key.verify_strict(&message(sealed), &signature));
    checked.map(|()| sealed).map_err(|_| Refusal::BadSignature(signer))
}

fn parse(line: &[u8]) -> Option<(PublicKey, Signature)> {
    let text = std::str::from_utf8(line).ok()?.strip_prefix(' ')?.strip_suffix('\n')?;
    let (key, signature) = text.split_once(' ')?;
    let (one, two) = signature.split_at_checked(64)?;
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(one.parse::<Digest>().ok()?.as_bytes());
    bytes[32..].copy_from_slice(two.parse::<Digest>().ok()?.as_bytes());
    Some((key.parse().ok()?, Signature::from_bytes(&bytes)))
}

fn message(sealed: &[u8]) -> Vec<u8> {
    [CONTEXT, sealed].concat()
}

/// A signature as two texts of hex digits; 32 bytes have a text form already.
fn halves(bytes: &[u8; 64]) -> (Digest, Digest) {
    let half = |at: usize| {
        let mut out = [0; 32];
        out.copy_from_slice(&bytes[at..at + 32]);
        Digest::from_bytes(out)
    };
    (half(0), half(32))
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the secret key of {}", self.public())
    }
}

impl FromStr for PublicKey {
    type Err = NotAKey;
    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let bytes: Digest = text.parse().map_err(|_| NotAKey)?;
        let key = VerifyingKey::from_bytes(bytes.as_bytes()).map_err(|_| NotAKey)?;
        if key.is_weak() { Err(NotAKey) } else { Ok(Self(bytes)) } // anybody could sign for a weak one
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key(n: u8) -> SecretKey {
        SecretKey(SigningKey::from_bytes(&[n; 32]))
    }

    #[test]
    fn what_a_trusted_key_signed_is_taken_and_nothing_else() {
        let sealed = b"{}\nnull\n00\n";
        let signed = key(1).sign(sealed);
        let trust = [key(2).public(), key(1).public()];
        assert_eq!(verified(&signed, &trust), Ok(&sealed[..]));
        assert_eq!(verified(&signed, &[]), Ok(&sealed[..]), "no key is asked for");
        assert_eq!(verified(sealed, &[]), Ok(&sealed[..]));
        assert_eq!(verified(sealed, &trust), Err(Refusal::Unsigned));
        assert_eq!(verified(&signed, &trust[..1]), Err(Refusal::UnknownSigner(key(1).public())));
        let mut changed = signed.clone();
        changed[0] ^= 1;
        assert_eq!(verified(&changed, &trust), Err(Refusal::BadSignature(key(1).public())));
        let other = [&b"{1}\nnull\n00\n"[..], &signed[sealed.len()..]].concat();
        assert_eq!(verified(&other, &trust), Err(Refusal::BadSignature(key(1).public())));
        let text = String::from_utf8(signed).unwrap();
        for form in [
            text.replace("ed25519 ", "ed25519  "),
            text.replace("ed25519 ", "ed25519x "),
            text.trim_end().to_owned() + "0\n",
            text.trim_end().to_owned(),
            "ed25519\n".to_owned(),
        ] {
            let found = verified(form.as_bytes(), &trust);
            assert!(matches!(found, Err(Refusal::SignatureForm | Refusal::Unsigned)), "{form}: {found:?}");
        }
        assert_eq!(verified(b"", &trust), Err(Refusal::Unsigned));
    }

    #[test]
    fn a_signature_is_bound_to_records() {
        let plain = key(1).0.sign(b"sealed\n").to_bytes();
        let (one, two) = halves(&plain);
        let forged = format!("sealed\ned25519 {} {one}{two}\n", key(1).public());
        let found = verified(forged.as_bytes(), &[key(1).public()]);
        assert_eq!(found, Err(Refusal::BadSignature(key(1).public())));
    }

    #[test]
    fn key_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = SecretKey::generate().unwrap();
        key.write_new(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(SecretKey::read(&path).unwrap().public(), key.public());
        assert!(matches!(key.write_new(&path), Err(KeyFileError::Exists { .. })));
        fs::write(&path, "hello").unwrap();
        assert!(matches!(SecretKey::read(&path), Err(KeyFileError::Form { .. })));
        let gone = SecretKey::read(&dir.path().join("gone")).unwrap_err().to_string();
        assert!(gone.starts_with("cannot read the key file "), "{gone}");
        assert_ne!(SecretKey::generate().unwrap().public(), key.public());
        assert!(!format!("{key:?}").contains(&Digest::from_bytes(key.0.to_bytes()).to_string()));
    }

    #[test]
    fn texts_of_public_keys() {
        let public = key(3).public();
        assert_eq!(public.to_string().parse(), Ok(public));
        let weak = format!("01{}", "0".repeat(62)); // the neutral element
        for text in ["", "00", &public.to_string().to_uppercase(), &format!("{public} "), &weak] {
            assert_eq!(text.parse::<PublicKey>(), Err(NotAKey), "{text}");
        }
    }
}
