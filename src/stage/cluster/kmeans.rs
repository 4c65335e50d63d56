//! Exact spherical k-means on the integer grid. Knows no document: a point is its index, and lower indices win ties.
//!
//! Products are exact integers, sums of members are i64, and a new centroid is the sum scaled to unit length by IEEE square root,
//! division and rounding. Nothing depends on threads, devices or the order of sums.

use rayon::prelude::*;

use super::ClusterError;
use crate::{
    device::Device,
    kernel::nearest::{Nearest, Rows, nearest},
    math::grid,
};

/// A clustering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The nearest centroid of each point.
    pub(super) nearest: Vec<Nearest>,
    /// Row-major, `k × dim`.
    pub(super) centroids: Vec<i16>,
    /// Sum of all scores after each assignment.
    pub(super) similarity: Vec<i64>,
    /// Whether the last update moved no centroid.
    pub(super) stable: bool,
}

/// Points and the device that compares them.
#[derive(Clone, Copy)]
pub(super) struct Points<'a> {
    pub(super) dim: usize,
    pub(super) data: &'a [i16],
    pub(super) device: Device,
}

/// Runs Lloyd's iterations from these centroids until none moves, at most `max_iterations` times. `each` is called once per
/// iteration and may end the run with an error.
pub(super) fn cluster<E: From<ClusterError>>(
    points: Points<'_>,
    mut centroids: Vec<i16>,
    max_iterations: u32,
    mut each: impl FnMut() -> Result<(), E>,
) -> Result<Found, E> {
    let rows = Rows::new(points.dim, points.data).map_err(ClusterError::from)?;
    let assign = |centroids: &[i16]| {
        Ok::<_, ClusterError>(nearest(points.device, rows, Rows::new(points.dim, centroids)?)?)
    };
    let mut assigned = assign(&centroids)?;
    let mut similarity = vec![total(&assigned)];
    let mut sums = Sums::new(points, centroids.len() / points.dim);
    for _ in 0..max_iterations {
        each()?;
        let next = sums.update(&assigned, &centroids);
        if next == centroids {
            return Ok(Found { nearest: assigned, centroids, similarity, stable: true });
        }
        centroids = next;
        assigned = assign(&centroids)?;
        similarity.push(total(&assigned));
    }
    Ok(Found { nearest: assigned, centroids, similarity, stable: false })
}

fn total(assigned: &[Nearest]) -> i64 {
    assigned.iter().map(|n| i64::from(n.score)).sum()
}

impl Points<'_> {
    pub(super) fn row(&self, i: usize) -> &[i16] {
        &self.data[i * self.dim..][..self.dim]
    }
}

/// The sum of each cluster's points. They are integers, so taking out what left and adding what came gives what adding all would.
struct Sums<'a> {
    points: Points<'a>,
    /// The cluster of each point; [`NONE`] before the first update.
    cluster: Vec<usize>,
    /// Row-major, `k × dim`.
    exact: Vec<i64>,
}

const NONE: usize = usize::MAX;

impl<'a> Sums<'a> {
    fn new(points: Points<'a>, k: usize) -> Self {
        Self { points, cluster: vec![NONE; points.data.len() / points.dim], exact: vec![0; k * points.dim] }
    }

    /// The mean direction of each centroid's points. A centroid without points takes the farthest point of a larger cluster; one
    /// whose points cancel out stays where it is.
    fn update(&mut self, assigned: &[Nearest], centroids: &[i16]) -> Vec<i16> {
        let Points { dim, .. } = self.points;
        let k = centroids.len() / dim;
        let mut cluster: Vec<usize> = assigned.iter().map(|n| n.index as usize).collect();
        fill_empty(&mut cluster, assigned, k);
        let moved = || (0..cluster.len()).filter(|&i| cluster[i] != self.cluster[i]);
        let came = Members::of(moved().map(|i| (cluster[i], i)), k);
        let left = Members::of(moved().map(|i| (self.cluster[i], i)).filter(|(c, _)| *c != NONE), k);
        let mut next = centroids.to_vec();
        let rows = self.exact.par_chunks_exact_mut(dim).zip(next.par_chunks_exact_mut(dim));
        rows.enumerate().for_each(|(c, (sum, centroid))| {
            let (came, left) = (came.of_cluster(c), left.of_cluster(c));
            for &i in came {
                grid::add(sum, self.points.row(i));
            }
            for &i in left {
                grid::subtract(sum, self.points.row(i));
            }
            if came.len() + left.len() > 0 && sum.iter().any(|&s| s != 0) {
                grid::quantise(sum, centroid);
            }
        });
        self.cluster = cluster;
        next
    }
}

/// Points by cluster, so that clusters can be worked on by different threads.
struct Members {
    points: Vec<usize>,
    /// Where each cluster begins among them, and the end.
    starts: Vec<usize>,
}

impl Members {
    /// Of pairs of a cluster and a point.
    fn of(pairs: impl Iterator<Item = (usize, usize)>, k: usize) -> Self {
        let pairs: Vec<(usize, usize)> = pairs.collect();
        let mut starts = vec![0; k + 1];
        for &(c, _) in &pairs {
            starts[c + 1] += 1;
        }
        for c in 0..k {
            starts[c + 1] += starts[c];
        }
        let (mut free, mut points) = (starts.clone(), vec![0; pairs.len()]);
        for (c, i) in pairs {
            points[free[c]] = i;
            free[c] += 1;
        }
        Self { points, starts }
    }

    fn of_cluster(&self, c: usize) -> &[usize] {
        &self.points[self.starts[c]..self.starts[c + 1]]
    }
}

/// Gives each empty cluster, in order, the point that is farthest from its centroid, then with the lowest index, of those whose
/// cluster has another point.
fn fill_empty(cluster: &mut [usize], assigned: &[Nearest], k: usize) {
    let mut sizes = vec![0_usize; k];
    for &c in cluster.iter() {
        sizes[c] += 1;
    }
    if sizes.iter().all(|&size| size > 0) {
        return;
    }
    let mut farthest: Vec<usize> = (0..cluster.len()).collect();
    farthest.sort_unstable_by_key(|&i| (assigned[i].score, i));
    let mut candidates = farthest.into_iter();
    for empty in 0..k {
        if sizes[empty] == 0 {
            let Some(i) = candidates.by_ref().find(|&i| sizes[cluster[i]] > 1) else { return };
            sizes[cluster[i]] -= 1;
            sizes[empty] = 1;
            cluster[i] = empty;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kernel::{
            nearest::definition,
            testing::{grid_vectors, on_threads},
        },
        stage::cluster::start::first,
    };

    /// Unit vectors in the plane at these angles, in degrees.
    fn at(degrees: &[i32]) -> Vec<i16> {
        let mut data = vec![0; degrees.len() * 2];
        for (row, &d) in data.chunks_exact_mut(2).zip(degrees) {
            let angle = f64::from(d).to_radians();
            grid::quantise(&[(angle.cos() * 1e6) as i64, (angle.sin() * 1e6) as i64], row);
        }
        data
    }

    fn run(data: &[i16], k: usize, max: u32) -> Found {
        let points = Points { dim: 2, data, device: Device::Cpu };
        cluster(points, first(points, k), max, || Ok::<_, ClusterError>(())).unwrap()
    }

    fn labels(found: &Found) -> Vec<u32> {
        found.nearest.iter().map(|n| n.index).collect()
    }

    #[test]
    fn separate_groups_are_found_and_stay() {
        // The first two points, which start the centroids, are of one group.
        let data = at(&[0, 4, 2, 120, 124, 122, 118]);
        let found = run(&data, 2, 20);
        assert!(found.stable);
        assert_eq!(labels(&found), [0, 0, 0, 1, 1, 1, 1]);
        assert!(found.similarity.is_sorted(), "{:?}", found.similarity);
        assert_eq!(found.centroids, at(&[2, 121]));
    }

    #[test]
    fn assignments_are_those_of_the_definition() {
        let data = at(&[3, 50, 170, 200, 290, 13, 88, 271, 143]);
        let found = run(&data, 3, 50);
        let exact = definition(Rows::new(2, &data).unwrap(), Rows::new(2, &found.centroids).unwrap());
        assert_eq!(found.nearest, exact);
    }

    #[test]
    fn an_empty_cluster_takes_the_farthest_point() {
        // The second centroid equals the first, so it gets no point by itself.
        let data = at(&[0, 0, 5, 90]);
        let found = run(&data, 2, 20);
        assert_eq!(labels(&found), [0, 0, 0, 1]);

        let scores = [5, 3, 3, 9].map(|score| Nearest { index: 0, score, second: 0 });
        let mut cluster = vec![0, 0, 0, 1];
        fill_empty(&mut cluster, &scores, 4);
        assert_eq!(
            cluster,
            [0, 2, 3, 1],
            "the lowest score first, then the lowest index; a lone point stays"
        );
    }

    #[test]
    fn every_point_is_a_member_of_its_cluster_once() {
        let members = Members::of([2, 0, 2, 3, 2, 0].into_iter().zip(0..), 5);
        let all: Vec<&[usize]> = (0..5).map(|c| members.of_cluster(c)).collect();
        assert_eq!(all, [&[1, 5][..], &[], &[0, 2, 4], &[3], &[]]);
    }

    #[test]
    fn new_centroids_are_those_of_the_definition_on_any_number_of_threads() {
        let data = grid_vectors(500, 3, 2001, 5);
        let points = Points { dim: 3, data: &data, device: Device::Cpu };
        let centroids = first(points, 7);
        let of =
            |centroids: &[i16]| definition(Rows::new(3, &data).unwrap(), Rows::new(3, centroids).unwrap());
        let means = |assigned: &[Nearest], centroids: &[i16]| {
            let mut means = centroids.to_vec();
            for (c, centroid) in means.chunks_exact_mut(3).enumerate() {
                let of_it = |i: &usize| assigned[*i].index as usize == c;
                let sum = |d: usize| (0..500).filter(of_it).map(|i| i64::from(points.row(i)[d])).sum();
                grid::quantise(&[sum(0), sum(1), sum(2)], centroid);
            }
            means
        };
        // The first update adds all points, the later ones only what moved.
        let (mut want, mut at) = (Vec::new(), centroids.clone());
        for _ in 0..6 {
            at = means(&of(&at), &at);
            want.push(at.clone());
        }
        let found = on_threads(|| {
            let (mut sums, mut at) = (Sums::new(points, 7), centroids.clone());
            let mut found = Vec::new();
            for _ in 0..6 {
                at = sums.update(&of(&at), &at);
                found.push(at.clone());
            }
            found
        });
        assert!(found.iter().all(|found| *found == want));
        assert!(want.windows(2).any(|pair| pair[0] != pair[1]), "they must move");
    }

    #[test]
    fn points_that_cancel_out_leave_the_centroid() {
        let found = run(&[4000, 0, -4000, 0], 1, 5);
        assert_eq!((found.centroids, found.stable), (vec![4000, 0], true));
    }

    #[test]
    fn the_limit_and_a_stop_end_the_run() {
        let data = at(&[0, 4, 2, 120, 124, 122, 118]);
        let found = run(&data, 2, 1);
        assert_eq!((found.stable, found.similarity.len()), (false, 2));
        let points = Points { dim: 2, data: &data, device: Device::Cpu };
        let stopped = cluster(points, first(points, 2), 5, || Err(ClusterError::Empty));
        assert!(stopped.is_err());
    }
}
