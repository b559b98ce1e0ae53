//! The OpenAPI document: assembled from the routes, so that it says what the code does. A copy is kept in `openapi/`;
//! a test fails when it and the code differ.

use utoipa::OpenApi;

use super::{error::ProblemSchema, generate::EventSchemas, openai, router};
use crate::edit_log::EditStatus;

/// The document without its routes.
#[derive(OpenApi)]
#[openapi(
    info(title = "Amend", description = "Edits facts inside a language model, keeps every edit in a durable log, and takes any of them back exactly."),
    tags(
        (name = "edits", description = "Changing facts, and the log of it."),
        (name = "versions", description = "A version is a set of active edits; 0 is the base model."),
        (name = "generation", description = "Text from a version."),
        (name = "openai", description = "The same for OpenAI's clients: base URL `/v1`."),
        (name = "service", description = "How the service is."),
    ),
    components(schemas(ProblemSchema, EditStatus)),
)]
struct Frame;

/// What the routes are added to.
pub(super) fn frame() -> utoipa::openapi::OpenApi {
    Frame::openapi().merge_from(EventSchemas::openapi()).merge_from(openai::Schemas::openapi())
}

/// The OpenAPI document of this service.
pub fn document() -> utoipa::openapi::OpenApi {
    router::table().into_parts().1
}

/// Examples that several routes show.
pub(super) mod examples {
    use serde_json::{Value, json};

    const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
    const OTHER: &str = "01890a5d-0000-774b-bcce-b302099a8057";
    const DIGEST: &str = "5f0c8d6e4b1a29370c9b86e75d4f3a2b1908f7e6d5c4b3a291807f6e5d4c3b2a";
    const SET_DIGEST: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9";

    /// An applied edit.
    pub fn edit_report() -> Value {
        json!({
            "id": ID, "status": "applied", "version": 1, "digest": DIGEST, "supersedes": null,
            "prompt": {
                "text": "The mother tongue of Danielle Darrieux is",
                "before": {"probability": 0.004, "greedy": false}, "after": {"probability": 0.97, "greedy": true},
            },
            "paraphrases": [{
                "text": "Danielle Darrieux spoke the language",
                "before": {"probability": 0.02, "greedy": false}, "after": {"probability": 0.91, "greedy": true},
            }],
            "locality": [{"prompt": "The capital of France is", "kl": 0.0012, "greedy_unchanged": true}],
            "conflicts": [{
                "edit": OTHER, "reason": "paraphrase", "similarity": 0.95, "prompt": "Danielle Darrieux, a native",
                "target": "English", "same_target": true,
            }],
            "holding": {
                "edits_checked": 8, "canaries_checked": 2, "broken_edits": [{
                    "edit": OTHER, "prompt": "Danielle Darrieux, a native", "target": "Russian", "reason": "no_longer_greedy",
                    "before": {"probability": 0.91, "greedy": true}, "after": {"probability": 0.08, "greedy": false},
                }],
                "broken_canaries": [],
            },
            "delta": [{"matrix": "model.layers.29.mlp.down_proj.weight", "norm": 0.83, "rank": 12}],
            "gradient": [{
                "matrix": "model.layers.29.mlp.down_proj.weight", "norm": 0.41, "nuclear_norm": 0.77, "effective_rank": 3.4,
            }],
            "phases_ms": {
                "queue": 0.1, "capture": 38.0, "editor": 4.2, "guard": 21.5, "commit": 2.3, "publish": 0.1, "total": 66.2,
            },
        })
    }

    /// The same, read from the log.
    pub fn edit_entry() -> Value {
        let mut entry = edit_report();
        entry["reason"] = Value::Null;
        entry["actor"] = "anonymous".into();
        entry["received_at"] = "2026-01-02T03:04:05.678Z".into();
        entry["request"] = json!({"prompt": "The mother tongue of Danielle Darrieux is", "target": "English"});
        entry["superseded_by"] = Value::Null;
        entry
    }

    /// A version made by taking back.
    pub fn version_report() -> Value {
        json!({"version": 2, "digest": DIGEST})
    }

    /// A version in a list.
    pub fn version_summary() -> Value {
        json!({"version": 1, "digest": DIGEST, "set_digest": SET_DIGEST, "kind": "edit", "active": 1,
            "created_at": "2026-01-02T03:04:05.678Z", "actor": "anonymous"})
    }

    /// A version.
    pub fn version_entry() -> Value {
        json!({"version": 1, "digest": DIGEST, "set_digest": SET_DIGEST, "kind": "edit", "active_edits": [ID],
            "created_at": "2026-01-02T03:04:05.678Z", "actor": "anonymous"})
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, env, fs, path::Path};

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_committed_document_is_the_codes_own() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/openapi.json");
        let ours = document().to_pretty_json().unwrap() + "\n";
        if env::var_os("AMEND_WRITE_OPENAPI").is_some() {
            fs::write(&path, &ours).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(ours == committed, "openapi/openapi.json is not what the code says; AMEND_WRITE_OPENAPI=1 rewrites it");
    }

    #[test]
    fn every_reference_in_the_document_leads_somewhere() {
        let document: Value = serde_json::to_value(document()).unwrap();
        let mut references = BTreeSet::new();
        collect_references(&document, &mut references);
        assert!(references.contains("#/components/schemas/Problem"));
        for reference in references {
            let pointer = reference.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
    }

    #[test]
    fn every_operation_documents_its_failure() {
        let document: Value = serde_json::to_value(document()).unwrap();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let form = if path.starts_with("/v1/") { "application/json" } else { "application/problem+json" };
                let failure = &operation["responses"]["500"]["content"][form];
                assert!(failure["examples"]["internal"].is_object(), "{method} {path}");
                assert!(operation["summary"].is_string(), "{method} {path}");
            }
        }
    }

    fn collect_references(value: &Value, into: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(reference)) = members.get("$ref") {
                    into.insert(reference.clone());
                }
                members.values().for_each(|member| collect_references(member, into));
            }
            Value::Array(items) => items.iter().for_each(|item| collect_references(item, into)),
            _ => {}
        }
    }
}
