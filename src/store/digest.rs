//! BLAKE3 digests of files and of framed structures. Knows nothing of the cache's layout.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::Path,
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A 32-byte BLAKE3 digest, written as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of bytes, as `b3sum` prints it.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).into())
    }

    /// The digest of bytes in a domain of its own, so that it never equals a blob's.
    pub fn derive(context: &'static str, bytes: &[u8]) -> Self {
        Self(blake3::derive_key(context, bytes))
    }

    /// The digest of a file's bytes and their number.
    ///
    /// Reads instead of mapping the file, so that a file cut short meanwhile is an error and not a signal.
    pub fn of_file(path: &Path) -> io::Result<(Self, u64)> {
        const PARALLEL_FROM: usize = 128 << 10; // below that, starting threads costs more than it saves
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut buffer = vec![0; size.clamp(1 << 10, 4 << 20) as usize];
        let (mut hasher, mut total) = (blake3::Hasher::new(), 0);
        loop {
            let n = fill(&mut file, &mut buffer)?;
            if n == 0 {
                return Ok((Self(hasher.finalize().into()), total));
            }
            total += n as u64;
            if n >= PARALLEL_FROM {
                hasher.update_rayon(&buffer[..n]);
            } else {
                hasher.update(&buffer[..n]);
            }
        }
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A digest from its raw bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The first 12 hex digits, for people.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match file.read(&mut buffer[n..]) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not 64 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected 64 lower-case hex digits")]
pub struct NotADigest;

impl FromStr for Digest {
    type Err = NotADigest;
    fn from_str(s: &str) -> Result<Self, NotADigest> {
        if s.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(NotADigest);
        }
        blake3::Hash::from_hex(s).map(|h| Self(h.into())).map_err(|_| NotADigest)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_str(HexVisitor)
    }
}

/// Parses without a copy of the text: a run of nothing but hits reads many thousands of digests.
struct HexVisitor;

impl de::Visitor<'_> for HexVisitor {
    type Value = Digest;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("64 lower-case hex digits")
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Digest, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_named_as_b3sum_names_it() {
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_ne!(Digest::derive("mla-run test", b"").to_string(), empty);
    }

    #[test]
    fn file_and_memory_agree_at_every_size_class() {
        let dir = tempfile::tempdir().unwrap();
        for size in [0, 1, 1023, 128 << 10, (4 << 20) - 1, 4 << 20, (4 << 20) + 1] {
            let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let path = dir.path().join("f");
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(Digest::of_file(&path).unwrap(), (Digest::of(&bytes), size as u64), "{size} bytes");
        }
    }

    #[test]
    fn text_form_round_trips_and_is_strict() {
        let digest = Digest::of(b"x");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        for bad in ["", "ab", &digest.to_string().to_uppercase(), &format!("{digest}0"), &"g".repeat(64)] {
            assert_eq!(bad.parse::<Digest>(), Err(NotADigest), "{bad}");
        }
    }
}
