//! Recipes: the table of one stage as text, from which a host without the manifest makes the stage again.

use toml::{
    Spanned,
    de::{DeTable, Deserializer},
};

use crate::{engine::action::Action, manifest::Span, stage::table::Entry};
use serde::Deserialize;

/// The text of a table; `None` for one that is no plain TOML, which cannot be decoded either.
pub(super) fn write(table: &DeTable<'_>, header: &Span) -> Option<String> {
    let plain =
        toml::Table::deserialize(Deserializer::from(Spanned::new(header.clone(), table.clone()))).ok()?;
    toml::to_string(&plain).ok()
}

/// The stage of a kind from its recipe.
pub fn action(table: &[Entry], kind: &str, recipe: &str) -> Result<Box<dyn Action>, String> {
    let row =
        table.iter().find(|row| row.kind == kind).ok_or_else(|| format!("there is no kind `{kind}`"))?;
    let parsed = DeTable::parse(recipe).map_err(|error| error.to_string())?;
    let planned = (row.decode)(Deserializer::from(parsed)).map_err(|error| error.message().to_owned())?;
    planned.check().map_err(|invalid| invalid.to_string())?;
    Ok(planned.into_action())
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
    fn what_is_no_recipe_of_the_kind_is_refused() {
        let refused = |kind: &str, text: &str| action(STAGES, kind, text).err().expect("it is wrong");
        assert!(refused("nothing", "").contains("nothing"));
        assert!(refused("exec", "argv = [").contains("TOML"));
        assert!(refused("exec", "argv = 1").contains("invalid type"));
        assert!(refused("exec", "argv = []\noutputs = [\"x\"]").contains("is empty"));
    }
}
