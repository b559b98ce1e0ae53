//! Law 2 for the joint composition: whatever was added and taken back in whatever order, the weights are the set's own.

use candle_core::{Device, Tensor};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::editor::{Delta, MatrixDelta};

fn shapes() -> Vec<EditableMatrix> {
    let shape = |name: &str, d_out, d_in| EditableMatrix { name: name.into(), d_out, d_in };
    vec![shape("gate", 70, 12), shape("down", 12, 70), shape("least squares", 20, 30)]
}

fn tensor(rng: &mut ChaCha8Rng, rows: usize, width: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * width).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap()
}

fn contribution(seed: u64) -> Contribution {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let rows = 1 + seed as usize % 3;
    let parts = shapes().into_iter().map(|shape| {
        let keys = tensor(&mut rng, rows, shape.d_in);
        let right = if shape.name == "least squares" { keys.clone() } else { tensor(&mut rng, rows, shape.d_in) };
        MatrixDelta::Joint { keys, left: tensor(&mut rng, rows, shape.d_out), right }
    });
    Contribution::from_delta(&Delta(parts.collect())).unwrap()
}

fn empty() -> JointSet {
    let base = shapes().into_iter().map(|s| (0..s.d_out * s.d_in).map(|i| (i % 17) as f32 / 17.0 - 0.4).collect());
    let base = DenseMatrices::from_vecs(&shapes(), base.collect(), &Device::Cpu).unwrap();
    let joint = Rule::Joint { ridge: 0.1 };
    JointSet::new(&shapes(), &base, vec![joint, joint, Rule::LeastSquares { ridge: 0.2 }]).unwrap()
}

fn bits(set: &JointSet) -> Vec<Vec<u32>> {
    set.weights().unwrap().iter().map(|weights| weights.iter().map(|weight| weight.to_bits()).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_weights_are_the_sets_own_whatever_came_and_went(
        kept in proptest::collection::btree_set(0_u64..40, 0..8),
        passing in proptest::collection::vec(40_u64..60, 0..6),
        order in any::<u64>(),
    ) {
        let mut wandering = empty();
        for seed in &passing {
            wandering.change(&[], &[&contribution(*seed)]).unwrap();
        }
        let mut shuffled: Vec<u64> = kept.iter().copied().collect();
        let mut rng = ChaCha8Rng::seed_from_u64(order);
        for i in (1..shuffled.len()).rev() {
            shuffled.swap(i, rng.random_range(0..=i));
        }
        for seed in &shuffled {
            wandering.change(&[], &[&contribution(*seed)]).unwrap();
            wandering.weights().unwrap();
        }
        for seed in passing.iter().rev() {
            wandering.change(&[&contribution(*seed)], &[]).unwrap();
        }
        let mut straight = empty();
        let all: Vec<Contribution> = kept.iter().map(|seed| contribution(*seed)).collect();
        straight.change(&[], &all.iter().collect::<Vec<_>>()).unwrap();
        prop_assert_eq!(bits(&wandering), bits(&straight));
        prop_assert_eq!(wandering.digest().unwrap(), straight.digest().unwrap());
        if kept.is_empty() {
            prop_assert_eq!(bits(&wandering), bits(&empty()), "of no edits, the base's own bits");
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut set = empty();
    let all: Vec<Contribution> = (0..20).map(contribution).collect();
    set.change(&[], &all.iter().collect::<Vec<_>>()).unwrap();
    let with = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| bits(&set));
    assert_eq!(with(1), with(4));
}

#[test]
fn the_same_content_twice_is_in_the_set_twice() {
    let (mut set, edit) = (empty(), contribution(1));
    set.change(&[], &[&edit, &edit]).unwrap();
    let twice = bits(&set);
    set.change(&[&edit], &[]).unwrap();
    let mut once = empty();
    once.change(&[], &[&edit]).unwrap();
    assert_eq!(bits(&set), bits(&once));
    assert_ne!(bits(&set), twice);
}

#[test]
fn what_can_not_be_is_refused_and_changes_nothing() {
    let (mut set, edit) = (empty(), contribution(1));
    set.change(&[], &[&edit]).unwrap();
    let before = bits(&set);
    assert!(matches!(set.change(&[&contribution(2)], &[]), Err(WeightsError::Malformed(_))));
    let dense = shapes()
        .into_iter()
        .map(|s| MatrixDelta::Dense(Tensor::zeros((s.d_out, s.d_in), candle_core::DType::F32, &Device::Cpu).unwrap()));
    let dense = Contribution::from_delta(&Delta(dense.collect())).unwrap();
    assert!(matches!(set.change(&[], &[&dense]), Err(WeightsError::Malformed(_))));
    assert_eq!(bits(&set), before);
}
