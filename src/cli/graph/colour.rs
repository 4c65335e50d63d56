//! The colours of statuses: those of Okabe and Ito, which colour-blind people can tell apart. Knows no format.

use crate::engine::state::Status;

/// What a plan can say of a stage, in the order of the legend.
pub(super) const SHOWN: [Status; 5] =
    [Status::Cached, Status::Run, Status::Maybe, Status::Blocked, Status::Skipped];

/// The colour of text and lines on all of them.
pub(super) const INK: &str = "#111111";

/// The colour of a box.
pub(super) fn fill(status: Status) -> &'static str {
    match status {
        Status::Cached | Status::Ran => "#56b4e9",
        Status::Run => "#e69f00",
        Status::Maybe => "#f0e442",
        Status::Blocked | Status::Failed => "#cc79a7",
        Status::Skipped => "#d9d9d9",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rgb = [f64; 3];

    /// Linear light.
    fn rgb(hex: &str) -> Rgb {
        [1, 3, 5].map(|i| {
            let x = f64::from(u8::from_str_radix(&hex[i..i + 2], 16).unwrap()) / 255.0;
            if x <= 0.040_45 { x / 12.92 } else { ((x + 0.055) / 1.055).powf(2.4) }
        })
    }

    fn luminance([r, g, b]: Rgb) -> f64 {
        0.2126 * r + 0.7152 * g + 0.0722 * b
    }

    fn of(matrix: [Rgb; 3], colour: Rgb) -> Rgb {
        matrix.map(|row| row.iter().zip(colour).map(|(m, x)| m * x).sum::<f64>().clamp(0.0, 1.0))
    }

    /// How eyes without one kind of cone see a colour (Machado, Oliveira and Fernandes, 2009), and how all others do.
    const EYES: [[Rgb; 3]; 4] = [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [
            [0.152_286, 1.052_583, -0.204_868],
            [0.114_503, 0.786_281, 0.099_216],
            [-0.003_882, -0.048_116, 1.051_998],
        ],
        [
            [0.367_322, 0.860_646, -0.227_968],
            [0.280_085, 0.672_501, 0.047_413],
            [-0.011_820, 0.042_940, 0.968_881],
        ],
        [
            [1.255_528, -0.076_749, -0.178_779],
            [-0.078_411, 0.930_809, 0.147_602],
            [0.004_733, 0.691_367, 0.303_900],
        ],
    ];

    #[test]
    fn every_eye_can_tell_the_colours_apart() {
        let root = |colour: Rgb| colour.map(f64::sqrt);
        for eye in EYES {
            for (i, a) in SHOWN.iter().enumerate() {
                for b in &SHOWN[..i] {
                    let (x, y) = (root(of(eye, rgb(fill(*a)))), root(of(eye, rgb(fill(*b)))));
                    let apart = x.iter().zip(y).map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt();
                    assert!(apart > 0.1, "{a:?} and {b:?}: {apart:.3}");
                }
            }
        }
    }

    #[test]
    fn text_can_be_read_on_every_colour() {
        for status in SHOWN {
            let ratio = (luminance(rgb(fill(status))) + 0.05) / (luminance(rgb(INK)) + 0.05);
            assert!(ratio > 4.5, "{status:?}: {ratio:.1}");
        }
    }
}
