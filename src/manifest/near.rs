//! "Did you mean": the nearest of the known names. Knows nothing else.

/// The known name nearest to `word`, if one is near enough to be meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |s: &str| s.to_lowercase().replace('_', "-");
    let word = plain(word);
    let score = |name: &str| strsim::damerau_levenshtein(&word, &plain(name));
    let limit = (word.chars().count() / 3).max(1);
    let best = known.into_iter().map(|name| (score(name), name)).min()?;
    (best.0 <= limit).then_some(best.1)
}

/// ``did you mean `x`?``, or what there is to choose from.
pub fn suggest<'a>(word: &str, what: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    if let Some(name) = nearest(word, known.iter().copied()) {
        return format!("did you mean `{name}`?");
    }
    match known.as_slice() {
        [] => format!("there are no {what}"),
        many => format!("known {what}: {}", list(many)),
    }
}

/// `a`, `b`, `c`, the long tail counted.
pub fn list(names: &[&str]) -> String {
    const SHOWN: usize = 12;
    let mut text: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    if names.len() > SHOWN {
        text.push(format!("and {} more", names.len() - SHOWN));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let known = ["corpus", "embed", "top_k"];
        assert_eq!(nearest("corpsu", known), Some("corpus"));
        assert_eq!(nearest("Embed", known), Some("embed"));
        assert_eq!(nearest("top-k", known), Some("top_k"));
        assert_eq!(nearest("svd", known), None);
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn a_third_of_the_letters_may_be_wrong_and_always_one() {
        for (word, known, near) in [
            ("a", "b", true),
            ("ab", "ac", true),
            ("ab", "cd", false),
            ("abcd", "abxy", false),
            ("abcdef", "abcdxy", true),
            ("abcdef", "abcxyz", false),
            ("abcdefghi", "abcdefxyz", true),
            ("ba", "ab", true),
            ("éé", "ée", true),
        ] {
            assert_eq!(nearest(word, [known]).is_some(), near, "{word} for {known}");
        }
        assert_eq!(
            nearest("rank", ["ranks", "bank", "rang"]),
            Some("bank"),
            "of equally near ones the first by name"
        );
    }

    #[test]
    fn suggestions_fall_back_to_the_list() {
        assert_eq!(suggest("corpsu", "stages", ["corpus"]), "did you mean `corpus`?");
        assert_eq!(suggest("zzz", "stages", ["corpus", "embed"]), "known stages: `corpus`, `embed`");
        assert_eq!(suggest("zzz", "stages", []), "there are no stages");
        let many: Vec<String> = (0..20).map(|i| format!("stage-{i:02}")).collect();
        let text = suggest("q", "stages", many.iter().map(String::as_str));
        assert!(text.ends_with("`stage-11`, and 8 more"), "{text}");
    }
}
