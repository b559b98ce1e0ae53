//! A network of a few lines: its tokens are bytes, and its logits are a hash of all it has read and of the version.

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;

use crate::{
    generation::{
        Decoder, Detokenizer, Feed, GenerateError, GenerateRequest, Message, Text,
        sampler::{Sampler, SamplerSettings},
    },
    model::{Passage, measure::TargetScore},
};

pub const CONTEXT: usize = 512;
/// Leasing this version waits until `Fake::rebuild` is notified.
pub const SLOW_VERSION: u64 = 99;
const END: u32 = 256;

/// One sequence's part of a pass of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which sequence, counted from 0 in the order they were started; none for scoring.
    pub sequence: Option<usize>,
    pub version: u64,
    pub tokens: usize,
    /// Whether it fed a token that the sequence itself had made.
    pub decoding: bool,
}

#[derive(Default)]
pub struct Fake {
    pub newest: AtomicU64,
    /// Versions leased at the moment, each as often as it is.
    pub leases: Arc<AtomicUsize>,
    pub rebuild: tokio::sync::Notify,
    pub gate: Gate,
    without_chat: bool,
    sequences: AtomicUsize,
    passes: Mutex<Vec<Vec<Call>>>,
}

impl Fake {
    pub fn without_chat() -> Self {
        Self { without_chat: true, ..Self::default() }
    }

    pub fn calls(&self) -> Vec<Call> {
        self.passes.lock().unwrap().concat()
    }

    /// Passes in order, each with its sequences; scoring is a pass of its own.
    pub fn passes(&self) -> Vec<Vec<Call>> {
        self.passes.lock().unwrap().clone()
    }

    fn new_pass(&self) {
        self.passes.lock().unwrap().push(Vec::new());
    }

    fn called(&self, call: Call) {
        self.gate.pass();
        self.passes.lock().unwrap().last_mut().unwrap().push(call);
    }

    fn feed(&self, feed: &mut Feed<'_, Self>) -> Option<Vec<f32>> {
        let Feed { state, ids, weights, logits: wanted } = feed;
        // A prompt of a test ends with ':'; what comes after it, the sequence made.
        let decoding = state.ids.last() == Some(&u32::from(b':')) || !state.prompt;
        state.prompt = !decoding;
        let (sequence, version) = (Some(state.number), weights.version);
        self.called(Call { sequence, version, tokens: ids.len(), decoding });
        state.ids.extend(*ids);
        assert!(!contains(&state.ids, "PANIC") || !decoding, "told to panic");
        let nan = contains(&state.ids, "NAN");
        wanted.then(|| if nan { vec![f32::NAN; END as usize + 1] } else { logits(&state.ids, weights.version) })
    }
}

/// Lets calls of the network through, or holds them.
#[derive(Default)]
pub struct Gate {
    /// How many may still pass; none for any number.
    allowed: Mutex<Option<usize>>,
    changed: Condvar,
}

impl Gate {
    pub fn hold(&self) {
        self.set(Some(0));
    }

    pub fn open(&self) {
        self.set(None);
    }

    pub fn allow(&self, calls: usize) {
        self.set(Some(calls));
    }

    fn set(&self, allowed: Option<usize>) {
        *self.allowed.lock().unwrap() = allowed;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let allowed = self.allowed.lock().unwrap();
        let (mut allowed, timeout) =
            self.changed.wait_timeout_while(allowed, Duration::from_secs(20), |allowed| *allowed == Some(0)).unwrap();
        assert!(!timeout.timed_out(), "a test left the gate closed");
        *allowed = allowed.map(|n| n - 1);
    }
}

pub struct FakeLease {
    version: u64,
    alive: Arc<AtomicUsize>,
}

impl Drop for FakeLease {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, SeqCst);
    }
}

#[derive(Clone)]
pub struct FakeState {
    number: usize,
    ids: Vec<u32>,
    prompt: bool,
}

#[async_trait]
impl Decoder for Fake {
    type State = FakeState;
    type Lease = FakeLease;

    async fn lease(&self, number: Option<u64>) -> Result<FakeLease, GenerateError> {
        let newest = self.newest.load(SeqCst);
        let version = number.unwrap_or(newest);
        if version == SLOW_VERSION {
            self.rebuild.notified().await;
        } else if version > newest {
            return Err(GenerateError::UnknownVersion { number: version, newest });
        }
        self.leases.fetch_add(1, SeqCst);
        Ok(FakeLease { version, alive: Arc::clone(&self.leases) })
    }

    fn version(&self, lease: &FakeLease) -> u64 {
        lease.version
    }

    fn start(&self) -> FakeState {
        FakeState { number: self.sequences.fetch_add(1, SeqCst), ids: Vec::new(), prompt: true }
    }

    fn fork(&self, state: &FakeState) -> Result<FakeState, GenerateError> {
        Ok(FakeState { number: self.sequences.fetch_add(1, SeqCst), ..state.clone() })
    }

    fn read(&self, state: &FakeState) -> usize {
        state.ids.len()
    }

    fn rewind(&self, state: &mut FakeState, read: usize) -> Result<(), GenerateError> {
        state.ids.truncate(read);
        Ok(())
    }

    fn forward(&self, feeds: &mut [Feed<'_, Self>]) -> Result<Vec<Option<Vec<f32>>>, GenerateError> {
        self.new_pass();
        Ok(feeds.iter_mut().map(|feed| self.feed(feed)).collect())
    }

    fn score(&self, passages: &[Passage], weights: &FakeLease) -> Result<Vec<TargetScore>, GenerateError> {
        let tokens = passages.iter().map(|passage| passage.ids.len()).sum();
        self.new_pass();
        self.called(Call { sequence: None, version: weights.version, tokens, decoding: false });
        assert!(!passages.iter().any(|passage| contains(&passage.ids, "PANIC")), "told to panic");
        let score = |passage: &Passage| TargetScore {
            tokens: passage.target.len(),
            logprob: -(passage.target.len() as f32) - weights.version as f32 / 10.0,
            greedy: passage.target.len() == 2,
        };
        Ok(passages.iter().map(score).collect())
    }
}

impl Text for Fake {
    fn context_length(&self) -> usize {
        CONTEXT
    }

    fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, GenerateError> {
        Ok(bytes(text))
    }

    fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, GenerateError> {
        if self.without_chat {
            return Err(GenerateError::invalid("messages", "the model has no chat template"));
        }
        Ok(messages.iter().flat_map(|message| bytes(&format!("{}={}:", message.role, message.content))).collect())
    }

    fn encode_passage(&self, prompt: &str, continuation: &str) -> Result<Passage, GenerateError> {
        let (prompt, continuation) = (bytes(prompt), bytes(continuation));
        let target = prompt.len()..prompt.len() + continuation.len();
        Ok(Passage::text([prompt, continuation].concat(), target))
    }

    fn is_end(&self, id: u32) -> bool {
        id == END
    }

    fn vocabulary(&self) -> usize {
        END as usize + 1
    }

    fn token_bytes(&self, id: u32) -> Vec<u8> {
        format!("<{id}>").into_bytes()
    }

    fn detokenizer(&self) -> Box<dyn Detokenizer + '_> {
        Box::new(Bytes(Vec::new()))
    }
}

/// Bytes that do not yet make whole characters.
struct Bytes(Vec<u8>);

impl Detokenizer for Bytes {
    fn push(&mut self, id: u32) -> Result<Option<String>, GenerateError> {
        self.0.push(id as u8);
        let whole = String::from_utf8(self.0.clone()).ok();
        if whole.is_some() {
            self.0.clear();
        }
        Ok(whole)
    }
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn contains(ids: &[u32], text: &str) -> bool {
    let text = bytes(text);
    ids.windows(text.len()).any(|window| window == text)
}

/// Small letters, spaces and "é" (two bytes); texts with a '.' in the prompt may end.
fn logits(ids: &[u32], version: u64) -> Vec<f32> {
    let hash = |seed: u64| {
        let mixed = ids.iter().fold(seed, |hash, id| (hash ^ u64::from(*id)).wrapping_mul(0x0100_0000_01b3));
        (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40
    };
    let mut logits = vec![-30.0; END as usize + 1];
    if ids.last() == Some(&0xC3) {
        logits[0xA9] = 10.0;
        return logits;
    }
    for id in (u32::from(b'a')..=u32::from(b'z')).chain([u32::from(b' '), 0xC3]) {
        logits[id as usize] = hash(0xcbf2_9ce4_8422_2325 + u64::from(id) * 7919 + version) as f32 / (1 << 22) as f32;
    }
    if contains(ids, ".") && hash(version) % 6 == 0 {
        logits[END as usize] = 20.0;
    }
    logits
}

/// What `request`'s prompt is continued with by `version`, computed token by token without any of the engine: the
/// bytes that form whole characters, and the tokens.
pub fn alone(request: &GenerateRequest, version: u64) -> (String, Vec<u32>) {
    nth_alone(request, version, 0)
}

/// The same for one of several texts.
pub fn nth_alone(request: &GenerateRequest, version: u64, choice: usize) -> (String, Vec<u32>) {
    let mut ids = bytes(request.prompt.as_deref().unwrap());
    let prompt = ids.len();
    let mut sampler = Sampler::new(&SamplerSettings::new(request).unwrap(), &ids, choice);
    while ids.len() < prompt + request.max_tokens.unwrap_or(64) {
        match sampler.sample(&logits(&ids, version)).unwrap() {
            END => break,
            id => ids.push(id),
        }
    }
    let made = ids.split_off(prompt);
    let text: Vec<u8> = made.iter().map(|id| *id as u8).collect();
    (text.utf8_chunks().map(|chunk| chunk.valid()).collect(), made)
}

/// The log-softmax of the logits after `ids`.
pub fn log_prob(ids: &[u32], version: u64, id: u32) -> f32 {
    let logits = logits(ids, version);
    logits[id as usize] - logits.iter().map(|logit| logit.exp()).sum::<f32>().ln()
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "still not so after 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
