//! Matrices: which nodes come of them, how they are called, and which of them an input means.

use super::*;

/// Two makers with the same axis, and what crosses them.
const CROSS: &str = "
[stage.a]
kind = 'make'
matrix.words = [1, 2]
[stage.c]
kind = 'make'
matrix.words = [1, 2]
[stage.cross]
kind = 'take'
texts = 'a'
more = 'c'
";

/// What the nodes of stage `x` read, one a line; the other stages come first.
fn of_x(stages: &str, x: &str) -> Vec<String> {
    let nodes = drawn(&format!("{stages}\n[stage.x]\nkind = 'take'\n{x}"));
    nodes.into_iter().filter(|line| line.starts_with('x')).collect()
}

#[test]
fn axes_are_named_in_the_order_of_their_stages_and_of_the_text() {
    let text = "
[stage.x]
kind = 'take'
texts = 'make'
matrix.rank = [5, 6]
[stage.make]
matrix = { words = [1, 2], seed = [8] }
";
    let names: Vec<String> = plan_of(text).unwrap().nodes.into_iter().map(|node| node.name).collect();
    let expected = [
        "make[words=1,seed=8]",
        "make[words=2,seed=8]",
        "x[rank=5,words=1,seed=8]",
        "x[rank=5,words=2,seed=8]",
        "x[rank=6,words=1,seed=8]",
        "x[rank=6,words=2,seed=8]",
    ];
    assert_eq!(names, expected);
}

#[test]
fn every_value_is_called_as_it_is_written() {
    let text = "[vars]\nn = 3\n[stage.make]\nmatrix.words = [1, 0x2, '${n}']";
    let names: Vec<String> = plan_of(text).unwrap().nodes.into_iter().map(|node| node.name).collect();
    assert_eq!(names, ["make[words=1]", "make[words=0x2]", "make[words=3]"]);
    let params = plan_of(text).unwrap().nodes[1].action.params();
    assert_eq!(params["words"], 2);
}

#[test]
fn an_axis_may_vary_an_input() {
    let text = "
[stage.a]
kind = 'make'
words = 1
[stage.b]
kind = 'make'
matrix.words = [2, 3]
[stage.x]
kind = 'take'
matrix.texts = ['a', 'b[words=3]']
";
    let found = faults(text);
    assert_eq!(
        found[0].0,
        "axis `texts` of the matrix holds string; a value must be a string, a number or a boolean"
    );
    let nodes = drawn(&text.replace("'b[words=3]'", "'b'"));
    assert_eq!(
        nodes[3..],
        [
            "x[texts=a] <- texts=a.texts",
            "x[words=2,texts=b] <- texts=b[words=2].texts",
            "x[words=3,texts=b] <- texts=b[words=3].texts",
        ]
    );
}

#[test]
fn selected_axes_no_longer_multiply_the_reader() {
    let make = "[stage.make]\nmatrix = { words = [1, 2], layout = ['plain', 'wide'] }";
    let one = ["x <- texts=make[words=2,layout=wide].texts"];
    for select in [
        "words=2,layout=wide",
        "layout=wide,words=2",
        " layout = wide , words = 2 ",
        "make.words=2,layout=wide",
    ] {
        assert_eq!(of_x(make, &format!("texts = 'make[{select}]'")), one, "{select}");
    }
    assert_eq!(
        of_x(make, "texts = 'make[layout=plain].texts'"),
        [
            "x[words=1] <- texts=make[words=1,layout=plain].texts",
            "x[words=2] <- texts=make[words=2,layout=plain].texts",
        ]
    );
    // The same axis, fixed for one input and open for the other.
    assert_eq!(
        of_x(make, "texts = 'make[layout=plain,words=1]'\nmore = 'make[layout=wide]'"),
        [
            "x[words=1] <- texts=make[words=1,layout=plain].texts more=make[words=1,layout=wide].texts",
            "x[words=2] <- texts=make[words=1,layout=plain].texts more=make[words=2,layout=wide].texts",
        ]
    );
}

#[test]
fn axes_of_the_same_name_are_told_apart_by_their_stages() {
    assert_eq!(
        of_x(CROSS, "texts = 'cross[a.words=2,c.words=1].left'"),
        ["x <- texts=cross[a.words=2,c.words=1].left",]
    );
    // With one of them chosen the other is alone, and so is its name.
    assert_eq!(
        of_x(CROSS, "texts = 'cross[a.words=2].left'"),
        [
            "x[words=1] <- texts=cross[a.words=2,c.words=1].left",
            "x[words=2] <- texts=cross[a.words=2,c.words=2].left",
        ]
    );
    assert_eq!(
        of_x(CROSS, "texts = 'cross[a.words=2,words=1].left'"),
        of_x(CROSS, "texts = 'cross[a.words=2,c.words=1].left'")
    );
}

#[test]
fn a_name_that_two_axes_share_selects_nothing() {
    let found = faults(&format!("{CROSS}[stage.x]\nkind = 'take'\ntexts = 'cross[words=1].left'"));
    let hint = "there are `cross[a.words=1,c.words=1]`, `cross[a.words=1,c.words=2]`, `cross[a.words=2,c.words=1]`, `cross[a.words=2,c.words=2]`";
    assert_eq!(found, own(&[("stage `cross` has no variant `[words=1]`", "'cross[words=1].left'", hint)]));
}

#[test]
fn names_of_all_nodes_are_unique_whatever_is_crossed() {
    let deep = format!(
        "{CROSS}
[stage.again]
kind = 'take'
texts = 'cross.left'
more = 'cross.right'
matrix.rank = [1, 2]
[stage.last]
kind = 'take'
texts = 'again[rank=1].left'
more = 'again[rank=2].right'
"
    );
    let plan = plan_of(&deep).unwrap();
    assert_eq!(plan.nodes.len(), 2 + 2 + 4 + 8 + 4);
    assert_eq!(plan.by_name().len(), plan.nodes.len());
    for node in plan.nodes.iter().filter(|node| node.stage == "last") {
        let [one, two] = &node.inputs[..] else { panic!("{}", node.name) };
        let axes = |i: usize| plan.nodes[i].name.replace("rank=1", "").replace("rank=2", "");
        assert_eq!(axes(one.node), axes(two.node), "both inputs of {} are of one variant", node.name);
    }
}

#[test]
fn selectors_that_select_nothing_are_told_with_what_there_is() {
    let make = "[stage.make]\nmatrix = { words = [1, 2], seed = [7] }\n[stage.x]\nkind = 'take'\n";
    let there = "there are `make[words=1,seed=7]`, `make[words=2,seed=7]`";
    for select in ["words=3", "wrds=1", "words=1,seed=8", "words=1,words=2", "x.words=1", "words=01"] {
        let found = faults(&format!("{make}texts = 'make[{select}]'"));
        let error = format!("stage `make` has no variant `[{select}]`");
        let under = format!("'make[{select}]'");
        assert_eq!(found, own(&[(error.as_str(), under.as_str(), there)]));
    }
}

#[test]
fn seed_salt_files_and_parameters_belong_to_each_variant() {
    let text = "
[pipeline]
seed = 4
[stage.make]
file = 'f'
salt = 's'
matrix = { words = [1, 2], seed = [5, 6] }
[stage.x]
kind = 'take'
texts = 'make'
";
    let plan = plan_of(text).unwrap();
    let rows: Vec<_> =
        plan.nodes[..4].iter().map(|node| (node.action.params()["words"].clone(), node.seed)).collect();
    assert_eq!(rows, [(1.into(), 5), (1.into(), 6), (2.into(), 5), (2.into(), 6)]);
    assert!(
        plan.nodes[..4]
            .iter()
            .all(|node| node.salt.as_deref() == Some("s") && node.reads.as_ref().unwrap().len() == 1)
    );
    assert!(
        plan.nodes[4..].iter().all(|node| node.seed == 4 && node.salt.is_none()),
        "the reader keeps its own"
    );
}

#[test]
fn more_variants_than_anybody_wants_are_refused() {
    let values = |n: usize| format!("{:?}", (1..=n).collect::<Vec<_>>());
    let own = |a: usize, b: usize| {
        format!("[stage.make]\nmatrix = {{ words = {}, seed = {} }}", values(a), values(b))
    };
    assert_eq!(plan_of(&own(100, 100)).unwrap().nodes.len(), 10_000);
    let joined = format!(
        "[stage.a]\nkind = 'make'\nmatrix.words = {0}\n[stage.c]\nkind = 'make'\nmatrix.words = {0}
[stage.make]\nkind = 'take'\ntexts = 'a'\nmore = 'c'\nmatrix.rank = [1, 2]",
        values(71)
    );
    for text in [own(100, 101), own(30_000, 30_000), joined] {
        let faults = plan_of(&text).map(|plan| plan.nodes.len()).unwrap_err().faults;
        let errors: Vec<String> = faults.iter().map(|fault| fault.error.to_string()).collect();
        assert_eq!(errors, ["stage `make` has more than 10,000 variants"]);
    }
}
