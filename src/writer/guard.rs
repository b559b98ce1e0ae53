//! The guard: whether an edit's figures are within its limits. Pure functions of numbers.

use super::{LocalityReport, Policy, TargetFigures, WriterError};

/// The limits that hold for an edit: the request's, and the service's where it has none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    pub min_probability: Option<f32>,
    pub max_kl: Option<f32>,
    pub on_break: Policy,
    pub min_share: f32,
    pub on_conflict: Policy,
}

impl Limits {
    /// Nothing is checked.
    pub const NONE: Self =
        Self { min_probability: None, max_kl: None, on_break: Policy::Off, min_share: 0.0, on_conflict: Policy::Off };

    /// Refuses limits that are not numbers of their kind. `prefix` goes before the field's name.
    pub(super) fn check(&self, prefix: &str) -> Result<(), WriterError> {
        let invalid =
            |field: &str, message: String| Err(WriterError::Invalid { field: format!("{prefix}{field}"), message });
        if let Some(p) = self.min_probability
            && !(0.0..=1.0).contains(&p)
        {
            return invalid("min_probability", format!("must be between 0 and 1, given {p}"));
        }
        if !(0.0..=1.0).contains(&self.min_share) {
            return invalid("min_share", format!("must be between 0 and 1, given {}", self.min_share));
        }
        if let Some(kl) = self.max_kl
            && !(kl >= 0.0 && kl.is_finite())
        {
            return invalid("max_kl", format!("must be a finite number >= 0, given {kl}"));
        }
        Ok(())
    }

    /// Why these figures do not pass: every limit that is broken, with both numbers. None if they pass. A figure that
    /// is not a number passes no limit.
    pub(super) fn objection(&self, after: TargetFigures, locality: &[LocalityReport]) -> Option<String> {
        let mut objections = Vec::new();
        if let Some(least) = self.min_probability
            && !at_most(least, after.probability)
        {
            objections.push(format!(
                "the target's probability after the edit is {:.4}, the guard asks for at least {least}",
                after.probability
            ));
        }
        if let Some(most) = self.max_kl {
            objections.extend(locality.iter().enumerate().filter(|(_, probe)| !at_most(probe.kl, most)).map(
                |(i, probe)| {
                    format!(
                        "the KL divergence of locality probe {i} ({:?}) is {:.4}, the guard allows {most}",
                        probe.prompt, probe.kl
                    )
                },
            ));
        }
        (!objections.is_empty()).then(|| objections.join("; "))
    }
}

/// `a <= b`; false if either is not a number.
fn at_most(a: f32, b: f32) -> bool {
    a <= b
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::writer::{Guard, GuardLimits, WriterConfig};

    fn limits(min_probability: Option<f32>, max_kl: Option<f32>) -> Limits {
        WriterConfig { min_probability, max_kl, ..WriterConfig::default() }.limits(&Guard::Default)
    }

    fn figures(probability: f32) -> TargetFigures {
        TargetFigures { probability, greedy: true }
    }

    fn probe(kl: f32) -> LocalityReport {
        LocalityReport { prompt: "The capital of France is".into(), kl, greedy_unchanged: true }
    }

    #[test]
    fn limits_are_inclusive() {
        let limits = limits(Some(0.5), Some(0.1));
        assert_eq!(limits.objection(figures(0.5), &[probe(0.1)]), None);
    }

    #[test]
    fn an_objection_has_the_numbers_of_every_broken_limit() {
        let limits = limits(Some(0.5), Some(0.1));
        let objection = limits.objection(figures(0.25), &[probe(0.05), probe(2.0)]).unwrap();
        assert!(objection.contains("0.2500") && objection.contains("at least 0.5"), "{objection}");
        assert!(objection.contains("probe 1") && objection.contains("2.0000"), "{objection}");
        assert!(!objection.contains("probe 0"), "{objection}");
    }

    #[test]
    fn nothing_that_is_not_a_number_passes() {
        let limits = limits(Some(0.0), Some(1.0));
        assert!(limits.objection(figures(f32::NAN), &[]).is_some());
        assert!(limits.objection(figures(1.0), &[probe(f32::NAN)]).is_some());
        assert_eq!(Limits::NONE.objection(figures(f32::NAN), &[probe(f32::NAN)]), None);
    }

    #[test]
    fn a_request_overrides_the_services_limits_one_by_one() {
        let config = WriterConfig { min_probability: Some(0.5), max_kl: Some(1.0), ..WriterConfig::default() };
        let given = GuardLimits {
            min_probability: Some(0.9),
            on_break: Some(Policy::Reject),
            min_share: Some(0.1),
            ..GuardLimits::default()
        };
        let merged = Limits { on_break: Policy::Reject, min_share: 0.1, ..limits(Some(0.9), Some(1.0)) };
        assert_eq!(config.limits(&Guard::Limits(given)), merged);
        assert_eq!(config.limits(&Guard::Off), Limits::NONE);
        assert_eq!(config.limits(&Guard::Default).min_probability, Some(0.5));
    }

    #[test]
    fn limits_out_of_range_are_refused_with_the_number() {
        let text = |limits: Limits| limits.check("guard.").unwrap_err().to_string();
        let probability = limits(Some(1.5), None);
        assert_eq!(text(probability), "guard.min_probability: must be between 0 and 1, given 1.5");
        let kl = limits(None, Some(-1.0));
        assert_eq!(text(kl), "guard.max_kl: must be a finite number >= 0, given -1");
        let share = Limits { min_share: 2.0, ..limits(None, None) };
        assert_eq!(text(share), "guard.min_share: must be between 0 and 1, given 2");
    }
}
