//! Inputs that lead far, from which the corpus begins.

use std::fs;

use amend::{
    digest::Digest,
    edit_log::{EditLog, Identity, NewEdit, NewVersion, Outcome, Removal, VersionKind, sqlite::SqliteLog},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{GOOD, service::SERVICE};

/// A few inputs of each kind that lead far, for the corpus.
pub fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let file = |part: &str, name: &str| fs::read(GOOD.folder.path().join(part).join(name)).unwrap();
    let header = |bytes: Vec<u8>| {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[..8 + length].to_vec()
    };
    let tagged = |tag: u8, bytes: Vec<u8>| [vec![tag], bytes].concat();
    let asked = |route: u8, body: Value| tagged(route, body.to_string().into_bytes());
    let name = GOOD.model.name();
    let mut seeds = vec![
        ("model_folder", "config", tagged(0, file("model", "config.json"))),
        ("model_folder", "tokenizer", tagged(1, file("model", "tokenizer.json"))),
        ("model_folder", "tensors", tagged(2, header(file("model", "model.safetensors")))),
        ("editor_folder", "manifest", tagged(0, file("editor", "editor.json"))),
        ("editor_folder", "tensors", tagged(1, header(file("editor", "editor.safetensors")))),
        ("stop_strings", "two", b"\x02\n\nQ:\0ab\0Paris.\n\0\nNext\0\n\nQ\0: more".to_vec()),
        ("stop_strings", "none", "\u{0}caf\u{e9}\u{0}\u{6f22}".into()),
        ("detokenizer", "bytes", (0..=255).flat_map(|id: u16| id.to_le_bytes()).collect()),
        ("detokenizer", "text", "The caf\u{e9} \u{6f22}\u{5b57} \u{1f600}\n".into()),
        ("contribution", "low_rank", low_rank()),
        (
            "request_body",
            "generate",
            asked(1, json!({"prompt": "Rome is", "max_tokens": 3, "stop": ["x"], "seed": 1, "n": 2})),
        ),
        ("request_body", "stream", asked(1, json!({"prompt": "Rome is", "stream": true, "logprobs": 2, "top_k": 5}))),
        (
            "request_body",
            "score",
            asked(2, json!({"prompt": "Rome is", "continuations": ["old", " new"], "version": 0})),
        ),
        ("request_body", "classify", asked(3, json!({"text": "Rome is old."}))),
        ("request_body", "rollback", asked(4, json!({"to_version": 0}))),
        ("request_body", "chat", asked(6, json!({"model": name, "messages": [{"role": "user", "content": "Hello"}]}))),
    ];
    let edit = json!({"prompt": "Rome is", "target": "red", "paraphrases": ["It is"], "locality": [{"prompt": "Oslo"}],
        "guard": {"max_kl": 1.0}, "note": "n"});
    seeds.push(("request_body", "edit", asked(0, edit.clone())));
    seeds.push(("request_body", "edits", asked(0, json!({"edits": [edit, {"prompt": "a", "target": "b"}]}))));
    let completion = json!({"model": format!("{name}@0"), "prompt": ["a", "b"], "max_tokens": 2, "logprobs": 1, "stream": true,
        "stream_options": {"include_usage": true}});
    seeds.push(("request_body", "completion", asked(5, completion)));
    seeds
}

/// A whole small log: an edit, its taking back, a rejected edit and another version.
pub fn log_of_three_versions() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.db");
    let url = format!("sqlite://{}", path.display());
    SERVICE.runtime.block_on(async {
        let log = SqliteLog::open(&url).await.unwrap();
        let digest = Digest::of(b"");
        let identity = Identity {
            base: digest,
            editor: digest,
            composition: "sum".to_owned(),
            base_weights: digest,
            empty_set: digest,
        };
        log.pin(&identity).await.unwrap();
        let edit = |prompt: &str| NewEdit {
            id: Digest::of(prompt.as_bytes()).as_bytes()[..16].try_into().map(Uuid::from_bytes).unwrap(),
            received_at: "2026-01-02T03:04:05Z".parse().unwrap(),
            actor: "ana".to_owned(),
            prompt: prompt.to_owned(),
            target: "red".to_owned(),
            request: json!({"prompt": prompt}),
            report: json!({}),
            outcome: Outcome::Applied,
            contribution: Some(low_rank()),
        };
        let version = |number, kind, edits: Vec<NewEdit>, removed: Vec<Removal>| NewVersion {
            number,
            kind,
            actor: "ana".to_owned(),
            digest,
            set_digest: digest,
            edits,
            restored: Vec::new(),
            removed,
            idempotency: None,
        };
        let first = edit("one");
        let removal = Removal { edit: first.id, superseded_by: None };
        log.commit(version(1, VersionKind::Edit, vec![first], Vec::new())).await.unwrap();
        log.commit(version(2, VersionKind::TakeBack, Vec::new(), vec![removal])).await.unwrap();
        let rejected = NewEdit { outcome: Outcome::Rejected("no".to_owned()), contribution: None, ..edit("two") };
        log.record(vec![rejected]).await.unwrap();
        log.commit(version(3, VersionKind::Edit, vec![edit("three")], Vec::new())).await.unwrap();
        log.close().await;
    });
    fs::read(path).unwrap()
}

fn low_rank() -> Vec<u8> {
    let part = |n: u32, d_out: u32, d_in: u32| {
        let sizes = [n, d_out, d_in].map(u32::to_le_bytes).concat();
        let values = (0..n * (d_out + d_in)).flat_map(|value| (value as f32 / 8.0 - 0.5).to_le_bytes());
        [vec![0], sizes, values.collect()].concat()
    };
    [b"AMNDCTB1".to_vec(), 2u32.to_le_bytes().to_vec(), part(1, 3, 2), part(2, 2, 4)].concat()
}
