//! Runs the prompts of a request: the first one on the version that was asked for, the others on the version that it got,
//! so that one version answers all (law 4).

use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};

use crate::{
    generation::{GenerateError, GenerateEvent, GenerateRequest, GenerateResponse},
    http::state::{AppState, Streaming},
};

/// Prompts of one request that run or wait at the same time.
const AT_ONCE: usize = 8;

/// The answers, in the order of the prompts; at least one prompt.
pub(super) async fn whole(
    app: &AppState,
    requests: Vec<GenerateRequest>,
) -> Result<Vec<GenerateResponse>, GenerateError> {
    let mut requests = requests.into_iter();
    let Some(first) = requests.next() else { return Ok(Vec::new()) };
    let first = app.generates.generate(first).await?;
    let pinned = requests.map(|request| GenerateRequest { version: Some(first.version), ..request });
    let others = stream::iter(pinned).map(|request| app.generates.generate(request)).buffered(AT_ONCE);
    let others: Vec<GenerateResponse> = others.try_collect().await?;
    Ok(std::iter::once(first).chain(others).collect())
}

/// What all prompts' streams carry, each event with the number of its prompt.
pub(super) type Events = BoxStream<'static, Result<(usize, GenerateEvent), GenerateError>>;

/// The version that answers, and the events as they come.
pub(super) async fn streamed(app: &AppState, requests: Vec<GenerateRequest>) -> Result<(u64, Events), GenerateError> {
    let mut requests = requests.into_iter();
    let first = requests.next().ok_or_else(|| GenerateError::Internal("a request without a prompt".into()))?;
    let first = app.generates.stream(first).await?;
    let version = first.version;
    let others = requests.map(|request| {
        let generates = app.generates.clone();
        let opened = async move { generates.stream(GenerateRequest { version: Some(version), ..request }).await };
        let events = |opened: Result<Streaming, GenerateError>| match opened {
            Ok(streaming) => streaming.events,
            Err(error) => stream::iter([Err(error)]).boxed(),
        };
        stream::once(opened).flat_map(events).boxed()
    });
    let all: Vec<_> = std::iter::once(first.events).chain(others).collect();
    let numbered = all
        .into_iter()
        .enumerate()
        .map(|(prompt, events)| events.map(move |event| event.map(|event| (prompt, event))).boxed());
    Ok((version, stream::iter(numbered).flatten_unordered(AT_ONCE).boxed()))
}
