//! The set of active edits in memory: its composer (the "sums"), its digests, which prompt belongs to which edit.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    sync::Arc,
};

use uuid::Uuid;

use super::bench::Foundation;
use crate::{
    digest::Digest,
    edit_log::Identity,
    telemetry::Metrics,
    weights::{Composed, Composer, Contribution, Matrices, Version, WeightsError, set_digest},
};

/// An edit that enters the set.
#[derive(Debug, Clone)]
pub struct Entry {
    pub id: Uuid,
    /// Digest of its contribution's bytes.
    pub digest: Digest,
    /// Trimmed; none where it will be named later.
    pub prompt: Option<String>,
}

/// A change of the set.
#[derive(Debug, Default)]
pub struct Step {
    pub removed: Vec<Uuid>,
    pub added: Vec<Entry>,
}

/// How the sums follow a step.
pub enum Move {
    /// By these contributions; moved back by the same.
    By { removed: Vec<Contribution>, added: Vec<Contribution> },
    /// To these sums, a moved copy; the old ones are kept until the step is settled.
    To(Composer),
}

/// The active set, and what composes it.
#[derive(Clone)]
pub struct Ledger {
    sums: Composer,
    foundation: Foundation,
    identity: Identity,
    head: u64,
    active: BTreeMap<Uuid, Digest>,
    prompts: HashMap<String, Uuid>,
    prompt_of: HashMap<Uuid, String>,
}

impl Ledger {
    /// The empty set.
    pub fn new(foundation: Foundation) -> Result<Self, WeightsError> {
        let sums = Composer::new(&foundation.shapes, &foundation.base, &foundation.composition)?;
        let (base, editor) = (foundation.model, foundation.editor);
        let identity = Identity {
            base,
            editor,
            composition: foundation.composition.name().to_owned(),
            base_weights: sums.digest()?,
            empty_set: set_digest(base, editor, foundation.composition.name(), []),
        };
        let (active, prompts, prompt_of) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        Ok(Self { sums, foundation, identity, head: 0, active, prompts, prompt_of })
    }

    /// What the log is pinned to.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Number of the version that this set is.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// The active edits and the digests of their contributions.
    pub fn active(&self) -> &BTreeMap<Uuid, Digest> {
        &self.active
    }

    /// The active edit with this (trimmed) prompt.
    pub fn by_prompt(&self, prompt: &str) -> Option<Uuid> {
        self.prompts.get(prompt).copied()
    }

    /// The sums of the active contributions.
    pub fn sums(&self) -> &Composer {
        &self.sums
    }

    /// Notes an active edit's prompt. The other edit that has it too, if there is one.
    pub fn name(&mut self, id: Uuid, prompt: String) -> Option<Uuid> {
        self.prompt_of.insert(id, prompt.clone());
        self.prompts.insert(prompt, id).filter(|other| *other != id)
    }

    /// Active edits whose prompt is not known yet.
    pub fn nameless(&self) -> Vec<Uuid> {
        self.active.keys().filter(|id| !self.prompt_of.contains_key(id)).copied().collect()
    }

    /// Moves the sums by a step and hands out what the next version would be. Dropping the result moves them back,
    /// exactly; [`Tried::settle`] makes the step the set. On an error nothing has changed.
    pub fn attempt(&mut self, step: Step, how: Move, metrics: &Metrics) -> Result<Tried<'_>, WeightsError> {
        let (weights, undo) = match how {
            Move::By { removed, added } => {
                let weights = self.sums.change_to_weights(&refs(&removed), &refs(&added))?;
                (weights, Undo::By { removed: added, added: removed })
            }
            Move::To(sums) => {
                let weights = sums.weights()?;
                let old = mem::replace(&mut self.sums, sums);
                (weights, Undo::To(old))
            }
        };
        // From here on, dropping this moves the sums back.
        let mut tried = Tried { ledger: self, step, undo, version: None };
        tried.version = Some(Arc::new(tried.ledger.next_version(&tried.step, weights, metrics)?));
        Ok(tried)
    }

    /// Makes a step the set whose sums were moved through [`Ledger::sums_mut`].
    pub fn enter(&mut self, step: Step) {
        for id in &step.removed {
            self.active.remove(id);
            if let Some(prompt) = self.prompt_of.remove(id)
                && self.prompts.get(&prompt) == Some(id)
            {
                self.prompts.remove(&prompt);
            }
        }
        for entry in step.added {
            self.active.insert(entry.id, entry.digest);
            if let Some(prompt) = entry.prompt {
                self.name(entry.id, prompt);
            }
        }
        self.head += 1;
    }

    /// The sums, to be moved by a step that is then entered: replay, which stops at the first error.
    pub fn sums_mut(&mut self) -> &mut Composer {
        &mut self.sums
    }

    /// Digest of the set as it is.
    pub fn set_digest(&self) -> Digest {
        self.digest_of(self.active.values().copied())
    }

    /// Digest of the set's weights.
    pub fn weights_digest(&self) -> Result<Digest, WeightsError> {
        self.sums.digest()
    }

    /// The set as a version.
    pub fn version(&self, metrics: &Metrics) -> Result<Version, WeightsError> {
        self.make(self.head, &self.active, self.sums.weights()?, metrics)
    }

    fn next_version(&self, step: &Step, weights: Composed, metrics: &Metrics) -> Result<Version, WeightsError> {
        let mut active = self.active.clone();
        for id in &step.removed {
            active.remove(id);
        }
        active.extend(step.added.iter().map(|entry| (entry.id, entry.digest)));
        self.make(self.head + 1, &active, weights, metrics)
    }

    fn make(
        &self,
        number: u64,
        active: &BTreeMap<Uuid, Digest>,
        weights: Composed,
        metrics: &Metrics,
    ) -> Result<Version, WeightsError> {
        let digest = weights.digest(self.sums.shapes());
        // The empty set is the base model, bit for bit: no second copy of its weights.
        let matrices = if active.is_empty() {
            assert_eq!(digest, self.identity.base_weights, "the empty set is the base model");
            Matrices::from(Arc::clone(&self.foundation.base))
        } else {
            weights.into_matrices(self.sums.shapes(), &self.foundation.device)?
        };
        let set = self.digest_of(active.values().copied());
        let ids: BTreeSet<Uuid> = active.keys().copied().collect();
        Ok(Version::new(number, digest, set, Arc::new(ids), matrices, metrics))
    }

    fn digest_of(&self, contributions: impl IntoIterator<Item = Digest>) -> Digest {
        let Identity { base, editor, composition, .. } = &self.identity;
        set_digest(*base, *editor, composition, contributions)
    }
}

/// A step that the sums have taken, and that is not yet, and may never be, part of the set.
pub struct Tried<'a> {
    ledger: &'a mut Ledger,
    step: Step,
    undo: Undo,
    version: Option<Arc<Version>>,
}

enum Undo {
    By { removed: Vec<Contribution>, added: Vec<Contribution> },
    To(Composer),
    Nothing,
}

impl Tried<'_> {
    /// What the next version would be.
    pub fn version(&self) -> &Arc<Version> {
        self.version.as_ref().expect("set before this is handed out, taken by settle alone")
    }

    /// Makes the step the set.
    pub fn settle(mut self) -> Arc<Version> {
        self.undo = Undo::Nothing;
        self.ledger.enter(mem::take(&mut self.step));
        self.version.take().expect("set before this is handed out, taken here alone")
    }
}

impl Drop for Tried<'_> {
    fn drop(&mut self) {
        match mem::replace(&mut self.undo, Undo::Nothing) {
            Undo::Nothing => {}
            Undo::To(old) => self.ledger.sums = old,
            Undo::By { removed, added } => {
                // The sums that this leads back to were held before, so they fit.
                if let Err(error) = self.ledger.sums.change(&refs(&removed), &refs(&added)) {
                    tracing::error!(%error, "a tried step could not be taken off the sums");
                    debug_assert!(false, "a tried step could not be taken off the sums: {error}");
                }
            }
        }
    }
}

fn refs(contributions: &[Contribution]) -> Vec<&Contribution> {
    contributions.iter().collect()
}
