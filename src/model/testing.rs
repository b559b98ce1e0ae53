//! Helpers of this room's tests.

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A tensor of values in -1..1 that depend on `seed` alone.
pub fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("as many values as the shape asks for")
}

/// Largest absolute difference over the largest entry of `want`.
pub fn relative_error(got: &Tensor, want: &Tensor) -> f32 {
    assert_eq!(got.dims(), want.dims());
    let largest = |t: &Tensor| {
        let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.iter().fold(0f32, |m, v| if v.is_nan() { f32::INFINITY } else { m.max(v.abs()) })
    };
    largest(&(got - want).unwrap()) / largest(want).max(f32::MIN_POSITIVE)
}

/// Fails unless the relative error is within `tolerance`.
pub fn assert_close(got: &Tensor, want: &Tensor, tolerance: f32) {
    let error = relative_error(got, want);
    assert!(error <= tolerance, "relative error {error} exceeds {tolerance}");
}
