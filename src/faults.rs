//! Named points at which a test has the process die, a panic or an I/O error happen, and a clock that a test can turn back.
//!
//! All of it is there only where debug assertions are on, as in the profile that tests are built with; elsewhere
//! [`reach`] is an empty inline function and [`now`] the system's clock. So a release build has nothing that could be
//! reached, and no second build is needed to test. In a test build a fault comes from the environment, which is read once,
//! or from [`arm`]: no request can set one. It happens once.

use std::io;

use jiff::Timestamp;

/// Where something can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Before trunk and tail compute an edit's factors.
    Capture,
    /// Before the editor makes a change of them.
    Editor,
    /// Before the guard measures; the sums hold the edit.
    Guard,
    /// Before the transaction that records edits which changed nothing is committed.
    Record,
    /// When the transaction of a version has begun.
    CommitBegin,
    /// When all its rows are written.
    CommitRows,
    /// When it is durable, and nobody has been told.
    CommitDone,
    /// Before a durable version is published.
    Publish,
    /// Before a start, or the repair of a lost answer, takes up a version from the log.
    Replay,
    /// Before an older version is made again for a request.
    Rebuild,
    /// Before a compaction is committed, and again when it is, before the file is made smaller.
    Compact,
}

impl Point {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Capture,
        Self::Editor,
        Self::Guard,
        Self::Record,
        Self::CommitBegin,
        Self::CommitRows,
        Self::CommitDone,
        Self::Publish,
        Self::Replay,
        Self::Rebuild,
        Self::Compact,
    ];

    /// Its name in `AMEND_FAULT`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Editor => "editor",
            Self::Guard => "guard",
            Self::Record => "record",
            Self::CommitBegin => "commit_begin",
            Self::CommitRows => "commit_rows",
            Self::CommitDone => "commit_done",
            Self::Publish => "publish",
            Self::Replay => "replay",
            Self::Rebuild => "rebuild",
            Self::Compact => "compact",
        }
    }
}

/// What a test build does where a fault is armed: nothing, an error, a panic, or the end of the process.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn reach(_: Point) -> io::Result<()> {
    Ok(())
}

/// The time, for what is written down; what is measured uses a clock that never goes backwards.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn now() -> Timestamp {
    Timestamp::now()
}

#[cfg(debug_assertions)]
pub use armed::{Fault, arm, now, reach};

#[cfg(debug_assertions)]
mod armed {
    use std::sync::{LazyLock, Mutex, PoisonError};

    use jiff::SignedDuration;

    use super::{Point, Timestamp, io};

    /// `POINT:KIND` or `POINT:KIND:N`: at the N-th time that POINT is reached (default: the first), once. KIND is `abort`,
    /// `panic` or `error`.
    const FAULT: &str = "AMEND_FAULT";
    /// Seconds by which the clock is off.
    const SHIFT: &str = "AMEND_CLOCK_SHIFT";

    /// What happens.
    pub enum Fault {
        /// The process ends at once, as if it were killed.
        Abort,
        Panic,
        Error,
        /// This is called, and nothing goes wrong.
        Call(Box<dyn FnOnce() + Send>),
    }

    struct Armed {
        point: Point,
        fault: Fault,
        /// How many times the point is passed before.
        left: u64,
    }

    static ARMED: LazyLock<Mutex<Option<Armed>>> = LazyLock::new(|| Mutex::new(of_environment()));
    static CLOCK: LazyLock<SignedDuration> = LazyLock::new(|| {
        let seconds = variable(SHIFT).map(|text| text.parse().unwrap_or_else(|_| refuse(SHIFT, &text)));
        SignedDuration::from_secs(seconds.unwrap_or(0))
    });

    /// Has `fault` happen when `point` is reached for the `nth` time from now on, counted from 1, in place of what was
    /// armed before.
    pub fn arm(point: Point, fault: Fault, nth: u64) {
        *ARMED.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Armed { point, fault, left: nth.saturating_sub(1) });
    }

    /// The process is at `point`.
    pub fn reach(point: Point) -> io::Result<()> {
        match due(point) {
            None => Ok(()),
            Some(Fault::Abort) => std::process::abort(),
            Some(Fault::Panic) => panic!("a panic was asked for at {}", point.name()),
            Some(Fault::Error) => Err(io::Error::other(format!("an error was asked for at {}", point.name()))),
            Some(Fault::Call(call)) => {
                call();
                Ok(())
            }
        }
    }

    /// The time, for what is written down; what is measured uses a clock that never goes backwards.
    pub fn now() -> Timestamp {
        Timestamp::now().saturating_add(*CLOCK).unwrap_or(Timestamp::MIN)
    }

    /// What has to happen now; nothing is held locked while it does.
    fn due(point: Point) -> Option<Fault> {
        let mut armed = ARMED.lock().unwrap_or_else(PoisonError::into_inner);
        let here = armed.as_mut().filter(|armed| armed.point == point)?;
        if here.left > 0 {
            here.left -= 1;
            return None;
        }
        armed.take().map(|armed| armed.fault)
    }

    fn of_environment() -> Option<Armed> {
        let text = variable(FAULT)?;
        Some(read(&text).unwrap_or_else(|| refuse(FAULT, &text)))
    }

    fn read(text: &str) -> Option<Armed> {
        let mut parts = text.split(':');
        let (point, kind) = (parts.next()?, parts.next()?);
        let nth: u64 = parts.next().map_or(Some(1), |nth| nth.parse().ok())?;
        let fault = match kind {
            "abort" => Fault::Abort,
            "panic" => Fault::Panic,
            "error" => Fault::Error,
            _ => return None,
        };
        let point = Point::ALL.into_iter().find(|known| known.name() == point)?;
        Some(Armed { point, fault, left: nth.checked_sub(1)? })
    }

    fn variable(name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|text| !text.is_empty())
    }

    /// A test that asks for something else than it means to must not pass.
    fn refuse(name: &str, text: &str) -> ! {
        panic!("{name}: {text:?} is not understood")
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn what_is_asked_for_is_read_or_refused() {
            for point in Point::ALL {
                for kind in ["abort", "panic", "error"] {
                    let armed = read(&format!("{}:{kind}:3", point.name())).unwrap();
                    assert_eq!((armed.point, armed.left), (point, 2));
                }
            }
            for nonsense in ["", "guard", "guard:", "guard:sleep", "nowhere:panic", "guard:panic:0", "guard:panic:x"] {
                assert!(read(nonsense).is_none(), "{nonsense}");
            }
        }
    }
}
