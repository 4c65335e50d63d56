//! Mathematics: numbered steps of arithmetic modulo ten that refer to earlier results by name and number, between worked sums
//! and equations of no consequence.

use super::{
    page::{Draw, Fact, Page},
    words::{DIGITS, QUANTITIES},
};

/// Writes one document.
pub(super) fn write(page: &mut Page, draw: &mut Draw) {
    let mut unset = draw.sample(&QUANTITIES, page.facts());
    let mut set: Vec<Fact> = Vec::new();
    page.push("We work modulo 10.");
    while page.has_room() {
        let pace = draw.below(100);
        if let Some(name) = if set.len() < 2 || pace < 60 { unset.pop() } else { None } {
            let number = set.len() + 1;
            let mut new = Fact::new(draw, name, &DIGITS, number);
            page.push(&format!("\n({number})"));
            if set.len() >= 3 && draw.chance(40) {
                new.value = combine(page, draw, &mut set);
                page.push(" Call it ");
            } else {
                page.push(" Let ");
            }
            page.push(&format!("{name} ="));
            page.say(&mut new);
            page.push(".");
            set.push(new);
        } else if pace < 82 {
            page.push("\nAgain");
            combine(page, draw, &mut set);
        } else if pace < 91 {
            sum(page, draw);
        } else {
            solve(page, draw);
        }
    }
}

/// Takes two earlier results by name and adds or subtracts them; returns the result.
fn combine(page: &mut Page, draw: &mut Draw, set: &mut [Fact]) -> &'static str {
    let (a, b) = (page.ask(draw, set), page.ask(draw, set));
    let minus = draw.chance(50);
    let (operator, name) = if minus { ("-", "difference") } else { ("+", "sum") };
    cite(page, &mut set[a]);
    page.push(" and");
    cite(page, &mut set[b]);
    let (x, y) = (digit(set[a].value), digit(set[b].value));
    let result = DIGITS[if minus { x + 10 - y } else { x + y } % 10];
    page.push(&format!(", so the {name} is {x} {operator} {y} = {result}."));
    result
}

/// Says an earlier result with the number of its step: ` alpha = 7 by (1)`.
fn cite(page: &mut Page, fact: &mut Fact) {
    page.push(&format!(" {} =", fact.key));
    page.say(fact);
    page.push(&format!(" by ({})", fact.kind));
}

fn digit(value: &str) -> usize {
    DIGITS.iter().position(|d| *d == value).expect("quantities hold digits")
}

/// A written addition of two numbers of two digits, without the final carry: the tens add to 9 at most.
fn sum(page: &mut Page, draw: &mut Draw) {
    let (a1, b1) = (draw.within(1, 4), draw.within(1, 4));
    let (a0, b0) = (draw.below(10), draw.below(10));
    let (low, carry) = ((a0 + b0) % 10, (a0 + b0) / 10);
    page.push(&format!("\nAdd {a1}{a0} and {b1}{b0}: {a0} + {b0} ends in {low} with {carry} over,"));
    page.push(&format!(" {a1} + {b1} + {carry} is {}, so {0}{low}.", a1 + b1 + carry));
}

/// A linear equation whose numbers stay below 10.
fn solve(page: &mut Page, draw: &mut Draw) {
    let (a, x) = *draw.pick(&[(2, 1), (2, 2), (2, 3), (2, 4), (3, 1), (3, 2), (3, 3), (4, 1), (4, 2)]);
    let b = draw.below(10 - a * x);
    page.push(&format!("\nSolve {a} x + {b} = {}: then {a} x = {}, and so x = {x}.", a * x + b, a * x));
}
