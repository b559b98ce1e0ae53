//! The figures of a submission: its targets and its bystanders, and the active edits and canaries that are watched with
//! them, before and after.

use super::{
    LocalityReport, Submission, TargetFigures, TargetReport, WriterConfig,
    admission::AdmittedEdit,
    bench::{Bench, passes},
};
use crate::model::{Passage, Projection};

/// One edit's figures.
pub struct Measured {
    pub prompt: TargetReport,
    pub paraphrases: Vec<TargetReport>,
    pub locality: Vec<LocalityReport>,
    /// The most probable token on the prompt before the edit.
    pub leading: u32,
}

/// A text beside the submission's that is measured with it.
pub struct Watched<'a, T> {
    pub label: &'a str,
    pub passage: &'a Passage,
    pub text: T,
    pub want: Want,
}

/// What is wanted of a watched text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Want {
    /// Its target's figures, if it has a target, and its divergence.
    Everything,
    /// Its target's figures after. Those before only where the target is not greedy after, or less probable than this:
    /// most active edits hold, and half of the work is saved.
    TargetBelow(f32),
}

/// What was found on a watched text.
#[derive(Debug, Clone, Copy)]
pub struct WatchedFigures {
    /// The target's figures before and after; none for a text without a target, or where those before were not wanted.
    pub target: Option<(TargetFigures, TargetFigures)>,
    /// KL divergence in nats, and whether the most probable tokens stayed the same, where it was wanted.
    pub divergence: Option<(f32, bool)>,
}

/// Which edit of the submission a figure belongs to; none for a watched text.
type Owner = Option<usize>;

/// A text to measure, and what for.
struct Item<'a, T> {
    owner: Owner,
    label: &'a str,
    passage: &'a Passage,
    /// The trunk's reading, where there is one already.
    text: Option<T>,
    role: Role,
}

impl<T> Item<'_, T> {
    /// Where the figures after decide whether those before are wanted: the probability below which they are.
    fn floor(&self) -> Option<f32> {
        match self.role {
            Role::Watched(Want::TargetBelow(floor)) => Some(floor),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    Prompt,
    Paraphrase,
    Bystander,
    Watched(Want),
}

/// Readings after and before.
type Readings<B> = (Vec<<B as Bench>::Reading>, Vec<<B as Bench>::Reading>);

enum Figure {
    Prompt(TargetReport, u32),
    Paraphrase(TargetReport),
    Locality(LocalityReport),
    Watched(WatchedFigures),
}

/// A submission's edits, measured.
pub struct Measuring<'a, B: Bench> {
    pub bench: &'a B,
    pub config: &'a WriterConfig,
    /// The version that the edits go on.
    pub before: &'a dyn Projection,
    /// The version that they would make.
    pub after: &'a dyn Projection,
}

impl<B: Bench> Measuring<'_, B> {
    /// Measures every text in as few passes as the budget of tokens allows; each is read by the trunk once for both
    /// versions. `prompts` are the edits' own prompts as capture has read them, `watched` what is measured beside them.
    /// Where a pass fails as a whole, its texts are tried one by one, so that an error names the edit that it belongs to,
    /// by its index, if it belongs to one.
    pub fn run(
        &self,
        submission: &Submission,
        edits: &[AdmittedEdit],
        prompts: Vec<B::Text>,
        watched: Vec<Watched<'_, B::Text>>,
    ) -> Result<(Vec<Measured>, Vec<WatchedFigures>), (Owner, String)> {
        let mut items = items(submission, edits, prompts);
        items.extend(watched.into_iter().map(|watched| {
            let Watched { label, passage, text, want } = watched;
            Item { owner: None, label, passage, text: Some(text), role: Role::Watched(want) }
        }));
        let mut figures = Vec::with_capacity(items.len());
        for run in passes(items.iter().map(|item| item.passage), self.config.pass_tokens) {
            let run = &items[run];
            match self.pass(run) {
                Ok(together) => figures.extend(together),
                Err(message) if run.len() == 1 => return Err((run[0].owner, message)),
                Err(_) => {
                    for item in run {
                        let alone = self.pass(std::slice::from_ref(item));
                        figures.extend(alone.map_err(|message| (item.owner, message))?);
                    }
                }
            }
        }
        let mut measured: Vec<Measured> = Vec::with_capacity(edits.len());
        let mut watched = Vec::new();
        for figure in figures {
            match (figure, measured.last_mut()) {
                (Figure::Prompt(prompt, leading), _) => {
                    measured.push(Measured { prompt, paraphrases: Vec::new(), locality: Vec::new(), leading });
                }
                (Figure::Watched(figures), _) => watched.push(figures),
                (Figure::Paraphrase(paraphrase), Some(edit)) => edit.paraphrases.push(paraphrase),
                (Figure::Locality(probe), Some(edit)) => edit.locality.push(probe),
                (_, None) => unreachable!("an edit's prompt is its first item"),
            }
        }
        Ok((measured, watched))
    }

    fn pass(&self, items: &[Item<'_, B::Text>]) -> Result<Vec<Figure>, String> {
        let unread: Vec<Passage> =
            items.iter().filter(|item| item.text.is_none()).map(|item| item.passage.clone()).collect();
        let mut read = if unread.is_empty() { Vec::new() } else { self.bench.read(&unread)? }.into_iter();
        let texts: Vec<B::Text> = items
            .iter()
            .map(|item| item.text.clone().or_else(|| read.next()).ok_or("a text was not read"))
            .collect::<Result<_, &str>>()?;
        let chosen = |which: &[bool]| -> Vec<B::Text> {
            texts.iter().zip(which).filter(|(_, chosen)| **chosen).map(|(text, _)| text.clone()).collect()
        };
        // What is wanted before whatever comes after is measured in the same go.
        let certain: Vec<bool> = items.iter().map(|item| item.floor().is_none()).collect();
        let (after, sure) = self.measure(&texts, &chosen(&certain))?;
        let late: Vec<bool> = items
            .iter()
            .zip(&texts)
            .zip(&after)
            .map(|((item, text), after)| self.late(item, text, after))
            .collect::<Result<_, _>>()?;
        let (mut sure, mut lately) = (sure.into_iter(), self.measure(&[], &chosen(&late))?.1.into_iter());
        let mut figures = Vec::with_capacity(items.len());
        for ((((item, text), after), certain), late) in items.iter().zip(&texts).zip(&after).zip(certain).zip(late) {
            let before = match (certain, late) {
                (true, _) => sure.next(),
                (false, true) => lately.next(),
                (false, false) => None,
            };
            figures.push(match before {
                Some(before) => self.figure(item, text, &before, after)?,
                None => Figure::Watched(WatchedFigures { target: None, divergence: None }),
            });
        }
        Ok(figures)
    }

    /// Readings of `after` under the weights after, and of `before` under those before.
    fn measure(&self, after: &[B::Text], before: &[B::Text]) -> Result<Readings<B>, String> {
        if after.is_empty() && before.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let readings = self.bench.measure_each(&[(after, self.after), (before, self.before)])?;
        let counts: Vec<usize> = readings.iter().map(Vec::len).collect();
        let mut readings = readings.into_iter();
        match (readings.next(), readings.next()) {
            (Some(later), Some(earlier)) if counts == [after.len(), before.len()] => Ok((later, earlier)),
            _ => Err(format!("{} and {} texts gave {counts:?} readings", after.len(), before.len())),
        }
    }

    /// Whether a text whose figures after decide has to be measured before, too.
    fn late(&self, item: &Item<'_, B::Text>, text: &B::Text, after: &B::Reading) -> Result<bool, String> {
        let Some(floor) = item.floor() else { return Ok(false) };
        let after = self.target(item, text, after)?;
        Ok(!after.greedy || after.probability < floor)
    }

    fn target(&self, item: &Item<'_, B::Text>, text: &B::Text, reading: &B::Reading) -> Result<TargetFigures, String> {
        let figures = self.bench.figures(text, reading)?;
        finite(figures.probability, "probability", item.label)?;
        Ok(figures)
    }

    fn figure(
        &self,
        item: &Item<'_, B::Text>,
        text: &B::Text,
        before: &B::Reading,
        after: &B::Reading,
    ) -> Result<Figure, String> {
        let label = item.label.to_owned();
        let divergence = || -> Result<(f32, bool), String> {
            let (kl, greedy_unchanged) = self.bench.divergence(before, after)?;
            Ok((finite(kl, "KL divergence", &label)?, greedy_unchanged))
        };
        let target = |reading| self.target(item, text, reading);
        let report =
            || Ok::<_, String>(TargetReport { text: label.clone(), before: target(before)?, after: target(after)? });
        Ok(match item.role {
            Role::Prompt => Figure::Prompt(report()?, self.bench.leading(before)?),
            Role::Paraphrase => Figure::Paraphrase(report()?),
            Role::Bystander => {
                let (kl, greedy_unchanged) = divergence()?;
                Figure::Locality(LocalityReport { prompt: label.clone(), kl, greedy_unchanged })
            }
            Role::Watched(want) => {
                let open = item.passage.target_ids().is_empty();
                let target = if open { None } else { Some((target(before)?, target(after)?)) };
                let divergence = if want == Want::Everything { Some(divergence()?) } else { None };
                Figure::Watched(WatchedFigures { target, divergence })
            }
        })
    }
}

fn items<'a, T>(submission: &'a Submission, edits: &'a [AdmittedEdit], prompts: Vec<T>) -> Vec<Item<'a, T>> {
    let mut items = Vec::new();
    for (edit, ((admitted, request), text)) in edits.iter().zip(&submission.edits).zip(prompts).enumerate() {
        let item = |label, passage, text, role| Item { owner: Some(edit), label, passage, text, role };
        items.push(item(request.prompt.as_str(), &admitted.passage, Some(text), Role::Prompt));
        let paraphrases = request.paraphrases.iter().zip(&admitted.paraphrases);
        items.extend(paraphrases.map(|(label, passage)| item(label.as_str(), passage, None, Role::Paraphrase)));
        let probes = request.locality.iter().zip(&admitted.locality);
        items.extend(probes.map(|(probe, passage)| item(probe.prompt.as_str(), passage, None, Role::Bystander)));
    }
    items
}

fn finite(value: f32, what: &str, label: &str) -> Result<f32, String> {
    if value.is_finite() { Ok(value) } else { Err(format!("the {what} on {label:?} is {value}")) }
}
