//! A model and an editor of a few kilobytes, as the folders that `amend` loads: a random Llama, and a MEND editor put
//! together by hand whose deltas go down the gradient.

use std::{collections::HashMap, path::Path, sync::Arc};

use amend::{
    digest::Digest,
    editor::{
        CompositionKind, Manifest, folder,
        folder::BaseModel,
        gate::{Gate, Scalars},
    },
    model::{LoadOptions, Model, capture},
    training::{Recipe, trainable::Trainable},
};
use candle_core::{DType, Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::common;

const VOCABULARY: usize = 256;
const HIDDEN: usize = 32;
const INNER: usize = 48;
const BLOCKS: usize = 3;
/// Blocks whose matrices are edited.
const TAIL_BLOCKS: usize = 2;
/// The longest sequence, tokens.
pub const CONTEXT: usize = 4096;

/// Writes a Llama whose weights follow from `seed`. A token is a byte, and none of them ends a text.
pub fn write_model(path: &Path, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let config = json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": CONTEXT, "tie_word_embeddings": true, "hidden_act": "silu",
    });
    let mut random = |shape: &[usize]| uniform(&mut rng, shape, 0.5);
    let ones = || Tensor::ones(HIDDEN, DType::F32, &Device::Cpu).unwrap();
    let mut tensors = HashMap::from([
        ("model.embed_tokens.weight".to_owned(), random(&[VOCABULARY, HIDDEN])),
        ("model.norm.weight".to_owned(), ones()),
    ]);
    for layer in 0..BLOCKS {
        let mut put = |name: &str, tensor| tensors.insert(format!("model.layers.{layer}.{name}.weight"), tensor);
        put("input_layernorm", ones());
        put("post_attention_layernorm", ones());
        put("self_attn.q_proj", random(&[HIDDEN, HIDDEN]));
        put("self_attn.k_proj", random(&[HIDDEN / 2, HIDDEN]));
        put("self_attn.v_proj", random(&[HIDDEN / 2, HIDDEN]));
        put("self_attn.o_proj", random(&[HIDDEN, HIDDEN]));
        put("mlp.gate_proj", random(&[INNER, HIDDEN]));
        put("mlp.up_proj", random(&[INNER, HIDDEN]));
        put("mlp.down_proj", random(&[HIDDEN, INNER]));
    }
    std::fs::create_dir_all(path).unwrap();
    common::write_folder(path, &config, &tensors);
}

/// Writes an editor for the model in this folder. Its network is near the identity, on factors normalised by those of
/// some passages, and its learning rates are negative.
pub fn write_editor(path: &Path, model: &Path, composition: CompositionKind, seed: u64) {
    let model = Model::load(model, &LoadOptions { tail_blocks: TAIL_BLOCKS, ..LoadOptions::default() }).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let recipe = Recipe { rank: 4, composition, initial_step_size: 1e-4, seed, ..Recipe::default() };
    let mut editor = Trainable::new(model.editable(), &recipe).unwrap();
    let passages = [("Rome is", "red"), ("The sea was", "far away"), ("Once upon a time", "there"), ("x = 1", "; y")];
    let passages = passages.map(|(prompt, target)| model.tokenizer().encode_passage(prompt, target).unwrap());
    let states = capture::read(&model, &passages).unwrap();
    let captured: Vec<_> = capture::capture(&model, &states).unwrap().into_iter().map(Arc::new).collect();
    editor.observe(&captured).unwrap();
    if composition == CompositionKind::Gated {
        // Behind it an edit speaks at its own key, and hardly elsewhere.
        let scalars = Scalars { sharpness: 400.0, threshold: 0.97, growth: 0.0 };
        let map = uniform(&mut rng, &[HIDDEN, HIDDEN], 1.0);
        editor.stand_behind(Gate { map, mean: Tensor::zeros(HIDDEN, DType::F32, &Device::Cpu).unwrap(), scalars });
    }
    for (name, variable, _) in editor.variables(0.0, 0.0) {
        if name.ends_with(".u") {
            variable.set(&uniform(&mut rng, variable.dims(), 0.05)).unwrap();
        } else if name == "edit_lr_scales" {
            variable.set(&Tensor::full(-20f32, variable.dims(), &Device::Cpu).unwrap()).unwrap();
        }
    }
    let mut manifest = Manifest {
        method: "mend".to_owned(),
        name: "tiny".to_owned(),
        base_model: BaseModel { name: model.name().to_owned(), digest: model.digest() },
        matrices: model.editable().iter().map(|matrix| matrix.name.clone()).collect(),
        tail_blocks: TAIL_BLOCKS,
        rank: 4,
        composition,
        tensors_digest: Digest::of(b""),
        training: json!({}),
        figures: json!({}),
    };
    folder::write(path, &mut manifest, &editor.mend().unwrap().to_tensors().unwrap()).unwrap();
}

fn uniform(rng: &mut ChaCha8Rng, shape: &[usize], scale: f32) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-scale..scale)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}
