//! Datasets and models of a hub, from a server on this machine: what enters keys, what is fetched when, what goes without a network,
//! and what is said when something is wrong.

use std::{fs, process::Command, time::Duration};

use mla_run::{
    engine::{
        action::{Quiet, Stop},
        hub::{Hub, HubFailure, Repo, RepoKind},
    },
    hub::{HuggingFace, Settings},
};

use crate::harness::{
    golden::Golden,
    hub::{Fault, HubServer, oid},
    space::{Ran, Space},
};

const ROWS: &str =
    "[stage.corpus]\nsources = [{ hub = \"corpora/rows\", jsonl = \"data/*.jsonl\", name = \"web\" }]\n";

/// A project whose hub is this server and whose files of the hub lie in `hf`.
struct Project {
    space: Space,
    hub: HubServer,
}

impl Project {
    fn new(manifest: &str) -> Self {
        Self { space: Space::new(manifest), hub: HubServer::start() }
    }

    /// With the dataset that [`ROWS`] reads; returns its commit.
    fn rows() -> (Self, String) {
        let project = Self::new(ROWS);
        let commit = project.rows_are(&[("a", "one"), ("b", "two")]);
        (project, commit)
    }

    /// Makes a commit with a file for each row.
    fn rows_are(&self, rows: &[(&str, &str)]) -> String {
        let file = |(name, text): &(&str, &str)| {
            // The second file is large enough for a pointer in git.
            let pad = "x ".repeat(if *name == "b" { 600 } else { 0 });
            (format!("data/{name}.jsonl"), format!("{{\"text\": \"{text} {pad}\"}}\n").into_bytes())
        };
        let mut files: Vec<(String, Vec<u8>)> = rows.iter().map(file).collect();
        files.push(("README.md".into(), b"rows".to_vec()));
        files.push(("data/deep/c.jsonl".into(), b"not wanted".to_vec()));
        let files: Vec<(&str, &[u8])> = files.iter().map(|(path, bytes)| (&**path, &**bytes)).collect();
        self.hub.commit("datasets/corpora/rows", &files)
    }

    fn command(&self, words: &str, env: &[(&str, &str)]) -> Command {
        let mut command = self.space.command(&words.split_whitespace().collect::<Vec<_>>());
        command.env("HF_ENDPOINT", &self.hub.url).env("HF_HOME", self.space.path("hf"));
        command.envs(env.iter().copied());
        command
    }

    fn run(&self, env: &[(&str, &str)]) -> Ran {
        Ran::new(&self.command("run p.toml --format json", env).output().unwrap())
    }

    fn offline(&self) -> Ran {
        self.run(&[("HF_HUB_OFFLINE", "1")])
    }
}

#[test]
fn a_dataset_is_read_once_and_a_commit_needs_no_network() {
    let (project, commit) = Project::rows();
    let first = project.run(&[]).ok().ran(["corpus"]);
    let asked = project.hub.requests();
    assert_eq!(asked[0], "GET /api/datasets/corpora/rows/revision/main");
    assert_eq!(asked[1], format!("GET /api/datasets/corpora/rows/tree/{commit}/data"));
    assert!(
        !asked.iter().any(|request| request.ends_with("README.md") || request.contains("deep")),
        "{asked:?}"
    );

    // What `main` is may have changed, so that is asked, and nothing else.
    project.run(&[]).ok().hits(1);
    assert_eq!(project.hub.requests(), ["GET /api/datasets/corpora/rows/revision/main"]);
    project.space.edit("jsonl =", &format!("revision = \"{commit}\", jsonl ="));
    let pinned = project.run(&[]).ok().hits(1);
    assert_eq!((project.hub.requests(), pinned.digests()), (vec![], first.digests()));
}

#[test]
fn evaluation_data_of_a_hub_is_looked_for() {
    let rule = "decontaminate = { hub = \"eval/quiz\", jsonl = \"test.jsonl\", ngram = 3 }";
    let (project, _) = Project::rows();
    project.hub.commit("datasets/eval/quiz", &[("test.jsonl", b"{\"text\": \"one two x x x x\"}\n")]);
    project.space.edit("sources =", &format!("{rule}\nsources ="));
    let told = project.run(&[]).ok();
    assert!(told.stderr.contains("1 of 2 documents kept; 1 contaminated"), "{}", told.stderr);
    project.offline().ok().hits(1);
}

#[test]
fn a_branch_that_moved_reruns_what_its_files_change() {
    let (project, _) = Project::rows();
    project.run(&[]).ok().ran(["corpus"]);
    // A commit that touches other files only is the same content.
    project.hub.commit(
        "datasets/corpora/rows",
        &[
            ("data/a.jsonl", b"{\"text\": \"one \"}\n"),
            ("data/b.jsonl", format!("{{\"text\": \"two {}\"}}\n", "x ".repeat(600)).as_bytes()),
            ("NEWS", b"news"),
        ],
    );
    project.run(&[]).ok().hits(1);
    project.rows_are(&[("a", "one"), ("b", "three")]);
    let ran = project.run(&[]).ok().ran(["corpus"]);
    assert_eq!(ran.why("corpus"), "file `web/data/b.jsonl` of the hub has other content");
    project.rows_are(&[("a", "one"), ("b", "three"), ("d", "four")]);
    let plan = Ran::new(&project.command("plan p.toml --format json", &[]).output().unwrap()).ok();
    assert_eq!(plan.why("corpus"), "file `web/data/d.jsonl` of the hub is new");
}

#[test]
fn without_a_network_what_is_here_counts() {
    let (project, commit) = Project::rows();
    let told = project.offline().exits(1).stage("corpus")["why"].to_string();
    assert!(
        told.contains("revision `main` of `corpora/rows` is not in ") && told.contains("HF_HUB_OFFLINE"),
        "{told}"
    );
    project.run(&[]).ok();
    project.hub.requests();
    project.offline().ok().hits(1);
    // The files are here too: another cache is filled from them.
    fs::remove_dir_all(project.space.path("cache/act")).unwrap();
    project.offline().ok().ran(["corpus"]);
    assert_eq!(project.hub.requests(), [""; 0]);
    // A file that is not here is missed by name.
    fs::remove_dir_all(project.space.path("cache/act")).unwrap();
    let snapshot = format!("hf/hub/datasets--corpora--rows/snapshots/{commit}/data/a.jsonl");
    fs::remove_file(project.space.path(&snapshot)).unwrap();
    let told = project.offline().exits(1).stage("corpus")["why"].to_string();
    assert!(told.contains("`data/a.jsonl` of `corpora/rows` is not in "), "{told}");
}

/// Other tools leave a snapshot of links to blobs and no list.
#[test]
fn a_snapshot_of_another_tool_is_enough() {
    let (project, commit) = Project::rows();
    let online = project.run(&[]).ok().digests();
    fs::remove_dir_all(project.space.path("hf/hub/datasets--corpora--rows/mla-run")).unwrap();
    project.offline().ok().hits(1);
    // And where a file is missing, the others are another input.
    let snapshot =
        project.space.path(&format!("hf/hub/datasets--corpora--rows/snapshots/{commit}/data/b.jsonl"));
    fs::remove_file(snapshot).unwrap();
    let ran = project.offline().ok().ran(["corpus"]);
    assert_eq!(ran.why("corpus"), "file `web/data/b.jsonl` of the hub is gone");
    assert_ne!(ran.digests(), online);
}

#[test]
fn a_network_that_fails_now_and_then_is_no_error() {
    for fault in [Fault::Status500, Fault::Half, Fault::Spoilt] {
        let (project, _) = Project::rows();
        project.hub.fail("a.jsonl", fault, 1);
        project.run(&[]).ok().ran(["corpus"]);
        let got = project.hub.requests().iter().filter(|request| request.ends_with("a.jsonl")).count();
        assert!(got > 2, "{got} requests");
    }
}

#[test]
fn bytes_that_are_wrong_again_and_again_are_refused() {
    let (project, _) = Project::rows();
    project.hub.fail("a.jsonl", Fault::Spoilt, 99);
    let told = project.run(&[]).exits(1).stage("corpus")["why"].to_string();
    assert!(told.contains("`data/a.jsonl` of `corpora/rows` has other bytes than its commit says"), "{told}");
    assert!(project.space.tree("cache/act").is_empty(), "nothing is recorded");
}

/// The blob is shared with other tools, and one of them may have spoilt it.
#[test]
fn a_spoilt_blob_is_fetched_again() {
    let (project, commit) = Project::rows();
    let digests = project.run(&[]).ok().digests();
    fs::remove_dir_all(project.space.path("cache/act")).unwrap();
    let snapshot =
        project.space.path(&format!("hf/hub/datasets--corpora--rows/snapshots/{commit}/data/b.jsonl"));
    let mut bytes = fs::read(&snapshot).unwrap();
    bytes[20] ^= 1;
    fs::write(snapshot, bytes).unwrap();
    let told = project.offline().exits(1).stage("corpus")["why"].to_string();
    assert!(told.contains("`data/b.jsonl` with the right bytes of `corpora/rows` is not in "), "{told}");
    assert_eq!(project.run(&[]).ok().ran(["corpus"]).digests(), digests);
}

#[test]
fn what_the_hub_refuses_is_told_with_what_to_do() {
    let (project, _) = Project::rows();
    let why =
        |env: &[(&str, &str)]| project.run(env).exits(1).stage("corpus")["why"].as_str().unwrap().to_owned();
    let manifest = project.space.read("p.toml");
    project.space.file("p.toml", &manifest.replace("corpora/rows", "corpora/none"));
    let hint = "; check name and revision and, if it is private or gated, that HF_TOKEN may read it";
    assert!(why(&[]).starts_with("dataset `corpora/none`: ") && why(&[]).ends_with(hint), "{}", why(&[]));
    project.space.file("p.toml", &manifest.replace("jsonl =", "revision = \"v9\", jsonl ="));
    assert!(why(&[]).contains("v9") && why(&[]).ends_with(hint), "{}", why(&[]));
    project.space.file("p.toml", &manifest.replace("data/*.jsonl", "data/*.txt"));
    let told = why(&[]);
    assert!(told.starts_with("dataset `corpora/rows` has no file that matches `data/*.txt` at "), "{told}");
    assert!(told.ends_with("; there are 2 files, such as data/a.jsonl, data/b.jsonl"), "{told}");

    project.space.file("p.toml", &manifest);
    project.hub.gate("datasets/corpora/rows", "secret");
    assert!(why(&[]).ends_with(hint), "{}", why(&[]));
    project.run(&[("HF_TOKEN", "secret")]).ok().ran(["corpus"]);
    let gone = [("HF_ENDPOINT", "http://127.0.0.1:9")];
    assert!(why(&gone).contains("no answer from 127.0.0.1:9: "), "{}", why(&gone));
    assert!(
        why(&gone).ends_with("without a network, set HF_HUB_OFFLINE=1 to use what was fetched before"),
        "{}",
        why(&gone)
    );
}

#[test]
fn a_path_that_leads_out_of_the_folder_is_not_taken() {
    let project = Project::new(&ROWS.replace("data/*.jsonl", "**"));
    project.hub.commit(
        "datasets/corpora/rows",
        &[("a.jsonl", b"{\"text\": \"a\"}\n"), ("../../../../owned", b"{}")],
    );
    let told = project.run(&[]).exits(1).stage("corpus")["why"].to_string();
    assert!(
        told.contains("lists the file `../../../../owned`, which would lie outside its folder"),
        "{told}"
    );
}

#[test]
fn a_stop_ends_a_download_and_the_next_run_goes_on() {
    let (project, _) = Project::rows();
    project.hub.fail("data/a.jsonl", Fault::Slow, 1);
    project.rows_are(&[("a", &"long ".repeat(2_000)), ("b", "two")]);
    project.hub.fail("", Fault::Slow, 9);
    let mut child = project
        .command("run p.toml", &[])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(1_500));
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    project.run(&[]).ok().ran(["corpus"]);
}

/// A connection on which nothing comes any more is not waited for without end.
#[test]
fn a_hub_that_falls_silent_is_left() {
    let (project, _) = Project::rows();
    let hub = HuggingFace::new(Settings {
        endpoint: Some(project.hub.url.clone()),
        cache: Some(project.space.path("hf")),
        stall: Duration::from_millis(700),
        ..Settings::default()
    });
    let repo = Repo {
        prefix: "web/".into(),
        kind: RepoKind::Dataset,
        id: "corpora/rows".into(),
        revision: "main".into(),
        files: vec!["data/*.jsonl".into()],
    };
    project.hub.fail("revision/main", Fault::Hangs, 1);
    let silent = |failure: HubFailure| match failure {
        HubFailure::Passing(why) => why.to_string().starts_with("nothing has come of `corpora/rows`"),
        _ => false,
    };
    assert!(silent(hub.pin(&repo).unwrap_err()));
    let pinned = hub.pin(&repo).unwrap();
    project.hub.fail("a.jsonl", Fault::Hangs, 1);
    assert!(silent(hub.fetch(&pinned, &Quiet, &Stop::default()).unwrap_err()));
    let files = hub.fetch(&pinned, &Quiet, &Stop::default()).unwrap();
    assert_eq!(files.into_keys().collect::<Vec<_>>(), ["data/a.jsonl", "data/b.jsonl"]);
}

#[test]
fn a_model_of_the_hub_is_the_model_of_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let golden = Golden::load("gptoss-mxfp4");
    let files = golden.write(dir.path());
    let project = Project::new("[stage.model]\nhub = \"tiny/moe\"\n");
    let bytes: Vec<(String, Vec<u8>)> =
        files.iter().map(|(name, path)| (name.clone(), fs::read(path).unwrap())).collect();
    let mut all: Vec<(&str, &[u8])> = bytes.iter().map(|(name, bytes)| (&**name, &**bytes)).collect();
    all.push(("original/model.safetensors", b"another form"));
    all.push(("README.md", b"card"));
    project.hub.commit("models/tiny/moe", &all);
    let hub = project.run(&[]).ok().ran(["model"]).digests();
    assert!(!project.hub.requests().iter().any(|request| request.contains("original/")));
    project.space.file("p.toml", &format!("[stage.model]\npath = {:?}\n", dir.path()));
    assert_eq!(project.run(&[]).ok().ran(["model"]).digests(), hub);
}

#[test]
fn an_embedder_of_the_hub_is_the_embedder_of_its_folder() {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/encoder-bert");
    let project = Project::new(
        "[stage.corpus]\nsources = [{ files = \"*.md\" }]\n[stage.embed]\ntexts = \"corpus\"\nmodel = \"tiny/bert\"\n",
    );
    project.space.file("a.md", "Deep learning is\n");
    let tokenizer = serde_json::json!({
        "version": "1.0", "pre_tokenizer": { "type": "WhitespaceSplit" },
        "model": { "type": "WordLevel", "unk_token": "[UNK]", "vocab": { "[UNK]": 0, "Deep": 1, "learning": 2, "is": 3 } },
    });
    let folder = project.space.path("bert");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden.join(name), folder.join(name)).unwrap();
    }
    let names = ["config.json", "model.safetensors", "tokenizer.json"];
    let bytes = names.map(|name| fs::read(folder.join(name)).unwrap());
    let all: Vec<(&str, &[u8])> = names.into_iter().zip(bytes.iter().map(|bytes| &**bytes)).collect();
    project.hub.commit("models/tiny/bert", &all);
    let hub = project.run(&[]).ok().ran(["corpus", "embed"]).digests();
    project.space.edit("texts =", "path = \"bert\"\ntexts =");
    assert_eq!(project.run(&[]).ok().ran(["embed"]).digests(), hub);
}

#[test]
fn the_harness_has_the_ids_of_git() {
    assert_eq!(oid(b"hello\n", false), "ce013625030ba8dba906f756967f9e9ca394464a");
    assert_eq!(oid(b"hello\n", true), "fa61e1ef71c9908c0926776a4aa3504b3a27f159");
}
