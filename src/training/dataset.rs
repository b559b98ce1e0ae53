//! Records to edit, in the schemas of CounterFact (as EasyEdit has it) and of zsRE (as MEND published it), and in two of our
//! own: label flips for classifiers, and continuations of running text. `docs/data.md` describes them.

use std::{fs, path::Path};

use serde::Deserialize;
use thiserror::Error;

use crate::{digest::Digest, model::Kind};

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
    /// A question whose answer must stay: a neighbour of the fact (CounterFact), or an unrelated one (zsRE); of running text,
    /// another passage and the words that it ends with.
    pub locality_prompt: String,
    pub locality_target: String,
}

/// Records and the digest of the files they came from.
#[derive(Debug, Clone)]
pub struct Dataset {
    pub records: Vec<Record>,
    pub digest: Digest,
    /// Records of the files that are not among them, for they lack a text.
    pub left_out: usize,
}

/// What becomes of a record that lacks a text: its prompt, its answer, its paraphrase, or its locality question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incomplete {
    /// The file is refused.
    Refused,
    /// It is left out.
    LeftOut,
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

/// The schemas; zsRE's answer is its `alt`.
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
    LabelFlip {
        text: String,
        new_label: String,
        label: Option<String>,
        paraphrase: String,
        locality_text: String,
        locality_label: String,
    },
    RunningText {
        passage: String,
        continuation: String,
        locality: String,
    },
}

/// zsRE's locality questions carry this before the question itself.
const NATURAL_QUESTIONS_PREFIX: &str = "nq question: ";
/// Words at the end of a text that are held to what the model made of them, where no answer is given.
const WATCHED_WORDS: usize = 10;

impl Raw {
    /// What its edits are about, and whether models of this kind have edits like it.
    fn fits(&self, kind: Kind) -> (&'static str, bool) {
        match self {
            Self::CounterFact { .. } | Self::Zsre { .. } => ("answers", kind != Kind::Classifier),
            Self::LabelFlip { .. } => ("labels", kind == Kind::Classifier),
            Self::RunningText { .. } => ("running text", kind == Kind::Causal),
        }
    }
}

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
            Raw::LabelFlip { text, new_label, label, paraphrase, locality_text, locality_label } => Self {
                prompt: text,
                target: new_label,
                old_target: label,
                paraphrase,
                locality_prompt: locality_text,
                locality_target: locality_label,
            },
            Raw::RunningText { passage, continuation, locality } => {
                let (locality_prompt, locality_target) = split_words(&locality, -(WATCHED_WORDS as isize));
                Self {
                    target: continuation,
                    old_target: None,
                    paraphrase: beheaded(&passage),
                    prompt: passage,
                    locality_prompt,
                    locality_target,
                }
            }
        }
    }
}

/// A passage without its beginning, up to half of its words: what MEND takes for running text's equivalence neighbourhood.
/// How many follows from the passage.
fn beheaded(passage: &str) -> String {
    let half = passage.split_whitespace().count() / 2;
    let drawn = Digest::of(passage.as_bytes()).as_bytes()[0];
    split_words(passage, 1 + (usize::from(drawn) % half.max(1)) as isize).1
}

/// A text before and after its first `words` words, or before and after its last so many where that is below zero.
fn split_words(text: &str, words: isize) -> (String, String) {
    let starts: Vec<usize> =
        text.split_whitespace().map(|word| word.as_ptr() as usize - text.as_ptr() as usize).collect();
    let place = if words < 0 { starts.len().saturating_sub(words.unsigned_abs()) } else { words.unsigned_abs() };
    let (before, after) = text.split_at(starts.get(place).copied().unwrap_or(text.len()));
    (before.trim().to_owned(), after.trim().to_owned())
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

/// Reads files of records, one after another, for a model of this kind.
pub fn load(paths: &[impl AsRef<Path>], kind: Kind, incomplete: Incomplete) -> Result<Dataset, DataError> {
    let mut records = Vec::new();
    let mut left_out = 0;
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
                .map_err(|_| malformed("it is in none of the schemas that docs/data.md describes".to_owned()))?;
            if let (edits, false) = raw.fits(kind) {
                return Err(malformed(format!("it is an edit of {edits}, and the model is {kind}")));
            }
            let record = Record::from(raw);
            match record.check() {
                Ok(()) => records.push(record),
                Err(_) if incomplete == Incomplete::LeftOut => left_out += 1,
                Err(why) => return Err(malformed(format!("{why} (--skip-incomplete leaves such records out)"))),
            }
        }
    }
    Ok(Dataset { records, left_out, digest: Digest::of_parts(digests.iter().map(<[u8; 32]>::as_slice)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str, kind: Kind) -> Result<Dataset, DataError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        load(&[file.path()], kind, Incomplete::Refused)
    }

    const FACTS: &str = r#"[{"prompt":"A is","target_new":"b","ground_truth":"c","rephrase_prompt":"Is A","locality_prompt":"D is",
        "locality_ground_truth":"e","subject":"A","case_id":1},
        {"src":"Who?","rephrase":"Which one?","alt":"x","answers":["y"],"loc":"nq question: where","loc_ans":"z"}]"#;
    const FLIPS: &str = r#"[{"text":"It is so.","new_label":"REFUTES","label":"SUPPORTS","paraphrase":"So it is.",
        "locality_text":"It is not.","locality_label":"1"}]"#;
    const TEXTS: &str = r#"[{"passage":"One two three  four","continuation":" five six",
        "locality":"a b c d e f g h i j k l"}]"#;

    #[test]
    fn every_schema_loads() {
        let facts = load_text(FACTS, Kind::EncoderDecoder).unwrap();
        assert_eq!(facts.records[0].old_target.as_deref(), Some("c"));
        assert_eq!(facts.records[1].target, "x");
        assert_eq!(facts.records[1].locality_prompt, "where");
        let flip = &load_text(FLIPS, Kind::Classifier).unwrap().records[0];
        assert_eq!((flip.prompt.as_str(), flip.target.as_str()), ("It is so.", "REFUTES"));
        assert_eq!((flip.old_target.as_deref(), flip.paraphrase.as_str()), (Some("SUPPORTS"), "So it is."));
        let text = &load_text(TEXTS, Kind::Causal).unwrap().records[0];
        assert_eq!((text.prompt.as_str(), text.target.as_str()), ("One two three  four", " five six"));
        assert!(["two three  four", "three  four"].contains(&text.paraphrase.as_str()), "{text:?}");
        assert_eq!((text.locality_prompt.as_str(), text.locality_target.as_str()), ("a b", "c d e f g h i j k l"));
    }

    #[test]
    fn records_are_for_models_of_their_kind() {
        for (text, kind, why) in [
            (FACTS, Kind::Classifier, "record 0: it is an edit of answers, and the model is a classifier"),
            (FLIPS, Kind::Causal, "record 0: it is an edit of labels, and the model is a causal model"),
            (
                TEXTS,
                Kind::EncoderDecoder,
                "record 0: it is an edit of running text, and the model is an encoder-decoder",
            ),
        ] {
            let error = load_text(text, kind).unwrap_err().to_string();
            assert!(error.ends_with(why), "{error}");
        }
    }

    #[test]
    fn words_are_cut_where_they_begin() {
        for (words, before, after) in
            [(0, "", "a  é c"), (2, "a  é", "c"), (-1, "a  é", "c"), (9, "a  é c", ""), (-9, "", "a  é c")]
        {
            assert_eq!(split_words(" a  é c ", words), (before.to_owned(), after.to_owned()), "{words}");
        }
    }

    #[test]
    fn a_bad_record_is_named() {
        let error = load_text(r#"[{"prompt":"A is"}]"#, Kind::Causal).unwrap_err();
        assert!(error.to_string().contains("record 0"), "{error}");
        assert!(load_text("{}", Kind::Causal).is_err());
        let short = r#"[{"passage":"One","continuation":"two","locality":"a b"}]"#;
        let error = load_text(short, Kind::Causal).unwrap_err().to_string();
        assert!(error.contains("record 0: the paraphrase is empty"), "{error}");
    }

    #[test]
    fn records_without_an_answer_can_be_left_out() {
        let text = FACTS.replace(r#""alt":"x""#, r#""alt":" ""#);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let error = load(&[file.path()], Kind::Causal, Incomplete::Refused).unwrap_err().to_string();
        assert!(error.contains("record 1: the target is empty"), "{error}");
        let data = load(&[file.path()], Kind::Causal, Incomplete::LeftOut).unwrap();
        assert_eq!((data.records.len(), data.left_out, data.records[0].target.as_str()), (1, 1, "b"));
    }
}
