//! Read your writes at any replica: a request names the version that it must at least be answered from, and waits for it.

use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    error::{Code, Problem},
    state::AppState,
};
use crate::writer::Role;

/// For routes that take no other parameters.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AtLeast {
    /// The oldest version that may answer, as a change's answer gave it: the request waits for it, and is answered 409 if it
    /// does not come in time.
    pub min_version: Option<u64>,
}

/// Waits until this replica has version `least`; 409 with both numbers if it does not come in time.
pub(super) async fn at_least(app: &AppState, least: Option<u64>) -> Result<(), Problem> {
    let Some(least) = least else { return Ok(()) };
    let limit = app.limits.version_wait;
    app.replica.reach(least, limit).await.map_err(|newest| not_reached(least, newest, limit.as_secs_f64()))
}

/// The same for versions that are asked for by number, as far as the log has them: one that a follower does not have yet is
/// not unknown.
pub(super) async fn named(
    app: &AppState,
    versions: impl IntoIterator<Item = Option<u64>> + Send,
) -> Result<(), Problem> {
    let Some(newest) = versions.into_iter().flatten().max() else { return Ok(()) };
    let status = app.replica.status();
    if status.role == Role::Writer || newest <= status.version {
        return Ok(());
    }
    // Where the log does not answer, it may have it.
    match app.log.head().await {
        Ok(head) if head.number < newest => Ok(()),
        _ => at_least(app, Some(newest)).await,
    }
}

fn not_reached(least: u64, newest: u64, seconds: f64) -> Problem {
    let detail = format!("version {least} was not here within {seconds} s; the newest here is {newest}");
    Problem::new(Code::VersionNotReached, detail).with("min_version", least).with("version", newest)
}
