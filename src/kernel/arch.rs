//! Which vector instructions the kernels run on: the widest that the machine has. Where a kernel promises the same bits everywhere,
//! tests run it on all of them.
#![expect(clippy::inline_always, reason = "it becomes part of what is compiled for several instruction sets")]

use pulp::{Arch, Simd, WithSimd};

/// What `f` makes, compiled for the widest vectors. `f` is a closure with `#[inline(always)]` whose loops the compiler turns into vectors.
///
/// [`Arch::dispatch`] itself would call such a closure by a detour that is compiled for the oldest machines.
pub(crate) fn vectorised<R>(f: impl FnMut() -> R) -> R {
    arch().dispatch(Body(f))
}

struct Body<F>(F);

impl<R, F: FnMut() -> R> WithSimd for Body<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}

/// The instructions to run on.
pub(crate) fn arch() -> Arch {
    #[cfg(test)]
    if let Some(forced) = testing::forced() {
        return forced;
    }
    Arch::new()
}

#[cfg(test)]
pub(crate) mod testing {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use pulp::Arch;

    /// One more than the place in [`all`] of what every kernel of this process runs on. Other tests that run meanwhile are slower at
    /// most: no kernel's result depends on it.
    static FORCED: AtomicUsize = AtomicUsize::new(0);

    pub(super) fn forced() -> Option<Arch> {
        FORCED.load(Ordering::Relaxed).checked_sub(1).map(|i| all()[i])
    }

    /// Every set of instructions that this machine has, and plain Rust.
    pub(crate) fn all() -> Vec<Arch> {
        let mut all = vec![Arch::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(pulp::x86::V3::try_new().map(Arch::V3));
            all.extend(pulp::x86::V4::try_new().map(Arch::V4));
        }
        all
    }

    /// What a function makes on each of them.
    pub(crate) fn on_all<T>(f: impl Fn() -> T) -> Vec<T> {
        let run = |i: usize| {
            FORCED.store(i + 1, Ordering::Relaxed);
            f()
        };
        let made = (0..all().len()).map(run).collect();
        FORCED.store(0, Ordering::Relaxed);
        made
    }
}
