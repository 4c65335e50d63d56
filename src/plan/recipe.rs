//! Recipes: the table of one stage as text, from which a host without the manifest makes the stage again.

use toml::{
    Spanned,
    de::{DeTable, Deserializer},
};

use crate::{
    engine::action::Action,
    manifest::Span,
    stage::{shards::Part, table::Entry},
};
use serde::Deserialize;

/// The key that says which part of a stage is meant; no stage has such a parameter.
pub(super) const PART: &str = "part";

/// The text of a table; `None` for one that is no plain TOML, which cannot be decoded either.
pub(super) fn write(table: &DeTable<'_>, header: &Span) -> Option<String> {
    let plain =
        toml::Table::deserialize(Deserializer::from(Spanned::new(header.clone(), table.clone()))).ok()?;
    toml::to_string(&plain).ok()
}

/// The recipe of one part of the stage with this recipe.
pub(super) fn of_part(recipe: &str, part: Part) -> String {
    // Above the table's own keys: below, it could fall into a section.
    format!("{PART} = \"{part}\"\n{recipe}")
}

/// The stage of a kind from its recipe.
pub fn action(table: &[Entry], kind: &str, recipe: &str) -> Result<Box<dyn Action>, String> {
    let row =
        table.iter().find(|row| row.kind == kind).ok_or_else(|| format!("there is no kind `{kind}`"))?;
    let mut parsed = DeTable::parse(recipe).map_err(|error| error.to_string())?;
    let part = parsed.get_mut().remove(PART);
    let part = part.map(|part| part.get_ref().as_str().unwrap_or_default().parse::<Part>()).transpose()?;
    let planned = (row.decode)(Deserializer::from(parsed)).map_err(|error| error.message().to_owned())?;
    planned.check(part.is_some()).map_err(|invalid| invalid.to_string())?;
    let Some(part) = part else { return Ok(planned.into_action()) };
    let divided = planned.divided().ok_or_else(|| format!("a stage of kind `{kind}` has no parts"))?;
    Ok(divided.part(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::table::STAGES;

    #[test]
    fn a_stage_made_again_has_the_same_parameters() {
        let text = "argv = [\"sh\", \"-c\", \"cat {in.a}\"]\noutputs = [\"x\"]\ninputs = { a = \"first\" }\nnumerics = \"per-device\"\n";
        let parsed = DeTable::parse(text).unwrap();
        let recipe = write(parsed.get_ref(), &(0..text.len())).unwrap();
        let [one, two] = [text, &recipe].map(|text| action(STAGES, "exec", text).unwrap());
        assert_eq!(one.params(), two.params());
        assert_eq!((one.kind(), one.code(), one.numerics()), (two.kind(), two.code(), two.numerics()));
    }

    #[test]
    fn a_part_made_again_is_that_part() {
        let text = "texts = \"corpus\"\ndim = 64\n";
        let whole = action(STAGES, "embed", text).unwrap();
        let divided = || {
            (STAGES.iter().find(|row| row.kind == "embed").unwrap().decode)(
                toml::de::Deserializer::parse(text).unwrap(),
            )
            .unwrap()
            .divided()
            .unwrap()
        };
        for part in Part::all(3, true) {
            let again = action(STAGES, "embed", &of_part(text, part)).unwrap();
            let first = divided().part(part);
            assert_eq!((again.params(), again.outputs()), (first.params(), first.outputs()));
            assert_ne!(again.params(), whole.params());
        }
        let section = "argv = [\"sh\", \"{shard}\"]\noutputs = [\"x\"]\n[inputs]\na = \"first\"\n";
        let shard = action(STAGES, "exec", &of_part(section, "shard 1 of 2".parse().unwrap())).unwrap();
        assert_eq!(shard.params()["params"]["shard"], 1);
    }

    #[test]
    fn what_is_no_recipe_of_the_kind_is_refused() {
        let refused = |kind: &str, text: &str| action(STAGES, kind, text).err().expect("it is wrong");
        assert!(refused("nothing", "").contains("nothing"));
        assert!(refused("exec", "argv = [").contains("TOML"));
        assert!(refused("exec", "argv = 1").contains("invalid type"));
        assert!(refused("exec", "part = 'all of it'").contains("no part"));
        assert!(refused("svd", "part = 'merge of 2'").contains("missing"));
        assert!(refused("exec", "argv = []\noutputs = [\"x\"]").contains("is empty"));
    }
}
