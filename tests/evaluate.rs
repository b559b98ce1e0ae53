//! Evaluation on a tiny random Llama: figures against a slow recomputation, and what must hold for any editor.

#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

mod common;

use amend::{
    digest::Digest,
    editor::{
        Delta, Editor, EditorError, MatrixDelta,
        finetune::{Finetune, FinetuneOptions},
    },
    model::{DenseMatrices, Extent, Model, Passage, Rows, TrunkState, capture::Captured},
    training::{
        dataset::{Dataset, Record},
        evaluate::{Candidate, EvaluateOptions, Figures, Inputs, Report, evaluate, reserve, window},
    },
};
use common::tiny_llama;
use indicatif::ProgressBar;
use serde_json::Value;

/// As many tokens as a window has, so that there is one window to draw.
const TEXT: &str = "Robert Boulter is an English film, television and theatre actor. He had a guest role on \
                    the series The Bill in the year two thou";

fn options() -> EvaluateOptions {
    EvaluateOptions {
        offset: 0,
        records: 4,
        simultaneous: vec![1],
        measured: None,
        unrelated: 3,
        max_new_tokens: 8,
        seed: 5,
    }
}

/// What an editor under test does.
#[derive(Clone, Copy)]
enum Act {
    /// `W -= rate * gradient`, in factors: steps of its own for each record.
    Descend(f64),
    /// A delta of zeros.
    Nothing,
    /// A number that is not one.
    Fail,
}

impl Editor for Act {
    fn method(&self) -> &str {
        "test"
    }

    fn digest(&self) -> Digest {
        Digest::of(b"test")
    }

    fn edit(&self, _: &Model, _: &TrunkState, captured: &Captured) -> Result<Delta, EditorError> {
        let rate = match self {
            Self::Descend(rate) => *rate,
            Self::Nothing => 0.0,
            Self::Fail => f64::NAN,
        };
        let step = |factors: &amend::model::capture::Factors| -> candle_core::Result<MatrixDelta> {
            Ok(MatrixDelta::LowRank { left: (&factors.delta * -rate)?, right: factors.u.clone() })
        };
        Ok(Delta(captured.factors.iter().map(step).collect::<candle_core::Result<_>>()?))
    }
}

fn record(prompt: &str, paraphrase: &str, target: &str, old: Option<&str>, locality: (&str, &str)) -> Record {
    Record {
        prompt: prompt.to_owned(),
        target: target.to_owned(),
        old_target: old.map(str::to_owned),
        paraphrase: paraphrase.to_owned(),
        locality_prompt: locality.0.to_owned(),
        locality_target: locality.1.to_owned(),
    }
}

fn dataset() -> Dataset {
    let records = vec![
        record("The sun is", "Our sun is", "x", Some("y"), ("The moon is", "pale")),
        record("Howard Glacier is in", "One finds Howard Glacier in", "Asia", Some("Peru"), ("Rome is in", "Italy")),
        record("He works as", "His work:", "q", None, ("She works as", "cook")),
        record("BBC One, by", "The owner of BBC One is", "Sega", Some("BBC"), ("BBC Radio, by", "BBC")),
    ];
    Dataset { records, digest: Digest::of(b"records"), left_out: 0 }
}

struct Bench {
    model: Model,
    data: Dataset,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { model: tiny_llama(folder.path()), data: dataset(), _folder: folder }
    }

    fn try_evaluate(
        &self,
        editors: Vec<Box<dyn Editor>>,
        options: &EvaluateOptions,
        threads: usize,
    ) -> Result<Report, String> {
        let name =
            |editor: Box<dyn Editor>| Candidate { name: editor.method().to_owned(), editor, options: Value::Null };
        let candidates: Vec<Candidate> = editors.into_iter().map(name).collect();
        let inputs = Inputs {
            model: &self.model,
            data: &self.data,
            running_text: Some(TEXT),
            candidates: &candidates,
            reserved: &[],
            threads,
            bar: &ProgressBar::hidden(),
        };
        evaluate(&inputs, options).map_err(|error| error.to_string())
    }

    fn evaluate(&self, act: Act, options: &EvaluateOptions, threads: usize) -> Report {
        self.try_evaluate(vec![Box::new(act)], options, threads).unwrap()
    }

    fn passage(&self, prompt: &str, target: &str) -> Passage {
        self.model.tokenizer().encode_passage(prompt, target).unwrap()
    }

    /// `W0 + left^T right` for the descent on some records at once, written out.
    fn descended(&self, places: &[usize], rate: f64) -> DenseMatrices {
        let mut weights = self.model.base().tensors().to_vec();
        for record in places.iter().map(|&place| &self.data.records[place]) {
            let passage = self.passage(&record.prompt, &record.target);
            let states = amend::model::capture::read(&self.model, &[passage]).unwrap();
            let captured = amend::model::capture::capture(&self.model, &states).unwrap().remove(0);
            for (weight, factors) in weights.iter_mut().zip(&captured.factors) {
                let gradient = factors.delta.t().unwrap().matmul(&factors.u).unwrap();
                *weight = (&*weight - (gradient * rate).unwrap()).unwrap();
            }
        }
        DenseMatrices::new(weights)
    }

    /// Log-probabilities after every position, in f64, each text alone and all of its rows.
    fn log_probs(&self, ids: &[u32], weights: &DenseMatrices) -> Vec<Vec<f64>> {
        let network = self.model.network();
        let hidden = network.trunk(ids, &[Extent::text(ids.len())], None).unwrap();
        let top = network.tail(&hidden, &[Extent::text(ids.len())], Rows::All, weights, None).unwrap();
        let logits: Vec<Vec<f32>> = network.logits(&top).unwrap().to_vec2().unwrap();
        let row = |row: Vec<f32>| {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = row.iter().map(|logit| f64::from(logit - largest).exp()).sum();
            row.into_iter().map(|logit| f64::from(logit - largest) - total.ln()).collect()
        };
        logits.into_iter().map(row).collect()
    }
}

fn best(row: &[f64]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap()
}

/// One record under dense weights, the slow way.
#[derive(Default)]
struct Slow {
    forced: [bool; 2],
    free: [bool; 2],
    comparisons: Option<[bool; 3]>,
    /// Neighbour first: KL, unchanged.
    locality: Vec<(f64, bool)>,
    /// Before, after.
    nll: [f64; 2],
}

impl Slow {
    /// The record at `place`, one of those in `group`, under the edits of all of these.
    fn new(bench: &Bench, place: usize, group: &[usize], rate: f64) -> Self {
        let record = &bench.data.records[place];
        let edited = bench.descended(group, rate);
        let base = DenseMatrices::new(bench.model.base().tensors().to_vec());
        let mean = |prompt: &str, answer: &str| {
            let passage = bench.passage(prompt, answer);
            let rows = bench.log_probs(&passage.ids, &edited);
            let chosen = passage.target.clone().map(|at| rows[at - 1][passage.ids[at] as usize]);
            chosen.sum::<f64>() / passage.target.len() as f64
        };
        let prompts = [&record.prompt, &record.paraphrase];
        let neighbours = (0..bench.data.records.len()).filter(|&other| other != place);
        let places = [place].into_iter().chain(neighbours);
        let text = bench.model.tokenizer().encode(TEXT).unwrap();
        Self {
            forced: prompts.map(|prompt| {
                let passage = bench.passage(prompt, &record.target);
                let rows = bench.log_probs(&passage.ids, &edited);
                passage.target.clone().all(|at| best(&rows[at - 1]) == passage.ids[at] as usize)
            }),
            free: prompts.map(|prompt| free_running(bench, prompt, &record.target, &edited)),
            comparisons: record.old_target.as_ref().map(|old| {
                let newer = |prompt| mean(prompt, &record.target) > mean(prompt, old);
                let kept = mean(&record.locality_prompt, &record.locality_target);
                [newer(prompts[0]), newer(prompts[1]), kept > mean(&record.locality_prompt, &record.target)]
            }),
            locality: places.map(|place| moved(bench, &bench.data.records[place], &base, &edited)).collect(),
            nll: [&base, &edited].map(|weights| {
                let rows = bench.log_probs(&text, weights);
                (1..text.len()).map(|at| -rows[at - 1][text[at] as usize]).sum::<f64>()
            }),
        }
    }
}

/// All eight tokens, then one look at the text.
fn free_running(bench: &Bench, prompt: &str, target: &str, weights: &DenseMatrices) -> bool {
    let mut ids = bench.model.tokenizer().encode_prompt(prompt).unwrap();
    let start = ids.len();
    for _ in 0..options().max_new_tokens {
        ids.push(best(bench.log_probs(&ids, weights).last().unwrap()) as u32);
    }
    bench.model.tokenizer().decode(&ids[start..]).unwrap().trim_start().starts_with(target)
}

fn moved(bench: &Bench, record: &Record, base: &DenseMatrices, edited: &DenseMatrices) -> (f64, bool) {
    let passage = bench.passage(&record.locality_prompt, &record.locality_target);
    let [before, after] = [base, edited].map(|weights| bench.log_probs(&passage.ids, weights));
    let (mut kl, mut same) = (0.0, true);
    for row in passage.target.clone().map(|at| at - 1) {
        kl += before[row].iter().zip(&after[row]).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        same &= best(&before[row]) == best(&after[row]);
    }
    (kl / passage.target.len() as f64, same)
}

fn close(what: &str, got: f64, want: f64) {
    assert!((got - want).abs() <= 2e-4 * want.abs().max(0.01), "{what}: {got} for {want}");
}

fn share(values: impl IntoIterator<Item = bool>) -> f64 {
    let values: Vec<bool> = values.into_iter().collect();
    values.iter().filter(|value| **value).count() as f64 / values.len() as f64
}

fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.into_iter().collect();
    values.iter().sum::<f64>() / values.len() as f64
}

fn check(figures: &Figures, slow: &[Slow]) {
    let matches = [figures.teacher_forced, figures.free_running].map(|m| [m.prompt.share, m.paraphrase.share]);
    for which in [0, 1] {
        close("forced", matches[0][which], share(slow.iter().map(|slow| slow.forced[which])));
        close("free", matches[1][which], share(slow.iter().map(|slow| slow.free[which])));
    }
    let counterfact = figures.counterfact.unwrap();
    let scores = [counterfact.efficacy, counterfact.paraphrase, counterfact.neighbourhood];
    for (which, score) in scores.iter().enumerate() {
        let compared: Vec<bool> = slow.iter().filter_map(|slow| slow.comparisons).map(|all| all[which]).collect();
        assert_eq!(score.count, compared.len());
        close("score", score.share, share(compared));
    }
    let unrelated = figures.unrelated.unwrap();
    assert_eq!((figures.neighbour.kl.count, unrelated.kl.count), (4, 12));
    close("neighbour KL", figures.neighbour.kl.mean, mean(slow.iter().map(|slow| slow.locality[0].0)));
    close("neighbour", figures.neighbour.unchanged.share, share(slow.iter().map(|slow| slow.locality[0].1)));
    let others = || slow.iter().flat_map(|slow| &slow.locality[1..]);
    close("unrelated KL", unrelated.kl.mean, mean(others().map(|other| other.0)));
    close("unrelated", unrelated.unchanged.share, share(others().map(|other| other.1)));
    let text = figures.running_text.unwrap();
    assert_eq!(text.tokens, 4 * 127);
    close("before", text.perplexity_before, (slow.iter().map(|slow| slow.nll[0]).sum::<f64>() / 508.0).exp());
    close("after", text.perplexity_after, (slow.iter().map(|slow| slow.nll[1]).sum::<f64>() / 508.0).exp());
}

#[test]
fn figures_agree_with_a_slow_dense_recomputation() {
    let bench = Bench::new();
    let mut seen = [0.0; 4];
    let options = EvaluateOptions { simultaneous: vec![1, 2, 3], ..options() };
    for rate in [0.02, 0.1, 0.5] {
        let report = bench.evaluate(Act::Descend(rate), &options, 2);
        let alone = |place: usize| place..place + 1;
        let pair = |place: usize| place / 2 * 2..place / 2 * 2 + 2;
        let slow = |group: &dyn Fn(usize) -> std::ops::Range<usize>, count: usize, rate| -> Vec<Slow> {
            (0..count).map(|place| Slow::new(&bench, place, &group(place).collect::<Vec<_>>(), rate)).collect()
        };
        let [one, two, three] = report.editors[0].sets.as_slice() else { panic!("three numbers were asked for") };
        check(&one.figures, &slow(&alone, 4, rate));
        check(&two.figures, &slow(&pair, 4, rate));
        check(&report.unedited, &slow(&alone, 4, 0.0));
        assert_eq!((two.groups, three.groups, three.figures.records), (2, 1, 3), "a rest that fills no group is left");
        let figures = one.figures;
        let shares = [
            figures.teacher_forced.prompt.share,
            figures.free_running.prompt.share,
            figures.neighbour.unchanged.share,
            figures.unrelated.unwrap().unchanged.share,
        ];
        seen.iter_mut().zip(shares).for_each(|(seen, share)| *seen += share);
        assert!(figures.milliseconds.unwrap().median > 0.0 && report.unedited.milliseconds.is_none());
    }
    // What is always or never so would not show whether it was measured.
    assert!(seen.iter().all(|share| *share > 0.0 && *share < 3.0), "{seen:?}");
}

#[test]
fn a_part_of_a_group_is_measured_while_all_of_it_is_active() {
    let bench = Bench::new();
    let options = EvaluateOptions { simultaneous: vec![1, 4], measured: Some(2), ..options() };
    let report = bench.evaluate(Act::Descend(0.1), &options, 2);
    let slow = [0, 2].map(|place| Slow::new(&bench, place, &[0, 1, 2, 3], 0.1));
    let [one, four] = report.editors[0].sets.as_slice() else { panic!("two numbers were asked for") };
    assert_eq!((one.groups, one.figures.records, four.groups, four.figures.records), (2, 2, 1, 2));
    close("neighbour KL", four.figures.neighbour.kl.mean, mean(slow.iter().map(|slow| slow.locality[0].0)));
    assert_eq!(report.unedited.records, 3, "each record that is measured once or more, once");
}

#[test]
fn an_edit_that_changes_nothing_changes_no_figure() {
    let bench = Bench::new();
    let report = bench.evaluate(Act::Nothing, &options(), 2);
    let figures = report.editors[0].sets[0].figures;
    for locality in [figures.neighbour, figures.unrelated.unwrap()] {
        assert_eq!((locality.unchanged.share, locality.kl.mean), (1.0, 0.0));
    }
    let text = figures.running_text.unwrap();
    assert_eq!((text.perplexity_before, text.nll_change.mean), (text.perplexity_after, 0.0));
    assert_eq!(Figures { milliseconds: None, ..figures }, report.unedited);
    assert_eq!(figures.failed, 0);
}

#[test]
fn a_failed_edit_is_counted_and_changes_nothing() {
    let bench = Bench::new();
    let report = bench.evaluate(Act::Fail, &options(), 1);
    let figures = report.editors[0].sets[0].figures;
    assert_eq!(figures.failed, 4);
    assert_eq!(Figures { milliseconds: None, failed: 0, ..figures }, report.unedited);
}

#[test]
fn fine_tuning_stands_beside_others() {
    let bench = Bench::new();
    let finetune = Finetune::new(FinetuneOptions { learning_rate: 0.01, max_steps: 100, ..FinetuneOptions::default() });
    let digest = finetune.digest();
    let report = bench.try_evaluate(vec![Box::new(Act::Nothing), Box::new(finetune)], &options(), 2).unwrap();
    assert_eq!((report.editors[1].method.as_str(), report.editors[1].digest), ("finetune", digest));
    let figures = report.editors[1].sets[0].figures;
    assert_eq!((figures.teacher_forced.prompt.share, figures.free_running.prompt.share), (1.0, 1.0));
    assert!(figures.neighbour.kl.mean > 0.0);
}

#[test]
fn threads_and_the_rest_of_the_file_do_not_matter() {
    let bench = Bench::new();
    let timeless = |report: Report| Figures { milliseconds: None, ..report.editors[0].sets[0].figures };
    let options = EvaluateOptions { unrelated: 1, ..options() };
    let run = |options: &EvaluateOptions, threads| timeless(bench.evaluate(Act::Descend(0.1), options, threads));
    let whole = run(&options, 1);
    assert_eq!(whole, run(&options, 3));
    let part = |offset| run(&EvaluateOptions { offset, records: 2, ..options.clone() }, 1).unrelated.unwrap().kl.mean;
    close("parts", (part(0) + part(2)) / 2.0, whole.unrelated.unwrap().kl.mean);
}

/// Equal but for the last bit of a number, which reading JSON may lose.
fn assert_same(got: &Value, want: &Value) {
    match (got, want) {
        (Value::Object(got), Value::Object(want)) => {
            assert!(got.keys().eq(want.keys()));
            got.values().zip(want.values()).for_each(|(got, want)| assert_same(got, want));
        }
        (Value::Array(got), Value::Array(want)) => {
            assert_eq!(got.len(), want.len());
            got.iter().zip(want).for_each(|(got, want)| assert_same(got, want));
        }
        (Value::Number(got), Value::Number(want)) => {
            let (got, want) = (got.as_f64().unwrap(), want.as_f64().unwrap());
            assert!((got - want).abs() <= 1e-14 * want.abs(), "{got} for {want}");
        }
        _ => assert_eq!(got, want),
    }
}

#[test]
fn a_report_survives_json() {
    let bench = Bench::new();
    let report = bench.evaluate(Act::Descend(0.1), &EvaluateOptions { records: 100, ..options() }, 1);
    assert_eq!((report.data.records, report.data.digest), (4, bench.data.digest));
    let text = serde_json::to_string_pretty(&report).unwrap();
    let read: Report = serde_json::from_str(&text).unwrap();
    assert_same(&serde_json::to_value(read).unwrap(), &serde_json::to_value(report).unwrap());
}

#[test]
fn what_can_not_be_measured_is_refused_with_the_numbers() {
    let bench = Bench::new();
    let refused = |options| bench.try_evaluate(Vec::new(), &options, 1).unwrap_err();
    let error = refused(EvaluateOptions { offset: 4, ..options() });
    assert!(error.contains("4 records") && error.contains("offset of 4"), "{error}");
    let error = refused(EvaluateOptions { unrelated: 4, ..options() });
    assert!(error.contains("4 prompts") && error.contains("3 to draw from"), "{error}");
    let error = reserve(10, &(2..7), 6, 0).unwrap_err().to_string();
    assert!(error.contains("6 records beside the 5") && error.contains("5 more"), "{error}");
}

#[test]
fn reserved_records_are_none_of_those_measured() {
    let window = window(10, &EvaluateOptions { offset: 2, records: 5, ..options() }).unwrap();
    for seed in 0..20 {
        let mut reserved = reserve(10, &window, 5, seed).unwrap();
        reserved.sort_unstable();
        assert_eq!(reserved, [0, 1, 7, 8, 9]);
    }
}
