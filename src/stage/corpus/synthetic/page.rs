//! A document in the making: its text, an estimate of its tokens, its facts and the marks on their late answers.
//! Knows no domain.

use rand_chacha::{
    ChaCha12Rng,
    rand_core::{Rng, SeedableRng},
};

use crate::artifact::texts::Mark;

/// An answer is marked when at least so many tokens lie between it and the place that last stated it.
pub(super) const NEAREST: usize = 100;
/// An answer is marked when at most so many tokens lie between; a little under 4,000, because a tokenizer may split a word.
pub(super) const FARTHEST: usize = 3_900;

/// The random stream of one document: `ChaCha12`, whose output is the same on every platform.
pub(super) struct Draw(ChaCha12Rng);

impl Draw {
    /// The stream of one document of one domain. Streams are independent, so sharding cannot matter.
    pub(super) fn new(seed: u64, domain: &str, document: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("mla-run synthetic corpus, one stream per document");
        hasher.update(&seed.to_le_bytes()).update(&document.to_le_bytes()).update(domain.as_bytes());
        Self(ChaCha12Rng::from_seed(*hasher.finalize().as_bytes()))
    }

    /// A number below `n`, which is not 0. The bias is below n / 2^64.
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }

    /// A number from `low` to `high`, both included.
    pub(super) fn within(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// True in `percent` of 100 cases.
    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One item of a set.
    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// `n` different items of a set in random order.
    pub(super) fn sample<T: Copy>(&mut self, items: &[T], n: usize) -> Vec<T> {
        let mut pool = items.to_vec();
        (0..n.min(items.len())).map(|_| pool.swap_remove(self.below(pool.len()))).collect()
    }

    /// A length between two bounds, about log-uniform: first an octave, then a place in it. Integers only.
    pub(super) fn length(&mut self, min: usize, max: usize) -> usize {
        let octaves = (0..32).take_while(|&k| min << k < max).count().max(1);
        let low = min << self.below(octaves);
        self.within(low, (2 * low).min(max))
    }
}

/// Something stated once and asked for later: `key` directly precedes `value` wherever it is said.
pub(super) struct Fact {
    /// The name, unique within the document.
    pub key: &'static str,
    /// One of a closed set.
    pub value: &'static str,
    /// The size of that set.
    pub choices: u32,
    /// The domain's note on how to say it: a verb, a step's number.
    pub kind: usize,
    /// How often it is asked for, relative to the others.
    weight: usize,
    /// Where its value was last said: byte and token.
    last: Option<(usize, usize)>,
}

impl Fact {
    /// A fact that is not stated yet. Its weight is a power of two from 1 to 32, so that the gaps between two questions
    /// for one fact spread over tens to thousands of tokens.
    pub(super) fn new(draw: &mut Draw, key: &'static str, set: &[&'static str], kind: usize) -> Self {
        let value = *draw.pick(set);
        Self { key, value, choices: set.len() as u32, kind, weight: 1 << draw.below(6), last: None }
    }
}

/// The text so far.
pub(super) struct Page {
    /// What is written.
    pub text: String,
    counter: Counter,
    /// The late answers in it.
    pub marks: Vec<Mark>,
    target: usize,
    closing: Vec<usize>,
}

/// What no sentence exceeds, in tokens.
pub(super) const LONGEST: usize = 44;

impl Page {
    /// An empty page that shall hold about `target` tokens, never more.
    pub(super) fn new(target: usize) -> Self {
        Self {
            text: String::new(),
            counter: Counter::default(),
            marks: Vec::new(),
            target,
            closing: Vec::new(),
        }
    }

    /// How many facts suit the length.
    pub(super) fn facts(&self) -> usize {
        (self.target / 40).clamp(4, 24)
    }

    /// How many tokens that is, when every word is one token.
    pub(super) fn tokens(&self) -> usize {
        self.counter.tokens
    }

    /// Whether another sentence fits.
    pub(super) fn has_room(&self) -> bool {
        self.tokens() + LONGEST <= self.target
    }

    /// Writes on.
    pub(super) fn push(&mut self, piece: &str) {
        self.text.push_str(piece);
        self.counter.add(piece);
    }

    /// Writes the value of a fact, and marks it when it was last said far back.
    pub(super) fn say(&mut self, fact: &mut Fact) {
        let (start, at) = (self.text.len() + 1, self.tokens());
        self.push(" ");
        self.push(fact.value);
        if let Some((stated, then)) = fact.last.replace((start, at))
            && (NEAREST..=FARTHEST).contains(&(at - then))
        {
            self.marks.push(Mark { start, end: self.text.len(), stated, choices: fact.choices });
        }
    }

    /// The fact to ask for next. The frequent ones come first; towards the end of the page each fact has its turn.
    pub(super) fn ask(&mut self, draw: &mut Draw, facts: &[Fact]) -> usize {
        if self.closing.is_empty() && self.target - self.tokens() < 12 * facts.len() + LONGEST {
            self.closing = draw.sample(&(0..facts.len()).collect::<Vec<_>>(), facts.len());
        }
        if let Some(next) = self.closing.pop() {
            return next;
        }
        let mut place = draw.below(facts.iter().map(|fact| fact.weight).sum());
        facts
            .iter()
            .position(|fact| {
                let hit = place < fact.weight;
                place = place.saturating_sub(fact.weight);
                hit
            })
            .expect("the place lies below the sum of the weights")
    }
}

/// Counts the tokens of ASCII text when every word is one token: a run of letters or of punctuation with the space before it,
/// a digit with the space before it, a line break with the spaces that follow but one.
#[derive(Default)]
struct Counter {
    tokens: usize,
    last: Option<Class>,
}

#[derive(Clone, Copy, PartialEq)]
enum Class {
    Letter,
    Digit,
    Space,
    Break,
    Other,
}

impl Counter {
    fn add(&mut self, piece: &str) {
        for byte in piece.bytes() {
            let class = match byte {
                b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
                b'0'..=b'9' => Class::Digit,
                b' ' => Class::Space,
                b'\n' => Class::Break,
                _ => Class::Other,
            };
            self.tokens += usize::from(match class {
                Class::Letter | Class::Other => self.last != Some(class),
                Class::Digit | Class::Break => true,
                Class::Space => false,
            });
            self.last = Some(class);
        }
    }
}

/// The tokens of a text; see [`Page::tokens`].
#[cfg(test)]
pub(super) fn count(text: &str) -> usize {
    let mut counter = Counter::default();
    counter.add(text);
    counter.tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted_as_the_pre_tokenizer_splits() {
        let check = |piece: &str, expected: usize| assert_eq!(count(piece), expected, "{piece:?}");
        check(" Mira teal.", 3);
        check("a = 17, so", 6);
        check("\n  bolt cold\n  cog 4", 6);
        check(" (12),", 4);
    }

    #[test]
    fn lengths_cover_every_octave_and_keep_their_bounds() {
        let mut draw = Draw::new(1, "test", 0);
        let lengths: Vec<_> = (0..2_000).map(|_| draw.length(100, 8_000)).collect();
        assert!(lengths.iter().all(|n| (100..=8_000).contains(n)));
        for low in [100, 200, 400, 800, 1_600, 3_200] {
            let share = lengths.iter().filter(|n| (low..2 * low).contains(*n)).count();
            assert!((200..400).contains(&share), "{share} of 2,000 from {low}");
        }
    }

    #[test]
    fn a_mark_needs_the_distance() {
        let mut draw = Draw::new(1, "test", 0);
        let mut fact = Fact::new(&mut draw, "Mira", &["teal"], 0);
        let mut page = Page::new(10_000);
        let mut gap = |page: &mut Page, words: usize| {
            page.push(&" so".repeat(words));
            page.say(&mut fact);
            page.marks.len()
        };
        assert_eq!(gap(&mut page, 0), 0); // stated
        assert_eq!(gap(&mut page, NEAREST - 2), 0);
        assert_eq!(gap(&mut page, NEAREST - 1), 1);
        assert_eq!(gap(&mut page, FARTHEST - 1), 2);
        assert_eq!(gap(&mut page, FARTHEST), 2);
    }

    #[test]
    fn streams_differ_by_seed_domain_and_document() {
        let first = |seed, domain, document| Draw::new(seed, domain, document).below(1 << 40);
        let base = first(1, "prose", 2);
        assert_eq!(base, first(1, "prose", 2));
        assert!(
            [first(2, "prose", 2), first(1, "maths", 2), first(1, "prose", 3)].iter().all(|&x| x != base)
        );
    }
}
