//! Where a fault is: the file, the line and the column, whatever stands before it and however it is written.

use proptest::prelude::*;

use super::*;

/// Manifests with one fault each, the text that it lies on marked with `«»`.
const MARKED: [&str; 12] = [
    "[stage.a]\nkind = «3»",
    "[stage.a]\nx = 'é ${v} «${no}»'\n[vars]\nv = 'ü'",
    "[stage.a]\nx = \"\\u00e9\\t${v} «${no}»\"\n[vars]\nv = 1",
    "[stage.a]\nx = '''\nfirst ${v}\n  «${no}» last\n'''\n[vars]\nv = 1",
    "[stage.a]\nx = [\n  1,\n  { y = '«${no}»' },\n]",
    "[stage.a]\nmatrix.x = [1, «[2]»]",
    "[stage.a]\ndeep = { x = { y = ['«${no}»'] } }",
    "[stage.a]\ndeep.x.'é'.y = '«${no}»'",
    "[«pipelin»]\n[stage.a]",
    "[stage.a]\n[stage.«'b c'»]",
    "[profile.p]\n«x» = 1\n[stage.a]",
    "[stage.a]\nseed = «-1» # why not",
];

/// The text without its mark, and what the mark holds with the byte at which it begins.
fn unmark(marked: &str) -> (String, String, usize) {
    let (before, rest) = marked.split_once('«').unwrap();
    let (under, after) = rest.split_once('»').unwrap();
    (format!("{before}{under}{after}"), under.to_owned(), before.len())
}

/// The one fault of a chain of files: its file, its text and the byte at which it begins.
fn place(files: &[(&str, &str)]) -> (String, String, usize) {
    let sources = sources(files, &Options::default());
    let (_, faults) = Manifest::parse(&sources);
    let [fault] = &faults[..] else { panic!("one fault is expected: {faults:?}") };
    let (source, local) = sources.locate(fault.place.as_ref().unwrap()).unwrap();
    (source.name.clone(), source.text[local.clone()].to_owned(), local.start)
}

#[test]
fn every_fault_lies_on_its_text() {
    for marked in MARKED {
        let (text, under, at) = unmark(marked);
        assert_eq!(place(&[("m.toml", &text)]), ("m.toml".to_owned(), under, at), "{marked}");
    }
}

#[test]
fn a_fault_of_an_extended_file_lies_in_that_file() {
    for marked in MARKED {
        let (text, under, at) = unmark(marked);
        let top = "[pipeline]\nextends = 'mid.toml'\n[vars]\nother = 'é'\n";
        let middle = "[pipeline]\nextends = 'low.toml'\n[stage.more]\nx = 1\n";
        let found = place(&[("top.toml", top), ("mid.toml", middle), ("low.toml", &text)]);
        assert_eq!(found, ("low.toml".to_owned(), under, at), "{marked}");
    }
}

#[test]
fn windows_line_ends_move_a_fault_by_a_byte_a_line() {
    for marked in MARKED {
        let (text, under, at) = unmark(marked);
        let lines = text[..at].matches('\n').count();
        let found = place(&[("m.toml", &text.replace('\n', "\r\n"))]);
        // A key in a text of several lines is found again by its place among the variables.
        assert_eq!(found, ("m.toml".to_owned(), under, at + lines), "{marked}");
    }
}

proptest! {
    #[test]
    fn what_stands_before_moves_a_fault_and_changes_nothing_else(
        marked in proptest::sample::select(MARKED.to_vec()),
        before in proptest::collection::vec("(# [a-zé'\"\\$\\{\\[]{0,9}|[ \\t]{0,4})", 0..6),
    ) {
        let (text, under, at) = unmark(marked);
        let before: String = before.iter().flat_map(|line| [line, "\n"]).collect();
        let found = place(&[("m.toml", &format!("{before}{text}"))]);
        prop_assert_eq!(found, ("m.toml".to_owned(), under, at + before.len()));
    }

    #[test]
    fn any_text_is_read_without_a_panic_and_every_place_lies_in_it(
        text in "(\\[(stage|vars|pipeline)(\\.[a-c])?\\]\n|[a-c] = (1|'x'|'\\$\\{[a-c]\\}'|\\[1, \\[\\]|\\{ a = 2 \\})\n|matrix\\.[a-c] = \\[[12]\\]\n|[\"'é\\{\\[=]){0,8}"
    ) {
        let sources = sources(&[("m.toml", &text)], &Options::default());
        let (_, faults) = Manifest::parse(&sources);
        for fault in faults {
            for place in fault.place.iter().chain(fault.related.iter().map(|(place, _)| place)) {
                let (source, local) = sources.locate(place).unwrap();
                prop_assert!(source.text.get(local).is_some(), "{} of {:?}", fault.error, text);
            }
        }
    }
}
