//! Bytes, norms and refusals.

use candle_core::{Device, Tensor};
use proptest::prelude::*;

use super::*;

fn shapes() -> Vec<EditableMatrix> {
    vec![
        EditableMatrix { name: "up".into(), d_out: 3, d_in: 2 },
        EditableMatrix { name: "down".into(), d_out: 2, d_in: 3 },
    ]
}

fn tensor(values: &[f32], shape: (usize, usize)) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn sample() -> Contribution {
    let left = tensor(&[1., -2., 3., 0.5, 0.25, -1.], (2, 3));
    let right = tensor(&[1., 2., -0.5, 4.], (2, 2));
    let dense = tensor(&[1., 2., 3., 4., 5., 6.], (2, 3));
    Contribution::from_delta(&Delta(vec![MatrixDelta::LowRank { left, right }, MatrixDelta::Dense(dense)])).unwrap()
}

#[test]
fn bytes_round_trip() {
    let contribution = sample();
    let bytes = contribution.to_bytes();
    let back = Contribution::from_bytes(&bytes, &shapes()).unwrap();
    assert_eq!(back, contribution);
    assert_eq!(back.digest(), Digest::of(&bytes));
}

#[test]
fn norm_through_gram_matrices_is_that_of_the_product() {
    let contribution = sample();
    // Each element of the product, written out from the factors in `sample`.
    let product: [f64; 6] = [1. - 0.25, 2. + 2., -2. - 0.125, -4. + 1., 3. + 0.5, 6. - 4.];
    let square: f64 = product.iter().map(|value| value * value).sum();
    assert!((f64::from(contribution.norm(0).unwrap()) - square.sqrt()).abs() < 1e-6);
    assert!((contribution.norm(1).unwrap() - 91_f32.sqrt()).abs() < 1e-6);
    assert_eq!((contribution.rank(0), contribution.rank(1)), (2, 2));
}

#[test]
fn the_norm_of_a_long_edit_is_quick_and_that_of_the_product() {
    let (n, d_out, d_in) = (576, 96, 160);
    let value = |i: usize| ((i * 7919) % 2003) as f32 / 2003.0 - 0.5;
    let left: Vec<f32> = (0..n * d_out).map(value).collect();
    let right: Vec<f32> = (0..n * d_in).map(|i| value(i + 11)).collect();
    let (left, right) = (tensor(&left, (n, d_out)), tensor(&right, (n, d_in)));
    let product = left.t().unwrap().matmul(&right).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let expected = dot(&product, &product).sqrt();
    let contribution = Contribution::from_delta(&Delta(vec![MatrixDelta::LowRank { left, right }])).unwrap();
    let norm = f64::from(contribution.norm(0).unwrap());
    assert!((norm - expected).abs() < 1e-5 * expected, "{norm} {expected}");
}

#[test]
fn nothing_has_no_norm() {
    let part = Part { n: 0, d_out: 3, d_in: 2, values: Values::LowRank { left: Vec::new(), right: Vec::new() } };
    assert_eq!(Contribution { parts: vec![part] }.norm(0).unwrap(), 0.0);
}

#[test]
fn values_that_are_not_finite_are_refused() {
    let delta = Delta(vec![MatrixDelta::Dense(tensor(&[1., f32::NAN], (1, 2)))]);
    assert!(matches!(Contribution::from_delta(&delta), Err(WeightsError::NonFinite { .. })));
    let mut bytes = sample().to_bytes();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let error = Contribution::from_bytes(&bytes, &shapes()).unwrap_err();
    assert!(matches!(error, WeightsError::NonFinite { matrix } if matrix == "down"));
}

#[test]
fn an_absurd_length_is_refused_without_allocating_it() {
    let mut bytes = sample().to_bytes();
    bytes[13..17].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(Contribution::from_bytes(&bytes, &shapes()).unwrap_err().to_string().contains("ends early"));
}

#[test]
fn another_models_contribution_is_refused() {
    let other = [EditableMatrix { name: "up".into(), d_out: 2, d_in: 2 }, shapes()[1].clone()];
    assert!(Contribution::from_bytes(&sample().to_bytes(), &other).unwrap_err().to_string().contains("up is [2, 2]"));
    assert!(Contribution::from_bytes(&sample().to_bytes(), &shapes()[..1]).is_err());
}

proptest! {
    #[test]
    fn every_truncation_and_every_extension_is_refused(cut in 0_usize..110, extra in 1_usize..9) {
        let bytes = sample().to_bytes();
        prop_assert!(Contribution::from_bytes(&bytes[..cut.min(bytes.len() - 1)], &shapes()).is_err());
        let longer = [bytes.as_slice(), &vec![0; extra]].concat();
        prop_assert!(Contribution::from_bytes(&longer, &shapes()).is_err());
    }

    #[test]
    fn garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), keep in any::<bool>()) {
        if keep && bytes.len() >= 8 {
            bytes[..8].copy_from_slice(MAGIC);
        }
        let _ = Contribution::from_bytes(&bytes, &shapes());
    }
}
