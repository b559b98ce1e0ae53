//! A PostgreSQL server of a test's own: started in a temporary folder, on a socket in it, and gone with the test. Needs
//! Debian's package `postgresql`, or the folder of another's binaries in `AMEND_TEST_POSTGRES_BIN`. Where there is none, tests
//! say so and pass, unless `AMEND_REQUIRE_POSTGRES` is set.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests fail like tests, and say what they skip"
)]

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How long the server may take to come up; a machine that is busy with other things is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server. Its databases are the test's; it keeps nothing safe, and stops with this value.
pub struct PostgresServer {
    process: Child,
    programs: Programs,
    folder: tempfile::TempDir,
    databases: AtomicU32,
}

impl PostgresServer {
    /// Starts a server. None, said aloud, where there is no PostgreSQL.
    pub fn start() -> Option<Self> {
        // What is lost with the machine is of no use to anyone. Kills are of clients, not of the server.
        Self::start_with(&["fsync=off", "full_page_writes=off", "autovacuum=off"])
    }

    /// The same, with these settings beside those that keep it small.
    pub fn start_with(settings: &[&str]) -> Option<Self> {
        let Some(programs) = Programs::found() else {
            assert!(
                std::env::var_os("AMEND_REQUIRE_POSTGRES").is_none(),
                "there is no PostgreSQL (Debian: postgresql)"
            );
            eprintln!("skipped: there is no PostgreSQL (Debian: postgresql)");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("amend-pg-").tempdir().unwrap();
        programs.own(folder.path());
        let data = folder.path().join("data");
        run(programs.command("cp").args(["-r", "--reflink=auto"]).arg(programs.cluster()).arg(&data));
        run(programs.command("chmod").arg("700").arg(&data));
        let small = ["shared_buffers=16MB", "max_connections=200", "listen_addresses="];
        let mut command = programs.command(programs.path("postgres"));
        command.arg("-D").arg(&data).arg("-k").arg(folder.path());
        command.args(small.iter().chain(settings).flat_map(|setting| ["-c", setting]));
        let log = File::create(folder.path().join("log")).unwrap();
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let server = Self { process, programs, folder, databases: AtomicU32::new(0) };
        server.wait();
        Some(server)
    }

    fn wait(&self) {
        let begun = Instant::now();
        while !self.client("pg_isready").arg("-q").status().unwrap().success() {
            assert!(begun.elapsed() < PATIENCE, "PostgreSQL does not come up: {}", self.log());
            thread::sleep(Duration::from_millis(30));
        }
    }

    /// What it said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Where it listens.
    #[allow(dead_code, reason = "each test binary uses a part")]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join(".s.PGSQL.5432")
    }

    /// A client program that talks to it.
    fn client(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.path(name));
        command.arg("-h").arg(self.folder.path());
        command
    }

    /// The URL of a new, empty database.
    pub fn database(&self) -> String {
        let name = format!("amend{}", self.databases.fetch_add(1, Ordering::SeqCst));
        run(self.client("createdb").args(["-U", "postgres", &name]));
        format!("postgres://postgres@localhost/{name}?host={}", self.folder.path().display())
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        let kill = format!("kill -QUIT {}", self.process.id());
        let _ = Command::new("sh").args(["-c", &kill]).status();
        let _ = self.process.wait();
        if thread::panicking() {
            eprintln!("PostgreSQL said:\n{}", self.log());
        }
    }
}

/// Where PostgreSQL's programs are, and who may run them.
#[derive(Clone)]
struct Programs {
    folder: PathBuf,
    /// The server refuses to be root's.
    user: Option<&'static str>,
}

impl Programs {
    fn found() -> Option<Self> {
        let named = std::env::var_os("AMEND_TEST_POSTGRES_BIN").map(PathBuf::from);
        let folder = named.into_iter().chain(debian()).chain(on_the_path()).find(|bin| bin.join("initdb").is_file())?;
        let user = (fs::metadata("/proc/self").unwrap().uid() == 0).then_some("postgres");
        Some(Self { folder, user })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A command of the server's user that does not outlive the test.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        if let Some(user) = self.user {
            command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
        }
        command.args(["--pdeathsig", "QUIT"]).arg("--").arg(program).current_dir("/");
        command
    }

    fn own(&self, folder: &Path) {
        if let Some(user) = self.user {
            run(Command::new("chown").arg(user).arg(folder));
        }
    }

    /// A cluster to copy, made once: to make one takes longer than most tests.
    fn cluster(&self) -> PathBuf {
        let owner = self.user.map_or_else(|| fs::metadata("/proc/self").unwrap().uid().to_string(), str::to_owned);
        let version = self.folder.display().to_string().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let kept = std::env::temp_dir().join(format!("amend-test-cluster-{owner}{version}"));
        fs::create_dir_all(&kept).unwrap();
        let lock = File::create(kept.join(format!("lock-{}", fs::metadata("/proc/self").unwrap().uid()))).unwrap();
        lock.lock().unwrap();
        let cluster = kept.join("cluster");
        if !cluster.exists() {
            let beside = kept.join("being-made");
            let _ = fs::remove_dir_all(&beside);
            self.own(&kept);
            let options = ["--auth", "trust", "-U", "postgres", "-E", "UTF8", "--locale", "C", "--no-sync"];
            run(self.command(self.path("initdb")).args(options).args(["--wal-segsize", "1"]).arg("-D").arg(&beside));
            fs::rename(&beside, &cluster).unwrap();
        }
        cluster
    }
}

/// Debian's folders, the newest version first.
fn debian() -> Vec<PathBuf> {
    let folders = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = folders.map(|entry| entry.path().join("bin")).collect();
    folders.sort();
    folders.reverse();
    folders
}

fn on_the_path() -> Vec<PathBuf> {
    std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect()
}

fn run(command: &mut Command) {
    let done = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}
