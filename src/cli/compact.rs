//! `amend compact`.

use clap::Args;
use jiff::{SignedDuration, Timestamp};

use crate::{
    config::{DatabaseArgs, values},
    edit_log::{
        LogError,
        sqlite::{self, Compaction},
    },
    faults,
};

/// What to drop.
#[derive(Debug, Clone, Args)]
pub struct CompactArgs {
    /// Drop what edits changed that left the set more than so many days ago and did not come back; required
    #[arg(long, env = "AMEND_OLDER_THAN", value_name = "DAYS", value_parser = clap::value_parser!(u32).range(..=36_500))]
    pub older_than: u32,

    /// Say what would be dropped, and drop nothing
    #[arg(long, env = "AMEND_DRY_RUN")]
    pub dry_run: bool,

    /// Who the log says dropped it
    #[arg(long, env = "AMEND_ACTOR", value_name = "NAME", default_value = "cli", value_parser = values::actor)]
    pub actor: String,

    #[command(flatten)]
    pub database: DatabaseArgs,
}

/// Drops the contributions of edits that left the set long ago, and says what went.
pub async fn compact(args: &CompactArgs) -> Result<String, LogError> {
    let days = SignedDuration::from_hours(24 * i64::from(args.older_than));
    let until = faults::now().saturating_sub(days).unwrap_or(Timestamp::MIN);
    let done = sqlite::compact(&args.database.database, until, &args.actor, args.dry_run).await?;
    Ok(said(args, &done))
}

fn said(args: &CompactArgs, done: &Compaction) -> String {
    let Compaction { edits, bytes, file: (before, after) } = done;
    let (edits, days) = (edits.len(), args.older_than);
    if edits == 0 {
        return format!("nothing to drop: no edit left the set more than {days} days ago and still has its change");
    }
    if args.dry_run {
        return format!("would drop the changes of {edits} edits, {bytes} bytes; nothing was changed");
    }
    format!(
        "dropped the changes of {edits} edits, {bytes} bytes; the database had {before} bytes and has {after}; versions \
         that contain one of them can not be made again, all others can"
    )
}
