//! The `amend` binary: parses the command line, fixes the number of threads, and hands over to [`amend::app`].

use std::process::ExitCode;

use amend::{
    app,
    cli::Cli,
    telemetry::{self, Traces},
};

/// Tensors are large and short-lived: the system's allocator gives each one fresh pages, which have to be cleared again
/// and again (about a tenth of a training step).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Number of mimalloc's option `purge_delay`, which its bindings have no name for.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
/// How long freed memory stays with a process that serves, ms. After mimalloc's own 10 ms a tensor's pages go back between
/// two edits, and what is free after each delay goes back at once, whether it was used a moment ago or not: with a delay of
/// 1 s to fault pages in again took a fifth of the time of edits that came one after another.
const KEEP_FREED_MS: std::ffi::c_long = 10_000;
/// Freed memory stays with the process until it ends.
const KEEP_ALL: std::ffi::c_long = -1;

fn main() -> ExitCode {
    let cli = match Cli::from_args(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    // Every step needs the memory of the one before, and a run ends.
    keep_freed_memory(if app::works_through(&cli.command) { KEEP_ALL } else { KEEP_FREED_MS });
    if let Some(threads) = app::compute_threads(&cli.command) {
        use_threads(threads);
    }
    // After the environment is set, for it starts threads where traces are sent.
    let traces = match started(&cli) {
        Ok(traces) => traces,
        Err(error) => return fail(&error),
    };
    match app::run(cli.command, traces.as_ref()) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

fn started(cli: &Cli) -> anyhow::Result<Option<Traces>> {
    let traces = app::traces(&cli.command)?;
    Ok(telemetry::tracing::init(&cli.tracing.log_level, cli.tracing.log_format, traces.as_ref())?)
}

/// `MIMALLOC_PURGE_DELAY` in the environment has the last word.
fn keep_freed_memory(ms: std::ffi::c_long) {
    #[expect(unsafe_code, reason = "mimalloc has no safe interface to its options")]
    // SAFETY: the option exists, and no other thread has been started yet.
    unsafe {
        libmimalloc_sys::mi_option_set_default(PURGE_DELAY, ms);
    }
}

/// candle and its matrix products read their number of threads from the environment, at every use.
fn use_threads(threads: usize) {
    // candle's own pool waits by spinning between its operations, on cores that the products need (a third of all time
    // with two threads on two cores). It only pays where candle's quantized kernels do the work.
    let pool = if amend::model::layers::int8::kernel_available() { 1 } else { threads };
    for (name, threads) in [("RAYON_NUM_THREADS", threads), ("CANDLE_NUM_THREADS", pool)] {
        #[expect(unsafe_code, reason = "the environment is the only way to tell candle")]
        // SAFETY: no other thread has been started yet, so nobody reads the environment meanwhile.
        unsafe {
            std::env::set_var(name, threads.to_string());
        }
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a command that failed belongs on standard error")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}
