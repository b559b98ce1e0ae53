//! What SIGINT and SIGTERM do to a command that may end anywhere: it says where it stood, and ends.

use anyhow::Context;

/// Exit status of an interrupted command, as shells know it: 128 and the number of SIGINT.
const INTERRUPTED: i32 = 130;

/// From here on a signal ends the process with `last_words` on standard error. Only for work that leaves nothing
/// half-done wherever it ends: what only reads, and what the database commits whole or not at all.
#[expect(clippy::print_stderr, reason = "the last word of a command belongs on standard error")]
pub(super) fn ends_with(last_words: impl Fn() -> String + Send + 'static) -> anyhow::Result<()> {
    let end = move || {
        eprintln!("interrupted: {}", last_words());
        std::process::exit(INTERRUPTED);
    };
    ctrlc::set_handler(end).context("installing the interrupt handler")
}
