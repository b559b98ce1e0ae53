//! The best logits of a decoding step, computed again in f32.
//!
//! Decoding multiplies the output head with activations rounded to 8 bits, which moves each logit by some hundredths.
//! Where the best two tokens are closer than that, greedy decoding would choose another one than the f32 head, by which
//! everything else is measured: an edit's report would say that its target is greedy, and the text would go another way.

use candle_core::{Result, Tensor};

use super::linear::frozen_matmul;

/// How many of the best logits are computed again. The rounding would have to move a token past all of the others for
/// the best one to be missed.
const CANDIDATES: usize = 16;

/// Puts the f32 values of the best logits into `logits [n, vocabulary]`, which were computed from `rows [n, hidden]` in
/// less precision; `head [vocabulary, hidden]` is f32.
pub fn rescore(logits: &Tensor, rows: &Tensor, head: &Tensor) -> Result<Tensor> {
    let (_, vocabulary) = logits.dims2()?;
    let mut values = logits.flatten_all()?.to_vec1::<f32>()?;
    for (row, values) in values.chunks_exact_mut(vocabulary).enumerate() {
        let best = largest(values);
        let ids = Tensor::new(best.as_slice(), head.device())?;
        let exact = frozen_matmul(&rows.narrow(0, row, 1)?, &head.index_select(&ids, 0)?)?.flatten_all()?;
        for (id, exact) in best.into_iter().zip(exact.to_vec1::<f32>()?) {
            values[id as usize] = exact;
        }
    }
    Tensor::from_vec(values, logits.shape(), logits.device())
}

/// The places of the [`CANDIDATES`] largest values, largest first; fewer if there are not as many.
fn largest(values: &[f32]) -> Vec<u32> {
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(CANDIDATES + 1);
    let mut least = f32::NEG_INFINITY;
    for (place, &value) in values.iter().enumerate() {
        // Nearly always false: one pass with hardly a branch taken.
        if value > least || best.len() < CANDIDATES {
            let at = best.partition_point(|(other, _)| *other >= value);
            best.insert(at, (value, place as u32));
            best.truncate(CANDIDATES);
            least = best.last().map_or(f32::NEG_INFINITY, |(value, _)| *value);
        }
    }
    best.into_iter().map(|(_, place)| place).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::{
        D,
        quantized::{GgmlDType, QTensor},
    };

    use super::*;
    use crate::model::{
        layers::linear::Quantized,
        testing::{assert_close, random},
    };

    #[test]
    fn the_largest_come_first() {
        let values: Vec<f32> = (0..100).map(|i| ((i * 37) % 101) as f32).collect();
        let mut sorted: Vec<u32> = (0..100).collect();
        sorted.sort_by(|a, b| values[*b as usize].total_cmp(&values[*a as usize]));
        assert_eq!(largest(&values), sorted[..CANDIDATES]);
        assert_eq!(largest(&[1.0, 3.0, 2.0]), [1, 2, 0]);
        assert!(largest(&[]).is_empty());
    }

    #[test]
    fn the_best_token_is_that_of_the_f32_head() {
        let stored = QTensor::quantize(&random(&[512, 64], 1), GgmlDType::Q8_0).unwrap();
        let head = stored.dequantize(&stored.device()).unwrap();
        let rows = (random(&[400, 64], 2) * 3.0).unwrap();
        let exact = rows.matmul(&head.t().unwrap()).unwrap();
        let rough = Quantized::new(stored).unwrap().forward(&rows).unwrap();
        let rescored = rescore(&rough, &rows, &head).unwrap();
        let best = |logits: &Tensor| logits.argmax(D::Minus1).unwrap().to_vec1::<u32>().unwrap();
        let differ = |a: &Tensor, b: &Tensor| best(a).iter().zip(best(b)).filter(|(a, b)| **a != *b).count();
        assert!(differ(&rough, &exact) > 0, "the rounding decides nowhere, so there is nothing to test");
        assert_eq!(differ(&rescored, &exact), 0);
        assert_close(&rescored, &exact, 0.02);
    }
}
