//! See `lb_tests::fuzz::instances`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    lb_tests::fuzz::instances::run(bytes);
});
