//! Law 2: a version's weights are a function of its set alone, whatever order its edits came in and whatever was added
//! and taken back between.

use std::time::Instant;

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::{
    server::Server,
    setting::{Setting, number},
};

const EDITS: usize = 100;
const TAKEN_BACK: usize = 30;

#[tokio::test]
async fn a_set_has_the_same_digest_whatever_its_history() {
    whatever_the_history(&Setting::tiny()).await;
}

#[tokio::test]
async fn a_jointly_composed_set_has_the_same_digest_whatever_its_history() {
    whatever_the_history(&Setting::tiny_joint()).await;
}

#[tokio::test]
#[ignore = "on a real model, for people: see scripts/show-durability"]
async fn show_that_a_set_has_the_same_digest_whatever_its_history() {
    println!("{}", whatever_the_history(&Setting::of_environment()).await);
}

/// Applies 100 edits one after another and takes 30 of them back in random order; then applies the other 70 to a fresh
/// log in another order. Both must end at the same digests.
async fn whatever_the_history(setting: &Setting) -> String {
    let begun = Instant::now();
    let mut rng = ChaCha8Rng::seed_from_u64(number("AMEND_SHOW_SEED", 1));
    let facts = &setting.facts[..EDITS];
    let one = Server::start(&setting.files).await;
    let mut edits: Vec<(usize, Value)> = Vec::new();
    for (i, fact) in facts.iter().enumerate() {
        edits.push((i, one.client.edit(&fact.prompt, &fact.target).await));
    }
    let all = edits.last().unwrap().1["digest"].clone();
    edits.shuffle(&mut rng);
    let mut kept = edits.split_off(TAKEN_BACK);
    for (_, edit) in &edits {
        one.client.take_back(&edit["id"]).await;
    }
    let ended = one.client.newest().await;
    assert_eq!(ended["active_edits"].as_array().unwrap().len(), EDITS - TAKEN_BACK);
    one.stop().await;

    let fresh = setting.files.afresh();
    let other = Server::start(&fresh).await;
    kept.shuffle(&mut rng);
    assert!(kept.windows(2).any(|pair| pair[0].0 > pair[1].0), "another order");
    for (i, _) in &kept {
        other.client.edit(&facts[*i].prompt, &facts[*i].target).await;
    }
    let alone = other.client.newest().await;
    assert_eq!((&ended["digest"], &ended["set_digest"]), (&alone["digest"], &alone["set_digest"]));
    assert_ne!(alone["digest"], all);

    for edit in alone["active_edits"].as_array().unwrap() {
        other.client.take_back(edit).await;
    }
    let (emptied, base) = (other.client.newest().await, other.client.version(0).await);
    assert_eq!((&emptied["digest"], &emptied["set_digest"]), (&base["digest"], &base["set_digest"]));
    other.stop().await;
    let verified = setting.files.verify().good();
    format!(
        "order: {EDITS} edits one after another, {TAKEN_BACK} of them taken back in random order: version {} has digest \
         {}, and so have the other {} in another order on a fresh log; taken back, they leave the base's digest {}; {:.0} s; \
         verify: {}",
        ended["version"],
        ended["digest"].as_str().unwrap(),
        kept.len(),
        base["digest"].as_str().unwrap(),
        begun.elapsed().as_secs_f64(),
        verified.trim()
    )
}
