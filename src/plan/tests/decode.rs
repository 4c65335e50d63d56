//! Values of every type as parameters: what is told of wrong ones, where, and that nothing hides behind the first.

use std::num::NonZeroU32;

use super::*;
use crate::stage::Finite;

/// Has a parameter of every type.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Rich {
    /// How many. Or so.
    #[serde(default)]
    count: Option<NonZeroU32>,
    /// A share.
    #[serde(default)]
    share: Option<Finite>,
    /// Whether.
    #[serde(default)]
    flag: bool,
    /// Names.
    #[serde(default)]
    names: Vec<String>,
    /// A point.
    #[serde(default)]
    point: Option<Point>,
    /// Points.
    #[serde(default)]
    points: Vec<Point>,
    /// A shift.
    #[serde(default)]
    shift: i16,
}

/// Where.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Point {
    /// Across.
    x: u8,
    /// Down.
    #[serde(default)]
    y: u8,
}

impl Stage for Rich {
    const KIND: &'static str = "rich";
    const CODE: Code = &[("test", "1")];
    const OUTPUTS: &'static [OutputPort] = &[OutputPort { name: "texts", kind: "texts" }];
    fn check(&self) -> Result<(), Invalid> {
        if let Some(point) = self.points.iter().position(|point| point.x == 0) {
            return Err(Invalid::new(format!("points.{point}.x"), "must be at least 1"));
        }
        if self.names.len() > 3 {
            return Err(Invalid::new("names.9", "too many"));
        }
        match (&self.point, self.flag) {
            (None, true) => Err(Invalid::new("flag", "`flag` needs a point").hint("add one")),
            _ => Ok(()),
        }
    }
    fn run(&self, _: &Cx<'_>) -> Result<(), Failure> {
        Ok(())
    }
}

static RICH: &[Entry] = &[Entry::of::<Rich>()];

/// Faults of a stage with these lines, as `message | text underlined | hint`.
fn told(lines: &str) -> Vec<String> {
    let path = Path::new("m.toml");
    let text = format!("[stage.rich]\n{lines}");
    let (sources, faults) = Sources::read_with(path, &Options::default(), &|_| Ok(text.clone()));
    let Err(rejected) = plan(path, sources, faults, RICH) else { return Vec::new() };
    let line = |fault: &Arc<Fault<PlanError>>| {
        let under = fault.place.as_ref().map_or("-", |place| rejected.sources.text(place));
        format!("{} | {under} | {}", fault.error, fault.hint.as_deref().unwrap_or("-"))
    };
    rejected.faults.iter().map(line).collect()
}

#[track_caller]
fn check(lines: &str, expected: &[&str]) {
    assert_eq!(told(lines), expected, "{lines}");
}

#[test]
fn values_of_the_wrong_type_are_told_in_plain_words() {
    check(
        "count = 0",
        &[
            "expected a whole number of at least 1, found integer `0` | 0 | `count` (whole number from 1): How many",
        ],
    );
    check(
        "count = -1",
        &[
            "expected a whole number of at least 1, found integer `-1` | -1 | `count` (whole number from 1): How many",
        ],
    );
    check(
        "count = 1.5",
        &[
            "expected a whole number of at least 1, found floating point `1.5` | 1.5 | `count` (whole number from 1): How many",
        ],
    );
    check(
        "shift = 40000",
        &["expected a whole number, found integer `40000` | 40000 | `shift` (whole number): A shift"],
    );
    check(
        "share = 'half'",
        &["expected a number, found string \"half\" | 'half' | `share` (number): A share"],
    );
    check("share = inf", &["expected a finite number | inf | `share` (number): A share"]);
    check("share = nan", &["expected a finite number | nan | `share` (number): A share"]);
    check("flag = 1", &["expected a boolean, found integer `1` | 1 | `flag` (boolean): Whether"]);
    check(
        "names = 'x'",
        &["expected a sequence, found string \"x\" | 'x' | `names` (list of string): Names"],
    );
    check(
        "names = ['x', 3]",
        &["expected a string, found integer `3` | 3 | `names` (list of string): Names"],
    );
    check("point = 3", &["expected struct Point, found integer `3` | 3 | `point` (table { x, y }): A point"]);
}

#[test]
fn a_number_or_a_truth_value_in_quotes_gets_its_own_hint() {
    check(
        "count = '3'",
        &["expected a whole number of at least 1, found string \"3\" | '3' | write it without quotes: `3`"],
    );
    check(
        "share = '0.5'",
        &["expected a number, found string \"0.5\" | '0.5' | write it without quotes: `0.5`"],
    );
    check(
        "flag = 'true'",
        &["expected a boolean, found string \"true\" | 'true' | write it without quotes: `true`"],
    );
    check(
        "points = [{ x = '1' }]",
        &[
            "expected a whole number that is not negative, found string \"1\" | '1' | write it without quotes: `1`",
        ],
    );
}

#[test]
fn a_whole_number_is_good_enough_for_a_share() {
    check("share = 1\ncount = 0x10\nshift = -3\npoint.x = 1\npoints = [{ x = 1 }, { x = 2, y = 3 }]", &[]);
}

#[test]
fn keys_inside_a_table_are_checked_like_parameters() {
    let nested = "unknown parameter `zoom` of a stage of kind `rich` | zoom | known parameters: `x`, `y`";
    check("point = { x = 1, zoom = 2 }", &[nested]);
    check("points = [{ x = 1 }, { x = 1, zoom = 2 }]", &[nested]);
    check("[stage.rich.point]\nx = 1\nzoom = 2", &[nested]);
    check("[[stage.rich.points]]\nx = 1\n[[stage.rich.points]]\nzoom = 2\nx = 1", &[nested]);
    // The common keys are offered for the stage's own table only.
    check("sed = 1", &["unknown parameter `sed` of a stage of kind `rich` | sed | did you mean `seed`?"]);
    check(
        "point = { x = 1, sed = 1 }",
        &["unknown parameter `sed` of a stage of kind `rich` | sed | known parameters: `x`, `y`"],
    );
}

#[test]
fn a_field_that_is_missing_inside_a_table_is_told_there() {
    let found = told("point = { y = 1 }");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("missing field `x` | { y = 1 } | "), "{found:?}");
}

#[test]
fn nothing_hides_behind_the_first_mistake() {
    let found = told("count = 0\nshare = 'x'\nnope = 1\npoint = { x = 'y' }\nnames = [1]\nflag = true");
    let under: Vec<&str> = found.iter().map(|line| line.split(" | ").nth(1).unwrap()).collect();
    assert_eq!(under, ["0", "'x'", "nope", "'y'", "1"], "{found:#?}");
}

#[test]
fn what_a_stage_refuses_lies_on_the_nearest_text_that_is_written() {
    check("points = [{ x = 1 }, { x = 0 }]", &["parameter `points.1.x`: must be at least 1 | 0 | -"]);
    check("names = ['a', 'b', 'c', 'd']", &["parameter `names.9`: too many | ['a', 'b', 'c', 'd'] | -"]);
    check("flag = true", &["`flag` needs a point | true | add one"]);
}

#[test]
fn what_a_stage_would_refuse_is_not_asked_while_a_value_is_missing() {
    let variables = "there are no variables; write `$${` for a plain `${`";
    check("flag = true\npoint = '${no}'", &[&format!("unknown variable `no` | ${{no}} | {variables}")]);
}

#[test]
fn an_axis_is_checked_value_by_value() {
    check(
        "matrix.count = [1, 0, 'x']",
        &[
            "expected a whole number of at least 1, found integer `0` | 0 | `count` (whole number from 1): How many",
            "expected a whole number of at least 1, found string \"x\" | 'x' | `count` (whole number from 1): How many",
        ],
    );
    check(
        "matrix.cuont = [1, 2]",
        &["unknown parameter `cuont` of a stage of kind `rich` | cuont | did you mean `count`?"],
    );
    check(
        "matrix.seed = [1, -1]",
        &[
            "`seed` must be a whole number from 0 to 2^64 - 1, found a negative number | -1 | any such number will do; equal seeds give equal results",
        ],
    );
}

#[test]
fn a_value_from_a_variable_of_another_file_points_there_too() {
    let open = |path: &Path| {
        Ok(match path.to_str() {
            Some("top.toml") => "[pipeline]\nextends = 'low.toml'\n[vars]\nn = 'many'\nm = 'x'".to_owned(),
            _ => "[vars]\nn = 1\n[stage.rich]\nnames = ['${m}']\ncount = '${n}'".to_owned(),
        })
    };
    let (sources, faults) = Sources::read_with(Path::new("top.toml"), &Options::default(), &open);
    let rejected = plan(Path::new("top.toml"), sources, faults, RICH).err().unwrap();
    let [fault] = &rejected.faults[..] else { panic!("{rejected}") };
    let at = |place: &Span| {
        let (source, local) = rejected.sources.locate(place).unwrap();
        (source.name.clone(), source.text[local].to_owned())
    };
    assert_eq!(at(fault.place.as_ref().unwrap()), ("low.toml".to_owned(), "'${n}'".to_owned()));
    let [(place, label)] = &fault.related[..] else { panic!("{fault:?}") };
    assert_eq!(
        (at(place), label.as_str()),
        (("top.toml".to_owned(), "'many'".to_owned()), "`n` is set here")
    );
}
