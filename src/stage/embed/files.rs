//! The files of a transformer that embeds: which are read, and what the small ones say. Knows no weights.

use std::path::Path;

use serde_json::Value;

use crate::{
    artifact::Files,
    model::text_encoder::Pooling,
    stage::{Invalid, Read},
};

const POOLING: &str = "1_Pooling/config.json";
const SENTENCES: &str = "sentence_bert_config.json";

/// The files of a repository that change vectors.
pub(super) const GLOBS: [&str; 5] = ["config.json", "tokenizer.json", SENTENCES, POOLING, "*.safetensors"];

/// The files of a model's folder that change its vectors, under their own names.
pub(super) fn of_model(folder: &Path) -> Result<Vec<Read>, Invalid> {
    let fault = |what: &str| {
        Invalid::new("path", format!("{what} `{}`", folder.display()))
            .hint("a model's folder holds config.json, tokenizer.json and *.safetensors; it is relative to the manifest")
    };
    let entries = std::fs::read_dir(folder).map_err(|_| fault("there is no folder"))?;
    let mut names: Vec<String> = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| fault(&format!("cannot list ({error})")))?.file_name();
        let name = name.to_string_lossy().into_owned();
        let small = ["config.json", "tokenizer.json", SENTENCES].contains(&&*name);
        names.extend(Some(name).filter(|name| small || name.ends_with(".safetensors")));
    }
    names.extend(folder.join(POOLING).is_file().then(|| POOLING.to_owned()));
    names.sort();
    for needed in ["config.json", "tokenizer.json"] {
        if !names.iter().any(|name| name == needed) {
            return Err(fault(&format!("there is no {needed} in")));
        }
    }
    if !names.iter().any(|name| name.ends_with(".safetensors")) {
        return Err(fault("there is no *.safetensors in"));
    }
    Ok(names.into_iter().map(|name| Read { path: folder.join(&name), name }).collect())
}

/// The pooling that the folder asks for; `Err` names one that is not known.
pub(super) fn pooling(files: &Files) -> Result<Option<Pooling>, String> {
    let Some(json) = read(files, POOLING)? else { return Ok(None) };
    let asked: Vec<&String> =
        json.as_object().into_iter().flatten().filter(|(_, on)| **on == true).map(|(name, _)| name).collect();
    match asked
        .iter()
        .map(|name| name.as_str())
        .filter(|name| name.starts_with("pooling_mode_"))
        .collect::<Vec<_>>()[..]
    {
        ["pooling_mode_cls_token"] => Ok(Some(Pooling::Cls)),
        ["pooling_mode_mean_tokens"] => Ok(Some(Pooling::Mean)),
        ref other => Err(format!(
            "{POOLING} asks for {}; set `pooling` to `cls` or `mean`",
            if other.is_empty() { "nothing".to_owned() } else { other.join(" and ") }
        )),
    }
}

/// The most tokens that the folder asks for.
pub(super) fn max_tokens(files: &Files) -> Result<Option<usize>, String> {
    let json = read(files, SENTENCES)?;
    Ok(json.and_then(|json| json.get("max_seq_length")?.as_u64()).map(|most| most as usize))
}

fn read(files: &Files, name: &str) -> Result<Option<Value>, String> {
    let Some(path) = files.get(name) else { return Ok(None) };
    let bytes = std::fs::read(path).map_err(|error| format!("cannot read {name}: {error}"))?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| format!("{name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    const WHOLE: [(&str, &str); 5] = [
        ("config.json", "{}"),
        ("tokenizer.json", "{}"),
        ("model.safetensors", ""),
        ("README.md", "not read"),
        ("1_Pooling/config.json", "{\"pooling_mode_cls_token\": false, \"pooling_mode_mean_tokens\": true}"),
    ];

    fn files(dir: &tempfile::TempDir) -> Files {
        of_model(dir.path()).unwrap().into_iter().map(|read| (read.name, read.path)).collect()
    }

    #[test]
    fn what_changes_vectors_is_read_and_nothing_else() {
        let dir = folder(&WHOLE);
        let names: Vec<String> = files(&dir).into_keys().collect();
        assert_eq!(names, ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"]);
        for lacking in ["config.json", "tokenizer.json", "safetensors"] {
            let rest: Vec<(&str, &str)> = WHOLE
                .into_iter()
                .filter(|(name, _)| !name.ends_with(lacking) || name.starts_with('1'))
                .collect();
            let error = of_model(folder(&rest).path()).unwrap_err();
            assert!(error.message.contains(lacking), "{error}");
        }
        assert!(of_model(Path::new("/nowhere")).unwrap_err().message.starts_with("there is no folder"));
    }

    #[test]
    fn pooling_and_length_are_what_the_folder_says() {
        let mut with = WHOLE.to_vec();
        with.push(("sentence_bert_config.json", "{\"max_seq_length\": 256}"));
        let dir = folder(&with);
        assert_eq!(
            (pooling(&files(&dir)), max_tokens(&files(&dir))),
            (Ok(Some(Pooling::Mean)), Ok(Some(256)))
        );
        let dir = folder(&WHOLE[..3]);
        assert_eq!((pooling(&files(&dir)), max_tokens(&files(&dir))), (Ok(None), Ok(None)));
        let odd = [
            &WHOLE[..3],
            &[("1_Pooling/config.json", "{\"pooling_mode_max_tokens\": true, \"include_prompt\": true}")],
        ]
        .concat();
        let why = pooling(&files(&folder(&odd))).unwrap_err();
        assert_eq!(
            why,
            "1_Pooling/config.json asks for pooling_mode_max_tokens; set `pooling` to `cls` or `mean`"
        );
        let broken = [&WHOLE[..3], &[("1_Pooling/config.json", "{")]].concat();
        assert!(pooling(&files(&folder(&broken))).unwrap_err().starts_with("1_Pooling/config.json: EOF"));
    }
}
