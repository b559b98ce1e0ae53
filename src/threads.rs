//! Threads that compute.
//!
//! Generation and edits each have a pool of their own: in one pool a token's small products would queue behind an edit's
//! large ones. What drives a pool runs on one of its threads, so that a product goes to the others without the driver
//! being put to sleep and woken for it.

use std::io;

use rayon::{ThreadPool, ThreadPoolBuilder};

/// Starts a pool whose threads are named `name-0` and so on; as many as there are for everybody where `threads` is none.
/// On Linux they yield to other threads as `niceness` says (0 to 19, as nice(2) has it); elsewhere it has no effect.
pub fn pool(name: &'static str, threads: Option<usize>, niceness: u8) -> io::Result<ThreadPool> {
    let builder = ThreadPoolBuilder::new().thread_name(move |index| format!("{name}-{index}"));
    // Zero is rayon's word for its own choice, which is what the process was told.
    let builder = builder.num_threads(threads.map_or(0, |threads| threads.max(1)));
    builder.start_handler(move |_| be_nice(niceness)).build().map_err(io::Error::other)
}

/// Lowers the calling thread's priority. Where the system refuses, it computes as before.
fn be_nice(niceness: u8) {
    #[cfg(target_os = "linux")]
    if niceness > 0
        && let Err(error) = rustix::process::setpriority_process(None, niceness.into())
    {
        tracing::warn!(%error, niceness, "the priority of a thread can not be lowered");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = niceness;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_has_its_threads_and_their_names() {
        let pool = pool("amend-test", Some(3), 0).unwrap();
        assert_eq!(pool.current_num_threads(), 3);
        let name = pool.install(|| std::thread::current().name().map(str::to_owned));
        assert!(name.as_deref().is_some_and(|name| name.starts_with("amend-test-")), "{name:?}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_nice_pool_leaves_other_threads_as_they_are() {
        let own = || rustix::process::getpriority_process(None).unwrap();
        let before = own();
        let pool = pool("amend-test", Some(2), 19).unwrap();
        assert!(pool.broadcast(|_| own()).into_iter().all(|niceness| niceness == 19));
        assert_eq!(own(), before);
    }
}
