//! The table of routes, and the layers that every request passes.

use axum::{
    Router,
    extract::Request,
    middleware::{from_fn, from_fn_with_state},
    routing::get,
};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::routes;

use super::{
    access::{self, Access},
    classify, docs, edits,
    error::{Code, Problem},
    generate, hardening, health, holding, info, measure, middleware, openai, relay, score,
    state::AppState,
    table::Table,
    versions,
};
use crate::keys::Scope;

/// Every route, what it asks of its callers, and its documentation.
pub(super) fn table() -> Table {
    use Access::{Needs, Open};
    Table::new()
        .writers(Needs(Scope::Edit), routes!(edits::submit::submit))
        .routes(Needs(Scope::Read), routes!(edits::read::list))
        .writers_may_know(Needs(Scope::Read), routes!(edits::read::show))
        .writers(Needs(Scope::Edit), routes!(edits::take_back::take_back))
        .writers(Needs(Scope::Edit), routes!(versions::rollback))
        .routes(Needs(Scope::Read), routes!(versions::list))
        .routes(Needs(Scope::Read), routes!(versions::show))
        .routes(Needs(Scope::Read), routes!(versions::diff))
        .routes(Needs(Scope::Generate), routes!(generate::generate))
        .routes(Needs(Scope::Generate), routes!(score::score))
        .routes(Needs(Scope::Generate), routes!(classify::classify))
        .routes(Needs(Scope::Generate), routes!(openai::completions::complete))
        .routes(Needs(Scope::Generate), routes!(openai::chat::chat))
        .routes(Needs(Scope::Generate), routes!(openai::models::list))
        .routes(Needs(Scope::Generate), routes!(openai::models::show))
        // Probes have no keys, and learn no more than that the service is there.
        .routes(Open, routes!(health::livez))
        .routes(Open, routes!(health::readyz))
        .routes(Needs(Scope::Metrics), routes!(health::metrics))
        .writers(Needs(Scope::Read), routes!(holding::edits))
        .routes(Needs(Scope::Read), routes!(info::info))
        // What anyone can read in the source.
        .routes(Open, routes!(docs::docs))
        .routes(Open, routes!(docs::document))
        .undocumented(Open, "/docs/", get(docs::page))
        .undocumented(Open, "/docs/{*name}", get(docs::asset))
}

/// The service.
pub fn router(state: AppState) -> Router {
    let (routes, _) = table().into_parts();
    routes
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        // The last layer is the outermost: metrics count what all others answer.
        .layer(CatchPanicLayer::custom(middleware::panicked))
        .layer(from_fn_with_state(state.limits.request_time, middleware::time_limit))
        .layer(from_fn(middleware::only_problems))
        .layer(from_fn(openai::envelope::rewrite))
        .layer(from_fn_with_state(state.gate.clone(), access::hand_gate))
        .layer(from_fn_with_state(state.relay.clone(), relay::hand_relay))
        .layer(from_fn_with_state(state.proxies.clone(), middleware::identify))
        .layer(from_fn(hardening::harden))
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
