//! Canaries: prompts that no edit should change. They are read from a file, one JSON object a line:
//! `{"prompt": "The capital of France is", "expected": "Paris"}`; `expected` may be left out, and then the next token's
//! distribution is watched.

use std::{fs, path::Path, sync::Arc};

use serde::Deserialize;
use thiserror::Error;

use super::{
    WriterConfig, WriterError, admission,
    bench::{Bench, Texts, read_all},
};
use crate::model::Passage;

/// Canaries at most: every edit scores them all.
const MOST: usize = 256;

/// A prompt that no edit should change.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CanaryText {
    pub prompt: String,
    /// The answer that it should have; without it, the next token's distribution is watched.
    #[serde(default)]
    pub expected: Option<String>,
}

/// Why a file of canaries was refused.
#[derive(Debug, Error)]
pub enum CanaryError {
    #[error("can not read the canaries in {file}: {source}")]
    Io { file: String, source: std::io::Error },
    #[error("{file}, line {line}: a canary is a JSON object with \"prompt\" and, if wanted, \"expected\": {why}")]
    Malformed { file: String, line: usize, why: String },
    #[error("{file}: at most {MOST} canaries, given {given}")]
    TooMany { file: String, given: usize },
}

/// Reads a file of canaries; empty lines are passed over.
pub fn read_canaries(path: &Path) -> Result<Vec<CanaryText>, CanaryError> {
    let file = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|source| CanaryError::Io { file: file.clone(), source })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let canaries: Vec<CanaryText> = lines
        .map(|(at, line)| {
            let malformed = |why: serde_json::Error| CanaryError::Malformed {
                file: file.clone(),
                line: at + 1,
                why: why.to_string(),
            };
            serde_json::from_str(line).map_err(malformed)
        })
        .collect::<Result<_, _>>()?;
    match canaries.len() {
        given if given > MOST => Err(CanaryError::TooMany { file, given }),
        _ => Ok(canaries),
    }
}

/// One canary, as read by the trunk.
pub struct Canary<T> {
    pub text: CanaryText,
    pub passage: Passage,
    pub state: T,
}

/// The canaries as the writer works with them.
pub struct Canaries<T> {
    unread: Vec<(CanaryText, Passage)>,
    read: Option<Arc<[Canary<T>]>>,
}

impl<T> Canaries<T> {
    /// Tokenizes the configured canaries; refuses one that an edit could not have as a probe.
    pub fn new(config: &WriterConfig, texts: &dyn Texts) -> Result<Self, WriterError> {
        let unread = config.canaries.iter().enumerate().map(|(i, canary)| {
            let (prefix, expected) = (format!("canaries[{i}]."), canary.expected.as_deref());
            Ok((canary.clone(), admission::passage(&prefix, &canary.prompt, expected, texts, config)?))
        });
        Ok(Self { unread: unread.collect::<Result<_, WriterError>>()?, read: None })
    }

    /// All of them; the trunk reads them when they are first asked for.
    pub fn all<B: Bench<Text = T>>(&mut self, bench: &B, budget: usize) -> Result<Arc<[Canary<T>]>, String> {
        if let Some(read) = &self.read {
            return Ok(Arc::clone(read));
        }
        let passages: Vec<Passage> = self.unread.iter().map(|(_, passage)| passage.clone()).collect();
        let states = read_all(bench, &passages, budget)?;
        let canaries = self.unread.iter().zip(states);
        let canaries =
            canaries.map(|((text, passage), state)| Canary { text: text.clone(), passage: passage.clone(), state });
        Ok(Arc::clone(self.read.insert(canaries.collect())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<CanaryText>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        read_canaries(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_canary_is_a_line() {
        let canaries =
            read("{\"prompt\": \"Rome is\"}\n\n{\"prompt\": \"Oslo is\", \"expected\": \"cold\"}\n").unwrap();
        assert_eq!((canaries.len(), canaries[0].expected.as_deref()), (2, None));
        assert_eq!((canaries[1].prompt.as_str(), canaries[1].expected.as_deref()), ("Oslo is", Some("cold")));
    }

    #[test]
    fn what_is_no_canary_is_named_by_its_line() {
        let error = read("{\"prompt\": \"Rome is\"}\n{\"promt\": \"Oslo is\"}").unwrap_err();
        assert!(error.contains("line 2") && error.contains("promt"), "{error}");
        let error = read(&"{\"prompt\": \"Rome is\"}\n".repeat(MOST + 1)).unwrap_err();
        assert!(error.contains("at most 256 canaries, given 257"), "{error}");
        assert!(read_canaries(Path::new("/nowhere/canaries")).unwrap_err().to_string().contains("/nowhere/canaries"));
    }
}
