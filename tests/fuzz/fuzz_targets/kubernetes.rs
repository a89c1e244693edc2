//! See `lb_tests::fuzz::kubernetes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    lb_tests::fuzz::kubernetes::run(bytes);
});
