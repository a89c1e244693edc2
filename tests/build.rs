//! Copies the kernel programs of tests, which lb-userspace's build script built, to where they are
//! embedded.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=DEP_LBD_EBPF_BENCH");
    let built = PathBuf::from(env::var("DEP_LBD_EBPF_BENCH").expect("lb-userspace sets it"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    for name in ["lbd-bench-ebpf", "lbd-decap-ebpf"] {
        let built = built.with_file_name(name);
        println!("cargo::rerun-if-changed={}", built.display());
        let copied = std::fs::copy(&built, out.join(name));
        copied.unwrap_or_else(|error| panic!("{}: {error}", built.display()));
    }
}
