//! What a run has done so far, and its files: the state to resume from and the best editor.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    TrainingError, batch::PartOutcome, beginning::Beginning, optimizer::Adam, options::Recipe, trainable::Trainable,
    trainer::Inputs, validate::Validation,
};
use crate::{
    digest::Digest,
    editor::{
        Manifest,
        folder::{self, BaseModel},
        mend::{METHOD, Mend},
    },
    files::write_whole,
};

/// File of the state, in the run's folder.
pub(super) const STATE: &str = "state.safetensors";
/// Metadata keys of the state: where the run is, what it was started with and on, and the digest of its tensors.
const RUN: &str = "run";
const RECIPE: &str = "recipe";
const ORIGIN: &str = "origin";
const DIGEST: &str = "digest";

/// Training figures, means over some steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepFigures {
    /// The last of the steps.
    pub step: u64,
    pub loss: f64,
    /// Share of exact matches on paraphrases.
    pub paraphrase: f64,
    /// Mean KL over locality texts, nats.
    pub kl: f64,
}

impl StepFigures {
    /// Means over the parts of a batch.
    pub(super) fn new(step: u64, parts: &[PartOutcome]) -> Result<Self, TrainingError> {
        let mut loss = 0.0;
        let edits: usize = parts.iter().map(|part| part.prompts.len()).sum();
        for part in parts {
            loss += f64::from(part.loss.to_scalar::<f32>()?) * part.prompts.len() as f64 / edits as f64;
        }
        let mean = |sum: f64, count: usize| sum / count.max(1) as f64;
        let paraphrases = parts.iter().flat_map(|part| &part.paraphrases);
        let locality = parts.iter().flat_map(|part| &part.locality);
        Ok(Self {
            step,
            loss,
            paraphrase: mean(paraphrases.filter(|target| target.exact).count() as f64, edits),
            kl: mean(locality.clone().map(|text| f64::from(text.kl)).sum(), locality.count()),
        })
    }

    /// Means of at least one.
    pub(super) fn mean(all: &[Self]) -> Self {
        let mean = |figure: fn(&Self) -> f64| all.iter().map(figure).sum::<f64>() / all.len().max(1) as f64;
        Self {
            step: all.last().map_or(0, |figures| figures.step),
            loss: mean(|figures| figures.loss),
            paraphrase: mean(|figures| figures.paraphrase),
            kl: mean(|figures| figures.kl),
        }
    }
}

/// Training and validation figures so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    pub steps: Vec<StepFigures>,
    pub validations: Vec<Validation>,
}

impl History {
    /// The best validation.
    pub fn best(&self) -> Option<&Validation> {
        self.validations.iter().min_by(|a, b| a.loss.total_cmp(&b.loss))
    }

    /// Validations since the best.
    pub fn since_best(&self) -> usize {
        let best = self.best().map_or(0, |best| best.step);
        self.validations.iter().filter(|validation| validation.step > best).count()
    }

    /// Adds a validation; whether it is the best.
    pub(super) fn push(&mut self, figures: Validation) -> bool {
        let better = self.best().is_none_or(|best| figures.loss < best.loss);
        self.validations.push(figures);
        better
    }
}

/// Where a run is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RunState {
    pub step: u64,
    pub seconds: f64,
    pub history: History,
    /// Figures of the steps since the last mean.
    pub pending: Vec<StepFigures>,
}

/// What a run was started on: it goes on with nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    pub model: Digest,
    pub tail_blocks: usize,
    pub train: Digest,
    pub validation: Digest,
    pub running_text: Option<Digest>,
    /// Digests of the tensors of the editors that it began with, one space between two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

impl Origin {
    pub(super) fn of(inputs: &Inputs<'_>, from: Option<&Beginning>) -> Self {
        Self {
            model: inputs.model.digest(),
            tail_blocks: inputs.model.network().shape().tail_blocks,
            train: inputs.train.digest,
            validation: inputs.validation.digest,
            running_text: inputs.running_text.map(|text| Digest::of(text.as_bytes())),
            from: from.map(|beginning| beginning.digests.clone()),
        }
    }
}

impl RunState {
    /// Writes the state; the file appears whole or not at all.
    pub(super) fn save(
        &self,
        out: &Path,
        (recipe, origin): (&Recipe, &Origin),
        trainable: &Trainable,
        adam: &Adam,
    ) -> Result<(), TrainingError> {
        let refused = |error: &dyn std::fmt::Display| TrainingError::Refused(format!("the state of the run: {error}"));
        let mut tensors = trainable.state()?;
        tensors.extend(adam.state()?.into_iter().map(|(name, tensor)| (format!("adam.{name}"), tensor)));
        let data = safetensors::serialize(&tensors, None).map_err(|error| refused(&error))?;
        let digest = digest_of_data(&data).map_err(|error| refused(&error))?;
        drop(data);
        // TOML gives back every f64 as it was; serde_json, as it is built here, may miss the last bit.
        let metadata = HashMap::from([
            (RUN.to_owned(), toml::to_string(self).map_err(|error| refused(&error))?),
            (RECIPE.to_owned(), text(recipe)?),
            (ORIGIN.to_owned(), text(origin)?),
            (DIGEST.to_owned(), digest.to_string()),
        ]);
        let bytes = safetensors::serialize(&tensors, Some(metadata)).map_err(|error| refused(&error))?;
        let io = |source| TrainingError::Io { what: out.join(STATE).display().to_string(), source };
        std::fs::create_dir_all(out).map_err(io)?;
        write_whole(&out.join(STATE), &bytes).map_err(io)
    }

    /// Reads a state into `trainable` and `adam`; refuses one that is damaged, or was started as something else.
    pub(super) fn load(
        out: &Path,
        (recipe, origin): (&Recipe, &Origin),
        trainable: &mut Trainable,
        adam: &mut Adam,
    ) -> Result<Self, TrainingError> {
        let path = out.join(STATE);
        let refused = |why: String| TrainingError::Refused(format!("{}: {why}", path.display()));
        let damaged = |error: &dyn std::fmt::Display| refused(format!("it is damaged: {error}"));
        let bytes =
            std::fs::read(&path).map_err(|source| TrainingError::Io { what: path.display().to_string(), source })?;
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).map_err(|error| damaged(&error))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let get = |key: &str| metadata.get(key).ok_or_else(|| refused(format!("as a training state it has no {key}")));
        let (found, said) = (digest_of_data(&bytes).map_err(|error| damaged(&error))?.to_string(), get(DIGEST)?);
        if found != *said {
            return Err(damaged(&format!("the digest of its tensors is {found}, it says {said}")));
        }
        // How long a run is may change on the way: it goes on under the new schedule.
        let whatever_length = |recipe: &str| -> Result<serde_json::Value, TrainingError> {
            let mut recipe: serde_json::Value = serde_json::from_str(recipe).map_err(|error| damaged(&error))?;
            recipe["steps"] = json!(null);
            Ok(recipe)
        };
        let (started, given) = (get(RECIPE)?, text(recipe)?);
        if whatever_length(started)? != whatever_length(&given)? {
            return Err(refused(format!("the run was started with {started}, and can not go on with {given}")));
        }
        let (started, given) = (get(ORIGIN)?, text(origin)?);
        if *started != given {
            return Err(refused(format!("the run was started on {started}, and can not go on with {given}")));
        }
        let run = toml::from_str(get(RUN)?).map_err(|error| damaged(&error))?;
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
        trainable.restore(&tensors)?;
        let moments = tensors
            .into_iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix("adam.")?.to_owned(), tensor)))
            .collect();
        adam.restore(&moments)?;
        Ok(run)
    }

    /// Writes the editor as it is now to `out`, with a card.
    pub(super) fn export(
        &self,
        mend: &Mend,
        inputs: &Inputs<'_>,
        (recipe, origin): (&Recipe, &Origin),
        out: &Path,
    ) -> Result<(), TrainingError> {
        let model = inputs.model;
        let mut manifest = Manifest {
            method: METHOD.to_owned(),
            name: format!("MEND for {}", model.name()),
            base_model: BaseModel { name: model.name().to_owned(), digest: model.digest() },
            matrices: model.editable().iter().map(|matrix| matrix.name.clone()).collect(),
            tail_blocks: model.network().shape().tail_blocks,
            rank: recipe.rank,
            composition: recipe.composition,
            tensors_digest: Digest::of(b""),
            training: json!({
                "recipe": recipe,
                "steps_taken": self.step,
                "edits_seen": self.step * recipe.edits_per_step as u64,
                "seconds": self.seconds.round(),
                "data_digest": inputs.train.digest,
                "records": inputs.train.records.len(),
                "validation_digest": inputs.validation.digest,
                "from": origin.from,
            }),
            figures: json!({ "validation": self.history.best() }),
        };
        folder::write(out, &mut manifest, &half_precision(mend)?)?;
        let card = card(&manifest);
        let io = |source| TrainingError::Io { what: out.join("README.md").display().to_string(), source };
        write_whole(&out.join("README.md"), card.as_bytes()).map_err(io)
    }
}

/// What a run must be equal in to go on, as text: equal numbers print alike.
fn text(value: &impl Serialize) -> Result<String, TrainingError> {
    serde_json::to_string(value).map_err(|error| TrainingError::Refused(error.to_string()))
}

/// Digest of everything after the header of a safetensors file.
fn digest_of_data(bytes: &[u8]) -> Result<Digest, safetensors::SafeTensorError> {
    let (header, _) = safetensors::SafeTensors::read_metadata(bytes)?;
    Ok(Digest::of(bytes.get(8 + header..).unwrap_or_default()))
}

/// The large matrices in f16, everything else as it is.
fn half_precision(mend: &Mend) -> Result<HashMap<String, Tensor>, TrainingError> {
    let narrow = |name: &str| name.ends_with(".u") || name.ends_with(".v") || name.starts_with("whitening.");
    mend.to_tensors()?
        .into_iter()
        .map(|(name, tensor)| {
            let dtype = match tensor.dtype() {
                _ if narrow(&name) => DType::F16,
                DType::F64 => DType::F32,
                other => other,
            };
            Ok((name, tensor.to_dtype(dtype)?))
        })
        .collect()
}

fn card(manifest: &Manifest) -> String {
    let pretty = |value: &serde_json::Value| serde_json::to_string_pretty(value).unwrap_or_default();
    format!(
        "# {}\n\nA `{}` editor of rank {} for the MLP matrices of the last {} blocks of {}.\n\n\
         ## Training\n\n```json\n{}\n```\n\n## Measured on the validation records\n\n```json\n{}\n```\n",
        manifest.name,
        manifest.method,
        manifest.rank,
        manifest.tail_blocks,
        manifest.base_model.name,
        pretty(&manifest.training),
        pretty(&manifest.figures),
    )
}
