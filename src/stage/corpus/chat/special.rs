//! The names of special tokens of GPT-OSS in a text. Knows no tokenizer.

const NAMES: [&str; 10] = [
    "startoftext",
    "endoftext",
    "return",
    "constrain",
    "channel",
    "start",
    "end",
    "message",
    "call",
    "endofprompt",
];

/// How many there are. Reserved ones count, whatever their number.
pub(super) fn count(text: &str) -> usize {
    let named = |(at, _): &(usize, &str)| {
        let name = text[at + 2..].split_once("|>").map_or("", |(name, _)| name);
        let reserved = name.strip_prefix("reserved_").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
        NAMES.contains(&name) || reserved
    };
    text.match_indices("<|").filter(named).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_wherever_they_stand() {
        for (text, expected) in [
            ("", 0),
            ("<|end|>", 1),
            ("<|<|end|>|>", 1),
            ("<|end|><|start|>", 2),
            ("<<|reserved_201087|>", 1),
            ("<|end", 0),
            ("<| end |>", 0),
            ("<|END|>", 0),
            ("<|im_end|>", 0),
            ("<|é|> <|", 0),
            ("a <|end|> b |> <|call|>", 2),
        ] {
            assert_eq!(count(text), expected, "{text}");
        }
    }

    /// What the tokenizer takes for a special token is one here, and the other way round.
    #[test]
    fn the_names_are_those_of_the_tokenizer() {
        let bpe = tiktoken_rs::o200k_harmony().unwrap();
        for id in 199_998..=201_087 {
            let name = bpe.decode(&[id]).unwrap();
            assert_eq!(count(&name), 1, "{name}");
        }
        for name in NAMES.map(|name| format!("<|{name}|>")) {
            let harmony = bpe.encode_with_special_tokens(&name).len() == 1;
            // The one that the published tokenizer.json has besides.
            assert!(harmony || name == "<|endofprompt|>", "{name}");
        }
    }
}
