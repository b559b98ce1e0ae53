//! Decoder-only families.

use amend::model::{
    Extent, Passage, Rows,
    capture::{Recorder, weighted_nll},
};
use candle_core::Tensor;

use crate::golden::{Golden, Padding};

/// Positions whose logits predict a label, and those labels: position `i` predicts label `i + 1`.
fn predictions(labels: &[i64], length: usize) -> (Vec<u32>, Vec<u32>) {
    let label = |position: usize| u32::try_from(labels[position + 1]).ok().map(|label| (position as u32, label));
    (0..length - 1).filter_map(label).unzip()
}

/// Both inputs in one packed pass, the loss as the file has it: the mean over the labels of both.
fn compare_pass(golden: &Golden) {
    let inputs = golden.inputs();
    let network = golden.model.network();
    let lengths: Vec<usize> = inputs.iter().map(Vec::len).collect();
    let extents: Vec<Extent> = lengths.iter().map(|&length| Extent::text(length)).collect();
    let hidden = network.trunk(&inputs.concat(), &extents, None).unwrap();
    let recorder = Recorder::new(golden.model.base());
    let top = network.tail(&hidden, &extents, Rows::All, &recorder, None).unwrap();
    let logits = network.logits(&top).unwrap();
    golden.close("logits", &logits, &golden.real_rows("logits", &lengths, Padding::Anything));

    let (mut rows, mut targets, mut start) = (Vec::new(), Vec::new(), 0);
    for (labels, &length) in golden.integers("labels").iter().zip(&lengths) {
        let (positions, labels) = predictions(labels, length);
        rows.extend(positions.iter().map(|position| start + position));
        targets.extend(labels);
        start += length as u32;
    }
    let rows = Tensor::new(rows, golden.model.device()).unwrap();
    let weights = vec![1.0 / targets.len() as f32; targets.len()];
    let (_, loss) = weighted_nll(&logits.index_select(&rows, 0).unwrap(), &targets, &weights).unwrap();
    golden.compare_loss(f64::from(loss.to_scalar::<f32>().unwrap()));
    let factors = recorder.factors(&mut loss.backward().unwrap()).unwrap();
    golden.compare_factors(&factors, |_| lengths.clone());
}

/// The same through the capture of edits, which computes no more rows than the loss reads. A passage's loss is the mean
/// over its own labels, which must be one run.
fn compare_capture(golden: &Golden) {
    let passage = |(ids, labels): (Vec<u32>, Vec<i64>)| {
        let (positions, _) = predictions(&labels, ids.len());
        let (first, last) = (*positions.first()?, *positions.last()?);
        let target = first as usize + 1..last as usize + 2;
        (positions.len() == target.len()).then(|| Passage::text(ids, target))
    };
    let passages: Option<Vec<Passage>> =
        golden.inputs().into_iter().zip(golden.integers("labels")).map(passage).collect();
    let Some(passages) = passages else {
        println!("skipped: labels that are no run are no target");
        return;
    };
    golden.compare_capture(&passages);
}

fn compare(family: &str) {
    let Some(golden) = Golden::load(family) else { return };
    compare_pass(&golden);
    compare_capture(&golden);
    golden.report();
}

#[test]
fn golden_family_qwen2() {
    compare("qwen2");
}

#[test]
fn golden_family_gpt2() {
    compare("gpt2");
}

#[test]
fn golden_family_gpt_neo() {
    compare("gpt_neo");
}

#[test]
fn golden_family_gptj() {
    compare("gptj");
}

#[test]
fn golden_family_gemma3() {
    compare("gemma3");
}
