//! What a command sees, what is kept of it, and every way in which it can go wrong.

use serde_json::json;

use super::*;
use crate::{
    engine::action::{Checkpoints, NoCheckpoints, Stop},
    stage::testing::Says,
};

fn exec(toml: &str) -> Exec {
    toml::from_str(toml).unwrap()
}

struct Ran {
    dir: tempfile::TempDir,
    result: Result<(), String>,
    says: Vec<String>,
}

impl Ran {
    fn text(&self, name: &str) -> String {
        self.result.as_ref().unwrap();
        fs::read_to_string(self.dir.path().join("out/out").join(name)).unwrap()
    }

    fn error(&self) -> &str {
        self.result.as_ref().unwrap_err()
    }
}

/// Runs a stage in a folder where `src/words.txt` is the user's and `blob` is the input `texts`.
fn run(toml: &str) -> Ran {
    run_with(toml, &NoCheckpoints, &Stop::default())
}

fn run_with(toml: &str, checkpoints: &dyn Checkpoints, stop: &Stop) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("base/src/words.txt", "declared"), ("blob", "artifact"), ("out/out/.", "")] {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if !text.is_empty() {
            fs::write(path, text).unwrap();
        }
    }
    fs::create_dir_all(dir.path().join("scratch")).unwrap();
    fs::create_dir_all(dir.path().join("out/out")).unwrap();
    let stage = exec(toml);
    stage.check().unwrap();
    let reads = stage.reads(&|_| dir.path().join("base")).unwrap();
    let says = Says::default();
    let artifact = Files::from([("deep/texts.jsonl".to_owned(), dir.path().join("blob"))]);
    let result = stage.run(&Cx {
        inputs: BTreeMap::from([("inputs.texts".to_owned(), artifact)]),
        reads: reads.into_iter().map(|read| (read.name, read.path)).collect(),
        out: dir.path().join("out"),
        scratch: dir.path().join("scratch"),
        log: dir.path().join("log"),
        seed: 7,
        device: "cpu".to_owned(),
        memory: None,
        progress: &says,
        checkpoints,
        stop,
    });
    Ran { result: result.map_err(|e| e.to_string()), says: says.0.into_inner().unwrap(), dir }
}

#[test]
fn files_inputs_and_placeholders() {
    let ran = run(r#"
        argv = ["sh", "-c", "cat src/words.txt {in.texts}/deep/texts.jsonl > {out}/all.txt; echo {seed} {device} $PWD = {work} >> {out}/all.txt"]
        files = ["src/*.txt"]
        inputs = { texts = "corpus" }
        outputs = ["all.txt"]
        numerics = "per-device""#);
    let work = ran.dir.path().join("scratch/work");
    assert_eq!(ran.text("all.txt"), format!("declaredartifact7 cpu {0} = {0}\n", work.display()));
}

#[test]
fn the_environment_is_cleared() {
    let ran = run(r#"
        argv = ["sh", "-c", "env | cut -d= -f1 | sort | tr '\\n' ' ' > {out}/env"]
        env = ["CARGO_MANIFEST_DIR", "NOT_SET_ANYWHERE"]
        outputs = ["env"]"#);
    let text = ran.text("env");
    let names: Vec<&str> =
        text.split(' ').filter(|name| !["", "PWD", "_", "SHLVL", "OLDPWD"].contains(name)).collect();
    assert_eq!(names, ["CARGO_MANIFEST_DIR", "HOME", "LANG", "MLA_CKPT_DIR", "PATH"]);
}

#[test]
fn undeclared_files_are_left_out_and_said() {
    let ran = run(r#"
        argv = ["sh", "-c", "cd {out}; mkdir -p shard junk; echo 1 > shard/1.bin; echo 2 > shard/2.bin; echo x > junk/x; ln -s x junk/y"]
        outputs = ["shard/*.bin"]"#);
    assert_eq!(ran.text("shard/2.bin"), "2\n");
    assert!(!ran.dir.path().join("out/out/junk").exists());
    assert_eq!(
        ran.says,
        ["left out `junk/x`, which is not in `outputs`", "left out `junk/y`, which is not in `outputs`"]
    );
}

#[test]
fn faults_of_the_command() {
    let check = |script: &str, more: &str, expected: &str| {
        let ran = run(&format!("argv = [\"sh\", \"-c\", \"{script}\"]\noutputs = [\"a\"]\n{more}"));
        assert_eq!(ran.error(), expected);
    };
    check("true", "", "the command did not write `a` into `{out}`");
    check("mkdir {out}/a", "", "the command did not write `a` into `{out}`");
    check(": > {out}/a", "", "the command left `a` empty; if that is right, set `allow-empty = true`");
    check("ln -s /etc/passwd {out}/a", "", "`a` in `{out}` is neither a file nor a folder");
    check("echo no >&2; exit 9", "", "`sh` ended with exit code 9; the last lines of its log:\n  no");
    run("argv = [\"touch\", \"{out}/a\"]\noutputs = [\"a\"]\nallow-empty = true").result.unwrap();
}

#[test]
fn faults_of_the_manifest() {
    let check = |toml: &str, param: &str, message: &str| {
        let fault = exec(toml).check().unwrap_err();
        assert_eq!((fault.param.as_str(), fault.message.as_str()), (param, message));
        assert!(fault.hint.is_some() || message.contains("glob"), "{fault}");
    };
    check("argv = []\noutputs = [\"a\"]", "argv", "is empty");
    check("argv = [\"x\"]\noutputs = []", "outputs", "is empty");
    check("argv = [\"x\", \"{in.texts}\"]\noutputs = [\"a\"]", "argv.1", "`{in.texts}` is not in `inputs`");
    check("argv = [\"{nope}\"]\noutputs = [\"a\"]", "argv.0", "there is no placeholder `{nope}`");
    check(
        "argv = [\"{device}\"]\noutputs = [\"a\"]",
        "argv.0",
        "`{device}` needs `numerics = \"per-device\"`",
    );
    check("argv = [\"x\"]\noutputs = [\"a\", \"../b\"]", "outputs.1", "`../b` does not stay inside `{out}`");
    check("argv = [\"x\"]\noutputs = [\"/b\"]", "outputs.0", "`/b` does not stay inside `{out}`");
    check(
        "argv = [\"x\"]\noutputs = [\"{a\"]",
        "outputs.0",
        "`{a` is not a glob: unclosed alternate group; missing '}' (maybe escape '{' with '[{]'?)",
    );
}

#[test]
fn faults_of_declared_files() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    for name in ["base/x", "x"] {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
    let reads = |files: &str| {
        exec(&format!("argv = [\"x\"]\noutputs = [\"a\"]\nfiles = {files}")).reads(&|_| base.clone())
    };
    let missing = reads("[\"x\", \"y*\"]").unwrap_err();
    assert_eq!((missing.param.as_str(), missing.message.as_str()), ("files.1", "no file matches `y*`"));
    let clash = reads("[\"x\", \"../x\"]").unwrap_err();
    assert_eq!(clash.param, "files.1");
    assert!(clash.message.ends_with("would both lie at `x`"), "{clash}");
    let names: Vec<String> =
        reads("[\"x\", \"./x\", \"*\"]").unwrap().into_iter().map(|read| read.name).collect();
    assert_eq!(names, ["x"], "the same file twice is one file");
}

#[test]
fn what_enters_the_key() {
    let toml = r#"
        argv = ["x", "{in.texts}"]
        files = ["src/*.txt"]
        inputs = { texts = "corpus" }
        outputs = ["a"]
        env = ["CARGO_PKG_NAME", "NOT_SET_ANYWHERE"]"#;
    let hash = blake3::hash(b"mla-run").to_hex().to_string();
    let expected = json!({
        "argv": ["x", "{in.texts}"], "inputs": {"texts": null}, "files": [null], "outputs": ["a"], "allow-empty": false,
        "env": [["CARGO_PKG_NAME", hash], ["NOT_SET_ANYWHERE", null]], "numerics": "bitwise"
    });
    assert_eq!(serde_json::to_value(exec(toml)).unwrap(), expected);
    let port = InputPort { port: "inputs.texts".into(), kind: "any", from: "corpus".to_owned() };
    assert_eq!(exec(toml).inputs(), [port]);
    assert_eq!(exec(toml).numerics(), Numerics::Bitwise);
    assert_eq!(
        exec("argv = [\"x\"]\noutputs = [\"a\"]\nnumerics = \"per-device\"").numerics(),
        Numerics::PerDevice
    );
}

#[test]
fn an_environment_variable_needs_a_name() {
    let error = toml::from_str::<Exec>("argv = [\"x\"]\noutputs = [\"a\"]\nenv = [\"A=B\"]").unwrap_err();
    assert_eq!(error.message(), "expected the name of an environment variable");
}

/// Keeps the newest checkpoint in a folder.
struct Kept(tempfile::TempDir);

impl Checkpoints for Kept {
    fn latest(&self) -> io::Result<Option<Files>> {
        let path = self.0.path().join("step");
        Ok(path.exists().then(|| Files::from([("step".to_owned(), path)])))
    }
    fn publish(&self, dir: &Path) -> io::Result<()> {
        fs::rename(dir.join("step"), self.0.path().join("step"))
    }
}

const COUNTS: &str = r#"
    argv = ["sh", "-c", """
        n=$(cat $MLA_RESUME_FROM/step 2>/dev/null || echo 0)
        echo $((n + 1)) > $MLA_CKPT_DIR/step
        [ $n -ge 2 ] || exit 75
        echo $n > {out}/n"""]
    outputs = ["n"]"#;

#[test]
fn a_command_that_saves_and_ends_with_75_goes_on_where_it_was() {
    let kept = Kept(tempfile::tempdir().unwrap());
    for _ in 0..2 {
        let ran = run_with(COUNTS, &kept, &Stop::default());
        assert!(ran.error().contains("exit code 75"), "{}", ran.error());
    }
    assert_eq!(run_with(COUNTS, &kept, &Stop::default()).text("n"), "2\n");
}

#[test]
fn what_a_stopped_command_saves_is_kept_and_what_a_failed_one_saves_is_not() {
    let kept = Kept(tempfile::tempdir().unwrap());
    let fails = COUNTS.replace("exit 75", "exit 1");
    assert!(run_with(&fails, &kept, &Stop::default()).error().contains("exit code 1"));
    assert_eq!(kept.latest().unwrap(), None);
    let stops = r#"
        argv = ["sh", "-c", "trap 'echo 5 > $MLA_CKPT_DIR/step; exit 0' TERM; touch {work}/ready; while :; do sleep 0.01; done"]
        outputs = ["n"]"#;
    let stop = Stop::default();
    let ran = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(300));
            stop.raise();
        });
        run_with(stops, &kept, &stop)
    });
    assert_eq!(ran.error(), "stopped before the end");
    assert_eq!(fs::read_to_string(&kept.latest().unwrap().unwrap()["step"]).unwrap(), "5\n");
}
