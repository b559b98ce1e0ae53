//! Law 2 under random sets, orders, thread counts and magnitudes.

use candle_core::{Device, Tensor};
use proptest::{prelude::*, sample::Index};

use super::*;
use crate::{
    digest::Digest,
    editor::{Delta, MatrixDelta},
    weights::weights_digest,
};

const N_MATRICES: usize = 2;

fn shapes() -> Vec<EditableMatrix> {
    // The second is wider than a block of columns.
    vec![
        EditableMatrix { name: "up".into(), d_out: 5, d_in: 7 },
        EditableMatrix { name: "down".into(), d_out: 3, d_in: 515 },
    ]
}

/// Deterministic values in about +-1.
fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn tensor(values: Vec<f32>, shape: (usize, usize)) -> Tensor {
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn contribution(seed: u64, rows: usize, scale: f32) -> Contribution {
    let delta = shapes().into_iter().enumerate().map(|(m, s)| {
        let seed = seed * 31 + m as u64;
        if seed % 5 == 4 {
            let dense = noise(seed, s.d_out * s.d_in).iter().map(|v| v * scale).collect();
            return MatrixDelta::Dense(tensor(dense, (s.d_out, s.d_in)));
        }
        let left = noise(seed, rows * s.d_out).iter().map(|v| v * scale).collect();
        let right = noise(seed + 7777, rows * s.d_in);
        MatrixDelta::LowRank { left: tensor(left, (rows, s.d_out)), right: tensor(right, (rows, s.d_in)) }
    });
    Contribution::from_delta(&Delta(delta.collect())).unwrap()
}

fn constant(value: f32) -> Contribution {
    let delta =
        shapes().into_iter().map(|s| MatrixDelta::Dense(tensor(vec![value; s.d_out * s.d_in], (s.d_out, s.d_in))));
    Contribution::from_delta(&Delta(delta.collect())).unwrap()
}

fn empty() -> Accumulator {
    let base = shapes().iter().enumerate().map(|(m, s)| noise(m as u64 + 99, s.d_out * s.d_in)).collect();
    Accumulator::new(&shapes(), &DenseMatrices::from_vecs(&shapes(), base, &Device::Cpu).unwrap()).unwrap()
}

fn bits(weights: &[Vec<f32>]) -> Vec<Vec<u32>> {
    weights.iter().map(|w| w.iter().map(|v| v.to_bits()).collect()).collect()
}

/// Elements as a plain reading of the definition gives them.
fn expected(set: &[&Contribution]) -> Vec<Vec<f32>> {
    let empty = empty();
    (0..N_MATRICES)
        .map(|m| {
            let shape = &empty.shapes[m];
            (0..shape.d_out * shape.d_in)
                .map(|at| {
                    let (o, d) = (at / shape.d_in, at % shape.d_in);
                    let steps = set.iter().map(|c| {
                        let value = match &c.parts()[m].values {
                            Values::Dense(values) => values[at],
                            Values::LowRank { left, right } => (0..c.parts()[m].n)
                                .fold(0_f32, |sum, i| sum + left[i * shape.d_out + o] * right[i * shape.d_in + d]),
                            Values::Joint { .. } => unreachable!("these are sums"),
                        };
                        fixed::wide(value)
                    });
                    fixed::weight(empty.base[m][at], steps.sum())
                })
                .collect()
        })
        .collect()
}

proptest! {
    #[test]
    fn weights_are_a_function_of_the_set(
        sizes in prop::collection::vec((1_usize..11, -8_i32..4), 1..8),
        takes in prop::collection::vec(any::<(Index, bool)>(), 0..24),
        order in any::<u64>(),
    ) {
        let all: Vec<Contribution> = sizes
            .iter()
            .enumerate()
            .map(|(seed, (rows, exponent))| contribution(seed as u64, *rows, 10_f32.powi(*exponent)))
            .collect();
        // Any interleaving of adding and taking back ...
        let mut wandering = empty();
        let mut active = vec![false; all.len()];
        for (index, fused) in &takes {
            let i = index.index(all.len());
            let (removed, added) = if active[i] { (vec![&all[i]], vec![]) } else { (vec![], vec![&all[i]]) };
            if *fused {
                let weights = wandering.change_to_weights(&removed, &added).unwrap();
                prop_assert_eq!(bits(&weights), bits(&wandering.weights()));
            } else {
                wandering.change(&removed, &added).unwrap();
            }
            active[i] = !active[i];
        }
        // ... is the resulting set alone, in another order.
        let mut set: Vec<&Contribution> = all.iter().zip(&active).filter(|(_, on)| **on).map(|(c, _)| c).collect();
        let expected = bits(&expected(&set));
        set.sort_by_key(|c| Digest::of(&[c.digest().0.as_slice(), &order.to_le_bytes()].concat()));
        let mut direct = empty();
        for contribution in &set {
            direct.add(contribution).unwrap();
        }
        prop_assert_eq!(&direct.sums, &wandering.sums);
        prop_assert_eq!(&direct.bounds, &wandering.bounds);
        prop_assert_eq!(bits(&direct.weights()), expected);
        prop_assert_eq!(
            weights_digest(&shapes(), &direct.weights()),
            weights_digest(&shapes(), &wandering.weights())
        );
        prop_assert_eq!(direct.digest(), weights_digest(&shapes(), &direct.weights()));
        let mut together = empty();
        together.change(&[], &set).unwrap();
        prop_assert_eq!(&together.sums, &direct.sums);
    }

    #[test]
    fn thread_count_does_not_change_the_bits(rows in 1_usize..9, threads in 1_usize..5) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let contribution = contribution(3, rows, 0.5);
        let mut here = empty();
        here.add(&contribution).unwrap();
        let there = pool.install(|| {
            let mut there = empty();
            there.add(&contribution).unwrap();
            there
        });
        prop_assert_eq!(here.sums, there.sums);
    }

    #[test]
    fn overflow_is_an_error_and_leaves_the_sums_untouched(values in prop::collection::vec(-6e6_f32..6e6, 2..7)) {
        let mut sum = empty();
        let mut exact = 0_i128;
        for value in values {
            let before = sum.clone();
            let next = exact + i128::from(fixed::wide(value));
            match sum.add(&constant(value)) {
                Ok(()) => {
                    exact = next;
                    prop_assert!(sum.sums.iter().flatten().all(|s| i128::from(*s) == exact));
                }
                Err(WeightsError::Overflow { matrix, limit }) => {
                    prop_assert!(next.unsigned_abs() >= 1 << 63);
                    prop_assert_eq!((matrix.as_str(), limit), ("up", 8_388_608.0));
                    prop_assert_eq!(&before.sums, &sum.sums);
                    prop_assert_eq!(&before.bounds, &sum.bounds);
                }
                Err(other) => return Err(TestCaseError::fail(other.to_string())),
            }
        }
    }
}

#[test]
fn overflow_in_the_last_matrix_half_adds_nothing() {
    let mut sum = empty();
    let parts = shapes()
        .into_iter()
        .zip([1.0, 9e6])
        .map(|(s, value)| MatrixDelta::Dense(tensor(vec![value; s.d_out * s.d_in], (s.d_out, s.d_in))));
    let error = sum.add(&Contribution::from_delta(&Delta(parts.collect())).unwrap()).unwrap_err();
    assert!(matches!(error, WeightsError::Overflow { matrix, .. } if matrix == "down"));
    assert!(sum.sums.iter().flatten().all(|s| *s == 0));
}

#[test]
fn a_product_that_leaves_f32_is_an_overflow() {
    let parts = shapes().into_iter().map(|s| MatrixDelta::LowRank {
        left: tensor(vec![1e30; s.d_out], (1, s.d_out)),
        right: tensor(vec![1e30; s.d_in], (1, s.d_in)),
    });
    let error = empty().add(&Contribution::from_delta(&Delta(parts.collect())).unwrap()).unwrap_err();
    assert!(matches!(error, WeightsError::Overflow { .. }));
}

#[test]
fn a_swap_within_range_passes_where_adding_first_would_not() {
    let mut sum = empty();
    sum.add(&constant(8e6)).unwrap();
    assert!(sum.add(&constant(7e6)).is_err());
    sum.change(&[&constant(8e6)], &[&constant(7e6)]).unwrap();
    sum.remove(&constant(7e6)).unwrap();
    assert!(sum.sums.iter().flatten().all(|s| *s == 0));
}

#[test]
fn what_never_entered_can_not_leave() {
    assert!(matches!(empty().remove(&constant(1.0)), Err(WeightsError::Malformed(_))));
}

#[test]
fn a_contribution_of_other_shapes_is_refused() {
    let delta = Delta(vec![MatrixDelta::Dense(tensor(vec![1.0], (1, 1)))]);
    assert!(matches!(empty().add(&Contribution::from_delta(&delta).unwrap()), Err(WeightsError::Malformed(_))));
}

#[test]
#[ignore = "a timing, for people: run with --run-ignored only --no-capture"]
fn timing_at_the_size_of_smollm2() {
    let shapes: Vec<EditableMatrix> = (0..9)
        .map(|m| {
            let (d_out, d_in) = if m % 3 == 2 { (576, 1536) } else { (1536, 576) };
            EditableMatrix { name: format!("m{m}"), d_out, d_in }
        })
        .collect();
    let base = shapes.iter().map(|s| noise(1, s.d_out * s.d_in)).collect();
    let mut sum = Accumulator::new(&shapes, &DenseMatrices::from_vecs(&shapes, base, &Device::Cpu).unwrap()).unwrap();
    let parts = shapes.iter().map(|s| MatrixDelta::LowRank {
        left: tensor(noise(2, 12 * s.d_out).iter().map(|v| v * 1e-3).collect(), (12, s.d_out)),
        right: tensor(noise(3, 12 * s.d_in), (12, s.d_in)),
    });
    let contribution = Contribution::from_delta(&Delta(parts.collect())).unwrap();
    for _ in 0..6 {
        let start = std::time::Instant::now();
        sum.add(&contribution).unwrap();
        let added = start.elapsed();
        let start = std::time::Instant::now();
        let weights = sum.change_to_weights(&[&contribution], &[]).unwrap();
        let fused = start.elapsed();
        let start = std::time::Instant::now();
        weights_digest(&shapes, &weights);
        println!("add {added:?}, take back with weights {fused:?}, digest {:?}", start.elapsed());
    }
}
