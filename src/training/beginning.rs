//! What a run begins with, if not with nothing: an editor, or the mean of several of one descent. Where a run has been
//! scatters around what it is after, and the mean of several places is nearer to it than most of them (Wortsman et al.,
//! "Model soups", 2022).

use std::{collections::HashMap, path::PathBuf};

use candle_core::{DType, Tensor};

use super::TrainingError;
use crate::{
    digest::Digest,
    editor::{folder, gate},
};

/// The editor or editors that a run begins with.
pub struct Beginning {
    /// Of the tensors of each, in the order given, one space between two.
    pub digests: String,
    /// Their mean, by the names that an editor's folder has.
    pub tensors: HashMap<String, Tensor>,
}

impl Beginning {
    /// Reads editors of the model named by `model`; none if there are no folders. Refused if they differ in their tensors'
    /// names or shapes, or stand behind different gates: directions of two maps have no mean.
    pub fn read(folders: &[PathBuf], model: Digest) -> Result<Option<Self>, TrainingError> {
        if folders.is_empty() {
            return Ok(None);
        }
        let mut sums: HashMap<String, Tensor> = HashMap::new();
        let mut digests = Vec::with_capacity(folders.len());
        for (index, path) in folders.iter().enumerate() {
            let (manifest, tensors) = folder::read(path, model)?;
            digests.push(manifest.tensors_digest.to_string());
            let tensors = tensors.into_iter().map(|(name, tensor)| Ok((name, tensor.to_dtype(DType::F32)?)));
            let tensors = tensors.collect::<candle_core::Result<HashMap<_, _>>>()?;
            sums = match index {
                0 => tensors,
                _ => sum(&sums, &tensors).ok_or_else(|| {
                    TrainingError::Refused(format!(
                        "{} has other tensors than {}: they have no mean",
                        path.display(),
                        folders[0].display()
                    ))
                })??,
            };
        }
        let mean = |(name, sum): (String, Tensor)| Ok((name, (sum / folders.len() as f64)?));
        let tensors = sums.into_iter().map(mean).collect::<candle_core::Result<_>>()?;
        Ok(Some(Self { digests: digests.join(" "), tensors }))
    }
}

/// None if their names, shapes or gates differ.
fn sum(
    a: &HashMap<String, Tensor>,
    b: &HashMap<String, Tensor>,
) -> Option<candle_core::Result<HashMap<String, Tensor>>> {
    let alike = a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| b.dims() == a.dims()));
    let gates = [gate::MAP, gate::MEAN, gate::SCALARS];
    let one_gate = || gates.iter().all(|gate| a.get(*gate).zip(b.get(*gate)).is_none_or(|(a, b)| equal(a, b)));
    (alike && one_gate()).then(|| a.iter().map(|(name, a)| Ok((name.clone(), (a + &b[name])?))).collect())
}

fn equal(a: &Tensor, b: &Tensor) -> bool {
    let values = |tensor: &Tensor| tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).ok();
    values(a).is_some_and(|a| Some(a) == values(b))
}
