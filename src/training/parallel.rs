//! Work spread over threads, results in order.
//!
//! A training step is many small products; two threads on halves of the batch finish sooner than two threads on each
//! product, of which every one would have to be woken for. So `amend train` gives candle's products one thread, and
//! spreads the parts of a batch over a pool. It is a rayon pool, because candle's fused kernels call rayon: outside of a
//! pool they would queue for the one thread that rayon has for everybody.

use rayon::{ThreadPoolBuilder, prelude::*};

/// `f` of every item, by up to `threads` threads; the results stand in the items' order, whichever thread made them.
pub fn map<T: Sync, R: Send>(threads: usize, items: &[T], f: impl Fn(&T) -> R + Sync + Send) -> Vec<R> {
    match ThreadPoolBuilder::new().num_threads(threads.min(items.len()).max(1)).build() {
        Ok(pool) => pool.install(|| items.par_iter().with_max_len(1).map(&f).collect()),
        // No thread to be had: slower, but the same.
        Err(_) => items.iter().map(f).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_stand_in_order() {
        let items: Vec<usize> = (0..100).collect();
        for threads in [1, 2, 7] {
            assert_eq!(map(threads, &items, |item| item * 2), (0..200).step_by(2).collect::<Vec<_>>());
        }
        assert!(map(3, &[] as &[usize], |item| *item).is_empty());
    }
}
