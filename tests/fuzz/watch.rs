//! An allocator that remembers the largest request, so that a test can say that nobody believed an absurd length.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

static LARGEST: AtomicUsize = AtomicUsize::new(0);

struct Watch;

#[global_allocator]
static ALLOCATOR: Watch = Watch;

static ALONE: Mutex<()> = Mutex::new(());

/// Forgets what was asked for, and keeps the other tests of this process from asking as long as the result is held.
pub fn reset() -> MutexGuard<'static, ()> {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    LARGEST.store(0, Ordering::SeqCst);
    alone
}

/// Bytes of the largest request since.
pub fn largest() -> usize {
    LARGEST.load(Ordering::SeqCst)
}

fn note(bytes: usize) {
    LARGEST.fetch_max(bytes, Ordering::SeqCst);
}

#[expect(unsafe_code, reason = "an allocator can not be written without; each call is the system's own")]
// SAFETY: every method hands its arguments to the system's allocator and returns what that returns.
unsafe impl GlobalAlloc for Watch {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are those of this method.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}
