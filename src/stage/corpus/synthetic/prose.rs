//! Prose: small worlds of people and things. Facts are set early, between sentences of no consequence, and asked for late.

use super::{
    page::{Draw, Fact, Page},
    words::{COLOURS, GIFTS, NAMES, ROLES, WORLDS, World},
};

/// Who did it, and the verb that directly precedes a fact's name. The index is [`Fact::kind`].
const VERBS: [(&str, &str); 3] =
    [(" the crew", " painted"), (" the council", " made"), (" the queen", " gave")];

/// Writes one document.
pub(super) fn write(page: &mut Page, draw: &mut Draw) {
    let world = draw.pick(&WORLDS);
    let names = draw.sample(&NAMES, page.facts());
    let mut untold: Vec<Fact> = names
        .into_iter()
        .map(|name| {
            let kind = draw.below(VERBS.len());
            Fact::new(draw, name, [&COLOURS, &ROLES, &GIFTS][kind], kind)
        })
        .collect();
    let mut told = Vec::new();
    page.push("This is a story of the ");
    page.push(world.place);
    page.push(".");
    while page.has_room() {
        let pace = draw.below(100);
        if let Some(fact) = if told.is_empty() || pace < 60 { untold.pop() } else { None } {
            told.push(fact);
            let new = told.last_mut().expect("just pushed");
            page.push(draw.pick::<&str>(&[" In the beginning", " One spring", " Long ago"]));
            tell(page, new);
        } else if pace < 80 {
            recall(page, draw, world, &mut told);
        } else {
            filler(page, draw, world);
        }
        if draw.chance(12) {
            page.push("\n");
        }
    }
}

/// The core of a statement and of every question for it: subject, verb, name, value.
fn tell(page: &mut Page, fact: &mut Fact) {
    let (subject, verb) = VERBS[fact.kind];
    page.push(subject);
    page.push(verb);
    page.push(" ");
    page.push(fact.key);
    page.say(fact);
    page.push(".");
}

fn recall(page: &mut Page, draw: &mut Draw, world: &World, told: &mut [Fact]) {
    match draw.below(4) {
        0 => page.push(" As we know,"),
        1 => page.push(" Remember that"),
        2 => {
            page.push(" The ");
            page.push(draw.pick::<&str>(&world.folk));
            page.push(" said that");
        }
        _ => page.push(" Indeed"),
    }
    let asked = page.ask(draw, told);
    tell(page, &mut told[asked]);
}

fn filler(page: &mut Page, draw: &mut Draw, world: &World) {
    let (folk, thing) = (*draw.pick(&world.folk), *draw.pick(&world.things));
    let (deed, weather) = (*draw.pick(&world.deeds), *draw.pick(&world.weather));
    let sentence = match draw.below(4) {
        0 => format!(" Every morning the {folk} came down to the {} and {deed} the {thing}.", world.place),
        1 => format!(" Then the {weather} came over the {} and the {folk} went home.", world.place),
        2 => format!(" When the {weather} was gone, the old {folk} {deed} all of the {thing} again."),
        _ => format!(" The {folk} of the {} had never {deed} so many {thing} before.", world.place),
    };
    page.push(&sentence);
}
