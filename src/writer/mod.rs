//! The one task that changes the set of active edits.
//!
//! Law 5 (one writer): only [`task`] calls [`crate::edit_log::EditLog::commit`]; everything else holds an
//! [`EditHandle`] and asks.

mod error;
mod report;
mod request;

pub use error::WriterError;
pub use report::{
    BatchReport, DeltaReport, EditReport, LocalityReport, PhasesMs, ReportStatus, TargetFigures, TargetReport,
    VersionReport,
};
pub use request::{EditRequest, Guard, GuardLimits, Idempotency, LocalityProbe, SetChange, Submission};
