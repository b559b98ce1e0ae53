//! The handle by which others ask the engine.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use tokio::{sync::Semaphore, time::timeout};

use super::{
    budget::{Budget, Cost},
    config::GenerateConfig,
    decoder::{Decoder, Text},
    dispatch::{Dispatcher, Life, REBUILDS},
    engine,
    error::GenerateError,
    job::{Event, EventsOut, Job, Outcome, Task},
    plan::{Plan, passages, text_of},
    queue::Queue,
    request::{
        ClassifyRequest, ClassifyResponse, GenerateRequest, GenerateResponse, LabelProbability, Score, ScoreRequest,
        ScoreResponse,
    },
    stream::{GenerateStream, Output, expect_event, started, unexpected},
};
use crate::{
    model::measure::TargetScore,
    telemetry::Metrics,
    threads::{self, Urgency},
};

/// How long a stopped engine may take to finish the turn it is in.
const LAST_TURN: Duration = Duration::from_secs(10);

/// Asks the engine thread; cheap to clone. When the last one is dropped, what was admitted is still done and then the
/// engine ends.
#[derive(Clone)]
pub struct GenerateHandle(Arc<Inner>);

struct Inner {
    text: Arc<dyn Text>,
    queue: Arc<Queue>,
    config: GenerateConfig,
    life: Life,
    metrics: Metrics,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl GenerateHandle {
    /// Starts the engine thread and, on the current tokio runtime, the task that feeds it.
    /// [`GenerateError::Invalid`] if a limit is out of range.
    pub fn start<D: Decoder>(decoder: Arc<D>, config: GenerateConfig, metrics: Metrics) -> Result<Self, GenerateError> {
        config.check()?;
        let (engine, incoming) = mpsc::channel();
        let life = Life::default();
        let dispatcher = Dispatcher {
            decoder: Arc::clone(&decoder),
            queue: Arc::new(Queue::new(config.queue_capacity, config.max_sequences)),
            budget: Budget::new(Cost { sequences: config.max_sequences, tokens: config.kv_tokens }),
            rebuilds: Semaphore::new(REBUILDS),
            engine,
            life: life.clone(),
            metrics: metrics.clone(),
        };
        let text: Arc<dyn Text> = Arc::clone(&decoder) as _;
        let inner =
            Inner { text, queue: Arc::clone(&dispatcher.queue), config, life: life.clone(), metrics: metrics.clone() };
        let chunk = inner.config.prefill_chunk;
        let engine = move || {
            let _ended = life.ended.clone().drop_guard();
            engine::run(decoder.as_ref(), &incoming, chunk, &life, &metrics);
        };
        let failed = |error| GenerateError::Internal(format!("the engine's threads can not be started: {error}"));
        let pool = threads::pool("amend-tokens", None, Urgency::Prompt).map_err(failed)?;
        thread::Builder::new().name("amend-engine".into()).spawn(move || pool.install(engine)).map_err(failed)?;
        tokio::spawn(Arc::new(dispatcher).run());
        Ok(Self(Arc::new(inner)))
    }

    /// Generates a text, and with `compare_to` the same on a second version beside it. Dropping the future cancels.
    pub async fn generate(&self, request: GenerateRequest) -> Result<GenerateResponse, GenerateError> {
        let mut outcome = Outcome::new(&self.0.metrics);
        let answer = self.answer(request).await;
        outcome.settle(&answer);
        answer
    }

    /// Starts a text and returns as soon as its version is known. Dropping the stream cancels.
    pub async fn stream(&self, request: GenerateRequest) -> Result<GenerateStream, GenerateError> {
        let mut outcome = Outcome::new(&self.0.metrics);
        match self.open(request).await {
            Ok(output) => Ok(GenerateStream::new(output, outcome)),
            Err(error) => {
                outcome.settle::<()>(&Err(error.clone()));
                Err(error)
            }
        }
    }

    /// Log-probabilities of continuations. Dropping the future cancels.
    pub async fn score(&self, request: ScoreRequest) -> Result<ScoreResponse, GenerateError> {
        let mut outcome = Outcome::new(&self.0.metrics);
        let scores = self.scores(request).await;
        outcome.settle(&scores);
        scores
    }

    /// How probable each label of a text is. Dropping the future cancels.
    pub async fn classify(&self, request: ClassifyRequest) -> Result<ClassifyResponse, GenerateError> {
        let mut outcome = Outcome::new(&self.0.metrics);
        let labels = self.labels(request).await;
        outcome.settle(&labels);
        labels
    }

    /// Admits nothing more, refuses those who wait, lets those who run finish within `limit`, then ends them with
    /// [`GenerateError::ShuttingDown`]. Whether all could finish.
    pub async fn drain(&self, limit: Duration) -> bool {
        let life = &self.0.life;
        self.0.queue.close();
        life.draining.cancel();
        if timeout(limit, life.ended.cancelled()).await.is_ok() {
            return true;
        }
        life.stopped.cancel();
        if timeout(LAST_TURN, life.ended.cancelled()).await.is_err() {
            tracing::warn!("the engine is still in its last turn after {} s", LAST_TURN.as_secs());
        }
        false
    }

    async fn answer(&self, request: GenerateRequest) -> Result<GenerateResponse, GenerateError> {
        let (version, compare_to) = (request.version, request.compare_to);
        let plan = Arc::new(self.plan(request).await?);
        let (n, with_logprobs) = (plan.n, plan.logprobs.is_some());
        let versions = std::iter::once(version).chain(compare_to.map(Some));
        let outputs = self.admit(versions.map(|version| (Task::Generate(Arc::clone(&plan)), version)))?;
        let answers = outputs
            .into_iter()
            .map(|events| async move { Output::open(events).await?.collect(n, with_logprobs).await });
        let mut answers = futures::future::try_join_all(answers).await?.into_iter();
        let first = answers.next().ok_or_else(|| GenerateError::Internal("no sequence was started".into()))?;
        Ok(GenerateResponse { compared: answers.next().map(Box::new), ..first })
    }

    async fn open(&self, request: GenerateRequest) -> Result<Output, GenerateError> {
        if request.compare_to.is_some() {
            return Err(GenerateError::invalid("compare_to", "can not be streamed"));
        }
        let version = request.version;
        let task = Task::Generate(Arc::new(self.plan(request).await?));
        Output::open(self.admit_one(task, version)?).await
    }

    async fn scores(&self, request: ScoreRequest) -> Result<ScoreResponse, GenerateError> {
        let inner = Arc::clone(&self.0);
        let (request, passages) = off_the_runtime(move || {
            let passages = passages(&request, inner.text.as_ref(), &inner.config)?;
            Ok((request, passages))
        })
        .await?;
        let mut events = self.admit_one(Task::Score(passages), request.version)?;
        let version = started(&mut events).await?;
        let scores = match expect_event(events.recv().await)? {
            Event::Scored(scores) => scores,
            other => return Err(unexpected(&other)),
        };
        let named = |(continuation, score): (String, TargetScore)| {
            let TargetScore { logprob, tokens, greedy } = score;
            Score { continuation, logprob, tokens, greedy }
        };
        Ok(ScoreResponse { version, scores: request.continuations.into_iter().zip(scores).map(named).collect() })
    }

    async fn labels(&self, request: ClassifyRequest) -> Result<ClassifyResponse, GenerateError> {
        let (inner, version) = (Arc::clone(&self.0), request.version);
        let passage = off_the_runtime(move || text_of(&request, inner.text.as_ref(), &inner.config)).await?;
        let mut events = self.admit_one(Task::Classify(passage), version)?;
        let version = started(&mut events).await?;
        match expect_event(events.recv().await)? {
            Event::Classified(log_probs) => ranked(self.0.text.labels(), &log_probs, version),
            other => Err(unexpected(&other)),
        }
    }

    async fn plan(&self, request: GenerateRequest) -> Result<Plan, GenerateError> {
        let inner = Arc::clone(&self.0);
        off_the_runtime(move || Plan::new(request, inner.text.as_ref(), &inner.config)).await
    }

    fn admit(&self, tasks: impl Iterator<Item = (Task, Option<u64>)>) -> Result<Vec<EventsOut>, GenerateError> {
        let (jobs, outputs) = tasks.map(|(task, version)| Job::new(task, version, &self.0.metrics)).unzip();
        self.0.queue.admit(jobs)?;
        Ok(outputs)
    }

    fn admit_one(&self, task: Task, version: Option<u64>) -> Result<EventsOut, GenerateError> {
        let (job, output) = Job::new(task, version, &self.0.metrics);
        self.0.queue.admit(vec![job])?;
        Ok(output)
    }
}

/// Labels by their probability; of equal ones the first first.
fn ranked(labels: &[String], log_probs: &[f32], version: u64) -> Result<ClassifyResponse, GenerateError> {
    if log_probs.len() != labels.len() || log_probs.iter().any(|log_prob| log_prob.is_nan()) {
        let message = format!("{} labels got the log-probabilities {log_probs:?}", labels.len());
        return Err(GenerateError::Internal(message));
    }
    let probability =
        |(label, log_prob): (&String, &f32)| LabelProbability { label: label.clone(), probability: log_prob.exp() };
    let mut labels: Vec<LabelProbability> = labels.iter().zip(log_probs).map(probability).collect();
    labels.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    let label = labels.first().map(|best| best.label.clone()).unwrap_or_default();
    Ok(ClassifyResponse { label, version, labels })
}

/// Runs what takes milliseconds of computing, such as tokenizing a long prompt, where it delays nobody.
async fn off_the_runtime<T: Send + 'static>(
    compute: impl FnOnce() -> Result<T, GenerateError> + Send + 'static,
) -> Result<T, GenerateError> {
    let done = tokio::task::spawn_blocking(compute).await;
    done.unwrap_or_else(|error| Err(GenerateError::Internal(format!("reading the request failed: {error}"))))
}
