//! Families of an encoder and a decoder.

use amend::model::{
    Extent, Kind, Passage, Rows,
    capture::{Recorder, weighted_nll},
};
use candle_core::Tensor;

use crate::golden::{Golden, Padding};

/// One input: what the encoder reads, what the decoder reads, and what it should answer.
struct Input {
    source: Vec<u32>,
    decoder: Vec<u32>,
    labels: Vec<u32>,
}

fn inputs(golden: &Golden) -> Vec<Input> {
    let (decoders, labels) = (golden.integers("decoder_input_ids"), golden.integers("labels"));
    let input = |((source, decoder), labels): ((Vec<u32>, Vec<i64>), Vec<i64>)| {
        let length = labels.iter().take_while(|&&label| label >= 0).count();
        assert!(labels[length..].iter().all(|&label| label < 0), "labels are padded on the right");
        let real = |ids: &[i64]| ids[..length].iter().map(|&id| u32::try_from(id).unwrap()).collect::<Vec<u32>>();
        let input = Input { source, decoder: real(&decoder), labels: real(&labels) };
        assert_eq!(input.decoder[1..], input.labels[..length - 1], "the decoder reads the labels, shifted");
        input
    };
    golden.inputs().into_iter().zip(decoders).zip(labels).map(input).collect()
}

/// All inputs in one packed pass, the loss as the file has it: the mean over the labels of all. A decoder's padded rows
/// stand after its real ones, which never look at them.
fn compare_pass(golden: &Golden, inputs: &[Input]) {
    let network = golden.model.network();
    let extent = |input: &Input| Extent { source: input.source.len(), target: input.decoder.len() };
    let extents: Vec<Extent> = inputs.iter().map(extent).collect();
    let ids: Vec<u32> = inputs.iter().flat_map(|input| input.source.iter().chain(&input.decoder).copied()).collect();
    let hidden = network.trunk(&ids, &extents, None).unwrap();
    let recorder = Recorder::new(golden.model.base());
    let top = network.tail(&hidden, &extents, Rows::All, &recorder, None).unwrap();
    let logits = network.logits(&top).unwrap();
    let answers: Vec<usize> = extents.iter().map(|extent| extent.target).collect();
    golden.close("logits", &logits, &golden.real_rows("logits", &answers, Padding::Anything));

    let targets: Vec<u32> = inputs.iter().flat_map(|input| input.labels.iter().copied()).collect();
    let weights = vec![1.0 / targets.len() as f32; targets.len()];
    let (_, loss) = weighted_nll(&logits, &targets, &weights).unwrap();
    golden.compare_loss(f64::from(loss.to_scalar::<f32>().unwrap()));
    let factors = recorder.factors(&mut loss.backward().unwrap()).unwrap();
    let sources: Vec<usize> = extents.iter().map(|extent| extent.source).collect();
    golden.compare_factors(&factors, |name| if name.contains("encoder.") { sources.clone() } else { answers.clone() });
}

fn passage(input: &Input) -> Passage {
    let start = input.source.len() + 1;
    let ids = [input.source.as_slice(), &input.decoder[..1], &input.labels].concat();
    Passage { target: start..ids.len(), source: input.source.len(), ids }
}

/// With the source read once and every cache in use, each step gives the logits of the whole pass.
fn compare_decoding(golden: &Golden, inputs: &[Input]) {
    let want = &golden.tensors["logits"];
    let opening = golden.model.tokenizer().framing().opening();
    for (row, input) in inputs.iter().enumerate() {
        let mut sequence = golden.model.start();
        let mut ids = [input.source.as_slice(), &input.decoder[..opening]].concat();
        for step in opening - 1..input.decoder.len() {
            let logits = golden.model.forward(&mut sequence, &ids, golden.model.base().as_ref()).unwrap();
            let logits = Tensor::new(logits, golden.model.device()).unwrap();
            let want = want.get(row).unwrap().get(step).unwrap();
            golden.close(&format!("input {row}, step {step}"), &logits, &want);
            ids = input.decoder.get(step + 1).copied().into_iter().collect();
        }
        assert_eq!(sequence.len(), input.source.len() + input.decoder.len());
    }
}

fn compare(family: &str) {
    let Some(golden) = Golden::load(family) else { return };
    assert_eq!(golden.model.kind(), Kind::EncoderDecoder);
    let inputs = inputs(&golden);
    compare_pass(&golden, &inputs);
    golden.compare_capture(&inputs.iter().map(passage).collect::<Vec<_>>());
    compare_decoding(&golden, &inputs);
    golden.report();
}

#[test]
fn golden_family_t5() {
    compare("t5");
}

#[test]
fn golden_family_t5_gated() {
    compare("t5_gated");
}

#[test]
fn golden_family_bart() {
    compare("bart");
}
