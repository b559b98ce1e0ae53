//! The writer over a real network: a tiny random Llama, and an editor that takes one step down the gradient.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod common;

use std::{collections::HashMap, path::Path, sync::Arc, time::Instant};

use amend::{
    digest::Digest,
    edit_log::sqlite::SqliteLog,
    editor::{Delta, Editor, EditorError, MatrixDelta},
    model::{LoadOptions, Model, TrunkState, capture::Captured},
    telemetry::Metrics,
    weights::VersionSource,
    writer::{
        self, Answer, BatchReport, EditRequest, Foundation, Guard, LocalityProbe, Place, SetChange, Submission,
        WriterConfig,
    },
};
use candle_core::{Device, Tensor};
use serde_json::json;

/// `W -= rate * gradient`, in factors.
struct Descent {
    rate: f64,
}

impl Editor for Descent {
    fn method(&self) -> &str {
        "descent"
    }

    fn digest(&self) -> Digest {
        Digest::of(b"descent")
    }

    fn edit(&self, _: &Model, _: &TrunkState, captured: &Captured) -> Result<Delta, EditorError> {
        let step = |factors: &amend::model::capture::Factors| -> candle_core::Result<MatrixDelta> {
            Ok(MatrixDelta::LowRank { left: (&factors.delta * -self.rate)?, right: factors.u.clone() })
        };
        Ok(Delta(captured.factors.iter().map(step).collect::<candle_core::Result<_>>()?))
    }
}

fn tiny(folder: &Path) -> Model {
    let (vocabulary, hidden, inner, kv) = (256, 32, 48, 16);
    let config = json!({
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 128, "tie_word_embeddings": true, "hidden_act": "silu"
    });
    let random = |shape: &[usize]| Tensor::randn(0f32, 0.3, shape, &Device::Cpu).unwrap();
    let ones = || Tensor::ones(hidden, candle_core::DType::F32, &Device::Cpu).unwrap();
    let mut tensors = HashMap::from([
        ("model.embed_tokens.weight".to_owned(), random(&[vocabulary, hidden])),
        ("model.norm.weight".to_owned(), ones()),
    ]);
    for layer in 0..3 {
        let mut put = |name: &str, tensor| tensors.insert(format!("model.layers.{layer}.{name}.weight"), tensor);
        put("input_layernorm", ones());
        put("post_attention_layernorm", ones());
        put("self_attn.q_proj", random(&[hidden, hidden]));
        put("self_attn.k_proj", random(&[kv, hidden]));
        put("self_attn.v_proj", random(&[kv, hidden]));
        put("self_attn.o_proj", random(&[hidden, hidden]));
        put("mlp.gate_proj", random(&[inner, hidden]));
        put("mlp.up_proj", random(&[inner, hidden]));
        put("mlp.down_proj", random(&[hidden, inner]));
    }
    common::write_folder(folder, &config, &tensors);
    Model::load(folder, &LoadOptions { tail_blocks: 2, ..LoadOptions::default() }).unwrap()
}

fn submission(prompt: &str, target: &str) -> Submission {
    let edit = EditRequest {
        prompt: prompt.into(),
        target: target.into(),
        paraphrases: vec![format!("Well, {prompt}")],
        locality: vec![
            LocalityProbe { prompt: "Rome is".into(), target: Some("old".into()) },
            LocalityProbe { prompt: "Oslo".into(), target: None },
        ],
        guard: Guard::Off,
        note: None,
        editor: None,
    };
    let actor = "tester".to_owned();
    Submission {
        edits: vec![edit],
        dry_run: false,
        actor,
        expected_version: None,
        idempotency: None,
        batch: false,
        detached: false,
    }
}

async fn fresh(ticket: writer::Ticket) -> BatchReport {
    match ticket.done().await.unwrap() {
        Answer::Fresh(report) => report,
        Answer::Recorded(row) => panic!("recorded: {row:?}"),
    }
}

async fn open(folder: &Path) -> Arc<SqliteLog> {
    Arc::new(SqliteLog::open(&format!("sqlite://{}", folder.join("log.db").display())).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_of_a_network_takes_and_is_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let model = Arc::new(tiny(folder.path()));
    let editor: Arc<dyn Editor> = Arc::new(Descent { rate: 0.5 });
    let log = open(folder.path()).await;
    let start = async |log: &Arc<SqliteLog>| {
        let (model, editor, log) = (Arc::clone(&model), Arc::clone(&editor), Arc::clone(log));
        writer::start(model, editor, log as _, Place::Alone, WriterConfig::default(), Metrics::new()).await.unwrap()
    };
    let started = start(&log).await;
    let base = started.versions.lease(None).await.unwrap().digest;
    let tickets: Vec<_> = ["Paris is", "The city of Paris is", "Bonn was"]
        .iter()
        .map(|prompt| started.handle.submit(submission(prompt, "blue")).unwrap())
        .collect();
    let mut reports = Vec::new();
    for ticket in tickets {
        reports.push(fresh(ticket).await);
    }
    for (i, report) in reports.iter().enumerate() {
        let one = &report.edits[0];
        assert_eq!(report.version, i as u64 + 1);
        assert!(one.prompt.after.probability > one.prompt.before.probability, "{one:?}");
        assert_eq!((one.paraphrases.len(), one.locality.len()), (1, 2));
        assert!(one.locality.iter().all(|probe| probe.kl > 0.0), "{:?}", one.locality);
        let names: Vec<&str> = one.delta.iter().map(|delta| delta.matrix.as_str()).collect();
        assert_eq!(names, model.editable().iter().map(|matrix| matrix.name.as_str()).collect::<Vec<_>>());
        assert!(one.delta.iter().all(|delta| delta.norm > 0.0 && delta.rank > 0));
    }
    let newest = started.versions.lease(None).await.unwrap().digest;
    started.task.stop(std::time::Duration::ZERO).await;

    let again = start(&log).await;
    assert_eq!(again.versions.lease(None).await.unwrap().digest, newest);
    for report in &reports {
        let change = SetChange::TakeBack(report.edits[0].id);
        again.handle.change(change, "tester".into(), None, None).await.unwrap();
    }
    assert_eq!(again.versions.lease(None).await.unwrap().digest, base);
    assert_eq!(again.versions.lease(Some(3)).await.unwrap().digest, newest);
    again.task.stop(std::time::Duration::ZERO).await;
    let report = writer::verify(log, Foundation::of(&model, editor.as_ref()), |_, _| {}).await.unwrap();
    assert_eq!((report.versions, report.active), (6, 0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a timing, for people: AMEND_MODEL names the model's file"]
async fn timing_of_edits() {
    let path = std::env::var("AMEND_MODEL").unwrap();
    let model = Arc::new(Model::load(Path::new(&path), &LoadOptions::default()).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path()).await;
    let editor: Arc<dyn Editor> = Arc::new(Descent { rate: 0.01 });
    let metrics = Metrics::new();
    let config = WriterConfig::default;
    let started = writer::start(
        Arc::clone(&model),
        Arc::clone(&editor),
        Arc::clone(&log) as _,
        Place::Alone,
        config(),
        metrics.clone(),
    )
    .await
    .unwrap();
    let alone = |i: usize| {
        let mut alone = submission(&format!("The mother tongue of person number {i} is"), "English");
        alone.edits[0].paraphrases.clear();
        alone.edits[0].locality.clear();
        alone
    };
    for i in 0..5 {
        let report = fresh(started.handle.submit(alone(i)).unwrap()).await;
        println!("{:?} rank {}", report.edits[0].phases_ms, report.edits[0].delta[0].rank);
    }
    let begin = Instant::now();
    let tickets: Vec<_> = (100..164).map(|i| started.handle.submit(alone(i)).unwrap()).collect();
    for ticket in tickets {
        let _ = ticket.done().await.unwrap();
    }
    println!("64 queued at once: {:?}", begin.elapsed());
    started.task.stop(std::time::Duration::ZERO).await;
    for replay_every_version in [true, false] {
        let config = WriterConfig { replay_every_version, ..config() };
        let again = writer::start(
            Arc::clone(&model),
            Arc::clone(&editor),
            Arc::clone(&log) as _,
            Place::Alone,
            config,
            Metrics::new(),
        )
        .await
        .unwrap();
        println!("{:?}", again.replay);
        again.task.stop(std::time::Duration::ZERO).await;
    }
}
