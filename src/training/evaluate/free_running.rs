//! The match that teacher forcing flatters: the edited model writes the answer itself.

use crate::model::{Model, ModelError, Projection};

/// Whether `prompt`, continued greedily by at most `tokens` tokens, goes on with `target`, white space before it aside.
/// Stops as soon as that is certain either way.
pub(super) fn begins_with(
    model: &Model,
    prompt: &[u32],
    target: &str,
    tokens: usize,
    weights: &dyn Projection,
) -> Result<bool, ModelError> {
    let tokenizer = model.tokenizer();
    let mut sequence = model.start();
    let mut stream = tokenizer.decode_stream().continuing();
    let mut text = String::new();
    let mut ids = prompt.to_vec();
    let room = model.context_length().saturating_sub(prompt.len());
    for _ in 0..tokens.min(room) {
        let next = argmax(&model.forward(&mut sequence, &ids, weights)?);
        if tokenizer.is_end(next) {
            return Ok(false);
        }
        text.extend(stream.push(next));
        let spoken = text.trim_start();
        if spoken.starts_with(target) {
            return Ok(true);
        }
        if !target.starts_with(spoken) {
            return Ok(false);
        }
        ids = vec![next];
    }
    // A character that was begun and not finished can not complete the target.
    Ok(false)
}

/// The first of the largest.
fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().fold(
        (0, f32::NEG_INFINITY),
        |best, (id, &logit)| {
            if logit > best.1 { (id, logit) } else { best }
        },
    );
    best.0 as u32
}
