//! Copies of the vectors, each moved a little, and where their documents then lie among the same centroids. Knows no text.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use rayon::prelude::*;

use super::{SelectError, choice::Place};
use crate::{
    device::Device,
    kernel::{
        nearest::{Nearest, Rows, nearest},
        neighbours,
    },
    math::grid,
};

/// Moves each vector by `radius` grid units in a direction that the seed, the copy and the document's id decide, and puts it back
/// on the grid. Vectors of zeros stay: no text stood behind them.
pub(super) fn moved(
    (dim, vectors): (usize, &[i16]),
    ids: &[&str],
    radius: i64,
    (seed, copy): (u64, u32),
) -> Vec<i16> {
    let mut out = vectors.to_vec();
    out.par_chunks_exact_mut(dim).zip(ids).for_each(|(row, id)| {
        if radius > 0 && row.iter().any(|&q| q != 0) {
            step(row, radius, stream(seed, copy, id));
        }
    });
    out
}

/// One stream per document, so that neither threads nor other documents matter.
fn stream(seed: u64, copy: u32, id: &str) -> ChaCha8Rng {
    let mut hash = blake3::Hasher::new_derive_key("mla-run moved copy of a vector");
    hash.update(&seed.to_le_bytes()).update(&copy.to_le_bytes()).update(id.as_bytes());
    ChaCha8Rng::from_seed(*hash.finalize().as_bytes())
}

fn step(row: &mut [i16], radius: i64, mut rng: ChaCha8Rng) {
    /// Parts of a grid unit: a step of less than half a unit must be able to count.
    const PARTS: i64 = 1 << 16;
    let direction: Vec<i64> = row.iter().map(|_| i64::from(rng.next_u32() >> 16) - (1 << 15)).collect();
    let square: i64 = direction.iter().map(|d| d * d).sum();
    let norm = (square as f64).sqrt().max(1.0);
    let shift = |d: i64| ((PARTS * radius * d) as f64 / norm).round_ties_even() as i64;
    let fine: Vec<i64> = row.iter().zip(&direction).map(|(&q, &d)| i64::from(q) * PARTS + shift(d)).collect();
    grid::quantise(&fine, row);
}

/// Where vectors lie among centroids, with their density among `neighbours` where that counts. `each` may stop a long count.
pub(super) fn places<E: From<SelectError> + Send>(
    (dim, vectors): (usize, &[i16]),
    centroids: &[i16],
    neighbours: Option<usize>,
    each: impl Fn() -> Result<(), E> + Sync,
) -> Result<Vec<Place>, E> {
    let rows = Rows::new(dim, vectors).map_err(SelectError::from)?;
    let centres = Rows::new(dim, centroids).map_err(SelectError::from)?;
    let found = nearest(Device::Cpu, rows, centres).map_err(SelectError::from)?;
    let densities = neighbours.map(|count| neighbours::density(rows, count, |_| each())).transpose()?;
    let alone = centroids.len() == dim;
    let place = |(i, near): (usize, &Nearest)| {
        let score = i64::from(near.score);
        let margin = (!alone).then(|| score - i64::from(near.second));
        Place { cluster: near.index, score, margin, density: densities.as_ref().map(|d| d[i]) }
    };
    Ok(found.iter().enumerate().map(place).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::on_threads;

    const IDS: [&str; 3] = ["a", "b", "c"];

    fn given(dim: usize) -> Vec<i16> {
        let mut rows = vec![0; 3 * dim];
        for (i, row) in rows.chunks_exact_mut(dim).enumerate().take(2) {
            let x: Vec<i64> = (0..dim as i64).map(|j| 100 - (j * 37 + 11 * i as i64) % 201).collect();
            grid::quantise(&x, row);
        }
        rows
    }

    fn distance(a: &[i16], b: &[i16]) -> f64 {
        let square: f64 = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
        square.sqrt()
    }

    #[test]
    fn vectors_move_by_the_radius_and_zeros_stay() {
        let (dim, rows) = (64, given(64));
        let out = moved((dim, &rows), &IDS, 40, (1, 0));
        for i in 0..2 {
            let gone = distance(&rows[i * dim..][..dim], &out[i * dim..][..dim]);
            assert!((30.0..45.0).contains(&gone), "{gone}: all but the part along the vector");
        }
        assert_eq!(out[2 * dim..], rows[2 * dim..]);
        assert_eq!(moved((dim, &rows), &IDS, 0, (1, 0)), rows);
    }

    #[test]
    fn seed_copy_and_id_decide_and_nothing_else() {
        let rows = given(16);
        let at = |ids: &[&str], seed, copy| moved((16, &rows), ids, 9, (seed, copy));
        let [one, two, five] = on_threads(|| at(&IDS, 1, 0));
        assert!(one == two && two == five);
        assert!(one != at(&IDS, 2, 0) && one != at(&IDS, 1, 1) && one != at(&["x", "b", "c"], 1, 0));
        let alone = moved((16, &rows[16..32]), &["b"], 9, (1, 0));
        assert_eq!(alone, one[16..32], "other documents do not matter");
    }

    #[test]
    fn places_are_those_of_the_definition() {
        let (rows, centroids) = ([4000, 0, 0, 4000, 2400, 3200], [4000, 0, 0, 4000]);
        let found = places((2, &rows), &centroids, Some(1), || Ok::<_, SelectError>(())).unwrap();
        let place = |cluster, score, margin, density| Place {
            cluster,
            score,
            margin: Some(margin),
            density: Some(density),
        };
        let one = 16_000_000;
        let third = place(1, 12_800_000, 3_200_000, 12_800_000);
        assert_eq!(found, [place(0, one, one, 9_600_000), place(1, one, one, 12_800_000), third]);
        let found = places((2, &rows), &centroids[..2], None, || Ok::<_, SelectError>(())).unwrap();
        assert!(found.iter().all(|p| p.margin.is_none() && p.density.is_none()), "one centroid");
    }
}
