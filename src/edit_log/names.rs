//! How the enumerations of the log are spelled in the database and in its hashes.

use super::{ChangeKind, Outcome, VersionKind, chain::EntryKind};

impl EntryKind {
    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Base => "base",
            Self::Edit => "edit",
            Self::Version => "version",
            Self::Compaction => "compaction",
        }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        let all = [Self::Identity, Self::Base, Self::Edit, Self::Version, Self::Compaction];
        all.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl VersionKind {
    /// As stored, and as serialized.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Edit => "edit",
            Self::TakeBack => "take_back",
            Self::Rollback => "rollback",
        }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        [Self::Base, Self::Edit, Self::TakeBack, Self::Rollback].into_iter().find(|kind| kind.as_str() == name)
    }
}

impl ChangeKind {
    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
        }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        [Self::Added, Self::Removed].into_iter().find(|kind| kind.as_str() == name)
    }
}

impl Outcome {
    pub(super) const APPLIED: &'static str = "applied";
    pub(super) const REJECTED: &'static str = "rejected";
    pub(super) const FAILED: &'static str = "failed";

    /// Its name as stored, and the reason.
    pub(super) fn into_parts(self) -> (&'static str, Option<String>) {
        match self {
            Self::Applied => (Self::APPLIED, None),
            Self::Rejected(reason) => (Self::REJECTED, Some(reason)),
            Self::Failed(reason) => (Self::FAILED, Some(reason)),
        }
    }
}
