//! What stages are going to take, below a plan: memory by what it is for, and time at the speed that this machine has. Knows no stage.

use std::time::Instant;

use bytesize::ByteSize;
use candle_core::{Device, Tensor};

use super::paint::seconds;
use crate::engine::{action::Forecast, summary::RunSummary};

/// A paragraph for each stage that can tell; `speed` is asked for if there is one, in operations per second.
pub(super) fn render(plan: &RunSummary, speed: impl FnOnce() -> Option<f64>) -> String {
    let told = || plan.stages.iter().filter_map(|stage| Some((&stage.name, stage.forecast.as_ref()?)));
    if told().next().is_none() {
        return String::new();
    }
    let speed = speed();
    told().map(|(name, forecast)| paragraph(name, forecast, speed)).collect()
}

fn paragraph(name: &str, forecast: &Forecast, speed: Option<f64>) -> String {
    let size = |bytes: u64| ByteSize::b(bytes).display().si().to_string();
    let mut parts: Vec<(&str, u64)> = forecast.memory.clone();
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let parts: Vec<String> = parts.iter().map(|(what, bytes)| format!("{what} {}", size(*bytes))).collect();
    let time = speed.filter(|speed| *speed > 0.0).map(|speed| {
        let time = seconds(forecast.flop / speed);
        format!(
            ": no less than {time}, at the {:.0} GFLOP/s of a matrix product on this machine's CPU",
            speed / 1e9
        )
    });
    let assumed = forecast.assumed.map(|assumed| format!("  ({assumed})\n"));
    format!(
        "\n  {name} takes up to {} of memory: {}\n  and {:.1e} operations{}\n{}",
        size(forecast.bytes()),
        parts.join(", "),
        forecast.flop,
        time.unwrap_or_default(),
        assumed.unwrap_or_default()
    )
}

/// Operations per second of a product of two matrices in f32, the best of some; `None` where there is no time to tell.
pub(super) fn speed() -> Option<f64> {
    const N: usize = 768;
    let side = || Tensor::rand(-1f32, 1f32, (N, N), &Device::Cpu).ok();
    let (a, b) = (side()?, side()?);
    let once = || {
        let started = Instant::now();
        drop(a.matmul(&b).ok()?);
        Some(2.0 * (N as f64).powi(3) / started.elapsed().as_secs_f64())
    };
    (0..5).filter_map(|_| once()).reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{
        state::Status,
        summary::{RunStatus, StageSummary},
    };

    fn plan(forecast: Option<Forecast>) -> RunSummary {
        let stage = StageSummary { forecast, ..StageSummary::new("heal", "distill", Status::Run, "") };
        RunSummary {
            run: String::new(),
            pipeline: String::new(),
            status: RunStatus::Ok,
            seconds: 0.0,
            stages: vec![StageSummary::new("corpus", "corpus", Status::Cached, ""), stage],
            interrupted: false,
            checkpointed: false,
        }
    }

    #[test]
    fn the_largest_part_comes_first_and_time_follows_from_speed() {
        let memory = vec![("student", 1_000_000_000), ("teacher", 3_000_000_000)];
        let forecast = Forecast { memory, flop: 3.6e12, assumed: Some("a guess") };
        let text = render(&plan(Some(forecast.clone())), || Some(1e9));
        assert_eq!(
            text,
            "\n  heal takes up to 4.0 GB of memory: teacher 3.0 GB, student 1.0 GB\n  and 3.6e12 operations: no less than 1:00:00, \
             at the 1 GFLOP/s of a matrix product on this machine's CPU\n  (a guess)\n"
        );
        let quiet = render(&plan(Some(Forecast { assumed: None, ..forecast })), || None);
        assert!(quiet.ends_with("and 3.6e12 operations\n"), "{quiet}");
        assert_eq!(render(&plan(None), || panic!("nobody asks")), "");
    }

    #[test]
    fn a_product_has_a_speed() {
        assert!(speed().unwrap() > 1e7);
    }
}
