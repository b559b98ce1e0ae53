//! Hidden states at the tail's door, computed once and kept on disk.
//!
//! The base model is frozen, so what the trunk makes of a training text never changes. The states lie in one
//! memory-mapped file, of f16 where that holds them, whose name is the digest of everything they depend on: the model,
//! where its tail begins, and the token ids. For texts that must not change under edits, the base model's own final states at the measured positions
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

/// What a number of a state is kept as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Precision {
    /// f16, which is near enough.
    Half,
    /// f32, where a state is larger than f16 reaches: the residual stream of a T5 often is.
    Full,
}

/// In the order in which they are tried.
const PRECISIONS: [Precision; 2] = [Precision::Half, Precision::Full];

impl Precision {
    fn bytes(self) -> usize {
        match self {
            Self::Half => 2,
            Self::Full => 4,
        }
    }

    fn file(self, folder: &Path, name: Digest) -> PathBuf {
        folder.join(match self {
            Self::Half => format!("{name}.f16"),
            Self::Full => format!("{name}.states.f32"),
        })
    }

    /// The states as they will be read.
    fn rounded(self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Half => hidden.to_dtype(DType::F16)?.to_dtype(DType::F32),
            Self::Full => Ok(hidden.clone()),
        }
    }

    /// The bytes of a state; none where it is too large.
    fn encode(self, hidden: &Tensor) -> candle_core::Result<Option<Vec<u8>>> {
        let values: Vec<f32> = hidden.flatten_all()?.to_vec1()?;
        if self == Self::Full {
            return Ok(Some(values.into_iter().flat_map(f32::to_le_bytes).collect()));
        }
        let narrow: Vec<f16> = values.into_iter().map(f16::from_f32).collect();
        let fits = !narrow.iter().any(|value| value.is_infinite());
        Ok(fits.then(|| narrow.into_iter().flat_map(f16::to_le_bytes).collect()))
    }

    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::Half => bytes.chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect(),
            Self::Full => floats(bytes),
        }
    }
}

/// Little-endian f32.
fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|quad| f32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]])).collect()
}

/// The states of a list of texts.
pub struct HiddenStates {
    texts: Vec<Text>,
    /// First row of each text in the file of states, and of each text's watched positions in the file of tops.
    starts: Vec<(usize, usize)>,
    states: Mmap,
    precision: Precision,
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
        let tops = folder.join(format!("{name}.f32"));
        let mut starts = Vec::with_capacity(texts.len());
        let (mut rows, mut watched) = (0, 0);
        for text in &texts {
            starts.push((rows, watched));
            rows += text.passage.ids.len();
            watched += text.watched.len();
        }
        let top_bytes = watched * shape.hidden * 4;
        let kept = |precision: &Precision| {
            has_size(&precision.file(folder, name), rows * shape.hidden * precision.bytes())
                && has_size(&tops, top_bytes)
        };
        let mut precision = PRECISIONS.into_iter().find(kept);
        if precision.is_none() {
            fs::create_dir_all(folder).map_err(io(folder))?;
            for candidate in PRECISIONS {
                if compute(model, &texts, candidate, (&candidate.file(folder, name), &tops), workers, bar)? {
                    precision = Some(candidate);
                    break;
                }
            }
        }
        let precision = precision.expect("f32 holds every state");
        let states = map(&precision.file(folder, name))?;
        Ok(Self { texts, starts, states, precision, tops: map(&tops)?, width: shape.hidden })
    }

    /// The text itself.
    pub fn text(&self, index: usize) -> &Text {
        &self.texts[index]
    }

    /// What the trunk made of a text.
    pub fn state(&self, index: usize) -> Result<TrunkState, TrainingError> {
        let passage = self.texts[index].passage.clone();
        let row = self.width * self.precision.bytes();
        let values = self.precision.decode(&self.states[self.starts[index].0 * row..][..passage.ids.len() * row]);
        let hidden = Tensor::from_vec(values, (passage.ids.len(), self.width), &Device::Cpu)?;
        Ok(TrunkState { passage, hidden })
    }

    /// The base model's final states at a text's watched positions, `[watched, hidden]`.
    pub fn tops(&self, index: usize) -> Result<Tensor, TrainingError> {
        let rows = self.texts[index].watched.len();
        let row = self.width * 4;
        let values = floats(&self.tops[self.starts[index].1 * row..][..rows * row]);
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

/// Computes and writes; false where the precision does not hold the states, and nothing was written.
fn compute(
    model: &Model,
    texts: &[Text],
    precision: Precision,
    (states, tops): (&Path, &Path),
    workers: &Workers,
    bar: &ProgressBar,
) -> Result<bool, TrainingError> {
    let partial_states = files::partial(states);
    let mut state_file = BufWriter::new(File::create(&partial_states).map_err(io(states))?);
    let mut top_bytes: Vec<u8> = Vec::new();
    bar.set_length(texts.len() as u64);
    bar.set_message("hidden states");
    let batches: Vec<&[Text]> = texts.chunks(BATCH).collect();
    for round in batches.chunks(workers.count()) {
        for computed in workers.map(round, |batch| compute_batch(model, batch, precision)) {
            let Some((hidden, watched)) = computed? else {
                fs::remove_file(&partial_states).map_err(io(states))?;
                return Ok(false);
            };
            state_file.write_all(&hidden).map_err(io(states))?;
            top_bytes.extend(watched);
        }
        bar.inc(round.iter().map(|batch| batch.len() as u64).sum());
    }
    let file = state_file.into_inner().map_err(|error| io(states)(error.into_error()))?;
    file.sync_all().map_err(io(states))?;
    fs::rename(&partial_states, states).map_err(io(states))?;
    write_whole(tops, &top_bytes).map_err(io(tops))?;
    Ok(true)
}

/// Of a batch's states, and of its watched tops (f32).
type BatchBytes = (Vec<u8>, Vec<u8>);

/// The bytes of a batch; none where the states are too large.
fn compute_batch(model: &Model, batch: &[Text], precision: Precision) -> Result<Option<BatchBytes>, TrainingError> {
    let passages: Vec<Passage> = batch.iter().map(|text| text.passage.clone()).collect();
    let read = capture::read(model, &passages)?;
    let mut states = Vec::new();
    for state in &read {
        match precision.encode(&state.hidden)? {
            Some(bytes) => states.extend(bytes),
            None => return Ok(None),
        }
    }
    let tops = watched_tops(model, batch, &read, precision)?;
    Ok(Some((states, tops.iter().flat_map(|value| value.to_le_bytes()).collect())))
}

/// The base model's final states at the watched positions of a batch.
fn watched_tops(
    model: &Model,
    batch: &[Text],
    read: &[TrunkState],
    precision: Precision,
) -> Result<Vec<f32>, TrainingError> {
    let watching: Vec<(&Text, &TrunkState)> =
        batch.iter().zip(read).filter(|(text, _)| !text.watched.is_empty()).collect();
    if watching.is_empty() {
        return Ok(Vec::new());
    }
    let hidden: Vec<&Tensor> = watching.iter().map(|(_, state)| &state.hidden).collect();
    let extents: Vec<Extent> = watching.iter().map(|(text, _)| text.passage.extent()).collect();
    let rows: Vec<Vec<u32>> = watching.iter().map(|(text, _)| text.watched.clone()).collect();
    // As the edited pass will read them: what differs then is the edit alone.
    let hidden = precision.rounded(&Tensor::cat(&hidden, 0)?)?;
    let top = model.network().tail(&hidden, &extents, Rows::At(&rows), model.base().as_ref(), None)?;
    Ok(top.flatten_all()?.to_vec1()?)
}

fn has_size(path: &Path, size: usize) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.len() == size as u64)
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
