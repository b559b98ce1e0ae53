//! The figures of a submission: its targets and its bystanders, before and after.

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
}

/// A text to measure, and what for.
struct Item<'a, T> {
    edit: usize,
    label: &'a str,
    passage: &'a Passage,
    /// The trunk's reading, where capture has left one.
    text: Option<T>,
    bystander: bool,
}

enum Figure {
    Target(TargetReport),
    Locality(LocalityReport),
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
    /// versions. `prompts` are the edits' own prompts as capture has read them. Where a pass fails as a whole, its texts
    /// are tried one by one, so that an error names the edit that it belongs to, by its index.
    pub fn run(
        &self,
        submission: &Submission,
        edits: &[AdmittedEdit],
        prompts: Vec<B::Text>,
    ) -> Result<Vec<Measured>, (usize, String)> {
        let items = items(submission, edits, prompts);
        let mut figures = Vec::with_capacity(items.len());
        for run in passes(items.iter().map(|item| item.passage), self.config.pass_tokens) {
            let run = &items[run];
            match self.pass(run) {
                Ok(together) => figures.extend(together),
                Err(message) if run.len() == 1 => return Err((run[0].edit, message)),
                Err(_) => {
                    for item in run {
                        let alone = self.pass(std::slice::from_ref(item));
                        figures.extend(alone.map_err(|message| (item.edit, message))?);
                    }
                }
            }
        }
        let mut measured = Vec::with_capacity(edits.len());
        let mut figures = items.iter().map(|item| item.edit).zip(figures).peekable();
        while let Some((edit, figure)) = figures.next() {
            let Figure::Target(prompt) = figure else { unreachable!("an edit's prompt is its first item") };
            let mut one = Measured { prompt, paraphrases: Vec::new(), locality: Vec::new() };
            while let Some((_, figure)) = figures.next_if(|(next, _)| *next == edit) {
                match figure {
                    Figure::Target(paraphrase) => one.paraphrases.push(paraphrase),
                    Figure::Locality(probe) => one.locality.push(probe),
                }
            }
            measured.push(one);
        }
        Ok(measured)
    }

    fn pass(&self, items: &[Item<'_, B::Text>]) -> Result<Vec<Figure>, String> {
        let unread: Vec<Passage> =
            items.iter().filter(|item| item.text.is_none()).map(|item| item.passage.clone()).collect();
        let mut read = if unread.is_empty() { Vec::new() } else { self.bench.read(&unread)? }.into_iter();
        let texts: Vec<B::Text> = items
            .iter()
            .map(|item| item.text.clone().or_else(|| read.next()).ok_or("a text was not read"))
            .collect::<Result<_, &str>>()?;
        let before = self.bench.measure(&texts, self.before)?;
        let after = self.bench.measure(&texts, self.after)?;
        if before.len() != items.len() || after.len() != items.len() {
            return Err(format!("{} texts gave {} and {} readings", items.len(), before.len(), after.len()));
        }
        let readings = before.iter().zip(&after).zip(&texts);
        items
            .iter()
            .zip(readings)
            .map(|(item, ((before, after), text))| self.figure(item, text, before, after))
            .collect()
    }

    fn figure(
        &self,
        item: &Item<'_, B::Text>,
        text: &B::Text,
        before: &B::Reading,
        after: &B::Reading,
    ) -> Result<Figure, String> {
        let label = item.label.to_owned();
        if item.bystander {
            let (kl, greedy_unchanged) = self.bench.divergence(before, after)?;
            let kl = finite(kl, "KL divergence", &label)?;
            return Ok(Figure::Locality(LocalityReport { prompt: label, kl, greedy_unchanged }));
        }
        let target = |reading| -> Result<TargetFigures, String> {
            let figures = self.bench.figures(text, reading)?;
            finite(figures.probability, "probability", &label)?;
            Ok(figures)
        };
        let (before, after) = (target(before)?, target(after)?);
        Ok(Figure::Target(TargetReport { text: label, before, after }))
    }
}

fn items<'a, T>(submission: &'a Submission, edits: &'a [AdmittedEdit], prompts: Vec<T>) -> Vec<Item<'a, T>> {
    let mut items = Vec::new();
    for (edit, ((admitted, request), text)) in edits.iter().zip(&submission.edits).zip(prompts).enumerate() {
        let item = |label, passage, text, bystander| Item { edit, label, passage, text, bystander };
        items.push(item(request.prompt.as_str(), &admitted.passage, Some(text), false));
        let paraphrases = request.paraphrases.iter().zip(&admitted.paraphrases);
        items.extend(paraphrases.map(|(label, passage)| item(label.as_str(), passage, None, false)));
        let probes = request.locality.iter().zip(&admitted.locality);
        items.extend(probes.map(|(probe, passage)| item(probe.prompt.as_str(), passage, None, true)));
    }
    items
}

fn finite(value: f32, what: &str, label: &str) -> Result<f32, String> {
    if value.is_finite() { Ok(value) } else { Err(format!("the {what} on {label:?} is {value}")) }
}
