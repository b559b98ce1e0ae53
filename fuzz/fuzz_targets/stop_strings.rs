#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| amend_fuzz::bodies::stop_strings(data));
