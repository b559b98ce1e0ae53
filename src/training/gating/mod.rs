//! Training a gate ([`crate::editor::gate`]): a metric under which the input at an answer behind a paraphrase is near to that behind
//! the prompt, and what no edit is about is near to none.
//!
//! The inputs of the first editable matrix are the base model's own, so they are computed once, and a step is a few small products.
//! They are centred and whitened by what tells wordings apart: with `D` the second moment of the difference between the inputs at an
//! answer behind a record's prompt and behind its paraphrase, by `B = (D + e I)^-1/2`; the map begins as the directions in which whitened
//! inputs vary most. A step draws records, in sets of several sizes; a paraphrase should be given to its own edit among its
//! set, or to silence if its edit is not in it; a neighbour, a position of running text, and what comes before the answer or after it in the
//! record's own texts, to silence: cross entropies over the shares. The threshold and what it gains
//! with the number of edits are then set on records that were held out, so that a given share of their neighbours meets silence.

mod fit;
mod frame;
mod inputs;
mod threshold;

use std::ops::Range;

use self::{fit::fit, frame::Frame, inputs::Inputs, threshold::set_threshold};
use super::{TrainingError, cache::HiddenStates, factors::FactorCache, parallel::Workers};
use crate::{editor::gate::Gate, model::Model};

/// One record in so many is held out of the fit, and the threshold is set on these: the fit knows its own paraphrases by heart.
const HELD_OUT: usize = 12;

/// What a gate is trained on.
pub struct Sources<'a> {
    pub model: &'a Model,
    pub states: &'a HiddenStates,
    pub factors: &'a FactorCache<'a>,
    pub records: &'a [usize],
    /// Windows of running text.
    pub windows: &'a [usize],
    pub workers: &'a Workers,
}

/// Trains a gate; a function of the sources and the seed.
pub fn train(sources: &Sources<'_>, seed: u64) -> Result<Gate, TrainingError> {
    let inputs = Inputs::of(sources)?;
    // On one thread, whatever the others are: how a decomposition is shared out shows in its bits.
    Workers::new(1)?.run(|| {
        // Every so many, for records of one kind follow each other.
        let (held_out, fitted): (Vec<_>, Vec<_>) =
            inputs.record_rows().into_iter().enumerate().partition(|(record, _)| record % HELD_OUT == HELD_OUT - 1);
        let rows = |records: Vec<(usize, Range<usize>)>| records.into_iter().map(|(_, rows)| rows).collect::<Vec<_>>();
        let gate = fit(&inputs, &rows(fitted), &Frame::of(&inputs)?, seed)?;
        Ok(set_threshold(gate, &inputs, &rows(held_out))?)
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::{inputs::ELSEWHERE, *};
    use crate::model::testing::random;

    /// Inputs of records whose key is a direction of its own beside much that they share; wordings differ in another dimension.
    fn inputs(records: usize) -> Inputs {
        const WIDTH: usize = 16;
        let own = random(&[records, WIDTH - 1], 1);
        let with = |wording: f32, own: &Tensor| {
            let wording = Tensor::full(wording, (records, 1), &Device::Cpu).unwrap();
            let noise = random(&[records, 1], 2).affine(0.5, 0.0).unwrap();
            Tensor::cat(&[own.clone(), (wording + noise).unwrap()], 1).unwrap()
        };
        Inputs {
            prompts: with(0.0, &own),
            paraphrases: with(3.0, &own),
            neighbours: with(0.0, &random(&[records, WIDTH - 1], 3)),
            elsewhere: random(&[records * ELSEWHERE, WIDTH], 5),
            text: Some(random(&[records, WIDTH], 4)),
            records: (0..records).collect(),
        }
    }

    /// Of the last records, which the fit does not see: how many paraphrases are given to their own edit, and how many
    /// neighbours to silence.
    #[test]
    fn paraphrases_of_other_records_are_known_and_their_neighbours_are_not() {
        let inputs = inputs(240);
        let records = inputs.record_rows();
        let (fitted, unseen) = records.split_at(200);
        let (fitted, held_out) = fitted.split_at(180);
        let gate = fit(&inputs, fitted, &Frame::of(&inputs).unwrap(), 0).unwrap();
        let gate = set_threshold(gate, &inputs, held_out).unwrap();
        let read =
            |rows: &Tensor| gate.read(&rows.narrow(0, 200, unseen.len()).unwrap().contiguous().unwrap()).unwrap();
        let keys = read(&inputs.prompts).t().unwrap();
        let speakers = |rows: &Tensor| -> Vec<_> {
            let similar = read(rows).matmul(&keys).unwrap().to_vec2::<f32>().unwrap();
            similar.iter().map(|row| gate.speakers(row, &vec![1; unseen.len()])).collect()
        };
        let most = |own: &[(usize, f32)]| own.iter().find(|(_, share)| *share > 0.5).map(|(edit, _)| *edit);
        let known = speakers(&inputs.paraphrases).iter().enumerate().filter(|(i, own)| most(own) == Some(*i)).count();
        let silent = speakers(&inputs.neighbours).iter().filter(|own| most(own).is_none()).count();
        assert!(known >= 36 && silent >= 28, "{known} known, {silent} silent, of 40");
    }
}
