//! Training over a tiny random Llama: a run that was stopped goes on bit for bit, whatever the threads; a run refuses what
//! is not its own; the network learns; records can be made into more.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests may unwrap; a skipped test says so")]

mod common;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use amend::{
    digest::Digest,
    editor::CompositionKind,
    model::{Kind, LoadOptions, Model, capture},
    training::{
        LocalityMix, Recipe, RunOptions, TrainingError,
        cache::{HiddenStates, Text},
        dataset::{self, Dataset, Incomplete, Record},
        parallel::Workers,
        trainer::{self, Ending, Inputs, Summary},
    },
};
use candle_core::{DType, Device, Tensor};
use common::{assert_close, families, load_folder, read_safetensors, write_folder};
use indicatif::ProgressBar;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

const HIDDEN: usize = 32;
const MLP: usize = 48;
const VOCABULARY: usize = 256;
const BLOCKS: usize = 3;

fn tiny_model(folder: &Path) -> Model {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut random = |rows: usize, columns: usize| {
        let scale = (1.0 / columns as f32).sqrt();
        let values: Vec<f32> = (0..rows * columns).map(|_| rng.random_range(-scale..scale) * 1.7).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    };
    let ones = || Tensor::ones(HIDDEN, DType::F32, &Device::Cpu).unwrap();
    let mut tensors = HashMap::from([
        ("model.embed_tokens.weight".to_owned(), random(VOCABULARY, HIDDEN)),
        ("model.norm.weight".to_owned(), ones()),
    ]);
    for block in 0..BLOCKS {
        let mut add = |part: &str, tensor| drop(tensors.insert(format!("model.layers.{block}.{part}.weight"), tensor));
        add("self_attn.q_proj", random(HIDDEN, HIDDEN));
        add("self_attn.k_proj", random(HIDDEN / 2, HIDDEN));
        add("self_attn.v_proj", random(HIDDEN / 2, HIDDEN));
        add("self_attn.o_proj", random(HIDDEN, HIDDEN));
        add("mlp.gate_proj", random(MLP, HIDDEN));
        add("mlp.up_proj", random(MLP, HIDDEN));
        add("mlp.down_proj", random(HIDDEN, MLP));
        add("input_layernorm", ones());
        add("post_attention_layernorm", ones());
    }
    let config = json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": MLP,
        "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true, "max_position_embeddings": 128,
    });
    write_folder(folder, &config, &tensors);
    Model::load(folder, &LoadOptions { tail_blocks: 2, ..LoadOptions::default() }).unwrap()
}

fn records(range: std::ops::Range<usize>) -> Dataset {
    let record = |i: usize| Record {
        prompt: format!("fact {i} is"),
        target: format!("{}", (b'a' + (i % 20) as u8) as char),
        old_target: Some("x".to_owned()),
        paraphrase: format!("tell me fact {i}:"),
        locality_prompt: format!("other {i} is"),
        locality_target: "z".to_owned(),
    };
    Dataset { left_out: 0, digest: Digest::of(format!("{range:?}").as_bytes()), records: range.map(record).collect() }
}

fn recipe() -> Recipe {
    Recipe {
        rank: 8,
        composition: CompositionKind::Sum,
        whitening: None,
        whitening_paraphrases: 0.0,
        initial_step_size: 1e-4,
        simultaneous: vec![1],
        edits_per_step: 12,
        learning_rate: 3e-3,
        lr_scale_rate: 1e-2,
        clip: 1.0,
        edit_weight: 0.3,
        locality_weight: 1.0,
        locality_mix: LocalityMix { neighbour: 0.5, other: 0.3, text: 0.2 },
        steps: 8,
        warmup: 2,
        seed: 5,
    }
}

struct Bench {
    model: Model,
    train: Dataset,
    validation: Dataset,
    text: String,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            model: tiny_model(folder.path()),
            train: records(0..30),
            validation: records(30..38),
            text: "some running text that goes on and on, ".repeat(8),
            folder,
        }
    }

    /// `patience` 0 stops at the first validation, which comes at step 4.
    fn run(&self, out: &str, change: impl FnOnce(&mut Recipe, &mut RunOptions)) -> Result<Summary, TrainingError> {
        let stop = AtomicBool::new(false);
        self.run_until(out, &stop, change)
    }

    fn run_until(
        &self,
        out: &str,
        stop: &AtomicBool,
        change: impl FnOnce(&mut Recipe, &mut RunOptions),
    ) -> Result<Summary, TrainingError> {
        let mut recipe = recipe();
        let mut options = RunOptions {
            out: self.folder.path().join(out),
            cache: self.folder.path().join("cache"),
            validate_every: 4,
            validation_records: 8,
            patience: 100,
            resume: false,
            from: Vec::new(),
            max_minutes: None,
            threads: 1,
        };
        change(&mut recipe, &mut options);
        let inputs = Inputs {
            model: &self.model,
            train: &self.train,
            validation: &self.validation,
            running_text: Some(&self.text),
            stop,
        };
        trainer::train(&inputs, &recipe, &options)
    }

    fn tensors(&self, file: &str) -> HashMap<String, Vec<u8>> {
        let bytes = std::fs::read(self.folder.path().join(file)).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        tensors.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect()
    }

    /// The large matrices of a run's editor.
    fn matrices(&self, run: &str) -> BTreeMap<String, Vec<f32>> {
        let (tensors, _) = read_safetensors(&self.folder.path().join(run).join("editor.safetensors"));
        let large = |name: &str| name.ends_with(".u") || name.ends_with(".v") || name.starts_with("whitening.");
        let values = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        tensors.iter().filter(|(name, _)| large(name)).map(|(name, tensor)| (name.clone(), values(tensor))).collect()
    }
}

#[test]
fn a_resumed_run_ends_bit_for_bit_where_an_unbroken_one_does() {
    for composition in [CompositionKind::Sum, CompositionKind::Gated] {
        let bench = Bench::new();
        let whole = bench.run("whole", |recipe, _| recipe.composition = composition).unwrap();
        assert_eq!(whole.ending, Ending::Finished);
        let broken =
            bench.run("broken", |recipe, options| (recipe.composition, options.patience) = (composition, 0)).unwrap();
        assert_eq!((broken.ending, broken.history.validations.len()), (Ending::NoBetter, 1));
        assert_ne!(bench.tensors("whole/state.safetensors"), bench.tensors("broken/state.safetensors"));
        let resumed = bench.run("broken", |recipe, options| {
            (recipe.composition, options.resume, options.threads) = (composition, true, 2);
        });
        assert_eq!(resumed.unwrap().history, whole.history);
        for file in ["state.safetensors", "editor.safetensors"] {
            assert_eq!(bench.tensors(&format!("whole/{file}")), bench.tensors(&format!("broken/{file}")), "{file}");
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    for composition in [CompositionKind::Sum, CompositionKind::Gated] {
        let bench = Bench::new();
        for threads in [1, 3] {
            let run = |recipe: &mut Recipe, options: &mut RunOptions| {
                (recipe.composition, options.threads) = (composition, threads);
            };
            bench.run(&format!("t{threads}"), run).unwrap();
        }
        assert_eq!(bench.tensors("t1/state.safetensors"), bench.tensors("t3/state.safetensors"));
    }
}

#[test]
fn the_whitening_takes_in_how_wordings_differ_and_that_alone() {
    let mut bench = Bench::new();
    let whitenings = |bench: &Bench, name: &str| {
        [0.0, 5.0].map(|weight| {
            let out = format!("{name}-{weight}");
            let change = |recipe: &mut Recipe, _: &mut RunOptions| {
                (recipe.whitening, recipe.whitening_paraphrases, recipe.steps) = (Some(0.1), weight, 1);
            };
            bench.run(&out, change).unwrap();
            let mut tensors = bench.tensors(&format!("{out}/editor.safetensors"));
            tensors.retain(|name, _| name.starts_with("whitening."));
            tensors
        })
    };
    let [without, with] = whitenings(&bench, "other");
    assert!(
        !without.is_empty() && without.keys().all(|name| without[name] != with[name]),
        "every matrix sees a difference"
    );
    bench.train.records.iter_mut().for_each(|record| record.paraphrase.clone_from(&record.prompt));
    let [without, with] = whitenings(&bench, "same");
    assert_eq!(without, with);
}

#[test]
fn an_interrupt_saves_a_run_that_can_go_on() {
    let bench = Bench::new();
    let stop = AtomicBool::new(true);
    assert_eq!(bench.run_until("stopped", &stop, |_, _| {}).unwrap().ending, Ending::Stopped);
    stop.store(false, Ordering::Relaxed);
    let ending = bench.run_until("stopped", &stop, |_, options| options.resume = true).unwrap().ending;
    assert_eq!(ending, Ending::Finished);
}

#[test]
fn a_run_can_begin_with_an_editor() {
    let bench = Bench::new();
    bench.run("first", |recipe, _| recipe.whitening = Some(0.1)).unwrap();
    let on_from_there = |out: &str, rank: Option<usize>| {
        bench.run(out, |recipe, options| {
            (recipe.steps, recipe.learning_rate, recipe.lr_scale_rate) = (1, 1e-12, 1e-12);
            recipe.rank = rank.unwrap_or(recipe.rank);
            options.from = vec![bench.folder.path().join("first")];
        })
    };
    on_from_there("second", None).unwrap();
    // In f16 a step as small as this one is none.
    let [first, second] = ["first", "second"].map(|run| bench.matrices(run));
    assert!(first.len() > 2 && first == second, "{:?}", first.keys());
    let error = on_from_there("third", Some(9)).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("another rank"), "{error}");
}

#[test]
fn a_run_that_gets_worse_keeps_what_it_began_with() {
    let bench = Bench::new();
    bench.run("first", |recipe, _| recipe.whitening = Some(0.1)).unwrap();
    let worse = bench.run("worse", |recipe, options| {
        (recipe.steps, recipe.warmup, recipe.learning_rate, recipe.lr_scale_rate) = (1, 0, 1.0, 1.0);
        options.from = vec![bench.folder.path().join("first")];
    });
    let history = worse.unwrap().history;
    assert_eq!(history.validations.iter().map(|validation| validation.step).collect::<Vec<_>>(), [0, 1]);
    assert!(history.validations[0].loss < history.validations[1].loss, "the step was to do harm");
    assert_eq!(bench.matrices("first"), bench.matrices("worse"));
}

/// And writes it as it is, if it takes no step, with its figures.
#[test]
fn a_run_can_begin_with_the_mean_of_editors() {
    let bench = Bench::new();
    bench.run("short", |recipe, _| (recipe.whitening, recipe.steps) = (Some(0.1), 4)).unwrap();
    bench.run("long", |recipe, _| recipe.whitening = Some(0.1)).unwrap();
    bench.run("narrow", |recipe, _| (recipe.whitening, recipe.rank) = (Some(0.1), 7)).unwrap();
    let begin = |out: &str, from: &[&str]| {
        bench.run(out, |recipe, options| {
            recipe.steps = 0;
            options.from = from.iter().map(|run| bench.folder.path().join(run)).collect();
        })
    };
    let summary = begin("mean", &["short", "long"]).unwrap();
    assert_eq!((summary.ending, summary.history.best().unwrap().step), (Ending::Finished, 0));
    let [short, long, mean] = ["short", "long", "mean"].map(|run| bench.matrices(run));
    for (name, mean) in &mean {
        let halves = short[name].iter().zip(&long[name]).map(|(a, b)| (a + b) / 2.0);
        assert!(halves.zip(mean).all(|(want, got)| (want - got).abs() <= 1e-3 * want.abs().max(1e-3)), "{name}");
    }
    assert!(short != long && mean.len() > 2, "{:?}", mean.keys());
    let manifest = std::fs::read_to_string(bench.folder.path().join("mean/editor.json")).unwrap();
    let from = serde_json::from_str::<serde_json::Value>(&manifest).unwrap()["training"]["from"].to_string();
    assert_eq!(from.split(' ').count(), 2, "{from}");
    for (out, from, why) in
        [("narrower", ["short", "narrow"].as_slice(), "have no mean"), ("none", &[], "begins with none")]
    {
        let error = begin(out, from).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

/// The gate is trained once, before the first step, and is the editor's from then on.
#[test]
fn a_gate_is_trained_before_the_editor_behind_it() {
    let bench = Bench::new();
    bench.run("joint", |recipe, _| recipe.composition = CompositionKind::Joint).unwrap();
    let gated = |out: &str, from: &str, seed: u64| {
        bench.run(out, |recipe, options| {
            (recipe.composition, recipe.simultaneous, recipe.seed) = (CompositionKind::Gated, vec![1, 4], seed);
            if !from.is_empty() {
                options.from = vec![bench.folder.path().join(from)];
            }
        })
    };
    gated("fresh", "", 5).unwrap();
    gated("again", "", 5).unwrap();
    let [fresh, again] = ["fresh", "again"].map(|run| bench.tensors(&format!("{run}/editor.safetensors")));
    assert_eq!(fresh["gate.map"], again["gate.map"], "a function of the texts and the seed");
    let before = gated("behind", "joint", 5).unwrap().history.validations.remove(0);
    assert_eq!(before.step, 0);
    let behind = bench.tensors("behind/editor.safetensors");
    assert!(behind["gate.map"] == fresh["gate.map"] && !behind.contains_key("joint.log_ridges"), "its solve is left");
    gated("on", "fresh", 6).unwrap();
    assert_eq!(bench.tensors("on/editor.safetensors")["gate.map"], fresh["gate.map"], "and is not trained again");

    gated("other", "", 6).unwrap();
    let mean = bench.run("mean", |recipe, options| {
        (recipe.composition, recipe.steps) = (CompositionKind::Gated, 0);
        options.from = ["fresh", "other"].map(|run| bench.folder.path().join(run)).to_vec();
    });
    let error = mean.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("have no mean"), "{error}");
}

#[test]
fn a_run_refuses_what_is_not_its_own() {
    let mut bench = Bench::new();
    bench.run("run", |_, _| {}).unwrap();
    let refused = |result: Result<Summary, TrainingError>, why: &str| {
        let error = result.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(why), "{error:?} does not say {why:?}");
    };
    refused(bench.run("run", |_, _| {}), "--resume");
    refused(bench.run("run", |recipe, options| (recipe.rank, options.resume) = (9, true)), "started with");
    bench.train = records(1..31);
    refused(bench.run("run", |_, options| options.resume = true), "started on");
    let state = bench.folder.path().join("run/state.safetensors");
    let mut bytes = std::fs::read(&state).unwrap();
    bench.train = records(0..30);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&state, &bytes).unwrap();
    refused(bench.run("run", |_, options| options.resume = true), "state.safetensors: it is damaged: the digest");
    for cut in [middle, 100, 8, 0] {
        bytes.truncate(cut);
        std::fs::write(&state, &bytes).unwrap();
        refused(bench.run("run", |_, options| options.resume = true), "state.safetensors: it is damaged");
    }
    std::fs::remove_file(&state).unwrap();
    refused(bench.run("run", |_, options| options.resume = true), "state.safetensors");
}

/// Numbers that need all of their 17 digits.
#[test]
fn a_recipe_is_the_same_after_it_was_saved() {
    let bench = Bench::new();
    let awkward = |recipe: &mut Recipe| {
        recipe.learning_rate = (0.1 + 0.2) / 100.0;
        recipe.edit_weight = f64::from_bits(0.3f64.to_bits() + 7);
        recipe.seed = u64::MAX;
    };
    let stopped = bench.run("run", |recipe, options| {
        awkward(recipe);
        options.patience = 0;
    });
    assert_eq!(stopped.unwrap().ending, Ending::NoBetter);
    let resumed = bench.run("run", |recipe, options| {
        awkward(recipe);
        options.resume = true;
    });
    assert_eq!(resumed.unwrap().ending, Ending::Finished);
}

/// A rectifier with gradient 0 at 0 would leave `U` at its initial zeros for ever.
#[test]
fn the_network_leaves_its_start() {
    let bench = Bench::new();
    bench.run("run", |_, _| {}).unwrap();
    let (tensors, _) = read_safetensors(&bench.folder.path().join("run/state.safetensors"));
    let moved = tensors.iter().filter(|(name, _)| name.starts_with("net.") && name.ends_with(".u"));
    for (name, u) in moved {
        let largest = u.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(largest > 1e-4, "{name} did not move: {largest}");
    }
}

/// The residual stream of a T5 is often larger than f16 reaches.
#[test]
fn hidden_states_beyond_f16_are_kept_whole() {
    for (size, tolerance) in [(1.0, 1e-3), (1e6, 0.0)] {
        let (config, mut tensors) = families::tiny("t5", 5);
        let embedding = (&tensors["shared.weight"] * size).unwrap();
        tensors.insert("shared.weight".to_owned(), embedding);
        let model = load_folder(&config, &tensors, 2);
        let passages =
            ["Who is there?", "Paris"].map(|prompt| model.tokenizer().encode_passage(prompt, "far").unwrap());
        let texts = passages.clone().map(|passage| Text { watched: passage.predicting(), passage });
        let read = capture::read(&model, &passages).unwrap();
        let largest = read[0].hidden.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(largest > 65504.0, tolerance == 0.0, "{largest}");
        let folder = tempfile::tempdir().unwrap();
        let workers = Workers::new(1).unwrap();
        // Computed, then found.
        for _ in 0..2 {
            let bar = ProgressBar::hidden();
            let states = HiddenStates::open(&model, texts.to_vec(), folder.path(), &workers, &bar).unwrap();
            for (index, want) in read.iter().enumerate() {
                assert_close("state", &states.state(index).unwrap().hidden, &want.hidden, tolerance);
                let tops = states.tops(index).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert!(tops.iter().all(|value| value.is_finite()));
            }
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "states and tops");
        }
    }
}

/// What `scripts/augment-records` makes of two records with the same old answer, one with another, and one that lacks a text.
#[test]
fn further_records_are_made_of_the_same_texts() {
    let fact = |subject: &str, answer: &str, truth: &str| {
        json!({
            "subject": subject, "prompt": format!("{subject} is in"), "rephrase_prompt": format!("Yes. Go to {subject}, in"),
            "target_new": answer, "ground_truth": truth, "locality_prompt": format!("The gate of {subject} lies in"),
            "locality_ground_truth": truth,
        })
    };
    let facts = [fact("Oslo", "Peru", "Norway"), fact("Bergen", "Chad", "Norway"), fact("Lima", "Mali", "Peru")];
    let folder = tempfile::tempdir().unwrap();
    let [from, to] = ["records.json", "more.json"].map(|name| folder.path().join(name));
    let lacking = json!({ "subject": "Rome", "prompt": "Rome is in", "ground_truth": "Italy" });
    std::fs::write(&from, json!([facts[0], facts[1], facts[2], lacking]).to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/augment-records");
    match Command::new("python3").arg(script).args([&from, &to]).output() {
        Err(error) => return eprintln!("skipped: python3: {error}"),
        Ok(output) => assert!(output.status.success(), "{output:?}"),
    }
    let made = dataset::load(&[&to], Kind::Causal, Incomplete::Refused).unwrap().records;
    let brief = |record: &Record| {
        [&record.prompt, &record.paraphrase, &record.target, &record.locality_prompt].map(String::as_str).join(" | ")
    };
    let want = [
        "Oslo is in | Yes. Go to Oslo, in | Peru | The gate of Oslo lies in",
        "Yes. Go to Oslo, in | Oslo is in | Chad | The gate of Bergen lies in",
        "Oslo is in | Yes. Go to Oslo, in | Chad | The gate of Bergen lies in",
        "Bergen is in | Yes. Go to Bergen, in | Chad | The gate of Bergen lies in",
        "Yes. Go to Bergen, in | Bergen is in | Peru | The gate of Oslo lies in",
        "Bergen is in | Yes. Go to Bergen, in | Peru | The gate of Oslo lies in",
        "Lima is in | Yes. Go to Lima, in | Mali | The gate of Lima lies in",
        "Yes. Go to Lima, in | Lima is in | Mali | The gate of Lima lies in",
    ];
    assert_eq!(made.iter().map(brief).collect::<Vec<_>>(), want);
}
