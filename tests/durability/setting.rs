//! What the tests run on: a tiny model and made-up facts, or what the environment names.

use std::{collections::BTreeSet, path::PathBuf};

use amend::editor::CompositionKind;
use serde_json::Value;

use super::server::Files;

/// A prompt and what it should be answered with.
#[derive(Clone)]
pub struct Fact {
    pub prompt: String,
    pub target: String,
}

/// A model with its editor, and facts with distinct prompts.
pub struct Setting {
    pub files: Files,
    pub facts: Vec<Fact>,
}

impl Setting {
    /// The tiny model, whose edits are added up.
    pub fn tiny() -> Self {
        Self::made_up(Files::tiny())
    }

    /// The tiny model, whose edits are solved for jointly.
    pub fn tiny_joint() -> Self {
        Self::made_up(Files::tiny_of(CompositionKind::Joint))
    }

    fn made_up(files: Files) -> Self {
        let fact =
            |i: usize| Fact { prompt: format!("Number {i} is called"), target: format!("name-{}", i * 7919 % 997) };
        Self { files, facts: (0..400).map(fact).collect() }
    }

    /// The model, the editor and the records (CounterFact) that `AMEND_SHOW_MODEL`, `AMEND_SHOW_EDITOR` and
    /// `AMEND_SHOW_DATA` name.
    pub fn of_environment() -> Self {
        let path = |name: &str| -> PathBuf {
            std::env::var_os(name).unwrap_or_else(|| panic!("{name} must name a file or folder")).into()
        };
        let files = Files {
            model: path("AMEND_SHOW_MODEL"),
            editor: path("AMEND_SHOW_EDITOR"),
            threads: None,
            ..Files::tiny()
        };
        let records: Vec<Value> =
            serde_json::from_slice(&std::fs::read(path("AMEND_SHOW_DATA")).unwrap()).expect("records are a JSON array");
        let text = |record: &Value, field: &str| record[field].as_str().expect(field).to_owned();
        let fact = |record: &Value| Fact { prompt: text(record, "prompt"), target: text(record, "target_new") };
        let mut prompts = BTreeSet::new();
        let facts = records.iter().map(fact).filter(|fact| prompts.insert(fact.prompt.trim().to_owned())).collect();
        Self { files, facts }
    }
}

/// A number from the environment.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|error| panic!("{name}: {text:?}: {error}")))
}
