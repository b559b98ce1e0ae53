//! Whether active edits and canaries hold under the weights that an edit would make. Pure functions of figures.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{TargetFigures, figure, guard::Limits};

/// Names in a sentence at most; the report has them all.
const NAMED: usize = 3;

/// What an edit does to others: the active edits that were scored again, and the canaries.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct HoldingReport {
    /// Active edits that were scored again.
    pub edits_checked: usize,
    pub canaries_checked: usize,
    /// Those of them that break.
    pub broken_edits: Vec<BrokenEdit>,
    pub broken_canaries: Vec<BrokenCanary>,
}

/// Why something breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BreakReason {
    /// The target's tokens were the most probable ones, and no longer are.
    NoLongerGreedy,
    /// The target's probability falls below the least that the active edit's own guard asked for.
    BelowMinimum,
    /// The target's probability falls below `min_share` of what it was.
    LostShare,
    /// The most probable next token is another.
    AnswerChanged,
    /// The KL divergence from before to after is above `max_kl`.
    AboveMaxKl,
}

/// An active edit that breaks.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BrokenEdit {
    pub edit: Uuid,
    pub prompt: String,
    pub target: String,
    pub reason: BreakReason,
    pub before: TargetFigures,
    pub after: TargetFigures,
}

/// A canary that breaks.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BrokenCanary {
    pub prompt: String,
    /// The answer that it should have, if it was given one.
    pub expected: Option<String>,
    pub reason: BreakReason,
    /// KL divergence from before to after, nats, mean over the measured positions.
    #[serde(serialize_with = "figure::serialize")]
    pub kl: f32,
    /// The expected answer's figures.
    pub before: Option<TargetFigures>,
    pub after: Option<TargetFigures>,
}

/// How a canary reads from before to after.
#[derive(Debug, Clone, Copy)]
pub struct CanaryFigures {
    /// The expected answer's figures before and after, where there is one.
    pub expected: Option<(TargetFigures, TargetFigures)>,
    pub kl: f32,
    pub greedy_unchanged: bool,
}

impl Limits {
    /// Why an active edit with its own least probability breaks; none if it holds, or did not hold before.
    pub fn break_of_edit(
        &self,
        before: TargetFigures,
        after: TargetFigures,
        minimum: Option<f32>,
    ) -> Option<BreakReason> {
        if before.greedy && !after.greedy {
            return Some(BreakReason::NoLongerGreedy);
        }
        if minimum.is_some_and(|least| before.probability >= least && after.probability < least) {
            return Some(BreakReason::BelowMinimum);
        }
        let lost = before.greedy && after.probability < self.min_share * before.probability;
        lost.then_some(BreakReason::LostShare)
    }

    /// Why a canary breaks.
    pub fn break_of_canary(&self, figures: &CanaryFigures) -> Option<BreakReason> {
        let broken = match figures.expected {
            Some((before, after)) => self.break_of_edit(before, after, None),
            None => (!figures.greedy_unchanged).then_some(BreakReason::AnswerChanged),
        };
        broken.or_else(|| self.max_kl.is_some_and(|most| figures.kl > most).then_some(BreakReason::AboveMaxKl))
    }
}

impl HoldingReport {
    /// What breaks, with the numbers; none if nothing does.
    pub fn objection(&self) -> Option<String> {
        let (edits, canaries) = (self.broken_edits.len(), self.broken_canaries.len());
        if edits + canaries == 0 {
            return None;
        }
        let of_edit = |broken: &BrokenEdit| {
            let (before, after) = (broken.before.probability, broken.after.probability);
            let named = format!("edit {} ({:?})", broken.edit, broken.prompt);
            format!("{named}: probability {before:.4} -> {after:.4}, {}", broken.reason.words())
        };
        let of_canary = |broken: &BrokenCanary| {
            let BrokenCanary { prompt, reason, kl, .. } = broken;
            format!("canary {prompt:?}: KL {kl:.4}, {}", reason.words())
        };
        let named = self.broken_edits.iter().map(of_edit).chain(self.broken_canaries.iter().map(of_canary));
        let mut named: Vec<String> = named.take(NAMED + 1).collect();
        if named.len() > NAMED {
            named[NAMED] = "...".to_owned();
        }
        let (scored, watched) = (self.edits_checked, self.canaries_checked);
        let what =
            format!("{edits} of {scored} active edits that were scored again, and {canaries} of {watched} canaries");
        Some(format!("it would break {what}: {}", named.join("; ")))
    }
}

impl BreakReason {
    fn words(self) -> &'static str {
        match self {
            Self::NoLongerGreedy => "no longer the model's answer",
            Self::BelowMinimum => "below the least that it asked for",
            Self::LostShare => "below the share that it must keep",
            Self::AnswerChanged => "another answer",
            Self::AboveMaxKl => "above the most that is allowed",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::writer::{Guard, WriterConfig};

    fn figures(probability: f32, greedy: bool) -> TargetFigures {
        TargetFigures { probability, greedy }
    }

    fn limits(min_share: f32, max_kl: Option<f32>) -> Limits {
        WriterConfig { min_share, max_kl, ..WriterConfig::default() }.limits(&Guard::Default)
    }

    #[test]
    fn an_edit_breaks_by_its_answer_its_minimum_or_its_share() {
        let edit = |before, after, minimum| limits(0.5, None).break_of_edit(before, after, minimum);
        assert_eq!(edit(figures(0.9, true), figures(0.8, true), Some(0.7)), None);
        assert_eq!(edit(figures(0.9, true), figures(0.8, false), None), Some(BreakReason::NoLongerGreedy));
        assert_eq!(edit(figures(0.9, true), figures(0.6, true), Some(0.7)), Some(BreakReason::BelowMinimum));
        assert_eq!(edit(figures(0.6, true), figures(0.5, true), Some(0.7)), None, "it was below before");
        assert_eq!(edit(figures(0.9, true), figures(0.4, true), None), Some(BreakReason::LostShare));
        assert_eq!(edit(figures(0.1, false), figures(0.01, false), None), None, "it did not hold before");
    }

    #[test]
    fn a_canary_breaks_by_its_answer_or_its_divergence() {
        let canary = |expected, kl, greedy_unchanged| {
            limits(0.5, Some(0.1)).break_of_canary(&CanaryFigures { expected, kl, greedy_unchanged })
        };
        assert_eq!(canary(None, 0.1, true), None);
        assert_eq!(canary(None, 0.0, false), Some(BreakReason::AnswerChanged));
        assert_eq!(canary(None, 0.2, true), Some(BreakReason::AboveMaxKl));
        let kept = Some((figures(0.9, true), figures(0.8, true)));
        assert_eq!(canary(kept, 0.0, false), None, "what follows the expected answer does not matter");
        let lost = Some((figures(0.9, true), figures(0.8, false)));
        assert_eq!(canary(lost, 0.2, false), Some(BreakReason::NoLongerGreedy));
    }

    #[test]
    fn an_objection_counts_all_and_names_the_first_with_numbers() {
        assert_eq!(HoldingReport { edits_checked: 8, ..HoldingReport::default() }.objection(), None);
        let edit = |n| BrokenEdit {
            edit: Uuid::from_u128(n),
            prompt: format!("p{n}"),
            target: "t".into(),
            reason: BreakReason::NoLongerGreedy,
            before: figures(0.9, true),
            after: figures(0.25, false),
        };
        let report = HoldingReport { edits_checked: 8, broken_edits: (0..4).map(edit).collect(), ..Default::default() };
        let objection = report.objection().unwrap();
        assert!(objection.contains("4 of 8 active edits") && objection.contains("0.9000 -> 0.2500"), "{objection}");
        assert!(objection.contains("\"p2\"") && !objection.contains("\"p3\""), "{objection}");
    }

    proptest! {
        #[test]
        fn what_gets_no_worse_never_breaks(before in 0f32..1.0, more in 0f32..1.0, greedy: bool, share in 0f32..1.0, least in 0f32..1.0) {
            let after = (before + more).min(1.0);
            let broken = limits(share, None).break_of_edit(figures(before, greedy), figures(after, true), Some(least));
            prop_assert_eq!(broken, None);
        }
    }
}
