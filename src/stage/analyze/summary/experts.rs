//! Which experts are chosen. Knows no attention.

use super::{
    Topic,
    words::{counted, mean, percent, places, range, whole},
};
use crate::artifact::{
    analysis::{Figures, Routing},
    moments::GAPS,
};

/// An expert with more than this many times its fair share is overloaded.
const OVERLOADED: f64 = 2.0;
/// Experts that are chosen together at least this many times as often as chance would have it belong together.
const TOGETHER: f64 = 3.0;

pub(super) fn topics(figures: &Figures) -> Vec<Topic> {
    let routed: Vec<(usize, &Routing)> =
        figures.layers.iter().filter_map(|layer| Some((layer.layer, layer.routing.as_ref()?))).collect();
    if routed.is_empty() { vec![] } else { vec![load(figures.protocol.tokens, &routed), choice(&routed)] }
}

/// How many times its fair share an expert takes.
fn fair(routing: &Routing, e: usize) -> f64 {
    routing.load[e] * routing.load.len() as f64
}

/// What `of` finds in each layer.
fn found(routed: &[(usize, &Routing)], of: impl Fn(&Routing) -> Vec<String>) -> Vec<(usize, Vec<String>)> {
    routed.iter().map(|(layer, routing)| (*layer, of(routing))).collect()
}

fn load(tokens: usize, routed: &[(usize, &Routing)]) -> Topic {
    let dead = found(routed, |routing| routing.dead.iter().map(ToString::to_string).collect());
    let busy = found(routed, |routing| {
        let over = (0..routing.load.len()).filter(|&e| fair(routing, e) > OVERLOADED);
        over.map(|e| format!("{e}: {:.1}×", fair(routing, e))).collect()
    });
    let count =
        |found: &[(usize, Vec<String>)]| found.iter().map(|(_, members)| members.len()).sum::<usize>();
    let each = mean(routed.iter().map(|(_, r)| (tokens * r.gates.len()) as f64 / r.load.len() as f64));
    let mut most = (0.0, 0, 0);
    for (layer, routing) in routed {
        for e in 0..routing.load.len() {
            if fair(routing, e) > most.0 {
                most = (fair(routing, e), *layer, e);
            }
        }
    }
    let balanced = match count(&busy) {
        0 => "the router is balanced".to_owned(),
        n => format!(
            "{} overloaded",
            if n == 1 { "1 expert is".to_owned() } else { format!("{n} experts are") }
        ),
    };
    let verdict = format!(
        "{} (never chosen; even loads would give each {each:.0} choices); {balanced}: the busiest takes {:.1} times its fair share (overloaded above \
         {OVERLOADED}; layer {}, expert {}), E Σ load · probability is {} (1 is even), and {} of {} experts carry the tokens",
        counted(count(&dead), "dead expert"),
        most.0,
        most.1,
        most.2,
        range(routed.iter().map(|(_, r)| r.balance), |x| format!("{x:.2}")),
        range(routed.iter().map(|(_, r)| r.effective_experts), whole),
        routed.iter().map(|(_, r)| r.load.len()).max().unwrap_or(0),
    );
    let details = [
        places(&dead, "expert", "dead experts"),
        places(&busy, "expert", &format!("experts with more than {OVERLOADED} times their fair share")),
    ];
    Topic { name: "Experts", verdict, details: details.into_iter().flatten().collect() }
}

fn choice(routed: &[(usize, &Routing)]) -> Topic {
    let together = found(routed, |routing| {
        let pairs = routing
            .together
            .iter()
            .map(|pair| (pair.experts, pair.lift / routing.lift_by_chance.max(f64::MIN_POSITIVE)));
        pairs
            .filter(|(_, times)| *times >= TOGETHER)
            .map(|([a, b], times)| format!("{a}+{b}: {times:.1}×"))
            .collect()
    });
    let pairs: usize = together.iter().map(|(_, members)| members.len()).sum();
    let ties = mean(routed.iter().map(|(_, r)| r.gaps.first().copied().unwrap_or(0.0)));
    let best = mean(routed.iter().map(|(_, r)| r.gates.first().copied().unwrap_or(0.0)));
    let verdict = format!(
        "the router's entropy is {} of the largest there can be; the first expert weighs {} on average; {} of the choices hang on less than {} \
         between two logits; {} chosen together at least {TOGETHER} times as often as by chance",
        range(routed.iter().map(|(_, r)| r.entropy_share), percent),
        percent(best),
        percent(ties),
        GAPS[0],
        match pairs {
            0 => "no pair of experts is".to_owned(),
            1 => "1 pair of experts is".to_owned(),
            n => format!("{n} pairs of experts are"),
        },
    );
    let what = format!("experts that are chosen together at least {TOGETHER} times as often as by chance");
    Topic { name: "Routing", verdict, details: places(&together, "pair", &what).into_iter().collect() }
}
