//! The image's root directory: what deploy/Dockerfile copies onto nothing, and what a test starts lbd
//! in.

use std::{env, path::Path, process::Command};

use crate::{
    Outcome, cargo, output, root, run,
    tree::{FILE, PROGRAM, Tree},
};

const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";
/// Where a pod has its config, state, socket, pins and the node's settings.
const MOUNTED: [&str; 6] = [
    "etc/lbd",
    "var/lib/lbd",
    "run/lbd",
    "sys/fs/bpf",
    "host/proc/sys/net",
    "proc",
];

/// Builds static programs for an architecture, this machine's unless another is asked for, and lays
/// out `target/image/ARCHITECTURE`.
pub fn lay_out(architecture: Option<&str>) -> Outcome {
    let architecture = architecture.unwrap_or(env::consts::ARCH);
    let target = format!("{architecture}-unknown-linux-musl");
    build(architecture, &target)?;
    let tree = Tree::new(root().join("target/image").join(architecture))?;
    let built = root().join("target").join(&target).join("release");
    for (name, place) in [("lbd", "usr/sbin/lbd"), ("lbctl", "usr/bin/lbctl")] {
        require_static(&built.join(name))?;
        tree.copy(&built.join(name), place, PROGRAM)?;
        run(Command::new(strip(architecture)).arg(tree.path(place)))?;
    }
    tree.copy(&Path::new("/").join(CERTIFICATES), CERTIFICATES, FILE)?;
    for directory in MOUNTED {
        tree.directory(directory)?;
    }
    for file in tree.files()? {
        println!("/{file}");
    }
    Ok(())
}

fn build(architecture: &str, target: &str) -> Outcome {
    let mut build = cargo(&["build", "--release", "--package", "lb-userspace", "--bins"]);
    build.args(["--target", target]);
    // Nothing here is C but parts of ring, which want a compiler and no C library's own headers.
    if architecture != env::consts::ARCH {
        let compiler = format!("{architecture}-linux-gnu-gcc");
        let name = target.replace('-', "_");
        build.env(format!("CC_{name}"), &compiler);
        let linker = format!("CARGO_TARGET_{}_LINKER", name.to_uppercase());
        build.env(linker, &compiler);
    }
    run(&mut build)
}

/// A program that asks for a loader would find none in the image.
fn require_static(program: &Path) -> Outcome {
    let headers = output(Command::new("readelf").arg("-lW").arg(program))?;
    match headers.contains("INTERP") {
        false => Ok(()),
        true => Err(format!("{} is not static", program.display())),
    }
}

fn strip(architecture: &str) -> String {
    match architecture == env::consts::ARCH {
        true => "strip".to_owned(),
        false => format!("{architecture}-linux-gnu-strip"),
    }
}
