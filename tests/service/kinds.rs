//! Every family of networks behind the service: an editor is trained for a tiny one, edits over HTTP succeed on their prompt
//! and its paraphrase and on nothing else, and are taken back to the last bit. And what a kind of model is not asked for.

use std::sync::Arc;

use amend::{model::Kind, training::dataset::Record};
use serde_json::{Value, json};

use super::{
    common::facts,
    server::{Client, Files, Server},
};

/// Edits that are made of each family, one after another.
const EDITS: usize = 12;

fn kind(family: &str) -> Kind {
    match family {
        "t5" | "bart" => Kind::EncoderDecoder,
        "bert" => Kind::Classifier,
        _ => Kind::Causal,
    }
}

/// In which the editor learns: a few seconds, whatever the family.
fn steps(family: &str) -> u64 {
    if family == "bert" { 900 } else { 400 }
}

/// The family's network, and an editor that was trained for so many steps.
fn files(family: &str, steps: u64) -> Files {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let (model, editor) = (folder.path().join("model"), folder.path().join("editor"));
    facts::write_model(&model, family);
    facts::train_editor(&editor, &model, steps);
    Files { model, editor, threads: Some(1), origin: Arc::clone(&folder), folder, shared_log: None }
}

/// What a version says to a prompt: its label, its answer, or the word that it goes on with.
async fn answer(client: &Client, kind: Kind, prompt: &str, version: u64) -> String {
    let (path, body, field) = match kind {
        Kind::Classifier => ("/classify", json!({"text": prompt, "version": version}), "label"),
        Kind::Causal => ("/generate", json!({"prompt": prompt, "version": version, "max_tokens": 1}), "text"),
        Kind::EncoderDecoder => ("/generate", json!({"prompt": prompt, "version": version, "max_tokens": 4}), "text"),
    };
    let reply = client.post(path, &body).await.with_status(200);
    assert_eq!(reply["version"], version);
    reply[field].as_str().unwrap().trim().to_owned()
}

/// The first record whose answer the base model does not give already.
async fn unknown<'a>(client: &Client, kind: Kind, records: &'a [Record]) -> &'a Record {
    for record in records {
        if answer(client, kind, &record.prompt, 0).await != record.target {
            return record;
        }
    }
    panic!("the base model knows all answers");
}

/// What came of the edits of a family.
#[derive(Debug, Default)]
struct Tally {
    prompts: usize,
    paraphrases: usize,
    bystanders: usize,
    /// Bystanders whose answer is as it was, and those that got the edit's.
    unchanged: usize,
    converted: usize,
}

impl Tally {
    /// One edit, and its end.
    async fn edit(&mut self, client: &Client, kind: Kind, record: &Record, others: &[&str]) {
        let base = client.version(0).await;
        let bystanders: Vec<&str> = others.iter().copied().chain([record.locality_prompt.as_str()]).collect();
        let locality: Vec<Value> = bystanders.iter().map(|prompt| json!({"prompt": prompt})).collect();
        let body = json!({"prompt": record.prompt, "target": record.target, "paraphrases": [record.paraphrase],
            "locality": locality, "guard": null});
        let edit = client.post("/edits", &body).await.with_status(201);
        let version = edit["version"].as_u64().unwrap();
        assert_ne!(edit["digest"], base["digest"]);

        let says = async |prompt: &str| answer(client, kind, prompt, version).await;
        let held = says(&record.prompt).await == record.target;
        let generalised = says(&record.paraphrase).await == record.target;
        for (said, report) in [(held, &edit["prompt"]), (generalised, &edit["paraphrases"][0])] {
            // An answer may be the target's words and not end there.
            assert!(said || report["after"]["greedy"] == false, "the report says what is not generated: {edit}");
        }
        self.prompts += usize::from(held);
        self.paraphrases += usize::from(generalised);
        for bystander in bystanders {
            let (before, after) = (answer(client, kind, bystander, 0).await, says(bystander).await);
            self.bystanders += 1;
            self.unchanged += usize::from(before == after);
            self.converted += usize::from(before != after && after == record.target);
        }

        let body = json!({"prompt": record.prompt, "continuations": [record.target], "version": version});
        let score = client.post("/score", &body).await.with_status(200);
        assert_eq!(score["scores"][0]["greedy"], edit["prompt"]["after"]["greedy"]);

        let taken = client.take_back(&edit["id"]).await;
        assert_eq!(taken["digest"], base["digest"], "taken back, to the last bit");
    }
}

async fn edits_succeed_alone_and_are_taken_back(family: &str) {
    let (kind, files) = (kind(family), files(family, steps(family)));
    let server = Server::start(&files).await;
    let client = &server.client;
    let model = client.get("/info").await.with_status(200)["model"].clone();
    assert_eq!((&model["family"], &model["kind"]), (&json!(family), &json!(kind.name())));
    assert_eq!((&model["trunk_blocks"], &model["tail_blocks"]), (&json!(1), &json!(facts::TAIL_BLOCKS)));
    let records = facts::records(kind, true);
    let names: Vec<&str> = records.iter().map(|record| record.prompt.as_str()).collect();
    let mut tally = Tally::default();
    for edit in 0..EDITS {
        let record = unknown(client, kind, &records[edit * records.len() / EDITS..]).await;
        let name = record.prompt.rsplit(' ').next().unwrap();
        let others: Vec<&str> =
            names.iter().copied().filter(|prompt| !prompt.ends_with(name)).step_by(11).take(3).collect();
        tally.edit(client, kind, record, &others).await;
    }
    println!("{family}: {tally:?}");
    // A little room: another machine trains another editor.
    assert!(tally.prompts + 1 >= EDITS && tally.paraphrases + 2 >= EDITS, "{family}: {tally:?}");
    assert!(
        4 * tally.unchanged >= 3 * tally.bystanders && 8 * tally.converted <= tally.bystanders,
        "{family}: {tally:?}"
    );
    server.stop().await;
}

macro_rules! families {
    ($($test:ident $family:literal;)*) => {
        $(#[tokio::test]
        async fn $test() {
            edits_succeed_alone_and_are_taken_back($family).await;
        })*
    };
}

families! {
    edits_of_gpt2 "gpt2";
    edits_of_gpt_neo "gpt_neo";
    edits_of_gptj "gptj";
    edits_of_t5 "t5";
    edits_of_bart "bart";
    edits_of_bert "bert";
    edits_of_gemma3 "gemma3_text";
    edits_of_llama "llama";
}

#[tokio::test]
async fn a_classifier_gives_labels_and_says_so_where_it_is_asked_for_text() {
    let files = files("bert", 1);
    let server = Server::start(&files).await;
    let client = &server.client;
    let info = client.get("/info").await.with_status(200);
    assert_eq!(info["model"]["labels"], json!(["red", "green", "blue"]));
    assert_eq!(info["model"]["capabilities"], json!(["edits", "classify", "score"]));

    let reply = client.post("/classify", &json!({"text": "where is N1"})).await.with_status(200);
    let labels = reply["labels"].as_array().unwrap();
    assert_eq!((&reply["version"], &reply["label"]), (&json!(0), &labels[0]["label"]));
    let total: f64 = labels.iter().map(|label| label["probability"].as_f64().unwrap()).sum();
    assert!(labels.len() == 3 && (total - 1.0).abs() < 1e-5, "{reply}");
    let score = json!({"prompt": "where is N1", "continuations": ["red", "1", "blue"]});
    let scores = client.post("/score", &score).await.with_status(200);
    for (place, label) in ["red", "green", "blue"].iter().enumerate() {
        let probability = labels.iter().find(|one| one["label"] == *label).unwrap()["probability"].as_f64().unwrap();
        let logprob = scores["scores"][place]["logprob"].as_f64().unwrap();
        assert!((logprob.exp() - probability).abs() < 1e-5, "{label}: {scores} {reply}");
    }

    let prompt = json!({"prompt": "where is N1"});
    let problem = client.post("/generate", &prompt).await.problem(409, "model_is_classifier");
    assert_eq!(problem["kind"], "classifier");
    let model = info["model"]["name"].as_str().unwrap();
    for (path, body) in [
        ("/v1/completions", json!({"model": model, "prompt": "where is N1"})),
        ("/v1/chat/completions", json!({"model": model, "messages": [{"role": "user", "content": "where is N1"}]})),
    ] {
        let error = client.post(path, &body).await.with_status(409);
        assert_eq!(error["error"]["code"], "model_is_classifier");
    }

    let unknown = json!({"prompt": "where is N1", "target": "mauve"});
    let problem = client.post("/edits", &unknown).await.problem(422, "unknown_label");
    assert_eq!((&problem["field"], &problem["labels"]), (&json!("target"), &json!(["red", "green", "blue"])));
    let probe =
        json!({"edits": [{"prompt": "where is N1", "target": "red", "locality": [{"prompt": "so", "target": "x"}]}]});
    let problem = client.post("/edits", &probe).await.problem(422, "unknown_label");
    assert_eq!(problem["field"], "edits[0].locality[0].target");
    let by_number = json!({"prompt": "where is N1", "target": "2", "guard": null});
    assert_eq!(client.post("/edits", &by_number).await.with_status(201)["version"], 1);
    let long = json!({"text": "so ".repeat(200)});
    client.post("/classify", &long).await.problem(422, "context_exceeded");
    client.post("/classify", &json!({"text": ""})).await.problem(422, "invalid_request");
    server.stop().await;
}

#[tokio::test]
async fn models_that_write_have_no_labels_to_give() {
    let server = Server::start(&Files::tiny()).await;
    let problem = server.client.post("/classify", &json!({"text": "Ada"})).await.problem(409, "model_is_causal");
    assert_eq!(problem["kind"], "causal");
    server.stop().await;
    let server = Server::start(&files("t5", 1)).await;
    let problem = server.client.post("/classify", &json!({"text": "where"})).await;
    problem.problem(409, "model_is_encoder_decoder");
    server.stop().await;
}
