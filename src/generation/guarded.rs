//! Runs what may fail or panic so that it ends nobody but whoever caused it.

use super::{
    decoder::{Decoder, Feed},
    error::GenerateError,
};
use crate::panics::caught;

/// One sequence's answer to a pass.
pub(super) type Answer = Result<Option<Vec<f32>>, GenerateError>;

/// Calls `f`; a panic becomes an error.
pub(super) fn guarded<T>(f: impl FnOnce() -> Result<T, GenerateError>) -> Result<T, GenerateError> {
    caught(f).unwrap_or_else(|panic| Err(panicked(&panic)))
}

/// One pass over all feeds. If it fails, every sequence is taken back to where it was and fed alone, so that only those
/// fail that fail alone.
pub(super) fn pass<D: Decoder>(decoder: &D, mut feeds: Vec<Feed<'_, D>>) -> Vec<Answer> {
    let before: Vec<usize> = feeds.iter().map(|feed| decoder.read(feed.state)).collect();
    let together = guarded(|| forward(decoder, &mut feeds));
    match together {
        Ok(answers) => answers.into_iter().map(Ok).collect(),
        Err(error) if feeds.len() == 1 => vec![Err(error)],
        Err(_) => feeds
            .into_iter()
            .zip(before)
            .map(|(feed, read)| {
                guarded(|| {
                    decoder.rewind(feed.state, read)?;
                    let mut answers = forward(decoder, &mut [feed])?;
                    Ok(answers.pop().flatten())
                })
            })
            .collect(),
    }
}

fn forward<D: Decoder>(decoder: &D, feeds: &mut [Feed<'_, D>]) -> Result<Vec<Option<Vec<f32>>>, GenerateError> {
    let answers = decoder.forward(feeds)?;
    if answers.len() != feeds.len() {
        return Err(GenerateError::Internal(format!("{} sequences got {} answers", feeds.len(), answers.len())));
    }
    Ok(answers)
}

fn panicked(panic: &str) -> GenerateError {
    let message = format!("the engine {panic}");
    tracing::error!(message, "a task in the engine panicked; the others go on");
    GenerateError::Internal(message)
}
