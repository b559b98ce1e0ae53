//! Coming and going: full queues, clients that leave, draining.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use futures::StreamExt;
use tokio::task::JoinHandle;

use super::{
    Bench, GenerateConfig, GenerateError, GenerateRequest,
    fake::{SLOW_VERSION, alone, eventually},
    narrow, request, rest,
};
use crate::generation::{GenerateResponse, ScoreRequest};

fn generate(bench: &Bench, request: GenerateRequest) -> JoinHandle<Result<GenerateResponse, GenerateError>> {
    let handle = bench.handle.clone();
    tokio::spawn(async move { handle.generate(request).await })
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_slot_at_the_next_turn() {
    let bench = Bench::new(narrow(1));
    bench.fake.gate.allow(2);
    let mut leaver = bench.handle.stream(request("leaver", 400)).await.unwrap();
    leaver.next().await.unwrap().unwrap();
    let stays = generate(&bench, request("stays", 5));
    eventually("one waits", || bench.sequences("waiting") == 1).await;
    eventually("the leaver is in its third turn", || bench.fake.calls().len() == 2).await;
    drop(leaver);
    bench.fake.gate.open();
    assert_eq!(stays.await.unwrap().unwrap().text, alone(&request("stays", 5), 0).0);
    let calls = bench.fake.calls();
    assert!(calls.iter().filter(|call| call.sequence == Some(0)).count() <= 3, "{calls:?}");
    eventually("no version is held", || bench.fake.leases.load(SeqCst) == 0).await;
    assert_eq!((bench.outcomes("cancelled"), bench.outcomes("ok")), (1, 1));
}

#[tokio::test]
async fn a_future_that_is_dropped_cancels_while_running_and_while_waiting() {
    let bench = Bench::new(narrow(1));
    bench.fake.gate.hold();
    let running = generate(&bench, request("running", 400));
    eventually("one runs", || bench.sequences("running") == 1 && bench.fake.leases.load(SeqCst) == 1).await;
    let waiting = generate(&bench, request("waiting", 400));
    eventually("one waits", || bench.sequences("waiting") == 1).await;
    running.abort();
    waiting.abort();
    eventually("both are cancelled", || bench.outcomes("cancelled") == 2).await;
    bench.fake.gate.open();
    bench.handle.generate(request("next", 1)).await.unwrap();
    assert!(bench.fake.calls().iter().all(|call| call.sequence != Some(2)), "the one that waited never started");
    eventually("nothing is left", || bench.sequences("waiting") == 0 && bench.sequences("running") <= 1).await;
}

#[tokio::test]
async fn a_full_queue_sheds_and_serves_those_it_admitted() {
    let bench = Bench::new(GenerateConfig { queue_capacity: 2, ..narrow(1) });
    bench.fake.gate.hold();
    let mut admitted = vec![generate(&bench, request("q", 3))];
    eventually("one runs", || bench.sequences("running") == 1 && bench.sequences("waiting") == 0).await;
    admitted.push(generate(&bench, request("q", 3)));
    eventually("one waits", || bench.sequences("waiting") == 1).await;
    let two = GenerateRequest { compare_to: Some(0), ..request("q", 3) };
    assert!(matches!(bench.handle.generate(two).await, Err(GenerateError::QueueFull { capacity: 2, .. })));
    admitted.push(generate(&bench, request("q", 3)));
    eventually("two wait", || bench.sequences("waiting") == 2).await;
    let error = bench.handle.generate(request("q", 3)).await.unwrap_err();
    let retry_after = Duration::from_secs(1);
    assert_eq!(error, GenerateError::QueueFull { capacity: 2, retry_after });
    bench.fake.gate.open();
    for answer in admitted {
        assert_eq!(answer.await.unwrap().unwrap().text, alone(&request("q", 3), 0).0);
    }
    assert_eq!((bench.outcomes("ok"), bench.outcomes("shed")), (3, 2));
}

#[tokio::test]
async fn who_does_not_fit_into_memory_waits_and_a_client_that_leaves_the_head_of_the_line_holds_up_nobody() {
    let bench = Bench::new(GenerateConfig { kv_tokens: 100, ..narrow(4) });
    bench.fake.gate.hold();
    let first = generate(&bench, request("first", 60));
    eventually("the first runs", || bench.sequences("running") == 1 && bench.sequences("waiting") == 0).await;
    let large = generate(&bench, request("large", 90));
    eventually("the large one waits", || bench.sequences("waiting") == 1).await;
    let small = generate(&bench, request("small", 10));
    eventually("both wait", || bench.sequences("waiting") == 2).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(bench.sequences("running"), 1, "66 tokens are kept, 96 more would not fit");
    large.abort();
    eventually("the small one runs", || bench.sequences("running") == 2).await;
    bench.fake.gate.open();
    assert_eq!(first.await.unwrap().unwrap().text, alone(&request("first", 60), 0).0);
    assert_eq!(small.await.unwrap().unwrap().text, alone(&request("small", 10), 0).0);
    assert_eq!(bench.handle.generate(request("large", 90)).await.unwrap().text, alone(&request("large", 90), 0).0);
}

#[tokio::test]
async fn a_version_that_takes_long_to_rebuild_stalls_nobody() {
    let bench = Bench::new(narrow(2));
    let old = || GenerateRequest { version: Some(SLOW_VERSION), ..request("slow", 3) };
    let slow: Vec<_> = (0..5).map(|_| generate(&bench, old())).collect();
    eventually("they wait", || bench.sequences("waiting") == 5).await;
    bench.handle.generate(request("quick", 30)).await.unwrap();
    bench
        .handle
        .score(ScoreRequest { prompt: "quick".into(), continuations: vec!["x".into()], ..ScoreRequest::default() })
        .await
        .unwrap();
    assert!(slow.iter().all(|slow| !slow.is_finished()));
    assert_eq!(bench.sequences("waiting"), 5);
    for slow in slow {
        let answer = tokio::spawn(slow);
        while !answer.is_finished() {
            bench.fake.rebuild.notify_one();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(answer.await.unwrap().unwrap().unwrap().version, SLOW_VERSION);
    }
    assert_eq!(bench.sequences("waiting"), 0);
}

#[tokio::test]
async fn draining_finishes_what_runs_and_refuses_the_rest() {
    let bench = Bench::new(narrow(1));
    bench.fake.gate.hold();
    let running = generate(&bench, request("running", 20));
    eventually("one runs", || bench.sequences("running") == 1 && bench.sequences("waiting") == 0).await;
    let waiting = generate(&bench, request("waiting", 20));
    eventually("one waits", || bench.sequences("waiting") == 1).await;
    let handle = bench.handle.clone();
    let drained = tokio::spawn(async move { handle.drain(Duration::from_secs(10)).await });
    assert_eq!(waiting.await.unwrap().unwrap_err(), GenerateError::ShuttingDown);
    assert_eq!(bench.handle.generate(request("new", 1)).await.unwrap_err(), GenerateError::ShuttingDown);
    bench.fake.gate.open();
    assert_eq!(running.await.unwrap().unwrap().text, alone(&request("running", 20), 0).0);
    assert!(drained.await.unwrap());
    assert!(bench.handle.drain(Duration::ZERO).await, "draining again is harmless");
}

#[tokio::test]
async fn draining_ends_what_runs_past_the_limit() {
    let bench = Bench::new(narrow(2));
    bench.fake.gate.allow(2);
    let mut running = bench.handle.stream(request("running", 400)).await.unwrap();
    let rebuilding = generate(&bench, GenerateRequest { version: Some(SLOW_VERSION), ..request("slow", 3) });
    eventually("one runs, one waits", || bench.sequences("running") == 1 && bench.sequences("waiting") == 1).await;
    let handle = bench.handle.clone();
    let drained = tokio::spawn(async move { handle.drain(Duration::from_millis(50)).await });
    assert_eq!(rebuilding.await.unwrap().unwrap_err(), GenerateError::ShuttingDown);
    // The limit passes while the one that runs is held in its turn.
    tokio::time::sleep(Duration::from_millis(150)).await;
    bench.fake.gate.open();
    assert_eq!(rest(&mut running).await.unwrap_err(), GenerateError::ShuttingDown);
    assert!(!drained.await.unwrap());
    assert_eq!(bench.fake.leases.load(SeqCst), 0);
}

#[tokio::test]
async fn without_a_handle_what_was_admitted_is_still_done() {
    let Bench { handle, fake, metrics } = Bench::new(narrow(1));
    let mut stream = handle.stream(request("last", 50)).await.unwrap();
    drop(handle);
    assert_eq!(rest(&mut stream).await.unwrap().0, alone(&request("last", 50), 0).0);
    drop(stream);
    assert_eq!(metrics.generate_requests.with_label_values(&["ok"]).get(), 1);
    eventually("the engine thread has let go of the network", || std::sync::Arc::strong_count(&fake) == 1).await;
}

#[tokio::test]
async fn limits_out_of_range_start_nothing() {
    let config = GenerateConfig { prefill_chunk: 0, ..GenerateConfig::default() };
    let started = crate::generation::GenerateHandle::start(
        std::sync::Arc::new(super::fake::Fake::default()),
        config,
        crate::telemetry::Metrics::new(),
    );
    assert_eq!(started.err().unwrap().to_string(), "prefill_chunk: must be at least 1. Given: 0");
}
