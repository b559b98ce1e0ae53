//! The OpenAPI document, and Swagger UI over it, served from the binary: no other host is asked.

use std::sync::{Arc, LazyLock};

use axum::{
    Json,
    extract::Path,
    http::{HeaderValue, header},
    response::{IntoResponse, Redirect, Response},
};
use utoipa_swagger_ui::Config;

use super::{
    error::{Code, Problem, problems},
    openapi,
};

/// What Swagger UI is told. `none` keeps it from sending the document to a validator on the internet.
static CONFIG: LazyLock<Arc<Config<'static>>> =
    LazyLock::new(|| Arc::new(Config::from("/openapi.json").validator_url("none")));

problems!(DocsProblems: RequestTimeout);

/// The OpenAPI document
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "openapi", tag = "service",
    responses((status = 200, description = "This document.", body = Object), DocsProblems)
)]
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(openapi::document())
}

/// Swagger UI, for people
#[utoipa::path(
    get, path = "/docs", operation_id = "docs", tag = "service",
    responses((status = 303, description = "To `/docs/`, the page."), DocsProblems)
)]
pub(super) async fn docs() -> Redirect {
    Redirect::to("/docs/")
}

/// The page itself.
pub(super) async fn page() -> Result<Response, Problem> {
    file("")
}

/// What the page loads.
pub(super) async fn asset(Path(name): Path<String>) -> Result<Response, Problem> {
    file(&name)
}

fn file(name: &str) -> Result<Response, Problem> {
    let file = utoipa_swagger_ui::serve(name, CONFIG.clone()).map_err(Problem::internal)?;
    let file = file.ok_or_else(|| Problem::new(Code::NotFound, format!("no file {name:?} below /docs")))?;
    let content_type = HeaderValue::try_from(file.content_type).map_err(Problem::internal)?;
    let mut response = ([(header::CONTENT_TYPE, content_type)], file.bytes).into_response();
    if file.gzpipped {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response)
}
