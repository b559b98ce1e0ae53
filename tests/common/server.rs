//! A running service over a database in a temporary folder, and a client that talks to it.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use amend::editor::CompositionKind;
use reqwest::{Method, RequestBuilder, header::HeaderMap};
use serde_json::{Value, json};

use super::{
    process::{Finished, Held, PATIENCE, amend, finish, signal},
    tiny,
};

/// Model, editor and database of one test.
pub struct Files {
    pub model: PathBuf,
    pub editor: PathBuf,
    /// Threads to compute with; default: the service's own choice.
    pub threads: Option<usize>,
    pub folder: Arc<tempfile::TempDir>,
    /// Where the model and the editor lie, which is another folder for files made [`Files::afresh`].
    pub origin: Arc<tempfile::TempDir>,
    /// The URL of a log that several services share; none for a file of their own.
    pub shared_log: Option<String>,
}

impl Files {
    /// The tiny model and an editor whose edits are added up.
    pub fn tiny() -> Self {
        Self::tiny_of(CompositionKind::Sum)
    }

    /// The tiny model and an editor of this composition.
    pub fn tiny_of(composition: CompositionKind) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let (model, editor) = (folder.path().join("model"), folder.path().join("editor"));
        tiny::write_model(&model, 1);
        tiny::write_editor(&editor, &model, composition, 2);
        // What a tiny model computes is less than what it takes to share it.
        Self { model, editor, threads: Some(1), origin: Arc::clone(&folder), folder, shared_log: None }
    }

    /// The same model and editor over the log at this URL.
    pub fn over(&self, shared_log: String) -> Self {
        Self { shared_log: Some(shared_log), ..self.afresh() }
    }

    /// The same model and editor, and no database yet.
    pub fn afresh(&self) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let (model, editor, origin) = (self.model.clone(), self.editor.clone(), Arc::clone(&self.origin));
        Self { model, editor, threads: self.threads, folder, origin, shared_log: None }
    }

    pub fn database(&self) -> PathBuf {
        self.folder.path().join("data").join("amend.db")
    }

    pub fn url(&self) -> String {
        self.shared_log.clone().unwrap_or_else(|| format!("sqlite://{}", self.database().display()))
    }

    /// The options that name them.
    pub fn options(&self) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        let mut named =
            vec![("--model", path(&self.model)), ("--editor", path(&self.editor)), ("--database", self.url())];
        named.extend(self.threads.map(|threads| ("--threads", threads.to_string())));
        named.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect()
    }

    /// `amend verify` over them.
    pub fn verify(&self) -> Finished {
        finish(amend().arg("verify").args(self.options()))
    }
}

/// A running service.
pub struct Server {
    child: Held,
    pub client: Client,
    /// Its files stay as long as it runs, even if the test has let go of them.
    _folders: [Arc<tempfile::TempDir>; 2],
}

impl Server {
    /// Starts the service and waits until it is ready.
    pub async fn start(files: &Files) -> Self {
        Self::start_with(files, &[]).await
    }

    /// The same, with further options.
    pub async fn start_with(files: &Files, options: &[&str]) -> Self {
        Self::of(files, Launched::new(files, options)).await
    }

    /// Starts the service with a fault (`amend::faults`) or another variable in its environment.
    pub async fn start_in(files: &Files, environment: (&str, &str)) -> Self {
        Self::of(files, Launched::of(command(files, &[]).env(environment.0, environment.1))).await
    }

    async fn of(files: &Files, launched: Launched) -> Self {
        let (child, address) = launched.serving().await;
        let client = Client::new(&format!("http://{address}"));
        let _folders = [Arc::clone(&files.folder), Arc::clone(&files.origin)];
        let server = Self { child, client, _folders };
        assert_eq!(server.client.get("/readyz").await.status, 200);
        server
    }

    pub fn id(&self) -> u32 {
        self.child.process.id()
    }

    /// What it wrote to standard error so far.
    pub fn log(&self) -> String {
        self.child.log.lock().unwrap().clone()
    }

    /// The same, to be looked at when it has ended.
    pub fn log_kept(&self) -> Arc<Mutex<String>> {
        Arc::clone(&self.child.log)
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        signal("TERM", self.id());
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> ExitStatus {
        tokio::task::spawn_blocking(move || self.child.wait()).await.unwrap()
    }

    /// SIGTERM, and the end must be a good one.
    pub async fn stop(self) {
        self.terminate();
        let log = Arc::clone(&self.child.log);
        let status = self.ended().await;
        assert!(status.success(), "{status}; the service said:\n{}", log.lock().unwrap());
    }

    /// SIGKILL.
    pub fn kill(self) {
        drop(self.child);
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        signal("STOP", self.id());
    }

    /// SIGCONT.
    pub fn resume(&self) {
        signal("CONT", self.id());
    }
}

/// A service that was just launched.
pub struct Launched {
    child: Held,
    address: mpsc::Receiver<String>,
}

impl Launched {
    /// Launches the service on a free port, with further options.
    pub fn new(files: &Files, options: &[&str]) -> Self {
        Self::of(&mut command(files, options))
    }

    fn of(command: &mut Command) -> Self {
        let mut child = Held::new(command);
        let address = follow(child.process.stderr.take().unwrap(), Arc::clone(&child.log));
        Self { child, address }
    }

    /// The process and its address once it serves, for a client of the test's own.
    pub async fn serving(self) -> (Held, String) {
        let Self { child, address } = self;
        let waited = tokio::task::spawn_blocking(move || address.recv_timeout(PATIENCE)).await.unwrap();
        (child, waited.expect("the service did not come up"))
    }

    /// SIGKILL when it has run this long, ready or not.
    pub async fn kill_after(self, time: Duration) {
        tokio::time::sleep(time).await;
        drop(self.child);
    }
}

fn command(files: &Files, options: &[&str]) -> Command {
    let mut command = amend();
    command.args(["serve", "--log-format", "json"]);
    if !options.contains(&"--listen") {
        command.args(["--listen", "127.0.0.1:0"]);
    }
    command.args(files.options()).args(options).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Keeps what the service says, and sends the address once it serves.
fn follow(stderr: impl Read + Send + 'static, log: Arc<Mutex<String>>) -> mpsc::Receiver<String> {
    let (found, address) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            log.lock().unwrap().extend([line.as_str(), "\n"]);
            if event["message"] == "serving" {
                let _ = found.send(event["address"].as_str().unwrap().to_owned());
            }
        }
    });
    address
}

/// Someone who talks to a service.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    pub server: String,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    /// Null unless it is JSON.
    pub body: Value,
}

impl Client {
    pub fn new(server: &str) -> Self {
        let http = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
        Self { http, server: server.to_owned() }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.server))
    }

    /// Sends and reads the whole answer; the error is that there was none.
    pub async fn try_send(&self, request: RequestBuilder) -> reqwest::Result<Reply> {
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or_default();
        Ok(Reply { status, headers, text, body })
    }

    pub async fn send(&self, request: RequestBuilder) -> Reply {
        self.try_send(request).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// `POST /edits` that is applied.
    pub async fn edit(&self, prompt: &str, target: &str) -> Value {
        self.post("/edits", &json!({"prompt": prompt, "target": target, "guard": null})).await.with_status(201)
    }

    /// `DELETE /edits/{id}` of an active edit.
    pub async fn take_back(&self, id: &Value) -> Value {
        self.delete(&format!("/edits/{}", id.as_str().unwrap())).await.with_status(200)
    }

    /// `GET /versions/{n}`.
    pub async fn version(&self, number: u64) -> Value {
        self.get(&format!("/versions/{number}")).await.with_status(200)
    }

    /// The newest version.
    pub async fn newest(&self) -> Value {
        let info = self.get("/info").await.with_status(200);
        self.version(info["version"].as_u64().unwrap()).await
    }
}

impl Reply {
    /// The body; fails unless the status is this one.
    #[track_caller]
    pub fn with_status(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.body
    }

    /// The problem document; fails unless it is one, whole, with this status and code.
    #[track_caller]
    pub fn problem(self, status: u16, code: &str) -> Value {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        assert_eq!((self.status, self.body["code"].as_str()), (status, Some(code)), "{}", self.text);
        assert_eq!(self.body["status"], status);
        assert_eq!(self.body["type"], format!("urn:amend:problem:{code}"));
        assert!(self.body["title"].is_string() && self.body["detail"].is_string(), "{}", self.text);
        self.body
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// An object's keys in order.
#[track_caller]
pub fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value} is no object")).keys().map(String::as_str).collect()
}
