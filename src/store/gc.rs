//! Cleaning up: which records go, and when the bytes that nothing names any more may be deleted.
//!
//! Records go first; to lose one costs work and breaks nothing. A blob that no record names is *condemned* with the time. It is
//! deleted once no process lives that was there at that time: a process that found a record before it went may read its blobs until
//! it ends, and one that came later cannot find it. Publishing holds a shared lock and a clean-up an exclusive one, so a blob that is
//! about to be named again is not deleted under the publisher's hands. Knows no pipelines: the caller says which keys are in use.

mod sweep;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::Path,
    time::Duration,
};

use serde::Serialize;

use super::{
    Store, clock,
    digest::Digest,
    disk,
    error::{Result, StoreError},
    owner,
    record::Record,
};

/// What a clean-up may take.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Keys that stay, each with the reason.
    pub keep: BTreeMap<Digest, String>,
    /// When keys were last part of a run: seconds since 1970.
    pub used: BTreeMap<Digest, i64>,
    /// Only records that were neither made nor used for this long go.
    pub older_than: Duration,
    /// Records go, those first that are cheap to make again for their size, until the rest fits. Without it all go that may.
    pub max_size: Option<u64>,
    /// Names of runs whose journals go.
    pub runs: Vec<String>,
    /// Whether to delete nothing and only tell.
    pub dry_run: bool,
}

/// What a clean-up did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Records that went.
    pub records: u64,
    /// The seconds that it would take to make them again.
    pub seconds: u64,
    /// Blobs that went.
    pub blobs: u64,
    /// Their sizes together.
    pub bytes: u64,
    /// Blobs that nothing names but that a living process may still read.
    pub waiting: u64,
    /// Their sizes together.
    pub waiting_bytes: u64,
    /// The sizes of all blobs that stay, those that wait included.
    pub left_bytes: u64,
    /// Checkpoints, wrong objects and journals that went.
    pub others: u64,
    /// Why records stay: reason → their number.
    pub kept: BTreeMap<String, u64>,
}

impl Store {
    /// The lock that keeps a clean-up and publishers apart; held until it is dropped.
    pub(crate) fn publishing(&self) -> Result<File> {
        let file = self.sweep_lock()?;
        file.lock_shared().map_err(StoreError::io("lock", self.root().join("gc")))?;
        Ok(file)
    }

    fn sweep_lock(&self) -> Result<File> {
        let path = self.root().join("gc").join("lock");
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(StoreError::io("open", path))
    }

    /// Removes what the policy allows.
    pub fn gc(&self, policy: &Policy) -> Result<Collected> {
        let lock = self.sweep_lock()?;
        lock.lock().map_err(StoreError::io("lock", self.root().join("gc")))?;
        let mut report = Collected::default();
        let others = self.living_since()?;
        let records = self.ls()?;
        let doomed = doomed(&records, policy, others, &mut report);
        let mut named: BTreeMap<Digest, u64> = BTreeMap::new();
        for record in records.iter().filter(|record| !doomed.contains(&record.digest)) {
            named.extend(
                record.outputs.values().flat_map(|tree| &tree.files).map(|file| (file.blob, file.size)),
            );
        }
        for record in records.iter().filter(|record| doomed.contains(&record.digest)) {
            report.records += 1;
            report.seconds += record.seconds as u64;
            if !policy.dry_run {
                let path = self.sharded("act", &record.digest);
                disk::remove(&path).map_err(StoreError::io("remove", path))?;
            }
        }
        self.sweep_blobs(&named, others, policy.dry_run, &mut report)?;
        self.sweep_others(policy, &mut report)?;
        Ok(report)
    }

    /// When the oldest other process that lives now opened the cache: nanoseconds since 1970.
    fn living_since(&self) -> Result<Option<i64>> {
        const SKEW_NS: i64 = 300_000_000_000; // clocks of other hosts
        let this = owner::Owner::this();
        let mut oldest: Option<i64> = None;
        for entry in disk::list(&self.root().join("lease"))? {
            if Some(entry.file_name().as_os_str()) == self.lease().tmp().file_name() {
                continue;
            }
            let Some(owner) = owner::holder(&entry.path()) else { continue };
            let since = if owner.host == this.host { owner.since } else { owner.since - SKEW_NS };
            oldest = Some(oldest.map_or(since, |oldest| oldest.min(since)));
        }
        Ok(oldest)
    }
}

/// The keys of the records that go.
fn doomed(
    records: &[Record],
    policy: &Policy,
    others: Option<i64>,
    report: &mut Collected,
) -> BTreeSet<Digest> {
    let age_ns = i64::try_from(policy.older_than.as_nanos()).unwrap_or(i64::MAX);
    let before = clock::now_ns().saturating_sub(age_ns);
    let mut may_go: Vec<&Record> = Vec::new();
    for record in records {
        // A whole second later than written, because that is how finely it is written.
        let last = record.made.max(policy.used.get(&record.digest).copied().unwrap_or(0)) + 1;
        let last = last.saturating_mul(1_000_000_000);
        let reason = match policy.keep.get(&record.digest) {
            Some(reason) => reason.clone(),
            None if others.is_some_and(|since| last >= since) => {
                "made or used while a process runs".to_owned()
            }
            None if age_ns > 0 && last > before => "made or used lately".to_owned(),
            None => {
                may_go.push(record);
                continue;
            }
        };
        *report.kept.entry(reason).or_default() += 1;
    }
    let bytes = |record: &Record| record.outputs.values().map(super::Tree::bytes).sum::<u64>();
    let Some(max_size) = policy.max_size else {
        return may_go.iter().map(|record| record.digest).collect();
    };
    // Cheap for its size first; of equals, the older.
    let worth = |record: &Record| record.seconds / (bytes(record).max(1) as f64);
    may_go.sort_by(|a, b| worth(a).total_cmp(&worth(b)).then(a.made.cmp(&b.made)));
    // Blobs are often shared, so what is freed is found by counting who names them.
    let mut names: BTreeMap<Digest, (u64, u64)> = BTreeMap::new();
    for file in records.iter().flat_map(|record| record.outputs.values()).flat_map(|tree| &tree.files) {
        names.entry(file.blob).or_insert((file.size, 0)).1 += 1;
    }
    let mut total: u64 = names.values().map(|(size, _)| size).sum();
    let mut gone = BTreeSet::new();
    for record in may_go {
        if total <= max_size {
            *report.kept.entry("fits into the size".to_owned()).or_default() += 1;
            continue;
        }
        for file in record.outputs.values().flat_map(|tree| &tree.files) {
            let (size, count) = names.get_mut(&file.blob).expect("counted above");
            *count -= 1;
            total -= if *count == 0 { *size } else { 0 };
        }
        gone.insert(record.digest);
    }
    gone
}

/// How long ago a file or folder was changed.
fn age(path: &Path) -> Option<Duration> {
    let modified = fs::symlink_metadata(path).ok()?.mtime().saturating_mul(1_000_000_000);
    Some(Duration::from_nanos((clock::now_ns() - modified).max(0) as u64))
}
