//! Which records and which bystanders each step takes: a function of the seed and the step alone, so that a resumed run
//! draws what it would have drawn.

use rand::{
    Rng, SeedableRng,
    seq::{SliceRandom, index::sample},
};
use rand_chacha::ChaCha8Rng;

use super::{TrainingError, batch::BatchPlan, corpus::Corpus, options::Recipe};
use crate::editor::CompositionKind;

/// Locality texts per edit.
const LOCALITY_PER_EDIT: usize = 2;
/// Streams of the generator from here on shuffle epochs; those below draw steps.
const EPOCH_STREAMS: u64 = 1 << 40;

/// Draws batches.
pub struct Draw {
    recipe: Recipe,
    records: usize,
    windows: Vec<usize>,
    epoch: Option<(u64, Vec<usize>)>,
}

impl Draw {
    /// From `records` training records, and the windows of `corpus` if it has any.
    ///
    /// Refused if the locality mix leaves nothing to draw.
    pub fn new(recipe: Recipe, records: usize, corpus: &Corpus) -> Result<Self, TrainingError> {
        let windows: Vec<usize> = (0..corpus.windows()).map(|window| corpus.window(window)).collect();
        let mix = recipe.locality_mix;
        if windows.is_empty() && mix.neighbour + mix.other <= 0.0 {
            let why = "the locality mix is running text alone, but there is none, or too little for a window";
            return Err(TrainingError::Refused(why.to_owned()));
        }
        Ok(Self { recipe, records, windows, epoch: None })
    }

    /// The batch of `step`: how many edits are active together is drawn from the recipe's numbers. Where that is more
    /// than are measured, the others are drawn to keep them company. Behind a gate each is alone.
    pub fn batch(&mut self, step: u64) -> BatchPlan {
        let size = self.recipe.edits_per_step.min(self.records);
        let first = step * size as u64;
        let edits: Vec<usize> = (first..first + size as u64).map(|index| self.record(index)).collect();
        let mut rng = self.generator(step);
        let mut locality = Vec::with_capacity(size * LOCALITY_PER_EDIT);
        for (edit, &record) in edits.iter().enumerate() {
            for _ in 0..LOCALITY_PER_EDIT {
                locality.push((edit as u32, self.bystander(record, &mut rng)));
            }
        }
        let together = match self.recipe.simultaneous.as_slice() {
            _ if self.recipe.composition == CompositionKind::Gated => 1,
            [] => 1,
            numbers => numbers[rng.random_range(0..numbers.len())].min(self.records),
        };
        let companions = self.companions(&edits, together.saturating_sub(size), &mut rng);
        BatchPlan { companions, ..BatchPlan::new(edits, together, locality) }
    }

    /// Other records than those measured.
    fn companions(&self, edits: &[usize], count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let drawn = sample(rng, self.records, (count + edits.len()).min(self.records));
        drawn.into_iter().filter(|record| !edits.contains(record)).take(count).collect()
    }

    /// Record number `index` of the endless sequence of shuffled epochs.
    fn record(&mut self, index: u64) -> usize {
        let (epoch, place) = (index / self.records as u64, (index % self.records as u64) as usize);
        if self.epoch.as_ref().is_none_or(|(current, _)| *current != epoch) {
            let mut order: Vec<usize> = (0..self.records).collect();
            order.shuffle(&mut self.generator(EPOCH_STREAMS + epoch));
            self.epoch = Some((epoch, order));
        }
        self.epoch.as_ref().map_or(0, |(_, order)| order[place])
    }

    fn bystander(&self, record: usize, rng: &mut ChaCha8Rng) -> usize {
        let mix = self.recipe.locality_mix;
        let text = if self.windows.is_empty() { 0.0 } else { mix.text };
        let draw = rng.random_range(0.0..mix.neighbour + mix.other + text);
        if draw < mix.neighbour {
            Corpus::locality(record)
        } else if draw < mix.neighbour + mix.other {
            Corpus::locality(rng.random_range(0..self.records))
        } else {
            self.windows[rng.random_range(0..self.windows.len())]
        }
    }

    fn generator(&self, stream: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.recipe.seed);
        rng.set_stream(stream);
        rng
    }
}
