//! Builds the kernel programs and leaves their object where `datapath::OBJECT` embeds it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// Unaligned packet access is fast on every kernel architecture that runs this, and the verifier
/// allows it there; without the feature LLVM reads packets byte by byte.
const RUSTFLAGS: &[&str] = &[
    "-Ctarget-cpu=v3",
    "-Cdebuginfo=2",
    "-Clink-arg=--cpu-features=+allows-misaligned-mem-access,+alu32",
    "-Clink-arg=--btf",
    "-Clink-arg=--disable-expand-memcpy-in-order",
    "-Alinker-messages",
];

fn main() {
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let workspace = manifest.parent().expect("the crate lies in the workspace");
    for input in [
        "lb-ebpf/src",
        "lb-ebpf/Cargo.toml",
        "lb-common/src",
        "lb-common/Cargo.toml",
        "Cargo.lock",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }
    let out = PathBuf::from(variable("OUT_DIR"));
    let target = match variable("CARGO_CFG_TARGET_ENDIAN").as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    // Beside the host's build (<target>/<profile>/build/<crate>/out), so that all profiles share it.
    let target_dir = out.ancestors().nth(4).unwrap_or(&out).join("ebpf");
    build(workspace, target, &target_dir);
    let built = target_dir.join(target).join("release");
    let object = built.join("lbd-ebpf");
    if let Err(error) = std::fs::copy(&object, out.join("lbd-ebpf")) {
        panic!("{}: {error}", object.display());
    }
    // For the benchmark's build script.
    println!(
        "cargo::metadata=bench={}",
        built.join("lbd-bench-ebpf").display()
    );
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}

fn build(workspace: &Path, target: &str, target_dir: &Path) {
    let mut cargo = Command::new(variable("CARGO"));
    // The outer build's flags and wrappers are for the host.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_") && name != "CARGO_HOME" || name.starts_with("RUSTC") {
            cargo.env_remove(name);
        }
    }
    let status = cargo
        .current_dir(workspace)
        // build-std is unstable; the pinned toolchain is known to do it.
        .env("RUSTC_BOOTSTRAP", "1")
        // In pieces the programs are larger, to the verifier too; a user's own settings may ask for it.
        .env("CARGO_INCREMENTAL", "0")
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"))
        .args([
            "build",
            "--release",
            "--package",
            "lb-ebpf",
            "-Zbuild-std=core",
        ])
        .args(["--target", target, "--target-dir"])
        .arg(target_dir)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => {
            panic!("building lb-ebpf failed ({status}); `make setup` installs what it needs")
        }
        Err(error) => panic!("cannot run cargo for lb-ebpf: {error}"),
    }
}
