//! Clusters: for each document its centroid and how near it is. Knows no clustering method.

use std::{fs::File, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    Artifact, ArtifactError, Files,
    embeddings::{load_grid, save_grid},
    file,
    texts::{read_jsonl, write_jsonl},
};

/// The cluster of one document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// The document.
    pub id: String,
    /// Index of its centroid.
    pub cluster: u32,
    /// Exact product with its centroid, in grid units squared.
    pub score: i64,
    /// How much smaller the product with the next centroid is; none where there is only one centroid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<i64>,
    /// Mean product with its nearest neighbours, rounded down, in the same unit; only where neighbours were looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub density: Option<i64>,
}

/// How the clusters were made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Number of centroids.
    pub k: usize,
    /// Coordinates per centroid.
    pub dim: usize,
    /// Grid units per unit of length.
    pub scale: u32,
    /// Iterations done.
    pub iterations: u32,
    /// Whether the last iteration changed nothing.
    pub stable: bool,
    /// Sum of all scores after each iteration's assignment.
    pub similarity: Vec<i64>,
    /// Members of each cluster.
    pub sizes: Vec<u64>,
    /// How many neighbours count for a member's density, by which outliers are then told; none where the centroid tells them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbours: Option<usize>,
}

/// A clustering of documents.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Clusters {
    /// How they were made.
    pub about: About,
    /// One row per document, by ascending id.
    pub members: Vec<Member>,
    /// Row-major, `k × dim`.
    pub centroids: Vec<i16>,
}

const ABOUT: &str = "clusters.json";
const MEMBERS: &str = "members.jsonl";
const CENTROIDS: &str = "centroids.safetensors";

impl Artifact for Clusters {
    const KIND: &'static str = "clusters";

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        let path = dir.join(ABOUT);
        let out = File::create(&path).map_err(ArtifactError::io(&path))?;
        serde_json::to_writer_pretty(out, &self.about).map_err(|e| ArtifactError::io(&path)(e.into()))?;
        write_jsonl(&dir.join(MEMBERS), &self.members)?;
        save_grid(&dir.join(CENTROIDS), self.about.dim, &self.centroids)
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        let malformed = |file: &str, place: String, why: String| ArtifactError::Malformed {
            kind: Self::KIND,
            file: file.to_owned(),
            place,
            why,
        };
        let path = file(Self::KIND, files, ABOUT)?;
        let bytes = std::fs::read(path).map_err(ArtifactError::io(path))?;
        let about: About = serde_json::from_slice(&bytes)
            .map_err(|e| malformed(ABOUT, format!("line {}", e.line()), e.to_string()))?;
        let members: Vec<Member> = read_jsonl(Self::KIND, files, MEMBERS)?;
        if let Some(at) = members.iter().position(|m| m.cluster as usize >= about.k) {
            let why = format!("cluster {} of {}", members[at].cluster, about.k);
            return Err(malformed(MEMBERS, format!("line {}", at + 1), why));
        }
        if let Some(at) = members.iter().position(|m| m.density.is_some() != about.neighbours.is_some()) {
            let why = "`density` goes with `neighbours`".to_owned();
            return Err(malformed(MEMBERS, format!("line {}", at + 1), why));
        }
        let centroids = load_grid(Self::KIND, files, CENTROIDS, [about.k, about.dim])?;
        Ok(Self { about, members, centroids })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_a_cluster_that_is_not_there() {
        let member = |id: &str, cluster, margin| Member {
            id: id.into(),
            cluster,
            score: 1 << 24,
            margin,
            density: None,
        };
        let mut clusters = Clusters {
            about: About { k: 2, dim: 1, scale: 4000, sizes: vec![1, 1], ..About::default() },
            members: vec![member("a", 1, Some(3)), member("b", 0, None)],
            centroids: vec![4000, -4000],
        };
        let save = |clusters: &Clusters| {
            let dir = tempfile::tempdir().unwrap();
            clusters.save(dir.path()).unwrap();
            let files = [ABOUT, MEMBERS, CENTROIDS].map(|f| (f.to_owned(), dir.path().join(f))).into();
            Clusters::load(&files)
        };
        assert_eq!(save(&clusters).unwrap(), clusters);
        clusters.members[1].density = Some(-4);
        let error = save(&clusters).unwrap_err().to_string();
        assert_eq!(
            error,
            "artifact `clusters`, file `members.jsonl`, line 2: `density` goes with `neighbours`"
        );
        clusters.members[0].density = Some(7);
        clusters.about.neighbours = Some(10);
        assert_eq!(save(&clusters).unwrap(), clusters);
        clusters.members[1].cluster = 2;
        let error = save(&clusters).unwrap_err().to_string();
        assert_eq!(error, "artifact `clusters`, file `members.jsonl`, line 2: cluster 2 of 2");
    }
}
