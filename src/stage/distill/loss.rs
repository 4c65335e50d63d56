//! What the user can choose of the loss of distillation. Knows no arithmetic.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    kernel::divergence::{self, Divergence},
    stage::{Finite, Invalid},
};

/// What a token costs in the phase `kl`. The default is forward KL at temperature 1 and nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Loss {
    /// Which way apart the next-token distributions are.
    pub divergence: Kind,
    /// The teacher's share of the mixture that `jsd` compares both with, between 0 and 1.
    pub beta: Finite,
    /// Divides both models' logits; the loss is multiplied by its square, so that gradients keep their size.
    pub temperature: Finite,
    /// Weight of the cross-entropy of the token that follows.
    pub cross_entropy: Finite,
    /// Weight of the relative squared error of the residual stream behind each layer from the first converted one on.
    pub hidden_mse: Finite,
    /// Weight of one minus the cosine between the two residual streams there.
    pub hidden_cosine: Finite,
}

/// Which way apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `KL(teacher ‖ student)`: the student covers whatever the teacher may say.
    #[default]
    Forward,
    /// `KL(student ‖ teacher)`: the student says nothing that the teacher would not.
    Reverse,
    /// Generalised Jensen–Shannon divergence: between the two, and bounded.
    Jsd,
}

impl Default for Loss {
    fn default() -> Self {
        Self {
            divergence: Kind::Forward,
            beta: Finite(0.5),
            temperature: Finite(1.0),
            cross_entropy: Finite(0.0),
            hidden_mse: Finite(0.0),
            hidden_cosine: Finite(0.0),
        }
    }
}

impl Loss {
    /// Values that mean something.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if self.temperature.0 <= 0.0 {
            return Err(Invalid::new("loss", "`temperature` must be positive"));
        }
        if self.beta.0 <= 0.0 || self.beta.0 >= 1.0 {
            return Err(Invalid::new("loss", "`beta` must lie between 0 and 1")
                .hint("`forward` and `reverse` are what lies at its ends"));
        }
        if [&self.cross_entropy, &self.hidden_mse, &self.hidden_cosine].iter().any(|weight| weight.0 < 0.0) {
            return Err(Invalid::new("loss", "a weight must not be negative"));
        }
        Ok(())
    }

    /// What the logits of a token cost.
    pub(super) fn token(&self) -> divergence::Loss {
        divergence::Loss {
            divergence: match self.divergence {
                Kind::Forward => Divergence::Forward,
                Kind::Reverse => Divergence::Reverse,
                Kind::Jsd => Divergence::Jsd(self.beta.0),
            },
            temperature: self.temperature.0,
            cross_entropy: self.cross_entropy.0,
        }
    }

    /// Whether residual streams are compared.
    pub(super) fn looks_inside(&self) -> bool {
        self.hidden_mse.0 > 0.0 || self.hidden_cosine.0 > 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(toml: &str) -> Loss {
        toml::from_str(toml).unwrap()
    }

    #[test]
    fn what_is_left_out_is_forward_kl_alone() {
        assert_eq!(loss(""), Loss::default());
        assert_eq!(loss("").token(), divergence::Loss::default());
        assert!(!loss("cross-entropy = 0.5").looks_inside() && loss("hidden-mse = 0.1").looks_inside());
        let jsd = loss("divergence = 'jsd'\nbeta = 0.25\ntemperature = 2.0").token();
        assert_eq!((jsd.divergence, jsd.temperature), (Divergence::Jsd(0.25), 2.0));
        assert_eq!(loss("divergence = 'reverse'").token().divergence, Divergence::Reverse);
    }

    #[test]
    fn values_without_meaning_are_refused() {
        for wrong in
            ["temperature = 0.0", "beta = 1.0", "beta = 0.0", "cross-entropy = -0.1", "hidden-cosine = -1.0"]
        {
            assert!(loss(wrong).check().is_err(), "{wrong}");
        }
        assert!(loss("beta = 0.9\nhidden-mse = 2.0").check().is_ok());
    }
}
