//! See `lb_tests::fuzz::consul`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    lb_tests::fuzz::consul::run(bytes);
});
