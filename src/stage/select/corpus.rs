//! The documents as the choice sees them: texts joined with their clusters, vectors and lengths. Knows no rule of choice.

use super::{
    FULL_STRATUM, Select, SelectError,
    choice::{Fact, Place},
    moved,
    recall::{Frequencies, Rare, Recalls},
    tokens::Counter,
};
use crate::{
    artifact::{
        clusters::{Clusters, Member},
        embeddings::Embeddings,
        gains::Gains,
        texts::{Text, group},
    },
    engine::action::{Cx, Failure},
};

/// Documents in the order of their ids.
pub(super) struct Corpus {
    pub(super) texts: Vec<Text>,
    pub(super) places: Vec<Place>,
    pub(super) lengths: Vec<usize>,
    /// What a model gains from context, where that was measured.
    pub(super) gains: Option<Gains>,
    counter: Counter,
    rare: Rare,
}

impl Corpus {
    /// Joins texts with members and counts tokens.
    pub(super) fn load(select: &Select, cx: &Cx<'_>, members: &[Member]) -> Result<Self, Failure> {
        let texts = select.texts.load(cx, "texts")?.0;
        let ids: Vec<&str> = members.iter().map(|member| member.id.as_str()).collect();
        same_ids(&texts, &ids, "cluster members")?;
        let gains = select.context_gain.as_ref().map(|input| input.load(cx, "context-gain")).transpose()?;
        if let Some(gains) = &gains {
            let ids: Vec<&str> = gains.rows.iter().map(|row| row.id.as_str()).collect();
            same_ids(&texts, &ids, "context gains")?;
        }
        cx.progress.phase("counting tokens", Some(texts.len() as u64), "docs");
        let counter = select.counter(cx)?;
        let frequencies = Frequencies::default();
        let lengths = counter.map(&texts.iter().collect::<Vec<_>>(), |ids| {
            cx.progress.advance(1);
            frequencies.add(ids);
            cx.check_stop().map(|()| ids.len())
        })?;
        let rare = frequencies.rare(texts.len());
        let place = |&Member { cluster, score, margin, density, .. }: &Member| Place {
            cluster,
            score,
            margin,
            density,
        };
        Ok(Self { places: members.iter().map(place).collect(), texts, lengths, gains, counter, rare })
    }

    /// What is known of each document without its vector.
    pub(super) fn facts(&self, select: &Select) -> Vec<Fact<'_>> {
        let least = select.min_gain.map(|nats| (nats.0 * 1e6).round() as i64);
        let rows = self.texts.iter().zip(&self.lengths).enumerate();
        rows.map(|(index, (text, &n_tokens))| {
            let bucket = select.bucket(n_tokens);
            let enough = least.is_none_or(|least| self.gain(index).is_some_and(|gain| gain >= least));
            let eligible = bucket != FULL_STRATUM || enough;
            Fact { id: &text.id, group: group(&text.source), bucket, n_tokens, eligible }
        })
        .collect()
    }

    /// What a model gains from context in a document, in millionths of a nat.
    fn gain(&self, index: usize) -> Option<i64> {
        self.gains.as_ref().and_then(|gains| gains.rows[index].gain)
    }

    /// Evidence of long range in these documents.
    pub(super) fn recalls(&self, chosen: &[usize], window: usize) -> Result<Vec<Recalls>, Failure> {
        let texts: Vec<&Text> = chosen.iter().map(|&index| &self.texts[index]).collect();
        self.counter.map(&texts, |ids| Ok(self.rare.recalls(ids, window)))
    }

    /// The vectors that were clustered.
    pub(super) fn vectors(
        &self,
        select: &Select,
        cx: &Cx<'_>,
        clusters: &Clusters,
    ) -> Result<Option<Embeddings>, Failure> {
        let Some(input) = &select.embeddings else { return Ok(None) };
        let embeddings = input.load(cx, "embeddings")?;
        let ids: Vec<&str> = embeddings.ids.iter().map(String::as_str).collect();
        same_ids(&self.texts, &ids, "embeddings")?;
        let dim = embeddings.about.dim;
        if dim != clusters.about.dim {
            return Err(SelectError::OtherVectors.into());
        }
        let found =
            moved::places(
                (dim, &embeddings.vectors),
                &clusters.centroids,
                None,
                || Ok::<_, SelectError>(()),
            )?;
        if found.iter().zip(&self.places).any(|(a, b)| (a.cluster, a.score) != (b.cluster, b.score)) {
            return Err(SelectError::OtherVectors.into());
        }
        Ok(Some(embeddings))
    }
}

fn same_ids(texts: &[Text], ids: &[&str], what: &str) -> Result<(), SelectError> {
    if texts.len() != ids.len() {
        return Err(SelectError::Mismatch(format!("{} documents, {} {what}", texts.len(), ids.len())));
    }
    match texts.iter().zip(ids).find(|(text, id)| text.id != **id) {
        Some((text, id)) => Err(SelectError::Mismatch(format!("{} against {id} of the {what}", text.id))),
        None => Ok(()),
    }
}
