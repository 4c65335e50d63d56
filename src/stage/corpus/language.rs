//! The language filter: which language a text is written in, by its trigrams and letters. Knows no source.

use whatlang::Lang;

use crate::stage::Invalid;

/// Characters that decide: what is further back says little more, and time stays bounded.
const SAMPLE: usize = 8_192;

/// Languages by their two letters (ISO 639-1). Those without stand in [`Lang`] by their three only.
const SHORT: &[(&str, Lang)] = &[
    ("af", Lang::Afr),
    ("ak", Lang::Aka),
    ("am", Lang::Amh),
    ("ar", Lang::Ara),
    ("az", Lang::Aze),
    ("be", Lang::Bel),
    ("bg", Lang::Bul),
    ("bn", Lang::Ben),
    ("ca", Lang::Cat),
    ("cs", Lang::Ces),
    ("cy", Lang::Cym),
    ("da", Lang::Dan),
    ("de", Lang::Deu),
    ("el", Lang::Ell),
    ("en", Lang::Eng),
    ("eo", Lang::Epo),
    ("es", Lang::Spa),
    ("et", Lang::Est),
    ("fa", Lang::Pes),
    ("fi", Lang::Fin),
    ("fr", Lang::Fra),
    ("gu", Lang::Guj),
    ("he", Lang::Heb),
    ("hi", Lang::Hin),
    ("hr", Lang::Hrv),
    ("hu", Lang::Hun),
    ("hy", Lang::Hye),
    ("id", Lang::Ind),
    ("it", Lang::Ita),
    ("ja", Lang::Jpn),
    ("jv", Lang::Jav),
    ("ka", Lang::Kat),
    ("km", Lang::Khm),
    ("kn", Lang::Kan),
    ("ko", Lang::Kor),
    ("la", Lang::Lat),
    ("lt", Lang::Lit),
    ("lv", Lang::Lav),
    ("mk", Lang::Mkd),
    ("ml", Lang::Mal),
    ("mr", Lang::Mar),
    ("my", Lang::Mya),
    ("nb", Lang::Nob),
    ("ne", Lang::Nep),
    ("nl", Lang::Nld),
    ("or", Lang::Ori),
    ("pa", Lang::Pan),
    ("pl", Lang::Pol),
    ("pt", Lang::Por),
    ("ro", Lang::Ron),
    ("ru", Lang::Rus),
    ("si", Lang::Sin),
    ("sk", Lang::Slk),
    ("sl", Lang::Slv),
    ("sn", Lang::Sna),
    ("sr", Lang::Srp),
    ("sv", Lang::Swe),
    ("ta", Lang::Tam),
    ("te", Lang::Tel),
    ("th", Lang::Tha),
    ("tk", Lang::Tuk),
    ("tl", Lang::Tgl),
    ("tr", Lang::Tur),
    ("uk", Lang::Ukr),
    ("ur", Lang::Urd),
    ("uz", Lang::Uzb),
    ("vi", Lang::Vie),
    ("yi", Lang::Yid),
    ("zh", Lang::Cmn),
    ("zu", Lang::Zul),
];

fn known(code: &str) -> Option<Lang> {
    SHORT.iter().find(|(short, _)| *short == code).map(|(_, lang)| *lang)
}

/// Checks the codes. `at` is where they stand in the manifest: `sources.0.languages`.
pub(super) fn check(codes: &[String], at: &str) -> Result<(), Invalid> {
    if codes.is_empty() {
        return Err(Invalid::new(at, "no language is allowed, so no document would stay")
            .hint("leave it out to take every language"));
    }
    match codes.iter().find(|code| known(code).is_none()) {
        Some(code) => {
            let all: Vec<_> = SHORT.iter().map(|(short, _)| *short).collect();
            Err(Invalid::new(at, format!("the language `{code}` is not known"))
                .hint(format!("known are {}", all.join(", "))))
        }
        None => Ok(()),
    }
}

/// Whether the text is written in one of the languages. One without letters is in none. The same on every machine: counts of
/// trigrams and letters, added up and divided without any function of the system's library.
pub(super) fn is_one_of(codes: &[String], text: &str) -> bool {
    let end = text.char_indices().nth(SAMPLE).map_or(text.len(), |(at, _)| at);
    let found = whatlang::detect_lang(&text[..end]);
    found.is_some_and(|found| codes.iter().any(|code| known(code) == Some(found)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [(&str, &str); 6] = [
        ("en", "The model reads the whole document before it answers, and nothing of what it read is lost."),
        ("de", "Das Modell liest das ganze Dokument, bevor es antwortet, und nichts davon geht verloren."),
        ("fr", "Le modèle lit tout le document avant de répondre, et rien de ce qu'il a lu n'est perdu."),
        ("ru", "Модель читает весь документ, прежде чем ответить, и ничего из прочитанного не теряется."),
        ("zh", "模型在回答之前阅读整个文档，所读内容不会丢失。"),
        ("ja", "モデルは答える前に文書全体を読み、読んだ内容を失うことはありません。"),
    ];

    fn one_of(codes: &[&str], text: &str) -> bool {
        let codes: Vec<String> = codes.iter().map(|&code| code.to_owned()).collect();
        check(&codes, "languages").unwrap();
        is_one_of(&codes, text)
    }

    #[test]
    fn a_text_is_in_its_own_language_only() {
        for (code, text) in TEXTS {
            for (other, _) in TEXTS {
                assert_eq!(one_of(&[other], text), other == code, "{text} in {other}");
            }
        }
        assert!(one_of(&["fr", "en"], TEXTS[0].1));
    }

    #[test]
    fn texts_without_letters_are_in_no_language() {
        for text in ["", " \n", "12 + 34 = 46", "?!"] {
            assert!(!one_of(&["en", "de"], text), "{text:?}");
        }
    }

    #[test]
    fn only_the_start_of_a_long_text_decides() {
        let [english, russian] = [TEXTS[0].1, TEXTS[3].1].map(|text| format!("{text}\n"));
        let long = english.repeat(SAMPLE / english.len() + 1) + &russian.repeat(1000);
        assert!(one_of(&["en"], &long));
        let cut = "é".repeat(SAMPLE - 1) + "語語";
        assert!(!one_of(&["zh"], &cut), "a cut stands between characters");
    }

    #[test]
    fn codes_that_are_not_known_are_named_with_those_that_are() {
        let error = check(&["en".into(), "xx".into()], "sources.0.languages").unwrap_err();
        assert_eq!(
            (&*error.param, &*error.message),
            ("sources.0.languages", "the language `xx` is not known")
        );
        assert!(error.hint.unwrap().contains("da, de, el, en"));
        assert!(check(&[], "a").is_err());
    }

    #[test]
    fn every_language_of_the_crate_has_a_code() {
        let mut named: Vec<Lang> = SHORT.iter().map(|(_, lang)| *lang).collect();
        named.sort_unstable_by_key(Lang::code);
        let mut all = Lang::all().to_vec();
        all.sort_unstable_by_key(Lang::code);
        assert_eq!(named, all);
        assert!(SHORT.is_sorted_by_key(|(code, _)| code));
    }
}
