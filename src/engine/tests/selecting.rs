//! What of a graph a plan and a run take up, for every way of choosing. A plan and a run must agree.

use super::*;

/// top → left, right → bottom, and one that stands alone. `left` has a parameter.
fn diamond(space: &Space, rank: u32) -> Vec<Node> {
    vec![
        space.fake("top").node(),
        space.fake("left").param("rank", rank).reading(&[0]),
        space.fake("right").reading(&[0]),
        space.fake("bottom").reading(&[1, 2]),
        space.fake("alone").node(),
    ]
}

/// Options from words: `only=left,right force=all`.
fn options(words: &str) -> Options {
    let mut options = Options { jobs: 1, ..Options::default() };
    for word in words.split_whitespace() {
        let (what, names) = word.split_once('=').unwrap();
        let list: Vec<String> = names.split(',').map(str::to_owned).collect();
        match what {
            "only" => options.select.only = list,
            "until" => options.select.until = list,
            "from" => options.select.from = list,
            "force" if names == "all" => options.force = Force::All,
            "force" => options.force = Force::Stages(list.into_iter().collect()),
            other => panic!("{other}"),
        }
    }
    options
}

/// The first letters of the statuses in the order of the graph, and whether all went well.
fn short(summary: &RunSummary) -> String {
    let letters = summary.stages.iter().map(|stage| &stage.status.as_str()[..1]).collect::<String>();
    if summary.status == RunStatus::Ok { letters } else { letters + " failed" }
}

#[test]
fn an_empty_cache() {
    // In a plan: `r`un, `m`aybe, `s`kipped, `b`locked. In a run: `r`an, `s`kipped, `b`locked.
    for (words, planned, ran) in [
        ("", "rrrrr", "rrrrr"),
        ("until=left", "rrsss", "rrsss"),
        ("until=left,right", "rrrss", "rrrss"),
        ("until=bottom", "rrrrs", "rrrrs"),
        ("from=left", "rrrrs", "rrrrs"),
        ("from=alone", "ssssr", "ssssr"),
        ("only=top", "rssss", "rssss"),
        ("only=left", "sbsss failed", "sbsss failed"),
        ("only=bottom", "sssbs failed", "sssbs failed"),
        ("only=top,bottom", "rssbs failed", "rssbs failed"),
        ("only=top,left,alone", "rrssr", "rrssr"),
        ("until=bottom only=top,alone", "rssss", "rssss"),
        ("until=left from=right", "rrsss", "rrsss"),
        ("from=left until=right only=right", "ssbss failed", "ssbss failed"),
    ] {
        let space = Space::new();
        assert_eq!(short(&space.plan(diamond(&space, 1), &options(words))), planned, "plan {words}");
        assert_eq!(space.log.take(), [""; 0], "a plan runs nothing");
        assert_eq!(short(&space.run_with(diamond(&space, 1), &options(words))), ran, "run {words}");
    }
}

#[test]
fn a_full_cache() {
    for (words, planned, ran) in [
        ("", "ccccc", "ccccc"),
        ("only=bottom", "ccccs", "ccccs"),
        ("only=left", "ccsss", "ccsss"),
        ("from=alone", "ssssc", "ssssc"),
        ("force=all", "rrrrr", "rrrrr"),
        ("force=top", "rmmmc", "rcccc"),
        ("force=left,alone", "crcmr", "crccr"),
        ("only=bottom force=all", "cccrs", "cccrs"),
        ("only=bottom force=top,left", "ccccs", "ccccs"),
        ("until=left force=all", "rrsss", "rrsss"),
        ("until=left force=bottom", "ccsss", "ccsss"),
        ("only=top,bottom force=top", "rmmms", "rcccs"),
    ] {
        let space = Space::new();
        space.run(diamond(&space, 1));
        assert_eq!(short(&space.plan(diamond(&space, 1), &options(words))), planned, "plan {words}");
        assert_eq!(short(&space.run_with(diamond(&space, 1), &options(words))), ran, "run {words}");
    }
}

#[test]
fn a_changed_parameter() {
    for (words, planned, ran) in [
        ("", "crcmc", "crcrc"),
        ("until=right", "cscss", "cscss"),
        ("only=bottom", "cscbs failed", "cscbs failed"),
        ("only=left", "crsss", "crsss"),
        ("from=right", "crcms", "crcrs"),
        ("only=left,bottom", "crcms", "crcrs"),
        ("only=alone", "ssssc", "ssssc"),
    ] {
        let space = Space::new();
        space.run(diamond(&space, 1));
        assert_eq!(short(&space.plan(diamond(&space, 2), &options(words))), planned, "plan {words}");
        assert_eq!(short(&space.run_with(diamond(&space, 2), &options(words))), ran, "run {words}");
    }
}

#[test]
fn what_is_not_there_cannot_be_chosen() {
    let space = Space::new();
    for words in ["only=x", "until=top,x", "from=x", "force=x", "only=top force=top,x"] {
        let error = space.try_run(diamond(&space, 1), &options(words), &Stop::default()).unwrap_err();
        assert_eq!(error.to_string(), "there is no stage named `x`", "{words}");
    }
    assert_eq!(space.log.take(), [""; 0]);
}

#[test]
fn a_plan_says_what_each_stage_waits_for() {
    let space = Space::new();
    let fresh = space.plan(diamond(&space, 1), &options(""));
    assert_eq!(stage(&fresh, "bottom").why, "never run; waits on `left`; waits on `right`");
    assert_eq!((stage(&fresh, "left").key, stage(&fresh, "bottom").key), (None, None), "no inputs, no key");
    assert!(stage(&fresh, "top").key.is_some());
    space.run(diamond(&space, 1));
    let changed = space.plan(diamond(&space, 2), &options(""));
    assert_eq!(stage(&changed, "bottom").why, "waits on `left`");
    let forced = space.plan(diamond(&space, 2), &options("force=bottom,right"));
    assert_eq!(stage(&forced, "bottom").why, "forced; waits on `left`; waits on `right`");
    let turned = vec![space.fake("p").node(), space.fake("q").node(), space.fake("r").reading(&[1, 0])];
    let why = stage(&space.plan(turned, &options("")), "r").why.clone();
    assert_eq!(why, "never run; waits on `p`; waits on `q`", "in the order of the graph");
    let alone = space.plan(diamond(&space, 2), &options("only=bottom"));
    assert_eq!(stage(&alone, "bottom").why, "needs `left`, which is not in the cache");
    assert_eq!(stage(&alone, "left").why, "not in the cache, and not selected");
    assert_eq!(stage(&alone, "alone").why, "not selected");
}
