//! Programs in a small language, each block followed by the trace of its execution. Variables are set early, stay unchanged,
//! and are printed again long after.
//!
//! The language: `set NAME VALUE` assigns, `print NAME …` prints, `loop N` … `end` repeats, `add NAME N` and `take NAME N`
//! compute modulo ten, `call FUNCTION N` calls one of the functions of the prelude. A trace line is a name and its new value.

use super::{
    page::{Draw, Fact, Page},
    words::{ATOMS, DIGITS, VARIABLES},
};

/// Functions of one digit: name, what it adds. The program declares those that it may call.
const FUNCTIONS: [(&str, usize); 4] = [("next", 1), ("skip", 2), ("leap", 5), ("back", 9)];
/// Variables that every block may change; never asked for later.
const SCRATCH: [&str; 3] = ["sum", "left", "tmp"];

/// Writes one document.
pub(super) fn write(page: &mut Page, draw: &mut Draw) {
    let names = draw.sample(&VARIABLES, page.facts());
    let mut unset: Vec<Fact> = names
        .into_iter()
        .map(|name| {
            if draw.chance(65) { Fact::new(draw, name, &ATOMS, 0) } else { Fact::new(draw, name, &DIGITS, 1) }
        })
        .collect();
    let mut set = Vec::new();
    let (function, by) = *draw.pick(&FUNCTIONS);
    page.push(&format!("program\ndef {function} n is n plus {by}\n"));
    while page.has_room() {
        let pace = draw.below(100);
        if set.is_empty() || (pace < 60 && !unset.is_empty()) {
            for fact in unset.split_off(unset.len() - draw.within(1, 3).min(unset.len())) {
                set.push(fact);
                let new = set.last_mut().expect("just pushed");
                page.push("set ");
                page.push(new.key);
                page.say(new);
                page.push("\n");
            }
        } else if pace < 66 {
            print(page, draw, &mut set);
        } else if pace < 78 {
            call(page, draw, function, by);
        } else if pace < 90 {
            repeat(page, draw);
        } else {
            compute(page, draw);
        }
    }
}

fn print(page: &mut Page, draw: &mut Draw, set: &mut [Fact]) {
    let mut asked: Vec<usize> = (0..draw.within(1, 4)).map(|_| page.ask(draw, set)).collect();
    asked.sort_unstable();
    asked.dedup();
    page.push("print");
    for &i in &asked {
        page.push(" ");
        page.push(set[i].key);
    }
    for i in asked {
        page.push("\n  ");
        page.push(set[i].key);
        page.say(&mut set[i]);
    }
    page.push("\n");
}

fn call(page: &mut Page, draw: &mut Draw, function: &str, by: usize) {
    let n = draw.below(10);
    page.push(&format!("call {function} {n}\n  {n} plus {by} is {}\n", (n + by) % 10));
}

fn repeat(page: &mut Page, draw: &mut Draw) {
    let name = draw.pick(&SCRATCH);
    let (start, times, step) = (draw.below(10), draw.within(2, 4), draw.within(1, 3));
    page.push(&format!("set {name} {start}\nloop {times}\n  add {name} {step}\nend"));
    for i in 1..=times {
        page.push(&format!("\n  {name} {}", (start + i * step) % 10));
    }
    page.push("\n");
}

fn compute(page: &mut Page, draw: &mut Draw) {
    let name = draw.pick(&SCRATCH);
    let (a, b) = (draw.below(10), draw.below(10));
    let (verb, value) = if draw.chance(50) { ("add", (a + b) % 10) } else { ("take", (a + 10 - b) % 10) };
    page.push(&format!("set {name} {a}\n{verb} {name} {b}\n  {name} {value}\n"));
}
