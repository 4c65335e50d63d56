//! Who holds a file of the cache: a process on a host, and whether it still lives. Knows nothing of what the file is for.
//!
//! A holder keeps an exclusive lock on its file, and touches it from time to time. On one host the lock alone tells, because the
//! operating system drops it when the holder ends, however it ends. Another host may not see our locks (some network file systems
//! keep them local), so its file is also taken to be held until nobody has touched it for [`STALE`].

use std::{
    fs::{File, FileTimes, TryLockError},
    io::{self, Read, Seek, Write},
    path::Path,
    sync::{Arc, Condvar, Mutex, PoisonError, Weak},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::clock;

/// How often a holder touches its files.
const BEAT: Duration = Duration::from_secs(20);
/// How long a file of another host counts as held after its last touch.
const STALE: Duration = Duration::from_mins(5);

/// A process that holds something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its host.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
    /// Since when it holds it: nanoseconds since 1970 by its host's clock.
    pub since: i64,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host == host() {
            write!(f, "process {}", self.pid)
        } else {
            write!(f, "process {} on {}", self.pid, self.host)
        }
    }
}

impl Owner {
    /// This process.
    pub(crate) fn this() -> Self {
        Self { host: host(), pid: std::process::id(), since: clock::now_ns() }
    }
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Takes the lock of an open file and writes our name into it. `Err` inside `Ok` tells who has it.
pub(crate) fn take(file: &mut File) -> io::Result<Result<(), Option<Owner>>> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(Err(read(file))),
        Err(TryLockError::Error(error)) => return Err(error),
        Ok(()) => {}
    }
    let this = Owner::this();
    if let Some(owner) = read(file)
        && owner.host != this.host
        && age(file)? < STALE
    {
        file.unlock()?;
        return Ok(Err(Some(owner)));
    }
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&serde_json::to_vec(&this)?)?;
    Ok(Ok(()))
}

/// Who holds a file now; `None` when nobody does.
pub(crate) fn holder(path: &Path) -> Option<Owner> {
    let mut file = File::options().read(true).write(true).open(path).ok()?;
    match file.try_lock() {
        Ok(()) => {
            read(&mut file).filter(|owner| owner.host != host() && age(&file).is_ok_and(|age| age < STALE))
        }
        // One that has not written its name yet came just now.
        Err(_) => Some(read(&mut file).unwrap_or_else(Owner::this)),
    }
}

/// The name in a file; `None` before its holder has written it.
fn read(file: &mut File) -> Option<Owner> {
    let mut text = Vec::new();
    file.rewind().ok()?;
    file.read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn age(file: &File) -> io::Result<Duration> {
    let modified = std::os::unix::fs::MetadataExt::mtime(&file.metadata()?).saturating_mul(1_000_000_000);
    Ok(Duration::from_nanos((clock::now_ns() - modified).max(0) as u64))
}

/// Touches files for as long as somebody holds them.
#[derive(Default)]
pub(crate) struct Heart(Arc<(Mutex<Beating>, Condvar)>);

#[derive(Default)]
struct Beating {
    files: Vec<Weak<File>>,
    started: bool,
    ended: bool,
}

impl Heart {
    /// Touches this file too, until it is dropped.
    pub(crate) fn beat_for(&self, file: &Arc<File>) {
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.files.retain(|file| file.strong_count() > 0);
        state.files.push(Arc::downgrade(file));
        if !state.started {
            state.started = true;
            let shared = self.0.clone();
            thread::spawn(move || beat(&shared));
        }
    }
}

fn beat((state, end): &(Mutex<Beating>, Condvar)) {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    while !state.ended {
        state = end.wait_timeout(state, BEAT).unwrap_or_else(PoisonError::into_inner).0;
        let now = FileTimes::new().set_modified(clock::now());
        for file in state.files.iter().filter_map(Weak::upgrade) {
            // A touch that fails leaves an older time: others take over sooner, and then equal bytes are made twice.
            drop(file.set_times(now));
        }
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.0.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    fn same(owner: &Owner) -> bool {
        (owner.host.clone(), owner.pid) == (host(), std::process::id())
    }

    fn open(path: &Path) -> File {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    #[test]
    fn one_holder_at_a_time_and_the_others_are_told_who() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("claim");
        let mut first = open(&path);
        assert_eq!(take(&mut first).unwrap(), Ok(()));
        assert!(take(&mut open(&path)).unwrap().unwrap_err().is_some_and(|owner| same(&owner)));
        assert!(holder(&path).is_some_and(|owner| same(&owner)));
        drop(first);
        assert_eq!(holder(&path), None);
        assert_eq!(take(&mut open(&path)).unwrap(), Ok(()), "the lock ends with its holder");
    }

    #[test]
    fn what_another_host_holds_is_held_until_nobody_touched_it_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("claim");
        let far = Owner { host: "far".into(), pid: 7, since: 5 };
        std::fs::write(&path, serde_json::to_vec(&far).unwrap()).unwrap();
        assert_eq!(take(&mut open(&path)).unwrap(), Err(Some(far.clone())), "its lock may not be seen here");
        assert_eq!(holder(&path), Some(far.clone()));
        assert_eq!(far.to_string(), "process 7 on far");
        let file = open(&path);
        file.set_times(FileTimes::new().set_modified(clock::now() - 2 * STALE)).unwrap();
        assert_eq!(take(&mut open(&path)).unwrap(), Ok(()));
        assert!(read(&mut open(&path)).is_some_and(|owner| same(&owner)));
    }

    #[test]
    fn what_was_cut_off_while_it_was_written_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("claim");
        std::fs::write(&path, "{\"host\": \"fa").unwrap();
        assert_eq!(take(&mut open(&path)).unwrap(), Ok(()));
    }
}
