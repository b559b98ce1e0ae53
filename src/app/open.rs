//! Loading what several commands need: model, editor, log.

use std::{path::Path, sync::Arc};

use anyhow::{Context, ensure};
use candle_core::Device;

use crate::{
    config::values,
    editor::{self, Editor, Manifest},
    model::{LoadOptions, Model},
};

/// A model and an editor that was trained for it.
pub(super) struct Loaded {
    pub model: Arc<Model>,
    pub editor: Arc<dyn Editor>,
    pub manifest: Manifest,
}

/// The device that the options name, if this program can compute on it.
pub(super) fn device(wanted: values::Device) -> anyhow::Result<Device> {
    match wanted {
        values::Device::Cpu => Ok(Device::Cpu),
        values::Device::Cuda(number) => {
            ensure!(
                candle_core::utils::cuda_is_available(),
                "--device {wanted}: this program was built without CUDA; build it with --features cuda"
            );
            // One stream for all threads: by its own for each, which candle has else, the writer and the engine would race.
            Device::new_cuda_with_stream(number).with_context(|| format!("--device {wanted}: the GPU can not be used"))
        }
    }
}

/// Loads both; the editor says how many blocks of the model are editable.
pub(super) fn load(model: &Path, editor: &Path, device: Device) -> anyhow::Result<Loaded> {
    let started = std::time::Instant::now();
    let tail_blocks = Manifest::read(editor)?.tail_blocks;
    let model = Model::load(model, &LoadOptions { tail_blocks, device }).context("loading the model")?;
    let (manifest, editor) = editor::load(editor, &model)?;
    tracing::info!(
        model = model.name(),
        architecture = model.architecture(),
        editor = manifest.name,
        seconds = started.elapsed().as_secs_f64(),
        "model and editor loaded"
    );
    Ok(Loaded { model: Arc::new(model), editor: Arc::from(editor), manifest })
}
