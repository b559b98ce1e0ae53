//! What enters the first editable matrix in the texts that a gate is trained on.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use candle_core::{Device, Result as CandleResult, Tensor};

use super::Sources;
use crate::{
    model::{DenseMatrices, Extent, Passage, Projection, Rows},
    training::{TrainingError, corpus::Corpus},
};

/// Texts in one pass.
const PASS: usize = 16;
/// Other places that are kept of each record.
pub const ELSEWHERE: usize = 6;

/// Inputs of the first editable matrix.
pub struct Inputs {
    /// At an answer behind a prompt, behind its paraphrase, and at the answer of its record's neighbour, `[n, d_in]` each.
    pub prompts: Tensor,
    pub paraphrases: Tensor,
    pub neighbours: Tensor,
    /// In the record's own texts where its answer is not due, [`ELSEWHERE`] for each of the `n`.
    pub elsewhere: Tensor,
    /// At positions of running text, `[m, d_in]`.
    pub text: Option<Tensor>,
    /// Which record each of the `n` belongs to, never falling.
    pub records: Vec<usize>,
}

impl Inputs {
    /// Of these sources; refused where no record has a key.
    pub fn of(sources: &Sources<'_>) -> Result<Self, TrainingError> {
        let of = |text: fn(usize) -> usize, wanted: fn(&Passage) -> Vec<u32>| {
            let texts: Vec<usize> = sources.records.iter().map(|record| text(*record)).collect();
            sources.inputs(&texts, wanted)
        };
        let paraphrases = of(Corpus::paraphrase, Passage::predicting)?;
        let neighbours = of(Corpus::locality, Passage::predicting)?;
        let elsewhere = (of(Corpus::prompt, elsewhere)?.into_iter()).zip(of(Corpus::paraphrase, elsewhere)?);
        let captured = sources.factors.of(sources.records, sources.workers)?;
        let mut kept: [Vec<Tensor>; 4] = Default::default();
        let mut records = Vec::new();
        let texts = captured.iter().zip(paraphrases).zip(neighbours).zip(elsewhere).enumerate();
        for (record, (((captured, paraphrase), neighbour), (before, again))) in texts {
            let prompt = &captured.factors[0].u;
            let rows = prompt.dim(0)?;
            // A row without a gradient is no key; what is compared must be at the same token of the answer.
            if prompt.dims() != paraphrase.dims() || rows == 0 {
                continue;
            }
            records.extend(std::iter::repeat_n(record, rows));
            kept[0].push(prompt.clone());
            kept[1].push(paraphrase);
            kept[2].push(repeated(&neighbour, rows)?);
            kept[3].extend(std::iter::repeat_n(Tensor::cat(&[before, again], 0)?, rows));
        }
        if records.is_empty() {
            return Err(TrainingError::Refused("no record has a key that a gate could be trained on".to_owned()));
        }
        let text = sources.inputs(sources.windows, |passage| (0..passage.ids.len() as u32).collect())?;
        let text = if text.is_empty() { None } else { Some(Tensor::cat(&text, 0)?) };
        let [prompts, paraphrases, neighbours, elsewhere] = kept.map(|rows| Tensor::cat(&rows, 0));
        let (prompts, paraphrases, neighbours, elsewhere) = (prompts?, paraphrases?, neighbours?, elsewhere?);
        Ok(Self { prompts, paraphrases, neighbours, elsewhere, text, records })
    }

    /// Where the rows of each record stand.
    pub fn record_rows(&self) -> Vec<Range<usize>> {
        let mut start = 0;
        let ranges = self.records.chunk_by(|a, b| a == b).map(|rows| {
            start += rows.len();
            start - rows.len()..start
        });
        ranges.collect()
    }
}

/// Three places of a text where its answer is not due: behind it, just before it, and half-way to it.
fn elsewhere(passage: &Passage) -> Vec<u32> {
    let behind = passage.ids.len() as u32 - 1;
    match passage.predicting().first() {
        Some(first) if *first > 0 => vec![behind, first - 1, (first - 1) / 2],
        _ => vec![behind; 3],
    }
}

/// So many rows of `x`, from its first on, again and again.
fn repeated(x: &Tensor, rows: usize) -> CandleResult<Tensor> {
    let count = x.dim(0)? as u32;
    let index: Vec<u32> = (0..rows as u32).map(|row| row % count).collect();
    x.index_select(&Tensor::new(index, &Device::Cpu)?, 0)
}

impl Sources<'_> {
    /// What enters the first editable matrix in each of these texts, at the positions that `wanted` names.
    fn inputs(
        &self,
        texts: &[usize],
        wanted: impl Fn(&Passage) -> Vec<u32> + Sync + Send,
    ) -> Result<Vec<Tensor>, TrainingError> {
        let passes: Vec<&[usize]> = texts.chunks(PASS).collect();
        let passed = self.workers.map(&passes, |texts| {
            let read = texts.iter().map(|&text| self.states.state(text)).collect::<Result<Vec<_>, _>>()?;
            let extents: Vec<Extent> = read.iter().map(|state| state.passage.extent()).collect();
            let hidden: Vec<&Tensor> = read.iter().map(|state| &state.hidden).collect();
            // One row of the top block is the least that it can be asked for.
            let last: Vec<Vec<u32>> = read.iter().map(|state| vec![state.passage.ids.len() as u32 - 1]).collect();
            let first = First { base: self.model.base(), seen: Mutex::new(None) };
            let rows = if self.model.network().shape().tail_blocks > 1 { Rows::At(&last) } else { Rows::All };
            self.model.network().tail(&Tensor::cat(&hidden, 0)?, &extents, rows, &first, None)?;
            let seen = first.seen.into_inner().unwrap_or_else(PoisonError::into_inner);
            let seen = seen.ok_or_else(|| candle_core::Error::Msg("the tail has no editable matrix".to_owned()))?;
            let mut start = 0;
            let own = read.iter().map(|state| {
                let rows: Vec<u32> = wanted(&state.passage).iter().map(|row| start + row).collect();
                start += state.passage.ids.len() as u32;
                seen.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)
            });
            Ok::<_, TrainingError>(own.collect::<CandleResult<Vec<_>>>()?)
        });
        Ok(passed.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }
}

/// Multiplies by the base weights and keeps what entered the first matrix.
struct First<'a> {
    base: &'a DenseMatrices,
    seen: Mutex<Option<Tensor>>,
}

impl Projection for First<'_> {
    fn project(&self, matrix: usize, x: &Tensor) -> CandleResult<Tensor> {
        if matrix == 0 {
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(x.clone());
        }
        self.base.project(matrix, x)
    }
}
