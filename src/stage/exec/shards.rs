//! A command run in shards: each sees all inputs and its number, and their files are laid together. Knows nothing of what the
//! command does.

use std::{collections::BTreeMap, fs};

use serde_json::{Value, json};

use super::{
    Exec, at,
    template::{Piece, parse},
};
use crate::{
    artifact::{Artifact, files::FileSet},
    engine::action::{Cx, Failure},
    stage::{
        Invalid, Stage,
        shards::{self, Shard, Sharded},
    },
};

/// Two shards wrote one file.
#[derive(Debug, thiserror::Error)]
#[error("shards {first} and {second} both wrote `{name}`: let `{{shard}}` be part of its name")]
struct Twice {
    name: String,
    first: usize,
    second: usize,
}

impl Sharded for Exec {
    fn check_shards(&self) -> Result<(), Invalid> {
        self.check_for(true)?;
        let numbered = |word: &String| parse(word).is_ok_and(|pieces| pieces.contains(&Piece::Shard));
        if self.argv.iter().any(numbered) {
            return Ok(());
        }
        let why = "does not use `{shard}`, so every shard would do the same";
        Err(Invalid::new("argv", why)
            .hint("`{shard}` is the shard's number, from 0, and `{shards}` how many there are"))
    }

    fn shard_params(&self, shard: Shard) -> Value {
        let params = serde_json::to_value(self).expect("parameters are plain data with string keys");
        json!({ "shard": shard.index, "shards": shard.of, "params": params })
    }

    fn run_shard(&self, shard: Shard, cx: &Cx<'_>) -> Result<(), Failure> {
        self.run_as(Some(shard), cx)
    }

    fn merge_params(&self) -> Value {
        Value::Null
    }

    /// Copies; where the file system can, that shares the bytes.
    fn merge(&self, of: usize, cx: &Cx<'_>) -> Result<(), Failure> {
        let out = cx.output(Self::OUTPUTS[0].name);
        let mut writers: BTreeMap<String, usize> = BTreeMap::new();
        cx.progress.phase("merging", Some(of as u64), "shards");
        for shard in 0..of {
            let files = cx.input(&shards::merge_port(Self::OUTPUTS[0].name, shard))?;
            for (name, from) in FileSet::load(files).map_err(Failure::stage)?.0 {
                cx.check_stop()?;
                if let Some(first) = writers.insert(name.clone(), shard) {
                    return Err(Failure::stage(Twice { name, first, second: shard }));
                }
                let path = out.join(name);
                let parent = path.parent().unwrap_or(&out);
                fs::create_dir_all(parent).map_err(at(parent))?;
                fs::copy(&from, &path).map_err(at(&path))?;
            }
            cx.progress.advance(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::testing::Bench;

    fn exec(argv: &str) -> Exec {
        toml::from_str(&format!("argv = ['sh', '-c', '{argv}']\noutputs = ['**']")).unwrap()
    }

    #[test]
    fn each_shard_sees_its_number_and_their_files_lie_together() {
        let stage = exec("mkdir {out}/d; echo {shard} of {shards} > {out}/d/{shard}.txt");
        assert_eq!(stage.check_shards(), Ok(()));
        let bench = Bench::new().run_shards(&stage, 3).unwrap();
        let texts: Vec<(String, Vec<u8>)> = bench.bytes().into_iter().collect();
        let expected = |i: usize| (format!("out/d/{i}.txt"), format!("{i} of 3\n").into_bytes());
        assert_eq!(texts, [expected(0), expected(1), expected(2)]);
    }

    #[test]
    fn a_file_of_two_shards_is_refused() {
        let stage = exec("echo {shard} > {out}/same");
        let error = Bench::new().run_shards(&stage, 3).err().unwrap().to_string();
        assert_eq!(error, "shards 0 and 1 both wrote `same`: let `{shard}` be part of its name");
    }

    #[test]
    fn the_number_belongs_to_commands_with_shards() {
        let error = exec("echo {shard} > {out}/x").check().unwrap_err();
        assert_eq!((&*error.param, &*error.message), ("argv.2", "`{shard}` needs `shards = N`"));
        let error = exec("echo {{shard}} > {out}/x").check_shards().unwrap_err();
        assert_eq!(error.message, "does not use `{shard}`, so every shard would do the same");
        assert_eq!(exec("echo {shard}{").check_shards().unwrap_err().param, "argv.2");
    }

    #[test]
    fn the_number_enters_the_key_and_the_rest_with_it() {
        let stage = exec("echo {shard}");
        let key = |index, of| stage.shard_params(Shard { index, of });
        assert!(key(0, 2) != key(1, 2) && key(0, 2) != key(0, 3));
        assert_eq!(key(0, 2)["params"]["outputs"], json!(["**"]));
    }
}
