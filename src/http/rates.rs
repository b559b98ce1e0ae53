//! How often a key may be used, for each scope.
//!
//! This is the generic cell rate algorithm (ITU-T I.371): of each key and scope one time is kept, at which all that was admitted
//! would have been spent at an even pace. A request is admitted if that lies less than a minute's worth ahead.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::error::{Code, Problem};
use crate::keys::Scope;

/// What the rates are per.
const MINUTE: Duration = Duration::from_secs(60);

/// Most requests a minute of each key on the routes of a scope. Cloning shares what is counted.
#[derive(Debug, Clone, Default)]
pub struct RateLimits(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    per_minute: HashMap<Scope, NonZeroU32>,
    /// Names are those of keys that were once in the file, so there are not many.
    spent_until: Mutex<HashMap<(String, Scope), Instant>>,
}

impl RateLimits {
    /// These limits; scopes without one are not limited.
    pub fn new(per_minute: impl IntoIterator<Item = (Scope, NonZeroU32)>) -> Self {
        Self(Arc::new(Inner { per_minute: per_minute.into_iter().collect(), spent_until: Mutex::default() }))
    }

    /// Counts a request of the key with this name, or refuses it. Without keys all callers are one.
    pub(super) fn take(&self, name: Option<&str>, scope: Scope) -> Result<(), Problem> {
        let Some(&limit) = self.0.per_minute.get(&scope) else { return Ok(()) };
        self.take_at(name.unwrap_or_default(), scope, limit, Instant::now()).map_err(|wait| {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            let whose = name.map_or_else(|| "all callers together".to_owned(), |name| format!("the key {name:?}"));
            let detail =
                format!("{scope} is limited to {limit} requests a minute for {whose}; try again in {seconds} s");
            Problem::new(Code::RateLimited, detail)
                .with("scope", scope.name())
                .with("limit_per_minute", limit.get())
                .with("retry_after_seconds", seconds)
                .retry_after(Duration::from_secs(seconds))
        })
    }

    /// The error is how long to wait.
    fn take_at(&self, name: &str, scope: Scope, limit: NonZeroU32, now: Instant) -> Result<(), Duration> {
        let each = MINUTE / limit.get();
        let mut spent = self.0.spent_until.lock().unwrap_or_else(PoisonError::into_inner);
        let until = spent.entry((name.to_owned(), scope)).or_insert(now);
        let ahead = until.saturating_duration_since(now);
        if ahead + each > MINUTE {
            return Err(ahead + each - MINUTE);
        }
        *until = (*until).max(now) + each;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minutes_worth_at_once_and_then_an_even_pace_for_each_key_and_scope() {
        let limit = NonZeroU32::new(3).unwrap();
        let rates = RateLimits::new([(Scope::Edit, limit)]);
        let start = Instant::now();
        let take = |name: &str, after: u64| {
            rates.take_at(name, Scope::Edit, limit, start + Duration::from_secs(after)).map_err(|wait| wait.as_secs())
        };
        for _ in 0..3 {
            assert_eq!(take("a", 0), Ok(()));
        }
        assert_eq!(take("a", 0), Err(20));
        assert_eq!(take("b", 0), Ok(()), "another key has its own");
        assert_eq!(take("a", 15), Err(5));
        assert_eq!(take("a", 20), Ok(()));
        assert_eq!(take("a", 20), Err(20));
        for _ in 0..3 {
            assert_eq!(take("a", 500), Ok(()), "more than a minute's worth is not saved up");
        }
        assert_eq!(take("a", 500), Err(20));
        for _ in 0..1000 {
            assert!(rates.take(Some("a"), Scope::Read).is_ok(), "a scope without a limit");
        }
    }

    #[test]
    fn what_is_refused_says_when_to_come_again() {
        let rates = RateLimits::new([(Scope::Generate, NonZeroU32::MIN)]);
        rates.take(None, Scope::Generate).unwrap();
        let refused = rates.take(None, Scope::Generate).unwrap_err();
        assert_eq!(refused.code(), Code::RateLimited);
        assert_eq!(refused.body()["limit_per_minute"], 1);
        assert_eq!(refused.body()["retry_after_seconds"], 60);
        assert!(refused.detail().contains("all callers together"), "{}", refused.detail());
    }
}
