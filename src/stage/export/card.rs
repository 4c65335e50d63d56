//! Cards and the conversion report: what a reader of the bundle is told. Knows no tensor.

use minijinja::{Environment, UndefinedBehavior, syntax::SyntaxConfig, value::Serde};
use serde::Serialize;

use crate::{
    artifact::{conversion::Conversion, scores::Scores},
    model::config::{Config, LayerKind},
};

/// `conversion_report.json`: the conversion layer by layer, and the measured figures.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    tool: Tool,
    base_model: Option<&'a str>,
    layers: Vec<Layer>,
    kv: Kv,
    sliding_window: usize,
    /// Whether heads share a rotated key.
    shared_rope: bool,
    /// What the conversion itself reported, when it was given.
    conversion: Option<&'a Conversion>,
    scores: &'a Scores,
}

#[derive(Debug, Serialize)]
struct Tool {
    name: &'static str,
    version: &'static str,
}

#[derive(Debug, Serialize)]
struct Layer {
    index: usize,
    attention: &'static str,
    kv_lora_rank: Option<usize>,
    rope_pairs: Option<Vec<usize>>,
    /// Elements of rotated keys, over all heads that have their own.
    rotated: Option<usize>,
    kv_elements_per_token: usize,
    original_kv_elements_per_token: usize,
}

/// Cached elements per token, summed over layers.
#[derive(Debug, Serialize)]
struct Kv {
    full: usize,
    original_full: usize,
    sliding: usize,
    /// Share of `original_full` that is saved.
    cut: f64,
}

impl<'a> Report<'a> {
    /// The report of a model with this configuration.
    pub(super) fn new(
        config: &Config,
        base_model: Option<&'a str>,
        (scores, conversion): (&'a Scores, Option<&'a Conversion>),
    ) -> Self {
        let original = 2 * config.num_key_value_heads * config.head_dim;
        let layer = |(i, kind): (usize, &LayerKind)| {
            let latent = if let LayerKind::Latent(latent) = kind { Some(latent) } else { None };
            Layer {
                index: i,
                attention: match kind {
                    LayerKind::Sliding => "sliding",
                    LayerKind::Full => "full",
                    LayerKind::Latent(latent) if latent.sliding => "sliding latent",
                    LayerKind::Latent(_) => "latent",
                },
                kv_lora_rank: latent.map(|l| l.kv_lora_rank),
                rope_pairs: latent.map(|l| l.rope_pairs.clone()),
                rotated: latent.map(|l| l.rope_elements(config.num_key_value_heads)),
                kv_elements_per_token: config.kv_elements(i),
                original_kv_elements_per_token: original,
            }
        };
        let layers: Vec<Layer> = config.layers.iter().enumerate().map(layer).collect();
        let sum = |sliding: bool, of: fn(&Layer) -> usize| -> usize {
            layers.iter().filter(|l| config.layers[l.index].slides() == sliding).map(of).sum()
        };
        let full = sum(false, |l| l.kv_elements_per_token);
        let original_full = sum(false, |l| l.original_kv_elements_per_token);
        let cut = if original_full == 0 { 0.0 } else { 1.0 - full as f64 / original_full as f64 };
        let kv = Kv { full, original_full, sliding: sum(true, |l| l.kv_elements_per_token), cut };
        let tool = Tool { name: env!("CARGO_PKG_NAME"), version: env!("CARGO_PKG_VERSION") };
        let sliding_window = config.sliding_window;
        let shared = |kind: &LayerKind| matches!(kind, LayerKind::Latent(latent) if latent.shared_rope);
        let shared_rope = config.layers.iter().any(shared);
        Self { tool, base_model, layers, kv, sliding_window, shared_rope, conversion, scores }
    }
}

/// What the cards say beside the report.
#[derive(Debug, Serialize)]
pub(super) struct Facts<'a> {
    pub(super) name: &'a str,
    pub(super) licence: &'a str,
    pub(super) base_model: Option<&'a str>,
    /// Which optional parts the bundle has: `code`, `tokenizer`, `check`, `dataset`.
    pub(super) parts: Vec<&'static str>,
}

/// `README.md`.
pub(super) fn model_card(facts: &Facts<'_>, report: &Report<'_>) -> Result<String, minijinja::Error> {
    #[derive(Serialize)]
    struct Context<'a> {
        #[serde(flatten)]
        facts: &'a Facts<'a>,
        #[serde(flatten)]
        report: &'a Report<'a>,
        /// What the model is, as the start of a sentence.
        origin: String,
        latent_layers: usize,
        /// What of sliding-window attention is as it was.
        untouched: &'static str,
        /// What those layers cache of keys, beside the latent.
        rotated_keys: &'static str,
        /// The measured table with its protocol, in Markdown.
        table: String,
    }
    let origin = match report.base_model {
        Some(base) => format!("[{base}](https://huggingface.co/{base})"),
        None => "A GPT-OSS model".to_owned(),
    };
    let latent_layers = report.layers.iter().filter(|l| l.kv_lora_rank.is_some()).count();
    let windows = report.layers.iter().any(|l| l.attention == "sliding latent");
    let untouched = if windows { "Windows" } else { "Sliding-window layers" };
    let rotated_keys = if report.shared_rope {
        "one rotated key that all heads share"
    } else {
        "the exact rotated keys of some rotary frequencies"
    };
    let table = report.scores.markdown();
    let context = Context { facts, report, origin, latent_layers, untouched, rotated_keys, table };
    render(include_str!("templates/model_card.md.jinja"), context)
}

/// `LICENSE`, for a checkpoint that has none.
pub(super) fn licence(facts: &Facts<'_>) -> Result<String, minijinja::Error> {
    render(include_str!("templates/licence.txt.jinja"), facts)
}

fn render(template: &str, context: impl Serialize) -> Result<String, minijinja::Error> {
    let mut env = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true);
    env.set_syntax(syntax.build()?);
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.add_filter("fixed", |x: f64, digits: usize| format!("{x:.digits$}"));
    env.add_filter("scientific", |x: f64| format!("{x:.1e}"));
    env.add_filter("percent", |x: f64, digits: usize| format!("{:.digits$} %", 100.0 * x));
    env.render_str(template, Serde(context))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        artifact::{
            conversion::{Converted, Parity},
            scores::tests::example,
        },
        model::config::{Config, Latent},
    };
    use serde_json::json;

    fn config() -> Config {
        let mut config = Config::parse(&json!({
            "model_type": "gpt_oss", "hidden_size": 64, "vocab_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4,
            "head_dim": 16, "intermediate_size": 64, "num_hidden_layers": 4, "num_local_experts": 8, "num_experts_per_tok": 2,
            "rms_norm_eps": 1e-5, "sliding_window": 128, "rope_theta": 10000.0
        }))
        .unwrap();
        config.layers[1] = LayerKind::Latent(Latent {
            kv_lora_rank: 40,
            rope_pairs: vec![0, 1, 2],
            shared_rope: false,
            sliding: false,
        });
        config
    }

    fn converted() -> Conversion {
        let layer = Converted {
            layer: 1,
            rope_pairs: vec![0, 1, 2],
            kv_lora_rank: 40,
            latent_error: 0.0125,
            rope_error: 0.5,
            kv_elements_before: 128,
            kv_elements_after: 64,
        };
        Conversion {
            layout: "b".into(),
            method: "metric".into(),
            calibration: "joint latent of un-rotated keys and values".into(),
            parity: Parity { relative_difference: 1.5e-6, tolerance: 1e-5, largest_logit: 20.0, tokens: 586 },
            layers: vec![layer],
            ..Conversion::default()
        }
    }

    fn facts() -> Facts<'static> {
        Facts {
            name: "owner/model",
            licence: "apache-2.0",
            base_model: Some("openai/gpt-oss-20b"),
            parts: vec!["code", "tokenizer", "check", "dataset"],
        }
    }

    #[test]
    fn the_report_counts_what_a_token_costs() {
        let scores = example();
        let conversion = converted();
        let report = Report::new(&config(), None, (&scores, Some(&conversion)));
        assert_eq!((report.kv.full, report.kv.original_full, report.kv.sliding), (64 + 128, 256, 256));
        assert!((report.kv.cut - 0.25).abs() < 1e-12);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["layers"][1]["rotated"], 24);
        assert_eq!(json["layers"][3]["attention"], "full");
        assert_eq!(json["scores"]["models"][1]["model"], "healed");
        assert_eq!(json["conversion"]["layers"][0]["latent_error"], 0.0125);
    }

    #[test]
    fn the_model_card_says_what_was_measured_and_how() {
        let scores = example();
        let conversion = converted();
        let report = Report::new(&config(), facts().base_model, (&scores, Some(&conversion)));
        insta::assert_snapshot!(model_card(&facts(), &report).unwrap());
    }

    #[test]
    fn components_that_heads_share_are_counted_not_listed() {
        let scores = example();
        let (mut config, mut conversion) = (config(), converted());
        let pairs = vec![0, 0, 1];
        config.layers[1] = LayerKind::Latent(Latent {
            kv_lora_rank: 40,
            rope_pairs: pairs.clone(),
            shared_rope: true,
            sliding: false,
        });
        conversion.layout = "d".into();
        conversion.layers[0].rope_pairs = pairs;
        let report = Report::new(&config, None, (&scores, Some(&conversion)));
        let card = model_card(&facts(), &report).unwrap();
        assert!(card.contains("| 1 | 3 components at 2 frequencies | 40 |"), "{card}");
        assert!(card.contains("one rotated key that all heads share"), "{card}");
        assert!(card.contains("Sliding-window layers, sinks, router and"), "{card}");
        let LayerKind::Latent(latent) = &mut config.layers[1] else { unreachable!("made above") };
        latent.sliding = true;
        let report = Report::new(&config, None, (&scores, Some(&conversion)));
        let card = model_card(&facts(), &report).unwrap();
        assert!(card.contains("| 1 | sliding latent | 40 |") && card.contains("(MLA) in 1 of"), "{card}");
        assert!(card.contains("Windows, sinks, router and"), "{card}");
    }

    #[test]
    fn a_card_promises_only_what_is_there() {
        let scores = example();
        let mut config = config();
        config.layers[1] = LayerKind::Full;
        let report = Report::new(&config, None, (&scores, None));
        let bare = Facts { base_model: None, parts: Vec::new(), ..facts() };
        let card = model_card(&bare, &report).unwrap();
        for word in [
            "trust_remote_code",
            "AutoTokenizer",
            "check.safetensors",
            "data/",
            "base_model",
            "How it was converted",
        ] {
            assert!(!card.contains(word), "{word}");
        }
        assert!(card.contains("No layer has latent attention."));
        assert_eq!(licence(&bare).unwrap(), "owner/model\n\nWeights: apache-2.0\n");
    }
}
