//! Hugging Face folders: shards, half precision, biases.

use std::{collections::HashMap, path::Path};

use amend::model::{LoadOptions, Model};
use candle_core::{DType, Device, Tensor};
use serde_json::json;

use crate::common::{
    all_logits, assert_close, load_folder, random_ids, random_weights, relative_error, tiny_config, write_folder,
};

fn load(folder: &Path) -> Model {
    Model::load(folder, &LoadOptions::default()).unwrap()
}

#[test]
fn shards_equal_one_file() {
    let config = tiny_config("llama");
    let tensors = random_weights(&config, 1);
    let (one, sharded) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_folder(one.path(), &config, &tensors);
    write_folder(sharded.path(), &config, &tensors);
    std::fs::remove_file(sharded.path().join("model.safetensors")).unwrap();
    let mut map = HashMap::new();
    for number in 1..=3 {
        let name = format!("model-0000{number}-of-00003.safetensors");
        let own: HashMap<String, Tensor> = tensors
            .iter()
            .filter(|(tensor, _)| tensor.len() % 3 == number % 3)
            .map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect();
        map.extend(own.keys().map(|tensor| (tensor.clone(), name.clone())));
        candle_core::safetensors::save(&own, sharded.path().join(name)).unwrap();
    }
    let index = json!({"metadata": {}, "weight_map": map});
    std::fs::write(sharded.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let (one, sharded) = (load(one.path()), load(sharded.path()));
    let ids = random_ids(96, 12, 2);
    assert_close("sharded", &all_logits(&sharded, &ids), &all_logits(&one, &ids), 0.0);
    assert_ne!(one.digest(), sharded.digest(), "the digest is of the files");
}

#[test]
fn the_digest_names_the_files() {
    let config = tiny_config("llama");
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &config, &random_weights(&config, 1));
    let first = load(folder.path()).digest();
    assert_eq!(load(folder.path()).digest(), first);
    write_folder(folder.path(), &config, &random_weights(&config, 2));
    assert_ne!(load(folder.path()).digest(), first);
}

#[test]
fn half_precision_weights_are_widened() {
    let config = tiny_config("llama");
    let tensors = random_weights(&config, 1);
    let ids = random_ids(96, 12, 2);
    for dtype in [DType::F16, DType::BF16] {
        let narrow: HashMap<String, Tensor> =
            tensors.iter().map(|(name, tensor)| (name.clone(), tensor.to_dtype(dtype).unwrap())).collect();
        let rounded = narrow.iter().map(|(name, t)| (name.clone(), t.to_dtype(DType::F32).unwrap())).collect();
        let want = all_logits(&load_folder(&config, &rounded, 1), &ids);
        assert_close("half precision", &all_logits(&load_folder(&config, &narrow, 1), &ids), &want, 0.0);
    }
}

#[test]
fn a_tied_head_is_the_embedding_whatever_else_the_file_holds() {
    let config = tiny_config("llama");
    let mut tensors = random_weights(&config, 1);
    let ids = random_ids(96, 12, 2);
    let want = all_logits(&load_folder(&config, &tensors, 1), &ids);
    tensors.insert("lm_head.weight".to_owned(), Tensor::zeros((96, 32), DType::F32, &Device::Cpu).unwrap());
    assert_close("tied", &all_logits(&load_folder(&config, &tensors, 1), &ids), &want, 0.0);
}

/// candle's own model ignores them, so there is nothing to compare with; below and in the tail they must count.
#[test]
fn biases_of_the_mlp_are_added() {
    let config = tiny_config("llama");
    let tensors = random_weights(&config, 1);
    let ids = random_ids(96, 12, 2);
    let plain = all_logits(&load_folder(&config, &tensors, 1), &ids);
    for (block, part, width) in [(0, "down", 32), (0, "gate", 48), (2, "up", 48), (2, "down", 32)] {
        let mut biased = tensors.clone();
        let bias = random_weights(&config, 9)["model.norm.weight"].clone();
        let bias = Tensor::cat(&[&bias, &bias], 0).unwrap().narrow(0, 0, width).unwrap();
        biased.insert(format!("model.layers.{block}.mlp.{part}_proj.bias"), bias);
        let logits = all_logits(&load_folder(&config, &biased, 1), &ids);
        assert!(relative_error(&logits, &plain) > 0.01, "the bias of {part} in block {block} is ignored");
    }
}
