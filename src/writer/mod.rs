//! The one task that changes the set of active edits.
//!
//! Law 5 (one writer): only `task` calls [`crate::edit_log::EditLog::commit`]; everything else holds an
//! [`EditHandle`] and asks. A submission goes through `admission` into the `queue`; the task captures what waits
//! together (`capturing`), then gives each submission its turn (`edit_turn`, `change_turn`): compose on the `ledger`,
//! measure (`measuring`), `guard`, commit, publish. `replay` makes the ledger from the log.

mod admission;
mod bench;
mod capturing;
mod change_turn;
mod config;
mod edit_report;
mod edit_turn;
mod error;
mod figure;
mod guard;
mod ledger;
mod measuring;
mod queue;
mod replay;
mod report;
mod request;
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
pub use config::WriterConfig;
pub use error::WriterError;
pub use queue::{Answer, EditHandle, PendingEdit, PendingState, Ticket};
pub use replay::{ReplayError, ReplayReport, verify};
pub use report::{
    BatchReport, DeltaReport, EditReport, LocalityReport, PhasesMs, ReportStatus, TargetFigures, TargetReport,
    VersionReport,
};
pub use request::{EditRequest, Guard, GuardLimits, Idempotency, LocalityProbe, SetChange, Submission};
pub use start::{StartError, Started, WriterTask};
pub use versions::Versions;
pub use workbench::start;
