//! `[executor.slurm]`: where stages run instead of here. Knows no stage and no scheduler; nothing of it enters a key.

use std::time::Duration;

use toml::{
    Spanned,
    de::{DeString, DeTable},
};

use super::{
    Value, Vars, check_keys, entry,
    error::{Fault, Mistake},
};

/// The keys of `[executor.slurm]`.
const KEYS: &[&str] = &["partition", "args", "at-once", "poll", "device", "fingerprint"];

/// A Slurm cluster, as a manifest says it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slurm {
    /// The queue of stages that name none.
    pub partition: Option<String>,
    /// More options of `sbatch`.
    pub args: Vec<String>,
    /// How many tasks of one array run at once.
    pub at_once: Option<u32>,
    /// The shortest time between two questions about jobs.
    pub poll: Option<Duration>,
    /// The device on the nodes, as `--device` takes it.
    pub device: Option<String>,
    /// What identifies the kind of device on the nodes, where it is not that of this host.
    pub fingerprint: Option<String>,
}

/// Reads `[executor]`; `None` when there is none.
pub(super) fn read<'s>(table: DeTable<'s>, vars: &Vars<'s>, faults: &mut Vec<Fault>) -> Option<Slurm> {
    check_keys(&table, "[executor]", &["slurm"], faults);
    let slurm = table.into_iter().find(|(key, _)| key.get_ref() == "slurm")?.1;
    let table = entry::table("[executor.slurm]", slurm, faults)?;
    check_keys(&table, "[executor.slurm]", KEYS, faults);
    let mut found = Slurm::default();
    for (key, value) in table {
        if let Some(value) = vars.expand(value, faults) {
            found.take(&key, value, faults);
        }
    }
    Some(found)
}

impl Slurm {
    fn take(&mut self, key: &Spanned<DeString<'_>>, value: Value<'_>, faults: &mut Vec<Fault>) {
        let what = format!("`{}`", key.get_ref());
        let place = value.span();
        match key.get_ref().as_ref() {
            "partition" => self.partition = entry::string(&what, &value, faults),
            "device" => self.device = entry::string(&what, &value, faults),
            "fingerprint" => self.fingerprint = entry::string(&what, &value, faults),
            "args" => self.args = entry::strings(&what, value, faults),
            "at-once" => match entry::seed(&what, &value, faults).map(u32::try_from) {
                Some(Ok(count)) if count > 0 => self.at_once = Some(count),
                Some(_) => faults
                    .push(Fault::at(place, Mistake::AtOnce).hint("leave it out to let the cluster decide")),
                None => {}
            },
            "poll" => match entry::string(&what, &value, faults).map(|text| humantime::parse_duration(&text))
            {
                Some(Ok(time)) => self.poll = Some(time),
                Some(Err(_)) => faults.push(Fault::at(place, Mistake::Time).hint("such as `30s` or `2m`")),
                None => {}
            },
            _ => {} // an unknown key has been told
        }
    }
}
