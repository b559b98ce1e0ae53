//! Contributions from the log, and sums moved by them.

use std::collections::BTreeMap;

use thiserror::Error;
use tokio::runtime::Handle;
use uuid::Uuid;

use super::{
    WriterError,
    ledger::{Entry, Ledger, Move, Step},
};
use crate::{
    digest::Digest,
    edit_log::{EditBrief, EditLog, LogError},
    model::EditableMatrix,
    weights::{Composer, Contribution, WeightsError},
};

/// Contributions held in memory at a time while sums are moved far.
pub const CHUNK: usize = 64;
/// Of how many of them the bytes are in memory beside.
const READ: usize = 8;
/// Of how many edits what is short is asked for at once.
const BRIEFS: usize = 256;

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
        let bytes = self.runtime.block_on(self.log.contribution(id));
        let read = bytes.map_err(StoredCause::from).and_then(|bytes| parse(&bytes, shapes));
        read.map_err(|source| StoredError { id, source })
    }

    /// The digests of edits' contributions as their rows state them; the bytes are not looked at.
    pub fn digests(&self, ids: &[Uuid]) -> Result<BTreeMap<Uuid, Digest>, LogError> {
        let digest = |EditBrief { id, contribution, .. }| -> Result<_, LogError> {
            Ok((id, contribution.ok_or(LogError::NoContribution(id))?))
        };
        self.briefs(ids)?.into_iter().map(digest).collect()
    }

    /// What is short of edits, in their order.
    pub fn briefs(&self, ids: &[Uuid]) -> Result<Vec<EditBrief>, LogError> {
        let mut all = Vec::with_capacity(ids.len());
        for some in ids.chunks(BRIEFS) {
            all.extend(self.runtime.block_on(self.log.briefs(some))?);
        }
        Ok(all)
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
        let prompts = self.briefs(added).map_err(|error| of_log(added, error))?;
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
        let added =
            entries.map(|((id, digest), brief)| Entry { id: *id, digest, prompt: Some(brief.prompt) }).collect();
        Ok((Step { removed, added }, how))
    }

    fn load(&self, ids: &[Uuid], shapes: &[EditableMatrix]) -> Result<Vec<(Digest, Contribution)>, StoredError> {
        let mut loaded = Vec::with_capacity(ids.len());
        for some in ids.chunks(READ) {
            let all = self.runtime.block_on(self.log.contributions(some)).map_err(|error| of_log(some, error))?;
            for (id, bytes) in some.iter().zip(all) {
                loaded.push(parse(&bytes, shapes).map_err(|source| StoredError { id: *id, source })?);
            }
        }
        Ok(loaded)
    }
}

fn parse(bytes: &[u8], shapes: &[EditableMatrix]) -> Result<(Digest, Contribution), StoredCause> {
    Ok((Digest::of(bytes), Contribution::from_bytes(bytes, shapes)?))
}

/// What the log says of some edits: about the one that it names, else about the first.
fn of_log(ids: &[Uuid], error: LogError) -> StoredError {
    let id = match &error {
        LogError::UnknownEdit(id) | LogError::NoContribution(id) | LogError::Dropped(id) => *id,
        _ => ids.first().copied().unwrap_or_default(),
    };
    StoredError { id, source: error.into() }
}
