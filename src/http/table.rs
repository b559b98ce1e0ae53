//! What the table of routes is made of: a route can not be added without saying what it asks of its callers, and what it asks
//! is enforced and documented from the same value.

use axum::{
    extract::Request,
    http::Method,
    middleware::{Next, from_fn},
    routing::MethodRouter,
};
use utoipa::openapi::{
    Components, RefOr,
    path::{Operation, PathItem},
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter, UtoipaMethodRouterExt};

use super::{
    access::{Access, guard},
    error::{self, Code},
    openai::envelope,
    openapi, relay,
    state::AppState,
};

/// The name of the security scheme in the document.
const SCHEME: &str = "key";

/// Routes, each with its guard.
pub(super) struct Table {
    routes: OpenApiRouter<AppState>,
    listed: Vec<Listed>,
}

/// A route: method, pattern, and what it asks of its callers.
#[cfg_attr(not(test), expect(dead_code, reason = "the tests hold every route against what it answers"))]
pub(super) struct Listed {
    pub method: Method,
    pub path: String,
    pub access: Access,
}

impl Table {
    /// No routes.
    pub fn new() -> Self {
        let mut frame = openapi::frame();
        frame.components.get_or_insert_with(Components::new).add_security_scheme(SCHEME, scheme());
        Self { routes: OpenApiRouter::with_openapi(frame), listed: Vec::new() }
    }

    /// Adds documented routes that ask the same.
    pub fn routes(mut self, access: Access, routes: UtoipaMethodRouter<AppState>) -> Self {
        let (schemas, mut paths, routes) = routes.map(|routes| guarded(access, routes));
        for (path, item) in &mut paths.paths {
            for (method, operation) in operations(item) {
                document(operation, access, path.starts_with("/v1/"));
                self.listed.push(Listed { method, path: path.clone(), access });
            }
        }
        self.routes = self.routes.routes((schemas, paths, routes));
        self
    }

    /// Adds documented routes that the writer alone answers: a replica that follows hands them on.
    pub fn writers(self, access: Access, routes: UtoipaMethodRouter<AppState>) -> Self {
        let (schemas, mut paths, routes) = routes.map(|routes| routes.route_layer(from_fn(relay::to_writer)));
        for item in paths.paths.values_mut() {
            operations(item).for_each(|(_, operation)| refusals(operation, &[Code::NoWriter, Code::WriterLost], false));
        }
        self.routes(access, (schemas, paths, routes))
    }

    /// Adds documented routes to read what the writer alone may know yet.
    pub fn writers_may_know(self, access: Access, routes: UtoipaMethodRouter<AppState>) -> Self {
        self.routes(access, routes.map(|routes| routes.route_layer(from_fn(relay::or_at_writer))))
    }

    /// Adds a route to read that is not in the document.
    pub fn undocumented(mut self, access: Access, path: &str, routes: MethodRouter<AppState>) -> Self {
        self.listed.push(Listed { method: Method::GET, path: path.to_owned(), access });
        self.routes = self.routes.route(path, guarded(access, routes));
        self
    }

    /// Every route.
    #[cfg(test)]
    pub fn listed(&self) -> &[Listed] {
        &self.listed
    }

    /// The routes, to be served; the document.
    pub fn into_parts(self) -> (axum::Router<AppState>, utoipa::openapi::OpenApi) {
        let (routes, mut document) = self.routes.split_for_parts();
        if let Some(components) = &mut document.components {
            components.schemas.values_mut().for_each(openapi::join_parts);
        }
        (routes, document)
    }
}

fn guarded(access: Access, routes: MethodRouter<AppState>) -> MethodRouter<AppState> {
    routes.route_layer(from_fn(move |request: Request, next: Next| guard(access, request, next)))
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    let all = [
        (Method::GET, &mut item.get),
        (Method::POST, &mut item.post),
        (Method::PUT, &mut item.put),
        (Method::PATCH, &mut item.patch),
        (Method::DELETE, &mut item.delete),
    ];
    all.into_iter().filter_map(|(method, operation)| operation.as_mut().map(|operation| (method, operation)))
}

fn scheme() -> SecurityScheme {
    let said = "A key made by `amend keys new`. The scopes that a route needs stand beside it; `admin` stands for all. A \
                service that was started without keys asks for none.";
    SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(said)).build())
}

/// Says in the document what the guard asks and answers.
fn document(operation: &mut Operation, access: Access, openai: bool) {
    let codes: &[Code] = match access {
        Access::Open => {
            operation.security = Some(Vec::new());
            &[Code::HostNotAllowed]
        }
        Access::Needs(scope) => {
            operation.security = Some(vec![SecurityRequirement::new(SCHEME, [scope.name()])]);
            &[Code::Unauthenticated, Code::InsufficientScope, Code::HostNotAllowed, Code::RateLimited]
        }
    };
    refusals(operation, codes, openai);
}

/// Adds errors to those that an operation is documented to answer.
fn refusals(operation: &mut Operation, codes: &[Code], openai: bool) {
    let refusals = if openai { envelope::responses(codes) } else { error::responses(codes) };
    for (status, refusal) in refusals {
        match (operation.responses.responses.get_mut(&status), refusal) {
            (Some(RefOr::T(said)), RefOr::T(refusal)) => join(said, refusal),
            (_, refusal) => {
                operation.responses.responses.insert(status, refusal);
            }
        }
    }
}

/// Adds what another response of the same status says.
fn join(said: &mut utoipa::openapi::Response, more: utoipa::openapi::Response) {
    said.description = format!("{} {}", said.description, more.description);
    for (media_type, content) in more.content {
        match (said.content.get_mut(&media_type), content) {
            (Some(RefOr::T(said)), RefOr::T(more)) => said.examples.extend(more.examples),
            (_, content) => {
                said.content.insert(media_type, content);
            }
        }
    }
}
