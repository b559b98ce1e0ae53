//! Requests side by side: none changes another's text, none stalls another, each stays on its version.

use std::sync::atomic::Ordering::SeqCst;

use futures::{StreamExt, future::join_all};

use super::{
    Bench, GenerateError, GenerateRequest,
    fake::{Call, alone, eventually},
    narrow, request, rest,
};
use crate::generation::ScoreRequest;

#[tokio::test]
async fn side_by_side_equals_alone_with_any_seed() {
    let bench = Bench::new(narrow(4));
    let requests: Vec<GenerateRequest> = (0..24)
        .map(|i| GenerateRequest {
            temperature: (i % 3 > 0).then_some(0.5 + i as f64 / 20.0),
            top_k: (i % 4 == 0).then_some(5),
            top_p: (i % 5 == 0).then_some(0.9),
            seed: Some(i as u64 / 2),
            ..request(&"prompt ".repeat(1 + i % 7 * 5), 5 + i * 3)
        })
        .collect();
    let answers = join_all(requests.iter().map(|request| bench.handle.generate(request.clone()))).await;
    for (request, answer) in requests.iter().zip(answers) {
        assert_eq!(answer.unwrap().text, alone(request, 0).0);
    }
    assert_eq!(bench.fake.leases.load(SeqCst), 0);
    assert_eq!((bench.sequences("running"), bench.sequences("waiting")), (0, 0));
}

#[tokio::test]
async fn seeds_differ() {
    let bench = Bench::new(narrow(2));
    let seeded = |seed| GenerateRequest { temperature: Some(1.0), seed: Some(seed), ..request("seed", 30) };
    let text = async |seed| bench.handle.generate(seeded(seed)).await.unwrap().text;
    assert_eq!(text(1).await, text(1).await);
    assert_ne!(text(1).await, text(2).await);
}

#[tokio::test]
async fn sequences_take_turns_of_one_token() {
    let bench = Bench::new(narrow(3));
    bench.fake.gate.hold();
    let mut streams = Vec::new();
    for prompt in ["a", "b", "c"] {
        streams.push(bench.handle.stream(request(prompt, 10)).await.unwrap());
    }
    bench.fake.gate.open();
    for stream in &mut streams {
        rest(stream).await.unwrap();
    }
    let passes = bench.fake.passes();
    let all_read = passes.iter().rposition(|pass| pass.iter().any(|call| !call.decoding)).unwrap() + 1;
    let decoding = &passes[all_read..passes.len() - 1];
    assert!(decoding.len() >= 6, "{passes:?}");
    for pass in decoding {
        let sequences: Vec<usize> = pass.iter().filter_map(|call| call.sequence).collect();
        assert_eq!(sequences, [0, 1, 2], "one pass feeds all");
    }
}

#[tokio::test]
async fn a_long_prompt_stalls_nobody() {
    let bench = Bench::new(narrow(3));
    bench.fake.gate.hold();
    let mut short = bench.handle.stream(request("short", 60)).await.unwrap();
    let mut long = bench.handle.stream(request(&"long".repeat(80), 2)).await.unwrap();
    let continuations = vec!["a continuation of some length".into(); 20];
    let scoring = ScoreRequest { prompt: "score".into(), continuations, ..ScoreRequest::default() };
    let scoring = tokio::spawn({
        let handle = bench.handle.clone();
        async move { handle.score(scoring).await }
    });
    eventually("three run", || bench.sequences("running") == 3).await;
    bench.fake.gate.open();
    rest(&mut short).await.unwrap();
    rest(&mut long).await.unwrap();
    assert_eq!(scoring.await.unwrap().unwrap().scores.len(), 20);

    let passes = bench.fake.passes();
    let own = |pass: &Vec<Call>| pass.iter().any(|call| call.decoding && call.sequence == Some(0));
    let reads = |pass: &Vec<Call>| pass.iter().filter(|call| !call.decoding).map(|call| call.tokens).sum::<usize>();
    let turns: Vec<usize> = (0..passes.len()).filter(|at| own(&passes[*at])).collect();
    assert!(turns.len() > 50);
    // From one token to the next: what is read before the pass that makes it, and in it. A passage is scored whole: 34
    // tokens, where a chunk of a prompt has 16.
    let between = |pair: &[usize]| passes[pair[0] + 1..=pair[1]].iter().map(reads).sum::<usize>();
    let most = turns.windows(2).map(between).max().unwrap();
    assert_eq!(most, 34, "{passes:?}");
    let calls = passes.concat();
    assert!(calls.iter().filter(|call| call.sequence == Some(1)).all(|call| call.tokens <= 16));
}

#[tokio::test]
async fn a_sequence_stays_on_its_version_while_others_are_published() {
    let bench = Bench::new(narrow(2));
    bench.fake.gate.allow(3);
    let mut stream = bench.handle.stream(request("pinned", 30)).await.unwrap();
    eventually("three turns are done", || bench.fake.calls().len() == 3).await;
    bench.fake.newest.store(1, SeqCst);
    bench.fake.gate.open();
    let later = bench.handle.generate(request("pinned", 30)).await.unwrap();
    let (text, .., version) = rest(&mut stream).await.unwrap();
    assert_eq!((stream.version(), version), (0, 0));
    assert_eq!(text, alone(&request("pinned", 30), 0).0);
    assert_eq!((later.version, later.text), (1, alone(&request("pinned", 30), 1).0));
    for (sequence, version) in [(0, 0), (1, 1)] {
        let calls = bench.fake.calls();
        let mut own = calls.iter().filter(|call| call.sequence == Some(sequence));
        assert!(own.all(|call| call.version == version));
    }
}

#[tokio::test]
async fn a_version_is_leased_with_the_slot_not_in_the_queue() {
    let bench = Bench::new(narrow(1));
    bench.fake.gate.hold();
    let mut first = bench.handle.stream(request("first", 3)).await.unwrap();
    let handle = bench.handle.clone();
    let second = tokio::spawn(async move { handle.generate(request("second", 3)).await });
    eventually("the second waits", || bench.sequences("waiting") == 1).await;
    assert_eq!(bench.fake.leases.load(SeqCst), 1);
    bench.fake.newest.store(1, SeqCst);
    bench.fake.gate.open();
    rest(&mut first).await.unwrap();
    assert_eq!(second.await.unwrap().unwrap().version, 1);
}

#[tokio::test]
async fn a_panic_or_bad_logits_end_their_own_request_alone() {
    let bench = Bench::new(narrow(4));
    let good = request("good", 40);
    let score = ScoreRequest { prompt: "PANIC".into(), continuations: vec!["x".into()], ..ScoreRequest::default() };
    let (panics, nan, good_one, scored) = tokio::join!(
        bench.handle.generate(request("PANIC", 40)),
        bench.handle.generate(request("NAN", 40)),
        bench.handle.generate(good.clone()),
        bench.handle.score(score),
    );
    let internal = |text: &str| GenerateError::Internal(text.into());
    assert_eq!(panics.unwrap_err(), internal("the engine panicked: told to panic"));
    assert_eq!(nan.unwrap_err(), internal("the network gave logits that are not numbers"));
    assert_eq!(scored.unwrap_err(), internal("the engine panicked: told to panic"));
    assert_eq!(good_one.unwrap().text, alone(&good, 0).0);
    assert_eq!((bench.outcomes("ok"), bench.outcomes("error")), (1, 3));
    let mut stream = bench.handle.stream(request("PANIC", 40)).await.unwrap();
    assert!(matches!(stream.next().await, Some(Ok(_))), "the first token comes from the prompt");
    assert!(matches!(stream.next().await, Some(Err(GenerateError::Internal(_)))));
    assert!(stream.next().await.is_none());
    assert_eq!(bench.handle.generate(good.clone()).await.unwrap().text, alone(&good, 0).0);
}
