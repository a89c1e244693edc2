//! See `lb_tests::fuzz::resolv`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    lb_tests::fuzz::resolv::run(bytes);
});
