//! The guard: whether an edit's figures are within its limits. Pure functions of numbers.

use super::{GuardLimits, LocalityReport, TargetFigures, WriterError};

impl GuardLimits {
    /// Refuses limits that are not numbers of their kind. `prefix` goes before the field's name.
    pub(super) fn check(&self, prefix: &str) -> Result<(), WriterError> {
        let invalid =
            |field: &str, message: String| Err(WriterError::Invalid { field: format!("{prefix}{field}"), message });
        if let Some(p) = self.min_probability
            && !(0.0..=1.0).contains(&p)
        {
            return invalid("min_probability", format!("must be between 0 and 1, given {p}"));
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
    use crate::writer::{Guard, WriterConfig};

    fn figures(probability: f32) -> TargetFigures {
        TargetFigures { probability, greedy: true }
    }

    fn probe(kl: f32) -> LocalityReport {
        LocalityReport { prompt: "The capital of France is".into(), kl, greedy_unchanged: true }
    }

    #[test]
    fn limits_are_inclusive() {
        let limits = GuardLimits { min_probability: Some(0.5), max_kl: Some(0.1) };
        assert_eq!(limits.objection(figures(0.5), &[probe(0.1)]), None);
    }

    #[test]
    fn an_objection_has_the_numbers_of_every_broken_limit() {
        let limits = GuardLimits { min_probability: Some(0.5), max_kl: Some(0.1) };
        let objection = limits.objection(figures(0.25), &[probe(0.05), probe(2.0)]).unwrap();
        assert!(objection.contains("0.2500") && objection.contains("at least 0.5"), "{objection}");
        assert!(objection.contains("probe 1") && objection.contains("2.0000"), "{objection}");
        assert!(!objection.contains("probe 0"), "{objection}");
    }

    #[test]
    fn nothing_that_is_not_a_number_passes() {
        let limits = GuardLimits { min_probability: Some(0.0), max_kl: Some(1.0) };
        assert!(limits.objection(figures(f32::NAN), &[]).is_some());
        assert!(limits.objection(figures(1.0), &[probe(f32::NAN)]).is_some());
        assert_eq!(GuardLimits::default().objection(figures(f32::NAN), &[probe(f32::NAN)]), None);
    }

    #[test]
    fn a_request_overrides_the_services_limits_one_by_one() {
        let config = WriterConfig { min_probability: Some(0.5), max_kl: Some(1.0), ..WriterConfig::default() };
        let given = GuardLimits { min_probability: Some(0.9), max_kl: None };
        let merged = GuardLimits { min_probability: Some(0.9), max_kl: Some(1.0) };
        assert_eq!(config.limits(&Guard::Limits(given)), merged);
        assert_eq!(config.limits(&Guard::Off), GuardLimits::default());
        assert_eq!(config.limits(&Guard::Default).min_probability, Some(0.5));
    }

    #[test]
    fn limits_out_of_range_are_refused_with_the_number() {
        let text = |limits: GuardLimits| limits.check("guard.").unwrap_err().to_string();
        let probability = GuardLimits { min_probability: Some(1.5), max_kl: None };
        assert_eq!(text(probability), "guard.min_probability: must be between 0 and 1, given 1.5");
        let kl = GuardLimits { min_probability: None, max_kl: Some(-1.0) };
        assert_eq!(text(kl), "guard.max_kl: must be a finite number >= 0, given -1");
    }
}
