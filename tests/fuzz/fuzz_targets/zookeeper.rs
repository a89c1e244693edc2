//! See `lb_tests::fuzz::zookeeper`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    lb_tests::fuzz::zookeeper::run(bytes);
});
