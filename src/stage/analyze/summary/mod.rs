//! The analysis in words, on one page; every judgement states its threshold. Knows no way to measure.

use std::fmt::Write;

use crate::artifact::analysis::{Figures, Head, Layer};

/// A head whose sink takes at least this share mostly rests.
const RESTING: f64 = 0.5;
/// A head that puts at least this share on the first token uses it as a second sink.
const FIRST: f64 = 0.3;
/// A head with at least this share beyond the window looks far.
const FAR: f64 = 0.1;
/// An expert with more than this many times its fair share is overloaded.
const OVERLOADED: f64 = 2.0;
/// Keys at the first positions with a norm outside 1/x to x of the others' stand out.
const STANDS_OUT: f64 = 1.5;
/// A pair of whose key energy one shared component holds at least this share can be shared between heads.
const SHARED: f64 = 0.8;

/// Writes the page. `window` is the sliding window in tokens.
pub(super) fn write(figures: &Figures, window: usize) -> String {
    let protocol = &figures.protocol;
    let mut text = format!(
        "# Analysis\n\nMeasured on {} tokens in {} sequences of at most {} tokens, f32 forward pass, f64 sums.\n\n",
        protocol.tokens, protocol.sequences, protocol.max_length
    );
    text += "| layer | attention | sink mass | first token | beyond window | joint effective rank | dead experts |\n";
    text += "|---|---|---|---|---|---|---|\n";
    for layer in &figures.layers {
        let mean = |f: &dyn Fn(&Head) -> f64| {
            100.0 * layer.heads.iter().map(f).sum::<f64>() / layer.heads.len().max(1) as f64
        };
        let rank = layer
            .spectra
            .as_ref()
            .map_or("–".to_owned(), |s| format!("{:.0} of {}", s.joint_effective_rank, s.joint.len()));
        let _ = writeln!(
            text,
            "| {} | {} | {:.1} % | {:.1} % | {:.1} % | {rank} | {} |",
            layer.layer,
            layer.attention,
            mean(&|h| h.sink_mass),
            mean(&|h| h.first_token_mass),
            mean(&|h| beyond(h, window)),
            layer.routing.dead.len(),
        );
    }
    text.push('\n');
    for layer in &figures.layers {
        for sentence in sentences(layer, window) {
            let _ = writeln!(text, "- Layer {}: {sentence}.", layer.layer);
        }
    }
    text
}

/// The share of a head's attention at distances of at least `window`, rounded down to whole buckets.
fn beyond(head: &Head, window: usize) -> f64 {
    // Bucket i > 0 starts at distance 2^(i − 1).
    let far = head.distance.iter().enumerate().filter(|(i, _)| *i > 0 && 1 << (i - 1) >= window);
    far.map(|(_, x)| x).fold(0.0, |sum, x| sum + x) // a sum of nothing would be −0
}

/// What is worth saying about a layer.
fn sentences(layer: &Layer, window: usize) -> Vec<String> {
    let mut said = Vec::new();
    let heads = |keep: &dyn Fn(&Head) -> bool| {
        let found = layer.heads.iter().enumerate().filter(|(_, h)| keep(h));
        found.map(|(i, _)| i.to_string()).collect::<Vec<_>>().join(", ")
    };
    let mut say = |heads: String, what: String| {
        if !heads.is_empty() {
            said.push(format!("heads {heads} {what}"));
        }
    };
    say(
        heads(&|h| h.sink_mass >= RESTING),
        format!("mostly rest (sink mass at least {:.0} %)", 100.0 * RESTING),
    );
    say(
        heads(&|h| h.first_token_mass >= FIRST),
        format!("use the first token as a second sink (at least {:.0} % of their attention)", 100.0 * FIRST),
    );
    if layer.attention != "sliding" {
        say(
            heads(&|h| beyond(h, window) >= FAR),
            format!("look far (at least {:.0} % beyond {window} tokens)", 100.0 * FAR),
        );
    }
    for (g, head) in layer.kv_heads.iter().enumerate() {
        if !(1.0 / STANDS_OUT..=STANDS_OUT).contains(&head.first_key_ratio) {
            said.push(format!(
                "keys of head {g} at the first four positions are {:.1} times as long as elsewhere (outside 1/{STANDS_OUT} to {STANDS_OUT})",
                head.first_key_ratio
            ));
        }
    }
    let shared = layer.pairs.iter().filter(|pair| pair.sharing.is_some_and(|s| s >= SHARED)).count();
    if shared > 0 {
        said.push(format!(
            "{shared} of {} rotary pairs have keys that all heads nearly share (one complex component holds at least {:.0} %)",
            layer.pairs.len(),
            100.0 * SHARED
        ));
    }
    said.extend(experts(layer));
    said
}

fn experts(layer: &Layer) -> Vec<String> {
    let routing = &layer.routing;
    let mut said = Vec::new();
    if !routing.dead.is_empty() {
        said.push(format!("experts {:?} were never chosen", routing.dead));
    }
    let fair = 1.0 / routing.load.len().max(1) as f64;
    for (e, load) in routing.load.iter().enumerate().filter(|(_, load)| **load > OVERLOADED * fair) {
        said.push(format!(
            "expert {e} takes {:.0} % of the choices, more than {OVERLOADED} times its fair share",
            100.0 * load
        ));
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::analysis::{KvHead, Pair, Protocol, Routing};

    fn figures() -> Figures {
        let quiet = Head { distance: vec![0.9, 0.05], ..Head::default() };
        let far = Head {
            sink_mass: 0.6,
            first_token_mass: 0.31,
            distance: vec![0.1, 0.1, 0.1, 0.05, 0.05],
            ..Head::default()
        };
        let layer = Layer {
            layer: 3,
            attention: "full".into(),
            heads: vec![quiet, far],
            kv_heads: vec![KvHead { key_norm: 1.0, first_key_ratio: 2.0 }],
            pairs: vec![Pair { sharing: Some(0.9), ..Pair::default() }, Pair::default()],
            routing: Routing { load: vec![0.9, 0.1, 0.0], dead: vec![2], ..Routing::default() },
            spectra: None,
        };
        Figures { protocol: Protocol { sequences: 2, tokens: 10, max_length: 5 }, layers: vec![layer] }
    }

    #[test]
    fn everything_unusual_is_said_once_with_its_threshold() {
        let text = write(&figures(), 8);
        for part in [
            "10 tokens in 2 sequences",
            "| 3 | full | 30.0 % | 15.5 % | 2.5 % | – | 1 |",
            "heads 1 mostly rest (sink mass at least 50 %)",
            "heads 1 use the first token as a second sink",
            "keys of head 0 at the first four positions are 2.0 times",
            "1 of 2 rotary pairs",
            "experts [2] were never chosen",
            "expert 0 takes 90 %",
        ] {
            assert_eq!(text.matches(part).count(), 1, "{part}\n{text}");
        }
        assert!(!text.contains("look far"));
        assert!(write(&figures(), 64).contains("| 15.5 % | 0.0 % |"));
        assert!(write(&figures(), 4).contains("heads 1 look far (at least 10 % beyond 4 tokens)"));
    }

    #[test]
    fn thresholds_include_their_ends() {
        let check = |change: &dyn Fn(&mut Layer), part: &str, expected: bool| {
            let mut layer = Layer {
                attention: "full".into(),
                heads: vec![Head { distance: vec![1.0], ..Head::default() }],
                kv_heads: vec![KvHead { key_norm: 1.0, first_key_ratio: 1.0 }],
                pairs: vec![Pair::default()],
                routing: Routing { load: vec![0.25; 4], ..Routing::default() },
                ..Layer::default()
            };
            assert_eq!(
                sentences(&layer, 8),
                Vec::<String>::new(),
                "an ordinary layer is not worth a sentence"
            );
            change(&mut layer);
            assert_eq!(
                sentences(&layer, 8).join("; ").contains(part),
                expected,
                "{part} {:?}",
                sentences(&layer, 8)
            );
        };
        check(&|l| l.heads[0].sink_mass = 0.5, "mostly rest", true);
        check(&|l| l.heads[0].sink_mass = 0.499, "mostly rest", false);
        check(&|l| l.heads[0].first_token_mass = 0.3, "second sink", true);
        check(&|l| l.heads[0].first_token_mass = 0.299, "second sink", false);
        let far = |mass: f64| [0.0, 0.0, 0.0, 0.9 - mass, mass]; // the last starts at distance 8
        check(&|l| l.heads[0].distance = far(0.1).into(), "look far", true);
        check(&|l| l.heads[0].distance = far(0.099).into(), "look far", false);
        check(
            &|l| (l.heads[0].distance, l.attention) = (far(0.5).into(), "sliding".into()),
            "look far",
            false,
        );
        check(&|l| l.kv_heads[0].first_key_ratio = 1.51, "1.5 times as long", true);
        check(&|l| l.kv_heads[0].first_key_ratio = 1.5, "times as long", false);
        check(&|l| l.kv_heads[0].first_key_ratio = 0.66, "0.7 times as long", true);
        check(&|l| l.pairs[0].sharing = Some(0.8), "nearly share", true);
        check(&|l| l.pairs[0].sharing = Some(0.799), "nearly share", false);
        check(&|l| l.routing.load = vec![0.51, 0.49, 0.0, 0.0], "expert 0 takes 51 %", true);
        check(&|l| l.routing.load = vec![0.5, 0.5, 0.0, 0.0], "fair share", false);
    }
}
