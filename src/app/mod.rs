//! The only place that sees every room: wires them for each command.

mod train;

use std::process::ExitCode;

use crate::cli::Command;

/// Threads that a command computes with; none for those that load no model.
pub fn compute_threads(command: &Command) -> Option<usize> {
    match command {
        // Training spreads parts of a batch over threads of its own.
        Command::Train(_) => Some(1),
        _ => None,
    }
}

/// Carries a command out.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Train(args) => train::run(&args),
        _ => anyhow::bail!("not wired"),
    }
}
