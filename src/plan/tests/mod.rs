//! Plans made with a table of small stages.

mod decode;
mod expand;
mod reference;
mod shards;
mod wiring;

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::*;
use crate::{
    artifact::{files::FileSet, texts::Texts},
    engine::action::{Cx, Failure, OutputPort},
    stage::{Base, Input, InputPort, Invalid, Stage, UserPath, code::Code, table::Entry},
};

/// Makes texts.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Make {
    /// How many. At least one.
    words: u32,
    /// The layout.
    #[serde(default)]
    layout: Layout,
    /// A file to read.
    #[serde(default)]
    file: Option<UserPath>,
}

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "kebab-case")]
enum Layout {
    #[default]
    Plain,
    Wide,
}

impl Stage for Make {
    const KIND: &'static str = "make";
    const CODE: Code = &[("test", "1")];
    const OUTPUTS: &'static [OutputPort] = &[OutputPort { name: "texts", kind: "texts" }];
    fn check(&self) -> Result<(), Invalid> {
        let fault = Invalid::new("words", "must be at least 1").hint("leave the stage out instead");
        if self.words == 0 { Err(fault) } else { Ok(()) }
    }
    fn reads(&self, base: &Base<'_>) -> Result<Vec<Read>, Invalid> {
        let Some(file) = &self.file else { return Ok(Vec::new()) };
        if file.0 == "gone" {
            return Err(Invalid::new("file", "does not exist"));
        }
        Ok(vec![Read { name: "file".into(), path: base("file").join(&file.0) }])
    }
    fn run(&self, _: &Cx<'_>) -> Result<(), Failure> {
        Ok(())
    }
}

/// Reads texts twice.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Take {
    /// The first texts.
    texts: Input<Texts>,
    /// More texts.
    #[serde(default)]
    more: Option<Input<Texts>>,
    /// Plain files.
    #[serde(default)]
    files: Option<Input<FileSet>>,
    /// A number.
    #[serde(default)]
    rank: u8,
}

impl Stage for Take {
    const KIND: &'static str = "take";
    const CODE: Code = &[("test", "1")];
    const OUTPUTS: &'static [OutputPort] = &[
        OutputPort { name: "left", kind: "texts" },
        OutputPort { name: "right", kind: "texts" },
        OutputPort { name: "notes", kind: "files" },
    ];
    fn inputs(&self) -> Vec<InputPort> {
        let more = self.more.as_ref().map(|input| input.port("more"));
        let files = self.files.as_ref().map(|input| input.port("files"));
        std::iter::once(self.texts.port("texts")).chain(more).chain(files).collect()
    }
    fn run(&self, _: &Cx<'_>) -> Result<(), Failure> {
        Ok(())
    }
}

static TABLE: &[Entry] = &[Entry::of::<Make>(), Entry::of::<Take>()];

fn plan_of(text: &str) -> Result<Plan, Rejected> {
    let path = Path::new("dir/m.toml");
    let (sources, faults) = Sources::read_with(path, &Options::default(), &|_| Ok(text.to_owned()));
    plan(path, sources, faults, TABLE)
}

/// Each node with what it reads: `name <- port=producer.output`.
fn drawn(text: &str) -> Vec<String> {
    let plan = plan_of(text).unwrap_or_else(|rejected| panic!("{rejected}"));
    let line = |node: &Node| {
        let edge = |edge: &Edge| format!(" {}={}.{}", edge.port, plan.nodes[edge.node].name, edge.output);
        format!("{} <-{}", node.name, node.inputs.iter().map(edge).collect::<String>())
    };
    plan.nodes.iter().map(line).collect()
}

/// Each fault with the text that it underlines and its hint.
fn faults(text: &str) -> Vec<(String, String, String)> {
    let rejected = plan_of(text).err().expect("the manifest has faults");
    let row = |fault: &Arc<Fault<PlanError>>| {
        let under = fault.place.as_ref().map(|place| rejected.sources.text(place).to_owned());
        (fault.error.to_string(), under.unwrap_or_default(), fault.hint.clone().unwrap_or_default())
    };
    rejected.faults.iter().map(row).collect()
}

fn own(rows: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
    rows.iter().map(|(a, b, c)| ((*a).to_owned(), (*b).to_owned(), (*c).to_owned())).collect()
}

#[test]
fn nodes_come_producers_first_and_else_in_the_order_of_the_text() {
    let text = "[pipeline]\nseed = 5\n[stage.b]\nkind = 'take'\ntexts = 'z'\nsalt = 3\n[stage.z]\nkind = 'make'\nseed = 7\nwords = 1\nfile = 'f'\n[stage.a]\nkind = 'make'\nwords = 2";
    assert_eq!(drawn(text), ["z <-", "b <- texts=z.texts", "a <-"]);
    let plan = plan_of(text).unwrap();
    assert_eq!(plan.name, "m");
    assert_eq!(plan.nodes.iter().map(|node| node.seed).collect::<Vec<_>>(), [7, 5, 5]);
    assert_eq!(plan.nodes[1].salt.as_deref(), Some("3"));
    assert_eq!(plan.nodes[0].reads.as_ref().unwrap()[0].path, Path::new("dir/f"));
    assert_eq!(plan.nodes[0].action.kind(), "make");
    assert_eq!(plan.by_name()["a"], 2);
}

#[test]
fn an_output_is_named_where_several_fit() {
    let text = "[stage.make]\nwords = 1\n[stage.take]\ntexts = 'make'\n[stage.b]\nkind = 'take'\ntexts = 'take.right'\nfiles = 'take'";
    assert_eq!(drawn(text)[2], "b <- texts=take.right files=take.notes");
    let found = faults(
        "[stage.make]\nwords = 1\n[stage.take]\ntexts = 'make'\n[stage.b]\nkind = 'take'\ntexts = 'take'\nmore = 'take.lft'\nfiles = 'make'",
    );
    let expected = own(&[
        ("`take` has several outputs that fit `texts`", "'take'", "write `take.left` or `take.right`"),
        ("stage `take` has no output `lft`", "'take.lft'", "did you mean `left`?"),
        ("`files` takes `files`, but stage `make` writes `texts`", "'make'", "`take` writes `files`"),
    ]);
    assert_eq!(found, expected);
}

#[test]
fn a_matrix_multiplies_its_stage_and_those_downstream() {
    let text = "
[stage.make]
matrix = { words = [1, 2], layout = ['plain', 'wide'] }
[stage.take]
texts = 'make'
matrix.rank = [5, 6]
[stage.pick]
kind = 'take'
texts = 'make[words=1,layout=wide]'
[stage.half]
kind = 'take'
texts = 'make[words=2]'
";
    let nodes = drawn(text);
    assert_eq!(nodes.len(), 4 + 8 + 1 + 2);
    assert_eq!(nodes[0], "make[words=1,layout=plain] <-");
    assert!(
        nodes.contains(
            &"take[words=2,layout=wide,rank=6] <- texts=make[words=2,layout=wide].texts".to_owned()
        )
    );
    assert!(nodes.contains(&"pick <- texts=make[words=1,layout=wide].texts".to_owned()));
    assert!(nodes.contains(&"half[layout=wide] <- texts=make[words=2,layout=wide].texts".to_owned()));
    let seeds = plan_of("[stage.make]\nwords = 1\nmatrix.seed = [3, 4]").unwrap();
    let seeds: Vec<_> = seeds.nodes.iter().map(|node| (node.name.as_str(), node.seed)).collect();
    assert_eq!(seeds, [("make[seed=3]", 3), ("make[seed=4]", 4)]);
}

#[test]
fn inputs_that_share_an_axis_go_together_and_others_are_crossed() {
    let text = "
[stage.a]
kind = 'make'
matrix.words = [1, 2]
[stage.b]
kind = 'take'
texts = 'a'
[stage.both]
kind = 'take'
texts = 'b.left'
more = 'a'
[stage.c]
kind = 'make'
matrix.words = [1, 2]
[stage.cross]
kind = 'take'
texts = 'a'
more = 'c'
";
    let nodes = drawn(text);
    let both: Vec<_> = nodes.iter().filter(|line| line.starts_with("both")).collect();
    assert_eq!(
        both,
        [
            "both[words=1] <- texts=b[words=1].left more=a[words=1].texts",
            "both[words=2] <- texts=b[words=2].left more=a[words=2].texts"
        ]
    );
    let cross: Vec<_> = nodes.iter().filter(|line| line.starts_with("cross")).collect();
    assert_eq!(cross.len(), 4);
    assert_eq!(cross[1], "cross[a.words=1,c.words=2] <- texts=a[words=1].texts more=c[words=2].texts");
}

#[test]
fn variants_that_do_not_exist_are_refused() {
    let text = "[stage.make]\nmatrix.words = [1, 2]\n[stage.take]\ntexts = 'make[words=3]'";
    let hint = "there are `make[words=1]`, `make[words=2]`";
    assert_eq!(faults(text), own(&[("stage `make` has no variant `[words=3]`", "'make[words=3]'", hint)]));
    let text = "[stage.make]\nwords = 1\n[stage.take]\ntexts = 'make[words=1]'";
    assert_eq!(faults(text)[0].2, "`make` has no matrix: write `make`");
    assert_eq!(faults("[stage.take]\ntexts = 'make['")[0].0, "`make[` does not name an output of a stage");
}

#[test]
fn every_fault_of_a_table_is_found_in_one_go() {
    let text = "
[stage.make]
wrds = 1
layout = 'wid'
[stage.take]
rank = 300
rnk = 1
[stage.x]
kind = 'tak'
[stage.y]
words = 1
";
    let expected = own(&[
        (
            "stage `make` lacks its parameter `words`",
            "[stage.make]",
            "add `words = …` (whole number): How many",
        ),
        ("unknown parameter `wrds` of a stage of kind `make`", "wrds", "did you mean `words`?"),
        ("unknown value `wid`", "'wid'", "did you mean `wide`?"),
        (
            "stage `take` lacks its parameter `texts`",
            "[stage.take]",
            "add `texts = …` (string): The first texts",
        ),
        (
            "expected a whole number that is not negative, found integer `300`",
            "300",
            "`rank` (whole number): A number",
        ),
        ("unknown parameter `rnk` of a stage of kind `take`", "rnk", "did you mean `rank`?"),
        ("unknown kind `tak`", "'tak'", "did you mean `take`?"),
        (
            "unknown kind `y`",
            "y",
            "the kind defaults to the stage's name: give one with `kind = …`; `mla-run stages` lists them",
        ),
    ]);
    assert_eq!(faults(text), expected);
}

#[test]
fn syntax_and_meaning_are_reported_together() {
    let text = "[stage.make]\nwords = '${no}'\n[stage.take]\ntexts = 'mke'\nseed = -1";
    let found: Vec<_> = faults(text).into_iter().map(|(error, ..)| error).collect();
    let seed = "`seed` must be a whole number from 0 to 2^64 - 1, found a negative number";
    assert_eq!(found, ["unknown variable `no`", "unknown stage `mke`", seed]);
}

#[test]
fn a_value_from_a_variable_points_at_both() {
    let rejected = plan_of("[vars]\nn = 'many'\n[stage.make]\nwords = '${n}'").err().unwrap();
    let fault = &rejected.faults[0];
    assert_eq!(
        fault.error.to_string(),
        "expected a whole number that is not negative, found string \"many\""
    );
    assert_eq!(rejected.sources.text(fault.place.as_ref().unwrap()), "'${n}'");
    assert_eq!(rejected.sources.text(&fault.related[0].0), "'many'");
}

#[test]
fn a_stage_checks_its_own_parameters_once_for_all_variants() {
    let found = faults("[stage.make]\nmatrix = { words = [0, 1], layout = ['plain', 'wide'] }");
    let text = "parameter `words`: must be at least 1";
    assert_eq!(found, own(&[(text, "0", "leave the stage out instead")]));
}

#[test]
fn cycles_are_named_with_their_stages() {
    let text = "[stage.a]\nkind = 'take'\ntexts = 'b.left'\n[stage.b]\nkind = 'take'\ntexts = 'c.left'\n[stage.c]\nkind = 'take'\ntexts = 'a.left'\n[stage.d]\nkind = 'take'\ntexts = 'd.left'";
    let found = faults(text);
    assert_eq!(found[0].0, "stages wait for each other: a → b → c → a");
    assert_eq!(found[0].1, "'b.left'");
    assert_eq!(found[1].0, "stage `d` reads its own output");
    let rejected = plan_of(text).err().unwrap();
    let labels: Vec<_> = rejected.faults[0].related.iter().map(|(_, label)| label.as_str()).collect();
    assert_eq!(labels, ["`b` reads `c`", "`c` reads `a`"]);
}

#[test]
fn missing_files_do_not_stop_a_plan_but_a_run() {
    let plan = plan_of("[stage.make]\nwords = 1\nfile = 'gone'\nmatrix.layout = ['plain', 'wide']").unwrap();
    assert_eq!(plan.nodes.len(), 2);
    let rejected = plan.require_reads().err().unwrap();
    assert_eq!(rejected.to_string(), "parameter `file`: does not exist");
    assert_eq!(rejected.sources.text(rejected.faults[0].place.as_ref().unwrap()), "'gone'");
    assert!(plan_of("[stage.make]\nwords = 1").unwrap().require_reads().is_ok());
}

#[test]
fn the_engine_gets_the_same_graph() {
    let text = "[stage.take]\ntexts = 'make'\nsalt = 's'\n[stage.make]\nmatrix.words = [1, 2]\nfile = 'f'";
    let plan = plan_of(text).unwrap();
    let graph = plan.graph();
    assert_eq!(graph.len(), 4);
    let id = graph.find("take[words=2]").unwrap();
    let node = graph.node(id);
    let source = &node.inputs["texts"];
    assert_eq!((graph.node(source.node).name.as_str(), source.port.as_str()), ("make[words=2]", "texts"));
    assert_eq!((node.salt.as_deref(), node.action.kind()), (Some("s"), "take"));
    assert_eq!(graph.node(source.node).reads, [("file".to_owned(), std::path::PathBuf::from("dir/f"))]);
    assert_eq!(graph.node(source.node).action.params()["words"], 2);
}
