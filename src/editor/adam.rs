//! Adam (Kingma and Ba, 2015) over slices: the arithmetic of one step, for whoever keeps the values.

use rayon::prelude::*;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f32 = 1e-8;
/// Values that one thread takes at a time.
const CHUNK: usize = 1 << 14;

/// How far one step goes.
#[derive(Debug, Clone, Copy)]
pub struct Stride {
    /// Learning rate over the correction of the first moment's bias.
    rate: f32,
    /// Root of the correction of the second moment's bias.
    root: f32,
}

impl Stride {
    /// Of step number `step`, counted from 1, at a learning rate.
    pub fn new(learning_rate: f64, step: u64) -> Self {
        let step = step as f64;
        Self { rate: (learning_rate / (1.0 - BETA1.powf(step))) as f32, root: (1.0 - BETA2.powf(step)).sqrt() as f32 }
    }
}

/// Running moments of the gradient of some values.
#[derive(Debug, Clone)]
pub struct Moments {
    pub first: Vec<f32>,
    pub second: Vec<f32>,
}

impl Moments {
    /// Of `size` values, before the first step.
    pub fn new(size: usize) -> Self {
        Self { first: vec![0.0; size], second: vec![0.0; size] }
    }

    /// One step down `scale * gradient`, in a single pass over the memory.
    pub fn step(&mut self, values: &mut [f32], gradient: &[f32], scale: f32, stride: Stride) {
        assert!(
            values.len() == gradient.len() && values.len() == self.first.len(),
            "one gradient and moment per value"
        );
        let (b1, b2) = (BETA1 as f32, BETA2 as f32);
        let chunk = |values: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32]| {
            for (((value, first), second), gradient) in values.iter_mut().zip(first).zip(second).zip(gradient) {
                let gradient = gradient * scale;
                *first = b1 * *first + (1.0 - b1) * gradient;
                *second = b2 * *second + (1.0 - b2) * gradient * gradient;
                *value -= stride.rate * *first / (second.sqrt() / stride.root + EPSILON);
            }
        };
        (values.par_chunks_mut(CHUNK))
            .zip(self.first.par_chunks_mut(CHUNK))
            .zip(self.second.par_chunks_mut(CHUNK))
            .zip(gradient.par_chunks(CHUNK))
            .for_each(|(((values, first), second), gradient)| chunk(values, first, second, gradient));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_definition_for_three_steps() {
        let gradients = [[0.5f32, -2.0], [0.1, 0.0], [-0.3, 1.0]];
        let mut values = [1.0f32, -1.0];
        let mut moments = Moments::new(2);
        let (mut want, mut m, mut v) = ([1.0f64, -1.0], [0f64; 2], [0f64; 2]);
        for (step, gradient) in (1..).zip(&gradients) {
            moments.step(&mut values, gradient, 2.0, Stride::new(0.01, step));
            for i in 0..2 {
                let g = 2.0 * f64::from(gradient[i]);
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let (m, v) = (m[i] / (1.0 - 0.9f64.powi(step as i32)), v[i] / (1.0 - 0.999f64.powi(step as i32)));
                want[i] -= 0.01 * m / (v.sqrt() + 1e-8);
            }
        }
        for (value, want) in values.iter().zip(want) {
            assert!((f64::from(*value) - want).abs() < 1e-6, "{value} for {want}");
        }
    }
}
