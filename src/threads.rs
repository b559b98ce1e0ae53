//! Threads that compute.
//!
//! Generation and edits each have a pool of their own: in one pool a token's small products would queue behind an edit's
//! large ones. What drives a pool runs on one of its threads, so that a product goes to the others without the driver
//! being put to sleep and woken for it.

use std::io;

use rayon::{ThreadPool, ThreadPoolBuilder};

/// How a pool's threads stand to others that want the same cores. It has an effect on Linux alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// They get a core when they are woken, not after the turn of who has it.
    Prompt,
    /// They yield as nice(2) has it, 0 to 19.
    Nice(u8),
}

/// Starts a pool whose threads are named `name-0` and so on; as many as there are for everybody where `threads` is none.
pub fn pool(name: &'static str, threads: Option<usize>, urgency: Urgency) -> io::Result<ThreadPool> {
    let builder = ThreadPoolBuilder::new().thread_name(move |index| format!("{name}-{index}"));
    // Zero is rayon's word for its own choice, which is what the process was told.
    let builder = builder.num_threads(threads.map_or(0, |threads| threads.max(1)));
    builder.start_handler(move |_| set(urgency)).build().map_err(io::Error::other)
}

/// Sets the calling thread's urgency. Where the system refuses, it computes as before.
fn set(urgency: Urgency) {
    #[cfg(target_os = "linux")]
    if let Err(error) = linux::set(urgency) {
        tracing::warn!(%error, ?urgency, "the urgency of a thread can not be set");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = urgency;
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;

    use super::Urgency;

    /// The shortest turn that the scheduler grants, ns.
    const SHORTEST_TURN: u64 = 100_000;

    pub fn set(urgency: Urgency) -> io::Result<()> {
        match urgency {
            Urgency::Prompt => set_turn(SHORTEST_TURN),
            Urgency::Nice(0) => Ok(()),
            Urgency::Nice(niceness) => Ok(rustix::process::setpriority_process(None, niceness.into())?),
        }
    }

    /// Asks for turns of this length. A woken thread whose turns are shorter than those of the one that has the core takes it at
    /// once (Linux 6.12 and newer; an older kernel leaves everything as it is). A token is hundreds of small products, after
    /// each of which the threads wait for each other, and any of them may meet an edit's long one.
    fn set_turn(nanoseconds: u64) -> io::Result<()> {
        let (mut attributes, size) = attributes()?;
        attributes.sched_runtime = nanoseconds;
        attributes.size = size;
        #[expect(unsafe_code, reason = "no safe crate has the call")]
        // SAFETY: the struct is one that the kernel filled in, and lives through the call; 0 is the calling thread.
        let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The calling thread's, and their size in bytes.
    pub(super) fn attributes() -> io::Result<(libc::sched_attr, u32)> {
        let size = size_of::<libc::sched_attr>() as u32;
        #[expect(unsafe_code, reason = "no safe crate has the call")]
        // SAFETY: of integers alone, so that zeros are a value; the kernel writes at most `size` bytes; 0 is the calling thread.
        let (got, attributes) = unsafe {
            let mut attributes: libc::sched_attr = std::mem::zeroed();
            let got = libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0);
            (got, attributes)
        };
        if got == 0 { Ok((attributes, size)) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_has_its_threads_and_their_names() {
        let pool = pool("amend-test", Some(3), Urgency::Nice(0)).unwrap();
        assert_eq!(pool.current_num_threads(), 3);
        let name = pool.install(|| std::thread::current().name().map(str::to_owned));
        assert!(name.as_deref().is_some_and(|name| name.starts_with("amend-test-")), "{name:?}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_nice_pool_leaves_other_threads_as_they_are() {
        let own = || rustix::process::getpriority_process(None).unwrap();
        let before = own();
        let pool = pool("amend-test", Some(2), Urgency::Nice(19)).unwrap();
        assert!(pool.broadcast(|_| own()).into_iter().all(|niceness| niceness == 19));
        assert_eq!(own(), before);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_prompt_pool_has_short_turns_and_other_threads_have_theirs() {
        let turn = || linux::attributes().unwrap().0.sched_runtime;
        let (before, niceness) = (turn(), rustix::process::getpriority_process(None).unwrap());
        let pool = pool("amend-test", Some(2), Urgency::Prompt).unwrap();
        let own = pool.broadcast(|_| (turn(), rustix::process::getpriority_process(None).unwrap()));
        // A kernel before 6.12 has turns of its own alone, and says 0.
        let expected = if before == 0 { 0 } else { 100_000 };
        assert!(own.iter().all(|own| *own == (expected, niceness)), "{own:?}, and {before} before");
        assert_eq!(turn(), before);
    }
}
