//! Who is admitted where: the matrix of every route and every kind of key, names of the host, rates, and headers.

use std::{env, fmt::Write, fs, num::NonZeroU32, path::Path};

use axum::{
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use serde_json::json;

use super::{Reply, World};
use crate::{
    http::{
        access::{Access, Admits, Gate},
        error::Code,
        rates::RateLimits,
        readiness::Readiness,
        router::table,
        state::HttpLimits,
    },
    keys::{Key, KeyRing, Scope},
};

/// A service that knows one key of each scope, and their secrets in the order of [`Scope::ALL`].
fn keyed(rates: RateLimits) -> (World, Vec<String>) {
    let (keys, secrets) = Scope::ALL.iter().map(|scope| Key::new(scope.name(), &[*scope]).unwrap()).unzip();
    let readiness = Readiness::new();
    readiness.ready();
    let gate = Gate::new(Admits::Keys(KeyRing::new(keys)), rates);
    (World::behind(gate, readiness, HttpLimits::default()), secrets)
}

fn request(method: &Method, path: &str, key: Option<&str>) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    let request = match key {
        Some(key) => request.header(header::AUTHORIZATION, format!("Bearer {key}")),
        None => request,
    };
    request.body(Body::empty()).unwrap()
}

/// A path that the pattern matches.
fn filled(pattern: &str) -> String {
    let id = super::doubles::id(1).to_string();
    pattern.replace("{id}", &id).replace("{n}", "1").replace("{model}", "tiny").replace("{*name}", "swagger-ui.css")
}

/// What stands in the matrix: how it was refused, or that it was not.
fn verdict(reply: &Reply) -> String {
    match reply.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => reply.status.as_u16().to_string(),
        StatusCode::MISDIRECTED_REQUEST | StatusCode::TOO_MANY_REQUESTS => panic!("{}: {}", reply.status, reply.text()),
        _ => "yes".to_owned(),
    }
}

const HEADING: &str = "\
# Who may do what

What a service that was started with `--keys` answers to a request without a key, with a key that it does not know, and with a
key of one scope: `401` and `403` refuse it before anything else is done, `yes` lets it in. The table is made by asking every
route; a test fails when it is not what the code does (`AMEND_WRITE_ACCESS=1 cargo nextest run --cargo-profile ci
every_route_and_every_kind_of_key` writes it anew). [SECURITY.md](../SECURITY.md) says why.

";

#[tokio::test]
async fn every_route_and_every_kind_of_key() {
    let (world, secrets) = keyed(RateLimits::default());
    let mut matrix = HEADING.to_owned();
    let scopes = Scope::ALL.map(Scope::name).join(" | ");
    writeln!(matrix, "| route | no key | unknown key | {scopes} |").unwrap();
    writeln!(matrix, "|---|{}", "---|".repeat(2 + Scope::ALL.len())).unwrap();
    let unknown = Key::new("other", &[Scope::Admin]).unwrap().1;
    let keys: Vec<Option<&str>> =
        [None, Some(unknown.as_str())].into_iter().chain(secrets.iter().map(|secret| Some(secret.as_str()))).collect();
    let table = table();
    for route in table.listed() {
        let path = filled(&route.path);
        assert!(!path.contains('{'), "{path} has a parameter that this test does not fill");
        write!(matrix, "| `{} {}` |", route.method, route.path).unwrap();
        let mut row = Vec::new();
        for key in &keys {
            let reply = world.reply(request(&route.method, &path, *key)).await;
            assert_ne!(reply.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
            row.push(verdict(&reply));
        }
        writeln!(matrix, " {} |", row.join(" | ")).unwrap();

        // The matrix as it should be, from what the table of routes says.
        let refused = |status: &str| if route.access == Access::Open { "yes".to_owned() } else { status.to_owned() };
        let of_scope = Scope::ALL.into_iter().map(|own| match route.access {
            Access::Needs(scope) if scope != own && own != Scope::Admin => "403".to_owned(),
            _ => "yes".to_owned(),
        });
        let expected: Vec<_> = [refused("401"), refused("401")].into_iter().chain(of_scope).collect();
        assert_eq!(row, expected, "{} {}", route.method, route.path);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/access.md");
    if env::var_os("AMEND_WRITE_ACCESS").is_some() {
        fs::write(&path, &matrix).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(matrix == committed, "docs/access.md is not what the code does; AMEND_WRITE_ACCESS=1 writes it anew");
}

#[test]
fn what_changes_something_is_never_open() {
    for route in table().listed() {
        let open = route.access == Access::Open;
        assert!(!open || route.method == Method::GET, "{} {}", route.method, route.path);
    }
}

#[tokio::test]
async fn a_refusal_says_what_is_needed_and_how() {
    let (world, secrets) = keyed(RateLimits::default());
    let reply = world.get("/edits").await;
    assert_eq!(reply.header("www-authenticate"), Some("Bearer realm=\"amend\""));
    assert_eq!(reply.problem(Code::Unauthenticated)["scope"], "read");
    let reply = world.reply(request(&Method::HEAD, "/edits", None)).await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "HEAD is answered by what answers GET");
    let reply = world.reply(request(&Method::GET, "/edits", Some(&secrets[1]))).await;
    let problem = reply.problem(Code::InsufficientScope);
    assert_eq!((&problem["scope"], &problem["scopes"]), (&json!("read"), &json!(["generate"])));
    assert!(!reply.text().contains(&secrets[1]));

    let reply = world.reply(request(&Method::GET, "/v1/models", None)).await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
    let error = &reply.json()["error"];
    assert_eq!((&error["type"], &error["code"]), (&json!("authentication_error"), &json!("unauthenticated")));
    assert!(reply.header("www-authenticate").is_some());
}

#[tokio::test]
async fn the_keys_name_is_the_actor_whatever_the_request_says() {
    let (world, secrets) = keyed(RateLimits::default());
    let key = format!("Bearer {}", secrets[2]);
    let headers = [("authorization", key.as_str()), ("x-amend-actor", "somebody-else")];
    world.post_with("/edits", &headers, &json!({"prompt": "p", "target": "t"})).await.ok(201);
    world.post_with("/rollback", &headers, &json!({"to_version": 0})).await.ok(200);
    assert_eq!(world.edits.submissions.lock().unwrap()[0].actor, "edit");
    assert_eq!(world.edits.changes.lock().unwrap()[0].1, "edit");
}

#[tokio::test]
async fn a_key_that_was_taken_out_of_the_ring_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let secret = crate::keys::file::add(&path, "reader", &[Scope::Read]).unwrap();
    let ring = KeyRing::read(&path).unwrap();
    let readiness = Readiness::new();
    readiness.ready();
    let gate = Gate::new(Admits::Keys(ring.clone()), RateLimits::default());
    let world = World::behind(gate, readiness, HttpLimits::default());
    world.reply(request(&Method::GET, "/edits", Some(&secret))).await.ok(200);
    fs::write(&path, "").unwrap();
    ring.reload(&path).unwrap();
    world.reply(request(&Method::GET, "/edits", Some(&secret))).await.problem(Code::Unauthenticated);
}

#[tokio::test]
async fn each_key_has_its_rate_on_each_scope() {
    let limit = NonZeroU32::new(2).unwrap();
    let (world, secrets) = keyed(RateLimits::new([(Scope::Read, limit)]));
    let [read, generate, .., admin] = &secrets[..] else { panic!("fewer scopes") };
    let get = async |key: &str, path| world.reply(request(&Method::GET, path, Some(key))).await;
    get(read, "/edits").await.ok(200);
    get(read, "/versions").await.ok(200);
    let reply = get(read, "/info").await;
    let after: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((29..=30).contains(&after), "{after}");
    let problem = reply.problem(Code::RateLimited);
    assert_eq!((&problem["scope"], &problem["limit_per_minute"]), (&json!("read"), &json!(2)));
    for _ in 0..3 {
        get(generate, "/edits").await.problem(Code::InsufficientScope);
        get(generate, "/v1/models").await.ok(200);
        get(read, "/livez").await.ok(200);
    }
    get(admin, "/edits").await.ok(200);
}

#[tokio::test]
async fn without_keys_a_request_for_another_name_is_refused() {
    let readiness = Readiness::new();
    readiness.ready();
    let world = World::behind(Gate::new(Admits::Local, RateLimits::default()), readiness, HttpLimits::default());
    let get = async |host: &str| {
        world.reply(Request::get("/info").header(header::HOST, host).body(Body::empty()).unwrap()).await
    };
    for local in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080"] {
        get(local).await.ok(200);
    }
    for other in ["rebound.example:8080", "10.0.0.1", "no host"] {
        get(other).await.problem(Code::HostNotAllowed);
    }
    world.get("/info").await.ok(200);
}

#[tokio::test]
async fn every_answer_tells_browsers_to_do_little_and_lets_no_other_origin_read() {
    let world = World::new();
    let preflight = Request::options("/edits")
        .header(header::ORIGIN, "https://evil.example")
        .header(header::ACCESS_CONTROL_REQUEST_METHOD, "POST")
        .body(Body::empty())
        .unwrap();
    let refused = world.reply(preflight).await;
    refused.problem(Code::MethodNotAllowed);
    for reply in [refused, world.get("/edits").await, world.get("/nowhere").await, world.get("/docs/").await] {
        assert!(!reply.headers.keys().any(|name| name.as_str().starts_with("access-control-")));
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(reply.header("x-frame-options"), Some("DENY"));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        assert!(reply.header("content-security-policy").unwrap().contains("frame-ancestors 'none'"));
    }
    // A form of another page can send text without asking first, but not JSON.
    let form = Request::post("/edits").header(header::CONTENT_TYPE, "text/plain");
    let form = form.body(Body::from(r#"{"prompt": "p", "target": "t"}"#)).unwrap();
    world.reply(form).await.problem(Code::UnsupportedMediaType);
}

#[tokio::test]
async fn a_request_that_did_not_pass_the_gate_is_refused() {
    // The table of routes alone, without the layers of the service.
    let world = World::new();
    let (routes, _) = table().into_parts();
    let state = world.state(Gate::new(Admits::Anyone, RateLimits::default()), HttpLimits::default());
    let bare = World { app: routes.with_state(state), ..world };
    assert_eq!(bare.get("/edits").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(bare.get("/livez").await.status, StatusCode::INTERNAL_SERVER_ERROR);
}
