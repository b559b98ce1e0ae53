//! The engine thread: the only one that runs the network. It advances every slot in turns.

use std::{sync::mpsc::Receiver, time::Instant};

use super::{
    decoder::Decoder,
    dispatch::{Life, Slot},
    error::GenerateError,
    job::{Event, Events, Task},
    scoring::Scoring,
    sequence::Sequence,
};
use crate::{panics::caught, telemetry::Metrics};

/// A task that has a slot and a version.
pub(super) struct Placed<L> {
    pub task: Task,
    pub events: Events,
    pub admitted: Instant,
    pub lease: L,
    pub slot: Slot,
}

/// A task in its slot.
///
/// Law 4: a request runs on one version, from its first token to its last. `lease` is taken before the first token, is
/// the only one that the task's work ever sees, and is never replaced; each turn asserts that it still is `version`,
/// which the client was told.
struct Active<'d, D: Decoder> {
    events: Events,
    version: u64,
    /// The turn in which it last read prompt tokens, or joined.
    last_read: u64,
    /// None when the task has ended: its version and its slot are free before the client hears of it.
    running: Option<Running<'d, D>>,
}

struct Running<'d, D: Decoder> {
    work: Work<'d, D>,
    lease: D::Lease,
    _slot: Slot,
}

enum Work<'d, D: Decoder> {
    Sequence(Box<Sequence<'d, D>>),
    Scoring(Scoring),
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
        engine.step(&mut active, turn);
        active.retain(|task| task.running.is_some());
    }
}

/// What every turn needs.
struct Engine<'d, D: Decoder> {
    decoder: &'d D,
    /// Tokens read by prompts and scoring in one turn.
    chunk: usize,
    metrics: &'d Metrics,
}

impl<'d, D: Decoder> Engine<'d, D> {
    fn join(&self, placed: Placed<D::Lease>, turn: u64) -> Active<'d, D> {
        let Placed { task, events, admitted, lease, slot } = placed;
        let version = self.decoder.version(&lease);
        let work = match task {
            Task::Generate(plan) => Work::Sequence(Box::new(Sequence::new(self.decoder, plan, admitted))),
            Task::Score(passages) => Work::Scoring(Scoring::new(passages)),
        };
        let running = Some(Running { work, lease, _slot: slot });
        Active { events, version, last_read: turn, running }
    }

    /// One turn: one token for each sequence that is decoding, and between them a chunk for those that still read:
    /// the one that waited longest, and the next ones too as long as they fit into what is left of the chunk. A long
    /// prompt thus delays nobody by more than a chunk.
    fn step(&self, active: &mut [Active<'d, D>], turn: u64) {
        let (mut reading, decoding): (Vec<usize>, Vec<usize>) =
            (0..active.len()).partition(|i| active[*i].next_chunk(self.chunk) > 0);
        for i in decoding {
            self.advance(&mut active[i]);
        }
        reading.sort_by_key(|i| active[*i].last_read);
        let mut left = self.chunk;
        for i in reading {
            let tokens = active[i].next_chunk(self.chunk);
            if tokens > left && left < self.chunk {
                break;
            }
            active[i].last_read = turn;
            self.advance(&mut active[i]);
            left = left.saturating_sub(tokens);
        }
    }

    /// Advances one task; a panic ends this task alone.
    fn advance(&self, task: &mut Active<'d, D>) {
        let Some(running) = &mut task.running else { return };
        let (events, version) = (&task.events, task.version);
        let guarded = caught(|| {
            assert_eq!(self.decoder.version(&running.lease), version, "a task stays on the version it began on");
            match &mut running.work {
                Work::Sequence(sequence) => sequence.advance(&running.lease, self.chunk, self.metrics, events),
                Work::Scoring(scoring) => scoring.advance(self.decoder, &running.lease, self.chunk, self.metrics),
            }
        });
        match guarded.unwrap_or_else(|panic| Err(panicked(&panic))) {
            Ok(None) => {}
            Ok(Some(last)) => task.end(Ok(last)),
            Err(error) => task.end(Err(error)),
        }
    }
}

impl<D: Decoder> Active<'_, D> {
    /// Prompt tokens that its next turn reads; 0 while decoding.
    fn next_chunk(&self, chunk: usize) -> usize {
        match self.running.as_ref().map(|running| &running.work) {
            Some(Work::Sequence(sequence)) => sequence.next_chunk(chunk),
            Some(Work::Scoring(scoring)) => scoring.next_chunk(chunk),
            None => 0,
        }
    }

    fn end(&mut self, last: Result<Event, GenerateError>) {
        self.running = None;
        // A client that has left needs no answer.
        let _ = self.events.send(last);
    }
}

fn panicked(panic: &str) -> GenerateError {
    let message = format!("the engine {panic}");
    tracing::error!(message, "a task in the engine panicked; the others go on");
    GenerateError::Internal(message)
}
