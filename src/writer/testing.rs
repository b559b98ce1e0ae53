//! A small bench with faults on demand, and a log that can be made to fail: for the tests of this room.

use std::{
    collections::{BTreeSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use candle_core::{Device, Tensor};
use uuid::Uuid;

use super::{
    TargetFigures,
    bench::{Bench, Foundation, Keys, Texts},
};
use crate::{
    digest::Digest,
    edit_log::{
        Change, EditLog, EditQuery, EditRow, IdempotencyRow, Identity, LogError, NewEdit, NewVersion, Page, VersionRow,
        sqlite::SqliteLog,
    },
    editor::{Composition, Delta, MatrixDelta, spectrum::Spectrum},
    model::{DenseMatrices, EditableMatrix, ModelError, Passage, Projection},
};

const VOCABULARY: usize = 16;
const WIDTH: usize = 64;
/// How far an edit pushes logits: enough to win, too little for certainty.
const STEP: f32 = 8.0;

/// Words that make something go wrong, by the id that they are read as.
const FAULTS: [(&str, u32); 10] = [
    ("FAIL-CAPTURE", 1001),
    ("PANIC-CAPTURE", 1002),
    ("NAN-LOSS", 1003),
    ("NAN-DELTA", 1004),
    ("HUGE-DELTA", 1005),
    ("PANIC-MEASURE", 1006),
    ("WAIT", 1007),
    ("FAIL-MEASURE", 1008),
    ("NAN-FACTOR", 1009),
    ("PANIC-EDITOR", 1010),
];

/// A door that capture of a `WAIT` waits at.
#[derive(Default)]
pub struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.opened.wait(open).unwrap();
        }
    }
}

/// One linear layer over hashed prompts. An edit pushes its prompt's logits towards the target.
#[derive(Default)]
pub struct SmallBench {
    pub gate: Arc<Gate>,
    /// How many passages each successful pass of capture had.
    pub passes: Arc<Mutex<Vec<usize>>>,
}

fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

fn word_id(word: &str) -> u32 {
    FAULTS.iter().find(|(fault, _)| *fault == word).map_or((hash(word) % 997) as u32, |(_, id)| *id)
}

fn faulty(passage: &Passage, fault: &str) -> bool {
    passage.ids.contains(&word_id(fault))
}

/// A vector of unit length that belongs to a prompt. All prompts that begin with `ALIKE` share one, and half of it is that
/// of prompts that begin with `HALFALIKE`.
fn embedding(passage: &Passage) -> Vec<f32> {
    let prompt = &passage.ids[..passage.target.start];
    let (alike, half) = ([word_id("ALIKE")], [word_id("HALFALIKE")]);
    if prompt.starts_with(&half) {
        let (shared, own) = (hashed(&alike), hashed(prompt));
        let mixed: Vec<f32> = shared.iter().zip(&own).map(|(shared, own)| shared + 0.5 * own).collect();
        return normal(&mixed);
    }
    hashed(if prompt.starts_with(&alike) { &alike } else { prompt })
}

fn hashed(prompt: &[u32]) -> Vec<f32> {
    let unit = |i: usize| (hash((prompt, i)) % 2001) as f32 / 1000.0 - 1.0;
    normal(&(0..WIDTH).map(unit).collect::<Vec<f32>>())
}

fn normal(values: &[f32]) -> Vec<f32> {
    let norm = values.iter().map(|v| v * v).sum::<f32>().sqrt();
    values.iter().map(|v| v / norm).collect()
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::MIN, f32::max);
    let total = logits.iter().map(|l| (l - most).exp()).sum::<f32>().ln() + most;
    logits.iter().map(|l| l - total).collect()
}

/// A word that the bench answers to a prompt without any edit.
pub fn base_answer(prompt: &str) -> String {
    let bench = SmallBench::default();
    let passage = bench.passage(prompt, None).unwrap();
    let reading = bench.measure(&[passage], foundation().base.as_ref()).unwrap().remove(0);
    let leading = bench.leading(&reading).unwrap();
    let says = |word: &String| word_id(word) % VOCABULARY as u32 == leading;
    (0..1000).map(|i| format!("word{i}")).find(says).unwrap()
}

pub fn shapes() -> Vec<EditableMatrix> {
    let matrix = |name: &str, d_out, d_in| EditableMatrix { name: name.to_owned(), d_out, d_in };
    vec![matrix("head", VOCABULARY, WIDTH), matrix("other", 3, 5)]
}

pub fn foundation() -> Foundation {
    let base =
        shapes().into_iter().map(|s| (0..s.d_out * s.d_in).map(|i| (hash(i) % 200) as f32 / 1e3 - 0.1).collect());
    let mut base: Vec<Vec<f32>> = base.collect();
    base[1][0] = -0.0;
    let base = DenseMatrices::from_vecs(&shapes(), base, &Device::Cpu).unwrap();
    Foundation {
        model: Digest::of(b"small model"),
        editor: Digest::of(b"small editor"),
        composition: Composition::Sum,
        shapes: shapes(),
        base: Arc::new(base),
        device: Device::Cpu,
    }
}

impl Texts for SmallBench {
    fn method(&self) -> &str {
        "small"
    }

    fn context_length(&self) -> usize {
        40
    }

    fn passage(&self, prompt: &str, target: Option<&str>) -> Result<Passage, ModelError> {
        let mut ids: Vec<u32> = prompt.split_whitespace().map(word_id).collect();
        let start = ids.len();
        match target {
            Some(target) => ids.extend(target.split_whitespace().map(word_id)),
            None => return Ok(Passage::text(ids, start..start + 1)),
        }
        let end = ids.len();
        Ok(Passage::text(ids, start..end))
    }
}

impl Bench for SmallBench {
    type Text = Passage;
    type Factors = Vec<f32>;
    type Reading = Vec<f32>;

    fn foundation(&self) -> Foundation {
        foundation()
    }

    fn read(&self, passages: &[Passage]) -> Result<Vec<Passage>, String> {
        Ok(passages.to_vec())
    }

    fn capture(&self, texts: &[Passage]) -> Result<Vec<(f32, Vec<f32>)>, String> {
        if texts.iter().any(|text| faulty(text, "WAIT")) {
            self.gate.pass();
        }
        assert!(!texts.iter().any(|text| faulty(text, "PANIC-CAPTURE")), "capture was told to panic");
        if texts.iter().any(|text| faulty(text, "FAIL-CAPTURE")) {
            return Err("capture was told to fail".into());
        }
        self.passes.lock().unwrap().push(texts.len());
        let base = foundation().base;
        texts
            .iter()
            .map(|text| {
                let mut reading = self.measure(std::slice::from_ref(text), base.as_ref())?.remove(0);
                if faulty(text, "NAN-FACTOR") {
                    reading[3] = f32::NAN;
                }
                let loss = if faulty(text, "NAN-LOSS") { f32::NAN } else { 1.0 };
                Ok((loss, reading))
            })
            .collect()
    }

    fn check(&self, reading: &Vec<f32>) -> Result<(), String> {
        if reading.iter().all(|value| value.is_finite()) { Ok(()) } else { Err("a factor is not finite".into()) }
    }

    fn spectra(&self, reading: &Vec<f32>) -> Result<Vec<Spectrum>, String> {
        let spread: Vec<f64> = reading.iter().map(|p| f64::from(p.exp())).collect();
        Ok(vec![Spectrum::from_values(&spread), Spectrum::from_values(&[0.5])])
    }

    fn keys(&self, text: &Passage, _: &Vec<f32>) -> Result<Keys, String> {
        let key = embedding(text);
        Ok(vec![key.clone(), key[..5].to_vec()])
    }

    fn edit(&self, text: &Passage, reading: &Vec<f32>) -> Result<Delta, String> {
        assert!(!faulty(text, "PANIC-EDITOR"), "the editor was told to panic");
        let target = text.ids[text.target.start] as usize % VOCABULARY;
        let mut left: Vec<f32> = reading.iter().map(|p| -STEP * p.exp()).collect();
        left[target] += STEP;
        if faulty(text, "NAN-DELTA") {
            left[0] = f32::NAN;
        }
        if faulty(text, "HUGE-DELTA") {
            left.fill(1e9);
        }
        let tensor = |values: Vec<f32>| Tensor::from_vec(values.clone(), (1, values.len()), &Device::Cpu);
        let low_rank = |left, right| -> candle_core::Result<MatrixDelta> {
            Ok(MatrixDelta::LowRank { left: tensor(left)?, right: tensor(right)? })
        };
        let first = low_rank(left, embedding(text)).map_err(|e| e.to_string())?;
        let second = low_rank(vec![0.1; 3], embedding(text)[..5].to_vec()).map_err(|e| e.to_string())?;
        Ok(Delta(vec![first, second]))
    }

    fn measure(&self, texts: &[Passage], weights: &dyn Projection) -> Result<Vec<Vec<f32>>, String> {
        assert!(
            !texts.iter().any(|text| faulty(text, "PANIC-MEASURE")) || texts.len() < 2,
            "measure was told to panic"
        );
        if texts.iter().any(|text| faulty(text, "FAIL-MEASURE")) {
            return Err("measure was told to fail".into());
        }
        let row = |text: &Passage| -> candle_core::Result<Vec<f32>> {
            let x = Tensor::from_vec(embedding(text), (1, WIDTH), &Device::Cpu)?;
            Ok(log_softmax(&weights.project(0, &x)?.flatten_all()?.to_vec1()?))
        };
        texts.iter().map(|text| row(text).map_err(|error| error.to_string())).collect()
    }

    fn figures(&self, text: &Passage, reading: &Vec<f32>) -> Result<TargetFigures, String> {
        let target = text.ids[text.target.start] as usize % VOCABULARY;
        let greedy = reading.iter().all(|p| *p <= reading[target]);
        Ok(TargetFigures { probability: reading[target].exp(), greedy })
    }

    fn leading(&self, reading: &Vec<f32>) -> Result<u32, String> {
        Ok((0..reading.len()).max_by(|a, b| reading[*a].total_cmp(&reading[*b])).unwrap_or(0) as u32)
    }

    fn first_token(&self, passage: &Passage) -> u32 {
        passage.ids[passage.target.start] % VOCABULARY as u32
    }

    fn divergence(&self, before: &Vec<f32>, after: &Vec<f32>) -> Result<(f32, bool), String> {
        let kl = before.iter().zip(after).map(|(b, a)| b.exp() * (b - a)).sum();
        let best = |reading: &[f32]| (0..reading.len()).max_by(|a, b| reading[*a].total_cmp(&reading[*b]));
        Ok((kl, best(before) == best(after)))
    }
}

/// What the next commit does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    None,
    /// Fails, and nothing is written.
    Refuse,
    /// Writes, and then says that it failed.
    LoseAnswer,
}

/// A real log with a fault before or after a commit, or a version whose row lies.
pub struct FaultyLog {
    pub log: SqliteLog,
    fault: AtomicU8,
    /// The digest of this version is reported wrong; 0 for none.
    pub lying: AtomicU64,
    /// The version whose set's digest it gives wrong; 0 for none.
    pub lying_of_set: AtomicU64,
    /// Which read of a contribution from now on fails, counted from 1; 0 for none.
    pub failing_read: AtomicU64,
}

impl FaultyLog {
    pub fn new(log: SqliteLog) -> Self {
        let fault = AtomicU8::new(Fault::None as u8);
        Self { log, fault, lying: AtomicU64::new(0), lying_of_set: AtomicU64::new(0), failing_read: AtomicU64::new(0) }
    }

    fn lie(&self, mut row: VersionRow) -> VersionRow {
        let lies_by = |lying: &AtomicU64| row.number > 0 && row.number == lying.load(Ordering::SeqCst);
        let (digest, set_digest) = (lies_by(&self.lying), lies_by(&self.lying_of_set));
        row.digest = if digest { Digest::of(b"a lie") } else { row.digest };
        row.set_digest = if set_digest { Digest::of(b"a lie") } else { row.set_digest };
        row
    }

    pub fn at_next_commit(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::SeqCst);
    }
}

#[async_trait]
impl EditLog for FaultyLog {
    async fn pin(&self, identity: &Identity) -> Result<(), LogError> {
        self.log.pin(identity).await
    }

    async fn commit(&self, version: NewVersion) -> Result<VersionRow, LogError> {
        let fault = self.fault.swap(Fault::None as u8, Ordering::SeqCst);
        if fault == Fault::Refuse as u8 {
            return Err(LogError::Full);
        }
        let row = self.log.commit(version).await?;
        if fault == Fault::LoseAnswer as u8 { Err(LogError::Storage("the answer was lost".into())) } else { Ok(row) }
    }

    async fn record(&self, edits: Vec<NewEdit>) -> Result<(), LogError> {
        self.log.record(edits).await
    }

    async fn head(&self) -> Result<VersionRow, LogError> {
        self.log.head().await
    }

    async fn version(&self, number: u64) -> Result<Option<VersionRow>, LogError> {
        Ok(self.log.version(number).await?.map(|row| self.lie(row)))
    }

    async fn versions(&self, before: Option<u64>, limit: u32) -> Result<Vec<VersionRow>, LogError> {
        Ok(self.log.versions(before, limit).await?.into_iter().map(|row| self.lie(row)).collect())
    }

    async fn changes(&self, after: u64, to: u64) -> Result<Vec<Change>, LogError> {
        self.log.changes(after, to).await
    }

    async fn active_set(&self, number: u64) -> Result<BTreeSet<Uuid>, LogError> {
        self.log.active_set(number).await
    }

    async fn edit(&self, id: Uuid) -> Result<Option<EditRow>, LogError> {
        self.log.edit(id).await
    }

    async fn edits(&self, query: &EditQuery) -> Result<Page<EditRow>, LogError> {
        self.log.edits(query).await
    }

    async fn contribution(&self, id: Uuid) -> Result<Vec<u8>, LogError> {
        let left = self.failing_read.load(Ordering::SeqCst);
        self.failing_read.store(left.saturating_sub(1), Ordering::SeqCst);
        if left == 1 { Err(LogError::Storage("the read failed".into())) } else { self.log.contribution(id).await }
    }

    async fn idempotent(&self, key: &str) -> Result<Option<IdempotencyRow>, LogError> {
        self.log.idempotent(key).await
    }

    async fn check_chain(&self) -> Result<u64, LogError> {
        self.log.check_chain().await
    }

    async fn ping(&self) -> Result<(), LogError> {
        self.log.ping().await
    }

    async fn close(&self) {
        EditLog::close(&self.log).await;
    }
}
