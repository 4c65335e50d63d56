//! Sums of squares and of norms of queries, keys and values. Knows rows of numbers.

/// Sums of [`add_by_place`] for one head.
pub(super) const PLACES: usize = 6;

/// Adds the squares of `x` [t, heads, d] by head and, unless `pairs` is empty, by rotary pair.
pub(super) fn add_energies(x: &[f32], d: usize, heads: &mut [f64], pairs: &mut [f64]) {
    let half = d / 2;
    for (i, head) in x.chunks_exact(d).enumerate() {
        for pair in 0..half {
            let (a, b) = (f64::from(head[pair]), f64::from(head[pair + half]));
            let square = a * a + b * b;
            if let Some(energy) = pairs.get_mut(pair) {
                *energy += square;
            }
            heads[i % heads.len()] += square;
        }
    }
}

/// Adds the norms of `x` [t, heads, d] and their numbers at position 0, at positions 1 to 3 and at the others [heads + 1, PLACES]; the last
/// row is of all heads taken as one vector.
pub(super) fn add_by_place(x: &[f32], heads: usize, positions: &[u32], sums: &mut [f64]) {
    let Some(width) = x.len().checked_div(positions.len() * heads) else { return };
    for (row, &position) in x.chunks_exact(heads * width).zip(positions) {
        let at = match position {
            0 => 0,
            1..4 => 2,
            _ => 4,
        };
        let mut whole = 0.0;
        let (each, all) = sums.split_at_mut(heads * PLACES);
        for (sums, head) in each.chunks_exact_mut(PLACES).zip(row.chunks_exact(width)) {
            let square: f64 = head.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            whole += square;
            sums[at] += square.sqrt();
            sums[at + 1] += 1.0;
        }
        all[at] += whole.sqrt();
        all[at + 1] += 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energies_by_head_and_pair() {
        let (mut heads, mut pairs) = (vec![0.0; 2], vec![0.0; 1]);
        add_energies(&[3.0, 4.0, 1.0, 0.0, 0.0, 0.0, 0.0, 2.0], 2, &mut heads, &mut pairs);
        assert_eq!((&heads, &pairs), (&vec![25.0, 5.0], &vec![30.0]));
        add_energies(&[3.0, 4.0, 1.0, 0.0], 2, &mut heads, &mut []);
        assert_eq!(heads, [50.0, 6.0]);
    }

    #[test]
    fn norms_at_the_first_position_at_the_next_three_and_behind() {
        let mut sums = vec![0.0; 3 * PLACES];
        // Two heads of width 2 at positions 0, 3, 4 and, in another sequence, 0.
        let x = [3.0, 4.0, 0.0, 12.0, 6.0, 8.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0];
        add_by_place(&x, 2, &[0, 3, 4, 0], &mut sums);
        assert_eq!(sums[..6], [6.0, 2.0, 10.0, 1.0, 5.0, 1.0]);
        assert_eq!(sums[6..12], [12.0, 2.0, 0.0, 1.0, 0.0, 1.0]);
        assert_eq!(sums[12..], [14.0, 2.0, 10.0, 1.0, 5.0, 1.0], "(3, 4, 0, 12) is 13 long");
        let before = sums.clone();
        add_by_place(&[], 2, &[], &mut sums);
        assert_eq!(sums, before);
    }
}
