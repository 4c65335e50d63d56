//! Stages with shards: which nodes come of them, what these read, and what is refused.

use super::*;
use crate::stage::table::STAGES;

fn real(text: &str) -> Result<Plan, Rejected> {
    let path = Path::new("dir/m.toml");
    let (sources, faults) = Sources::read_with(path, &Options::default(), &|_| Ok(text.to_owned()));
    plan(path, sources, faults, STAGES)
}

fn drawn(text: &str) -> Vec<String> {
    let plan = real(text).unwrap_or_else(|rejected| panic!("{rejected}"));
    let line = |node: &Node| {
        let edge = |edge: &Edge| format!(" {}={}.{}", edge.port, plan.nodes[edge.node].name, edge.output);
        format!("{} <-{}", node.name, node.inputs.iter().map(edge).collect::<String>())
    };
    plan.nodes.iter().map(line).collect()
}

/// The only fault, the text that it underlines, and its hint.
fn fault(text: &str) -> (String, String, String) {
    let rejected = real(text).err().expect("the manifest has a fault");
    assert_eq!(rejected.faults.len(), 1, "{rejected}");
    let fault = &rejected.faults[0];
    let under = rejected.sources.text(fault.place.as_ref().unwrap()).to_owned();
    (fault.error.to_string(), under, fault.hint.clone().unwrap_or_default())
}

const CORPUS: &str = "[stage.corpus]\nsources = [{ synthetic = { prose = 9 } }]\n";

#[test]
fn an_input_is_divided_and_the_stage_merges() {
    let nodes = drawn(&format!(
        "{CORPUS}[stage.embed]\ntexts = 'corpus'\nshards = 2\n[stage.cluster]\nembeddings = 'embed'"
    ));
    let expected = [
        "embed[split] <- texts=corpus.texts",
        "embed[shard=0] <- texts=embed[split].000",
        "embed[shard=1] <- texts=embed[split].001",
        "embed <- embeddings.000=embed[shard=0].embeddings embeddings.001=embed[shard=1].embeddings",
        "cluster <- embeddings=embed.embeddings",
    ];
    assert_eq!(nodes[1..], expected);
}

#[test]
fn shards_multiply_with_a_matrix() {
    let nodes = drawn(&format!("{CORPUS}[stage.embed]\ntexts = 'corpus'\nshards = 1\nmatrix.dim = [8, 16]"));
    let names: Vec<&str> = nodes.iter().map(|line| line.split(" <-").next().unwrap()).collect();
    let expected = [
        "embed[dim=8,split]",
        "embed[dim=8,shard=0]",
        "embed[dim=8]",
        "embed[dim=16,split]",
        "embed[dim=16,shard=0]",
        "embed[dim=16]",
    ];
    assert_eq!(names[1..], expected);
}

const EXEC: &str = "
[stage.first]
kind = 'exec'
argv = ['true']
outputs = ['x']
[stage.many]
kind = 'exec'
argv = ['work', '{shard}', '{in.a}']
inputs.a = 'first'
files = ['m.toml']
outputs = ['*']
shards = 2
resources = { gpus = 1, cpus = 4 }
";

#[test]
fn without_a_split_every_shard_reads_all_inputs() {
    let nodes = drawn(EXEC);
    let expected = [
        "many[shard=0] <- inputs.a=first.out",
        "many[shard=1] <- inputs.a=first.out",
        "many <- out.000=many[shard=0].out out.001=many[shard=1].out",
    ];
    assert_eq!(nodes[1..], expected);
}

#[test]
fn shards_have_the_files_and_devices_and_the_merge_has_neither() {
    let plan = real(EXEC).unwrap();
    let needs: Vec<_> =
        plan.nodes.iter().map(|node| (node.reads.is_ok(), node.limits.resources.gpus)).collect();
    // `m.toml` is not on disk here.
    assert_eq!(needs, [(true, None), (false, Some(1)), (false, Some(1)), (true, None)]);
    assert_eq!(plan.nodes[3].limits.resources.cpus, Some(4));
    let params: Vec<_> = plan.nodes[1..].iter().map(|node| node.action.params().to_string()).collect();
    assert!(params[0] != params[1] && params[1] != params[2]);
}

#[test]
fn what_cannot_be_divided_is_refused_where_it_stands() {
    let embed = |shards: &str| fault(&format!("{CORPUS}[stage.embed]\ntexts = 'corpus'\nshards = {shards}"));
    let told = |error: &str, under: &str, hint: &str| (error.to_owned(), under.to_owned(), hint.to_owned());
    assert_eq!(
        fault(&format!("{CORPUS}shards = 4")),
        told(
            "a stage of kind `corpus` cannot be run in shards",
            "4",
            "these kinds can: `embed`, `context-gain`, `predict`, `analyze`, `exec`"
        )
    );
    assert_eq!(embed("0"), told("`shards` is 0, outside 1 to 1000", "0", ""));
    assert_eq!(embed("1001"), told("`shards` is 1001, outside 1 to 1000", "1001", ""));
    let hint = "the stage is run in so many shards";
    let wrong = |found| format!("`shards` must be a whole number of at least 1, found {found}");
    assert_eq!(embed("'4'"), told(&wrong("a string"), "'4'", hint));
    assert_eq!(embed("-1"), told(&wrong("a negative number"), "-1", hint));
    let without = EXEC.replace("'{shard}', ", "").replace("files = ['m.toml']\n", "");
    assert_eq!(
        fault(&without).0,
        "parameter `argv`: does not use `{shard}`, so every shard would do the same"
    );
    let lone = EXEC.replace("shards = 2\n", "");
    assert_eq!(fault(&lone).0, "parameter `argv.1`: `{shard}` needs `shards = N`");
    assert!(
        fault(&format!("{CORPUS}[stage.embed]\ntexts = 'corpus'\nmatrix.shards = [1]")).0.contains("axis")
    );
}

#[test]
fn too_many_nodes_are_refused() {
    let text = format!(
        "{CORPUS}[stage.embed]\ntexts = 'corpus'\nshards = 900\nmatrix.seed = [1,2,3,4,5,6,7,8,9,10,11,12]"
    );
    assert_eq!(fault(&text).0, "stage `embed` has more than 10,000 variants");
}
