//! The engine thread: the only one that runs the network. A turn is one pass over everything that runs.

use std::{sync::mpsc::Receiver, time::Instant};

use tracing::{Span, debug_span, field::Empty};

use super::{
    decoder::Decoder,
    dispatch::{Life, Slot},
    error::GenerateError,
    guarded::{guarded, pass},
    job::{Event, Events, Task},
    scoring::Scoring,
    sequence::Sequence,
    shares::{Reader, shares},
};
use crate::{
    model::Passage,
    telemetry::{Course, Metrics, course::number},
};

/// A task that has its place and a version.
pub(super) struct Placed<L> {
    pub task: Task,
    pub events: Events,
    pub admitted: Instant,
    pub course: Course,
    pub lease: L,
    pub slot: Slot,
}

/// A task in its place.
///
/// Law 4: a request runs on one version, from its first token to its last. `lease` is taken before the first token, is
/// the only one that the task's work ever sees, and is never replaced; each turn asserts that it still is `version`,
/// which the client was told.
struct Active<'d, D: Decoder> {
    events: Events,
    version: u64,
    /// The turn in which it last read prompt tokens, or joined.
    last_read: u64,
    /// None when the task has ended: its version and its place are free before the client hears of it.
    running: Option<Running<'d, D>>,
}

struct Running<'d, D: Decoder> {
    work: Work<'d, D>,
    course: Course,
    lease: D::Lease,
    _slot: Slot,
}

enum Work<'d, D: Decoder> {
    Sequence(Box<Sequence<'d, D>>),
    Scoring(Scoring),
    Classifying(Passage),
}

/// Runs until the dispatcher is gone and every task has ended, or, when stopped, until the dispatcher is gone.
pub(super) fn run<D: Decoder>(
    decoder: &D,
    incoming: &Receiver<Placed<D::Lease>>,
    chunk: usize,
    life: &Life,
    metrics: &Metrics,
) {
    let engine = Engine { decoder, chunk, metrics };
    let mut active = Vec::new();
    for turn in 1.. {
        if active.is_empty() {
            match incoming.recv() {
                Ok(placed) => active.push(engine.join(placed, turn)),
                Err(_) => return,
            }
        }
        active.extend(incoming.try_iter().map(|placed| engine.join(placed, turn)));
        active.retain(|task| !task.events.is_closed());
        if life.stopped.is_cancelled() {
            active.drain(..).for_each(|mut task| task.end(Err(GenerateError::ShuttingDown)));
        }
        engine.turn(&mut active, turn);
        active.retain(|task| task.running.is_some());
    }
}

/// What every turn needs.
struct Engine<'d, D: Decoder> {
    decoder: &'d D,
    /// Tokens read by prompts, scoring and classification in one turn.
    chunk: usize,
    metrics: &'d Metrics,
}

impl<'d, D: Decoder> Engine<'d, D> {
    fn join(&self, placed: Placed<D::Lease>, turn: u64) -> Active<'d, D> {
        let Placed { task, events, admitted, mut course, lease, slot } = placed;
        let version = self.decoder.version(&lease);
        course.enter(|request| first_stage(&task, version, request));
        let work = match task {
            Task::Generate(plan) => {
                Work::Sequence(Box::new(Sequence::new(self.decoder, plan, admitted, &lease, self.metrics)))
            }
            Task::Score(passages) => Work::Scoring(Scoring::new(passages)),
            Task::Classify(text) => Work::Classifying(text),
        };
        if let Work::Sequence(sequence) = &work {
            course.record("unread", sequence.unread());
        }
        let running = Some(Running { work, course, lease, _slot: slot });
        Active { events, version, last_read: turn, running }
    }

    /// One turn: one token for each text that is being written, and in the same pass a chunk of what is still to be read.
    /// A long prompt thus delays nobody by more than a chunk.
    fn turn(&self, active: &mut [Active<'d, D>], turn: u64) {
        active.iter_mut().for_each(|task| task.check(self.decoder));
        let readers: Vec<Reader> = active.iter().map(|task| task.reader(self.chunk)).collect();
        let shares = shares(&readers, self.chunk, turn);
        for (task, share) in active.iter_mut().zip(&shares).filter(|(_, share)| **share > 0) {
            task.last_read = turn;
            task.measure(self, *share);
        }
        self.generate(active, &shares);
    }

    /// The pass over all sequences, and what follows from its answers.
    fn generate(&self, active: &mut [Active<'d, D>], shares: &[usize]) {
        let (mut feeds, mut counts) = (Vec::new(), Vec::with_capacity(active.len()));
        for (task, share) in active.iter_mut().zip(shares) {
            let before = feeds.len();
            if let Some(Running { work: Work::Sequence(sequence), lease, .. }) = &mut task.running {
                sequence.feed(*share, lease, &mut feeds);
            }
            counts.push(feeds.len() - before);
        }
        if feeds.is_empty() {
            return;
        }
        let mut answers = pass(self.decoder, feeds).into_iter();
        for (task, count) in active.iter_mut().zip(counts).filter(|(_, count)| *count > 0) {
            let own = answers.by_ref().take(count).collect::<Result<Vec<_>, _>>();
            task.take(own, self.metrics);
        }
    }
}

impl<'d, D: Decoder> Active<'d, D> {
    /// Law 4, at every turn.
    fn check(&mut self, decoder: &D) {
        let Some(Running { lease, .. }) = &self.running else { return };
        let checked = guarded(|| {
            assert_eq!(decoder.version(lease), self.version, "a task stays on the version it began on");
            Ok(None)
        });
        self.settle(checked);
    }

    /// What it still has to read.
    fn reader(&self, chunk: usize) -> Reader {
        let (unread, whole) = match self.running.as_ref().map(|running| &running.work) {
            Some(Work::Sequence(sequence)) => (sequence.unread(), sequence.reads_whole()),
            Some(Work::Scoring(scoring)) => (scoring.next_chunk(chunk), true),
            Some(Work::Classifying(text)) => (text.ids.len(), true),
            None => (0, false),
        };
        Reader { unread, whole, last_read: self.last_read }
    }

    /// Scores the next passages, or gives its text a label, if that is what it does.
    fn measure(&mut self, engine: &Engine<'d, D>, share: usize) {
        let Some(Running { work, lease, .. }) = &mut self.running else { return };
        let step = match work {
            Work::Sequence(_) => return,
            Work::Scoring(scoring) => guarded(|| scoring.advance(engine.decoder, lease, share, engine.metrics)),
            Work::Classifying(text) => guarded(|| {
                let labels = engine.decoder.classify(text, lease)?;
                engine.metrics.tokens.with_label_values(&["prompt"]).inc_by(text.ids.len() as u64);
                Ok(Some(Event::Classified(labels)))
            }),
        };
        self.settle(step);
    }

    /// Takes the network's answers.
    fn take(&mut self, answers: Result<Vec<Option<Vec<f32>>>, GenerateError>, metrics: &Metrics) {
        let Some(Running { work: Work::Sequence(sequence), course, lease, .. }) = &mut self.running else { return };
        let (events, reads) = (&self.events, sequence.unread() > 0);
        let step = answers.and_then(|answers| guarded(|| sequence.take(answers, lease, metrics, events)));
        if reads && sequence.unread() == 0 {
            course.enter(|request| debug_span!(parent: request, "decode", tokens = Empty));
        }
        self.settle(step);
    }

    fn settle(&mut self, step: Result<Option<Event>, GenerateError>) {
        match step {
            Ok(None) => {}
            Ok(Some(last)) => self.end(Ok(last)),
            Err(error) => self.end(Err(error)),
        }
    }

    fn end(&mut self, last: Result<Event, GenerateError>) {
        if let (Some(running), Ok(Event::Finished { usage })) = (&self.running, &last) {
            running.course.record("tokens", usage.completion_tokens);
        }
        self.running = None;
        // A client that has left needs no answer.
        let _ = self.events.send(last);
    }
}

/// What a task begins with, as a span. Of a prompt, `unread` is what was not kept from others.
fn first_stage(task: &Task, version: u64, request: &Span) -> Span {
    let version = number(version);
    match task {
        Task::Generate(plan) => {
            debug_span!(parent: request, "prefill", version, tokens = number(plan.ids.len()), unread = Empty)
        }
        Task::Score(passages) => debug_span!(parent: request, "score", version, texts = number(passages.len())),
        Task::Classify(text) => debug_span!(parent: request, "classify", version, tokens = number(text.ids.len())),
    }
}
