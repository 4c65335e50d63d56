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
    // What would round up to a thousand belongs to the next unit.
    let (scaled, unit) = match x {
        x if x < 999.5 => (x, ""),
        x if x < 999.5e3 => (x / 1e3, "k"),
        x if x < 999.5e6 => (x / 1e6, "M"),
        x => (x / 1e9, "G"),
    };
    let digits = match scaled {
        s if unit.is_empty() && s.fract() == 0.0 => 0,
        s if s < 9.995 => 2,
        s if s < 99.95 => 1,
        _ => 0,
    };
    format!("{scaled:.digits$}{unit}")
}

/// A size in bytes: `512 B`, `1.4 MiB`.
pub(super) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let in_unit = |step: usize| n as f64 / (1_u64 << (10 * step)) as f64;
    // What would round up to 1024.0 belongs to the next unit.
    let too_many = |step: usize| if step == 0 { n >= 1024 } else { in_unit(step) >= 1023.95 };
    let step = (0..units.len() - 1).find(|&step| !too_many(step)).unwrap_or(units.len() - 1);
    let scaled = in_unit(step);
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
            (0.0004, "0 ms"),
            (0.0494, "49 ms"),
            (1.0, "1.0 s"),
            (99.94, "99.9 s"),
            (119.6, "2:00"),
            (3599.4, "59:59"),
            (3599.6, "1:00:00"),
            (360_000.0, "100:00:00"),
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
            (0.0, "0"),
            (0.001, "0.00"),
            (12.345, "12.3"),
            (123.4, "123"),
            (1000.0, "1.00k"),
            (10_000.0, "10.0k"),
            (123_456.0, "123k"),
            (1e6, "1.00M"),
            (1e9, "1.00G"),
        ];
        for (x, text) in counts {
            assert_eq!(count(x), text);
        }
        let sizes = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (3 << 19, "1.5 MiB"),
            (5 << 40, "5.0 TiB"),
            (1 << 20, "1.0 MiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ];
        for (n, text) in sizes {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn what_rounds_up_goes_to_the_next_unit() {
        let counts = [
            (999.4, "999"),
            (999.5, "1.00k"),
            (9.996, "10.0"),
            (99.96, "100"),
            (9_996.0, "10.0k"),
            (99_960.0, "100k"),
            (999_499.0, "999k"),
            (999_500.0, "1.00M"),
            (999.6e6, "1.00G"),
        ];
        for (x, text) in counts {
            assert_eq!(count(x), text, "{x}");
        }
        let kib = 1 << 10;
        for (n, text) in [
            (kib * kib - 1, "1.0 MiB"),
            (1023 * kib + 972, "1023.9 KiB"),
            (1023 * kib + 973, "1.0 MiB"),
            (kib * kib * kib - 1, "1.0 GiB"),
            ((1 << 40) - 1, "1.0 TiB"),
        ] {
            assert_eq!(bytes(n), text, "{n}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_count_is_short_and_near_what_it_counts(x in 0.01..9e11_f64) {
            let text = count(x);
            let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let unit = match &text[digits.len()..] { "k" => 1e3, "M" => 1e6, "G" => 1e9, _ => 1.0 };
            let shown = digits.parse::<f64>().unwrap() * unit;
            proptest::prop_assert!((shown - x).abs() <= (0.005 * unit).max(0.0051 * x), "{x} as {text}");
            proptest::prop_assert!(text.chars().count() <= 5, "{text}");
        }

        #[test]
        fn a_size_is_near_what_it_measures(n in 0..1_u64 << 50) {
            let text = bytes(n);
            let (digits, unit) = text.split_once(' ').unwrap();
            let step = ["B", "KiB", "MiB", "GiB", "TiB"].iter().position(|known| *known == unit).unwrap();
            let one = (1_u64 << (10 * step)) as f64;
            let shown = digits.parse::<f64>().unwrap() * one;
            proptest::prop_assert!((shown - n as f64).abs() <= 0.051 * one, "{n} as {text}");
            proptest::prop_assert!(step == 4 || shown < 1024.0 * one, "{text}");
        }
    }
}
