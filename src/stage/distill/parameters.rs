//! Which parameters train, and at which rates: chosen by name. Knows no gradient and no step.

use std::collections::BTreeMap;

use candle_core::Var;
use globset::{Glob, GlobMatcher};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Distill, save, trainer::TrainError};
use crate::stage::{Finite, Invalid};

/// Which parameters train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Train {
    /// The attention of latent layers: projections, biases and sinks.
    #[default]
    Attention,
    /// Every parameter.
    All,
}

/// Parameters with rates of their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Group {
    /// A pattern of their names, such as `*.sinks`.
    pub parameters: String,
    /// Times the phase's learning rate.
    #[serde(default = "one")]
    pub lr: Finite,
    /// Their weight decay; without it matrices have that of the stage, and vectors have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<Finite>,
}

fn one() -> Finite {
    Finite(1.0)
}

/// The rates of one parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rates {
    /// Times the learning rate of the step.
    pub(crate) lr: f32,
    /// Times the learning rate and the parameter itself is what a step takes away.
    pub(crate) weight_decay: f32,
}

/// What the user chose, with its patterns read.
pub(crate) struct Choice<'a> {
    settings: &'a Distill,
    only: Vec<GlobMatcher>,
    groups: Vec<(GlobMatcher, &'a Group)>,
}

impl<'a> Choice<'a> {
    /// Reads the patterns.
    pub(crate) fn new(settings: &'a Distill) -> Result<Self, Invalid> {
        let only = settings.only.iter().enumerate();
        let groups = settings.groups.iter().enumerate();
        for (i, group) in groups.clone() {
            if group.lr.0 < 0.0 || group.weight_decay.as_ref().is_some_and(|decay| decay.0 < 0.0) {
                return Err(Invalid::new(format!("groups.{i}"), "rates must not be negative"));
            }
        }
        Ok(Self {
            settings,
            only: only.map(|(i, text)| pattern(format!("only.{i}"), text)).collect::<Result<_, _>>()?,
            groups: groups
                .map(|(i, group)| Ok((pattern(format!("groups.{i}.parameters"), &group.parameters)?, group)))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Whether the parameter `name` of a model with this configuration trains.
    pub(crate) fn trains(&self, config: &Value, name: &str) -> bool {
        self.is_candidate(config, name)
            && (self.only.is_empty() || self.only.iter().any(|pattern| pattern.is_match(name)))
    }

    /// The rates of all parameters that train; of several groups that match one, the first counts.
    pub(crate) fn rates(&self, vars: &BTreeMap<String, Var>) -> BTreeMap<String, Rates> {
        let of = |(name, var): (&String, &Var)| {
            let usual = if var.rank() > 1 { self.settings.weight_decay.0 } else { 0.0 };
            let group = self.groups.iter().find(|(pattern, _)| pattern.is_match(name));
            let (lr, decay) =
                group.map_or((1.0, None), |(_, group)| (group.lr.0, group.weight_decay.as_ref()));
            let decay = decay.map_or(usual, |decay| decay.0);
            (name.clone(), Rates { lr: lr as f32, weight_decay: decay as f32 })
        };
        vars.iter().map(of).collect()
    }

    /// Refuses a pattern that has nothing to say, for a model whose parameters have these `names`.
    pub(crate) fn check<'n>(
        &self,
        config: &Value,
        names: impl Iterator<Item = &'n str>,
    ) -> Result<(), TrainError> {
        let candidates: Vec<&str> = names.filter(|name| self.is_candidate(config, name)).collect();
        let Some(example) = candidates.first() else { return Err(TrainError::NothingTrains) };
        let all = self.only.iter().chain(self.groups.iter().map(|(pattern, _)| pattern));
        for pattern in all {
            if !candidates.iter().any(|name| pattern.is_match(name)) {
                let (pattern, example) = (pattern.glob().glob().to_owned(), (*example).to_owned());
                return Err(TrainError::NoParameter { pattern, example });
            }
        }
        Ok(())
    }

    /// Whether `train` lets it train.
    fn is_candidate(&self, config: &Value, name: &str) -> bool {
        match self.settings.train {
            Train::All => true,
            Train::Attention => save::is_latent_attention(config, name),
        }
    }
}

/// `*` stands for any part of a name, dots too.
fn pattern(param: String, text: &str) -> Result<GlobMatcher, Invalid> {
    let glob = Glob::new(text)
        .map_err(|e| Invalid::new(param, format!("`{text}` is not a pattern of names: {}", e.kind())))?;
    Ok(glob.compile_matcher())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{kernel::testing::var, stage::distill::tests::healing};

    fn vars(names: &[(&str, &[usize])]) -> BTreeMap<String, Var> {
        names.iter().map(|(name, shape)| ((*name).to_owned(), var(1, shape, 1.0))).collect()
    }

    #[test]
    fn patterns_narrow_what_trains() {
        let config = json!({"mla": [null, {"kv_lora_rank": 4}, {"kv_lora_rank": 4}]});
        let rows = [
            (Train::Attention, &[][..], [false, true, true, false, true]),
            (Train::Attention, &["model.layers.1.*"], [false, true, true, false, false]),
            (Train::Attention, &["*.sinks", "*.2.*.o_proj.*"], [false, true, false, false, true]),
            (Train::Attention, &["*"], [false, true, true, false, true]),
            (Train::All, &["*.mlp.*"], [false, false, false, true, false]),
            (Train::All, &[], [true; 5]),
        ];
        let names = [
            "model.layers.0.self_attn.sinks",
            "model.layers.1.self_attn.sinks",
            "model.layers.1.self_attn.q_proj.weight",
            "model.layers.1.mlp.router.weight",
            "model.layers.2.self_attn.o_proj.weight",
        ];
        for (train, only, expected) in rows {
            let only: Vec<String> = only.iter().map(|&text| text.to_owned()).collect();
            let settings = Distill { train, only: only.clone(), ..healing() };
            let choice = Choice::new(&settings).unwrap();
            assert_eq!(names.map(|name| choice.trains(&config, name)), expected, "{train:?} {only:?}");
        }
    }

    #[test]
    fn the_first_group_that_matches_sets_the_rates() {
        let group = |parameters: &str, lr, weight_decay: Option<f64>| Group {
            parameters: parameters.to_owned(),
            lr: Finite(lr),
            weight_decay: weight_decay.map(Finite),
        };
        let groups =
            vec![group("*.sinks", 0.1, Some(0.5)), group("a.*", 2.0, None), group("*", 3.0, Some(0.0))];
        let settings = Distill { groups, weight_decay: Finite(0.25), ..healing() };
        let rates = Choice::new(&settings).unwrap().rates(&vars(&[
            ("a.sinks", &[2]),
            ("a.weight", &[2, 2]),
            ("a.bias", &[2]),
            ("b.weight", &[2, 2]),
        ]));
        let of = |name: &str| (rates[name].lr, rates[name].weight_decay);
        assert_eq!(of("a.sinks"), (0.1, 0.5), "even a vector decays where a group says so");
        assert_eq!((of("a.weight"), of("a.bias"), of("b.weight")), ((2.0, 0.25), (2.0, 0.0), (3.0, 0.0)));
        let plain = Distill { weight_decay: Finite(0.25), ..healing() };
        let rates = Choice::new(&plain).unwrap().rates(&vars(&[("w", &[2, 2]), ("v", &[2])]));
        assert_eq!(rates["w"], Rates { lr: 1.0, weight_decay: 0.25 });
        assert_eq!(rates["v"], Rates { lr: 1.0, weight_decay: 0.0 });
    }

    #[test]
    fn patterns_that_say_nothing_are_refused() {
        let of = |only: &str| Distill { only: vec!["*".into(), only.into()], ..healing() };
        let error = Choice::new(&of("a[")).map(|_| ()).unwrap_err();
        assert!(format!("{error:?}").contains("only.1"), "{error:?}");
        let settings = of("*.gate");
        let choice = Choice::new(&settings).unwrap();
        let config = json!({"mla": [{}]});
        let check = |part: &str| choice.check(&config, [part, "lm_head.gate"].into_iter());
        let error = check("model.layers.0.self_attn.x").unwrap_err().to_string();
        assert!(error.contains("`*.gate`") && error.contains("`model.layers.0.self_attn.x`"), "{error}");
        check("model.layers.0.self_attn.gate").unwrap();
        assert!(matches!(check("model.layers.1.self_attn.gate"), Err(TrainError::NothingTrains)));
    }
}
