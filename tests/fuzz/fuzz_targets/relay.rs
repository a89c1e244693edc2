//! See `lb_tests::fuzz::relay`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    lb_tests::fuzz::relay::run(bytes);
});
