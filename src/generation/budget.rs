//! What may run at the same time: so many sequences, and so many tokens of keys and values. Who does not fit yet waits in
//! line; who never will is refused before.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a task takes while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cost {
    /// Sequences that are decoded side by side.
    pub sequences: usize,
    /// Tokens whose keys and values are kept, at the most.
    pub tokens: usize,
}

impl Cost {
    fn within(self, other: Self) -> bool {
        self.sequences <= other.sequences && self.tokens <= other.tokens
    }
}

/// All that there is. Law: what is held, all holds together, never exceeds it.
///
/// Sequences are taken before tokens, each first come, first served. Whoever has tokens waits for nothing more, so no two
/// can wait for each other.
pub(super) struct Budget {
    all: Cost,
    sequences: Arc<Semaphore>,
    tokens: Arc<Semaphore>,
}

impl Budget {
    pub fn new(all: Cost) -> Self {
        let (sequences, tokens) = (Arc::new(Semaphore::new(all.sequences)), Arc::new(Semaphore::new(all.tokens)));
        Self { all, sequences, tokens }
    }

    /// Waits until `cost` is free and takes it; none if it never will be.
    pub async fn hold(&self, cost: Cost) -> Option<Hold> {
        if !cost.within(self.all) {
            return None;
        }
        let (sequences, tokens) = (u32::try_from(cost.sequences).ok()?, u32::try_from(cost.tokens).ok()?);
        // The semaphores are never closed.
        let sequences = Arc::clone(&self.sequences).acquire_many_owned(sequences).await.ok()?;
        let tokens = Arc::clone(&self.tokens).acquire_many_owned(tokens).await.ok()?;
        Some(Hold { sequences, tokens })
    }
}

/// A part of the budget; free again when dropped.
#[derive(Debug)]
pub(super) struct Hold {
    sequences: OwnedSemaphorePermit,
    tokens: OwnedSemaphorePermit,
}

impl Hold {
    pub fn cost(&self) -> Cost {
        Cost { sequences: self.sequences.num_permits(), tokens: self.tokens.num_permits() }
    }

    /// Whether `cost` fits into it; what is more than that is given back.
    pub fn shrink(&mut self, cost: Cost) -> bool {
        let fits = cost.within(self.cost());
        if fits {
            let held = self.cost();
            drop(self.sequences.split(held.sequences - cost.sequences));
            drop(self.tokens.split(held.tokens - cost.tokens));
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const fn cost(sequences: usize, tokens: usize) -> Cost {
        Cost { sequences, tokens }
    }

    #[tokio::test]
    async fn holds_wait_for_both_in_order_and_give_back() {
        let budget = Budget::new(cost(2, 100));
        let first = budget.hold(cost(1, 80)).await.unwrap();
        let mut second = Box::pin(budget.hold(cost(1, 50)));
        assert!(second.as_mut().now_or_never().is_none(), "30 tokens are left");
        let mut third = Box::pin(budget.hold(cost(1, 10)));
        assert!(third.as_mut().now_or_never().is_none(), "the second has the other sequence");
        drop(first);
        let mut second = second.await.unwrap();
        assert!(!second.shrink(cost(2, 1)) && second.shrink(cost(1, 20)));
        assert_eq!(second.cost(), cost(1, 20));
        assert_eq!(third.await.unwrap().cost(), cost(1, 10));
        assert!(budget.hold(cost(2, 100)).now_or_never().is_none());
        drop(second);
        assert!(budget.hold(cost(2, 100)).now_or_never().unwrap().is_some());
    }

    #[tokio::test]
    async fn what_never_fits_is_refused() {
        let budget = Budget::new(cost(2, 100));
        assert!(budget.hold(cost(3, 1)).await.is_none());
        assert!(budget.hold(cost(1, 101)).await.is_none());
    }
}
