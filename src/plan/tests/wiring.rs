//! Inputs that find no output, and which of the mistakes that follow from each other are told.

use super::*;

fn errors(text: &str) -> Vec<String> {
    faults(text).into_iter().map(|(error, ..)| error).collect()
}

#[test]
fn what_could_be_read_instead_is_offered() {
    let take = |input: &str| format!("[stage.make]\nwords = 1\n[stage.take]\n{input}");
    for (input, error, hint) in [
        ("texts = 'mak'", "unknown stage `mak`", "did you mean `make`?"),
        ("texts = 'other'", "unknown stage `other`", "known stages: `make`, `take`"),
        ("texts = 'make.text'", "stage `make` has no output `text`", "did you mean `texts`?"),
        ("texts = 'make.zzz'", "stage `make` has no output `zzz`", "known outputs: `texts`"),
        ("texts = 'take'", "stage `take` reads its own output", "`make` writes `texts`"),
        (
            "texts = 'make'\nfiles = 'make'",
            "`files` takes `files`, but stage `make` writes `texts`",
            "no stage of this manifest writes `files`",
        ),
        (
            "texts = 'make'\nfiles = 'make.texts'",
            "`files` takes `files`, but output `texts` of stage `make` writes `texts`",
            "no stage of this manifest writes `files`",
        ),
        (
            "texts = ''",
            "`` does not name an output of a stage",
            "write `STAGE`, `STAGE.OUTPUT` or `STAGE[AXIS=VALUE]`",
        ),
        ("texts = 'make.texts.left'", "stage `make` has no output `texts.left`", "known outputs: `texts`"),
    ] {
        let found = faults(&take(input));
        assert_eq!((found[0].0.as_str(), found[0].2.as_str(), found.len()), (error, hint, 1), "{input}");
    }
}

#[test]
fn several_makers_are_all_offered() {
    let text = "[stage.m1]\nkind = 'make'\nwords = 1\n[stage.m2]\nkind = 'make'\nwords = 1\n[stage.t]\nkind = 'take'\ntexts = 'm1'\nfiles = 'm1'\n[stage.u]\nkind = 'take'\ntexts = 'u'";
    let found = faults(text);
    assert_eq!(
        found[0].2,
        "stages that write `files`: `t`, `u`"
            .replace("stages that write `files`: `t`, `u`", "`u` writes `files`")
    );
    assert_eq!(found[1].2, "stages that write `texts`: `m1`, `m2`, `t`");
}

#[test]
fn a_mistake_is_not_told_again_by_those_who_read_the_stage() {
    let readers =
        "[stage.take]\ntexts = 'make'\n[stage.more]\nkind = 'take'\ntexts = 'take.left'\nmore = 'make'";
    for (make, error) in [
        ("kind = 'mkae'\nwords = 1", "unknown kind `mkae`"),
        ("words = 'x'", "expected a whole number that is not negative, found string \"x\""),
        ("words = 0", "parameter `words`: must be at least 1"),
        ("", "stage `make` lacks its parameter `words`"),
        ("words = '${no}'", "unknown variable `no`"),
    ] {
        assert_eq!(errors(&format!("[stage.make]\n{make}\n{readers}")), [error], "{make}");
    }
    // But a wrong selector of a stage that is right is told.
    let text = "[stage.make]\nwords = 1\n[stage.take]\ntexts = 'make[a=1]'\n[stage.more]\nkind = 'take'\ntexts = 'take.left'";
    assert_eq!(errors(text), ["stage `make` has no variant `[a=1]`"]);
}

#[test]
fn a_stage_that_finds_no_input_has_no_variants_to_select() {
    let text = "[stage.take]\ntexts = 'gone'\n[stage.more]\nkind = 'take'\ntexts = 'take[words=1].left'";
    assert_eq!(errors(text), ["unknown stage `gone`"]);
}

#[test]
fn a_stage_with_a_mistake_still_tells_of_its_inputs() {
    let found = errors("[stage.take]\ntexts = 'gone'\nmore = 'gone-too'\nrank = 'x'");
    let rank = "expected a whole number that is not negative, found string \"x\"";
    assert_eq!(found, ["unknown stage `gone`", "unknown stage `gone-too`", rank]);
}

#[test]
fn a_circle_through_a_stage_of_an_unknown_kind_is_found_once_the_kind_is_known() {
    let circle = |kind: &str| {
        format!("[stage.a]\nkind = '{kind}'\ntexts = 'b.left'\n[stage.b]\nkind = 'take'\ntexts = 'a.left'")
    };
    assert_eq!(errors(&circle("tkae")), ["unknown kind `tkae`"]);
    assert_eq!(errors(&circle("take")), ["stages wait for each other: a → b → a"]);
}

#[test]
fn two_circles_are_two_mistakes_and_those_who_wait_for_them_say_nothing() {
    let stage = |name: &str, from: &str| format!("[stage.{name}]\nkind = 'take'\ntexts = '{from}.left'\n");
    let text = [("a", "b"), ("b", "a"), ("c", "d"), ("d", "c"), ("e", "a")]
        .map(|(name, from)| stage(name, from))
        .concat();
    assert_eq!(
        errors(&text),
        ["stages wait for each other: a → b → a", "stages wait for each other: c → d → c"]
    );
}

#[test]
fn the_same_mistake_of_several_variants_is_told_once() {
    let text = "[stage.take]\nmatrix.rank = [1, 2, 3]\ntexts = 'gone'";
    assert_eq!(errors(text), ["unknown stage `gone`"]);
    let text = "[stage.make]\nmatrix.layout = ['plain', 'wide']\nfile = 'gone'\nwords = 1\n[stage.take]\ntexts = 'make'";
    let rejected = plan_of(text).unwrap().require_reads().err().unwrap();
    assert_eq!(rejected.to_string(), "parameter `file`: does not exist");
}

#[test]
fn mistakes_come_in_the_order_of_the_text() {
    let text = "[stage.take]\ntexts = 'gone'\n[stage.make]\nwords = 0\n[stage.x]\n[pipeline]\nsed = 1";
    let found = errors(text);
    let expected = [
        "unknown stage `gone`",
        "parameter `words`: must be at least 1",
        "unknown kind `x`",
        "unknown key `sed` in [pipeline]",
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_plan_of_no_name_is_called_like_its_file() {
    let named = plan_of("[pipeline]\nname = 'own name'\n[stage.make]\nwords = 1").unwrap();
    assert_eq!(named.name, "own name");
    let open = |path: &str| {
        let text = |_: &Path| Ok("[stage.make]\nwords = 1\nfile = 'f'".to_owned());
        let (sources, faults) = Sources::read_with(Path::new(path), &Options::default(), &text);
        plan(Path::new(path), sources, faults, TABLE).unwrap()
    };
    let bare = open("m.x.toml");
    assert_eq!(bare.name, "m.x");
    assert_eq!(bare.nodes[0].reads.as_ref().unwrap()[0].path, Path::new("f"));
    assert_eq!(open("../p/m.toml").nodes[0].reads.as_ref().unwrap()[0].path, Path::new("../p/f"));
}
