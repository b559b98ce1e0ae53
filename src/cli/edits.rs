//! `amend edits` and `amend versions`: reading the log, which needs no model and works beside a running server.

use std::num::NonZeroU32;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Output, table};
use crate::{
    config::{DatabaseArgs, PlaceArgs},
    edit_log::{EditLog, EditQuery, EditRow, EditStatus, VersionRow},
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

    /// Only edits that this actor asked for; default: all
    #[arg(long, env = "AMEND_ACTOR", value_name = "NAME")]
    pub actor: Option<String>,

    /// Only edits received at this time or later, RFC 3339; default: all
    #[arg(long, env = "AMEND_SINCE", value_name = "TIME")]
    pub since: Option<Timestamp>,

    /// Only edits received up to this time, RFC 3339; default: all
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

    /// Who the log says took it back; without --server only
    #[arg(long, env = "AMEND_ACTOR", value_name = "NAME", default_value = "cli")]
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
            actor: self.actor.clone(),
            since: self.since,
            until: self.until,
            before: self.page.before,
            limit: self.page.limit.get(),
        }
    }
}

/// `amend edits list`, as it is printed.
pub async fn list(log: &dyn EditLog, args: &ListArgs) -> anyhow::Result<String> {
    let page = log.edits(&args.query()).await?;
    match args.page.print.output {
        Output::Json => {
            let edits: Vec<Value> = page.items.iter().map(edit_json).collect();
            Ok(serde_json::to_string_pretty(&json!({"edits": edits, "next": page.next}))?)
        }
        Output::Text => Ok(table::edits(&page.items) + &next_page(page.next)),
    }
}

/// `amend edits show`, as it is printed.
pub async fn show(log: &dyn EditLog, args: &ShowArgs) -> anyhow::Result<String> {
    let edit = log.edit(args.id).await?.with_context(|| format!("there is no edit {}", args.id))?;
    match args.print.output {
        Output::Json => Ok(serde_json::to_string_pretty(&edit_json(&edit))?),
        Output::Text => Ok(table::edit(&edit)),
    }
}

/// `amend versions`, as it is printed.
pub async fn versions(log: &dyn EditLog, args: &VersionsArgs) -> anyhow::Result<String> {
    let limit = args.page.limit.get();
    let versions = log.versions(args.page.before, limit).await?;
    let full = u32::try_from(versions.len()).is_ok_and(|found| found == limit);
    let next = versions.last().map(|version| version.number).filter(|number| full && *number > 0);
    match args.page.print.output {
        Output::Json => {
            let versions: Vec<Value> = versions.iter().map(version_json).collect();
            Ok(serde_json::to_string_pretty(&json!({"versions": versions, "next": next}))?)
        }
        Output::Text => Ok(table::versions(&versions) + &next_page(next)),
    }
}

fn next_page(next: Option<u64>) -> String {
    next.map(|before| format!("\nmore with --before {before}")).unwrap_or_default()
}

fn edit_json(edit: &EditRow) -> Value {
    json!({
        "id": edit.id,
        "status": edit.status,
        "reason": edit.reason,
        "version": edit.version,
        "superseded_by": edit.superseded_by,
        "received_at": edit.received_at,
        "actor": edit.actor,
        "prompt": edit.prompt,
        "target": edit.target,
        "contribution": edit.contribution,
        "request": edit.request,
        "report": edit.report,
    })
}

fn version_json(version: &VersionRow) -> Value {
    json!({
        "version": version.number,
        "kind": version.kind,
        "created_at": version.created_at,
        "actor": version.actor,
        "active": version.active,
        "digest": version.digest,
        "set_digest": version.set_digest,
        "entry_hash": version.entry_hash,
    })
}
