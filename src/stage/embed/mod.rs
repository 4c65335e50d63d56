//! The embed stage: one grid vector per document. Knows no clustering.

mod lexical;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::lexical::Lexical;
use crate::{
    artifact::{
        Artifact,
        embeddings::{About, Embeddings},
        texts::Texts,
    },
    engine::action::{Cx, Failure, Numerics, OutputPort},
    math::grid,
    stage::{
        Input, InputPort, Invalid, Stage,
        code::{self, Code},
        shards::{self, Shard, Sharded, Split},
    },
};

/// Turns documents into unit vectors on an integer grid, so that everything that is decided from them is exact.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Embed {
    /// The documents.
    pub texts: Input<Texts>,
    /// The embedder: `lexical` (hashed n-grams and a seeded random projection, no download), or the name of a transformer such
    /// as `Alibaba-NLP/gte-large-en-v1.5`.
    #[serde(default = "lexical_name")]
    pub model: String,
    /// With `lexical`: coordinates per vector, 8 to 1024.
    #[serde(default = "dim")]
    pub dim: usize,
    /// With `lexical`: the longest run of words that counts as one feature, 1 to 3.
    #[serde(default = "word_ngrams")]
    pub word_ngrams: usize,
    /// With `lexical`: bytes in an n-gram inside a word; 0 turns these off.
    #[serde(default = "char_ngrams")]
    pub char_ngrams: usize,
    /// Subtracts the mean of all vectors, which takes out what every document has in common.
    #[serde(default = "yes")]
    pub centre: bool,
}

const LEXICAL: &str = "lexical";
const OUTPUT: &str = "embeddings";

fn lexical_name() -> String {
    LEXICAL.to_owned()
}
fn dim() -> usize {
    256
}
fn word_ngrams() -> usize {
    2
}
fn char_ngrams() -> usize {
    4
}
fn yes() -> bool {
    true
}

/// Why documents could not be embedded.
#[derive(Debug, thiserror::Error)]
enum EmbedError {
    #[error(
        "the embedder `{0}` is a transformer, and this version runs only `lexical`; set `model = \"lexical\"` on this stage"
    )]
    TransformerUnavailable(String),
}

impl Stage for Embed {
    const KIND: &'static str = "embed";
    const CODE: Code = code::of("embed");
    const NUMERICS: Numerics = Numerics::Bitwise;
    const OUTPUTS: &'static [OutputPort] = &[OutputPort { name: OUTPUT, kind: Embeddings::KIND }];

    fn inputs(&self) -> Vec<InputPort> {
        vec![self.texts.port("texts")]
    }

    fn check(&self) -> Result<(), Invalid> {
        if !(8..=grid::MAX_DIM).contains(&self.dim) {
            return Err(Invalid::new(
                "dim",
                format!("`dim` is {}, outside 8 to {}", self.dim, grid::MAX_DIM),
            )
            .hint("up to 1024 coordinates, similarities are exact"));
        }
        if !(1..=3).contains(&self.word_ngrams) {
            return Err(Invalid::new("word-ngrams", "`word-ngrams` is outside 1 to 3"));
        }
        if self.char_ngrams > 8 {
            return Err(Invalid::new("char-ngrams", "`char-ngrams` is larger than 8"));
        }
        if self.model.is_empty() {
            return Err(Invalid::new("model", "`model` is empty").hint("`lexical` needs no download"));
        }
        Ok(())
    }

    fn numerics(&self) -> Numerics {
        if self.model == LEXICAL { Numerics::Bitwise } else { Numerics::PerDevice }
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        let embeddings = self.embed(cx)?;
        self.finish(embeddings, cx)
    }
}

impl Sharded for Embed {
    const SPLIT: Option<Split> = Some(shards::texts::by_id("texts"));

    /// A shard cannot know the mean of all vectors, so the merge subtracts it.
    fn shard_params(&self, _: Shard) -> Value {
        json!({
            "model": self.model, "dim": self.dim, "word-ngrams": self.word_ngrams, "char-ngrams": self.char_ngrams
        })
    }

    fn run_shard(&self, _: Shard, cx: &Cx<'_>) -> Result<(), Failure> {
        self.embed(cx)?.save(&cx.output(OUTPUT)).map_err(Failure::stage)
    }

    fn merge_params(&self) -> Value {
        json!({ "centre": self.centre })
    }

    fn merge(&self, of: usize, cx: &Cx<'_>) -> Result<(), Failure> {
        let mut whole = Embeddings::default();
        for shard in 0..of {
            let files = cx.input(&shards::merge_port(OUTPUT, shard))?;
            let mut part = Embeddings::load(files).map_err(Failure::stage)?;
            whole.about = part.about;
            whole.ids.append(&mut part.ids);
            whole.vectors.append(&mut part.vectors);
        }
        self.finish(whole, cx)
    }
}

impl Embed {
    /// One vector per document, each from its own text only.
    fn embed(&self, cx: &Cx<'_>) -> Result<Embeddings, Failure> {
        if self.model != LEXICAL {
            return Err(Failure::stage(EmbedError::TransformerUnavailable(self.model.clone())));
        }
        let texts = self.texts.load(cx, "texts")?.0;
        cx.progress.phase("embedding", Some(texts.len() as u64), "docs");
        let lexical = Lexical {
            dim: self.dim,
            word_ngrams: self.word_ngrams,
            char_ngrams: self.char_ngrams,
            seed: cx.seed,
        };
        let mut vectors = vec![0_i16; texts.len() * self.dim];
        texts.par_iter().zip(vectors.par_chunks_exact_mut(self.dim)).try_for_each(|(text, row)| {
            cx.check_stop()?;
            lexical.embed(&text.text, row);
            cx.progress.advance(1);
            Ok::<_, Failure>(())
        })?;
        let about = About { model: self.model.clone(), dim: self.dim, scale: grid::SCALE, centred: false };
        let ids = texts.into_iter().map(|text| text.id).collect();
        Ok(Embeddings { about, ids, vectors })
    }

    /// What only the whole corpus tells.
    fn finish(&self, mut whole: Embeddings, cx: &Cx<'_>) -> Result<(), Failure> {
        if self.centre {
            grid::centre(whole.about.dim, &mut whole.vectors);
            whole.about.centred = true;
        }
        whole.save(&cx.output(OUTPUT)).map_err(Failure::stage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{artifact::texts::Text, stage::testing::Bench};

    fn texts(n: usize) -> Texts {
        let text = |i: usize| Text {
            id: format!("{i:064}"),
            source: "a".into(),
            licence: String::new(),
            text: format!("document number {i} speaks of subject {}", i % 3),
            marks: vec![],
        };
        Texts((0..n).map(text).collect())
    }

    fn stage(toml: &str) -> Embed {
        toml::from_str(&format!("texts = 'corpus'\n{toml}")).unwrap()
    }

    #[test]
    fn one_row_per_document_the_same_for_any_number_of_threads() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let bench = Bench::new().input("texts", &texts(20)).seed(7);
            pool.install(|| bench.run(&stage("dim = 32"))).unwrap();
            bench
        };
        let one = run(1);
        let embeddings: Embeddings = one.load("embeddings");
        assert_eq!((embeddings.ids.len(), embeddings.vectors.len()), (20, 20 * 32));
        assert!(embeddings.vectors.chunks(32).all(|row| row.iter().any(|&q| q != 0)));
        assert_eq!(one.bytes(), run(2).bytes());
        assert_eq!(one.bytes(), run(7).bytes());
    }

    #[test]
    fn a_transformer_is_planned_but_not_run() {
        let stage = stage("model = 'Alibaba-NLP/gte-large-en-v1.5'");
        assert_eq!(stage.check(), Ok(()));
        assert_eq!(stage.numerics(), Numerics::PerDevice);
        let error = Bench::new().input("texts", &texts(1)).run(&stage).unwrap_err().to_string();
        assert!(
            error.starts_with("the embedder `Alibaba-NLP/gte-large-en-v1.5` is a transformer"),
            "{error}"
        );
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        for (toml, param) in [
            ("dim = 4", "dim"),
            ("dim = 1025", "dim"),
            ("word-ngrams = 0", "word-ngrams"),
            ("char-ngrams = 9", "char-ngrams"),
            ("model = ''", "model"),
        ] {
            assert_eq!(stage(toml).check().unwrap_err().param, param, "{toml}");
        }
    }

    #[test]
    fn without_centring_a_row_depends_on_its_own_text_only() {
        let run = |texts: &Texts, toml: &str| {
            let bench = Bench::new().input("texts", texts).seed(7);
            bench.run(&stage(&format!("dim = 64\n{toml}"))).unwrap();
            bench.load::<Embeddings>("embeddings")
        };
        let (many, few) = (texts(20), Texts(texts(20).0[5..9].to_vec()));
        let (all, some) = (run(&many, "centre = false"), run(&few, "centre = false"));
        assert_eq!(all.vectors[5 * 64..9 * 64], some.vectors);
        assert_eq!((all.about.centred, all.about.dim, all.about.scale), (false, 64, 4000));
        // Centred, what the corpus shares is gone: the documents are much alike, and their rows no longer.
        let centred = run(&many, "centre = true");
        let dot = |e: &Embeddings| {
            let row = |i: usize| &e.vectors[i * 64..][..64];
            row(0).iter().zip(row(1)).map(|(&a, &b)| i64::from(a) * i64::from(b)).sum::<i64>()
        };
        assert!(centred.about.centred && dot(&centred) < dot(&all) / 2, "{} {}", dot(&centred), dot(&all));
    }

    #[test]
    fn shards_merge_to_the_bytes_of_the_whole() {
        let mut rows = texts(50).0;
        for row in &mut rows {
            row.id = blake3::hash(row.text.as_bytes()).to_hex().to_string();
        }
        rows.sort_by(|a, b| a.id.cmp(&b.id));
        for (toml, of) in [("dim = 32", 4), ("dim = 32\ncentre = false", 1), ("dim = 32", 40)] {
            let whole = Bench::new().input("texts", &Texts(rows.clone())).seed(7);
            whole.run(&stage(toml)).unwrap();
            let divided = Bench::new()
                .input("texts", &Texts(rows.clone()))
                .seed(7)
                .run_shards(&stage(toml), of)
                .unwrap();
            assert_eq!(divided.bytes(), whole.bytes(), "{toml} in {of} shards");
        }
    }

    #[test]
    fn the_mean_is_of_no_concern_to_a_shard() {
        let (a, b) = (stage("centre = true"), stage("centre = false"));
        let shard = Shard { index: 0, of: 2 };
        assert_eq!(a.shard_params(shard), b.shard_params(shard));
        assert_ne!(a.merge_params(), b.merge_params());
        assert_ne!(a.shard_params(shard), stage("dim = 64").shard_params(shard));
    }

    #[test]
    fn no_documents_give_no_rows() {
        let bench = Bench::new().input("texts", &Texts::default());
        bench.run(&stage("")).unwrap();
        assert_eq!(bench.load::<Embeddings>("embeddings").ids.len(), 0);
    }
}
