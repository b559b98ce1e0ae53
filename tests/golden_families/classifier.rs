//! Families that give a text a label.

use amend::model::{
    Extent, Kind, Passage, Rows,
    capture::{Recorder, weighted_nll},
};

use crate::golden::Golden;

/// All inputs in one packed pass. The file's single logit weighs label 1 against label 0.
fn compare_pass(golden: &Golden, passages: &[Passage]) {
    let network = golden.model.network();
    let extents: Vec<Extent> = passages.iter().map(Passage::extent).collect();
    let ids: Vec<u32> = passages.iter().flat_map(|passage| passage.ids.iter().copied()).collect();
    let labels: Vec<u32> = passages.iter().flat_map(|passage| passage.target_ids().iter().copied()).collect();
    let hidden = network.trunk(&ids, &extents, None).unwrap();
    let recorder = Recorder::new(golden.model.base());
    let top = network.tail(&hidden, &extents, Rows::All, &recorder, None).unwrap();
    let logits = network.logits(&top).unwrap();
    let want = &golden.tensors["logits"];
    match want.dim(1).unwrap() {
        1 => golden.close("logits", &logits.narrow(1, 1, 1).unwrap(), want),
        _ => golden.close("logits", &logits, want),
    }
    let weights = vec![1.0 / labels.len() as f32; labels.len()];
    let (_, loss) = weighted_nll(&logits, &labels, &weights).unwrap();
    golden.compare_loss(f64::from(loss.to_scalar::<f32>().unwrap()));
    let factors = recorder.factors(&mut loss.backward().unwrap()).unwrap();
    let lengths: Vec<usize> = extents.iter().map(|extent| extent.source).collect();
    golden.compare_factors(&factors, |_| lengths.clone());
}

#[test]
fn golden_family_bert() {
    let Some(golden) = Golden::load("bert") else { return };
    assert_eq!(golden.model.kind(), Kind::Classifier);
    let labels: Vec<i64> = golden.tensors["labels"].to_vec1().unwrap();
    let labels: Vec<u32> = labels.into_iter().map(|label| u32::try_from(label).unwrap()).collect();
    let passage = |(ids, &label): (Vec<u32>, &u32)| {
        let source = ids.len();
        Passage { ids: [ids.as_slice(), &[0, label]].concat(), source, target: source + 1..source + 2 }
    };
    let passages: Vec<Passage> = golden.inputs().into_iter().zip(&labels).map(passage).collect();
    compare_pass(&golden, &passages);
    golden.compare_capture(&passages);
    golden.report();
}
