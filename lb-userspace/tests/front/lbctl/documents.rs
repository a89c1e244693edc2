//! What a package takes from the programs.

use std::{fs, process::Command};

use crate::common::Directory;

#[test]
fn man_pages_and_completions_of_both_programs() {
    let directory = Directory::new();
    let status = Command::new(env!("CARGO_BIN_EXE_lbctl"))
        .arg("documents")
        .arg(&*directory)
        .status()
        .unwrap();
    assert!(status.success());
    let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
    assert!(read("man/lbd.8").contains(".TH lbd 8"));
    assert!(read("man/lbd.8").contains("cleanup"));
    assert!(read("man/lbctl.1").contains("lbctl\\-drain(1)"));
    assert!(read("man/lbctl-describe-backend.1").contains("SERVICE/ADDR:PORT"));
    assert!(!directory.join("man/lbctl-documents.1").exists(), "hidden");
    for name in ["lbctl.bash", "_lbctl", "lbctl.fish"] {
        let script = read(&format!("completions/{name}"));
        assert!(script.contains("drain"), "{name}");
    }
    for name in ["lbd.bash", "_lbd", "lbd.fish"] {
        let script = read(&format!("completions/{name}"));
        assert!(script.contains("cleanup"), "{name}");
    }
}
