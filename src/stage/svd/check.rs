//! Which parameters of a conversion go together. Knows no model.

use super::{
    Svd,
    pieces::{LatentKind, LayerBudgets, Layout, Pieces, RotaryBasis, RotaryChoice, TokenWeights},
};
use crate::stage::Invalid;

impl Svd {
    /// Whether they do.
    pub(super) fn check_together(&self) -> Result<(), Invalid> {
        self.check_size()?;
        let pieces = self.pieces();
        let chooses = matches!(pieces.layout, Layout::B | Layout::D);
        match (chooses, self.rope_pairs) {
            (false, Some(_)) => {
                return Err(Invalid::new("rope-pairs", "`rope-pairs` goes with layout `b` or `d`").hint(
                    "layout `a` rotates all pairs, and `recompute` rotates keys after they were made",
                ));
            }
            (true, None) if self.kv_lora_rank.is_some() => {
                return Err(Invalid::new("rope-pairs", "`kv-lora-rank` needs `rope-pairs` beside it")
                    .hint("`kv-budget` chooses both"));
            }
            _ => {}
        }
        self.check_rotary(&pieces)?;
        self.check_budgets(&pieces)?;
        if pieces.recalibrate && pieces.token_weights != TokenWeights::None {
            return Err(Invalid::new("recalibrate", "`recalibrate` counts all tokens alike")
                .hint("it goes with `token-weights = \"none\"`"));
        }
        if let Some(search) = &self.search {
            let good = self.kv_budget.is_some() && self.measure > 0 && !search.kv_budget.contains(&0);
            if !good || search.kv_budget.is_empty() {
                return Err(Invalid::new("search", "`search` compares budgets above 0 by measuring them")
                    .hint("it goes with `kv-budget`, and with a `measure` above 0"));
            }
        }
        if self.input_damping.as_ref().is_some_and(|share| share.0 < 0.0) {
            return Err(Invalid::new("input-damping", "must not be negative"));
        }
        if self.damping.0 <= 0.0 || self.parity_tolerance.0 <= 0.0 {
            return Err(Invalid::new("damping", "`damping` and `parity-tolerance` must be positive"));
        }
        if self.angle.0 < 0.0 || self.context == 0 {
            return Err(Invalid::new("angle", "`angle` must not be negative, and `context` not 0"));
        }
        Ok(())
    }

    /// How much is cached.
    fn check_size(&self) -> Result<(), Invalid> {
        match (self.kv_budget, self.kv_lora_rank) {
            (Some(_), Some(_)) => {
                return Err(Invalid::new(
                    "kv-lora-rank",
                    "`kv-lora-rank` and `kv-budget` exclude each other",
                )
                .hint("a budget chooses the rank"));
            }
            (None, None) => {
                return Err(Invalid::new("kv-budget", "the size of the cache is missing")
                    .hint("give `kv-budget`, or `kv-lora-rank` with `rope-pairs`"));
            }
            (Some(0), _) | (_, Some(0)) => {
                return Err(Invalid::new("kv-budget", "the latent needs a width above 0"));
            }
            _ => {}
        }
        Ok(())
    }

    /// Ranks by gradients are those of whole projections, each of which has at least one channel.
    fn check_budgets(&self, pieces: &Pieces) -> Result<(), Invalid> {
        if pieces.layer_budgets != LayerBudgets::Fisher {
            return Ok(());
        }
        let searched = self.search.iter().flat_map(|search| &search.kv_budget);
        if searched.chain(&self.kv_budget).chain(&self.kv_lora_rank).any(|&size| size == 1) {
            return Err(Invalid::new("layer-budgets", "`fisher` gives keys and values a channel each")
                .hint("it goes with a size of at least 2"));
        }
        if pieces.layout != Layout::Recompute || pieces.latent != LatentKind::Separate {
            return Err(Invalid::new("layer-budgets", "`fisher` divides ranks of whole key and value projections")
                .hint("it goes with `layout = \"recompute\"` and `latent = \"separate\"`, as in `method = \"palu\"`; other choices need `layer-budgets = \"uniform\"`"));
        }
        Ok(())
    }

    /// Pieces that only components across heads have.
    fn check_rotary(&self, pieces: &Pieces) -> Result<(), Invalid> {
        let set = [
            ("rotary-basis", self.rotary_basis.is_some()),
            ("rotary-choice", self.rotary_choice.is_some()),
            ("freqfold", !self.freqfold.is_empty()),
        ];
        if let Some((name, _)) = set.iter().find(|(_, set)| *set && pieces.layout != Layout::D) {
            return Err(Invalid::new(*name, format!("`{name}` goes with layout `d`")));
        }
        if self.freqfold.contains(&0) {
            return Err(Invalid::new("freqfold", "a group of frequencies has at least one"));
        }
        if pieces.rotary_choice == RotaryChoice::Norm && pieces.rotary_basis != RotaryBasis::Heads {
            return Err(Invalid::new("rotary-choice", "`norm` compares the keys of single heads")
                .hint("it goes with `rotary-basis = \"heads\"`"));
        }
        Ok(())
    }
}
