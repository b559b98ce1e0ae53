//! Hidden states at the tail's door, computed once and kept on disk.
//!
//! The base model is frozen, so what the trunk makes of a training text never changes. The states lie in one file of
//! f16, memory-mapped, whose name is the digest of everything they depend on: the model, where its tail begins, and the
//! token ids. For texts that must not change under edits, the base model's own final states at the measured positions
//! lie in a second file, f32: the base's logits are one product away.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use half::f16;
use indicatif::ProgressBar;
use memmap2::Mmap;

use super::{TrainingError, parallel::Workers};
use crate::{
    digest::Digest,
    files::{self, write_whole},
    model::{Extent, Model, Passage, Rows, TrunkState, capture},
};

/// Texts go through the trunk so many at a time.
const BATCH: usize = 32;

/// A text and the positions whose predictions matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    pub passage: Passage,
    /// Positions at which the base model's final states are kept; empty if they are not needed.
    pub watched: Vec<u32>,
}

/// The states of a list of texts.
pub struct HiddenStates {
    texts: Vec<Text>,
    /// First row of each text in the file of states, and of each text's watched positions in the file of tops.
    starts: Vec<(usize, usize)>,
    states: Mmap,
    tops: Mmap,
    width: usize,
}

impl HiddenStates {
    /// Opens the states of `texts`, computing what is not in `folder` yet.
    pub fn open(
        model: &Model,
        texts: Vec<Text>,
        folder: &Path,
        workers: &Workers,
        bar: &ProgressBar,
    ) -> Result<Self, TrainingError> {
        let shape = model.network().shape();
        let name = digest(model, &texts);
        let (states, tops) = (folder.join(format!("{name}.f16")), folder.join(format!("{name}.f32")));
        let mut starts = Vec::with_capacity(texts.len());
        let (mut rows, mut watched) = (0, 0);
        for text in &texts {
            starts.push((rows, watched));
            rows += text.passage.ids.len();
            watched += text.watched.len();
        }
        let sizes = ((rows * shape.hidden * 2) as u64, (watched * shape.hidden * 4) as u64);
        if !(has_size(&states, sizes.0) && has_size(&tops, sizes.1)) {
            fs::create_dir_all(folder).map_err(io(folder))?;
            compute(model, &texts, (&states, &tops), workers, bar)?;
        }
        Ok(Self { texts, starts, states: map(&states)?, tops: map(&tops)?, width: shape.hidden })
    }

    /// The text itself.
    pub fn text(&self, index: usize) -> &Text {
        &self.texts[index]
    }

    /// What the trunk made of a text.
    pub fn state(&self, index: usize) -> Result<TrunkState, TrainingError> {
        let passage = self.texts[index].passage.clone();
        let row = self.width * 2;
        let bytes = &self.states[self.starts[index].0 * row..][..passage.ids.len() * row];
        let values: Vec<f32> =
            bytes.chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect();
        let hidden = Tensor::from_vec(values, (passage.ids.len(), self.width), &Device::Cpu)?;
        Ok(TrunkState { passage, hidden })
    }

    /// The base model's final states at a text's watched positions, `[watched, hidden]`.
    pub fn tops(&self, index: usize) -> Result<Tensor, TrainingError> {
        let rows = self.texts[index].watched.len();
        let row = self.width * 4;
        let bytes = &self.tops[self.starts[index].1 * row..][..rows * row];
        let values: Vec<f32> =
            bytes.chunks_exact(4).map(|quad| f32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]])).collect();
        Ok(Tensor::from_vec(values, (rows, self.width), &Device::Cpu)?)
    }
}

fn digest(model: &Model, texts: &[Text]) -> Digest {
    let mut bytes = Vec::new();
    for text in texts {
        for part in [&text.passage.ids, &text.watched] {
            bytes.extend((part.len() as u32).to_le_bytes());
            bytes.extend(part.iter().flat_map(|value| value.to_le_bytes()));
        }
    }
    let tail = (model.network().shape().tail_blocks as u64).to_le_bytes();
    Digest::of_parts([model.digest().as_bytes().as_slice(), &tail, &bytes])
}

fn compute(
    model: &Model,
    texts: &[Text],
    (states, tops): (&Path, &Path),
    workers: &Workers,
    bar: &ProgressBar,
) -> Result<(), TrainingError> {
    let partial_states = files::partial(states);
    let mut state_file = BufWriter::new(File::create(&partial_states).map_err(io(states))?);
    let mut top_bytes: Vec<u8> = Vec::new();
    bar.set_length(texts.len() as u64);
    bar.set_message("hidden states");
    let batches: Vec<&[Text]> = texts.chunks(BATCH).collect();
    for round in batches.chunks(workers.count()) {
        for computed in workers.map(round, |batch| compute_batch(model, batch)) {
            let (hidden, watched) = computed?;
            state_file.write_all(&hidden).map_err(io(states))?;
            top_bytes.extend(watched);
        }
        bar.inc(round.iter().map(|batch| batch.len() as u64).sum());
    }
    let file = state_file.into_inner().map_err(|error| io(states)(error.into_error()))?;
    file.sync_all().map_err(io(states))?;
    fs::rename(&partial_states, states).map_err(io(states))?;
    write_whole(tops, &top_bytes).map_err(io(tops))
}

/// The bytes of a batch's states (f16) and of its watched tops (f32).
fn compute_batch(model: &Model, batch: &[Text]) -> Result<(Vec<u8>, Vec<u8>), TrainingError> {
    let passages: Vec<Passage> = batch.iter().map(|text| text.passage.clone()).collect();
    let read = capture::read(model, &passages)?;
    let mut states = Vec::new();
    for state in &read {
        let values: Vec<f16> = state.hidden.to_dtype(DType::F16)?.flatten_all()?.to_vec1()?;
        states.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    let tops = watched_tops(model, batch, &read)?;
    Ok((states, tops.iter().flat_map(|value| value.to_le_bytes()).collect()))
}

/// The base model's final states at the watched positions of a batch.
fn watched_tops(model: &Model, batch: &[Text], read: &[TrunkState]) -> Result<Vec<f32>, TrainingError> {
    let watching: Vec<(&Text, &TrunkState)> =
        batch.iter().zip(read).filter(|(text, _)| !text.watched.is_empty()).collect();
    if watching.is_empty() {
        return Ok(Vec::new());
    }
    let hidden: Vec<&Tensor> = watching.iter().map(|(_, state)| &state.hidden).collect();
    let extents: Vec<Extent> = watching.iter().map(|(text, _)| text.passage.extent()).collect();
    let rows: Vec<Vec<u32>> = watching.iter().map(|(text, _)| text.watched.clone()).collect();
    // Through f16, as the edited pass will read them: what differs then is the edit alone.
    let hidden = Tensor::cat(&hidden, 0)?.to_dtype(DType::F16)?.to_dtype(DType::F32)?;
    let top = model.network().tail(&hidden, &extents, Rows::At(&rows), model.base().as_ref(), None)?;
    Ok(top.flatten_all()?.to_vec1()?)
}

fn has_size(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.len() == size)
}

fn map(path: &PathBuf) -> Result<Mmap, TrainingError> {
    let file = File::open(path).map_err(io(path))?;
    #[expect(unsafe_code, reason = "memory-mapped files have no safe interface")]
    // SAFETY: the file was renamed into place whole, is named by its content's digest and never written again.
    let map = unsafe { Mmap::map(&file) };
    map.map_err(io(path))
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> TrainingError + '_ {
    move |source| TrainingError::Io { what: path.display().to_string(), source }
}
