//! Damaged files: an error, never a panic, never an allocation of what a header merely claims.

use amend::model::{LoadOptions, Model};
use candle_core::quantized::{GgmlDType, gguf_file::Value};
use proptest::prelude::*;

use crate::{
    common::{random_weights, tiny_config, write_folder},
    written::{Gguf, config, load, load_bytes, refusal},
};

/// Bytes before the first tensor's data, and a little of it.
fn small() -> Vec<u8> {
    Gguf::new(&config("llama"), GgmlDType::Q8_0).bytes()
}

/// Magic, version and the two counts.
fn header(tensors: u64, entries: u64) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(entries.to_le_bytes());
    bytes
}

/// A metadata entry up to its value.
fn entry(key: &str, kind: u32) -> Vec<u8> {
    let mut bytes = (key.len() as u64).to_le_bytes().to_vec();
    bytes.extend(key.as_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes
}

#[test]
fn a_truncated_gguf_file_is_refused_wherever_it_ends() {
    let whole = small();
    load_bytes(&whole).unwrap();
    let cuts = (0..64).chain((64..whole.len() - 32).step_by(whole.len() / 100)).chain([whole.len() - 64]);
    for cut in cuts {
        let error = refusal(load_bytes(&whole[..cut]));
        assert!(!error.is_empty(), "cut at {cut}");
    }
}

#[test]
fn garbage_is_no_model() {
    let garbage: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let error = refusal(load_bytes(&garbage));
    assert!(error.contains("tiny.gguf is malformed") && error.contains("magic"), "{error}");
    let error = refusal(load_bytes(b""));
    assert!(error.contains("tiny.gguf is malformed"), "{error}");
    let error = refusal(load_bytes(b"GGUF\x63\0\0\0"));
    assert!(error.contains("version"), "{error}");
}

#[test]
fn absurd_counts_are_refused_without_allocating() {
    const STRING: u32 = 8;
    const ARRAY: u32 = 9;
    let huge = u64::MAX / 2;
    let long = |parts: &[&[u8]]| parts.concat();
    let files = [
        header(huge, 0),
        header(0, huge),
        header(1 << 29, 0),
        long(&[&header(0, 1), &huge.to_le_bytes()]),
        long(&[&header(0, 1), &entry("a", STRING), &huge.to_le_bytes()]),
        long(&[&header(0, 1), &entry("a", STRING), &(1u64 << 29).to_le_bytes()]),
        long(&[&header(0, 1), &entry("a", ARRAY), &4u32.to_le_bytes(), &huge.to_le_bytes()]),
        long(&[&header(0, 1), &entry("a", ARRAY), &4u32.to_le_bytes(), &(1u64 << 29).to_le_bytes()]),
        // Arrays of arrays of arrays.
        long(&[&header(0, 1), &entry("a", ARRAY), &[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0].repeat(10_000)]),
    ];
    for mut file in files {
        file.extend([0; 64]);
        let error = refusal(load_bytes(&file));
        assert!(error.contains("tiny.gguf is malformed"), "{error}");
    }
}

#[test]
fn absurd_sizes_in_the_metadata_are_refused_with_the_numbers() {
    let sized = |key: &str, value: Value| {
        let mut file = Gguf::new(&config("llama"), GgmlDType::Q8_0);
        file.set(key, value);
        refusal(file.load())
    };
    let huge = Value::U64(1 << 60);
    for (key, what) in [
        ("llama.embedding_length", "hidden size"),
        ("llama.feed_forward_length", "intermediate size"),
        ("llama.block_count", "block count"),
        ("llama.attention.head_count", "head count"),
        ("llama.attention.head_count_kv", "key/value head count"),
        ("llama.attention.key_length", "head dimension"),
        ("llama.context_length", "context length"),
    ] {
        for value in [huge.clone(), Value::U32(0)] {
            let error = sized(key, value.clone());
            assert!(
                error.contains(&format!("{what} ")) && error.ends_with("is out of range"),
                "{key} {value:?}: {error}"
            );
        }
    }
    let error = sized("llama.attention.head_count", Value::U32(3));
    assert!(error.ends_with("3 heads do not share 2 key/value heads evenly"), "{error}");
    let error = sized("llama.attention.key_length", Value::U32(63));
    assert!(error.ends_with("head dimension 63 is odd"), "{error}");
    for value in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let error = sized("llama.rope.freq_base", Value::F32(value));
        assert!(error.contains("rotary base"), "{error}");
        let error = sized("llama.attention.layer_norm_rms_epsilon", Value::F32(value));
        assert!(error.contains("norm epsilon"), "{error}");
    }
    let error = sized("general.alignment", Value::U32(0));
    assert!(error.contains("alignment"), "{error}");
    // A context is a limit, not something to allocate for.
    let mut file = Gguf::new(&config("llama"), GgmlDType::Q8_0);
    file.set("llama.context_length", Value::U32(1 << 24));
    assert_eq!(file.load().unwrap().context_length(), 1 << 24);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_header_never_panics(at in 0usize..6000, bytes in prop::collection::vec(any::<u8>(), 1..9)) {
        let mut file = small();
        file[at..at + bytes.len()].copy_from_slice(&bytes);
        // It may still load: some of it is names that nobody reads.
        drop(load_bytes(&file));
    }
}

#[test]
fn damaged_safetensors_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = tiny_config("llama");
    write_folder(folder.path(), &config, &random_weights(&config, 1));
    let path = folder.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for cut in [0, 4, 8, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let error = refusal(load(folder.path()));
        assert!(error.contains(folder.path().to_str().unwrap()), "cut at {cut}: {error}");
    }
    let mut claims = (u64::MAX / 2).to_le_bytes().to_vec();
    claims.extend(&whole[8..]);
    std::fs::write(&path, claims).unwrap();
    refusal(load(folder.path()));
    std::fs::write(&path, whole).unwrap();
    Model::load(folder.path(), &LoadOptions::default()).unwrap();
}
