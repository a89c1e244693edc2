//! What lbd says before it touches the kernel.

use std::process::{Command, Output};

use crate::common::Directory;

fn lbd(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lbd"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn check_prints_all_findings() {
    let directory = Directory::new();
    let file = directory.join("lbd.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "services: []\n").unwrap();
    let output = lbd(&["--check", "--config", path]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("warning: no services"),
        "{}",
        stderr(&output)
    );

    std::fs::write(&file, "nodes: {}\nadmin: {http: here}\n").unwrap();
    let output = lbd(&["--check", "--config", path]);
    assert_eq!(output.status.code(), Some(2));
    for place in ["lbd.yaml:1:", "lbd.yaml:2:"] {
        assert!(stderr(&output).contains(place), "{}", stderr(&output));
    }
}

#[test]
fn a_missing_config_file_is_one_clear_error() {
    let output = lbd(&["--config", "/nonexistent/lbd.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let message = stderr(&output);
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains("/nonexistent/lbd.yaml") && message.contains("--config FILE"));
}

#[test]
fn wrong_options_exit_with_2() {
    assert_eq!(lbd(&["--frobnicate"]).status.code(), Some(2));
    assert_eq!(lbd(&["--check", "--cleanup"]).status.code(), Some(2));
    assert_eq!(lbd(&["--log-level", "a=b=c"]).status.code(), Some(2));
}
