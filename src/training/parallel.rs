//! Work spread over threads, results in order.
//!
//! A training step is many small products; two threads on halves of the batch finish sooner than two threads on each
//! product, of which every one would have to be woken for. So `amend train` gives candle's products one thread, and
//! spreads the parts of a batch over workers. They are a rayon pool, because candle's fused kernels call rayon: outside of
//! a pool they would queue for the one thread that rayon has for everybody. They live as long as the run, so that the
//! allocator finds the memory that a thread freed a step ago.

use rayon::{ThreadPool, prelude::*};

use super::TrainingError;
use crate::threads::{self, Urgency};

/// Threads that share out lists of items.
pub struct Workers {
    pool: ThreadPool,
}

impl Workers {
    /// Starts `threads` threads, at least one.
    pub fn new(threads: usize) -> Result<Self, TrainingError> {
        let pool = threads::pool("amend-worker", Some(threads), Urgency::Nice(0));
        let failed = |source| TrainingError::Io { what: format!("starting {threads} threads"), source };
        pool.map(|pool| Self { pool }).map_err(failed)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// `f` on one of them.
    pub fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.pool.install(f)
    }

    /// `f` of every item; the results stand in the items' order, whichever thread made them.
    pub fn map<T: Sync, R: Send>(&self, items: &[T], f: impl Fn(&T) -> R + Sync + Send) -> Vec<R> {
        self.pool.install(|| items.par_iter().with_max_len(1).map(f).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_stand_in_order() {
        let items: Vec<usize> = (0..100).collect();
        for threads in [1, 2, 7] {
            let workers = Workers::new(threads).unwrap();
            assert_eq!(workers.map(&items, |item| item * 2), (0..200).step_by(2).collect::<Vec<_>>());
            assert!(workers.map(&[] as &[usize], |item| *item).is_empty());
        }
    }
}
