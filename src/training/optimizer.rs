//! Adam over named variables, with a learning rate per variable and a clip of the global norm.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Result, Tensor, Var, backprop::GradStore};

use crate::editor::adam::{Moments, Stride};

/// A trained variable.
struct Parameter {
    variable: Var,
    /// Its learning rate relative to the schedule's.
    rate: f64,
    moments: Moments,
}

/// Gradients by variable.
pub type Gradients = BTreeMap<String, Vec<f32>>;

/// Adam (Kingma and Ba, 2015), with bias correction.
pub struct Adam {
    parameters: BTreeMap<String, Parameter>,
    /// Steps taken.
    pub step: u64,
}

impl Adam {
    /// For variables with their learning rates.
    pub fn new(variables: impl IntoIterator<Item = (String, Var, f64)>) -> Self {
        let parameters = variables
            .into_iter()
            .map(|(name, variable, rate)| {
                let size = variable.elem_count();
                (name, Parameter { variable, rate, moments: Moments::new(size) })
            })
            .collect();
        Self { parameters, step: 0 }
    }

    /// The gradients of the variables, out of all that a backward pass computed.
    pub fn gradients(&self, store: &GradStore) -> Result<Gradients> {
        let own = self.parameters.iter().filter_map(|(name, parameter)| Some((name, store.get(&parameter.variable)?)));
        own.map(|(name, gradient)| Ok((name.clone(), gradient.flatten_all()?.to_vec1()?))).collect()
    }

    /// One step along `gradients`; `schedule` scales every learning rate. A gradient above the global norm `clip` is scaled
    /// down to it. Returns the norm before clipping; if it is not finite, nothing was changed.
    pub fn update(&mut self, gradients: &Gradients, schedule: f64, clip: f64) -> Result<f64> {
        let square: f64 = gradients.values().flatten().map(|g| f64::from(*g) * f64::from(*g)).sum();
        let norm = square.sqrt();
        if !norm.is_finite() {
            return Ok(norm);
        }
        let scale = if norm > clip { (clip / norm) as f32 } else { 1.0 };
        self.step += 1;
        for (name, parameter) in &mut self.parameters {
            let Some(gradient) = gradients.get(name) else { continue };
            parameter.step(gradient, scale, Stride::new(parameter.rate * schedule, self.step))?;
        }
        Ok(norm)
    }

    /// The moments and the number of steps, by name.
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::from([("step".to_owned(), Tensor::new(&[self.step as i64], &Device::Cpu)?)]);
        for (name, parameter) in &self.parameters {
            state.insert(format!("first.{name}"), Tensor::new(parameter.moments.first.as_slice(), &Device::Cpu)?);
            state.insert(format!("second.{name}"), Tensor::new(parameter.moments.second.as_slice(), &Device::Cpu)?);
        }
        Ok(state)
    }

    /// Takes back what [`Adam::state`] gave.
    pub fn restore(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        let get = |name: String| {
            state.get(&name).ok_or_else(|| candle_core::Error::Msg(format!("the optimizer's state lacks {name}")))
        };
        self.step = get("step".to_owned())?.to_vec1::<i64>()?[0] as u64;
        for (name, parameter) in &mut self.parameters {
            let first = get(format!("first.{name}"))?.to_vec1()?;
            let second = get(format!("second.{name}"))?.to_vec1()?;
            let size = parameter.moments.first.len();
            if first.len() != size || second.len() != size {
                candle_core::bail!("the optimizer's state of {name} has another size");
            }
            parameter.moments = Moments { first, second };
        }
        Ok(())
    }
}

impl Parameter {
    fn step(&mut self, gradient: &[f32], scale: f32, stride: Stride) -> Result<()> {
        let mut values = self.variable.flatten_all()?.to_vec1::<f32>()?;
        self.moments.step(&mut values, gradient, scale, stride);
        self.variable.set(&Tensor::from_vec(values, self.variable.shape(), self.variable.device())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_minimum_of_a_parabola() {
        let x = Var::new(&[3f32, -2.0], &Device::Cpu).unwrap();
        let mut adam = Adam::new([("x".to_owned(), x.clone(), 0.1)]);
        for _ in 0..400 {
            let loss = (x.as_tensor() - 1.0).unwrap().sqr().unwrap().sum_all().unwrap();
            let gradients = adam.gradients(&loss.backward().unwrap()).unwrap();
            adam.update(&gradients, 1.0, 10.0).unwrap();
        }
        for value in x.to_vec1::<f32>().unwrap() {
            assert!((value - 1.0).abs() < 1e-2, "{value}");
        }
    }

    #[test]
    fn the_first_step_is_the_rate_however_large_the_gradient() {
        let x = Var::new(&[0f32], &Device::Cpu).unwrap();
        let mut adam = Adam::new([("x".to_owned(), x.clone(), 0.5)]);
        let loss = (x.as_tensor() * 1e6).unwrap().sum_all().unwrap();
        let gradients = adam.gradients(&loss.backward().unwrap()).unwrap();
        let norm = adam.update(&gradients, 1.0, 1.0).unwrap();
        assert!((norm - 1e6).abs() < 1.0);
        assert!((x.to_vec1::<f32>().unwrap()[0] + 0.5).abs() < 1e-3);
    }
}
