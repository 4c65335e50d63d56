//! What a run of nothing but hits costs. Not timed in the ordinary tests: machines differ.

use std::time::Instant;

use super::*;

#[test]
#[ignore = "a measurement: cargo test --release --lib noop -- --ignored --nocapture"]
fn cost_of_hits() {
    for n in [1_000, 10_000] {
        let space = Space::new();
        let nodes = || -> Vec<Node> {
            (0..n)
                .map(|i| {
                    let producers: Vec<usize> = (i >= 100).then(|| i - 100).into_iter().collect();
                    space.fake(&format!("stage{i}")).reading(&producers)
                })
                .collect()
        };
        let started = Instant::now();
        assert_eq!(space.run(nodes()).status, RunStatus::Ok);
        println!("{n} stages, first run: {:.2?}", started.elapsed());
        for _ in 0..3 {
            let started = Instant::now();
            let summary = space.run(nodes());
            println!("{n} stages, all hits: {:.1?}", started.elapsed());
            assert!(summary.stages.iter().all(|s| s.status == Status::Cached));
            let started = Instant::now();
            space.plan(nodes(), &Options::default());
            println!("{n} stages, plan: {:.1?}", started.elapsed());
        }
    }
}

#[test]
fn a_long_chain_and_a_wide_fan_are_hits() {
    let space = Space::new();
    let nodes = || -> Vec<Node> {
        let chain = (0..20_usize)
            .map(|i| space.fake(&format!("c{i}")).reading(&i.checked_sub(1).into_iter().collect::<Vec<_>>()));
        let fan = (0..20).map(|i| space.fake(&format!("f{i}")).reading(&[19]));
        chain.chain(fan).collect()
    };
    space.run(nodes());
    assert_eq!(space.log.take().len(), 40);
    assert!(space.run(nodes()).stages.iter().all(|s| s.status == Status::Cached));
    assert_eq!(space.log.take().len(), 0);
}
