//! Errors of the TOML parser as faults, without those that only follow from an earlier one.

use toml::de::Error;

use super::{Fault, Mistake, Source, Span};

/// The faults of one file.
pub(super) fn faults(file: &Source, errors: &[Error]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut repeated = 0..0; // a table whose header is a duplicate: all its keys may be
    for error in errors {
        let place = error.span().unwrap_or(0..0);
        let twice = error.message() == "duplicate key";
        if twice && repeated.contains(&place.start) {
            continue;
        }
        if twice && line_of(&file.text, place.start).1.starts_with('[') {
            let end = file.text[place.end..].find("\n[").map_or(file.text.len(), |i| place.end + i);
            repeated = place.start..end;
        }
        faults.push(fault(file, error, place, twice));
        // The parser cannot tell where an open bracket should have ended, so what follows is guesswork.
        if ["missing comma", "unclosed", "array", "inline table"]
            .iter()
            .any(|word| error.message().contains(word))
        {
            break;
        }
    }
    faults
}

fn fault(file: &Source, error: &Error, place: Span, twice: bool) -> Fault {
    let global = |span: Span| span.start + file.start..span.end + file.start;
    let first = if twice { first(&file.text, &place) } else { None };
    let message = error.message();
    let hint = match message {
        _ if twice => "the name is used twice: remove one or rename it",
        text if text.contains("must be quoted") || text.contains("invalid boolean") => "put text in quotes",
        text if text.contains("comma") => "put a `,` here, or close the bracket before it",
        text if text.contains("unclosed") => "close what is open: a bracket or a quote",
        _ => "https://toml.io shows how TOML is written",
    };
    let error = if twice {
        let name = file.text.get(place.clone()).unwrap_or_default();
        Mistake::Twice(name.to_owned())
    } else {
        Mistake::Syntax(message.to_owned())
    };
    let fault = Fault::at(global(place), error).hint(hint);
    match first {
        Some(first) => fault.see(global(first), "first here"),
        None => fault,
    }
}

/// Where a duplicate was first written: the same header, or the same key above in the same table.
fn first(text: &str, place: &Span) -> Option<Span> {
    let (start, line) = line_of(text, place.start);
    let name = text.get(place.clone())?;
    let mut above = text[..start].split_inclusive('\n').scan(0, |at, line| {
        *at += line.len();
        Some((*at - line.len(), line))
    });
    let is_key = |line: &str| {
        let rest = line.strip_prefix(name).map(str::trim_start);
        rest.is_some_and(|rest| rest.starts_with(['=', '.']))
    };
    let found = if line.starts_with('[') {
        above.find(|(_, other)| other.trim_end() == line.trim_end())
    } else {
        let table: Vec<_> = above.collect();
        let own = table.rsplit(|(_, line)| line.starts_with('[')).next()?;
        own.iter().find(|(_, line)| is_key(line.trim_start())).copied()
    };
    let (at, line) = found?;
    let from = at + line.find(name)?;
    Some(from..from + name.len())
}

/// The line that holds a byte, and where it starts.
fn line_of(text: &str, at: usize) -> (usize, &str) {
    let start = text[..at].rfind('\n').map_or(0, |i| i + 1);
    (start, text[start..].split('\n').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each fault with its text and, for duplicates, the line of the first.
    fn found(text: &str) -> Vec<(String, String, Option<usize>)> {
        let file = Source { name: "m.toml".into(), text: text.into(), start: 50 };
        let (_, errors) = toml::de::DeTable::parse_recoverable(&file.text);
        let row = |fault: Fault| {
            let place = fault.place.unwrap();
            let first =
                fault.related.first().map(|(span, _)| text[..span.start - 50].matches('\n').count() + 1);
            (fault.error.to_string(), text[place.start - 50..place.end - 50].to_owned(), first)
        };
        faults(&file, &errors).into_iter().map(row).collect()
    }

    #[test]
    fn a_duplicate_is_told_once_with_the_first() {
        let text = "[a]\nx = 1\n[b]\nx = 1\ny = 2\nx = 3\n[a]\nx = 1\n[c]\nz.z = 1\nz.z = 2";
        let twice = |name: &str, line| (format!("`{name}` is written twice"), name.to_owned(), line);
        assert_eq!(found(text), [twice("x", Some(4)), twice("a", Some(1)), twice("z", Some(10))]);
    }

    #[test]
    fn what_follows_an_open_bracket_is_not_told() {
        let faults = found("a = [1, 2\nb = 3\nc = oops\n");
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].0.starts_with("this is not valid TOML: "), "{faults:?}");
    }

    #[test]
    fn separate_mistakes_are_all_told() {
        let faults = found("a = oops\nb = 1\nc = tru\n");
        let under: Vec<&str> = faults.iter().map(|(_, under, _)| under.as_str()).collect();
        assert_eq!(under, ["oops", "tru"]);
    }
}
