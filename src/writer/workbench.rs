//! The writer's bench over a loaded model and its editor.

use std::sync::Arc;

use candle_core::{D, Tensor};
use rayon::prelude::*;

use super::{
    Place, StartError, Started, TargetFigures, WriterConfig,
    bench::{Bench, Foundation, Keys, Texts},
    start::start_with,
};
use crate::{
    edit_log::EditLog,
    editor::{Delta, Editor, spectrum::Spectrum},
    model::{
        Model, ModelError, Passage, Projection, TrunkState,
        capture::{self, Captured, Factors},
        measure,
    },
    telemetry::Metrics,
};

impl Foundation {
    /// What sets of edits by this editor on this model are built on.
    pub fn of(model: &Model, editor: &dyn Editor) -> Self {
        Self {
            model: model.digest(),
            editor: editor.digest(),
            composition: editor.composition(),
            shapes: model.editable().to_vec(),
            base: Arc::clone(model.base()),
            device: model.device().clone(),
        }
    }
}

/// Pins the log to this model and editor, replays and checks it, and starts the writer over it.
pub async fn start(
    model: Arc<Model>,
    editor: Arc<dyn Editor>,
    log: Arc<dyn EditLog>,
    place: Place,
    config: WriterConfig,
    metrics: Metrics,
) -> Result<Started, StartError> {
    start_with(Workbench { model, editor }, log, place, config, metrics).await
}

/// A model and its editor.
pub(super) struct Workbench {
    pub(super) model: Arc<Model>,
    pub(super) editor: Arc<dyn Editor>,
}

fn finite(matrix: &str, factors: &Factors) -> Result<(), String> {
    for (what, tensor) in [("input", &factors.u), ("gradient", &factors.delta)] {
        let values = tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).map_err(text)?;
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(format!("the {what} of {matrix} has the value {value}, which is not finite"));
        }
    }
    Ok(())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Texts for Workbench {
    fn method(&self) -> &str {
        self.editor.method()
    }

    fn context_length(&self) -> usize {
        self.model.context_length()
    }

    fn passage(&self, prompt: &str, target: Option<&str>) -> Result<Passage, ModelError> {
        let tokenizer = self.model.tokenizer();
        match target {
            Some(target) => tokenizer.encode_passage(prompt, target),
            None => tokenizer.encode_open(prompt),
        }
    }
}

impl Bench for Workbench {
    type Text = TrunkState;
    type Factors = Captured;
    type Reading = Tensor;

    fn foundation(&self) -> Foundation {
        Foundation::of(&self.model, self.editor.as_ref())
    }

    fn read(&self, passages: &[Passage]) -> Result<Vec<TrunkState>, String> {
        capture::read(&self.model, passages).map_err(text)
    }

    fn capture(&self, texts: &[TrunkState]) -> Result<Vec<(f32, Captured)>, String> {
        let captured = capture::capture(&self.model, texts).map_err(text)?;
        Ok(captured.into_iter().map(|captured| (captured.loss, captured)).collect())
    }

    fn check(&self, captured: &Captured) -> Result<(), String> {
        let names = self.model.editable().iter().map(|matrix| matrix.name.as_str());
        names.zip(&captured.factors).try_for_each(|(name, factors)| finite(name, factors))
    }

    fn spectra(&self, captured: &Captured) -> Result<Vec<Spectrum>, String> {
        captured.factors.par_iter().map(|factors| Spectrum::of(factors).map_err(text)).collect()
    }

    fn keys(&self, _: &TrunkState, captured: &Captured) -> Result<Keys, String> {
        let answers = captured.at_answers().map_err(text)?;
        let first = |u: &Tensor| match u.dim(0)? {
            // A row whose gradient is zero is not kept.
            0 => Ok(Vec::new()),
            _ => u.get(0)?.to_vec1(),
        };
        answers.factors.iter().map(|factors| first(&factors.u)).collect::<candle_core::Result<_>>().map_err(text)
    }

    fn edit(&self, state: &TrunkState, captured: &Captured) -> Result<Delta, String> {
        self.editor.edit(&self.model, state, captured).map_err(text)
    }

    fn measure(&self, texts: &[TrunkState], weights: &dyn Projection) -> Result<Vec<Tensor>, String> {
        measure::target_log_probs(&self.model, texts, weights).map_err(text)
    }

    fn measure_each(&self, sets: &[(&[TrunkState], &dyn Projection)]) -> Result<Vec<Vec<Tensor>>, String> {
        measure::target_log_probs_each(&self.model, sets).map_err(text)
    }

    fn figures(&self, state: &TrunkState, log_probs: &Tensor) -> Result<TargetFigures, String> {
        let score = measure::score_target(log_probs, state.passage.target_ids()).map_err(text)?;
        Ok(TargetFigures { probability: score.probability(), greedy: score.greedy })
    }

    fn leading(&self, log_probs: &Tensor) -> Result<u32, String> {
        log_probs.get(0).and_then(|row| row.argmax(D::Minus1)?.to_scalar()).map_err(text)
    }

    fn divergence(&self, before: &Tensor, after: &Tensor) -> Result<(f32, bool), String> {
        let divergence = measure::divergence(before, after).map_err(text)?;
        Ok((divergence.kl, divergence.greedy_unchanged))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_factor_that_is_not_finite_is_named() {
        let rows = |values: [f32; 4]| Tensor::from_slice(&values, (2, 2), &Device::Cpu).unwrap();
        let good = rows([0.0, -1.0, 2.0, f32::MAX]);
        assert_eq!(finite("m", &Factors { u: good.clone(), delta: good.clone() }), Ok(()));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let bad = rows([0.0, 0.0, bad, 1.0]);
            let error = finite("m", &Factors { u: bad.clone(), delta: good.clone() }).unwrap_err();
            assert!(error.starts_with("the input of m has the value ") && error.ends_with("not finite"), "{error}");
            let error = finite("m", &Factors { u: good.clone(), delta: bad }).unwrap_err();
            assert!(error.starts_with("the gradient of m has the value "), "{error}");
        }
    }
}
