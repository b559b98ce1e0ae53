#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| amend_fuzz::bodies::gguf(data));
