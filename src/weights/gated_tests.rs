//! Law 2 behind a gate: whatever was added and taken back in whatever order, a version is the set's own.

use candle_core::{Device, Tensor};
use proptest::prelude::*;
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::{
    editor::{Delta, MatrixDelta, gate::Scalars},
    model::Projection,
};

const WIDTH: usize = 12;

fn shapes() -> Vec<EditableMatrix> {
    let shape = |name: &str, d_out, d_in| EditableMatrix { name: name.into(), d_out, d_in };
    vec![shape("up", 30, WIDTH), shape("down", WIDTH, 30)]
}

fn tensor(rng: &mut ChaCha8Rng, rows: usize, width: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * width).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap()
}

fn delta(seed: u64) -> Delta {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let rows = 1 + seed as usize % 3;
    let parts = shapes().into_iter().map(|shape| MatrixDelta::Joint {
        keys: tensor(&mut rng, rows, shape.d_in),
        left: tensor(&mut rng, rows, shape.d_out),
        right: tensor(&mut rng, rows, shape.d_in),
    });
    Delta(parts.collect())
}

fn contribution(seed: u64) -> Contribution {
    Contribution::from_delta(&delta(seed)).unwrap()
}

fn base() -> Arc<DenseMatrices> {
    let mut rng = ChaCha8Rng::seed_from_u64(99);
    Arc::new(DenseMatrices::new(shapes().iter().map(|shape| tensor(&mut rng, shape.d_out, shape.d_in)).collect()))
}

fn empty() -> GatedSet {
    let mut rng = ChaCha8Rng::seed_from_u64(98);
    let map = tensor(&mut rng, WIDTH, WIDTH);
    let mean = Tensor::zeros(WIDTH, candle_core::DType::F32, &Device::Cpu).unwrap();
    let scalars = Scalars { sharpness: 600.0, threshold: 0.97, growth: 0.0 };
    GatedSet::new(&shapes(), &base(), Arc::new(Gate { map, mean, scalars })).unwrap()
}

/// What both matrices give on these rows, in one pass, as bits.
fn answers(set: &GatedSet, x: &Tensor) -> Vec<u32> {
    let edits = set.edits().unwrap();
    let pass = edits.begin_pass().unwrap();
    let inner = pass.project(0, x).unwrap();
    let outer = pass.project(1, &inner).unwrap();
    let bits = |rows: &Tensor| rows.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits);
    bits(&inner).chain(bits(&outer)).collect()
}

/// The keys of some edits, and inputs near none.
fn inputs(seeds: impl Iterator<Item = u64>) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(97);
    let mut rows = vec![tensor(&mut rng, 3, WIDTH)];
    for seed in seeds {
        let MatrixDelta::Joint { keys, .. } = &delta(seed).0[0] else { unreachable!("it was made as rows with keys") };
        rows.push(keys.clone());
    }
    Tensor::cat(&rows, 0).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_version_is_the_sets_own_whatever_came_and_went(
        kept in proptest::collection::btree_set(0_u64..40, 0..8),
        passing in proptest::collection::vec(40_u64..60, 0..6),
        order in any::<u64>(),
    ) {
        let mut wandering = empty();
        for seed in &passing {
            wandering.change(&[], &[&contribution(*seed)]).unwrap();
        }
        let mut shuffled: Vec<u64> = kept.iter().copied().collect();
        shuffled.shuffle(&mut ChaCha8Rng::seed_from_u64(order));
        for seed in &shuffled {
            wandering.change(&[], &[&contribution(*seed)]).unwrap();
        }
        for seed in passing.iter().rev() {
            wandering.change(&[&contribution(*seed)], &[]).unwrap();
        }
        let mut straight = empty();
        let all: Vec<Contribution> = kept.iter().map(|seed| contribution(*seed)).collect();
        straight.change(&[], &all.iter().collect::<Vec<_>>()).unwrap();
        let x = inputs(0..60);
        prop_assert_eq!(answers(&wandering, &x), answers(&straight, &x));
        prop_assert_eq!(wandering.digest(), straight.digest());
        if kept.is_empty() {
            prop_assert_eq!(answers(&wandering, &x), answers(&empty(), &x), "of no edits, the base's own bits");
            prop_assert_eq!(wandering.digest(), weights_digest(&shapes(), &base().to_vecs().unwrap()));
        } else {
            prop_assert_ne!(wandering.digest(), empty().digest());
        }
    }
}

#[test]
fn an_edit_speaks_at_its_keys_and_nowhere_else() {
    let (mut set, x) = (empty(), inputs([1, 2].into_iter()));
    let before = answers(&set, &x);
    set.change(&[], &[&contribution(1)]).unwrap();
    let after = answers(&set, &x);
    let (rows, inner, outer) = (x.dim(0).unwrap(), 30, WIDTH);
    // Three inputs near none, the two keys of edit 1, the three of edit 2.
    let changed: Vec<bool> = (0..rows)
        .map(|row| {
            let own = |bits: &[u32]| -> Vec<u32> {
                let outer_start = rows * inner + row * outer;
                bits[row * inner..(row + 1) * inner]
                    .iter()
                    .chain(&bits[outer_start..outer_start + outer])
                    .copied()
                    .collect()
            };
            own(&before) != own(&after)
        })
        .collect();
    assert_eq!(changed, [false, false, false, true, true, false, false, false]);
}

#[test]
fn an_edit_at_its_key_adds_its_delta() {
    let mut set = empty();
    set.change(&[], &[&contribution(3)]).unwrap();
    let MatrixDelta::Joint { keys, left, right } = &delta(3).0[0] else {
        unreachable!("it was made as rows with keys")
    };
    let edits = set.edits().unwrap();
    let got = edits.begin_pass().unwrap().project(0, keys).unwrap();
    let change = keys.matmul(&right.t().unwrap()).unwrap().matmul(left).unwrap();
    let want = (base().project(0, keys).unwrap() + change).unwrap();
    crate::model::testing::assert_close(&got, &want, 1e-3);
}

#[test]
fn an_edit_without_a_key_is_never_heard() {
    let none = |width| Tensor::from_vec(Vec::<f32>::new(), (0, width), &Device::Cpu).unwrap();
    let parts = shapes().into_iter().map(|shape| MatrixDelta::Joint {
        keys: none(shape.d_in),
        left: none(shape.d_out),
        right: none(shape.d_in),
    });
    let keyless = Contribution::from_delta(&Delta(parts.collect())).unwrap();
    let (mut set, x) = (empty(), inputs([1].into_iter()));
    let before = answers(&set, &x);
    set.change(&[], &[&keyless]).unwrap();
    assert_eq!(answers(&set, &x), before);
    assert_ne!(set.digest(), empty().digest(), "it is in the set all the same");
    set.change(&[], &[&contribution(1)]).unwrap();
    assert_ne!(answers(&set, &x), before);
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it_nor_on_which_are_kept() {
    let mut set = empty();
    set.change(&[], &[&contribution(1), &contribution(2), &contribution(5)]).unwrap();
    let x = inputs([1, 2, 5].into_iter());
    let all = answers(&set, &x);
    let rows = x.dim(0).unwrap();
    for row in 0..rows {
        let alone = answers(&set, &x.narrow(0, row, 1).unwrap());
        assert_eq!(alone[..30], all[row * 30..(row + 1) * 30]);
    }
    let edits = set.edits().unwrap();
    let pass = edits.begin_pass().unwrap();
    let inner = pass.project(0, &x).unwrap();
    let kept = Tensor::new(&[rows as u32 - 1, 3], &Device::Cpu).unwrap();
    pass.keep_rows(&kept).unwrap();
    let outer = pass.project(1, &inner.index_select(&kept, 0).unwrap()).unwrap().to_vec2::<f32>().unwrap();
    for (kept, row) in outer.iter().zip([rows - 1, 3]) {
        let start = rows * 30 + row * WIDTH;
        let bits: Vec<u32> = kept.iter().map(|value| value.to_bits()).collect();
        assert_eq!(bits, all[start..start + WIDTH]);
    }
}

#[test]
fn what_can_not_be_is_refused_and_changes_nothing() {
    let (mut set, edit) = (empty(), contribution(1));
    set.change(&[], &[&edit]).unwrap();
    let before = set.digest();
    assert!(matches!(set.change(&[&contribution(2)], &[]), Err(WeightsError::Malformed(_))));
    let low_rank = delta(4).0.into_iter().map(|part| match part {
        MatrixDelta::Joint { left, right, .. } => MatrixDelta::LowRank { left, right },
        other => other,
    });
    let low_rank = Contribution::from_delta(&Delta(low_rank.collect())).unwrap();
    assert!(matches!(set.change(&[], &[&low_rank]), Err(WeightsError::Malformed(_))));
    assert_eq!(set.digest(), before);
    assert!(set.edits().unwrap().project(0, &inputs([1].into_iter())).is_err(), "no gate was asked");
}
