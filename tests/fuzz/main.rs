//! Bytes from outside: the committed corpus of `fuzz/`, with what fuzzing once found, and mutations of it, through the same
//! functions that the fuzzer calls. Nothing may panic, and nothing may take more memory than its input could need.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail like tests")]
#![allow(clippy::print_stderr, reason = "it says which input it was")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/tiny.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod tiny;
#[path = "../loading/written.rs"]
#[allow(dead_code, reason = "one kind of file is written")]
mod written;

mod bodies;
mod watch;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
};

use candle_core::quantized::GgmlDType;
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

/// The most that anything may ask for at once, bytes. The largest input has a mebibyte.
const MOST: usize = 64 << 20;
/// Numbers that lengths, counts and offsets are replaced by.
const NUMBERS: [u64; 10] = [0, 1, 7, 255, 1 << 16, 1 << 29, 1 << 31, 1 << 32, 1 << 60, u64::MAX];

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Runs a body; what it fails on is kept in a file.
fn run(name: &str, body: fn(&[u8]), input: &[u8]) {
    let _alone = watch::reset();
    let outcome = catch_unwind(AssertUnwindSafe(|| body(input)));
    let largest = watch::largest();
    if outcome.is_err() || largest > MOST {
        let path = std::env::temp_dir().join(format!("amend-fuzz-{name}-{}", short_name(input)));
        fs::write(&path, input).unwrap();
        eprintln!("the input is in {}; {largest} bytes were asked for at once", path.display());
    }
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
    assert!(largest <= MOST, "{name} asked for {largest} bytes at once");
}

/// A short name for an input.
fn short_name(input: &[u8]) -> String {
    amend::digest::Digest::of(input).to_string()[..8].to_owned()
}

fn mutated(rng: &mut ChaCha8Rng, inputs: &[(PathBuf, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = inputs.choose(rng).unwrap().1.clone();
    for _ in 0..rng.random_range(1..=4) {
        let at = rng.random_range(0..=bytes.len());
        let end = (at + rng.random_range(0..32)).min(bytes.len());
        match rng.random_range(0..8) {
            0 => drop(bytes.drain(at..end)),
            1 => bytes.truncate(at),
            2 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            3 => {
                let other = &inputs.choose(rng).unwrap().1;
                let from = rng.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
            4 | 5 => {
                let number = NUMBERS.choose(rng).unwrap().to_le_bytes();
                let width = [1, 2, 4, 8].choose(rng).copied().unwrap().min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            6 => bytes[at..end].iter_mut().for_each(|byte| *byte = rng.random()),
            _ if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            _ => bytes.push(rng.random()),
        }
    }
    bytes
}

/// The corpus, then so many mutations of it; `AMEND_FUZZ_RUNS` multiplies them.
fn fuzz(name: &str) {
    let (_, body, weight) = bodies::BODIES.into_iter().find(|(known, ..)| *known == name).unwrap();
    let inputs = corpus(name);
    assert!(!inputs.is_empty(), "there is no corpus for {name}");
    for (path, input) in &inputs {
        eprintln!("{}", path.display());
        run(name, body, input);
    }
    let times: usize = std::env::var("AMEND_FUZZ_RUNS").map_or(1, |text| text.parse().unwrap());
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..200 * weight * times {
        run(name, body, &mutated(&mut rng, &inputs));
    }
}

macro_rules! fuzzed {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() {
            fuzz(stringify!($name));
        })+

        #[test]
        fn every_body_has_a_test_and_a_target() {
            let tested = [$(stringify!($name)),+];
            let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
            for (name, ..) in bodies::BODIES {
                assert!(tested.contains(&name), "{name} has no test");
                assert!(targets.join(format!("{name}.rs")).exists(), "{name} has no target");
            }
        }
    };
}

fuzzed! { gguf model_folder editor_folder request_body stop_strings detokenizer contribution log_file }

#[test]
fn the_watch_sees_what_is_asked_for() {
    let _alone = watch::reset();
    let large = vec![1u8; MOST + 1];
    assert!(watch::largest() > MOST && large[MOST] == 1);
}

/// Not a test: writes the seeds of the corpus anew.
#[test]
#[ignore = "writes files of the repository"]
fn write_the_corpus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut seeds = bodies::seeds::seeds();
    let whole = written::Gguf::new(&common::tiny_config("llama"), GgmlDType::F32).bytes();
    // The header ends where the file is no longer read in order: all that follows is tensors.
    let data =
        common::random_weights(&common::tiny_config("llama"), 5).values().map(|t| t.elem_count() * 4).sum::<usize>();
    seeds.push(("gguf", "llama", whole[..whole.len() - data].to_vec()));
    seeds.push(("log_file", "three_versions", bodies::seeds::log_of_three_versions()));
    for (body, name, bytes) in seeds {
        fs::create_dir_all(folder.join(body)).unwrap();
        fs::write(folder.join(body).join(name), bytes).unwrap();
    }
}
