//! Conversions that are stopped and go on.

use super::*;
use crate::stage::testing::{Kept, Says};

/// Each split is measured on its own stream, and each layer by itself: checkpoints fall into every kind of pass.
const TOML: &str = "kv-budget = 38\nmeasure = 2\nlayer-budgets = 'free'";

#[test]
fn an_interrupted_conversion_measures_nothing_twice_and_ends_with_the_same_bytes() {
    let model = calibrated("gptoss-dense", |_| ());
    let whole = model.bench();
    let all = tempfile::tempdir().unwrap();
    let count = Kept::new(all.path(), usize::MAX);
    whole.run_with(&stage(TOML), &Says::default(), &count, &count.stop).unwrap();
    let all = count.count();
    // Six passes of four layers: three checkpoints between layers and one behind the pass.
    assert_eq!(all, 6 * 4);
    for last in [1, 4, 6, 8, 11, 15, 18, 19, 20, 23] {
        let dir = tempfile::tempdir().unwrap();
        let (bench, first) = (model.bench(), Kept::new(dir.path(), last));
        let stopped = bench.run_with(&stage(TOML), &Says::default(), &first, &first.stop);
        assert!(matches!(stopped, Err(Failure::Stopped)), "{last}: {stopped:?}");
        let (second, says) = (Kept::new(dir.path(), usize::MAX), Says::default());
        bench.run_with(&stage(TOML), &says, &second, &second.stop).unwrap();
        let said = says.0.into_inner().unwrap();
        let (passes, layer) = (last / 4, last % 4);
        assert_eq!(said[0], format!("going on behind {passes} passes that were measured"), "{last}");
        assert_eq!(said.contains(&format!("going on with layer {layer}")), layer > 0, "{last}: {said:?}");
        assert_eq!(second.count(), all - last, "what was done is not done again");
        assert!(bench.bytes() == whole.bytes(), "{last}");
    }
}
