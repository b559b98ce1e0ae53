//! Figures over records, with their standard errors.

use serde::{Deserialize, Serialize};

use super::record::Outcome;
use crate::model::measure::Divergence;

/// A share of yes among yes and no.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// 0 to 1.
    pub share: f64,
    /// Binomial: `sqrt(p (1 - p) / n)`.
    pub standard_error: f64,
    pub count: usize,
}

impl Share {
    fn of(answers: impl IntoIterator<Item = bool>) -> Self {
        let (mut yes, mut count) = (0, 0);
        for answer in answers {
            yes += usize::from(answer);
            count += 1;
        }
        let share = yes as f64 / count.max(1) as f64;
        Self { share, standard_error: (share * (1.0 - share) / count.max(1) as f64).sqrt(), count }
    }
}

/// A mean of measured values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    pub mean: f64,
    /// Sample deviation over `sqrt(n)`; 0 for a single value.
    pub standard_error: f64,
    pub count: usize,
}

impl Mean {
    fn of(values: &[f64]) -> Self {
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count.max(1) as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let freedom = count.saturating_sub(1).max(1) as f64;
        Self { mean, standard_error: (squares / freedom / count.max(1) as f64).sqrt(), count }
    }
}

/// Exact matches of the whole target.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Matches {
    /// On the edit's own prompt: efficacy.
    pub prompt: Share,
    /// On its paraphrase: generalization.
    pub paraphrase: Share,
}

/// CounterFact's scores (Meng et al., 2022), over the records that have an old answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CounterFact {
    /// P(new) > P(old) on the prompt.
    pub efficacy: Share,
    /// P(new) > P(old) on the paraphrase.
    pub paraphrase: Share,
    /// P(old) > P(new) on the neighbour.
    pub neighbourhood: Share,
    /// Harmonic mean of the three.
    pub score: f64,
}

/// What stayed on texts that an edit should not change.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Locality {
    /// Texts whose most probable token is the same at every position that predicts the answer.
    pub unchanged: Share,
    /// KL(base || edited), nats, mean over those positions.
    pub kl: Mean,
}

/// Perplexity on running text, token-weighted over one window per edit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RunningText {
    pub perplexity_before: f64,
    pub perplexity_after: f64,
    /// Change of the mean negative log-likelihood per token, nats, over windows.
    pub nll_change: Mean,
    pub tokens: usize,
}

/// Time of an edit on one thread: trunk, capture and editor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Milliseconds {
    pub median: f64,
    pub p95: f64,
}

/// What was measured of one editor, or of the model without an edit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub records: usize,
    /// Edits that the editor could not make; they count as edits that change nothing.
    pub failed: usize,
    pub teacher_forced: Matches,
    pub free_running: Matches,
    /// None where no record has an old answer.
    pub counterfact: Option<CounterFact>,
    /// On each record's own neighbour.
    pub neighbour: Locality,
    /// On other records' prompts; none if none were asked for.
    pub unrelated: Option<Locality>,
    /// None without a running text.
    pub running_text: Option<RunningText>,
    /// None for the model without an edit.
    pub milliseconds: Option<Milliseconds>,
}

impl Figures {
    /// Over records in the same order.
    pub(super) fn new(outcomes: &[&Outcome], unedited: &[&Outcome]) -> Self {
        let matches = |pair: fn(&Outcome) -> [bool; 2]| Matches {
            prompt: Share::of(outcomes.iter().map(|outcome| pair(outcome)[0])),
            paraphrase: Share::of(outcomes.iter().map(|outcome| pair(outcome)[1])),
        };
        let unrelated: Vec<Divergence> = outcomes.iter().flat_map(|outcome| &outcome.unrelated).copied().collect();
        let neighbour: Vec<Divergence> = outcomes.iter().flat_map(|outcome| &outcome.neighbour).copied().collect();
        Self {
            records: outcomes.len(),
            failed: outcomes.iter().filter(|outcome| outcome.failed).count(),
            teacher_forced: matches(|outcome| outcome.forced),
            free_running: matches(|outcome| outcome.free),
            counterfact: CounterFact::of(outcomes),
            neighbour: Locality::of(&neighbour),
            unrelated: (!unrelated.is_empty()).then(|| Locality::of(&unrelated)),
            running_text: RunningText::of(outcomes, unedited),
            milliseconds: Milliseconds::of(outcomes),
        }
    }
}

impl CounterFact {
    fn of(outcomes: &[&Outcome]) -> Option<Self> {
        let comparisons: Vec<[bool; 3]> = outcomes.iter().filter_map(|outcome| outcome.comparisons).collect();
        if comparisons.is_empty() {
            return None;
        }
        let [efficacy, paraphrase, neighbourhood] =
            [0, 1, 2].map(|which| Share::of(comparisons.iter().map(|all| all[which])));
        // 0 where one of them is: its reciprocal is infinite.
        let reciprocals: f64 = [efficacy, paraphrase, neighbourhood].iter().map(|share| share.share.recip()).sum();
        Some(Self { efficacy, paraphrase, neighbourhood, score: 3.0 / reciprocals })
    }
}

impl Locality {
    fn of(divergences: &[Divergence]) -> Self {
        let kls: Vec<f64> = divergences.iter().map(|divergence| f64::from(divergence.kl)).collect();
        let unchanged = Share::of(divergences.iter().map(|divergence| divergence.greedy_unchanged));
        Self { unchanged, kl: Mean::of(&kls) }
    }
}

impl RunningText {
    fn of(outcomes: &[&Outcome], unedited: &[&Outcome]) -> Option<Self> {
        let pairs: Vec<(f64, f64, usize)> = (outcomes.iter().zip(unedited))
            .filter_map(|(after, before)| {
                let ((after, tokens), (before, _)) = (after.running?, before.running?);
                Some((before, after, tokens))
            })
            .collect();
        let tokens: usize = pairs.iter().map(|(_, _, tokens)| tokens).sum();
        if tokens == 0 {
            return None;
        }
        let perplexity = |sum: f64| (sum / tokens as f64).exp();
        let changes: Vec<f64> = pairs.iter().map(|(before, after, tokens)| (after - before) / *tokens as f64).collect();
        Some(Self {
            perplexity_before: perplexity(pairs.iter().map(|(before, _, _)| before).sum()),
            perplexity_after: perplexity(pairs.iter().map(|(_, after, _)| after).sum()),
            nll_change: Mean::of(&changes),
            tokens,
        })
    }
}

impl Milliseconds {
    fn of(outcomes: &[&Outcome]) -> Option<Self> {
        let mut times: Vec<f64> = outcomes.iter().filter_map(|outcome| outcome.milliseconds).collect();
        times.sort_by(f64::total_cmp);
        let last = times.len().checked_sub(1)?;
        let quantile = |share: f64| times[(share * last as f64).round() as usize];
        Some(Self { median: quantile(0.5), p95: quantile(0.95) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-9, "{got} for {want}");
    }

    #[test]
    fn shares_and_means_carry_their_errors() {
        let share = Share::of([true, true, true, false]);
        close(share.share, 0.75);
        close(share.standard_error, (0.75f64 * 0.25 / 4.0).sqrt());
        let mean = Mean::of(&[1.0, 2.0, 6.0]);
        close(mean.mean, 3.0);
        close(mean.standard_error, (14.0f64 / 2.0 / 3.0).sqrt());
        close(Mean::of(&[2.0]).standard_error, 0.0);
    }

    #[test]
    fn the_score_is_the_harmonic_mean_over_records_with_an_old_answer() {
        let with = |comparisons| Outcome { comparisons, ..Outcome::default() };
        let outcomes = [with(Some([true, true, false])), with(Some([true, false, true])), with(None)];
        let scores = CounterFact::of(&outcomes.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!((scores.efficacy.count, scores.efficacy.share), (2, 1.0));
        close(scores.score, 3.0 / (1.0 + 2.0 + 2.0));
        let never = CounterFact::of(&[&with(Some([true, true, false]))]).unwrap();
        close(never.score, 0.0);
        assert!(CounterFact::of(&[&with(None)]).is_none());
    }

    #[test]
    fn perplexity_is_token_weighted() {
        let with = |nll, tokens| Outcome { running: Some((nll, tokens)), ..Outcome::default() };
        let (before, after) = ([with(2.0, 1), with(3.0, 3)], [with(2.0, 1), with(6.0, 3)]);
        let text = RunningText::of(&after.iter().collect::<Vec<_>>(), &before.iter().collect::<Vec<_>>()).unwrap();
        close(text.perplexity_before, (5.0f64 / 4.0).exp());
        close(text.perplexity_after, 2f64.exp());
        close(text.nll_change.mean, 0.5);
    }

    #[test]
    fn quantiles_are_measured_values() {
        let outcomes: Vec<Outcome> =
            (0..=100).rev().map(|ms| Outcome { milliseconds: Some(f64::from(ms)), ..Outcome::default() }).collect();
        let times = Milliseconds::of(&outcomes.iter().collect::<Vec<_>>());
        assert_eq!(times, Some(Milliseconds { median: 50.0, p95: 95.0 }));
    }
}
