//! Copies the benchmark's wrapper, which lb-userspace's build script built, to where it is embedded.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=DEP_LBD_EBPF_BENCH");
    let built = PathBuf::from(env::var("DEP_LBD_EBPF_BENCH").expect("lb-userspace sets it"));
    println!("cargo::rerun-if-changed={}", built.display());
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it")).join("lbd-bench-ebpf");
    std::fs::copy(&built, out).unwrap_or_else(|error| panic!("{}: {error}", built.display()));
}
