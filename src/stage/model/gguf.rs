//! A Llama in a GGUF file as a checkpoint in Hugging Face layout: configuration, tensors and tokenizer, a piece of a tensor at a time. Knows
//! how llama.cpp writes it (its `gguf-py` and `convert_hf_to_gguf.py`); the blocks are unpacked by candle.

mod meta;
mod tensors;
mod tokenizer;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use candle_core::quantized::gguf_file::Content;

use self::{meta::Meta, tensors::Tensors};
use super::write_config;
use crate::{
    artifact::{
        ArtifactError,
        checkpoint::shards::{self, Spec},
    },
    engine::action::{Cx, Failure},
};

/// Why a GGUF file could not be imported.
#[derive(Debug, thiserror::Error)]
pub(super) enum GgufError {
    /// Not a GGUF file, a damaged one, or one with blocks of another kind.
    #[error(
        "the GGUF file cannot be read: {0}; types that are imported: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K"
    )]
    Content(candle_core::Error),
    /// Metadata that is missing or that the model here cannot honour.
    #[error("the GGUF file's metadata: {0}")]
    Meta(String),
    /// Every tensor that cannot be imported.
    #[error("the GGUF file's tensors cannot be imported:\n  {}", .0.join("\n  "))]
    Tensors(Vec<String>),
    /// A tokenizer that cannot be made from the metadata.
    #[error(
        "the GGUF file's tokenizer: {0}; put the model's own beside `path`: `tokenizer = \"tokenizer.json\"`"
    )]
    Tokenizer(String),
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// An open GGUF file.
struct Gguf {
    path: PathBuf,
    file: File,
    /// Its size in bytes.
    size: u64,
    content: Content,
}

impl Gguf {
    fn open(path: &Path) -> Result<Self, GgufError> {
        let io = |source| GgufError::Io { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let content = Content::read(&mut io::BufReader::new(&mut file)).map_err(GgufError::Content)?;
        Ok(Self { path: path.to_owned(), file, size, content })
    }
}

/// Writes configuration, weights and, unless `tokenizer_given`, the tokenizer into `dir`. Names, types and sizes are checked before the
/// first byte is written.
pub(super) fn import(path: &Path, dir: &Path, tokenizer_given: bool, cx: &Cx<'_>) -> Result<(), Failure> {
    let gguf = Gguf::open(path).map_err(Failure::stage)?;
    let meta = Meta(&gguf.content.metadata);
    let llama = meta.llama().map_err(Failure::stage)?;
    let tensors = Tensors::of(&gguf, &llama).map_err(Failure::stage)?;
    let config = llama.config(&tensors, &gguf).map_err(Failure::stage)?;
    if !tokenizer_given {
        for (name, bytes) in tokenizer::files(meta).map_err(Failure::stage)? {
            let path = dir.join(name);
            std::fs::write(&path, bytes).map_err(|e| Failure::stage(ArtifactError::io(&path)(e)))?;
        }
    }
    let specs: Vec<Spec> = tensors.specs();
    cx.progress.phase("unpacking", Some(specs.iter().map(Spec::bytes).sum()), "bytes");
    shards::write(dir, specs, shards::LIMIT, &mut |spec, sink| {
        tensors.pieces(&gguf, &spec.name, &mut |bytes| {
            cx.check_stop()?;
            sink.put(bytes).map_err(Failure::stage)?;
            cx.progress.advance(bytes.len() as u64);
            Ok(())
        })
    })?;
    write_config(dir, &config)
}

#[cfg(test)]
mod tests;
