//! Work spread over threads, results in order.
//!
//! A training step is many small products; two threads on halves of the batch finish sooner than two threads on each
//! product, of which every one would have to be woken for. So `amend train` gives candle one thread and uses its own.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

/// `f` of every item, by up to `threads` threads; the results stand in the items' order, whichever thread made them.
pub fn map<T: Sync, R: Send>(threads: usize, items: &[T], f: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<R>>> = Mutex::new(items.iter().map(|_| None).collect());
    let work = || {
        while let Some((index, item)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|index| Some((index, items.get(index)?)))
        {
            let result = f(item);
            results.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(items.len()) {
            scope.spawn(work);
        }
        work();
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().map(|result| result.expect("every item was taken by one thread")).collect()
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
