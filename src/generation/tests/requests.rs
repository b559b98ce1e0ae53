//! What one request gets.

use std::sync::atomic::Ordering::SeqCst;

use futures::StreamExt;

use super::{
    Bench, FinishReason, GenerateConfig, GenerateError, GenerateEvent, GenerateRequest, Usage,
    fake::{CONTEXT, Fake, alone, log_prob, nth_alone},
    narrow, request, rest,
};
use crate::generation::{Message, ScoreRequest};

fn score_request(prompt: &str, continuations: &[&str]) -> ScoreRequest {
    let continuations = continuations.iter().map(ToString::to_string).collect();
    ScoreRequest { prompt: prompt.into(), continuations, ..ScoreRequest::default() }
}

fn sampled(prompt: &str, max_tokens: usize, seed: u64) -> GenerateRequest {
    GenerateRequest { temperature: Some(1.0), seed: Some(seed), ..request(prompt, max_tokens) }
}

#[tokio::test]
async fn generates_to_the_length_or_the_end_and_counts() {
    let bench = Bench::new(narrow(2));
    let response = bench.handle.generate(request("one", 40)).await.unwrap();
    assert_eq!(response.text, alone(&request("one", 40), 0).0);
    assert_eq!(response.usage, Usage { prompt_tokens: 4, completion_tokens: 40 });
    assert_eq!((response.version, response.finish_reason), (0, FinishReason::Length));
    assert!(response.logprobs.is_none() && response.compared.is_none());

    let (text, tokens) = alone(&request("one.", 200), 0);
    assert!(tokens.len() < 200, "the fake network ends this text");
    let response = bench.handle.generate(request("one.", 200)).await.unwrap();
    assert_eq!((response.text, response.finish_reason), (text, FinishReason::Stop));
    assert_eq!(response.usage.completion_tokens, tokens.len());

    assert_eq!(bench.outcomes("ok"), 2);
    let metrics = &bench.metrics;
    assert_eq!(metrics.tokens.with_label_values(&["prompt"]).get(), 9);
    assert_eq!(metrics.tokens.with_label_values(&["generated"]).get(), 40 + tokens.len() as u64);
    assert_eq!(metrics.time_to_first_token.get_sample_count(), 2);
    assert_eq!(metrics.inter_token.get_sample_count(), 39 + tokens.len() as u64);
}

#[tokio::test]
async fn a_stream_carries_whole_characters_and_the_same_text() {
    let bench = Bench::new(narrow(1));
    let request = sampled("accents", 300, 3);
    let (text, _) = alone(&request, 0);
    assert!(text.contains('é'));
    let mut stream = bench.handle.stream(request).await.unwrap();
    let mut pieces = Vec::new();
    while let Some(Ok(GenerateEvent::Text { text, .. })) = stream.next().await {
        pieces.push(text);
    }
    assert_eq!(pieces.concat(), text);
    assert!(pieces.iter().all(|piece| piece.chars().count() == 1), "one token or one character at a time");
}

#[tokio::test]
async fn stop_strings_end_the_text_before_them() {
    let bench = Bench::new(narrow(2));
    let request = sampled("stop", 60, 1);
    let (text, _) = alone(&request, 0);
    let from = text.char_indices().nth(20).unwrap().0;
    let stop: String = text[from..].chars().take(4).collect();
    let before = &text[..text.find(&stop).unwrap()];
    let stopping = GenerateRequest { stop: vec!["never".into(), stop.clone()], ..request };

    let response = bench.handle.generate(stopping.clone()).await.unwrap();
    assert_eq!((response.text.as_str(), response.finish_reason), (before, FinishReason::Stop));
    assert_eq!(response.usage.completion_tokens, before.len() + stop.len());
    let (streamed, finish_reason, ..) = rest(&mut bench.handle.stream(stopping).await.unwrap()).await.unwrap();
    assert_eq!((streamed.as_str(), finish_reason), (before, FinishReason::Stop));
}

#[tokio::test]
async fn several_texts_have_draws_of_their_own_and_one_prompt() {
    let bench = Bench::new(narrow(4));
    bench.fake.newest.store(2, SeqCst);
    let texts = |request: &GenerateRequest| [0, 1, 2].map(|choice| nth_alone(request, 2, choice));
    let several = (0..).map(|i| GenerateRequest { n: Some(3), ..sampled(&format!("several{i}."), 60, 5) });
    // One that ends at different lengths.
    let several = several.into_iter().find(|request| {
        let lengths = texts(request).map(|(_, tokens)| tokens.len());
        lengths[0] > 5 && lengths[1] > lengths[0] && lengths[2] > 5 && lengths[2] != lengths[1]
    });
    let several = several.unwrap();
    let prompt_tokens = several.prompt.as_ref().unwrap().len();
    let expected = texts(&several);
    let response = bench.handle.generate(several.clone()).await.unwrap();
    assert_eq!(response.choices.len(), 3);
    for (choice, (text, tokens)) in response.choices.iter().zip(&expected) {
        let finish_reason = if tokens.len() < 60 { FinishReason::Stop } else { FinishReason::Length };
        assert_eq!((&choice.text, choice.finish_reason), (text, finish_reason));
    }
    assert_eq!((response.version, &response.text), (2, &expected[0].0));
    let generated = expected.iter().map(|(_, tokens)| tokens.len()).sum();
    assert_eq!(response.usage, Usage { prompt_tokens, completion_tokens: generated });
    let read: usize = bench.fake.calls().iter().filter(|call| !call.decoding).map(|call| call.tokens).sum();
    assert_eq!(read, prompt_tokens, "the prompt is read once");

    let mut stream = bench.handle.stream(several).await.unwrap();
    let (mut texts, mut ended) = (vec![String::new(); 3], [0; 3]);
    while let Some(event) = stream.next().await {
        match event.unwrap() {
            GenerateEvent::Text { choice, text, .. } => texts[choice] += &text,
            GenerateEvent::Ended { choice, .. } => ended[choice] += 1,
            GenerateEvent::Done { version, usage } => {
                assert_eq!((version, usage.completion_tokens), (2, generated));
                assert_eq!(ended, [1; 3], "each has ended before all have");
            }
        }
    }
    assert!(texts.iter().zip(&expected).all(|(text, (expected, _))| text == expected));
    assert_eq!((bench.fake.leases.load(SeqCst), bench.sequences("running")), (0, 0));
}

#[tokio::test]
async fn penalties_see_the_prompt_and_the_text() {
    let bench = Bench::new(narrow(2));
    let plain = request("penalties", 40);
    for penalised in [
        GenerateRequest { repetition_penalty: Some(1.8), ..plain.clone() },
        GenerateRequest { presence_penalty: Some(2.0), ..plain.clone() },
        GenerateRequest { frequency_penalty: Some(1.5), min_p: Some(0.1), temperature: Some(0.8), ..plain.clone() },
    ] {
        let response = bench.handle.generate(penalised.clone()).await.unwrap();
        assert_eq!(response.text, alone(&penalised, 0).0);
        assert_ne!(response.text, alone(&plain, 0).0);
    }
}

#[tokio::test]
async fn token_ids_stand_in_for_the_prompt() {
    let bench = Bench::new(narrow(1));
    let ids = |ids: Vec<u32>| GenerateRequest { prompt: None, prompt_ids: Some(ids), ..request("", 12) };
    let spelled = "ids:".bytes().map(u32::from).collect();
    assert_eq!(bench.handle.generate(ids(spelled)).await.unwrap().text, alone(&request("ids", 12), 0).0);
    let error = bench.handle.generate(ids(vec![1, 257])).await.unwrap_err();
    assert_eq!(error.to_string(), "prompt: token ids must be below 257. Given: 257");
    let error = bench.handle.generate(ids(Vec::new())).await.unwrap_err();
    assert_eq!(error.to_string(), "prompt: must be at least one token");
}

#[tokio::test]
async fn log_probs_are_those_of_the_raw_logits() {
    let bench = Bench::new(narrow(1));
    let request = GenerateRequest { logprobs: Some(3), temperature: Some(0.7), ..request("log", 30) };
    let (_, tokens) = alone(&request, 0);
    let response = bench.handle.generate(request).await.unwrap();
    let logprobs = response.logprobs.unwrap();
    assert_eq!(logprobs.len(), tokens.len());
    let mut ids: Vec<u32> = "log:".bytes().map(u32::from).collect();
    for (reported, id) in logprobs.iter().zip(tokens) {
        assert_eq!(reported.token, format!("<{id}>"));
        assert!((reported.logprob - log_prob(&ids, 0, id)).abs() < 1e-4);
        assert_eq!(reported.top.len(), 3);
        assert!(reported.top[0].logprob >= reported.top[2].logprob && reported.top[0].logprob >= reported.logprob);
        ids.push(id);
    }
}

#[tokio::test]
async fn answers_from_the_version_asked_for_and_compares() {
    let bench = Bench::new(narrow(2));
    bench.fake.newest.store(5, SeqCst);
    let pinned = GenerateRequest { version: Some(3), compare_to: Some(0), ..request("which", 20) };
    let response = bench.handle.generate(pinned).await.unwrap();
    let compared = response.compared.unwrap();
    assert_eq!((response.version, compared.version), (3, 0));
    assert_eq!(response.text, alone(&request("which", 20), 3).0);
    assert_eq!(compared.text, alone(&request("which", 20), 0).0);
    assert_eq!(bench.handle.generate(request("which", 20)).await.unwrap().version, 5);

    let unknown = GenerateRequest { version: Some(6), ..request("which", 20) };
    let error = bench.handle.generate(unknown.clone()).await.unwrap_err();
    assert_eq!(error, GenerateError::UnknownVersion { number: 6, newest: 5 });
    assert_eq!(bench.handle.stream(unknown).await.err(), Some(error));
    assert_eq!((bench.outcomes("ok"), bench.outcomes("invalid")), (2, 2));
}

#[tokio::test]
async fn messages_go_through_the_chat_template() {
    let bench = Bench::new(narrow(1));
    let message = Message { role: "user".into(), content: "hello".into() };
    let chat = GenerateRequest { messages: Some(vec![message]), max_tokens: Some(9), ..GenerateRequest::default() };
    let response = bench.handle.generate(chat.clone()).await.unwrap();
    assert_eq!(response.text, alone(&request("user=hello", 9), 0).0);

    let without = Bench::over(Fake::without_chat(), narrow(1));
    let error = without.handle.generate(chat).await.unwrap_err();
    assert_eq!(error.to_string(), "messages: the model has no chat template");
}

#[tokio::test]
async fn bad_requests_are_refused_with_the_numbers() {
    let bench = Bench::new(narrow(1));
    let messages = |role: &str| Some(vec![Message { role: role.into(), content: String::new() }]);
    let none = GenerateRequest::default;
    let cases = [
        (none(), "prompt: give either prompt or messages"),
        (
            GenerateRequest { messages: messages("user"), ..request("x", 1) },
            "messages: give either prompt or messages, not both",
        ),
        (GenerateRequest { prompt: Some(String::new()), ..none() }, "prompt: must not be empty"),
        (GenerateRequest { messages: Some(Vec::new()), ..none() }, "messages: must be at least 1. Given: 0"),
        (
            GenerateRequest { messages: messages("<|x|>"), ..none() },
            "messages[0].role: must be 1 to 32 letters, digits, - or _. Given: 5 bytes",
        ),
        (request("x", 0), "max_tokens: must be from 1 to 4096. Given: 0"),
        (request("x", 4097), "max_tokens: must be from 1 to 4096. Given: 4097"),
        (GenerateRequest { logprobs: Some(21), ..request("x", 1) }, "logprobs: must be from 0 to 20. Given: 21"),
        (GenerateRequest { stop: vec![String::new()], ..request("x", 1) }, "stop[0]: must be 1 to 256 bytes. Given: 0"),
        (GenerateRequest { top_k: Some(0), ..request("x", 1) }, "top_k: must be at least 1. Given: 0"),
        (GenerateRequest { n: Some(0), ..request("x", 1) }, "n: must be from 1 to 1. Given: 0"),
        (GenerateRequest { n: Some(2), ..request("x", 1) }, "n: must be from 1 to 1. Given: 2"),
    ];
    let count = cases.len() as u64;
    for (request, message) in cases {
        assert_eq!(bench.handle.generate(request).await.unwrap_err().to_string(), message);
    }
    assert_eq!(bench.outcomes("invalid"), count);
    let streamed = GenerateRequest { compare_to: Some(0), ..request("x", 1) };
    assert_eq!(bench.handle.stream(streamed).await.err().unwrap().to_string(), "compare_to: can not be streamed");
}

#[tokio::test]
async fn the_context_is_a_limit_on_what_is_asked_and_cuts_the_default() {
    let bench = Bench::new(narrow(1));
    let prompt = "p".repeat(CONTEXT - 11);
    let error = bench.handle.generate(request(&prompt, 11)).await.unwrap_err();
    assert_eq!(error, GenerateError::ContextExceeded { prompt_tokens: 502, max_tokens: 11, limit: 512 });
    let default = GenerateRequest { max_tokens: None, ..request(&prompt, 0) };
    assert_eq!(bench.handle.generate(default).await.unwrap().usage.completion_tokens, 10);
    let error = bench.handle.generate(GenerateRequest { max_tokens: None, ..request(&"p".repeat(CONTEXT), 0) }).await;
    assert_eq!(error.unwrap_err().to_string(), "513 prompt tokens and 1 more exceed the context of 512 tokens");
}

#[tokio::test]
async fn what_would_not_fit_into_memory_is_refused_and_an_open_end_is_cut() {
    let bench = Bench::new(GenerateConfig { kv_tokens: 100, ..narrow(2) });
    let error = bench.handle.generate(request(&"p".repeat(39), 61)).await.unwrap_err();
    let message = "40 prompt tokens and 1 x 61 more exceed the 100 tokens that are kept in memory";
    assert_eq!(error.to_string(), message);
    let two = GenerateRequest { n: Some(2), ..request(&"p".repeat(39), 31) };
    let error = bench.handle.generate(two).await.unwrap_err();
    assert_eq!(error, GenerateError::CacheExceeded { prompt_tokens: 40, max_tokens: 31, n: 2, limit: 100 });
    assert_eq!(bench.handle.generate(request(&"p".repeat(39), 60)).await.unwrap().usage.completion_tokens, 60);
    let open = GenerateRequest { max_tokens: None, open_ended: true, ..request(&"p".repeat(39), 0) };
    assert_eq!(bench.handle.generate(open).await.unwrap().usage.completion_tokens, 60);
}

#[tokio::test]
async fn scores_continuations_in_order_on_one_version() {
    let bench = Bench::new(narrow(1));
    bench.fake.newest.store(2, SeqCst);
    let request = score_request("a prompt:", &["x", "yy", "zzz", "a long continuation"]);
    let response = bench.handle.score(request.clone()).await.unwrap();
    assert_eq!(response.version, 2);
    let figures: Vec<_> = response.scores.iter().map(|s| (s.continuation.as_str(), s.tokens, s.greedy)).collect();
    assert_eq!(figures, [("x", 1, false), ("yy", 2, true), ("zzz", 3, false), ("a long continuation", 19, false)]);
    assert!((response.scores[1].logprob + 2.2).abs() < 1e-6);
    let base = bench.handle.score(ScoreRequest { version: Some(0), ..request }).await.unwrap();
    assert!(base.version == 0 && (base.scores[1].logprob + 2.0).abs() < 1e-6);
}

#[tokio::test]
async fn the_limit_of_scoring_is_not_called_the_context() {
    let bench = Bench::new(GenerateConfig { score_tokens: 5, ..narrow(1) });
    bench.handle.score(score_request("pp", &["xxx"])).await.unwrap();
    let error = bench.handle.score(score_request("pp", &["x", "xxxx"])).await.unwrap_err();
    let message = "continuations[1]: must be at most 5 tokens together with the prompt. Given: 6";
    assert_eq!(error.to_string(), message);
}

#[tokio::test]
async fn bad_scoring_requests_are_refused_with_the_numbers() {
    let bench = Bench::new(narrow(1));
    let many = vec!["x"; 65];
    let long = "x".repeat(CONTEXT);
    let cases = [
        (score_request("", &["x"]), "prompt: must not be empty"),
        (score_request("p", &[]), "continuations: must be from 1 to 64. Given: 0"),
        (score_request("p", &many), "continuations: must be from 1 to 64. Given: 65"),
        (score_request("p", &["x", ""]), "continuations[1]: must not be empty"),
        (score_request("p", &[&long]), "1 prompt tokens and 512 more exceed the context of 512 tokens"),
        (ScoreRequest { version: Some(9), ..score_request("p", &["x"]) }, "there is no version 9; the newest is 0"),
    ];
    for (request, message) in cases {
        assert_eq!(bench.handle.score(request).await.unwrap_err().to_string(), message);
    }
}
