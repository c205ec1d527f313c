#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sandgate_fuzz::provider::holds(input));
