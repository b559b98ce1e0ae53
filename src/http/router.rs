//! The table of routes, and the layers that every request passes.

use axum::{
    Router,
    extract::Request,
    middleware::{from_fn, from_fn_with_state},
    routing::get,
};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    classify, docs, edits,
    error::{Code, Problem},
    generate, health, holding, info, measure, middleware, openai, openapi, score,
    state::AppState,
    versions,
};

/// Every documented route, with its documentation.
pub(super) fn table() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(openapi::frame())
        .routes(routes!(edits::submit::submit, edits::read::list))
        .routes(routes!(edits::read::show, edits::take_back::take_back))
        .routes(routes!(versions::rollback))
        .routes(routes!(versions::list))
        .routes(routes!(versions::show))
        .routes(routes!(versions::diff))
        .routes(routes!(generate::generate))
        .routes(routes!(score::score))
        .routes(routes!(classify::classify))
        .routes(routes!(openai::completions::complete))
        .routes(routes!(openai::chat::chat))
        .routes(routes!(openai::models::list))
        .routes(routes!(openai::models::show))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics))
        .routes(routes!(holding::edits))
        .routes(routes!(info::info))
        .routes(routes!(docs::docs))
        .routes(routes!(docs::document))
}

/// The service.
pub fn router(state: AppState) -> Router {
    let (routes, _) = table().split_for_parts();
    routes
        .route("/docs/", get(docs::page))
        .route("/docs/{*name}", get(docs::asset))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        // The last layer is the outermost: metrics count what all others answer.
        .layer(CatchPanicLayer::custom(middleware::panicked))
        .layer(from_fn_with_state(state.limits.request_time, middleware::time_limit))
        .layer(from_fn(middleware::only_problems))
        .layer(from_fn(openai::envelope::rewrite))
        .layer(from_fn(middleware::identify))
        .layer(from_fn_with_state(state.metrics.clone(), measure::measure))
        .with_state(state)
}

async fn not_found(request: Request) -> Problem {
    Problem::new(Code::NotFound, format!("no route for {}", request.uri().path()))
}

async fn method_not_allowed(request: Request) -> Problem {
    let detail = format!("{} is not allowed on {}", request.method(), request.uri().path());
    Problem::new(Code::MethodNotAllowed, detail)
}
