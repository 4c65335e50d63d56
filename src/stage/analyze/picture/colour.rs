//! Colours of a map: one hue for shares, two for what lies above and below a middle. Knows no figures.

use plotters::style::RGBColor;

/// From nothing to all: paper to deep blue, each step darker than the one before.
const RISING: [[u8; 3]; 5] =
    [[246, 248, 251], [190, 214, 235], [104, 164, 211], [39, 105, 173], [11, 45, 94]];
/// Below the middle, the middle, above it: brown, paper, blue; equally dark at both ends.
const AROUND: [[u8; 3]; 5] =
    [[140, 66, 12], [232, 172, 112], [247, 247, 245], [120, 172, 214], [18, 70, 135]];

/// The colour of `x` from 0 to 1 of the rising scale.
pub(super) fn rising(x: f64) -> RGBColor {
    between(&RISING, x)
}

/// The colour of `x` from 0 to 1 of the scale around a middle, which is 0.5.
pub(super) fn around(x: f64) -> RGBColor {
    between(&AROUND, x)
}

/// Ink that is readable on `ground`.
pub(super) fn ink(ground: RGBColor) -> RGBColor {
    let RGBColor(r, g, b) = ground;
    let light = 0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b);
    if light > 140.0 { RGBColor(30, 30, 30) } else { RGBColor(250, 250, 250) }
}

fn between(stops: &[[u8; 3]; 5], x: f64) -> RGBColor {
    let at = x.clamp(0.0, 1.0) * (stops.len() - 1) as f64;
    let below = (at as usize).min(stops.len() - 2);
    let mix = |c: usize| {
        let (a, b) = (f64::from(stops[below][c]), f64::from(stops[below + 1][c]));
        (a + (b - a) * (at - below as f64)).round() as u8
    };
    RGBColor(mix(0), mix(1), mix(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn light(x: f64) -> u32 {
        let RGBColor(r, g, b) = rising(x);
        [r, g, b].map(u32::from).iter().sum()
    }

    #[test]
    fn stops_are_met_and_what_is_outside_is_the_end() {
        assert_eq!(rising(0.0), RGBColor(246, 248, 251));
        assert_eq!(rising(0.25), RGBColor(190, 214, 235));
        assert_eq!(rising(0.125), RGBColor(218, 231, 243));
        assert_eq!(
            (rising(1.0), rising(7.0), rising(-1.0)),
            (RGBColor(11, 45, 94), rising(1.0), rising(0.0))
        );
        assert_eq!(around(0.5), RGBColor(247, 247, 245));
    }

    #[test]
    fn more_is_darker_and_ink_is_seen() {
        assert!((1..=100).all(|i| light(f64::from(i) / 100.0) < light(f64::from(i - 1) / 100.0)));
        assert_eq!([0.0, 1.0].map(|x| ink(rising(x))), [RGBColor(30, 30, 30), RGBColor(250, 250, 250)]);
        assert_eq!([0.0, 0.5, 1.0].map(|x| ink(around(x)).0), [250, 30, 250]);
    }
}
