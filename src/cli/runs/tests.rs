//! Tests of past runs: names, times, journals, and what a word means. Knows folders made by hand.

use super::*;

/// A cache with these runs, each with its summary, oldest first.
fn cache(runs: &[(&str, Option<&str>)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (id, summary) in runs {
        let folder = dir.path().join("run").join(id);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("events.jsonl"), "").unwrap();
        if let Some(text) = summary {
            fs::write(folder.join("summary.json"), text).unwrap();
        }
    }
    dir
}

const EMPTY: Option<&str> = Some(r#"{"pipeline":"p","status":"ok","seconds":1.5,"stages":[]}"#);

fn ids(runs: &Runs) -> Vec<&str> {
    runs.names().iter().map(|name| name.id.as_str()).collect()
}

#[test]
fn the_newest_run_comes_first_and_other_folders_are_no_runs() {
    let dir = cache(&[
        ("20261123-152518-aaaaaa", EMPTY),
        ("20261123-152519-bbbbbb", None),
        ("20251231-000000-cccccc", EMPTY),
    ]);
    fs::create_dir_all(dir.path().join("run/latest")).unwrap();
    fs::write(dir.path().join("run/last.json"), "{}").unwrap();
    let runs = Runs::of(dir.path()).unwrap();
    assert_eq!(ids(&runs), ["20261123-152519-bbbbbb", "20261123-152518-aaaaaa", "20251231-000000-cccccc"]);
    assert_eq!(runs.names()[2].started, "2025-12-31T00:00:00Z");
}

#[test]
fn of_one_second_the_one_that_changed_last_is_the_newest() {
    let dir = cache(&[("20261123-152518-bbbbbb", EMPTY), ("20261123-152518-aaaaaa", EMPTY)]);
    let later = std::time::UNIX_EPOCH + std::time::Duration::from_secs(4_000_000_000);
    let file =
        fs::File::options().write(true).open(dir.path().join("run/20261123-152518-aaaaaa/events.jsonl"));
    file.unwrap().set_modified(later).unwrap();
    assert_eq!(ids(&Runs::of(dir.path()).unwrap())[0], "20261123-152518-aaaaaa");
}

#[test]
fn a_time_comes_from_the_name_or_from_the_file() {
    assert_eq!(time("20261123-152518-3fa9c1").as_deref(), Some("2026-11-23T15:25:18Z"));
    assert_eq!(time("20261123-152518").as_deref(), Some("2026-11-23T15:25:18Z"));
    for odd in ["", "mine", "20261123_152518-x", "2026112-3152518-x", "20261123-1525180", "ééééééééé"]
    {
        assert_eq!(time(odd), None, "{odd}");
    }
    let dir = cache(&[("mine", EMPTY)]);
    let runs = Runs::of(dir.path()).unwrap();
    assert!(runs.names()[0].started.starts_with("20"), "{:?}", runs.names());
}

#[test]
fn no_cache_is_an_error_and_no_run_is_none() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(ids(&Runs::of(dir.path()).unwrap()), [""; 0]);
    let error = Runs::of(&dir.path().join("gone")).err().unwrap();
    assert!(error.to_string().starts_with("there is no cache `"), "{error}");
}

#[test]
fn a_word_means_a_name_a_beginning_or_a_place_from_the_end() {
    let dir = cache(&[
        ("20261123-152518-aaaaaa", EMPTY),
        ("20261124-000000-bbbbbb", EMPTY),
        ("20261124-000001-cccccc", None),
        ("20261125-000000-dddddd", EMPTY),
    ]);
    let runs = Runs::of(dir.path()).unwrap();
    let find = |word: &str| match runs.find(word) {
        Ok((name, _)) => name.id[16..].to_owned(),
        Err(CliError::Usage { message, hint }) => format!("{message}; {}", hint.unwrap()),
        Err(error) => panic!("{error}"),
    };
    assert_eq!(find("20261123-152518-aaaaaa"), "aaaaaa");
    assert_eq!((find("20261123"), find("20261125-")), ("aaaaaa".to_owned(), "dddddd".to_owned()));
    assert_eq!(
        (find("last"), find("last~1"), find("last~2")),
        ("dddddd".into(), "bbbbbb".into(), "aaaaaa".into())
    );
    assert_eq!(find("last~3"), "there is no run `last~3`; 3 runs ended so far");
    assert_eq!(
        find("20261124"),
        "several runs begin with `20261124`; name one: `20261124-000001-cccccc`, `20261124-000000-bbbbbb`"
    );
    assert_eq!(
        find("20261123-152518-aaaaab"),
        "there is no run `20261123-152518-aaaaab`; did you mean `20261123-152518-aaaaaa`?; or say `last`, `last~1`"
    );
    assert!(find("20261124-000001").starts_with("the run `20261124-000001-cccccc` has no summary; it still"));
    assert!(find("last~x").starts_with("there is no run `last~x`; "));
    assert!(find("lasting").starts_with("there is no run `lasting`; "));
}

#[test]
fn a_summary_of_an_older_program_lacks_fields() {
    let text =
        r#"{"status":"failed","seconds":2,"stages":[{"name":"a"},{"name":"b","status":"ran","key":null}]}"#;
    let dir = cache(&[("20261123-152518-aaaaaa", Some(text))]);
    let runs = Runs::of(dir.path()).unwrap();
    let run = runs.read(&runs.names()[0]);
    assert_eq!((run.pipeline.as_str(), run.status.as_str(), run.with("ran")), ("", "failed", vec!["b"]));
    assert_eq!((run.stages[0].key, run.stages[0].peak_memory), (None, None));
}

#[test]
fn a_run_without_a_summary_is_what_its_journal_says() {
    let journal = br#"{"at":0.0,"event":"run-started","run":"r","pipeline":"p","stages":["a","b","c","d"]}
{"at":0.1,"event":"stage-started","stage":"a","kind":"exec","key":"x","why":"forced"}
{"at":0.2,"event":"phase","stage":"a","what":"x","total":null,"unit":""}
{"at":0.5,"event":"stage-finished","stage":"a","status":"ran","seconds":0.4,"why":"forced"}
{"at":0.6,"event":"stage-started","stage":"b","kind":"exec","key":"x","why":"never run"}
{"at":0.7,"event":"stage-finished","stage":"c","status":"failed","seconds":0.1,"why":"no luck"}
{"at":1.5,"event":"say","stage":"b","text":"hello"}
{"at":9.9,"event":"stage-fini"#;
    let run = Run::from_journal(journal);
    assert_eq!((run.status.as_str(), run.seconds, run.stages.len()), (UNFINISHED, 1.5, 4));
    assert_eq!(run.pipeline, "p");
    assert_eq!((run.with("ran"), run.with("running"), run.with("failed")), (vec!["a"], vec!["b"], vec!["c"]));
    assert_eq!(run.with(""), ["d"]);
}

#[test]
fn a_damaged_summary_is_none() {
    let dir = cache(&[("20261123-152518-aaaaaa", Some("{\"stages\": [")), ("20261123-152519-bbbbbb", EMPTY)]);
    let runs = Runs::of(dir.path()).unwrap();
    assert_eq!(runs.read(&runs.names()[1]).status, UNFINISHED);
    assert_eq!(runs.find("last~0").unwrap().0.id, "20261123-152519-bbbbbb");
    assert!(runs.find("last~1").is_err());
}
