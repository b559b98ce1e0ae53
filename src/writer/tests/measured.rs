//! Measurements for people, on a real model: the figures of `docs/holding.md`. `AMEND_TEST_MODEL` names the model's file,
//! `AMEND_EDITOR` the editor's folder (default: the one that comes with Amend).

use std::{path::PathBuf, time::Instant};

use super::*;
use crate::{
    editor::{self, Editor, Manifest},
    model::{Kind, LoadOptions, Model},
    training::dataset::{self, Record},
    writer::{
        bench::{Bench, Keys, Texts},
        echo::Echo,
        workbench::{self, Workbench},
    },
};

fn loaded() -> (Arc<Model>, Arc<dyn Editor>) {
    let editor = std::env::var_os("AMEND_EDITOR").map_or_else(|| here("editors/smollm2-135m-instruct"), PathBuf::from);
    let tail_blocks = Manifest::read(&editor).unwrap().tail_blocks;
    let path = std::env::var("AMEND_TEST_MODEL").unwrap();
    let model = Model::load(path.as_ref(), &LoadOptions { tail_blocks, ..LoadOptions::default() }).unwrap();
    let (_, editor) = editor::load(&editor, &model).unwrap();
    (Arc::new(model), Arc::from(editor))
}

fn here(relative: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(relative)
}

fn records(count: usize) -> Vec<Record> {
    let path = here("../shared/data/counterfact/counterfact-val.json");
    let records = dataset::load(&[path], Kind::Causal).unwrap().records;
    records.into_iter().take(count).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn share(values: &[f32], threshold: f32) -> f64 {
    values.iter().filter(|value| **value >= threshold).count() as f64 / values.len() as f64
}

#[test]
#[ignore = "a measurement, for people: 600 records of CounterFact, some minutes"]
fn similarity_of_paraphrases_neighbours_and_others() {
    let (model, editor) = loaded();
    let bench = Workbench { model, editor };
    let records = records(600);
    let captured = |prompt: &str, target: &str| {
        let passage = bench.passage(prompt, Some(target)).unwrap();
        let texts = bench.read(&[passage]).unwrap();
        let (_, factors) = bench.capture(&texts).unwrap().remove(0);
        let keys = bench.keys(&texts[0], &factors).unwrap();
        (keys, Contribution::from_delta(&bench.edit(&texts[0], &factors).unwrap()).unwrap())
    };
    let (mut own, mut paraphrases, mut neighbours) = (Vec::new(), Vec::new(), Vec::new());
    for record in &records {
        let (keys, contribution) = captured(&record.prompt, &record.target);
        own.push((Echo::new(&contribution, &keys).unwrap(), keys));
        paraphrases.push(captured(&record.paraphrase, &record.target).0);
        neighbours.push(captured(&record.locality_prompt, &record.target).0);
    }
    type Measure = fn(&(Echo, Keys), &Keys) -> f32;
    let measures: [(&str, Measure); 2] = [
        ("similarity", |edit, keys| edit.0.similarity(keys)),
        ("cosine of the first matrix's keys", |edit, keys| cosine(&edit.1[0], &keys[0])),
    ];
    for (name, measure) in measures {
        let paired =
            |others: &[Keys]| -> Vec<f32> { own.iter().zip(others).map(|(e, keys)| measure(e, keys)).collect() };
        let (paraphrases, neighbours) = (paired(&paraphrases), paired(&neighbours));
        let mut others = Vec::new();
        let mut nearest = Vec::new();
        for (i, (_, keys)) in own.iter().enumerate() {
            let row = own.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, edit)| measure(edit, keys));
            let row: Vec<f32> = row.collect();
            nearest.push(row.iter().copied().fold(f32::MIN, f32::max));
            others.extend(row);
        }
        println!(
            "{name}: threshold, paraphrases, neighbours, other pairs, prompts with any of {} others",
            own.len() - 1
        );
        for threshold in [0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.93, 0.94, 0.95, 0.96, 0.98] {
            let shares = [&paraphrases, &neighbours, &others, &nearest].map(|values| share(values, threshold));
            println!("  {threshold:.2}  {:.3}  {:.3}  {:.5}  {:.3}", shares[0], shares[1], shares[2], shares[3]);
        }
    }
}

#[test]
#[ignore = "a timing, for people: capture and the spread of the gradient"]
fn time_that_the_spread_of_the_gradient_takes() {
    let (model, editor) = loaded();
    let bench = Workbench { model, editor };
    println!("words of the prompt, tokens, capture ms, spread ms");
    for words in [6, 40, 200, 450] {
        let passage = bench.passage(&"the old town had ".repeat(words / 4), Some("river")).unwrap();
        let texts = bench.read(&[passage]).unwrap();
        let begun = Instant::now();
        let (_, factors) = bench.capture(&texts).unwrap().remove(0);
        let capture = begun.elapsed();
        let begun = Instant::now();
        let spectra = bench.spectra(&factors).unwrap();
        println!(
            "  {words}  {}  {:.1}  {:.2}  (effective rank {:.1} in the first matrix)",
            texts[0].passage.ids.len(),
            capture.as_secs_f64() * 1e3,
            begun.elapsed().as_secs_f64() * 1e3,
            spectra[0].effective_rank
        );
    }
}

/// Seconds of CPU that this process has used: unlike the wall's, they do not depend on who else uses the machine.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    // User and system time, in ticks of 10 ms.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a timing, for people: edits with and without a sample, and a recheck"]
async fn time_that_the_sample_takes() {
    let (model, editor) = loaded();
    let records = records(120);
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("log.db").display());
    let log: Arc<dyn EditLog> = Arc::new(SqliteLog::open(&url).await.unwrap());
    let metrics = Metrics::new();
    let start = async |guard_sample: usize, recheck_idle: Duration| {
        let config = WriterConfig { guard_sample, recheck_idle, ..WriterConfig::default() };
        workbench::start(Arc::clone(&model), Arc::clone(&editor), Arc::clone(&log), config, metrics.clone())
            .await
            .unwrap()
    };
    let run = async |started: &Started, record: &Record, dry_run: bool| {
        let submission = Submission { dry_run, ..single(edit(&record.prompt, &record.target)) };
        match started.handle.submit(submission).unwrap().done().await.unwrap() {
            Answer::Fresh(mut report) => report.edits.remove(0),
            Answer::Recorded(row) => panic!("recorded: {row:?}"),
        }
    };
    let started = start(0, Duration::ZERO).await;
    for record in &records[..100] {
        run(&started, record, false).await;
    }
    started.task.stop(Duration::ZERO).await;
    println!(
        "100 active edits, 20 dry runs, warm: sample; medians of capture, editor, guard, total, ms; CPU ms an edit"
    );
    for sample in [0, 4, 8, 16, 32, 0, 8] {
        let started = start(sample, Duration::ZERO).await;
        let mut phases: [Vec<f64>; 4] = Default::default();
        let mut before = cpu();
        for round in 0..2 {
            before = if round == 1 { cpu() } else { before };
            for record in &records[100..120] {
                let report = run(&started, record, true).await.phases_ms;
                if round == 1 {
                    let values = [report.capture, report.editor, report.guard, report.total];
                    phases.iter_mut().zip(values).for_each(|(all, value)| all.push(value));
                }
            }
        }
        let [capture, editor, guard, total] = phases.map(median);
        let cpu = (cpu() - before) * 1e3 / 20.0;
        println!("  {sample}  {capture:.1}  {editor:.1}  {guard:.1}  {total:.1}  {cpu:.1}");
        started.task.stop(Duration::ZERO).await;
    }
    let begun = Instant::now();
    let started = start(8, Duration::from_millis(1)).await;
    let report = checked_by(&started, 100).await;
    let batches = &metrics.edit_check_batch;
    let mean = batches.get_sample_sum() / batches.get_sample_count() as f64;
    println!(
        "recheck: {} edits, {} hold, {:.0} ms in {} batches of {:.0} ms; {:.0} ms with the start",
        report.edits,
        report.holding,
        report.milliseconds,
        batches.get_sample_count(),
        mean * 1e3,
        begun.elapsed().as_secs_f64() * 1e3
    );
    started.task.stop(Duration::ZERO).await;
}

async fn checked_by(started: &Started, version: u64) -> crate::writer::CheckReport {
    loop {
        let checked = started.handle.health().checked;
        if let Some(report) = checked.filter(|report| report.version == version) {
            return report;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
