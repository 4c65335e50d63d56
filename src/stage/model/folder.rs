//! The files of a model's folder, or one GGUF file. Knows names, and reads nothing but a list.

use std::{fs, path::Path};

use super::{GGUF, SIDE_FILES};
use crate::stage::{Invalid, Read};

const HINT: &str =
    "a model's folder holds config.json and *.safetensors, or one .gguf file; it is relative to the manifest";

/// What is read of the model at `path`, under names of its own; a GGUF file is `model.gguf`.
pub(super) fn reads(path: &Path) -> Result<Vec<Read>, Invalid> {
    if path.is_file() && is_gguf(path) {
        return Ok(vec![Read { name: GGUF.to_owned(), path: path.to_owned() }]);
    }
    let fault = |what: &str| Invalid::new("path", format!("{what} `{}`", path.display()));
    let entries = fs::read_dir(path).map_err(|_| fault("there is no folder").hint(HINT))?;
    let (mut reads, mut ggufs) = (Vec::new(), Vec::new());
    for entry in entries {
        let path = entry.map_err(|e| fault(&format!("cannot list ({e})")))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.starts_with('.') || !path.is_file() {
            continue;
        }
        if is_gguf(&path) {
            ggufs.push(path);
        } else if name.ends_with(".safetensors") || SIDE_FILES.iter().any(|end| name.ends_with(end)) {
            reads.push(Read { name: name.to_owned(), path: path.clone() });
        }
    }
    reads.sort();
    let has = |end: &str| reads.iter().any(|read| read.name.ends_with(end));
    match (has(".safetensors"), &mut *ggufs) {
        (true, _) if reads.iter().all(|read| read.name != "config.json") => {
            Err(fault("there is no config.json in").hint(HINT))
        }
        (true, _) => Ok(reads),
        (false, []) if reads.iter().all(|read| read.name != "config.json") => {
            Err(fault("there is no config.json in").hint(HINT))
        }
        (false, []) => Err(fault("there is no *.safetensors in").hint(HINT)),
        (false, [one]) => {
            // The file has a configuration of its own.
            reads.retain(|read| read.name != "config.json");
            reads.push(Read { name: GGUF.to_owned(), path: std::mem::take(one) });
            reads.sort();
            Ok(reads)
        }
        (false, _) => Err(fault("there are several .gguf files in")
            .hint("name one of them: `path = \"models/model-Q8_0.gguf\"`")),
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("gguf"))
}
