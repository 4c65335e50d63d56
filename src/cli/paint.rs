//! Colours, times and counts for people. Knows no stage.

use std::fmt;

/// Text in a colour, or plain where the terminal has none.
pub(super) struct Painted<'a> {
    colour: Option<Colour>,
    text: &'a str,
}

/// What a colour says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colour {
    Good,
    Bad,
    Warning,
    Strong,
    Faint,
    Accent,
}

impl Colour {
    fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Bad => "31;1",
            Self::Warning => "33",
            Self::Strong => "1",
            Self::Faint => "2",
            Self::Accent => "36",
        }
    }
}

/// Whether to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Palette(pub bool);

impl Palette {
    /// The palette that fits a stream: plain for files, `NO_COLOR` and simple terminals.
    pub(super) fn of(stream: &impl anstream::stream::RawStream) -> Self {
        Self(anstream::AutoStream::choice(stream) != anstream::ColorChoice::Never)
    }

    pub(super) fn paint(self, colour: Colour, text: &str) -> Painted<'_> {
        Painted { colour: self.0.then_some(colour), text }
    }
}

impl fmt::Display for Painted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.colour {
            // Padding counts letters only, so it goes inside.
            Some(colour) => {
                write!(f, "\x1b[{}m", colour.code())?;
                f.pad(self.text)?;
                f.write_str("\x1b[0m")
            }
            None => f.pad(self.text),
        }
    }
}

/// A time as people say it: `0.4 s`, `12.3 s`, `3:05`, `2:03:05`.
pub(super) fn seconds(seconds: f64) -> String {
    if seconds < 0.05 {
        return format!("{:.0} ms", seconds * 1e3);
    }
    if seconds < 99.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    let (hours, minutes, rest) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{rest:02}") } else { format!("{minutes}:{rest:02}") }
}

/// A count or a rate with three digits: `7`, `950`, `1.24 k`, `31.0 M`.
pub(super) fn count(x: f64) -> String {
    let (scaled, unit) = match x {
        x if x < 1e3 => (x, ""),
        x if x < 1e6 => (x / 1e3, "k"),
        x if x < 1e9 => (x / 1e6, "M"),
        x => (x / 1e9, "G"),
    };
    let digits = match scaled {
        s if unit.is_empty() && s.fract() == 0.0 => 0,
        s if s < 10.0 => 2,
        s if s < 100.0 => 1,
        _ => 0,
    };
    format!("{scaled:.digits$}{unit}")
}

/// A size in bytes: `512 B`, `1.4 MiB`.
pub(super) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step =
        (0..units.len() - 1).rev().find(|&step| n >= 1 << (10 * (step + 1))).map_or(0, |step| step + 1);
    let scaled = n as f64 / (1_u64 << (10 * step)) as f64;
    if step == 0 { format!("{n} B") } else { format!("{scaled:.1} {}", units[step]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_counts_letters() {
        let (colour, plain) = (Palette(true), Palette(false));
        assert_eq!(format!("{:4}|", plain.paint(Colour::Good, "é")), "é   |");
        assert_eq!(format!("{:>3}|", colour.paint(Colour::Good, "é")), "\x1b[32m  é\x1b[0m|");
    }

    #[test]
    fn times_and_counts() {
        let times = [
            (0.0, "0 ms"),
            (0.0123, "12 ms"),
            (0.05, "0.1 s"),
            (9.96, "10.0 s"),
            (99.96, "1:40"),
            (7385.0, "2:03:05"),
        ];
        for (s, text) in times {
            assert_eq!(seconds(s), text);
        }
        let counts = [
            (7.0, "7"),
            (0.25, "0.25"),
            (999.0, "999"),
            (1240.0, "1.24k"),
            (31e6, "31.0M"),
            (2.5e11, "250G"),
        ];
        for (x, text) in counts {
            assert_eq!(count(x), text);
        }
        let sizes =
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 19, "1.5 MiB"), (5 << 40, "5.0 TiB")];
        for (n, text) in sizes {
            assert_eq!(bytes(n), text);
        }
    }
}
