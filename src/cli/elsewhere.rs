//! What a manifest says of other machines, made ready for a run: the cluster that runs its stages, the cache that it shares.

use std::{sync::Mutex, time::Duration};

use super::{error::CliError, project::Project, remote, worker};
use crate::{
    engine::{
        chain,
        shared::Shared,
        slurm::{Settings, Slurm},
    },
    manifest,
    store::{Digest, Record, Store, remote::Remote},
};

/// Lets a cluster run the stages, if the manifest says so.
pub(super) fn use_cluster(project: &mut Project) -> Result<(), CliError> {
    const POLL: Duration = Duration::from_secs(30);
    let Some(slurm) = project.slurm.take() else { return Ok(()) };
    let manifest::Slurm { partition, args, at_once, poll, device, fingerprint } = slurm;
    let settings =
        Settings { program: worker::program()?, partition, args, at_once, poll: poll.unwrap_or(POLL) };
    let options = &mut project.options;
    options.device = device.unwrap_or_else(|| options.device.clone());
    options.fingerprint = fingerprint.unwrap_or_else(|| options.fingerprint.clone());
    options.cluster = Some(Box::new(Slurm::new(project.store.clone(), settings)));
    Ok(())
}

/// Asks the shared cache before a stage runs, and puts there what was made, if the manifest names one.
pub(super) fn use_shared(project: &mut Project) -> Result<(), CliError> {
    let Some(remote) = remote::of(&project.shared)? else { return Ok(()) };
    let (pull, push) = (remote.require_pull(), remote.require_push().is_ok());
    let pull = if push { pull.is_ok() } else { pull.map(|()| true)? };
    let store = project.store.clone();
    project.options.shared = Some(Box::new(Other { store, remote, pull, push, broken: Mutex::default() }));
    Ok(())
}

/// The shared cache of a run.
struct Other {
    store: Store,
    remote: Remote,
    pull: bool,
    push: bool,
    /// Why it is not asked any more: one failure to reach it is enough for a run.
    broken: Mutex<Option<String>>,
}

impl Other {
    fn guarded<T>(
        &self,
        none: T,
        act: impl FnOnce() -> Result<T, crate::store::remote::RemoteError>,
    ) -> Result<T, String> {
        let is_broken = || self.broken.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if is_broken().is_some() {
            return Ok(none);
        }
        act().map_err(|error| {
            let why = chain(&error);
            // A refused object says nothing about the others.
            if !error.is_refusal() {
                *is_broken() = Some(why.clone());
                return format!("{why}; it is not asked any more in this run");
            }
            why
        })
    }
}

impl Shared for Other {
    fn fetch(&self, key: &Digest) -> Result<bool, String> {
        if !self.pull {
            return Ok(false);
        }
        self.guarded(false, || Ok(self.remote.pull(&self.store, key)?.is_some()))
    }

    fn publish(&self, record: &Record) -> Result<(), String> {
        if !self.push {
            return Ok(());
        }
        self.guarded((), || self.remote.push(&self.store, record).map(drop))
    }
}
