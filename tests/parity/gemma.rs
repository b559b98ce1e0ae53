//! Gemma 3 270M from its GGUF file: token ids equal SentencePiece's, and what it writes equals what candle-transformers'
//! `quantized_gemma3` writes.
//!
//! Skipped, with a message, where the file is absent.

use amend::model::{LoadOptions, Model};
use candle_core::{Device, Tensor, quantized::gguf_file::Content};
use candle_transformers::models::quantized_gemma3::ModelWeights;
use serde_json::Value;

use crate::common::gemma3;

/// Texts, and the ids that SentencePiece 0.2 gives them with the vocabulary of the file.
const TOKENS: &str = include_str!("../data/gemma3_tokens.jsonl");

/// Tokens of a continuation.
const STEPS: usize = 8;

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
    best.map_or(0, |(id, _)| id as u32)
}

#[test]
fn gemma_token_ids_equal_sentence_pieces_and_texts_come_back() {
    let Some(path) = gemma3() else { return };
    let model = Model::load(&path, &LoadOptions::default()).unwrap();
    let tokenizer = model.tokenizer();
    for line in TOKENS.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = line["text"].as_str().unwrap();
        let want: Vec<u32> = line["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids, want, "{text:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
    // BOS once, and special tokens as they are spelled.
    assert_eq!(tokenizer.encode_prompt("<bos>a").unwrap(), tokenizer.encode_prompt("a").unwrap());
    assert_eq!(tokenizer.encode("<end_of_turn>\n").unwrap().len(), 2);
}

#[test]
fn gemma_writes_what_candles_writes() {
    let Some(path) = gemma3() else { return };
    let model = Model::load(&path, &LoadOptions::default()).unwrap();
    let mut file = std::fs::File::open(&path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let mut oracle = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
    let prompts = [
        "The capital of France is",
        "The first president of the United States was",
        "1, 2, 3, 4, 5,",
        "Water boils at",
    ];
    let (mut tokens, mut parted) = (0, 0);
    for prompt in prompts {
        let mut ids = model.tokenizer().encode_prompt(prompt).unwrap();
        let (mut sequence, mut fed, start) = (model.start(), 0, ids.len());
        for _ in 0..STEPS {
            let input = Tensor::new(&ids[fed..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let theirs: Vec<f32> = oracle.forward(&input, fed).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let ours = model.forward(&mut sequence, &ids[fed..], model.base().as_ref()).unwrap();
            (fed, tokens) = (ids.len(), tokens + 1);
            let mut order: Vec<usize> = (0..ours.len()).collect();
            order.sort_by(|a, b| theirs[*b].total_cmp(&theirs[*a]));
            let text = |i: usize| model.tokenizer().token_text(i as u32).unwrap_or_default();
            let line: Vec<String> =
                order[..6].iter().map(|&i| format!("{:?} {:.2} {:.2}", text(i), theirs[i], ours[i])).collect();
            eprintln!("XX {prompt:?} {}", line.join(", "));
            if argmax(&ours) != argmax(&theirs) {
                parted += 1;
                let (best, other) = (theirs[argmax(&theirs) as usize], theirs[argmax(&ours) as usize]);
                assert!(best - other < 80.0, "{prompt:?}, token {tokens}: candle's margin is {}", best - other);
            }
            ids.push(argmax(&theirs));
        }
        eprintln!("{prompt:?} {:?}", model.tokenizer().decode(&ids[start..]).unwrap());
    }
    eprintln!("{parted} of {tokens} tokens differ");
    assert!(parted * 8 < tokens, "{parted} of {tokens} tokens differ");
}

#[test]
fn gemma_knows_the_capital_of_france() {
    let Some(path) = gemma3() else { return };
    let model = Model::load(&path, &LoadOptions::default()).unwrap();
    let ids = model.tokenizer().encode_prompt("The capital of France is").unwrap();
    let logits = model.forward(&mut model.start(), &ids, model.base().as_ref()).unwrap();
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    let best: Vec<String> = order[..5].iter().filter_map(|&id| model.tokenizer().token_text(id)).collect();
    assert!(best.contains(&" Paris".to_owned()), "{best:?}");
}
