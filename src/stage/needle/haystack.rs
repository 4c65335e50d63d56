//! Sentences in text: where they stand and what is asked. Knows no stage.

use rand_chacha::ChaCha8Rng;

use crate::{
    artifact::{
        encoder::{Encoder, EncoderError},
        texts::{Mark, Text},
    },
    math::random::below,
};

const ADJECTIVES: [&str; 8] =
    ["amber", "quiet", "northern", "hollow", "silver", "early", "distant", "narrow"];
const NOUNS: [&str; 8] = ["harbour", "orchard", "lantern", "bridge", "archive", "meadow", "furnace", "tower"];

/// How many things can have a number.
pub(super) const NAMES: usize = ADJECTIVES.len() * NOUNS.len();

/// The numbers have five digits.
const NUMBERS: std::ops::Range<u32> = 10_000..100_000;

/// A fact: which thing, and its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fact {
    name: String,
    number: String,
}

impl Fact {
    /// So many facts of different things.
    pub(super) fn draw(count: usize, random: &mut ChaCha8Rng) -> Vec<Self> {
        let mut names: Vec<usize> = (0..NAMES).collect();
        let one = |_| {
            let name = names.swap_remove(below(random, names.len()));
            let number = NUMBERS.start + below(random, NUMBERS.len()) as u32;
            let (adjective, noun) = (ADJECTIVES[name / NOUNS.len()], NOUNS[name % NOUNS.len()]);
            Self { name: format!("{adjective} {noun}"), number: number.to_string() }
        };
        (0..count).map(one).collect()
    }

    /// What comes before the number where it is stated, and where it is asked for.
    fn before(&self) -> String {
        format!("The number of the {} is ", self.name)
    }

    /// The sentence that states it, on a line of its own.
    pub(super) fn sentence(&self) -> String {
        format!("\n{}{}.\n", self.before(), self.number)
    }

    /// The question with its answer, which ends the text.
    pub(super) fn question(&self) -> String {
        format!("\n{}{}", self.before(), self.number)
    }
}

/// Bytes after which a piece ends at any space.
const LONG: usize = 200;

/// Text in pieces that end where a sentence or a line does.
pub(super) struct Haystack {
    pieces: Vec<String>,
    /// Tokens before each piece, and of all.
    before: Vec<usize>,
}

impl Haystack {
    /// The first documents that have `most` tokens together, or all.
    pub(super) fn new(texts: &[Text], encoder: &Encoder, most: usize) -> Result<Self, EncoderError> {
        let mut haystack = Self { pieces: Vec::new(), before: vec![0] };
        for text in texts.iter().filter(|text| !text.special_tokens) {
            if haystack.tokens() >= most {
                break;
            }
            for piece in pieces(&text.text).into_iter().chain(["\n\n"]) {
                haystack.before.push(haystack.tokens() + encoder.count(piece)?);
                haystack.pieces.push(piece.to_owned());
            }
        }
        Ok(haystack)
    }

    /// Tokens of all pieces.
    pub(super) fn tokens(&self) -> usize {
        *self.before.last().expect("begins with 0")
    }

    /// As many pieces as have at most `tokens`, from a random one on. Empty where there are not so many.
    pub(super) fn draw(&self, tokens: usize, random: &mut ChaCha8Rng) -> &[String] {
        let starts = self.before.partition_point(|before| before + tokens <= self.tokens());
        if starts == 0 {
            return &[];
        }
        let start = below(random, starts);
        let end = self.before.partition_point(|&before| before <= self.before[start] + tokens) - 1;
        &self.pieces[start..end.max(start)]
    }
}

/// A text cut behind line feeds and full stops, and behind spaces where neither comes for long.
fn pieces(text: &str) -> Vec<&str> {
    let (mut pieces, mut start, mut before) = (Vec::new(), 0, ' ');
    for (at, c) in text.char_indices() {
        let end = at + c.len_utf8();
        if c == '\n' || c == ' ' && (before == '.' || end - start >= LONG) {
            pieces.push(&text[start..end]);
            start = end;
        }
        before = c;
    }
    pieces.push(&text[start..]);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// `pieces` with each sentence at its depth, a share of their bytes, and the question about the first at the end.
pub(super) fn hide(pieces: &[String], facts: &[Fact], depths: &[f64]) -> (String, Mark) {
    let bytes: usize = pieces.iter().map(String::len).sum();
    let mut places: Vec<(usize, usize)> =
        depths.iter().enumerate().map(|(fact, depth)| ((depth * bytes as f64) as usize, fact)).collect();
    places.sort_unstable();
    let mut places = places.into_iter().peekable();
    let (mut text, mut seen, mut stated) = (String::new(), 0, 0);
    for piece in pieces.iter().map(Some).chain([None]) {
        while let Some((_, fact)) = places.next_if(|&(at, _)| at <= seen || piece.is_none()) {
            text.push_str(&facts[fact].sentence());
            if fact == 0 {
                stated = text.len() - facts[0].number.len() - ".\n".len();
            }
        }
        text.push_str(piece.map_or("", String::as_str));
        seen += piece.map_or(0, String::len);
    }
    text.push_str(&facts[0].question());
    let end = text.len();
    let mark = Mark { start: end - facts[0].number.len(), end, stated, choices: NUMBERS.len() as u32 };
    (text, mark)
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, prop_assert_eq, proptest};
    use rand_core::SeedableRng;

    use super::*;
    use crate::artifact::encoder::tests::WORDS;

    fn text(text: &str) -> Text {
        Text {
            id: String::new(),
            source: "a".into(),
            licence: String::new(),
            text: text.into(),
            special_tokens: false,
            marks: vec![],
        }
    }

    fn haystack(words: usize) -> Haystack {
        let encoder = Encoder::from_json(WORDS.as_bytes()).unwrap();
        let sentence = "one two one two. ";
        Haystack::new(&[text(&sentence.repeat(words / 4))], &encoder, usize::MAX).unwrap()
    }

    #[test]
    fn names_differ_and_numbers_have_five_digits() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let facts = Fact::draw(NAMES, &mut random);
        let names: std::collections::BTreeSet<&str> = facts.iter().map(|fact| fact.name.as_str()).collect();
        assert_eq!(names.len(), NAMES);
        assert!(facts.iter().all(|fact| fact.number.len() == 5));
    }

    #[test]
    fn pieces_end_with_lines_sentences_and_at_last_with_words() {
        assert_eq!(pieces("a b. c\n\nd.e"), ["a b. ", "c\n", "\n", "d.e"]);
        let long = "word ".repeat(100);
        let cut = pieces(&long);
        assert_eq!(cut.concat(), long);
        assert!(cut.len() == 3 && cut.iter().all(|piece| piece.len() < LONG + 5), "{cut:?}");
        assert!(pieces("").is_empty());
    }

    #[test]
    fn a_haystack_has_as_many_tokens_as_its_pieces() {
        let haystack = haystack(40);
        assert_eq!((haystack.tokens(), haystack.pieces.len()), (40, 11));
        let mut random = ChaCha8Rng::seed_from_u64(1);
        assert_eq!(haystack.draw(40, &mut random).concat().split_whitespace().count(), 40);
        assert_eq!(haystack.draw(11, &mut random).concat().split_whitespace().count(), 8, "whole sentences");
        assert!(haystack.draw(41, &mut random).is_empty());
        let starts: std::collections::BTreeSet<usize> =
            (0..99).map(|_| haystack.draw(4, &mut random).as_ptr() as usize).collect();
        assert_eq!(starts.len(), 10);
    }

    proptest! {
        #[test]
        fn what_is_stated_is_asked(seed in 0u64..1000, depth in 0.0f64..=1.0, others in 0usize..5) {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let facts = Fact::draw(1 + others, &mut random);
            let haystack = haystack(80);
            let pieces = haystack.draw(60, &mut random);
            let depths: Vec<f64> = std::iter::once(depth).chain((0..others).map(|i| i as f64 / 5.0)).collect();
            let (text, mark) = hide(pieces, &facts, &depths);
            prop_assert_eq!(&text[mark.start..mark.end], &facts[0].number);
            let stated = format!("{}.\n", facts[0].number);
            prop_assert!(text[mark.stated..].starts_with(&stated));
            prop_assert_eq!(mark.end, text.len());
            for fact in &facts {
                prop_assert_eq!(text.matches(&fact.sentence()).count(), 1);
            }
            let without = facts.iter().fold(text.clone(), |text, fact| text.replacen(&fact.sentence(), "", 1));
            prop_assert_eq!(without, pieces.concat() + &facts[0].question());
            // The sentence stands at the first end of a piece that is so deep.
            let hay: usize = pieces.iter().map(String::len).sum();
            let others: usize = facts[1..].iter().map(|fact| fact.sentence().len()).sum();
            let longest = pieces.iter().map(String::len).max().unwrap_or(0);
            let at = mark.stated as f64;
            prop_assert!(at + 1e-9 >= depth * hay as f64 && at <= depth * hay as f64 + (longest + others + 50) as f64);
        }
    }
}
