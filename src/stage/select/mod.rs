//! The select stage: three calibration splits, by length in tokens of the target model. Knows no embedding and no model.

mod card;
mod golden;
mod mix;
mod tokens;

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{
    card::{Card, CorpusCounts, SplitCounts},
    golden::{Candidate, Pick},
    tokens::{Counter, Encoding, TokensError},
};
use crate::{
    artifact::{
        Artifact, ArtifactError,
        clusters::{Clusters, Member},
        drops::Drops,
        files::{Any, FileSet},
        parquet,
        splits::{Chosen, Split},
        texts::{Text, Texts, group, write_jsonl},
    },
    engine::action::{Cx, Failure, Numerics, OutputPort},
    stage::{
        Finite, Input, InputPort, Invalid, Stage,
        code::{self, Code},
    },
};

/// Chooses documents for calibration: for each length stratum the nearest to every centroid and the farthest few per cent, and a
/// mixed split with quotas by source and length. Also writes a dataset folder: Parquet, JSONL and a card.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Select {
    /// The documents.
    pub texts: Input<Texts>,
    /// Their clusters.
    pub clusters: Input<Clusters>,
    /// The stage whose output holds the target model's `tokenizer.json`. Default: the embedded `encoding`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<Input<Any>>,
    /// Without `tokenizer`: the embedded tokenizer to count with.
    #[serde(default)]
    pub encoding: Encoding,
    /// The corpus's report of drops, for the card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drops: Option<Input<Drops>>,
    /// Documents with fewer tokens are `swa`.
    #[serde(default = "swa_below")]
    pub swa_below: usize,
    /// Documents with more tokens are `full`. Those between are `gap`, and only in the mixed split.
    #[serde(default = "full_above")]
    pub full_above: usize,
    /// Outliers per stratum, in per cent of its documents, rounded down; at most 50.
    #[serde(default = "outlier_percent")]
    pub outlier_percent: u32,
    /// Documents in the mixed split; at most half of the corpus.
    #[serde(default = "mixed")]
    pub mixed: usize,
    /// For the card's count of borderline rows: how far an embedding may be off, as a share of its length.
    #[serde(default = "noise")]
    pub noise: Finite,
}

fn swa_below() -> usize {
    2048
}
fn full_above() -> usize {
    4096
}
fn outlier_percent() -> u32 {
    5
}
fn mixed() -> usize {
    256
}
fn noise() -> Finite {
    Finite(0.001)
}

const SWA: &str = "calib_swa_golden";
const FULL: &str = "calib_full_golden";
const MIXED: &str = "calib_mixed_golden";

/// Why nothing could be chosen.
#[derive(Debug, thiserror::Error)]
enum SelectError {
    #[error("texts and clusters are of different corpora: {0}; let both inputs come from the same corpus")]
    Mismatch(String),
    #[error("the output of `{0}` has no file `tokenizer.json`")]
    NoTokenizer(String),
    #[error(transparent)]
    Tokens(#[from] TokensError),
    #[error("the dataset card cannot be written: {0}")]
    Card(#[from] minijinja::Error),
}

impl From<SelectError> for Failure {
    fn from(error: SelectError) -> Self {
        Self::stage(error)
    }
}

impl From<TokensError> for Failure {
    fn from(error: TokensError) -> Self {
        SelectError::from(error).into()
    }
}

/// A document with what decides about it.
struct Document {
    text: Text,
    member: Member,
    n_tokens: usize,
    bucket: &'static str,
}

impl Stage for Select {
    const KIND: &'static str = "select";
    const CODE: Code = code::of("select");
    const NUMERICS: Numerics = Numerics::Bitwise;
    const OUTPUTS: &'static [OutputPort] = &[
        OutputPort { name: SWA, kind: Split::KIND },
        OutputPort { name: FULL, kind: Split::KIND },
        OutputPort { name: MIXED, kind: Split::KIND },
        OutputPort { name: "dataset", kind: FileSet::KIND },
    ];

    fn inputs(&self) -> Vec<InputPort> {
        let mut ports = vec![self.texts.port("texts"), self.clusters.port("clusters")];
        ports.extend(self.tokenizer.as_ref().map(|input| input.port("tokenizer")));
        ports.extend(self.drops.as_ref().map(|input| input.port("drops")));
        ports
    }

    fn check(&self) -> Result<(), Invalid> {
        if self.swa_below > self.full_above + 1 {
            return Err(Invalid::new(
                "swa-below",
                "the strata overlap: `swa-below` exceeds `full-above` + 1",
            ));
        }
        if self.outlier_percent > 50 {
            return Err(Invalid::new("outlier-percent", "`outlier-percent` is larger than 50"));
        }
        if !(0.0..=1.0).contains(&self.noise.0) {
            return Err(Invalid::new("noise", "`noise` is outside 0 to 1"));
        }
        Ok(())
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        let clusters = self.clusters.load(cx, "clusters")?;
        let documents = self.documents(cx, clusters.members)?;
        let splits = [
            (SWA, format!("below {} tokens", self.swa_below), self.golden(&documents, "swa")),
            (FULL, format!("above {} tokens", self.full_above), self.golden(&documents, "full")),
            (MIXED, "all sources and lengths".to_owned(), self.mix(&documents, cx.seed)),
        ];
        let bound = card::bound(self.noise.0, clusters.about.scale);
        let mut counts = Vec::new();
        for (name, what, rows) in splits {
            counts.push(SplitCounts::new(name, what, &rows.0, bound));
            cx.progress.say(&counts[counts.len() - 1].line());
            rows.save(&cx.output(name)).map_err(Failure::stage)?;
            save_data(&cx.output("dataset"), name, &rows.0).map_err(Failure::stage)?;
        }
        let of = |bucket: &str| documents.iter().filter(|d| d.bucket == bucket).count();
        let card = Card {
            tokenizer: match self.tokenizer {
                Some(_) => "the target model's tokenizer".to_owned(),
                None => "`o200k_harmony`".to_owned(),
            },
            swa_below: self.swa_below,
            full_above: self.full_above,
            outlier_percent: self.outlier_percent,
            noise: self.noise.0,
            scale: clusters.about.scale,
            corpus: CorpusCounts {
                documents: documents.len(),
                swa: of("swa"),
                gap: of("gap"),
                full: of("full"),
                clusters: clusters.about.k,
            },
            splits: counts,
            drops: self.drops.as_ref().map(|input| input.load(cx, "drops")).transpose()?.map(|d| d.sources),
        };
        save_card(&cx.output("dataset"), &card)
    }
}

impl Select {
    /// Joins texts with their clusters and counts tokens. The order is that of the ids.
    fn documents(&self, cx: &Cx<'_>, members: Vec<Member>) -> Result<Vec<Document>, Failure> {
        let texts = self.texts.load(cx, "texts")?.0;
        if texts.len() != members.len() {
            let counts = format!("{} documents, {} cluster members", texts.len(), members.len());
            return Err(SelectError::Mismatch(counts).into());
        }
        if let Some((text, member)) = texts.iter().zip(&members).find(|(text, member)| text.id != member.id) {
            return Err(SelectError::Mismatch(format!("{} against {}", text.id, member.id)).into());
        }
        cx.progress.phase("counting tokens", Some(texts.len() as u64), "docs");
        let pairs: Vec<_> = texts.iter().map(|text| (text.id.as_str(), text.text.as_str())).collect();
        let lengths = self.counter(cx)?.count(&pairs, || {
            cx.progress.advance(1);
            cx.check_stop()
        })?;
        let document =
            |((text, member), n_tokens)| Document { text, member, n_tokens, bucket: self.bucket(n_tokens) };
        Ok(texts.into_iter().zip(members).zip(lengths).map(document).collect())
    }

    fn counter(&self, cx: &Cx<'_>) -> Result<Counter, Failure> {
        let Some(input) = &self.tokenizer else { return Ok(Counter::embedded(self.encoding)?) };
        let files = input.load(cx, "tokenizer")?.0;
        let path = files.get("tokenizer.json").ok_or_else(|| SelectError::NoTokenizer(input.from.clone()))?;
        Ok(Counter::from_file(path)?)
    }

    fn bucket(&self, n_tokens: usize) -> &'static str {
        if n_tokens < self.swa_below {
            "swa"
        } else if n_tokens > self.full_above {
            "full"
        } else {
            "gap"
        }
    }

    /// Nearest and outliers of one stratum.
    fn golden(&self, documents: &[Document], bucket: &str) -> Split {
        let candidate = |(index, d): (usize, &Document)| Candidate {
            index,
            cluster: d.member.cluster,
            score: d.member.score,
            margin: d.member.margin,
        };
        let inside = documents.iter().enumerate().filter(|(_, d)| d.bucket == bucket);
        let candidates: Vec<_> = inside.map(candidate).collect();
        let picks = golden::choose(&candidates, self.outlier_percent);
        Split(picks.into_iter().map(|pick| documents[pick.index].chosen(pick)).collect())
    }

    /// Quotas of every source and stratum. A row's margin is that of its cluster, since no score decided about it.
    fn mix(&self, documents: &[Document], seed: u64) -> Split {
        let item = |(index, d): (usize, &'_ Document)| (index, group(&d.text.source).to_owned(), d.bucket);
        let cells: Vec<_> = documents.iter().enumerate().map(item).collect();
        let items: Vec<_> = cells
            .iter()
            .map(|(index, group, bucket)| mix::Item {
                index: *index,
                cell: (group, bucket),
                id: &documents[*index].text.id,
            })
            .collect();
        let drawn = mix::choose(&items, mix::drawn(documents.len(), self.mixed), seed);
        let pick = |(rank, index): (usize, usize)| Pick {
            index,
            reason: "mix",
            rank: rank as u32,
            margin: documents[index].member.margin.unwrap_or(i64::MAX),
        };
        let mut picks: Vec<_> = drawn.into_iter().enumerate().map(pick).collect();
        picks.sort_unstable_by_key(|pick| pick.index);
        Split(picks.into_iter().map(|pick| documents[pick.index].chosen(pick)).collect())
    }
}

impl Document {
    fn chosen(&self, pick: Pick) -> Chosen {
        let Text { id, source, licence, text, marks } = self.text.clone();
        Chosen {
            id,
            text,
            source,
            licence,
            n_tokens: self.n_tokens,
            bucket: self.bucket.to_owned(),
            cluster: self.member.cluster,
            reason: pick.reason.to_owned(),
            rank: pick.rank,
            score: self.member.score,
            margin: pick.margin,
            marks,
        }
    }
}

/// The files of one split in a dataset folder: `data/NAME-00000-of-00001.parquet` and `NAME.jsonl`.
fn save_data(dataset: &Path, name: &str, rows: &[Chosen]) -> Result<(), ArtifactError> {
    let data = dataset.join("data");
    std::fs::create_dir_all(&data).map_err(ArtifactError::io(&data))?;
    parquet::write(&data.join(format!("{name}-00000-of-00001.parquet")), rows)?;
    write_jsonl(&dataset.join(format!("{name}.jsonl")), rows)
}

fn save_card(dataset: &Path, card: &Card) -> Result<(), Failure> {
    let text = card::render(card).map_err(SelectError::from)?;
    let stats = serde_json::to_string_pretty(card).map_err(Failure::stage)? + "\n";
    for (name, content) in [("README.md", text), ("stats.json", stats)] {
        let path = dataset.join(name);
        std::fs::write(&path, content).map_err(ArtifactError::io(&path)).map_err(Failure::stage)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
