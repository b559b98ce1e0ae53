//! What a Hugging Face folder says about BOS and EOS outside `tokenizer.json`: `tokenizer_config.json`,
//! `generation_config.json` and `config.json`.

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;
use tokenizers::Tokenizer as Pipeline;

use super::{END_TOKENS, hub::read_json};
use crate::model::ModelError;

/// The files beside `tokenizer.json`; JSON null where one is absent.
pub(super) struct Configs {
    tokenizer: Value,
    generation: Value,
    model: Value,
}

impl Configs {
    pub(super) fn read(folder: &Path) -> Result<Self, ModelError> {
        let read = |name| Ok::<_, ModelError>(read_json(folder, name)?.unwrap_or_default());
        Ok(Self {
            tokenizer: read("tokenizer_config.json")?,
            generation: read("generation_config.json")?,
            model: read("config.json")?,
        })
    }

    /// The id of `bos_token` or `eos_token`: as spelled in the tokenizer's own configuration, else the first id that the
    /// model's give.
    pub(super) fn token(&self, pipeline: &Pipeline, name: &str) -> Option<u32> {
        let spelled = &self.tokenizer[name];
        let spelled = spelled.as_str().or_else(|| spelled["content"].as_str());
        spelled
            .and_then(|token| pipeline.token_to_id(token))
            .or_else(|| self.ids(&format!("{name}_id")).into_iter().find(|&id| pipeline.id_to_token(id).is_some()))
    }

    /// The ids under `key` (a number or a list) in the generation's and the model's configuration.
    fn ids(&self, key: &str) -> Vec<u32> {
        let values = [&self.generation[key], &self.model[key]];
        let values = values.into_iter().flat_map(|v| v.as_array().map_or(std::slice::from_ref(v), Vec::as_slice));
        values.filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()).collect()
    }

    /// The end tokens that the files name, and special tokens that are known as such.
    pub(super) fn ends(&self, pipeline: &Pipeline, eos: Option<u32>) -> BTreeSet<u32> {
        let added = pipeline.get_added_tokens_decoder();
        let known = added.iter().filter(|(_, token)| token.special && END_TOKENS.contains(&token.content.as_str()));
        known.map(|(&id, _)| id).chain(eos).chain(self.ids("eos_token_id")).collect()
    }

    /// Whether prompts begin with `bos`: as configured, else as the pipeline's post-processor does.
    pub(super) fn adds_bos(&self, pipeline: &Pipeline, bos: Option<u32>) -> Result<bool, ModelError> {
        if let Some(adds) = self.tokenizer["add_bos_token"].as_bool() {
            return Ok(adds);
        }
        let empty = pipeline.encode_fast("", true).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        Ok(empty.get_ids().first().copied() == bos)
    }
}
