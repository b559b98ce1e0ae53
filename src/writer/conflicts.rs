//! Active edits that a new one conflicts with: it asks in other words what one of them asks, or the model gives it the
//! answer of one of them. Reported; refused only where the policy says so.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    EditRequest,
    bench::{Bench, read_all},
    figure,
    roster::Roster,
};
use crate::model::Projection;

/// Conflicts of one kind that are reported for an edit, the most similar ones.
const REPORTED: usize = 8;
/// Answers of other edits that are tried on a new edit's prompt.
const TRIED: usize = 4;

/// An active edit that a new one conflicts with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Conflict {
    /// The active edit, or an earlier one of the same batch.
    pub edit: Uuid,
    pub reason: ConflictReason,
    /// How much of what the active edit says at its own prompt it says at the new one, 0 to 1; none where it is not known.
    #[serde(serialize_with = "figure::serialize_option")]
    pub similarity: Option<f32>,
    /// The active edit's.
    pub prompt: String,
    /// The active edit's.
    pub target: String,
    /// Whether both ask for the same answer.
    pub same_target: bool,
}

/// Why an edit conflicts with an active one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConflictReason {
    /// Its prompt is the active one's in other words, as the model reads them.
    Paraphrase,
    /// Before it, the model answers its prompt with the active edit's target, which is another, and without any edits it
    /// does not.
    Contradiction,
}

impl ConflictReason {
    /// As a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Paraphrase => "paraphrase",
            Self::Contradiction => "contradiction",
        }
    }
}

/// What is known of a new edit when conflicts are looked for.
pub struct Newcomer<'a> {
    pub request: &'a EditRequest,
    /// [`Roster::similarities`].
    pub similar: &'a [(Uuid, f32)],
    /// The most probable token on its prompt before it.
    pub leading: u32,
}

/// Looks for conflicts.
pub struct Search<'a, B: Bench> {
    pub bench: &'a B,
    pub roster: &'a Roster<B::Text>,
    /// Edits that leave the set with this change.
    pub replaced: &'a [Uuid],
    /// The version that the edit goes on.
    pub current: &'a dyn Projection,
    pub base: &'a dyn Projection,
    pub threshold: f32,
    pub budget: usize,
}

/// Whether two targets are the same answer.
pub fn same_answer(one: &str, other: &str) -> bool {
    one.trim() == other.trim()
}

impl<B: Bench> Search<'_, B> {
    /// The conflicts of one edit with those that stay.
    pub fn conflicts(&self, new: &Newcomer<'_>) -> Result<Vec<Conflict>, String> {
        let stays = |id: &Uuid| !self.replaced.contains(id);
        let near = new.similar.iter().take_while(|(_, similarity)| *similarity >= self.threshold);
        let near = near.filter(|(id, _)| stays(id)).take(REPORTED);
        let mut found: Vec<Conflict> =
            near.filter_map(|(id, _)| self.conflict(new, *id, ConflictReason::Paraphrase)).collect();
        found.extend(self.contradictions(new)?);
        Ok(found)
    }

    fn conflict(&self, new: &Newcomer<'_>, id: Uuid, reason: ConflictReason) -> Option<Conflict> {
        let member = self.roster.members().get(&id)?;
        let similarity = new.similar.iter().find(|(other, _)| *other == id).map(|(_, similarity)| *similarity);
        let (prompt, target) = (member.prompt.clone(), member.target.clone());
        let same_target = same_answer(&target, &new.request.target);
        Some(Conflict { edit: id, reason, similarity, prompt, target, same_target })
    }

    /// Of the active edits whose target begins with what the model says first, those whose whole target it says. Where
    /// several have the same target, the one most like the new edit stands for them.
    fn contradictions(&self, new: &Newcomer<'_>) -> Result<Vec<Conflict>, String> {
        let mut answers = BTreeSet::new();
        let mut suspects = Vec::new();
        for id in self.most_similar_first(new) {
            let member = &self.roster.members()[&id];
            if suspects.len() < TRIED
                && !self.replaced.contains(&id)
                && self.bench.first_token(&member.passage) == new.leading
                && !same_answer(&member.target, &new.request.target)
                && answers.insert(member.target.trim().to_owned())
            {
                suspects.push(id);
            }
        }
        if suspects.is_empty() {
            return Ok(Vec::new());
        }
        let target = |id: &Uuid| self.roster.members()[id].target.as_str();
        let passages = suspects.iter().map(|id| self.bench.passage(&new.request.prompt, Some(target(id))));
        let passages = passages.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
        if passages.iter().any(|passage| passage.ids.len() > self.bench.context_length()) {
            return Ok(Vec::new());
        }
        let texts = read_all(self.bench, &passages, self.budget)?;
        let says = |weights| -> Result<Vec<bool>, String> {
            let readings = self.bench.measure(&texts, weights)?;
            texts.iter().zip(&readings).map(|(text, reading)| Ok(self.bench.figures(text, reading)?.greedy)).collect()
        };
        let (now, unedited) = (says(self.current)?, says(self.base)?);
        let by_edits =
            suspects.iter().zip(now.into_iter().zip(unedited)).filter(|(_, (now, unedited))| *now && !unedited);
        Ok(by_edits.filter_map(|(id, _)| self.conflict(new, *id, ConflictReason::Contradiction)).collect())
    }

    /// All active edits; those whose similarity is not known come last.
    fn most_similar_first(&self, new: &Newcomer<'_>) -> Vec<Uuid> {
        let known: BTreeSet<Uuid> = new.similar.iter().map(|(id, _)| *id).collect();
        let rest = self.roster.members().keys().filter(|id| !known.contains(id));
        new.similar.iter().map(|(id, _)| id).chain(rest).copied().collect()
    }
}

/// What an edit conflicts with, in words; none if with nothing.
pub fn objection(conflicts: &[Conflict]) -> Option<String> {
    let first = conflicts.first()?;
    let what = match first.reason {
        ConflictReason::Paraphrase => "asks the same in other words".to_owned(),
        ConflictReason::Contradiction => format!("makes the model answer {:?} to this prompt", first.target),
    };
    let similarity = first.similarity.map_or_else(String::new, |similarity| format!(", similarity {similarity:.2}"));
    let (count, edit, prompt) = (conflicts.len(), first.edit, &first.prompt);
    Some(format!(
        "it conflicts {count} times with active edits, first with edit {edit} ({prompt:?}), which {what}{similarity}"
    ))
}
