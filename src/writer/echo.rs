//! How much of what an edit says it also says on another prompt.
//!
//! With `D` an edit's own change of a matrix and `k` the input at which it was captured, `D k` is what it says there. At
//! another input `x` it says `D x`, of which `(D x . D k) / |D k|^2 = q . x` is the same, with `q = D^T D k / |D k|^2`. The
//! similarity of a prompt to the edit is the mean of `q . x`, held to 0 and 1, over the matrices. It sees through the
//! edit's own eyes: what the edit does not read does not count. Inputs are compared at the position that predicts the
//! target's first token and at the base weights, so a prompt's similarity does not depend on any other edit.
//!
//! The plain cosine of the same inputs tells relations apart, not facts: on CounterFact a question about another subject
//! is more like the prompt than its own paraphrase is. `docs/holding.md` has both, measured.

use super::bench::Keys;
use crate::weights::{Contribution, Part};

/// Where an edit speaks: `q` of each matrix; none where it says nothing at its own key.
#[derive(Debug, Clone, PartialEq)]
pub struct Echo(Vec<Option<Vec<f32>>>);

impl Echo {
    /// Of the edit that contributes this and was captured at `keys`; none if these are not one input for each matrix.
    pub fn new(contribution: &Contribution, keys: &Keys) -> Option<Self> {
        let parts = contribution.parts();
        let fits = parts.len() == keys.len() && parts.iter().zip(keys).all(|(part, key)| part.d_in() == key.len());
        fits.then(|| Self(parts.iter().zip(keys).map(|(part, key)| direction(part, key)).collect()))
    }

    /// The inputs at which the edit itself was captured, where its contribution keeps them: that of a joint composition.
    pub fn own_keys(contribution: &Contribution) -> Option<Keys> {
        contribution.parts().iter().map(|part| part.key(0).map(<[f32]>::to_vec)).collect()
    }

    /// 1 where the edit says as much as at its own prompt, 0 where it says nothing like it.
    pub fn similarity(&self, keys: &Keys) -> f32 {
        let said = self.0.iter().zip(keys).map(|(direction, key)| match direction {
            Some(direction) => dot(direction, key).clamp(0.0, 1.0),
            None => 0.0,
        });
        said.sum::<f32>() / self.0.len().max(1) as f32
    }
}

/// `D^T D k / |D k|^2`.
fn direction(part: &Part, key: &[f32]) -> Option<Vec<f32>> {
    let said = apply(part, key);
    let size = dot(&said, &said);
    let mut direction = apply_transposed(part, &said);
    direction.iter_mut().for_each(|value| *value /= size);
    (size > 0.0 && direction.iter().all(|value| value.is_finite())).then_some(direction)
}

/// `D x`, `[d_out]`.
fn apply(part: &Part, x: &[f32]) -> Vec<f32> {
    match (part.terms(), part.dense()) {
        (Some(terms), _) => combine(part.d_out(), terms.map(|(left, right)| (dot(right, x), left))),
        (None, Some(dense)) => dense.chunks_exact(part.d_in()).map(|row| dot(row, x)).collect(),
        (None, None) => unreachable!("a part has terms or is dense"),
    }
}

/// `D^T y`, `[d_in]`.
fn apply_transposed(part: &Part, y: &[f32]) -> Vec<f32> {
    match (part.terms(), part.dense()) {
        (Some(terms), _) => combine(part.d_in(), terms.map(|(left, right)| (dot(left, y), right))),
        (None, Some(dense)) => combine(part.d_in(), y.iter().copied().zip(dense.chunks_exact(part.d_in()))),
        (None, None) => unreachable!("a part has terms or is dense"),
    }
}

/// `sum_i scale_i row_i`.
fn combine<'a>(width: usize, terms: impl Iterator<Item = (f32, &'a [f32])>) -> Vec<f32> {
    let mut sum = vec![0.0; width];
    for (scale, row) in terms {
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += scale * value);
    }
    sum
}

/// In eight lanes, which the compiler can make a vector of; the order is fixed.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_lanes, a_rest) = a.as_chunks::<8>();
    let (b_lanes, b_rest) = b.as_chunks::<8>();
    let mut lanes = [0f32; 8];
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use proptest::prelude::*;

    use super::*;
    use crate::editor::{Delta, MatrixDelta};

    fn tensor(values: &[f32], width: usize) -> Tensor {
        Tensor::from_slice(values, (values.len() / width, width), &Device::Cpu).unwrap()
    }

    fn contribution(parts: Vec<MatrixDelta>) -> Contribution {
        Contribution::from_delta(&Delta(parts)).unwrap()
    }

    #[test]
    fn an_edit_says_all_at_its_own_key_half_at_half_and_nothing_beside_it() {
        let low_rank = |right: &[f32]| MatrixDelta::LowRank { left: tensor(&[1.0, -2.0], 2), right: tensor(right, 3) };
        let edit = contribution(vec![low_rank(&[1.0, 0.0, 1.0]), low_rank(&[0.0, 5.0, 0.0])]);
        let own = vec![vec![2.0, 9.0, 0.0], vec![7.0, 1.0, 7.0]];
        let echo = Echo::new(&edit, &own).unwrap();
        assert!((echo.similarity(&own) - 1.0).abs() < 1e-6);
        assert!((echo.similarity(&vec![vec![1.0, 0.0, 0.0], vec![0.0, 0.5, 0.0]]) - 0.5).abs() < 1e-6);
        assert_eq!(echo.similarity(&vec![vec![0.0, 3.0, 0.0], vec![1.0, 0.0, 1.0]]), 0.0);
        assert!(
            (echo.similarity(&vec![vec![90.0, 0.0, 0.0], vec![0.0, -9.0, 0.0]]) - 0.5).abs() < 1e-6,
            "held to 0, 1"
        );
        assert_eq!(Echo::new(&edit, &vec![vec![1.0; 3]]), None, "a key for each matrix");
        let silent = Echo::new(&edit, &vec![vec![0.0, 1.0, 0.0], own[1].clone()]).unwrap();
        assert!(
            (silent.similarity(&own) - 0.5).abs() < 1e-6,
            "a matrix that says nothing at its key counts as nothing"
        );
    }

    #[test]
    fn a_joint_edit_knows_its_own_keys() {
        let joint = |key: f32| MatrixDelta::Joint {
            keys: tensor(&[key, 1.0, 0.0, 0.0], 2),
            left: tensor(&[1.0, 1.0], 1),
            right: tensor(&[1.0, 0.0, 0.0, 1.0], 2),
        };
        let edit = contribution(vec![joint(2.0), joint(3.0)]);
        assert_eq!(Echo::own_keys(&edit), Some(vec![vec![2.0, 1.0], vec![3.0, 1.0]]));
        let sum = contribution(vec![MatrixDelta::Dense(tensor(&[1.0, 2.0], 2))]);
        assert_eq!(Echo::own_keys(&sum), None);
    }

    proptest! {
        #[test]
        fn low_rank_and_dense_say_the_same(
            n in 1_usize..4, left in prop::collection::vec(-1f32..1.0, 9), right in prop::collection::vec(-1f32..1.0, 33),
            own in prop::collection::vec(-1f32..1.0, 11), other in prop::collection::vec(-1f32..1.0, 11),
        ) {
            let (left, right) = (tensor(&left[..n * 3], 3), tensor(&right[..n * 11], 11));
            let dense = left.t().unwrap().matmul(&right).unwrap();
            let low_rank = contribution(vec![MatrixDelta::LowRank { left, right }]);
            let (low_rank, dense) = (Echo::new(&low_rank, &vec![own.clone()]),
                Echo::new(&contribution(vec![MatrixDelta::Dense(dense)]), &vec![own.clone()]));
            let (low_rank, dense) = (low_rank.unwrap(), dense.unwrap());
            let near = |a: f32, b: f32| (a - b).abs() < 1e-2;
            // Where it says almost nothing at its own key, both divide by rounding.
            prop_assume!((low_rank.similarity(&vec![own.clone()]) - 1.0).abs() < 1e-3);
            prop_assert!(near(low_rank.similarity(&vec![other.clone()]), dense.similarity(&vec![other])));
        }
    }
}
