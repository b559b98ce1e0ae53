//! Names of models: the service's own for the newest version, `name@17` for a certain one.

use crate::http::{
    error::{Code, Problem},
    state::AppState,
};

/// The version that a model's name stands for; none is the newest. 404 unless the name is that of the served model.
pub(super) fn version_of(app: &AppState, model: &str) -> Result<Option<u64>, Problem> {
    let served = &app.info.model.name;
    if model == served {
        return Ok(None);
    }
    let pinned = model.strip_prefix(served.as_str()).and_then(|rest| rest.strip_prefix('@'));
    let number = pinned.and_then(|number| number.parse().ok().filter(|_| number.bytes().all(|b| b.is_ascii_digit())));
    number.map(Some).ok_or_else(|| {
        let detail = format!(
            "there is no model {model:?}; {served:?} is served, and {:?} for version 7 of it",
            pinned_name(served, 7)
        );
        Problem::new(Code::UnknownModel, detail).with("field", "model")
    })
}

/// The name of one version.
pub(super) fn pinned_name(served: &str, version: u64) -> String {
    format!("{served}@{version}")
}
