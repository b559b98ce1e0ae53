//! The real binary as a child process.

use std::{
    fs::File,
    io::Read,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

/// How long anything may take before a test gives up; a machine that is busy with other things is slow.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The binary, untouched by the options that the environment of the test holds, but for the device to compute on.
pub fn amend() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_amend"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("OTEL_") || (text.starts_with("AMEND_") && text != "AMEND_DEVICE") {
            command.env_remove(name);
        }
    }
    command
}

/// A command that ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// What it printed; fails unless it went well.
    pub fn good(self) -> String {
        assert!(self.status.success(), "{self:?}");
        self.stdout
    }

    /// What it said last on standard error; fails unless it ended in an error of its own.
    pub fn refused(self) -> String {
        assert_eq!(self.status.code(), Some(1), "{self:?}");
        let error = self.stderr.lines().rfind(|line| line.starts_with("error: "));
        error.unwrap_or_else(|| panic!("no error in {self:?}")).to_owned()
    }
}

/// Runs a command to its end.
pub fn finish(command: &mut Command) -> Finished {
    Held::heard(command).finish()
}

/// Runs a command until it opens this pipe to read, interrupts it there (SIGINT), and waits for its end.
pub fn interrupt_at(pipe: &Path, command: &mut Command) -> Finished {
    let child = Held::heard(command);
    let (opened, end) = mpsc::channel();
    let pipe = pipe.to_owned();
    // Opening waits for the other side.
    thread::spawn(move || opened.send(File::options().write(true).open(pipe).unwrap()));
    let _end = end.recv_timeout(PATIENCE).expect("the command did not open the pipe");
    signal("INT", child.process.id());
    child.finish()
}

/// Sends a process a signal.
pub fn signal(name: &str, process: u32) {
    let kill = format!("kill -{name} {process}");
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

fn read_all(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A child that does not outlive the test, whatever fails.
pub struct Held {
    pub process: Child,
    /// What it wrote to standard error so far.
    pub log: Arc<Mutex<String>>,
}

impl Held {
    pub fn new(command: &mut Command) -> Self {
        Self { process: command.spawn().unwrap(), log: Arc::default() }
    }

    /// A child whose output is for the test.
    fn heard(command: &mut Command) -> Self {
        Self::new(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    fn finish(mut self) -> Finished {
        let stdout = read_all(self.process.stdout.take().unwrap());
        let stderr = read_all(self.process.stderr.take().unwrap());
        let status = self.wait();
        Finished { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
    }

    pub fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "process {} does not end", self.process.id());
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if thread::panicking() {
            eprintln!("the service said:\n{}", self.log.lock().unwrap());
        }
    }
}
