//! Contributions from the log, and sums moved by them.

use thiserror::Error;
use tokio::runtime::Handle;
use uuid::Uuid;

use super::{
    WriterError,
    ledger::{Entry, Ledger, Move, Step},
};
use crate::{
    digest::Digest,
    edit_log::{EditLog, LogError},
    model::EditableMatrix,
    weights::{Composer, Contribution, WeightsError},
};

/// Contributions held in memory at a time while sums are moved far.
pub const CHUNK: usize = 64;

/// A stored contribution that could not be read or used.
#[derive(Debug, Error)]
#[error("edit {id}: {source}")]
pub struct StoredError {
    pub id: Uuid,
    #[source]
    pub source: StoredCause,
}

/// Why.
#[derive(Debug, Error)]
pub enum StoredCause {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

impl From<StoredError> for WriterError {
    fn from(error: StoredError) -> Self {
        match error.source {
            StoredCause::Log(log) => Self::Log(log),
            StoredCause::Weights(WeightsError::Overflow { matrix, limit }) => Self::Overflow { matrix, limit },
            StoredCause::Weights(weights) => Self::Internal(format!("edit {}: {weights}", error.id)),
        }
    }
}

/// The log, seen from a thread that computes.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    pub log: &'a dyn EditLog,
    pub runtime: &'a Handle,
}

impl Stored<'_> {
    /// An edit's contribution and the digest of its bytes.
    pub fn contribution(&self, id: Uuid, shapes: &[EditableMatrix]) -> Result<(Digest, Contribution), StoredError> {
        let read = || -> Result<_, StoredCause> {
            let bytes = self.runtime.block_on(self.log.contribution(id))?;
            Ok((Digest::of(&bytes), Contribution::from_bytes(&bytes, shapes)?))
        };
        read().map_err(|source| StoredError { id, source })
    }

    /// The digests of edits' contributions as their rows state them; the bytes are not looked at.
    pub fn digests(&self, ids: &[Uuid]) -> Result<Vec<(Uuid, Digest)>, StoredError> {
        let digest = |id: Uuid| -> Result<_, LogError> {
            let row = self.runtime.block_on(self.log.edit(id))?.ok_or(LogError::UnknownEdit(id))?;
            Ok((id, row.contribution.ok_or(LogError::NoContribution(id))?))
        };
        ids.iter().map(|&id| digest(id).map_err(|error| StoredError { id, source: error.into() })).collect()
    }

    /// Takes edits out of the sums and puts others in, a bounded number of contributions in memory at a time. Returns
    /// the digests of those that went in. After an error the sums are somewhere between.
    pub fn shift(
        &self,
        sums: &mut Composer,
        removed: &[Uuid],
        added: &[Uuid],
    ) -> Result<Vec<(Uuid, Digest)>, StoredError> {
        let mut entered = Vec::with_capacity(added.len());
        for chunk in removed.chunks(CHUNK) {
            let contributions = self.load(chunk, sums.shapes())?;
            let parts: Vec<&Contribution> = contributions.iter().map(|(_, c)| c).collect();
            sums.change(&parts, &[]).map_err(|error| StoredError { id: chunk[0], source: error.into() })?;
        }
        for chunk in added.chunks(CHUNK) {
            let contributions = self.load(chunk, sums.shapes())?;
            let parts: Vec<&Contribution> = contributions.iter().map(|(_, c)| c).collect();
            sums.change(&[], &parts).map_err(|error| StoredError { id: chunk[0], source: error.into() })?;
            entered.extend(chunk.iter().copied().zip(contributions.iter().map(|(digest, _)| *digest)));
        }
        Ok(entered)
    }

    /// A change of the set by edits of the log, and how the sums follow it: few contributions move the sums and back; many
    /// move a copy of them, a chunk at a time.
    pub fn step(&self, ledger: &Ledger, removed: Vec<Uuid>, added: &[Uuid]) -> Result<(Step, Move), StoredError> {
        let prompts = added.iter().map(|id| self.prompt(*id)).collect::<Result<Vec<_>, _>>()?;
        let (digests, how) = if removed.len() + added.len() > CHUNK {
            let mut sums = ledger.sums().clone();
            let entered = self.shift(&mut sums, &removed, added)?;
            (entered.into_iter().map(|(_, digest)| digest).collect(), Move::To(sums))
        } else {
            let shapes = ledger.sums().shapes();
            let (digests, entering): (Vec<_>, Vec<_>) = self.load(added, shapes)?.into_iter().unzip();
            let (_, leaving): (Vec<_>, Vec<_>) = self.load(&removed, shapes)?.into_iter().unzip();
            (digests, Move::By { removed: leaving, added: entering })
        };
        let entries = added.iter().zip(digests).zip(prompts);
        let added = entries.map(|((id, digest), prompt)| Entry { id: *id, digest, prompt: Some(prompt) }).collect();
        Ok((Step { removed, added }, how))
    }

    fn prompt(&self, id: Uuid) -> Result<String, StoredError> {
        let found = || self.runtime.block_on(self.log.edit(id))?.ok_or(LogError::UnknownEdit(id));
        found().map(|row| row.prompt).map_err(|error| StoredError { id, source: error.into() })
    }

    fn load(&self, ids: &[Uuid], shapes: &[EditableMatrix]) -> Result<Vec<(Digest, Contribution)>, StoredError> {
        ids.iter().map(|id| self.contribution(*id, shapes)).collect()
    }
}
