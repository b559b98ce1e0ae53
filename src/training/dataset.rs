//! Records to edit, in the schemas of CounterFact (as EasyEdit has it) and of zsRE (as MEND published it).

use std::{fs, path::Path};

use serde::Deserialize;
use thiserror::Error;

use crate::digest::Digest;

/// One edit with what is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub prompt: String,
    /// The answer that the edit should give.
    pub target: String,
    /// The answer that was true before, if the data has it.
    pub old_target: Option<String>,
    /// The same question in other words.
    pub paraphrase: String,
    /// A question whose answer must stay: a neighbour of the fact (CounterFact), or an unrelated one (zsRE).
    pub locality_prompt: String,
    pub locality_target: String,
}

/// Records and the digest of the files they came from.
#[derive(Debug, Clone)]
pub struct Dataset {
    pub records: Vec<Record>,
    pub digest: Digest,
}

/// Why data could not be read.
#[derive(Debug, Error)]
pub enum DataError {
    #[error("{file}: {source}")]
    Io { file: String, source: std::io::Error },
    #[error("{file}: record {index}: {why}")]
    Malformed { file: String, index: usize, why: String },
    #[error("{file}: {why}")]
    NotRecords { file: String, why: String },
}

/// Either schema; zsRE's answer is its `alt`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Raw {
    CounterFact {
        prompt: String,
        target_new: String,
        ground_truth: Option<String>,
        rephrase_prompt: String,
        locality_prompt: String,
        locality_ground_truth: String,
    },
    Zsre {
        src: String,
        rephrase: String,
        alt: String,
        answers: Option<Vec<String>>,
        loc: String,
        loc_ans: String,
    },
}

/// zsRE's locality questions carry this before the question itself.
const NATURAL_QUESTIONS_PREFIX: &str = "nq question: ";

impl From<Raw> for Record {
    fn from(raw: Raw) -> Self {
        match raw {
            Raw::CounterFact {
                prompt,
                target_new,
                ground_truth,
                rephrase_prompt,
                locality_prompt,
                locality_ground_truth,
            } => Self {
                prompt,
                target: target_new,
                old_target: ground_truth,
                paraphrase: rephrase_prompt,
                locality_prompt,
                locality_target: locality_ground_truth,
            },
            Raw::Zsre { src, rephrase, alt, answers, loc, loc_ans } => Self {
                prompt: src,
                target: alt,
                old_target: answers.and_then(|answers| answers.into_iter().next()),
                paraphrase: rephrase,
                locality_prompt: loc.strip_prefix(NATURAL_QUESTIONS_PREFIX).unwrap_or(&loc).to_owned(),
                locality_target: loc_ans,
            },
        }
    }
}

impl Record {
    fn check(&self) -> Result<(), &'static str> {
        let texts = [
            (&self.prompt, "the prompt is empty"),
            (&self.target, "the target is empty"),
            (&self.paraphrase, "the paraphrase is empty"),
            (&self.locality_prompt, "the locality prompt is empty"),
            (&self.locality_target, "the locality answer is empty"),
        ];
        texts.iter().find(|(text, _)| text.trim().is_empty()).map_or(Ok(()), |(_, why)| Err(*why))
    }
}

/// Reads files of records, one after another.
pub fn load(paths: &[impl AsRef<Path>]) -> Result<Dataset, DataError> {
    let mut records = Vec::new();
    let mut digests = Vec::new();
    for path in paths {
        let file = path.as_ref().display().to_string();
        let bytes = fs::read(path).map_err(|source| DataError::Io { file: file.clone(), source })?;
        digests.push(*Digest::of(&bytes).as_bytes());
        let values: Vec<serde_json::Value> = serde_json::from_slice(&bytes)
            .map_err(|error| DataError::NotRecords { file: file.clone(), why: error.to_string() })?;
        for (index, value) in values.into_iter().enumerate() {
            let malformed = |why: String| DataError::Malformed { file: file.clone(), index, why };
            let raw: Raw = serde_json::from_value(value)
                .map_err(|_| malformed("it is neither in the CounterFact nor in the zsRE schema".to_owned()))?;
            let record = Record::from(raw);
            record.check().map_err(|why| malformed(why.to_owned()))?;
            records.push(record);
        }
    }
    Ok(Dataset { records, digest: Digest::of_parts(digests.iter().map(<[u8; 32]>::as_slice)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Result<Dataset, DataError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        load(&[file.path()])
    }

    #[test]
    fn both_schemas_load() {
        let data = load_text(
            r#"[{"prompt":"A is","target_new":"b","ground_truth":"c","rephrase_prompt":"Is A","locality_prompt":"D is",
                 "locality_ground_truth":"e","subject":"A","case_id":1},
                {"src":"Who?","rephrase":"Which one?","alt":"x","answers":["y"],"loc":"nq question: where","loc_ans":"z"}]"#,
        )
        .unwrap();
        assert_eq!(data.records[0].old_target.as_deref(), Some("c"));
        assert_eq!(data.records[1].target, "x");
        assert_eq!(data.records[1].locality_prompt, "where");
    }

    #[test]
    fn a_bad_record_is_named() {
        let error = load_text(r#"[{"prompt":"A is"}]"#).unwrap_err();
        assert!(error.to_string().contains("record 0"), "{error}");
        assert!(load_text("{}").is_err());
    }
}
