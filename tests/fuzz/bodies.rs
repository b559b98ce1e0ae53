//! What is done with bytes from outside, one function for each kind of them. Each takes any bytes and panics if something
//! does not hold. `fuzz/` calls them with what a fuzzer finds, `tests/fuzz` with the corpus and mutations of it.

#[path = "seeds.rs"]
#[allow(dead_code, reason = "the fuzzer needs none")]
pub mod seeds;
#[path = "service.rs"]
mod service;

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, LazyLock},
};

use amend::{
    digest::Digest,
    edit_log::{EditLog, sqlite::SqliteLog},
    editor::{self, Composition, CompositionKind, folder::BaseModel},
    generation::StopMatcher,
    model::{DenseMatrices, EditableMatrix, LoadOptions, Model},
    weights::{Composer, Contribution},
};
use axum::{
    body::{Body, to_bytes},
    http::{Request, header},
};
use candle_core::Device;
use serde_json::Value;
use service::SERVICE;
use tempfile::TempDir;
use tower::ServiceExt;

use super::tiny;

/// Routes that read a body.
const ROUTES: [&str; 7] =
    ["/edits?dry_run=true", "/generate", "/score", "/classify", "/rollback", "/v1/completions", "/v1/chat/completions"];

/// The name of its corpus, what it does with an input, and how many runs of it take about as long as one of the slowest's.
pub type Target = (&'static str, fn(&[u8]), usize);

/// All of them.
pub const BODIES: [Target; 8] = [
    ("gguf", gguf, 4),
    ("model_folder", model_folder, 2),
    ("editor_folder", editor_folder, 4),
    ("request_body", request_body, 2),
    ("stop_strings", stop_strings, 50),
    ("detokenizer", detokenizer, 50),
    ("contribution", contribution, 50),
    ("log_file", log_file, 1),
];

/// Zeros that stand for the data of tensors, so that a corpus of headers leads all the way through a load.
const DATA: usize = 1 << 18;

/// A tiny model and an editor for it, as folders and loaded.
struct Good {
    folder: TempDir,
    model: Arc<Model>,
}

static GOOD: LazyLock<Good> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let (model, editor) = (folder.path().join("model"), folder.path().join("editor"));
    tiny::write_model(&model, 1);
    tiny::write_editor(&editor, &model, CompositionKind::Sum, 2);
    let tail_blocks = editor::Manifest::read(&editor).unwrap().tail_blocks;
    let model = Model::load(&model, &LoadOptions { tail_blocks, ..LoadOptions::default() }).unwrap();
    Good { folder, model: Arc::new(model) }
});

thread_local! {
    static SCRATCH: TempDir = tempfile::tempdir().unwrap();
}

fn scratch(name: &str) -> PathBuf {
    SCRATCH.with(|folder| folder.path().join(name))
}

/// The files of a good folder of [`GOOD`], of which one is to be replaced.
fn copy_of(part: &str) -> PathBuf {
    let to = scratch(part);
    let _ = fs::remove_dir_all(&to);
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(GOOD.folder.path().join(part)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    to
}

/// A GGUF file, whose tensors' data are zeros.
pub fn gguf(data: &[u8]) {
    let path = scratch("fuzzed.gguf");
    fs::write(&path, [data, &vec![0; DATA]].concat()).unwrap();
    if let Err(error) = Model::load(&path, &LoadOptions { tail_blocks: 1, ..LoadOptions::default() }) {
        assert!(!error.to_string().is_empty());
    }
}

/// A file of a model's folder: the first byte says which, the others are what it holds.
pub fn model_folder(data: &[u8]) {
    let Some((which, rest)) = data.split_first() else { return };
    let folder = copy_of("model");
    match which % 3 {
        0 => fs::write(folder.join("config.json"), rest).unwrap(),
        1 => fs::write(folder.join("tokenizer.json"), rest).unwrap(),
        _ => fs::write(folder.join("model.safetensors"), with_data(rest)).unwrap(),
    }
    if let Err(error) = Model::load(&folder, &LoadOptions { tail_blocks: 1, ..LoadOptions::default() }) {
        assert!(!error.to_string().is_empty());
    }
}

/// A file of an editor's folder, as above. The manifest is made to fit the tensors, which would not be read otherwise.
pub fn editor_folder(data: &[u8]) {
    let Some((which, rest)) = data.split_first() else { return };
    let folder = copy_of("editor");
    let manifest = folder.join(editor::folder::MANIFEST);
    if which % 2 == 0 {
        fs::write(&manifest, rest).unwrap();
    } else {
        let (tensors, mut good) = (with_data(rest), editor::Manifest::read(&folder).unwrap());
        good.tensors_digest = Digest::of(&tensors);
        fs::write(&manifest, serde_json::to_vec(&good).unwrap()).unwrap();
        fs::write(folder.join(editor::folder::TENSORS), tensors).unwrap();
    }
    if let Ok(mut written) = editor::Manifest::read(&folder) {
        // So that more than the digest is looked at.
        written.base_model = BaseModel { digest: GOOD.model.digest(), ..written.base_model };
        fs::write(&manifest, serde_json::to_vec(&written).unwrap()).unwrap();
    }
    if let Err(error) = editor::load(&folder, &GOOD.model) {
        assert!(!error.to_string().is_empty());
    }
}

/// A safetensors header with as many zeros as it says that there are, up to a limit.
fn with_data(header: &[u8]) -> Vec<u8> {
    let wanted = || -> Option<usize> {
        let length = usize::try_from(u64::from_le_bytes(header.get(..8)?.try_into().ok()?)).ok()?;
        let table: Value = serde_json::from_slice(header.get(8..length.checked_add(8)?)?).ok()?;
        let ends = table.as_object()?.values().filter_map(|tensor| tensor["data_offsets"][1].as_u64());
        Some((length + 8).checked_add(usize::try_from(ends.max()?).ok()?)?.min(1 << 20))
    };
    let mut file = header.to_vec();
    file.resize(wanted().unwrap_or(0).max(header.len()), 0);
    file
}

/// The body of a request, through the whole service: the first byte says of which route.
pub fn request_body(data: &[u8]) {
    let Some((which, rest)) = data.split_first() else { return };
    let route = ROUTES[usize::from(*which) % ROUTES.len()];
    let request = Request::post(route).header(header::CONTENT_TYPE, "application/json").body(Body::from(rest.to_vec()));
    let answered = SERVICE.runtime.block_on(async {
        let response = SERVICE.routes.clone().oneshot(request.unwrap()).await.unwrap();
        let status = response.status();
        (status, to_bytes(response.into_body(), usize::MAX).await.unwrap())
    });
    let (status, body) = answered;
    let text = String::from_utf8_lossy(&body);
    assert!(!status.is_server_error(), "{route} answered {status}: {text}");
    assert!(!text.contains("event: error"), "{route} failed in its stream: {text}");
    if status.is_client_error() {
        let problem: Value = serde_json::from_slice(&body).expect("an error is JSON");
        let code = if route.starts_with("/v1") { &problem["error"]["code"] } else { &problem["code"] };
        assert!(code.is_string(), "{route}: {problem}");
    }
}

/// Stop strings and pieces of text, separated by zeros; the first byte says how many of them are stop strings. What is
/// let out must be what a look at the whole text says.
pub fn stop_strings(data: &[u8]) {
    let Some((count, rest)) = data.split_first() else { return };
    let mut parts = rest.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned());
    let stops: Vec<String> = parts.by_ref().take(usize::from(count % 5)).filter(|stop| !stop.is_empty()).collect();
    let pieces: Vec<String> = parts.collect();
    let (mut matcher, mut shown, mut stopped) = (StopMatcher::new(stops.clone()), String::new(), false);
    for piece in &pieces {
        let released = matcher.push(piece);
        shown += &released.text;
        stopped = released.stopped;
        if stopped {
            break;
        }
    }
    if !stopped {
        shown += &matcher.flush();
    }
    let text = pieces.concat();
    let first = (0..=text.len()).find_map(|end| {
        let ending = stops.iter().filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()));
        ending.map(String::len).max().map(|longest| end - longest)
    });
    assert_eq!((shown.as_str(), stopped), (&text[..first.unwrap_or(text.len())], first.is_some()));
}

/// Token ids, two bytes each, some of them beyond the vocabulary: one at a time they make the text that they make
/// together. And a text, which comes back as it was.
pub fn detokenizer(data: &[u8]) {
    let tokenizer = GOOD.model.tokenizer();
    let ids: Vec<u32> = data.chunks_exact(2).map(|two| u32::from(u16::from_le_bytes([two[0], two[1]])) % 300).collect();
    let mut stream = tokenizer.decode_stream();
    let mut text: String = ids.iter().filter_map(|id| stream.push(*id)).collect();
    text.extend(stream.finish());
    if let Ok(whole) = tokenizer.decode(&ids) {
        assert_eq!(text, whole);
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(ids) = tokenizer.encode(text)
    {
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
}

/// What the log keeps of an edit: bytes that are no contribution are refused, others are written as they were read, add up
/// and are taken off again exactly.
pub fn contribution(data: &[u8]) {
    let shape = |name: &str, d_out, d_in| EditableMatrix { name: name.to_owned(), d_out, d_in };
    let shapes = [shape("a", 3, 2), shape("b", 2, 4)];
    let Ok(read) = Contribution::from_bytes(data, &shapes) else { return };
    assert_eq!(read.to_bytes(), data);
    let base = [vec![0.5; 6], vec![-0.25; 8]].to_vec();
    let base = Arc::new(DenseMatrices::from_vecs(&shapes, base, &Device::Cpu).unwrap());
    let mut sums = Composer::new(&shapes, &base, &Composition::Sum).unwrap();
    let before = sums.digest().unwrap();
    if sums.change(&[], &[&read]).is_ok() {
        sums.change(&[&read], &[]).unwrap();
    }
    assert_eq!(sums.digest().unwrap(), before, "after an error nothing has changed, and taking back is exact");
}

/// A database file, which may be any bytes: it is refused, or every row of it is read.
pub fn log_file(data: &[u8]) {
    let path = scratch("fuzzed.db");
    for beside in ["fuzzed.db-wal", "fuzzed.db-shm", "fuzzed.db-journal"] {
        let _ = fs::remove_file(scratch(beside));
    }
    fs::write(&path, data).unwrap();
    let url = format!("sqlite://{}", path.display());
    SERVICE.runtime.block_on(async {
        let Ok(log) = SqliteLog::open_read_only(&url).await else { return };
        let checked = log.check_chain().await;
        let head = log.head().await;
        if checked.is_ok() {
            let head = head.expect("a log that is whole has a newest version").number;
            for id in log.active_set(head).await.unwrap() {
                log.contribution(id).await.unwrap();
            }
        }
        log.close().await;
    });
}
