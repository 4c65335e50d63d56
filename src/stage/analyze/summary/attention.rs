//! Where attention goes: to sinks, to the first token, far back. Knows no keys and no experts.

use super::{
    Topic,
    words::{counted, mean, percent, places, range, whole},
};
use crate::artifact::{
    analysis::{Figures, Head, Layer},
    moments::begin,
};

/// A head whose sink takes at least this share mostly rests.
const RESTING: f64 = 0.5;
/// A head that puts at least this share on the first token uses it as a sink, as in arXiv 2410.10781.
const FIRST: f64 = 0.3;
/// A head with at least this share of far attention looks far.
const FAR: f64 = 0.1;

pub(super) fn topics(figures: &Figures) -> Vec<Topic> {
    let topics = [sinks(figures), first_token(figures), range_of_attention(figures)];
    topics.into_iter().flatten().collect()
}

/// The heads of the layers that `of` keeps whose `share` is at least `least`: how many of how many, the largest share with its place, and
/// the heads by layer.
struct Search {
    found: usize,
    heads: usize,
    most: (f64, usize, usize),
    by_layer: Vec<(usize, Vec<String>)>,
}

impl Search {
    fn new<'a>(layers: impl Iterator<Item = &'a Layer>, share: fn(&Head) -> f64, least: f64) -> Self {
        let mut search = Self { found: 0, heads: 0, most: (0.0, 0, 0), by_layer: Vec::new() };
        for layer in layers {
            let mut members = Vec::new();
            for (h, head) in layer.heads.iter().enumerate() {
                let share = share(head);
                search.heads += 1;
                if share >= least {
                    search.found += 1;
                    members.push(h.to_string());
                }
                if share > search.most.0 {
                    search.most = (share, layer.layer, h);
                }
            }
            search.by_layer.push((layer.layer, members));
        }
        search
    }

    /// `3 of 64 heads rest` and the largest share.
    fn told(&self, verb: (&str, &str), what: &str) -> String {
        let verb = if self.found > 1 { verb.1 } else { verb.0 };
        let heads = match self.found {
            0 => "no head".to_owned(),
            n => format!("{n} of {}", counted(self.heads, "head")),
        };
        let (share, layer, head) = self.most;
        if share <= 0.0 {
            return format!("{heads} {verb} {what}");
        }
        format!("{heads} {verb} {what}; the most is {} (layer {layer}, head {head})", percent(share))
    }
}

fn sinks(figures: &Figures) -> Option<Topic> {
    let learned: Vec<&Layer> = figures
        .layers
        .iter()
        .filter(|layer| layer.heads.iter().any(|head| head.sink_logit.is_some()))
        .collect();
    let heads = || learned.iter().flat_map(|layer| &layer.heads);
    let last = heads().map(|head| head.sink_by_position.len()).max()?.checked_sub(1)?;
    let at = |i: usize| mean(heads().filter_map(|head| head.sink_by_position.get(i).copied()));
    let search = Search::new(learned.iter().copied(), |head| head.sink_mass, RESTING);
    let rest = format!("(sink share of at least {})", percent(RESTING));
    Some(Topic {
        name: "Sinks",
        verdict: format!(
            "learned sinks take {} of the attention, {} at position 0 and {} from position {} on; {}",
            percent(mean(heads().map(|head| head.sink_mass))),
            percent(at(0)),
            percent(at(last)),
            begin(last),
            search.told(("mostly rests", "mostly rest"), &rest),
        ),
        details: places(&search.by_layer, "head", &format!("heads that mostly rest {rest}"))
            .into_iter()
            .collect(),
    })
}

fn first_token(figures: &Figures) -> Option<Topic> {
    let heads = || figures.layers.iter().flat_map(|layer| &layer.heads);
    heads().next()?;
    let search = Search::new(figures.layers.iter(), |head| head.first_token_mass, FIRST);
    let sink = format!("(at least {} of a head's attention)", percent(FIRST));
    let what = format!("heads that use the first token as a sink {sink}");
    Some(Topic {
        name: "First token",
        verdict: format!(
            "it gets {} of the attention; {}",
            percent(mean(heads().map(|head| head.first_token_mass))),
            search.told(("uses it", "use it"), &format!("as a sink {sink}"))
        ),
        details: places(&search.by_layer, "head", &what).into_iter().collect(),
    })
}

fn range_of_attention(figures: &Figures) -> Option<Topic> {
    let far = figures.protocol.far;
    let wide = || figures.layers.iter().filter(|layer| layer.attention != "sliding");
    let sliding = figures.layers.iter().filter(|layer| layer.attention == "sliding");
    figures.layers.first()?;
    let reach = |layer: &Layer| layer.geometry.reach as f64;
    let mut said = Vec::new();
    let mut details = Vec::new();
    if wide().next().is_some() {
        let mut kinds: Vec<&str> = wide().map(|layer| layer.attention.as_str()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let search = Search::new(wide(), |head| head.far, FAR);
        let share = format!("(at least {} of a head's attention)", percent(FAR));
        said.push(format!(
            "90 % of the attention to tokens lies within {} tokens in {} layers, and {} goes {far} or more tokens back; {}",
            range(wide().map(reach), whole),
            kinds.join(" and "),
            percent(mean(wide().flat_map(|layer| &layer.heads).map(|head| head.far))),
            search.told(("looks", "look"), &format!("that far {share}"))
        ));
        let what = format!(
            "heads that look at least {far} tokens back with at least {} of their attention",
            percent(FAR)
        );
        details.extend(places(&search.by_layer, "head", &what));
    }
    let sliding: Vec<f64> = sliding.map(reach).collect();
    if !sliding.is_empty() {
        let within = range(sliding.into_iter(), whole);
        said.push(format!("sliding layers see {far} tokens and have 90 % of it within {within}"));
    }
    Some(Topic { name: "Range", verdict: said.join("; "), details })
}
