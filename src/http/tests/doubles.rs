//! Doubles of the writer, the engine and the log. They do as little as the routes need, and fail when told to.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt, stream};
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use crate::{
    digest::Digest,
    edit_log::{
        Change, EditLog, EditQuery, EditRow, EditStatus, IdempotencyRow, Identity, LogError, NewEdit, NewVersion, Page,
        VersionKind, VersionRow,
    },
    generation::{
        Alternative, ClassifyRequest, ClassifyResponse, FinishReason, GenerateError, GenerateEvent, GenerateRequest,
        GenerateResponse, LabelProbability, Score, ScoreRequest, ScoreResponse, TokenLogprob, Usage,
    },
    http::state::{Edits, Generates, Streaming, Submitted},
    writer::{
        Answer, BatchReport, CheckReport, EditReport, EditsHealth, Idempotency, PendingEdit, PhasesMs, ReportStatus,
        SetChange, Submission, TargetFigures, TargetReport, VersionReport, WriterError,
    },
};

type Failure<E> = Mutex<Option<Box<dyn Fn() -> E + Send>>>;

/// A change as it was asked for: what, by whom, on which version, under which key.
type Changed = (SetChange, String, Option<u64>, Option<Idempotency>);

/// Sets what a double fails with from now on.
pub fn fail<E>(slot: &Failure<E>, error: impl Fn() -> E + Send + 'static) {
    *slot.lock().unwrap() = Some(Box::new(error));
}

fn check<E>(slot: &Failure<E>) -> Result<(), E> {
    slot.lock().unwrap().as_ref().map_or(Ok(()), |error| Err(error()))
}

/// An id that tells its number.
pub fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

/// A report of edit 1.
pub fn report(edits: usize, status: ReportStatus) -> BatchReport {
    let figures = TargetFigures { probability: 0.5, greedy: true };
    let edit = |n| EditReport {
        id: id(n as u128),
        status,
        version: 1,
        digest: Digest::of(b"weights"),
        supersedes: None,
        prompt: TargetReport { text: "p".into(), before: figures, after: figures },
        paraphrases: Vec::new(),
        locality: Vec::new(),
        conflicts: Vec::new(),
        holding: None,
        delta: Vec::new(),
        gradient: Vec::new(),
        phases_ms: PhasesMs::default(),
        reason: None,
    };
    BatchReport { version: 1, digest: Digest::of(b"weights"), edits: (1..=edits).map(edit).collect() }
}

/// The writer.
#[derive(Default)]
pub struct FakeEdits {
    pub submissions: Mutex<Vec<Submission>>,
    pub changes: Mutex<Vec<Changed>>,
    pub pending: Mutex<Option<PendingEdit>>,
    /// Refuses at the door.
    pub refuses: Failure<WriterError>,
    /// Admits, and fails later.
    pub fails: Failure<WriterError>,
    /// Answers with what another request recorded in the meantime.
    pub recorded: Mutex<Option<IdempotencyRow>>,
    pub hangs: AtomicBool,
    pub panics: AtomicBool,
    /// The version that was checked.
    pub checked: Mutex<Option<u64>>,
}

#[async_trait]
impl Edits for FakeEdits {
    async fn submit(&self, submission: Submission) -> Result<Submitted, WriterError> {
        check(&self.refuses)?;
        assert!(!self.panics.load(Ordering::SeqCst), "told to panic");
        let status = if submission.dry_run { ReportStatus::DryRun } else { ReportStatus::Applied };
        let report = report(submission.edits.len(), status);
        let ids = report.edits.iter().map(|edit| edit.id).collect();
        self.submissions.lock().unwrap().push(submission);
        let recorded = self.recorded.lock().unwrap().clone();
        let answer = check(&self.fails).map(|()| recorded.map_or(Answer::Fresh(report), Answer::Recorded));
        let hangs = self.hangs.load(Ordering::SeqCst);
        let done = async move {
            if hangs {
                std::future::pending::<()>().await;
            }
            answer
        };
        Ok(Submitted { ids, done: done.boxed() })
    }

    async fn change(
        &self,
        change: SetChange,
        actor: String,
        expected_version: Option<u64>,
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<VersionReport>, WriterError> {
        check(&self.fails)?;
        self.changes.lock().unwrap().push((change, actor, expected_version, idempotency));
        Ok(Answer::Fresh(VersionReport { version: 2, digest: Digest::of(b"weights") }))
    }

    fn pending(&self, id: Uuid) -> Option<PendingEdit> {
        self.pending.lock().unwrap().clone().filter(|edit| edit.id == id)
    }

    fn health(&self) -> EditsHealth {
        let report = |version| CheckReport {
            version,
            at: TIME.parse().unwrap(),
            milliseconds: 12.5,
            edits: 4,
            holding: 3,
            share: Some(0.75),
            lost: Vec::new(),
            canaries: Vec::new(),
        };
        EditsHealth { checked: self.checked.lock().unwrap().map(report), checking: None, failed: None }
    }
}

/// A token that is this text, with one alternative.
fn logprobs(text: &str) -> Vec<TokenLogprob> {
    let alternative = Alternative { token: "b".into(), logprob: -2.0, bytes: b"b".to_vec() };
    vec![TokenLogprob { token: text.into(), logprob: -0.5, bytes: text.into(), top: vec![alternative] }]
}

/// The engine: says the prompt's words back.
#[derive(Default)]
pub struct FakeGenerates {
    pub requests: Mutex<Vec<GenerateRequest>>,
    pub refuses: Failure<GenerateError>,
    /// A stream fails after its first token.
    pub breaks: AtomicBool,
    /// A stream goes silent after its first token.
    pub stalls: AtomicBool,
}

impl FakeGenerates {
    /// Keeps the request; a conversation's last message becomes its prompt.
    fn noted(&self, mut request: GenerateRequest) -> GenerateRequest {
        self.requests.lock().unwrap().push(request.clone());
        let last = request.messages.take().and_then(|mut messages| messages.pop());
        request.prompt = request.prompt.or(last.map(|message| message.content));
        request
    }
}

#[async_trait]
impl Generates for FakeGenerates {
    async fn generate(&self, request: GenerateRequest) -> Result<GenerateResponse, GenerateError> {
        check(&self.refuses)?;
        let request = self.noted(request);
        let answer = |version, compared| GenerateResponse {
            text: request.prompt.clone().unwrap_or_default(),
            version,
            finish_reason: FinishReason::Stop,
            usage: Usage { prompt_tokens: 2, completion_tokens: 2 },
            logprobs: request.logprobs.map(|_| logprobs("a")),
            choices: Vec::new(),
            compared,
        };
        let compared = request.compare_to.map(|version| Box::new(answer(version, None)));
        Ok(answer(request.version.unwrap_or(1), compared))
    }

    async fn stream(&self, request: GenerateRequest) -> Result<Streaming, GenerateError> {
        check(&self.refuses)?;
        let request = self.noted(request);
        let prompt = request.prompt.unwrap_or_default();
        let with_logprobs = request.logprobs.is_some();
        let text = |word: &str| {
            let logprobs = if with_logprobs { logprobs(word) } else { Vec::new() };
            Ok(GenerateEvent::Text { choice: 0, text: word.to_owned(), logprobs })
        };
        let usage = Usage { prompt_tokens: 2, completion_tokens: 2 };
        let ended = Ok(GenerateEvent::Ended { choice: 0, finish_reason: FinishReason::Stop });
        let done = Ok(GenerateEvent::Done { version: 1, usage });
        let mut events: Vec<_> = prompt.split_inclusive(' ').map(text).collect();
        let broken = self.breaks.load(Ordering::SeqCst);
        let stalled = self.stalls.load(Ordering::SeqCst);
        if broken || stalled {
            events.truncate(1);
        }
        if !broken && !stalled {
            events.extend([ended, done]);
        }
        events.extend(broken.then(|| Err(GenerateError::Internal("secret".into()))));
        let events = stream::iter(events);
        let events = if stalled { events.chain(stream::pending()).boxed() } else { events.boxed() };
        Ok(Streaming { version: 1, events })
    }

    async fn classify(&self, request: ClassifyRequest) -> Result<ClassifyResponse, GenerateError> {
        check(&self.refuses)?;
        let label = |label: &str, probability| LabelProbability { label: label.into(), probability };
        Ok(ClassifyResponse {
            label: "red".into(),
            version: request.version.unwrap_or(1),
            labels: vec![label("red", 0.75), label("blue", 0.25)],
        })
    }

    async fn score(&self, request: ScoreRequest) -> Result<ScoreResponse, GenerateError> {
        check(&self.refuses)?;
        let score = |continuation| Score { continuation, logprob: -0.5, tokens: 1, greedy: true };
        Ok(ScoreResponse {
            version: request.version.unwrap_or(1),
            scores: request.continuations.into_iter().map(score).collect(),
        })
    }
}

/// A log of three versions: 0 is empty, 1 has edits 1 and 2, 2 has edits 2 and 3. Edit 4 was rejected.
#[derive(Default)]
pub struct FakeLog {
    pub fails: Failure<LogError>,
    pub hangs: AtomicBool,
    pub idempotent: Mutex<Option<IdempotencyRow>>,
    /// The next look at `idempotent` comes too early to find it.
    pub early: AtomicBool,
    pub queries: Mutex<Vec<EditQuery>>,
}

/// What the double's rows are dated.
pub const TIME: &str = "2026-01-02T03:04:05Z";

impl FakeLog {
    async fn answer(&self) -> Result<(), LogError> {
        if self.hangs.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        check(&self.fails)
    }

    fn row(number: u64) -> VersionRow {
        VersionRow {
            number,
            kind: if number == 0 { VersionKind::Base } else { VersionKind::Edit },
            actor: "someone".into(),
            created_at: TIME.parse().unwrap(),
            digest: Digest::of(&number.to_le_bytes()),
            set_digest: Digest::of(b"set"),
            active: Self::set(number).len() as u64,
            entry_hash: Digest::of(b"entry"),
        }
    }

    fn set(number: u64) -> BTreeSet<Uuid> {
        let ids: &[u128] = match number {
            1 => &[1, 2],
            2 => &[2, 3],
            _ => &[],
        };
        ids.iter().map(|n| id(*n)).collect()
    }

    fn edit_row(n: u128) -> Option<EditRow> {
        let (status, version) = match n {
            1 => (EditStatus::Superseded, Some(1)),
            2 => (EditStatus::Applied, Some(1)),
            3 => (EditStatus::Applied, Some(2)),
            4 => (EditStatus::Failed, None),
            _ => return None,
        };
        let request = json!({"prompt": format!("p{n}"), "target": format!("t{n}")});
        let report = report(1, ReportStatus::Applied).edits.remove(0);
        Some(EditRow {
            seq: u64::try_from(n).unwrap(),
            id: id(n),
            received_at: TIME.parse::<Timestamp>().unwrap(),
            actor: "someone".into(),
            prompt: format!("p{n}"),
            target: format!("t{n}"),
            request,
            report: if n == 4 {
                json!({"id": id(n), "status": "failed", "phases_ms": {"queue": 1.5, "total": 2.5}})
            } else {
                json!(report)
            },
            status,
            reason: (n == 4).then(|| "not finite".to_owned()),
            version,
            superseded_by: (n == 1).then(|| id(3)),
            contribution: None,
        })
    }
}

#[async_trait]
impl EditLog for FakeLog {
    async fn pin(&self, _: &Identity) -> Result<(), LogError> {
        unreachable!("http never pins")
    }

    async fn commit(&self, _: NewVersion) -> Result<VersionRow, LogError> {
        unreachable!("http never commits")
    }

    async fn record(&self, _: Vec<NewEdit>) -> Result<(), LogError> {
        unreachable!("http never records")
    }

    async fn head(&self) -> Result<VersionRow, LogError> {
        self.answer().await?;
        Ok(Self::row(2))
    }

    async fn version(&self, number: u64) -> Result<Option<VersionRow>, LogError> {
        self.answer().await?;
        Ok((number <= 2).then(|| Self::row(number)))
    }

    async fn versions(&self, before: Option<u64>, limit: u32) -> Result<Vec<VersionRow>, LogError> {
        self.answer().await?;
        Ok((0..before.unwrap_or(3).min(3)).rev().take(limit as usize).map(Self::row).collect())
    }

    async fn changes(&self, _: u64, _: u64) -> Result<Vec<Change>, LogError> {
        unreachable!("http compares sets")
    }

    async fn active_set(&self, number: u64) -> Result<BTreeSet<Uuid>, LogError> {
        self.answer().await?;
        Ok(Self::set(number))
    }

    async fn edit(&self, id: Uuid) -> Result<Option<EditRow>, LogError> {
        self.answer().await?;
        Ok(Self::edit_row(id.as_u128()))
    }

    async fn edits(&self, query: &EditQuery) -> Result<Page<EditRow>, LogError> {
        self.answer().await?;
        self.queries.lock().unwrap().push(query.clone());
        let before = query.before.unwrap_or(5).min(5);
        let items: Vec<_> =
            (1..u128::from(before)).rev().filter_map(Self::edit_row).take(query.limit as usize).collect();
        let next = items.last().map(|row| row.seq).filter(|seq| *seq > 1);
        Ok(Page { items, next })
    }

    async fn contribution(&self, _: Uuid) -> Result<Vec<u8>, LogError> {
        unreachable!("http never reads contributions")
    }

    async fn idempotent(&self, key: &str) -> Result<Option<IdempotencyRow>, LogError> {
        self.answer().await?;
        let early = self.early.swap(false, Ordering::SeqCst);
        Ok(self.idempotent.lock().unwrap().clone().filter(|row| row.key == key && !early))
    }

    async fn check_chain(&self) -> Result<u64, LogError> {
        unreachable!("http never walks the chain")
    }

    async fn close(&self) {}

    async fn ping(&self) -> Result<(), LogError> {
        self.answer().await
    }
}
