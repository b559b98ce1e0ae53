//! Reading the body of a request: known parameters with their types, and unknown ones refused by name. What both routes
//! know is read apart from what only one knows, so that each is written down once.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::http::{
    error::{Code, Problem},
    extract::shape,
};

/// Parameters of both routes.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Common {
    /// The served model's name for the newest version, or `name@17`.
    #[schema(example = "SmolLM2-135M-Instruct")]
    pub model: String,
    /// Default 1; 0 takes the most probable token.
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<usize>,
    pub min_p: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub repetition_penalty: Option<f64>,
    /// The same seed on the same version gives the same text; without one, every request draws anew.
    pub seed: Option<i64>,
    pub n: Option<usize>,
    pub max_tokens: Option<usize>,
    pub stop: Option<Stop>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    /// The oldest version that may answer: the request waits for it, and is answered 409 if it does not come in time.
    pub min_version: Option<u64>,
    /// Not supported: empty or null.
    pub logit_bias: Option<Map<String, Value>>,
    /// Left aside, as are the following.
    #[serde(rename = "user")]
    _user: Option<Value>,
    #[serde(rename = "store")]
    _store: Option<Value>,
    #[serde(rename = "metadata")]
    _metadata: Option<Value>,
    #[serde(rename = "service_tier")]
    _service_tier: Option<Value>,
    #[serde(rename = "safety_identifier")]
    _safety_identifier: Option<Value>,
    #[serde(rename = "prompt_cache_key")]
    _prompt_cache_key: Option<Value>,
}

/// The names of [`Common`]'s fields.
const COMMON: [&str; 22] = [
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "n",
    "max_tokens",
    "stop",
    "stream",
    "stream_options",
    "min_version",
    "logit_bias",
    "user",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
];

/// One stop string or several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be a string or a list of strings")]
pub(in crate::http) enum Stop {
    One(String),
    Many(Vec<String>),
}

/// How to stream.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(in crate::http) struct StreamOptions {
    /// Whether a last chunk without choices carries the token counts.
    #[serde(default)]
    pub include_usage: bool,
}

/// A body as the common parameters and those of one route.
pub(super) fn split<T: DeserializeOwned>(body: Value) -> Result<(Common, T), Problem> {
    let Value::Object(members) = body else {
        return Err(Problem::new(Code::InvalidRequest, "the body must be an object"));
    };
    let (common, own): (Map<_, _>, Map<_, _>) = members.into_iter().partition(|(name, _)| COMMON.contains(&&**name));
    let own = shape(Value::Object(own))?;
    let common: Common = shape(Value::Object(common))?;
    if common.model.is_empty() {
        return Err(refused("model", "must name the model"));
    }
    if common.logit_bias.as_ref().is_some_and(|bias| !bias.is_empty()) {
        return Err(refused("logit_bias", "is not supported"));
    }
    if common.stream_options.is_some() && common.stream != Some(true) {
        return Err(refused("stream_options", "is for streams; set stream to true"));
    }
    Ok((common, own))
}

/// An error about one parameter.
pub(super) fn refused(field: &str, message: &str) -> Problem {
    Problem::new(Code::InvalidRequest, format!("{field}: {message}")).with("field", field)
}

/// Refuses a parameter that would change the answer and is not supported, unless it asks for nothing.
pub(super) fn must_be_empty(field: &str, value: Option<&Value>) -> Result<(), Problem> {
    let empty = value.is_none_or(|value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::String(text) => text.is_empty() || text == "none",
        _ => false,
    });
    if empty { Ok(()) } else { Err(refused(field, "is not supported")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Own {
        prompt: String,
    }

    #[test]
    fn every_common_parameter_is_found() {
        let mut body: Map<String, Value> = COMMON.iter().map(|name| ((*name).to_owned(), Value::Null)).collect();
        body.insert("model".into(), json!("m"));
        body.insert("prompt".into(), json!("p"));
        let (common, own): (Common, Own) = split(Value::Object(body)).unwrap();
        assert_eq!((common.model.as_str(), own.prompt.as_str()), ("m", "p"));
    }

    #[test]
    fn what_is_unknown_or_of_the_wrong_type_is_named() {
        let message = |more: Value| {
            let mut body = json!({"model": "m", "prompt": "p"});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            split::<Own>(body).unwrap_err().body()["detail"].as_str().unwrap().to_owned()
        };
        assert!(message(json!({"colour": 1})).contains("colour"));
        assert!(message(json!({"temperature": "hot"})).starts_with("temperature: "));
        assert_eq!(message(json!({"stop": 3})), "stop: must be a string or a list of strings");
        assert_eq!(message(json!({"logit_bias": {"5": 1}})), "logit_bias: is not supported");
        assert_eq!(message(json!({"model": ""})), "model: must name the model");
        assert!(message(json!({"stream_options": {}})).starts_with("stream_options: "));
        assert!(split::<Own>(json!([])).is_err());
    }

    #[test]
    fn what_asks_for_nothing_is_taken() {
        for nothing in [json!(null), json!([]), json!({}), json!("none"), json!(false)] {
            assert!(must_be_empty("tools", Some(&nothing)).is_ok(), "{nothing}");
        }
        assert!(must_be_empty("tools", None).is_ok());
        assert!(must_be_empty("tools", Some(&json!([1]))).is_err());
    }
}
