//! The keys of every stage that say what it may use and how often it is tried: `timeout`, `retry`, `memory`, `resources`. They never
//! enter a stage's key. Knows the units that people write, and no stage.

use std::{fmt, str::FromStr, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use toml::{Spanned, de::DeTable};

use super::PlanError;
use crate::{
    engine::{
        action::Class,
        limits::{self, Resources, Retry},
    },
    manifest::{Fault, Span, near},
};

/// What a stage may use and how often it is tried.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Keys {
    /// How long one attempt may take, such as `"2h"`; then it is stopped, with a checkpoint if the stage keeps one.
    timeout: Option<Time>,
    /// When and how often a failed attempt is repeated.
    retry: Option<RetryKeys>,
    /// Main memory that the stage keeps within where it can, such as `"6GB"`; without it, `resources.memory`.
    memory: Option<Memory>,
    /// What the stage needs of a cluster.
    resources: Option<ResourceKeys>,
}

/// When and how often a failed attempt is repeated.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RetryKeys {
    /// Attempts after the first.
    times: u32,
    /// The pause before the second attempt; it doubles with each.
    backoff: Option<Time>,
    /// The failures that are worth another attempt; all of these by default.
    on: Option<Vec<Failure>>,
}

/// A class of failures.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Failure {
    /// The operating system refused to read or write.
    Io,
    /// There was not enough memory.
    Memory,
    /// A process was killed.
    Killed,
    /// A command ended with an exit code of its own.
    Exit,
    /// The time was up.
    Timeout,
}

/// What a stage needs of a cluster.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ResourceKeys {
    /// Devices.
    gpus: Option<u32>,
    /// Processor cores.
    cpus: Option<u32>,
    /// Main memory, such as `"64GB"`.
    memory: Option<Memory>,
    /// Wall-clock time, such as `"1d"`.
    time: Option<Time>,
    /// The queue.
    partition: Option<String>,
}

/// A length of time as people write it.
#[derive(Debug, Clone, Copy, JsonSchema)]
#[schemars(with = "String")]
struct Time(Duration);

/// An amount of memory as people write it.
#[derive(Debug, Clone, Copy, JsonSchema)]
#[schemars(with = "String")]
struct Memory(u64);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        in_words(d, "a time such as `90s`, `2h` or `1d 12h`", humantime::parse_duration).map(Self)
    }
}

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        in_words(d, "an amount of memory such as `64GB` or `512MiB`", bytesize::ByteSize::from_str)
            .map(|size| Self(size.as_u64()))
    }
}

fn in_words<'de, D: Deserializer<'de>, T, E: fmt::Display>(
    d: D,
    expected: &str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<T, D::Error> {
    let text = String::deserialize(d)?;
    parse(&text).map_err(|_| serde::de::Error::custom(format!("expected {expected}, found `{text}`")))
}

/// Decodes the keys, each for itself, so that every mistake is told.
pub(super) fn decode(
    table: &DeTable<'_>,
    header: &Span,
    faults: &mut Vec<Fault<PlanError>>,
) -> limits::Limits {
    let mut keys = Keys::default();
    for (name, value) in table {
        let mut one = DeTable::new();
        one.insert(name.clone(), value.clone());
        let input = toml::de::Deserializer::from(Spanned::new(header.clone(), one));
        match Keys::deserialize(input) {
            Err(error) => faults.push(fault(&error, value.span())),
            Ok(found) => {
                keys.timeout = found.timeout.or(keys.timeout);
                keys.retry = found.retry.or(keys.retry);
                keys.memory = found.memory.or(keys.memory);
                keys.resources = found.resources.or(keys.resources);
            }
        }
    }
    keys.limits()
}

fn fault(error: &toml::de::Error, value: Span) -> Fault<PlanError> {
    let message = error.message();
    let place = error.span().unwrap_or(value);
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let unknown = ["unknown field", "unknown variant"].into_iter().any(|start| message.starts_with(start));
    match quoted.split_first() {
        Some((word, known)) if unknown => {
            let hint = near::suggest(word, "words", known.iter().copied());
            Fault::at(place, PlanError::UnknownWord((*word).to_owned())).hint(hint)
        }
        _ => Fault::at(place, PlanError::Value(super::decode::in_words(message).into_owned())),
    }
}

impl Keys {
    fn limits(self) -> limits::Limits {
        let standard = Retry::default();
        let of_cluster = self.resources.as_ref().and_then(|keys| keys.memory.as_ref());
        limits::Limits {
            timeout: self.timeout.map(|time| time.0),
            retry: self.retry.map_or_else(Retry::default, |keys| Retry {
                times: keys.times,
                backoff: keys.backoff.map_or(standard.backoff, |time| time.0),
                on: keys.on.map_or(standard.on, |on| on.into_iter().map(Class::from).collect()),
            }),
            memory: self.memory.as_ref().or(of_cluster).map(|memory| memory.0),
            resources: self.resources.map_or_else(Resources::default, |keys| Resources {
                gpus: keys.gpus,
                cpus: keys.cpus,
                memory: keys.memory.map(|memory| memory.0),
                time: keys.time.map(|time| time.0),
                partition: keys.partition,
            }),
        }
    }
}

impl From<Failure> for Class {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Io => Self::Io,
            Failure::Memory => Self::Memory,
            Failure::Killed => Self::Killed,
            Failure::Exit => Self::Exit,
            Failure::Timeout => Self::Timeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (limits::Limits, Vec<String>) {
        let table = DeTable::parse(text).unwrap().into_inner();
        let mut faults = Vec::new();
        let limits = decode(&table, &(0..text.len()), &mut faults);
        let told = |fault: &Fault<PlanError>| {
            let place = fault.place.clone().map(|place| text[place].to_owned()).unwrap_or_default();
            format!("{place}: {} ({})", fault.error, fault.hint.clone().unwrap_or_default())
        };
        (limits, faults.iter().map(told).collect())
    }

    #[test]
    fn times_and_sizes_are_read_as_people_write_them() {
        let (limits, faults) = read(
            "timeout = \"1h 30m\"\nretry = { times = 3, backoff = \"10s\", on = [\"killed\", \"io\"] }\n\
             resources = { gpus = 2, cpus = 8, memory = \"64GB\", time = \"2d\", partition = \"low\" }",
        );
        assert!(faults.is_empty(), "{faults:?}");
        assert_eq!(limits.timeout, Some(Duration::from_mins(90)));
        let on = [Class::Killed, Class::Io].into();
        assert_eq!(limits.retry, Retry { times: 3, backoff: Duration::from_secs(10), on });
        let resources = Resources {
            gpus: Some(2),
            cpus: Some(8),
            memory: Some(64_000_000_000),
            time: Some(Duration::from_hours(48)),
            partition: Some("low".into()),
        };
        assert_eq!(limits.resources, resources);
        assert_eq!(limits.memory, Some(64_000_000_000), "what a cluster gives is the budget");
        assert_eq!(read("memory = \"6GB\"\nresources = { memory = \"8GB\" }").0.memory, Some(6_000_000_000));
        assert_eq!(read("").0, limits::Limits::default());
        assert_eq!(read("retry = { times = 1 }").0.retry.on.len(), Class::ALL.len());
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        let (_, faults) = read("timeout = \"soon\"\nretry = { tims = 3 }\nresources = { memory = 64 }");
        let starts: Vec<&str> = faults.iter().map(|line| line.split(" (").next().unwrap()).collect();
        assert_eq!(
            starts,
            [
                "\"soon\": expected a time such as `90s`, `2h` or `1d 12h`, found `soon`",
                "tims: unknown value `tims`",
                "64: expected a string, found integer `64`",
            ]
        );
        assert!(faults[1].contains("times"), "{faults:?}");
        assert!(read("retry = { times = 1, on = [\"oom\"] }").1[0].contains("unknown value `oom`"));
        assert!(!read("retry = { backoff = \"1s\" }").1.is_empty(), "`times` must be given");
    }
}
