//! The documents that were kept so far: their lines in a scratch file, in runs sorted by id, and only what decides about
//! duplicates in memory. Knows no file format and no rule of its own.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use rayon::slice::ParallelSliceMut;

use super::{CorpusError, dedup, near::NearDuplicates};
use crate::{
    artifact::{
        drops::{Drop, Drops, Tally},
        texts::{self, Text, group},
    },
    engine::action::Failure,
};

/// What decides about a document once its text is put away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: [u8; 32],
    pub(super) source: Arc<str>,
    pub(super) licence: Arc<str>,
    /// For near duplicates; empty when they are not looked for.
    pub(super) signature: Box<[u64]>,
    /// Where its line is in the scratch file.
    at: u64,
    len: usize,
}

impl Entry {
    /// An entry whose line is not written yet.
    pub(super) fn new(id: [u8; 32], source: Arc<str>, licence: Arc<str>, signature: Box<[u64]>) -> Self {
        Self { id, source, licence, signature, at: 0, len: 0 }
    }

    /// Documents are sorted by this; the first of those with one id stays.
    pub(super) fn key(&self) -> (&[u8; 32], &str, &str) {
        (&self.id, &self.source, &self.licence)
    }

    pub(super) fn name(&self) -> String {
        blake3::Hash::from_bytes(self.id).to_hex().to_string()
    }
}

/// A document that passed the rules, with its line of `texts.jsonl`; or one that did not.
pub(super) enum Judged {
    Kept(Entry, Vec<u8>),
    Dropped(Drop),
}

impl Judged {
    /// A document that stays, unless it is a duplicate.
    pub(super) fn kept(id: blake3::Hash, text: &Text, names: [Arc<str>; 2], signature: Box<[u64]>) -> Self {
        let [source, licence] = names;
        Self::Kept(Entry::new(*id.as_bytes(), source, licence, signature), texts::line(text))
    }
}

/// The scratch file and the index into it.
pub(super) struct Spool {
    path: PathBuf,
    out: BufWriter<File>,
    end: u64,
    entries: Vec<Entry>,
    drops: Vec<Drop>,
}

impl Spool {
    pub(super) fn create(scratch: &Path) -> Result<Self, CorpusError> {
        let path = scratch.join("texts.spool");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let out = BufWriter::new(file.map_err(CorpusError::io(&path))?);
        Ok(Self { path, out, end: 0, entries: Vec::new(), drops: Vec::new() })
    }

    /// Puts a batch away as one run.
    pub(super) fn add(&mut self, batch: Vec<Judged>) -> Result<(), CorpusError> {
        let mut run = Vec::with_capacity(batch.len());
        for one in batch {
            match one {
                Judged::Kept(entry, line) => run.push((entry, line)),
                Judged::Dropped(drop) => self.drops.push(drop),
            }
        }
        run.par_sort_by(|(a, _), (b, _)| a.key().cmp(&b.key()));
        for (mut entry, line) in run {
            self.out.write_all(&line).map_err(CorpusError::io(&self.path))?;
            (entry.at, entry.len) = (self.end, line.len());
            self.end += line.len() as u64;
            self.entries.push(entry);
        }
        Ok(())
    }

    /// Drops duplicates and writes what is left into `out`, sorted by id. `check_stop` is asked before each text.
    pub(super) fn finish(
        mut self,
        near: Option<&NearDuplicates>,
        out: &Path,
        check_stop: &dyn Fn() -> Result<(), Failure>,
    ) -> Result<Drops, Failure> {
        // Stable: of rows that are equal in all, the first that was read stays.
        self.entries.par_sort_by(|a, b| a.key().cmp(&b.key()));
        let mut entries = dedup::exact(self.entries, &mut self.drops);
        if let Some(near) = near {
            entries = near.remove(entries, &mut self.drops);
        }
        let io = CorpusError::io;
        let mut spool = self.out.into_inner().map_err(|e| io(&self.path)(e.into_error()))?;
        let mut texts = texts::Writer::create(out).map_err(Failure::stage)?;
        let mut line = Vec::new();
        for entry in &entries {
            check_stop()?;
            line.resize(entry.len, 0);
            spool.seek(SeekFrom::Start(entry.at)).map_err(io(&self.path))?;
            spool.read_exact(&mut line).map_err(io(&self.path))?;
            texts.push(&line).map_err(Failure::stage)?;
        }
        texts.finish().map_err(Failure::stage)?;
        Ok(report(&entries, self.drops))
    }
}

/// Counts what was kept and dropped.
fn report(kept: &[Entry], mut rows: Vec<Drop>) -> Drops {
    rows.sort();
    let mut sources: BTreeMap<String, Tally> = BTreeMap::new();
    for entry in kept {
        let tally = sources.entry(group(&entry.source).to_owned()).or_default();
        tally.read += 1;
        tally.kept += 1;
    }
    for row in &rows {
        let tally = sources.entry(group(&row.source).to_owned()).or_default();
        tally.read += 1;
        *tally.dropped.entry(row.reason.clone()).or_default() += 1;
    }
    Drops { sources, rows }
}

#[cfg(test)]
mod tests;
