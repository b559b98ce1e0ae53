//! Whether the similarity of prompts tells paraphrases from neighbours, on CounterFact's records with the real model and the
//! shipped editor. The figures of `docs/holding.md` are this test's with `AMEND_SIMILARITY_RECORDS=600` and `--no-capture`.
//!
//! Skipped, with a message, where the model (`AMEND_TEST_MODEL`) or the data is absent.

use std::path::{Path, PathBuf};

use super::*;
use crate::{
    editor::{self, Manifest},
    model::{Kind, LoadOptions, Model},
    training::dataset::{self, Incomplete},
    writer::{
        bench::{Bench, Keys, Texts},
        echo::Echo,
        workbench::Workbench,
    },
};

fn beside(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

fn workbench(model: &Path) -> Workbench {
    let folder = beside("editors/smollm2-135m-instruct");
    let tail_blocks = Manifest::read(&folder).unwrap().tail_blocks;
    let model = Model::load(model, &LoadOptions { tail_blocks, ..LoadOptions::default() }).unwrap();
    let (_, editor) = editor::load(&folder, &model).unwrap();
    Workbench { model: Arc::new(model), editor: Arc::from(editor) }
}

/// The keys of a prompt, and where an edit of it would speak.
fn captured(bench: &Workbench, prompt: &str, target: &str) -> (Keys, Echo) {
    let passage = bench.passage(prompt, Some(target)).unwrap();
    let texts = bench.read(&[passage]).unwrap();
    let (_, factors) = bench.capture(&texts).unwrap().remove(0);
    let keys = bench.keys(&texts[0], &factors).unwrap();
    let contribution = Contribution::from_delta(&bench.edit(&texts[0], &factors).unwrap()).unwrap();
    let echo = Echo::new(&contribution, &keys).unwrap();
    (keys, echo)
}

fn share(values: &[f32], threshold: f32) -> f64 {
    values.iter().filter(|value| **value >= threshold).count() as f64 / values.len() as f64
}

#[test]
fn similarity_tells_paraphrases_from_neighbours_and_from_others() {
    let data = beside("../shared/data/counterfact/counterfact-val.json");
    let Some(model) = std::env::var_os("AMEND_TEST_MODEL").filter(|_| data.exists()) else {
        println!("skipped: AMEND_TEST_MODEL is not set, or {} is absent", data.display());
        return;
    };
    let count = std::env::var("AMEND_SIMILARITY_RECORDS").map_or(96, |count| count.parse().unwrap());
    let bench = workbench(Path::new(&model));
    let records = dataset::load(&[data], Kind::Causal, Incomplete::Refused).unwrap().records;
    let (mut own, mut paraphrases, mut neighbours) = (Vec::new(), Vec::new(), Vec::new());
    for record in records.iter().take(count) {
        let keys = |prompt: &str| captured(&bench, prompt, &record.target).0;
        let (prompt, echo) = captured(&bench, &record.prompt, &record.target);
        paraphrases.push(echo.similarity(&keys(&record.paraphrase)));
        neighbours.push(echo.similarity(&keys(&record.locality_prompt)));
        own.push((prompt, echo));
    }
    let others: Vec<Vec<f32>> = own
        .iter()
        .enumerate()
        .map(|(i, (keys, _))| {
            let rest = own.iter().enumerate().filter(|(j, _)| *j != i);
            rest.map(|(_, (_, echo))| echo.similarity(keys)).collect()
        })
        .collect();
    let nearest: Vec<f32> = others.iter().map(|row| row.iter().copied().fold(0.0, f32::max)).collect();
    let others = others.concat();
    let at = |threshold| [&paraphrases, &neighbours, &others, &nearest].map(|values| share(values, threshold));
    println!("threshold: paraphrases, neighbours, other pairs, prompts with any other");
    for threshold in [0.7, 0.8, 0.85, 0.9, 0.92, 0.93, 0.94, 0.96, 0.98] {
        println!("{threshold}: {:.4?}", at(threshold));
    }
    let [paraphrases, neighbours, others, _] = at(WriterConfig::default().conflict_similarity);
    assert!(paraphrases >= 0.3, "{paraphrases} of the paraphrases are seen");
    assert!(neighbours <= 0.1 && others <= 0.01, "{neighbours} of the neighbours, {others} of the other pairs");
}
