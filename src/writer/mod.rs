//! The one task that changes the set of active edits.
//!
//! Law 5 (one writer): only `task` calls [`crate::edit_log::EditLog::commit`]; everything else holds an
//! [`EditHandle`] and asks. A submission goes through `admission` into the `queue`; the task captures what waits
//! together (`capturing`), then gives each submission its turn (`edit_turn`, `change_turn`): compose on the `ledger`,
//! measure (`measuring`) what was asked and what else must hold (`roster`, `canaries`), judge (`judging`: `guard`, `holding`,
//! `conflicts`), commit, publish. `replay` makes the ledger from the log. When nothing is asked, `recheck` scores the
//! active edits again, and `health` says what it found.
//!
//! At a log that several processes share, one of them writes (`standing`): the others take up its versions (`following`), and
//! `driver` looks whose place it is.

mod admission;
mod bench;
mod canaries;
mod capturing;
mod change_turn;
mod command;
mod config;
mod conflicts;
mod driver;
mod echo;
mod edit_report;
mod edit_turn;
mod error;
mod figure;
mod following;
mod guard;
mod health;
mod holding;
mod judging;
mod ledger;
mod measuring;
mod queue;
mod recheck;
mod replay;
mod report;
mod request;
mod roster;
mod standing;
mod start;
mod stored;
mod task;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod versions;
mod workbench;

pub use bench::Foundation;
pub use canaries::{CanaryError, CanaryText, read_canaries};
pub use command::Answer;
pub use config::WriterConfig;
pub use conflicts::{Conflict, ConflictReason};
pub use error::{RejectedBy, WriterError};
pub use health::{CanaryDrift, CheckProgress, CheckReport, EditsHealth, LostEdit};
pub use holding::{BreakReason, BrokenCanary, BrokenEdit, HoldingReport};
pub use queue::{EditHandle, PendingEdit, PendingState, Ticket};
pub use replay::{ReplayError, ReplayReport, verify};
pub use report::{
    BatchReport, DeltaReport, EditReport, GradientReport, LocalityReport, PhasesMs, ReportStatus, TargetFigures,
    TargetReport, VersionReport,
};
pub use request::{EditRequest, Guard, GuardLimits, Idempotency, LocalityProbe, Policy, SetChange, Submission};
pub use standing::{ReplicaHandle, ReplicaStatus, Role};
pub use start::{Place, StartError, Started, WriterTask};
pub use versions::Versions;
pub use workbench::start;
