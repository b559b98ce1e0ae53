//! The engine over a real network (a tiny random Llama) and real versions: what it generates and scores is what the
//! network says when it is asked token by token.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test panics when something is wrong, and says what it skips"
)]

mod common;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use amend::{
    digest::Digest,
    generation::{GenerateConfig, GenerateError, GenerateHandle, GenerateRequest, ModelDecoder, ScoreRequest},
    model::{DenseMatrices, LoadOptions, Model, Projection},
    telemetry::Metrics,
    weights::{Lease, Published, Version, VersionSource, WeightsError},
};
use async_trait::async_trait;
use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

const HIDDEN: usize = 32;
const INTERMEDIATE: usize = 48;
const VOCABULARY: usize = 95;
const BLOCKS: usize = 3;

fn random(rng: &mut ChaCha8Rng, shape: &[usize], scale: f32) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-scale..scale)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn tiny_model(folder: &std::path::Path) -> Model {
    let config = json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": true,
    });
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut tensors = HashMap::new();
    let mut add = |name: String, shape: &[usize], scale| tensors.insert(name, random(&mut rng, shape, scale));
    add("model.embed_tokens.weight".into(), &[VOCABULARY, HIDDEN], 1.0);
    add("model.norm.weight".into(), &[HIDDEN], 1.0);
    for block in 0..BLOCKS {
        let name = |part: &str| format!("model.layers.{block}.{part}.weight");
        add(name("input_layernorm"), &[HIDDEN], 1.0);
        add(name("post_attention_layernorm"), &[HIDDEN], 1.0);
        add(name("self_attn.q_proj"), &[HIDDEN, HIDDEN], 0.5);
        add(name("self_attn.k_proj"), &[HIDDEN / 2, HIDDEN], 0.5);
        add(name("self_attn.v_proj"), &[HIDDEN / 2, HIDDEN], 0.5);
        add(name("self_attn.o_proj"), &[HIDDEN, HIDDEN], 0.5);
        add(name("mlp.gate_proj"), &[INTERMEDIATE, HIDDEN], 0.5);
        add(name("mlp.up_proj"), &[INTERMEDIATE, HIDDEN], 0.5);
        add(name("mlp.down_proj"), &[HIDDEN, INTERMEDIATE], 0.5);
    }
    common::write_folder(folder, &config, &tensors);
    Model::load(folder, &LoadOptions { tail_blocks: 1, ..LoadOptions::default() }).unwrap()
}

/// Versions that are all in memory.
struct Resident(Published);

#[async_trait]
impl VersionSource for Resident {
    async fn lease(&self, number: Option<u64>) -> Result<Lease, WeightsError> {
        let newest = self.0.current();
        let Some(number) = number else { return Ok(newest) };
        self.0.resident(number).ok_or(WeightsError::UnknownVersion { number, newest: newest.number })
    }
}

/// The base's weights times this.
fn scaled(model: &Model, factor: f32) -> Arc<DenseMatrices> {
    let values = model.base().to_vecs().unwrap();
    let values = values.into_iter().map(|matrix| matrix.into_iter().map(|value| value * factor).collect()).collect();
    Arc::new(DenseMatrices::from_vecs(model.editable(), values, model.device()).unwrap())
}

fn version(number: u64, matrices: &Arc<DenseMatrices>, metrics: &Metrics) -> Arc<Version> {
    let digest = Digest::of(&number.to_le_bytes());
    Arc::new(Version::new(number, digest, digest, Arc::new(BTreeSet::new()), Arc::clone(matrices), metrics))
}

/// The tiny model as version 0, and as version 1 with other weights in its tail.
struct Bench {
    model: Arc<Model>,
    edited: Arc<DenseMatrices>,
    handle: GenerateHandle,
    versions: Arc<Resident>,
    metrics: Metrics,
}

impl Bench {
    fn new(config: GenerateConfig) -> Self {
        Self::keeping(config, 0)
    }

    /// Keeps what was read of so many tokens.
    fn keeping(config: GenerateConfig, prefix_tokens: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::of(tiny_model(folder.path()), config, prefix_tokens)
    }

    /// A tiny model of a family.
    fn of_family(family: &str, config: GenerateConfig) -> Self {
        let (settings, tensors) = common::families::tiny(family, 5);
        Self::of(common::load_folder(&settings, &tensors, 1), config, 1000)
    }

    fn of(model: Model, config: GenerateConfig, prefix_tokens: usize) -> Self {
        let (model, metrics) = (Arc::new(model), Metrics::new());
        let edited = scaled(&model, 1.7);
        let published = Published::new(version(0, model.base(), &metrics), 16, metrics.clone());
        published.publish(version(1, &edited, &metrics));
        let versions = Arc::new(Resident(published));
        let decoder = ModelDecoder::with_prefix_cache(Arc::clone(&model), Arc::clone(&versions) as _, prefix_tokens);
        let handle = GenerateHandle::start(Arc::new(decoder), config, metrics.clone()).unwrap();
        Self { model, edited, handle, versions, metrics }
    }

    /// Makes a version whose weights are the base's times this.
    fn publish(&self, number: u64, factor: f32) {
        self.versions.0.publish(version(number, &scaled(&self.model, factor), &self.metrics));
    }

    fn weights(&self, version: u64) -> &dyn Projection {
        if version == 0 { self.model.base().as_ref() } else { self.edited.as_ref() }
    }

    /// The greedy continuation: the whole prompt in one pass, then token by token.
    fn greedy(&self, prompt: &str, tokens: usize, version: u64) -> String {
        let mut sequence = self.model.start();
        let mut next = self.model.tokenizer().encode_prompt(prompt).unwrap();
        let mut made = Vec::new();
        for _ in 0..tokens {
            let logits = self.model.forward(&mut sequence, &next, self.weights(version)).unwrap();
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32;
            if self.model.tokenizer().is_end(best) {
                break;
            }
            next = vec![best];
            made.push(best);
        }
        self.model.tokenizer().decode(&made).unwrap()
    }

    /// Log-probability of a continuation, token by token, and whether each was the best.
    fn score(&self, prompt: &str, continuation: &str, version: u64) -> (f32, usize, bool) {
        let passage = self.model.tokenizer().encode_passage(prompt, continuation).unwrap();
        let (start, mut sequence) = (passage.target.start, self.model.start());
        let mut next = passage.ids[..start].to_vec();
        let (mut logprob, mut greedy) = (0.0, true);
        for id in passage.target_ids() {
            let logits = self.model.forward(&mut sequence, &next, self.weights(version)).unwrap();
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let log_total = largest + logits.iter().map(|logit| (logit - largest).exp()).sum::<f32>().ln();
            logprob += logits[*id as usize] - log_total;
            greedy &= logits[*id as usize] >= largest;
            next = vec![*id];
        }
        (logprob, passage.target.len(), greedy)
    }
}

fn request(prompt: &str, max_tokens: usize, version: Option<u64>) -> GenerateRequest {
    GenerateRequest { prompt: Some(prompt.into()), max_tokens: Some(max_tokens), version, ..GenerateRequest::default() }
}

#[tokio::test]
async fn generates_what_the_network_says_side_by_side_in_chunks_on_two_versions() {
    let bench = Bench::new(GenerateConfig { max_sequences: 3, prefill_chunk: 7, ..GenerateConfig::default() });
    let prompts = ["a", "The mother tongue of", &"a long prompt ".repeat(8), "x = y", "seven c", "exactly 14 byt"];
    let asked = prompts.iter().flat_map(|prompt| [(*prompt, Some(0)), (*prompt, None)]);
    let answers = asked.map(|(prompt, version)| {
        let answer = bench.handle.generate(request(prompt, 40, version));
        async move { (prompt, version, answer.await.unwrap()) }
    });
    let mut differ = 0;
    for (prompt, version, answer) in futures::future::join_all(answers).await {
        assert_eq!(answer.version, version.unwrap_or(1));
        assert_eq!(answer.text, bench.greedy(prompt, 40, answer.version), "{prompt:?} on {}", answer.version);
        differ += usize::from(answer.text != bench.greedy(prompt, 40, 1 - answer.version));
    }
    assert!(differ >= 8, "the two versions say different things");
    assert_eq!(bench.metrics.version_leases.get(), 0);

    let both = GenerateRequest { compare_to: Some(0), ..request("a", 30, Some(1)) };
    let answer = bench.handle.generate(both).await.unwrap();
    assert_eq!(answer.text, bench.greedy("a", 30, 1));
    assert_eq!(answer.compared.unwrap().text, bench.greedy("a", 30, 0));
    assert!(bench.handle.drain(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn scores_what_the_network_says_however_passages_are_grouped_and_cut() {
    for prefill_chunk in [16, 128, 512] {
        let bench = Bench::new(GenerateConfig { prefill_chunk, ..GenerateConfig::default() });
        let likely = bench.greedy("Scores", 6, 0);
        let long = "long text ".repeat(30);
        let continuations = ["x", " spaced", "two words", &likely, &long, "another of some length", &long[..128]];
        for version in [0, 1] {
            let request = ScoreRequest {
                prompt: "Scores".into(),
                continuations: continuations.iter().map(ToString::to_string).collect(),
                version: Some(version),
                min_version: None,
            };
            let response = bench.handle.score(request).await.unwrap();
            assert_eq!((response.version, response.scores.len()), (version, continuations.len()));
            for score in response.scores {
                let (logprob, tokens, greedy) = bench.score("Scores", &score.continuation, version);
                assert_eq!((score.tokens, score.greedy), (tokens, greedy), "{score:?}");
                assert!((score.logprob - logprob).abs() <= 1e-4 * logprob.abs().max(1.0), "{logprob} {score:?}");
            }
        }
    }
}

#[tokio::test]
async fn refuses_what_the_model_can_not_do() {
    let bench = Bench::new(GenerateConfig::default());
    let chat = GenerateRequest {
        messages: Some(vec![amend::generation::Message { role: "user".into(), content: "Hi".into() }]),
        ..GenerateRequest::default()
    };
    let error = bench.handle.generate(chat).await.unwrap_err();
    assert_eq!(error.to_string(), "messages: the model has no chat template; give a prompt");
    let error = bench.handle.generate(request("x", 1, Some(2))).await.unwrap_err();
    assert_eq!(error, GenerateError::UnknownVersion { number: 2, newest: 1 });
    let error = bench.handle.generate(request(&"x".repeat(500), 13, None)).await.unwrap_err();
    assert_eq!(error, GenerateError::ContextExceeded { prompt_tokens: 500, max_tokens: 13, limit: 512 });
    let error = bench.handle.generate(request(&"x".repeat(3 << 20), 1, None)).await.unwrap_err();
    assert!(error.to_string().starts_with("prompt: too long: 3145728 bytes"), "{error}");
}

/// Requests of mixed lengths, greedy and sampled, on versions 0 and 1 and on the newest.
fn mixed(number: usize) -> GenerateRequest {
    let prompt = ["The mother tongue of", "x = y; ", "a long prompt "][number % 3].repeat(1 + number * number % 8);
    let sampled = !number.is_multiple_of(4);
    GenerateRequest {
        temperature: sampled.then_some(0.9),
        top_p: number.is_multiple_of(3).then_some(0.9),
        top_k: number.is_multiple_of(5).then_some(20),
        min_p: number.is_multiple_of(7).then_some(0.05),
        frequency_penalty: number.is_multiple_of(6).then_some(0.4),
        n: number.is_multiple_of(11).then_some(3),
        seed: Some(number as u64),
        ..request(&prompt, 5 + number * 7 % 60, (number % 5 < 4).then_some((number % 2) as u64))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_at_once_say_what_each_says_alone_while_versions_are_published() {
    let config = GenerateConfig { max_sequences: 14, prefill_chunk: 19, kv_tokens: 2500, ..GenerateConfig::default() };
    let crowded = Bench::keeping(config, 300);
    let alone = Bench::new(GenerateConfig { max_sequences: 3, ..GenerateConfig::default() });
    let answers = (0..64).map(|number| {
        let handle = crowded.handle.clone();
        tokio::spawn(async move { handle.generate(mixed(number)).await.unwrap() })
    });
    let answers: Vec<_> = answers.collect();
    for number in 2..9 {
        tokio::time::sleep(Duration::from_millis(15)).await;
        crowded.publish(number, 1.0 + number as f32 / 20.0);
    }
    let mut versions = BTreeSet::new();
    for (number, answer) in answers.into_iter().enumerate() {
        let answer = answer.await.unwrap();
        versions.insert(answer.version);
        let newest = alone.versions.0.current().number;
        (newest + 1..=answer.version).for_each(|number| alone.publish(number, 1.0 + number as f32 / 20.0));
        let pinned = GenerateRequest { version: Some(answer.version), ..mixed(number) };
        let expected = alone.handle.generate(pinned).await.unwrap();
        assert_eq!(answer.text, expected.text, "request {number} on {}", answer.version);
        assert_eq!(answer.choices, expected.choices, "request {number} on {}", answer.version);
    }
    assert!(versions.len() >= 3, "{versions:?}");
    assert_eq!(crowded.metrics.version_leases.get(), 0);
    let cached = crowded.metrics.tokens.with_label_values(&["cached"]).get();
    assert!(cached > 100, "{cached} tokens were not read again");
}

#[tokio::test]
async fn a_version_whose_weights_are_no_numbers_spoils_no_other() {
    let bench = Bench::keeping(GenerateConfig { max_sequences: 4, ..GenerateConfig::default() }, 4000);
    bench.publish(2, f32::NAN);
    let prompt = "the same beginning of all of them, ".repeat(4);
    let ask = |version| bench.handle.generate(request(&prompt, 12, Some(version)));
    for _ in 0..2 {
        let (spoilt, whole, base) = tokio::join!(ask(2), ask(1), ask(0));
        assert_eq!(spoilt.unwrap_err().to_string(), "internal error: the network gave logits that are not numbers");
        assert_eq!(whole.unwrap().text, bench.greedy(&prompt, 12, 1));
        assert_eq!(base.unwrap().text, bench.greedy(&prompt, 12, 0));
    }
    assert!(bench.metrics.tokens.with_label_values(&["cached"]).get() > 100, "beginnings were kept");
}

#[tokio::test]
async fn an_encoder_reads_its_prompt_as_a_whole_beside_others() {
    for family in common::families::ENCODER_DECODERS {
        let config = GenerateConfig { prefill_chunk: 5, max_sequences: 4, ..GenerateConfig::default() };
        let bench = Bench::of_family(family, config);
        let (long, short) = ("a source of more tokens than one chunk", "abc");
        let ask = |prompt, version| bench.handle.generate(request(prompt, 9, Some(version)));
        for _ in 0..2 {
            let (base, edited, other) = tokio::join!(ask(long, 0), ask(long, 1), ask(short, 1));
            assert_eq!(base.unwrap().text, bench.greedy(long, 9, 0), "{family}");
            assert_eq!(edited.unwrap().text, bench.greedy(long, 9, 1), "{family}");
            assert_eq!(other.unwrap().text, bench.greedy(short, 9, 1), "{family}");
        }
        let ids = bench.model.tokenizer().encode_prompt(long).unwrap();
        let own = ids[..ids.len() - bench.model.tokenizer().framing().opening()].to_vec();
        let given = GenerateRequest { prompt: None, prompt_ids: Some(own), ..request("", 9, Some(1)) };
        assert_eq!(bench.handle.generate(given).await.unwrap().text, bench.greedy(long, 9, 1), "{family}");
    }
}
