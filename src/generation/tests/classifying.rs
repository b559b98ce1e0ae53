//! Giving texts a label, and what models of one kind are not asked for.

use super::{Bench, GenerateError, fake::Fake, narrow, request};
use crate::{
    generation::{ClassifyRequest, ClassifyResponse},
    model::Kind,
};

async fn classify(bench: &Bench, text: &str, version: Option<u64>) -> Result<ClassifyResponse, GenerateError> {
    bench.handle.classify(ClassifyRequest { text: text.into(), version, min_version: None }).await
}

#[tokio::test]
async fn labels_come_with_their_probabilities_and_the_version() {
    let bench = Bench::over(Fake::classifier(), narrow(2));
    bench.fake.newest.store(3, std::sync::atomic::Ordering::SeqCst);
    for (asked, answers) in [(None, 3), (Some(1), 1)] {
        let labels = classify(&bench, "a text", asked).await.unwrap();
        assert_eq!((labels.version, labels.label.as_str()), (answers, "green"));
        let ranked: Vec<_> = labels.labels.iter().map(|one| (one.label.as_str(), one.probability)).collect();
        assert!(matches!(ranked[..], [("green", _), ("blue", _), ("red", _)]), "{ranked:?}");
        assert!(ranked.iter().zip([0.5, 0.3, 0.2]).all(|((_, got), want)| (got - want).abs() < 1e-6), "{ranked:?}");
    }
    assert_eq!(bench.fake.calls().iter().map(|call| call.tokens).sum::<usize>(), 12);
    assert_eq!(bench.metrics.tokens.with_label_values(&["prompt"]).get(), 12);
    assert_eq!(bench.outcomes("ok"), 2);
    let error = classify(&bench, "a text", Some(4)).await.unwrap_err();
    assert_eq!(error, GenerateError::UnknownVersion { number: 4, newest: 3 });
}

#[tokio::test]
async fn a_text_that_fails_ends_nobody_else() {
    let bench = Bench::over(Fake::classifier(), narrow(2));
    let (bad, good) = tokio::join!(classify(&bench, "PANIC", None), classify(&bench, "fine", None));
    assert!(matches!(bad, Err(GenerateError::Internal(message)) if message.contains("told to panic")));
    assert_eq!(good.unwrap().label, "green");
    for (text, why) in [("", "text: must not be empty"), (&"x".repeat(600), "exceed the context of 512 tokens")] {
        let error = classify(&bench, text, None).await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[tokio::test]
async fn a_model_is_not_asked_for_what_its_kind_can_not_do() {
    let bench = Bench::new(narrow(2));
    assert_eq!(classify(&bench, "a text", None).await.unwrap_err(), GenerateError::WrongKind { kind: Kind::Causal });
    let bench = Bench::over(Fake::classifier(), narrow(2));
    let wrong = GenerateError::WrongKind { kind: Kind::Classifier };
    assert_eq!(bench.handle.generate(request("a", 1)).await.unwrap_err(), wrong);
    assert_eq!(bench.handle.stream(request("a", 1)).await.err().unwrap(), wrong);
    assert_eq!(bench.outcomes("invalid"), 2);
}
