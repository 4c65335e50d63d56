//! The cluster stage: groups documents by direction. Knows no text.

mod kmeans;
mod start;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    artifact::{
        Artifact,
        clusters::{About, Clusters, Member},
        embeddings::Embeddings,
    },
    device::Device,
    engine::action::{Cx, Failure, Numerics, OutputPort, Pool},
    kernel::{
        nearest::{Nearest, NearestError, Rows},
        neighbours,
    },
    stage::{
        Input, InputPort, Invalid, Stage,
        code::{self, Code},
    },
};

/// Spherical k-means in exact integers: the same clusters on every device, for any number of threads. A cluster that loses all its
/// documents takes the one that is farthest from its centroid (of equal ones, the first by content hash) among those in clusters
/// of several.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cluster {
    /// The documents' vectors.
    pub embeddings: Input<Embeddings>,
    /// How the number of clusters follows from the number n of documents.
    #[serde(default)]
    pub rule: Rule,
    /// With `rule = "fixed"`: the number of clusters. Fewer documents give fewer clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
    /// The largest number of iterations; they end earlier once nothing moves.
    #[serde(default = "max_iterations")]
    pub max_iterations: u32,
    /// The first centroids.
    #[serde(default, skip_serializing_if = "crate::stage::is_default")]
    pub init: Init,
    /// What makes a document an outlier for `select`.
    #[serde(default, skip_serializing_if = "crate::stage::is_default")]
    pub outliers: Outliers,
    /// With `outliers = "knn"`: how many neighbours count, 1 to 1000. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbours: Option<usize>,
}

/// The first centroids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Init {
    /// The first documents by content hash: few changes when documents are added or vectors move a little.
    #[default]
    #[serde(rename = "hash")]
    Hash,
    /// Documents drawn by the stage's seed, those far from the centroids so far more often. Better clusters from fewer
    /// iterations; but one draw that falls otherwise changes them all.
    #[serde(rename = "k-means++")]
    Spread,
}

/// What makes a document an outlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outliers {
    /// A small product with its centroid.
    #[default]
    Centroid,
    /// A small mean product with its nearest neighbours among all documents. Depends on no centroid, so it is much more stable;
    /// takes time with the square of the number of documents.
    Knn,
}

/// Neighbours that count unless the user says how many.
const NEIGHBOURS: usize = 10;

/// How many clusters n documents get. All but `fixed` give at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// `k` of them.
    Fixed,
    /// n / 50, at most 512.
    #[default]
    Fiftieth,
    /// The square root of n.
    Sqrt,
}

fn max_iterations() -> u32 {
    50
}

/// Why documents could not be clustered.
#[derive(Debug, thiserror::Error)]
enum ClusterError {
    #[error("there are no documents to cluster")]
    Empty,
    #[error("the embeddings cannot be compared exactly: {0}")]
    Nearest(#[from] NearestError),
}

impl Stage for Cluster {
    const KIND: &'static str = "cluster";
    const CODE: Code = code::of("cluster");
    const POOL: Pool = Pool::Device;
    const NUMERICS: Numerics = Numerics::Bitwise;
    const OUTPUTS: &'static [OutputPort] = &[OutputPort { name: "clusters", kind: Clusters::KIND }];

    fn inputs(&self) -> Vec<InputPort> {
        vec![self.embeddings.port("embeddings")]
    }

    fn check(&self) -> Result<(), Invalid> {
        match (self.rule, self.k) {
            (Rule::Fixed, None) => Err(Invalid::new("k", "`rule = \"fixed\"` needs `k`")),
            (Rule::Fixed, Some(0)) => Err(Invalid::new("k", "`k` is 0").hint("at least 1")),
            (Rule::Fiftieth | Rule::Sqrt, Some(_)) => {
                Err(Invalid::new("k", "`k` goes with `rule = \"fixed\"` only")
                    .hint("write `rule = \"fixed\"`, or leave `k` out"))
            }
            _ => Ok(()),
        }?;
        match (self.outliers, self.neighbours) {
            (Outliers::Centroid, Some(_)) => {
                Err(Invalid::new("neighbours", "`neighbours` goes with `outliers = \"knn\"` only")
                    .hint("write `outliers = \"knn\"`, or leave `neighbours` out"))
            }
            (Outliers::Knn, Some(n)) if !(1..=1000).contains(&n) => {
                Err(Invalid::new("neighbours", format!("`neighbours` is {n}, outside 1 to 1000")))
            }
            _ => Ok(()),
        }
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        let device: Device = cx.device.parse().map_err(Failure::stage)?;
        let Embeddings { about, ids, vectors, .. } = self.embeddings.load(cx, "embeddings")?;
        if ids.is_empty() {
            return Err(ClusterError::Empty.into());
        }
        let k = self.count(ids.len());
        let points = kmeans::Points { dim: about.dim, data: &vectors, device };
        let first = self.first(cx, points, k)?;
        cx.progress.phase("clustering", Some(u64::from(self.max_iterations)), "iterations");
        let found = kmeans::cluster(points, first, self.max_iterations, || {
            cx.progress.advance(1);
            cx.check_stop()
        })?;
        let neighbours = (self.outliers == Outliers::Knn).then(|| self.neighbours.unwrap_or(NEIGHBOURS));
        let densities = neighbours.map(|count| densities(cx, points, count)).transpose()?;
        let mut sizes = vec![0; k];
        let member = |(i, (id, near)): (usize, (String, &Nearest))| {
            sizes[near.index as usize] += 1;
            let score = i64::from(near.score);
            let margin = (k > 1).then(|| score - i64::from(near.second));
            Member { id, cluster: near.index, score, margin, density: densities.as_ref().map(|d| d[i]) }
        };
        let members = ids.into_iter().zip(&found.nearest).enumerate().map(member).collect();
        let about = About {
            k,
            dim: about.dim,
            scale: about.scale,
            iterations: found.similarity.len() as u32 - 1,
            stable: found.stable,
            similarity: found.similarity,
            sizes,
            neighbours,
        };
        cx.progress.say(&format!(
            "{k} clusters, {} after {} iterations",
            if about.stable { "stable" } else { "not yet stable" },
            about.iterations
        ));
        Clusters { about, members, centroids: found.centroids }
            .save(&cx.output("clusters"))
            .map_err(Failure::stage)
    }
}

/// The mean product of each document with its nearest neighbours.
fn densities(cx: &Cx<'_>, points: kmeans::Points<'_>, count: usize) -> Result<Vec<i64>, Failure> {
    let n = points.data.len() / points.dim;
    cx.progress.phase("comparing neighbours", Some(n as u64), "docs");
    let rows = Rows::new(points.dim, points.data).map_err(ClusterError::from)?;
    neighbours::density(rows, count, |n| {
        cx.progress.advance(n as u64);
        cx.check_stop()
    })
}

impl Cluster {
    fn first(&self, cx: &Cx<'_>, points: kmeans::Points<'_>, k: usize) -> Result<Vec<i16>, Failure> {
        match self.init {
            Init::Hash => Ok(start::first(points, k)),
            Init::Spread => {
                cx.progress.phase("drawing first centroids", Some(k as u64), "centroids");
                start::spread(points, k, cx.seed, || {
                    cx.progress.advance(1);
                    cx.check_stop()
                })
            }
        }
    }

    fn count(&self, n: usize) -> usize {
        let k = match self.rule {
            Rule::Fixed => self.k.unwrap_or(1),
            Rule::Fiftieth => (n / 50).clamp(1, 512),
            Rule::Sqrt => n.isqrt(),
        };
        k.min(n)
    }
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        Self::stage(error)
    }
}

#[cfg(test)]
mod tests;
