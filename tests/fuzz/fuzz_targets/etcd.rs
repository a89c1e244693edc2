//! See `lb_tests::fuzz::etcd`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    lb_tests::fuzz::etcd::run(bytes);
});
