//! Options of `amend edits` and `amend versions`.

use std::num::NonZeroU32;

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use uuid::Uuid;

use super::Output;
use crate::{
    config::{DatabaseArgs, PlaceArgs, values},
    edit_log::{EditQuery, EditStatus},
};

/// What to do with edits.
#[derive(Debug, Subcommand)]
pub enum EditsCommand {
    /// List edits, newest first
    List(ListArgs),
    /// Show one edit with all its figures
    Show(ShowArgs),
    /// Take one edit back: a new version without it
    Revert(RevertArgs),
}

/// Which edits to list.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Only edits that stand so; default: all
    #[arg(long, env = "AMEND_STATUS", value_name = "STATUS", value_enum)]
    pub status: Option<Status>,

    /// Only edits whose prompt or target contains this, ignoring ASCII case; default: all
    #[arg(long, env = "AMEND_TEXT", value_name = "TEXT")]
    pub text: Option<String>,

    // Not called --actor, because AMEND_ACTOR is the name under which revert works, and must not filter this list.
    /// Only edits that this actor asked for; default: all
    #[arg(long, env = "AMEND_BY_ACTOR", value_name = "NAME")]
    pub by_actor: Option<String>,

    /// Only edits received at this time or later, RFC 3339; default: all
    #[arg(long, env = "AMEND_SINCE", value_name = "TIME")]
    pub since: Option<Timestamp>,

    /// Only edits received before this time, RFC 3339; default: all
    #[arg(long, env = "AMEND_UNTIL", value_name = "TIME")]
    pub until: Option<Timestamp>,

    #[command(flatten)]
    pub page: PageArgs,
}

/// Which page, from where, and how it is printed.
#[derive(Debug, Clone, Args)]
pub struct PageArgs {
    /// Go on below this number, which the page before printed; default: from the newest
    #[arg(long, env = "AMEND_BEFORE", value_name = "N")]
    pub before: Option<u64>,

    /// How many at most
    #[arg(long, env = "AMEND_LIMIT", value_name = "N", default_value = "20")]
    pub limit: NonZeroU32,

    #[command(flatten)]
    pub print: PrintArgs,
}

/// Which log, and how it is printed.
#[derive(Debug, Clone, Args)]
pub struct PrintArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,

    /// Print for people or as JSON
    #[arg(long, env = "AMEND_OUTPUT", value_name = "FORMAT", value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Which edit to show.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// The edit's id
    pub id: Uuid,

    #[command(flatten)]
    pub print: PrintArgs,
}

/// Which edit to take back, and where.
#[derive(Debug, Clone, Args)]
pub struct RevertArgs {
    /// The edit's id
    pub id: Uuid,

    /// Who the log says took it back
    #[arg(long, env = "AMEND_ACTOR", value_name = "NAME", default_value = "cli", value_parser = values::actor)]
    pub actor: String,

    #[command(flatten)]
    pub place: PlaceArgs,
}

/// Which versions to list.
#[derive(Debug, Clone, Args)]
pub struct VersionsArgs {
    #[command(flatten)]
    pub page: PageArgs,
}

/// [`EditStatus`], as an option's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Status {
    /// Active in the newest version.
    Applied,
    /// Taken back by a request or a rollback.
    TakenBack,
    /// Replaced by a later edit of the same prompt.
    Superseded,
    /// Refused by the guard.
    Rejected,
    /// Not computed, because of an error.
    Failed,
}

impl From<Status> for EditStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Applied => Self::Applied,
            Status::TakenBack => Self::TakenBack,
            Status::Superseded => Self::Superseded,
            Status::Rejected => Self::Rejected,
            Status::Failed => Self::Failed,
        }
    }
}

impl ListArgs {
    /// The query that these options make.
    pub fn query(&self) -> EditQuery {
        EditQuery {
            status: self.status.map(Into::into),
            text: self.text.clone(),
            actor: self.by_actor.clone(),
            since: self.since,
            until: self.until,
            before: self.page.before,
            limit: self.page.limit.get(),
        }
    }
}
