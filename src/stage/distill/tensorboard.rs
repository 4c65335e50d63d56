//! TensorBoard's event files: scalars as protocol buffers in checked records. Knows no training.
//!
//! A record is its length, a checksum of that, the event, and a checksum of that, all little-endian (TensorFlow's TFRecord); an event is
//! `Event { wall_time = 1, step = 2, file_version = 3, summary = 5 }`, a summary a list of `Value { tag = 1, simple_value = 2 }`.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// An event file that grows.
pub(crate) struct Events(BufWriter<File>);

impl Events {
    /// A new file in `folder`.
    pub(crate) fn create(folder: &Path) -> io::Result<Self> {
        // TensorBoard reads files whose names contain `tfevents`.
        let mut events = Self(BufWriter::new(File::create(folder.join("events.out.tfevents.mla-run"))?));
        events.0.write_all(&record(&event(now(), 0, &field(3, b"brain.Event:2"))))?;
        events.0.flush()?;
        Ok(events)
    }

    /// Adds scalars of one step. A reader sees them at once.
    pub(crate) fn scalars(&mut self, step: u64, scalars: &[(String, f32)]) -> io::Result<()> {
        let values = scalars.iter().flat_map(|(tag, value)| field(1, &scalar(tag, *value)));
        let summary: Vec<u8> = values.collect();
        self.0.write_all(&record(&event(now(), step, &field(5, &summary))))?;
        self.0.flush()
    }
}

/// Seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "a log says when things happened; nothing is computed from it")]
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn event(time: f64, step: u64, what: &[u8]) -> Vec<u8> {
    let mut out = vec![1 << 3 | 1];
    out.extend(time.to_le_bytes());
    out.push(2 << 3);
    varint(step, &mut out);
    out.extend(what);
    out
}

/// `Value { tag, simple_value }`.
fn scalar(tag: &str, value: f32) -> Vec<u8> {
    let mut out = field(1, tag.as_bytes());
    out.push(2 << 3 | 5);
    out.extend(value.to_le_bytes());
    out
}

/// A field of bytes: its number and type, its length, its bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    varint(bytes.len() as u64, &mut out);
    out.extend(bytes);
    out
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked(&length).to_le_bytes());
    out.extend(event);
    out.extend(masked(event).to_le_bytes());
    out
}

/// The checksum as TFRecord stores it, turned and shifted so that a checksum of checksums is not trivial.
fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), 0);
    }

    /// As `tensorboard.summary.writer` 2.21 writes the same event, at a time of 1.5 s.
    #[test]
    fn a_record_is_byte_for_byte_what_tensorboard_writes() {
        let event = event(1.5, 300, &field(5, &field(1, &scalar("kl/loss", 0.25))));
        let hex: Vec<String> = record(&event).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex.concat(), EXPECTED);
    }

    const EXPECTED: &str =
        "1e00000000000000d9dc123209000000000000f83f10ac022a100a0e0a076b6c2f6c6f7373150000803ec5a291fd";

    #[test]
    fn a_file_is_read_as_the_records_that_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::create(dir.path()).unwrap();
        events.scalars(1, &[("a".to_owned(), 1.0), ("b".to_owned(), -2.0)]).unwrap();
        events.scalars(2, &[]).unwrap();
        let bytes = std::fs::read(dir.path().join("events.out.tfevents.mla-run")).unwrap();
        let (mut at, mut found) = (0, Vec::new());
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            let check = |from: usize, to: usize| {
                let stored = u32::from_le_bytes(bytes[to..to + 4].try_into().unwrap());
                assert_eq!(masked(&bytes[from..to]), stored);
            };
            check(at, at + 8);
            check(at + 12, at + 12 + length);
            found.push(bytes[at + 12..at + 12 + length].to_vec());
            at += 16 + length;
        }
        assert_eq!(found.len(), 3);
        assert!(found[0].ends_with(b"brain.Event:2"));
        assert_eq!(found[1][9..11], [2 << 3, 1], "the step");
        assert!(found[1].ends_with(&(-2f32).to_le_bytes()));
    }
}
