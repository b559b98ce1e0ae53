//! `amend train` and `amend eval` on data in the schema of each kind of model.

use std::path::{Path, PathBuf};

use amend::{model::Kind, training::dataset::Record};
use serde_json::{Value, json};

use super::{
    common::facts,
    process::{Finished, amend, finish},
};

/// A model, and data for it.
struct Bench {
    model: PathBuf,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(family: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        facts::write_model(&model, family);
        Self { model, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, records: &[Value]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, json!(records).to_string()).unwrap();
        path
    }

    fn run(&self, command: &str, options: &[(&str, &Path)], further: &[&str]) -> Finished {
        let mut amend = amend();
        amend.arg(command).arg("--model").arg(&self.model).args(["--threads", "1"]);
        for (option, path) in options {
            amend.arg(option).arg(path);
        }
        finish(amend.args(further).env("AMEND_CACHE", self.path("cache")))
    }

    /// An editor that was trained for a few steps.
    fn train(&self, out: &str, data: &Path, further: &[&str]) -> Finished {
        let editor = self.path(out);
        let short = ["--tail-blocks", "2", "--rank", "4", "--steps", "3", "--validate-every", "3", "--warmup", "1"];
        let options = [("--data", data), ("--validation", data), ("--out", &editor)];
        self.run("train", &options, &[&short, further].concat())
    }

    /// The figures of that editor and of fine-tuning, without and with a divergence.
    fn eval(&self, data: &Path, further: &[&str]) -> Value {
        let editors = format!("{},finetune,finetune-kl", self.path("editor").display());
        let some = ["--editor", &editors, "--records", "6", "--json", "-"];
        let text = self.run("eval", &[("--data", data)], &[&some, further].concat()).good();
        serde_json::from_str(&text).unwrap()
    }
}

/// Figures of the editor that was trained, and of fine-tuning.
fn figures(report: &Value) -> [&Value; 2] {
    [0, 1].map(|editor| &report["editors"][editor]["sets"][0]["figures"])
}

fn zsre(record: &Record) -> Value {
    let old = if record.target == "A0" { "A1" } else { "A0" };
    json!({"src": record.prompt, "rephrase": record.paraphrase, "alt": record.target, "answers": [old],
        "loc": format!("nq question: {}", record.locality_prompt), "loc_ans": record.locality_target})
}

fn label_flip(record: &Record) -> Value {
    json!({"text": record.prompt, "label": "0", "new_label": record.target, "paraphrase": record.paraphrase,
        "locality_text": record.locality_prompt, "locality_label": record.locality_target})
}

/// Running text from the words of some questions.
fn continuation(record: &Record) -> Value {
    let words = |text: &str| format!("{text} ").repeat(4);
    json!({"passage": words(&record.prompt), "continuation": format!("{0} {0}", record.target),
        "locality": words(&record.locality_prompt)})
}

#[test]
fn an_encoder_decoder_is_trained_and_measured_on_questions_and_answers() {
    for family in ["t5", "bart"] {
        let bench = Bench::new(family);
        let records: Vec<Value> = facts::records(Kind::EncoderDecoder, true).iter().map(zsre).collect();
        let data = bench.write("zsre.json", &records);
        bench.train("editor", &data, &[]).good();
        let report = bench.eval(&data, &["--simultaneous", "1,2"]);
        let [trained, finetuned] = figures(&report);
        // Its 25 small steps do not get past the tiny BART's bias for the end, but show what it should answer.
        for matches in [&finetuned["teacher_forced"], &finetuned["free_running"]] {
            assert!(family == "bart" || matches["prompt"]["share"] == 1.0, "{family}: {report}");
        }
        assert_eq!(finetuned["counterfact"]["efficacy"]["share"], 1.0, "{family}: {report}");
        assert_eq!(trained["counterfact"]["efficacy"]["count"], 6, "the old answers are compared with");
        assert!(trained["neighbour"]["kl"]["mean"].as_f64().unwrap() > 0.0, "{report}");
        let text = bench.write("text.txt", &[]);
        let refused = bench.run("eval", &[("--data", &data), ("--running-text", &text)], &["--editor", "finetune"]);
        let refused = refused.refused();
        assert!(refused.contains("running text is for models that continue texts, and this is an encoder-decoder"));
    }
}

#[test]
fn a_classifier_is_trained_and_measured_on_label_flips() {
    let bench = Bench::new("bert");
    let records: Vec<Value> = facts::records(Kind::Classifier, true).iter().map(label_flip).collect();
    let data = bench.write("flips.json", &records);
    bench.train("editor", &data, &[]).good();
    let report = bench.eval(&data, &[]);
    let [trained, finetuned] = figures(&report);
    assert_eq!(finetuned["teacher_forced"]["prompt"]["share"], 1.0, "{report}");
    for figures in [trained, finetuned, &report["unedited"]] {
        assert_eq!(figures["free_running"], figures["teacher_forced"], "a label is an answer whoever asks");
    }
    let mut unknown = records[0].clone();
    unknown["new_label"] = json!("mauve");
    let refused = bench.train("other", &bench.write("unknown.json", &[unknown]), &[]).refused();
    assert!(refused.contains("\"mauve\" is none of the labels red, green, blue"), "{refused}");
    assert!(refused.contains("where is N0") || refused.contains("home of N0"), "the record is named: {refused}");
    let facts: Vec<Value> = facts::records(Kind::Causal, true).iter().map(zsre).collect();
    let refused = bench.train("other", &bench.write("facts.json", &facts), &[]).refused();
    assert!(refused.contains("record 0: it is an edit of answers, and the model is a classifier"), "{refused}");
}

#[test]
fn a_causal_model_is_trained_and_measured_on_continuations_of_running_text() {
    let bench = Bench::new("llama");
    let records: Vec<Value> = facts::records(Kind::Causal, true).iter().map(continuation).collect();
    let data = bench.write("text.json", &records);
    let text = bench.path("text.txt");
    std::fs::write(&text, "so say the home of N3 is now the home of N4 ".repeat(30)).unwrap();
    let text = ["--running-text", text.to_str().unwrap()];
    bench.train("editor", &data, &text).good();
    let report = bench.eval(&data, &text);
    let [trained, finetuned] = figures(&report);
    assert_eq!(finetuned["free_running"]["prompt"]["share"], 1.0, "{report}");
    let perplexity = |when: &str| trained["running_text"][when].as_f64().unwrap();
    assert!(perplexity("perplexity_before") > 1.0 && perplexity("perplexity_after") > 1.0, "{report}");
    assert_ne!(perplexity("perplexity_before"), perplexity("perplexity_after"));
    assert_eq!(trained["neighbour"]["unchanged"]["count"], 6);
}
