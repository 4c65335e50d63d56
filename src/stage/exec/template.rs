//! Placeholders in the words of a command: `{out}`, `{in.texts}`, `{seed}`. Knows no process and no file.

/// A piece of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// Text that stands for itself.
    Text(&'a str),
    /// `{in.NAME}`: the folder that holds the files of an input.
    Input(&'a str),
    /// `{out}`: the folder for outputs.
    Out,
    /// `{work}`: the working directory.
    Work,
    /// `{seed}`: the stage's seed.
    Seed,
    /// `{device}`: what `--device` chose.
    Device,
    /// `{shard}`: the number of the shard.
    Shard,
    /// `{shards}`: how many shards there are.
    Shards,
}

/// Splits a word into its pieces; `{{` and `}}` stand for a brace. The error says what is wrong with the word.
pub(super) fn parse(word: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let mut rest = word;
    while let Some(at) = rest.find(['{', '}']) {
        if at > 0 {
            pieces.push(Piece::Text(&rest[..at]));
        }
        let brace = &rest[at..=at];
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix(brace) {
            pieces.push(Piece::Text(brace));
            rest = tail;
        } else if brace == "}" {
            return Err(format!("`{word}` has a `}}` without a `{{`"));
        } else {
            let end = after.find('}').ok_or_else(|| format!("`{word}` has a `{{` without a `}}`"))?;
            pieces.push(placeholder(&after[..end])?);
            rest = &after[end + 1..];
        }
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    Ok(pieces)
}

fn placeholder(name: &str) -> Result<Piece<'_>, String> {
    match name {
        "out" => Ok(Piece::Out),
        "work" => Ok(Piece::Work),
        "seed" => Ok(Piece::Seed),
        "device" => Ok(Piece::Device),
        "shard" => Ok(Piece::Shard),
        "shards" => Ok(Piece::Shards),
        _ => name
            .strip_prefix("in.")
            .filter(|input| !input.is_empty())
            .map(Piece::Input)
            .ok_or_else(|| format!("there is no placeholder `{{{name}}}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_placeholders() {
        use Piece::{Device, Input, Out, Seed, Text, Work};
        let check = |word: &str, expected: &[Piece<'_>]| assert_eq!(parse(word).unwrap(), expected, "{word}");
        check("", &[]);
        check("plain", &[Text("plain")]);
        check("{out}/a.txt", &[Out, Text("/a.txt")]);
        check("--in={in.texts}/texts.jsonl", &[Text("--in="), Input("texts"), Text("/texts.jsonl")]);
        check("{seed}{device}{work}", &[Seed, Device, Work]);
        check("{{{out}}}", &[Text("{"), Out, Text("}")]);
        check("é{{out}}", &[Text("é"), Text("{"), Text("out"), Text("}")]);
    }

    #[test]
    fn faults_name_the_word() {
        let check = |word: &str, expected: &str| assert_eq!(parse(word).unwrap_err(), expected);
        check("{oops}", "there is no placeholder `{oops}`");
        check("{in.}", "there is no placeholder `{in.}`");
        check("a{out", "`a{out` has a `{` without a `}`");
        check("a}b", "`a}b` has a `}` without a `{`");
    }
}
