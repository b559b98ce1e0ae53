//! Programs in Python that the service is held against, installed once below the target folder.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A Python that has `requirement` (`NAME==RELEASE`), whose module is `module`; none, said aloud, where it can not be had.
pub fn with(requirement: &str, module: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(requirement);
    let python = folder.join("bin/python");
    let run = |command: &mut Command| {
        let output = command.stdin(Stdio::null()).output();
        let failed = match &output {
            Ok(output) if output.status.success() => return true,
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        eprintln!("skipped: {command:?}: {failed}");
        false
    };
    let import = format!("import {module}");
    let works = Command::new(&python).args(["-c", &import]).output().is_ok_and(|output| output.status.success());
    let made = works
        || (run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))
            && run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--retries", "1", requirement])));
    made.then_some(python)
}
