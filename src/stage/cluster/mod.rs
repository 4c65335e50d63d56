//! The cluster stage: groups documents by direction. Knows no text.

mod kmeans;

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
    kernel::nearest::NearestError,
    stage::{
        Input, InputPort, Invalid, Stage,
        code::{self, Code},
    },
};

/// Spherical k-means in exact integers: the same clusters on every device, for any number of threads. The first centroids are
/// the first documents by content hash.
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
}

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
        }
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        let device: Device = cx.device.parse().map_err(Failure::stage)?;
        let Embeddings { about, ids, vectors, .. } = self.embeddings.load(cx, "embeddings")?;
        if ids.is_empty() {
            return Err(Failure::stage(ClusterError::Empty));
        }
        let k = self.count(ids.len());
        cx.progress.phase("clustering", Some(u64::from(self.max_iterations)), "iterations");
        let points = kmeans::Points { dim: about.dim, data: &vectors, device };
        let found = kmeans::cluster(points, k, self.max_iterations, || {
            cx.progress.advance(1);
            cx.check_stop().map_err(Ended::Failure)
        });
        let found = found.map_err(Failure::from)?;
        let mut sizes = vec![0; k];
        let member = |(id, near): (String, &crate::kernel::nearest::Nearest)| {
            sizes[near.index as usize] += 1;
            let score = i64::from(near.score);
            Member { id, cluster: near.index, score, margin: (k > 1).then(|| score - i64::from(near.second)) }
        };
        let members = ids.into_iter().zip(&found.nearest).map(member).collect();
        let about = About {
            k,
            dim: about.dim,
            scale: about.scale,
            iterations: found.similarity.len() as u32 - 1,
            stable: found.stable,
            similarity: found.similarity,
            sizes,
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

impl Cluster {
    fn count(&self, n: usize) -> usize {
        let k = match self.rule {
            Rule::Fixed => self.k.unwrap_or(1),
            Rule::Fiftieth => (n / 50).clamp(1, 512),
            Rule::Sqrt => n.isqrt(),
        };
        k.min(n)
    }
}

/// Why iterations ended early.
enum Ended {
    Nearest(NearestError),
    Failure(Failure),
}

impl From<NearestError> for Ended {
    fn from(error: NearestError) -> Self {
        Self::Nearest(error)
    }
}

impl From<Ended> for Failure {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Nearest(error) => Self::stage(ClusterError::from(error)),
            Ended::Failure(failure) => failure,
        }
    }
}

#[cfg(test)]
mod tests;
