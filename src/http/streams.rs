//! How many generations may be streamed at the same time. A stream takes little while it flows, but lasts as long as its
//! client likes to read.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{Code, Problem};

/// The places that streams take. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Streams {
    limit: usize,
    free: Arc<Semaphore>,
}

/// The place of one stream; free again when dropped.
#[derive(Debug)]
pub(super) struct StreamPlace(#[expect(dead_code, reason = "held until dropped")] OwnedSemaphorePermit);

impl Streams {
    /// So many, at most 2^61.
    pub fn new(limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Self { limit, free: Arc::new(Semaphore::new(limit)) }
    }

    /// Takes a place, or refuses at once.
    pub(super) fn take(&self) -> Result<StreamPlace, Problem> {
        Arc::clone(&self.free).try_acquire_owned().map(StreamPlace).map_err(|_| {
            let detail = format!("{} generations are being streamed, the most at the same time", self.limit);
            Problem::new(Code::TooManyStreams, detail).with("limit", self.limit)
        })
    }
}
