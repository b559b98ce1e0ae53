//! The real model's tokenizer against what llama.cpp gave for the same file, and over running text.

use std::{env, path::Path};

use proptest::{prelude::*, test_runner::TestRunner};
use serde::Deserialize;

use super::{
    Tokenizer,
    testing::{read_or_skip, shared, smollm2},
};

#[derive(Deserialize)]
struct Golden {
    text: String,
    ids: Vec<u32>,
}

fn tokenizer() -> Option<Tokenizer> {
    smollm2().map(|content| Tokenizer::from_gguf(&content).expect("the model's tokenizer loads"))
}

#[test]
fn golden_token_ids_equal_llama_cpps() {
    let Some(tokenizer) = tokenizer() else { return };
    let lines = match env::var_os("AMEND_GOLDEN_TOKENS") {
        Some(path) => read_or_skip(Path::new(&path)),
        None => shared("golden/smollm2_tokens.jsonl"),
    };
    let Some(lines) = lines else { return };
    let golden: Vec<Golden> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let differs = |golden: &&Golden| tokenizer.encode(&golden.text).unwrap() != golden.ids;
    let wrong: Vec<_> = golden.iter().filter(differs).map(|golden| &golden.text).collect();
    assert!(wrong.is_empty(), "{} of {} differ: {wrong:#?}", wrong.len(), golden.len());
    println!("{} of {} identical", golden.len(), golden.len());
}

#[test]
fn two_thousand_lines_come_back() {
    let (Some(tokenizer), Some(text)) = (tokenizer(), shared("data/wikitext2/valid.txt")) else { return };
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).take(2000).collect();
    for line in &lines {
        assert_eq!(&tokenizer.decode(&tokenizer.encode(line).unwrap()).unwrap(), line);
    }
    println!("{} lines", lines.len());
}

#[test]
fn hard_texts_come_back() {
    let Some(tokenizer) = tokenizer() else { return };
    for text in
        ["", " ", "  12", "\n\n\t 7", "½ ² Ⅷ ٣", "I'll we'Re", "日本語 한국어", "👩‍👩‍👧‍👦 🇩🇪", "a\0b", "\r\n\r\n", "e\u{301}"]
    {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text, "{text:?}");
    }
}

#[test]
fn special_tokens_are_recognised_in_text_and_left_out_of_it() {
    let Some(tokenizer) = tokenizer() else { return };
    let ids = tokenizer.encode("<|im_start|>user\nHi<|im_end|>\n").unwrap();
    assert_eq!((ids[0], ids[ids.len() - 2]), (1, 2));
    assert_eq!(tokenizer.decode(&ids).unwrap(), "user\nHi\n");
    assert!(tokenizer.is_end(0) && !tokenizer.is_end(1) && tokenizer.is_end(2));
    assert_eq!((tokenizer.bos(), tokenizer.vocab_size()), (Some(1), 49152));
    assert_eq!(tokenizer.encode_prompt("Hi").unwrap(), tokenizer.encode("Hi").unwrap());
}

/// What a stream returns, piece by piece.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.decode_stream();
    let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
    text.extend(stream.finish());
    text
}

#[test]
fn streams_equal_lossy_decoding_of_all_bytes() {
    let Some(tokenizer) = tokenizer() else { return };
    let whole = |ids: &[u32]| {
        let spoken = ids.iter().filter(|&&id| id > 16);
        let bytes: Vec<u8> = spoken.flat_map(|&id| tokenizer.token_bytes(id).unwrap()).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let mut runner = TestRunner::default();
    let any_ids = prop::collection::vec(0..49152u32, 0..64);
    runner
        .run(&any_ids, |ids| {
            prop_assert_eq!(streamed(&tokenizer, &ids), whole(&ids));
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), whole(&ids));
            Ok(())
        })
        .unwrap();
    runner
        .run(&any::<String>(), |text| {
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(streamed(&tokenizer, &ids), whole(&ids));
            Ok(())
        })
        .unwrap();
}
