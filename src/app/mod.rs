//! The only place that sees every room: wires them for each command.

mod access;
mod eval;
mod interrupt;
mod log;
mod offline;
mod open;
mod serve;
mod traces;
mod train;

use std::{path::PathBuf, process::ExitCode};

use crate::{
    cli::{self, Command, EditsCommand, KeysCommand, backup, client::Client, compact, history, keys},
    http,
    model::Kind,
    telemetry::{Traces, TracesConfig},
    training::dataset::{self, DataError, Dataset, Incomplete},
};

/// Threads that a command computes with; none for those that load no model.
pub fn compute_threads(command: &Command) -> Option<usize> {
    match command {
        Command::Serve(args) => Some(args.model.compute.threads()),
        // Training and evaluation spread their work over threads of their own.
        Command::Train(_) | Command::Eval(_) => Some(1),
        Command::Verify(args) => Some(args.model.compute.threads()),
        Command::Generate(args) => Some(args.place.compute.threads()),
        Command::Edits(EditsCommand::Revert(args)) => Some(args.place.compute.threads()),
        Command::Edits(_)
        | Command::Versions(_)
        | Command::Backup(_)
        | Command::Restore(_)
        | Command::Compact(_)
        | Command::Keys(_)
        | Command::Openapi
        | Command::Health(_) => None,
    }
}

/// Whether a command computes without a pause until it is done.
pub fn works_through(command: &Command) -> bool {
    matches!(command, Command::Train(_) | Command::Eval(_))
}

/// Where the traces of a command go, if anywhere. Only the service has any.
pub fn traces(command: &Command) -> anyhow::Result<Option<TracesConfig>> {
    match command {
        Command::Serve(args) => traces::config(&args.traces),
        _ => Ok(None),
    }
}

/// Carries a command out; `traces` are sent to the end before the service stops.
pub fn run(command: Command, traces: Option<&Traces>) -> anyhow::Result<ExitCode> {
    match command {
        Command::Train(args) => return train::run(&args),
        Command::Eval(args) => return eval::run(&args),
        _ => {}
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let code = runtime.block_on(run_async(command, traces));
    // A command that was told to stop while it loaded must not wait until the load is done.
    runtime.shutdown_background();
    code
}

async fn run_async(command: Command, traces: Option<&Traces>) -> anyhow::Result<ExitCode> {
    let text = match command {
        Command::Train(_) | Command::Eval(_) => unreachable!("these compute without a runtime"),
        Command::Serve(args) => return Box::pin(serve::run(&args, traces)).await,
        Command::Verify(args) => return Box::pin(offline::verify(&args)).await,
        Command::Generate(args) => return Box::pin(offline::generate(&args)).await,
        Command::Edits(EditsCommand::Revert(args)) => return Box::pin(offline::revert(&args)).await,
        Command::Edits(EditsCommand::List(args)) => history::list(&args).await?,
        Command::Edits(EditsCommand::Show(args)) => history::show(&args).await?,
        Command::Versions(args) => history::versions(&args).await?,
        Command::Backup(args) => backup::backup(&args).await?,
        Command::Restore(args) => backup::restore(&args).await?,
        Command::Compact(args) => compact::compact(&args).await?,
        Command::Keys(KeysCommand::New(args)) => keys::new(&args)?,
        Command::Openapi => http::document().to_pretty_json()?,
        Command::Health(args) => {
            Client::new(&args.server, None)?.ready().await?;
            "ready".to_owned()
        }
    };
    cli::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Records to train on or to measure; says how many were left out.
fn records(paths: &[PathBuf], kind: Kind, skip_incomplete: bool) -> Result<Dataset, DataError> {
    let incomplete = if skip_incomplete { Incomplete::LeftOut } else { Incomplete::Refused };
    let data = dataset::load(paths, kind, incomplete)?;
    if data.left_out > 0 {
        tracing::warn!(left_out = data.left_out, kept = data.records.len(), "records that lack a text are left out");
    }
    Ok(data)
}
