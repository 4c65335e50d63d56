//! One run of the select stage: loads, chooses, proves and writes. Knows no rule of choice.

use super::{
    SPLITS, Select, SelectError,
    card::{self, Card, CorpusCounts, GainCounts, SplitCounts},
    certificate::{Certificate, Overlap, borderline},
    choice::{self, Choice, Fact, Rules},
    corpus::Corpus,
    dataset,
    decision::Bounds,
    golden::Pick,
    moved, picture,
    recall::Recalls,
    report::{Report, points},
    thin::Vectors,
};
use crate::{
    artifact::{
        Artifact,
        clusters::{self, Clusters},
        embeddings::Embeddings,
        gains::Gains,
        splits::{Chosen, Split},
        texts::{Text, write_jsonl},
    },
    engine::action::{Cx, Failure},
    math::pca::Plane,
    stage::Finite,
};

/// Moved copies that are compared unless the user says how many.
const COPIES: u32 = 5;

/// Everything that the choice is made of.
struct Job<'a> {
    select: &'a Select,
    corpus: &'a Corpus,
    facts: Vec<Fact<'a>>,
    clusters: &'a Clusters,
    embeddings: Option<&'a Embeddings>,
    rules: Rules,
    bounds: Bounds,
}

pub(super) fn run(select: &Select, cx: &Cx<'_>) -> Result<(), Failure> {
    let clusters = select.clusters.load(cx, "clusters")?;
    let corpus = Corpus::load(select, cx, &clusters.members)?;
    let embeddings = corpus.vectors(select, cx, &clusters)?;
    let about = &clusters.about;
    let noise = select.noise.map(|noise| noise.0);
    let rules = rules(select, about, cx.seed);
    let thresholds = [rules.semantic, rules.distinct];
    let job = Job {
        select,
        facts: corpus.facts(select),
        corpus: &corpus,
        embeddings: embeddings.as_ref(),
        bounds: Bounds::new(noise, (about.dim, about.scale), about.neighbours.is_some(), thresholds),
        rules,
        clusters: &clusters,
    };
    let choice = choice::choose(&job.rules, &job.facts, &corpus.places, job.vectors());
    let counts = job.write_splits(cx, &choice)?;
    job.write_report(cx, &choice)?;
    job.write_card(cx, &choice, counts)
}

fn rules(select: &Select, about: &clusters::About, seed: u64) -> Rules {
    // The squared distance of unit vectors with this cosine.
    let square = f64::from(about.scale) * f64::from(about.scale);
    let apart =
        |cosine: Option<Finite>| cosine.map(|cosine| ((2.0 - 2.0 * cosine.0) * square).floor() as i64);
    let budgets = select.tokens.unwrap_or_default();
    Rules {
        clusters: about.k,
        outlier_percent: select.outlier_percent,
        mixed: select.mixed,
        seed,
        semantic: apart(select.semantic_duplicates),
        distinct: apart(select.distinct),
        budgets: [budgets.swa, budgets.full, budgets.mixed],
    }
}

impl Job<'_> {
    fn vectors(&self) -> Option<Vectors<'_>> {
        self.embeddings.map(|e| Vectors { dim: e.about.dim, data: &e.vectors })
    }

    /// Writes the three splits, also into the dataset, and says what they hold.
    fn write_splits(&self, cx: &Cx<'_>, choice: &Choice) -> Result<Vec<SplitCounts>, Failure> {
        let what = [
            format!("below {} tokens", self.select.swa_below),
            format!("above {} tokens", self.select.full_above),
            "all sources and lengths".to_owned(),
        ];
        let mut counts = Vec::new();
        for (((name, kind), what), outcome) in
            SPLITS.into_iter().zip(["swa", "full", "mixed"]).zip(what).zip(&choice.splits)
        {
            let rows = Split(self.rows(name, &outcome.picks)?);
            let open = borderline(self.bounds, outcome).len();
            counts.push(SplitCounts::new(name, what, &rows.0, (open, &outcome.dropped)));
            cx.progress.say(&counts[counts.len() - 1].line());
            rows.save(&cx.output(name)).map_err(Failure::stage)?;
            let model = self.embeddings.map(|e| e.about.model.as_str());
            let original = self.select.compat.and(model).map(|model| (kind, model));
            dataset::save(&cx.output("dataset"), name, &rows.0, original).map_err(Failure::stage)?;
        }
        Ok(counts)
    }

    fn rows(&self, split: &str, picks: &[Pick]) -> Result<Vec<Chosen>, Failure> {
        let indices: Vec<usize> = picks.iter().map(|pick| pick.index).collect();
        let recalls = self.corpus.recalls(&indices, self.select.window())?;
        Ok(picks.iter().zip(recalls).map(|(pick, recalls)| self.row(split, pick, recalls)).collect())
    }

    fn row(&self, split: &str, pick: &Pick, recalls: Recalls) -> Chosen {
        let Text { id, source, licence, text, special_tokens, marks } = self.corpus.texts[pick.index].clone();
        let (fact, place) = (&self.facts[pick.index], &self.corpus.places[pick.index]);
        let gain = self.corpus.gains.as_ref().map(|gains| &gains.rows[pick.index]);
        Chosen {
            id,
            text,
            special_tokens,
            source,
            licence,
            n_tokens: fact.n_tokens,
            bucket: fact.bucket.to_owned(),
            cluster: place.cluster,
            reason: pick.reason.to_owned(),
            rank: pick.rank,
            score: place.score,
            margin: pick.margin,
            split: split.to_owned(),
            density: place.density,
            recalls: recalls.count,
            recall_typical: recalls.typical,
            recall_longest: recalls.longest,
            context_gain: gain.and_then(|gain| gain.gain),
            context_gain_error: gain.and_then(|gain| gain.error),
            marks,
        }
    }

    /// Chooses again with moved vectors and compares.
    fn copies(&self, cx: &Cx<'_>, choice: &Choice, ids: &[&str]) -> Result<Vec<Overlap>, Failure> {
        let Some(embeddings) = self.embeddings else { return Ok(Vec::new()) };
        let (dim, count) = (embeddings.about.dim, self.select.copies.unwrap_or(COPIES));
        cx.progress.phase("choosing again with moved vectors", Some(u64::from(count)), "copies");
        let mut overlaps = Vec::new();
        for copy in 0..count {
            let data = moved::moved((dim, &embeddings.vectors), ids, self.bounds.radius, (cx.seed, copy));
            let (centroids, neighbours) = (&self.clusters.centroids, self.clusters.about.neighbours);
            let places = moved::places((dim, &data), centroids, neighbours, || cx.check_stop())?;
            let again = choice::choose(&self.rules, &self.facts, &places, Some(Vectors { dim, data: &data }));
            overlaps.extend(Overlap::of(copy, SPLITS, choice, &again));
            cx.progress.advance(1);
            cx.check_stop()?;
        }
        Ok(overlaps)
    }

    /// Writes the certificate and the figures for plots.
    fn write_report(&self, cx: &Cx<'_>, choice: &Choice) -> Result<(), Failure> {
        let ids: Vec<&str> = self.facts.iter().map(|fact| fact.id).collect();
        let copies = self.copies(cx, choice, &ids)?;
        let certificate = Certificate::new(self.bounds, SPLITS, choice, &ids, copies);
        certificate.lines().iter().for_each(|line| cx.progress.say(line));
        let plane = self.embeddings.map(|e| (Plane::of(e.about.dim, &e.vectors), e));
        let (facts, places, k) = (&self.facts, &self.corpus.places, self.clusters.about.k);
        let report = Report::new(SPLITS, (facts, places, k), choice, plane.as_ref().map(|(plane, _)| plane));
        let dir = cx.output("report");
        let (certificate, report) = (json(&certificate)?, json(&report)?);
        let mut files = vec![("certificate.json", certificate.as_str()), ("report.json", report.as_str())];
        let mut svg = String::new();
        if let Some((plane, embeddings)) = &plane {
            let points = points(SPLITS, (facts, places), choice, (plane, &embeddings.vectors));
            write_jsonl(&dir.join("scatter.jsonl"), &points).map_err(Failure::stage)?;
            svg = picture::draw(&points, plane.share).map_err(SelectError::from)?;
        }
        if !svg.is_empty() {
            files.push(("scatter.svg", &svg));
        }
        dataset::save_texts(&dir, &files).map_err(Failure::stage)
    }

    fn gain_counts(&self, Gains { about, rows }: &Gains) -> GainCounts {
        let out = self.facts.iter().filter(|fact| !fact.eligible).count();
        GainCounts {
            window: about.window,
            samples: about.samples,
            max_tokens: about.max_tokens,
            measured: rows.iter().filter(|row| row.gain.is_some()).count(),
            least: self.select.min_gain.map(|nats| nats.0),
            left_out: self.select.min_gain.map(|_| out),
        }
    }

    fn write_card(&self, cx: &Cx<'_>, choice: &Choice, splits: Vec<SplitCounts>) -> Result<(), Failure> {
        let of = |bucket: &str| self.facts.iter().filter(|fact| fact.bucket == bucket).count();
        let drops = self.select.drops.as_ref().map(|input| input.load(cx, "drops")).transpose()?;
        let card = Card {
            tokenizer: match self.select.tokenizer {
                Some(_) => "the target model's tokenizer".to_owned(),
                None => "`o200k_harmony`".to_owned(),
            },
            swa_below: self.select.swa_below,
            full_above: self.select.full_above,
            outlier_percent: self.select.outlier_percent,
            neighbours: self.clusters.about.neighbours,
            radius: self.bounds.radius,
            scale: self.bounds.scale,
            window: self.select.window(),
            context_gain: self.corpus.gains.as_ref().map(|gains| self.gain_counts(gains)),
            repeats: self.rules.semantic.map(|_| choice.repeats.len()),
            original: self.select.compat.is_some(),
            corpus: CorpusCounts {
                documents: self.facts.len(),
                swa: of("swa"),
                gap: of("gap"),
                full: of("full"),
                clusters: self.clusters.about.k,
            },
            splits,
            drops: drops.map(|drops| drops.sources),
        };
        let text = card::render(&card).map_err(SelectError::from)?;
        let files = [("README.md", text.as_str()), ("stats.json", &json(&card)?)];
        dataset::save_texts(&cx.output("dataset"), &files).map_err(Failure::stage)
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    Ok(serde_json::to_string_pretty(value).map_err(Failure::stage)? + "\n")
}
