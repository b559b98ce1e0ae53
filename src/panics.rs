//! Panics turned into errors: one faulty task must not end a thread that others need.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// Runs `work`; a panic becomes an error with its message. What `work` was changing when it panicked may be half-way:
/// whoever calls this must not go on with it as if it were whole.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| format!("panicked: {}", message(panic.as_ref())))
}

/// What a panic said.
pub fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(caught(|| 3), Ok(3));
        assert_eq!(caught(|| panic!("plain")), Err::<(), _>("panicked: plain".to_owned()));
        let number = 7;
        assert_eq!(caught(|| panic!("number {number}")), Err::<(), _>("panicked: number 7".to_owned()));
        assert_eq!(caught(|| std::panic::panic_any(7)), Err::<(), _>("panicked: no message".to_owned()));
    }
}
