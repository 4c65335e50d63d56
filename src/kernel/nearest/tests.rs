//! The fast form and the CUDA launch against the definition; ties, extremes, refusals.

use proptest::{collection::vec, prop_assert_eq, proptest};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::*;
use crate::{
    kernel::{
        arch::testing::on_all,
        testing::{grid_vectors, on_threads},
    },
    math::grid,
};

/// Grid vectors of random directions; `spiky` ones have nearly all their length in one coordinate, `coarse` ones have few
/// distinct values, so that products tie.
fn rows(n: usize, dim: usize, shape: &str, seed: u64) -> Vec<i16> {
    let mut out = grid_vectors(n, dim, 2001, seed);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for row in out.chunks_exact_mut(dim) {
        let mut x: Vec<i64> = row.iter().map(|&q| i64::from(q)).collect();
        match shape {
            "spiky" => x[rng.next_u32() as usize % dim] = 10_000_000,
            "coarse" => x.iter_mut().for_each(|v| *v = v.signum() * i64::from(rng.next_u32() % 4 == 0)),
            _ => continue,
        }
        grid::quantise(&x, row);
    }
    out
}

fn check(device: Device, [n, k, dim]: [usize; 3], shape: &str) {
    let (p, c) = (rows(n, dim, shape, 1), rows(k, dim, shape, 2));
    let (p, c) = (Rows::new(dim, &p).unwrap(), Rows::new(dim, &c).unwrap());
    assert_eq!(nearest(device, p, c).unwrap(), definition(p, c), "{n} × {k} × {dim}, {shape}");
}

fn check_all(device: Device) {
    for shape in ["random", "spiky", "coarse"] {
        for n in [1, BLOCK - 1, BLOCK, BLOCK + 1] {
            for [k, dim] in [[1, 8], [63, 31], [64, 32], [65, 33], [130, 256]] {
                check(device, [n, k, dim], shape);
            }
        }
        check(device, [300, 70, grid::MAX_DIM], shape);
    }
}

#[test]
fn the_fast_form_equals_the_definition() {
    check_all(Device::Cpu);
}

#[test]
fn every_instruction_set_gives_the_same_and_so_does_every_rest_of_a_vector() {
    for k in (1..36).chain([63, 64, 65]) {
        for shape in ["random", "coarse"] {
            let (p, c) = (rows(7, 5, shape, k as u64), rows(k, 5, shape, 2));
            let (p, c) = (Rows::new(5, &p).unwrap(), Rows::new(5, &c).unwrap());
            let want = definition(p, c);
            for got in on_all(|| nearest(Device::Cpu, p, c).unwrap()) {
                assert_eq!(got, want, "{k} centroids, {shape}");
            }
        }
    }
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs a CUDA device"]
fn the_cuda_kernel_equals_the_definition() {
    check_all("cuda:0".parse().unwrap());
}

#[test]
fn ties_go_to_the_smallest_index() {
    let centroids = [0, 5, 3, 4, 5, 0, 3, 4];
    let rows = |data| Rows::new(2, data).unwrap();
    let found = nearest(Device::Cpu, rows(&[1, 1, 0, 0, -1, 0]), rows(&centroids)).unwrap();
    assert_eq!(
        found,
        [
            Nearest { index: 1, score: 7, second: 7 },
            Nearest { index: 0, score: 0, second: 0 },
            Nearest { index: 0, score: 0, second: -3 },
        ]
    );
    let alone = nearest(Device::Cpu, rows(&[1, 1]), rows(&[-5, 0])).unwrap();
    assert_eq!(alone, [Nearest { index: 0, score: -5, second: i32::MIN }]);
}

#[test]
fn what_would_not_be_exact_is_refused() {
    let long = Rows::new(1, &[0, 4096]).map(|_| ()).unwrap_err().to_string();
    assert!(long.starts_with("row 1 has norm² 16777216"), "{long}");
    assert!(Rows::new(1, &[4095, -4095]).is_ok());
    assert!(matches!(Rows::new(2, &[1]), Err(NearestError::Shape { len: 1, dim: 2 })));
    let (one, two) = (Rows::new(1, &[1]).unwrap(), Rows::new(2, &[1, 1]).unwrap());
    assert!(matches!(nearest(Device::Cpu, one, two), Err(NearestError::Mismatch { .. })));
    assert!(matches!(
        nearest(Device::Cpu, one, Rows::new(1, &[]).unwrap()),
        Err(NearestError::Mismatch { .. })
    ));
}

proptest! {
    /// Few distinct values make many ties; every form gives the first of the best and the best of the rest.
    #[test]
    fn ties_and_signs_are_those_of_a_sort(
        points in vec(-2i16..=2, 3..60),
        centroids in vec(-2i16..=2, 3..30),
    ) {
        let cut = |x: &[i16]| x[..x.len() / 3 * 3].to_vec();
        let (points, centroids) = (cut(&points), cut(&centroids));
        let (p, c) = (Rows::new(3, &points).unwrap(), Rows::new(3, &centroids).unwrap());
        let found = nearest(Device::Cpu, p, c).unwrap();
        prop_assert_eq!(&found, &definition(p, c));
        for (point, found) in points.chunks(3).zip(&found) {
            let product = |c: &[i16]| (0..3).map(|i| i32::from(point[i]) * i32::from(c[i])).sum::<i32>();
            let mut ranked: Vec<(i32, usize)> =
                centroids.chunks(3).enumerate().map(|(j, c)| (-product(c), j)).collect();
            ranked.sort_unstable();
            prop_assert_eq!((found.score, found.index as usize), (-ranked[0].0, ranked[0].1));
            prop_assert_eq!(found.second, ranked.get(1).map_or(i32::MIN, |second| -second.0));
        }
    }
}

#[test]
fn the_longest_vectors_are_exact() {
    // Norms just below 2¹²: products reach ±(2²⁴ − 8191), the edge of exact f32.
    let data = [4095, 0, -4095, 0, 0, 4095, 2895, 2895];
    let rows = Rows::new(2, &data).unwrap();
    let found = nearest(Device::Cpu, rows, rows).unwrap();
    assert_eq!(found, definition(rows, rows));
    assert_eq!(found[0], Nearest { index: 0, score: 4095 * 4095, second: 4095 * 2895 });
    assert_eq!(found[1], Nearest { index: 1, score: 4095 * 4095, second: 0 });
}

#[test]
fn no_points_have_no_nearest_and_threads_do_not_matter() {
    let centroids = rows(40, 16, "coarse", 2);
    let c = Rows::new(16, &centroids).unwrap();
    assert_eq!(nearest(Device::Cpu, Rows::new(16, &[]).unwrap(), c).unwrap(), []);
    let points = rows(1000, 16, "coarse", 1);
    let [one, two, five] = on_threads(|| nearest(Device::Cpu, Rows::new(16, &points).unwrap(), c).unwrap());
    assert!(one == two && one == five);
}
