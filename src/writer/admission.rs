//! Admission: whether a submission can be carried out as written, before it takes a place in the queue.

use std::collections::HashMap;

use uuid::Uuid;

use super::{EditRequest, Submission, WriterConfig, WriterError, bench::Texts};
use crate::model::{ModelError, Passage};

/// An edit that passed admission, as token ids.
pub struct AdmittedEdit {
    pub id: Uuid,
    /// Two active edits never share it.
    pub prompt_key: String,
    pub passage: Passage,
    pub paraphrases: Vec<Passage>,
    pub locality: Vec<Passage>,
}

/// Checks every edit of a submission and gives each an id.
pub fn admit(
    submission: &Submission,
    texts: &dyn Texts,
    config: &WriterConfig,
) -> Result<Vec<AdmittedEdit>, WriterError> {
    let given = submission.edits.len();
    if given == 0 {
        return invalid("edits", "must not be empty");
    }
    at_most("edits", given, config.max_edits_per_batch)?;
    let mut prompts = HashMap::new();
    let mut admitted = Vec::with_capacity(given);
    for (i, request) in submission.edits.iter().enumerate() {
        let prefix = if submission.batch { format!("edits[{i}].") } else { String::new() };
        let edit = Admission { prefix: &prefix, texts, config }.edit(request)?;
        if let Some(first) = prompts.insert(edit.prompt_key.clone(), i) {
            return invalid(format!("{prefix}prompt"), format!("is the same as that of edits[{first}]"));
        }
        admitted.push(edit);
    }
    tokens_at_most("edits", tokens(&admitted), config.max_submission_tokens)?;
    Ok(admitted)
}

/// Tokens of the edits' own prompts and targets.
pub fn tokens(edits: &[AdmittedEdit]) -> usize {
    edits.iter().map(|edit| edit.passage.ids.len()).sum()
}

/// The passage of a text that stands in the configuration, held to the limits of a request's; `prefix` names it.
pub fn passage(
    prefix: &str,
    prompt: &str,
    expected: Option<&str>,
    texts: &dyn Texts,
    config: &WriterConfig,
) -> Result<Passage, WriterError> {
    let expected = expected.map(|text| ("expected".to_owned(), text));
    Admission { prefix, texts, config }.passage("prompt", prompt, expected)
}

struct Admission<'a> {
    prefix: &'a str,
    texts: &'a dyn Texts,
    config: &'a WriterConfig,
}

impl Admission<'_> {
    fn edit(&self, request: &EditRequest) -> Result<AdmittedEdit, WriterError> {
        if let Some(editor) = &request.editor
            && editor != self.texts.method()
        {
            return invalid(self.field("editor"), format!("must be {:?}, given {editor:?}", self.texts.method()));
        }
        self.config.limits(&request.guard).check(&self.field("guard."))?;
        at_most(self.field("paraphrases"), request.paraphrases.len(), self.config.max_paraphrases)?;
        at_most(self.field("locality"), request.locality.len(), self.config.max_locality)?;
        if let Some(note) = &request.note {
            self.bytes("note", note, self.config.max_note_bytes)?;
        }
        let target = Some(("target".to_owned(), request.target.as_str()));
        Ok(AdmittedEdit {
            id: Uuid::now_v7(),
            prompt_key: request.prompt.trim().to_owned(),
            passage: self.passage("prompt", &request.prompt, target.clone())?,
            paraphrases: numbered(&request.paraphrases)
                .map(|(i, text)| self.passage(&format!("paraphrases[{i}]"), text, target.clone()))
                .collect::<Result<_, _>>()?,
            locality: numbered(&request.locality)
                .map(|(i, probe)| {
                    let target = probe.target.as_deref().map(|target| (format!("locality[{i}].target"), target));
                    self.passage(&format!("locality[{i}].prompt"), &probe.prompt, target)
                })
                .collect::<Result<_, _>>()?,
        })
    }

    fn passage(&self, field: &str, prompt: &str, target: Option<(String, &str)>) -> Result<Passage, WriterError> {
        self.text(field, prompt)?;
        if let Some((field, target)) = &target {
            self.text(field, target)?;
        }
        let passage = self
            .texts
            .passage(prompt, target.as_ref().map(|(_, text)| *text))
            .map_err(|error| self.refused(field, target.as_ref().map(|(field, _)| field), error))?;
        let prompt_tokens = passage.target.start;
        if prompt_tokens == 0 {
            return invalid(self.field(field), "has no tokens");
        }
        tokens_at_most(self.field(field), prompt_tokens, self.config.max_prompt_tokens)?;
        if let Some((field, _)) = target {
            if passage.target.is_empty() {
                return invalid(self.field(&field), "has no tokens");
            }
            tokens_at_most(self.field(&field), passage.target.len(), self.config.max_target_tokens)?;
        }
        tokens_at_most(self.field(field), passage.ids.len(), self.texts.context_length())?;
        Ok(passage)
    }

    /// What the tokenizer says is about the prompt, save where it is the target that is no answer of this model's.
    fn refused(&self, prompt: &str, target: Option<&String>, error: ModelError) -> WriterError {
        match (error, target) {
            (ModelError::UnknownLabel { label, labels }, Some(target)) => {
                WriterError::UnknownLabel { field: self.field(target), label, labels }
            }
            (error, _) => WriterError::Invalid { field: self.field(prompt), message: error.to_string() },
        }
    }

    fn text(&self, field: &str, text: &str) -> Result<(), WriterError> {
        if text.trim().is_empty() {
            return invalid(self.field(field), "must not be empty");
        }
        self.bytes(field, text, self.config.max_text_bytes)
    }

    fn bytes(&self, field: &str, text: &str, limit: usize) -> Result<(), WriterError> {
        let given = text.len();
        if given > limit {
            return invalid(self.field(field), format!("length in bytes must be <= {limit}, given {given}"));
        }
        Ok(())
    }

    fn field(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

fn numbered<T>(items: &[T]) -> impl Iterator<Item = (usize, &T)> {
    items.iter().enumerate()
}

fn at_most(field: impl Into<String>, given: usize, limit: usize) -> Result<(), WriterError> {
    if given > limit { invalid(field, format!("length must be <= {limit}, given {given}")) } else { Ok(()) }
}

fn tokens_at_most(field: impl Into<String>, given: usize, limit: usize) -> Result<(), WriterError> {
    if given > limit { invalid(field, format!("length in tokens must be <= {limit}, given {given}")) } else { Ok(()) }
}

fn invalid<T>(field: impl Into<String>, message: impl Into<String>) -> Result<T, WriterError> {
    Err(WriterError::Invalid { field: field.into(), message: message.into() })
}
