use lb_userspace::api::types::{FaultCode, Request, Response};
use tokio::io::AsyncWriteExt;

use super::{code, command, lbctl, stderr, stdout};
use crate::common::{Daemon, Directory, done, fault};
use std::{path::Path, process::Stdio};

const VALID: &str = "\
node: {interfaces: [eth0]}
services:
  - name: web
    listen: \"192.0.2.10:80\"
    backends:
      - {address: \"10.1.0.11:8080\"}
      - {address: \"10.1.0.12:8080\"}
";

const FAULTY: &str = "\
node: {interfaces: [eth0]}
services:
  - name: web
    listen: \"192.0.2.10:80\"
    polizy: maglev
    backends:
      - {address: \"10.1.0.11:8080\", weight: 70000}
";

#[tokio::test]
async fn check_tells_every_fault_with_its_place() {
    let directory = Directory::new();
    let nowhere = directory.join("no.sock");
    let file = directory.join("lbd.yaml");
    std::fs::write(&file, VALID).unwrap();
    let output = lbctl(&nowhere, &format!("check {}", file.display())).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).ends_with("valid, services: 1, backends: 2\n"));

    std::fs::write(&file, FAULTY).unwrap();
    for verb in ["check", "diff", "apply"] {
        let output = lbctl(&nowhere, &format!("{verb} {}", file.display())).await;
        assert_eq!((code(&output), stdout(&output)), (2, ""), "{verb}");
        let findings = stderr(&output);
        for place in ["lbd.yaml:5:", "lbd.yaml:7:"] {
            assert!(findings.contains(place), "{place} not in {findings}");
        }
    }
    let output = lbctl(&nowhere, "check /nonexistent.yaml").await;
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("cannot read /nonexistent.yaml"));
}

#[tokio::test]
async fn check_reads_stdin() {
    let mut child = command(Path::new("/nonexistent"), "check -")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(VALID.as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(
        stdout(&output),
        "<stdin>: valid, services: 1, backends: 2\n"
    );
}

#[tokio::test]
async fn diff_and_apply_send_the_file_and_show_the_changes() {
    let daemon = Daemon::start(|request| match request {
        Request::Diff { .. } | Request::Apply { dry_run: true, .. } => Ok(Response::Diff {
            changes: vec!["+ service web".to_owned()],
        }),
        Request::Apply { .. } => done("applied 1 service"),
        Request::Export => Ok(Response::Export {
            text: VALID.to_owned(),
        }),
        _ => fault(FaultCode::Invalid, "unexpected"),
    });
    let file = daemon.directory().join("lbd.yaml");
    std::fs::write(&file, VALID).unwrap();
    let file = file.display();
    let cases = [
        (format!("diff {file}"), 1, "+ service web\n"),
        (format!("apply {file} --dry-run"), 0, "+ service web\n"),
        (format!("apply {file}"), 0, "applied 1 service\n"),
        ("export".to_owned(), 0, VALID),
    ];
    for (arguments, exit, printed) in cases {
        let output = lbctl(&daemon.socket, &arguments).await;
        assert_eq!(
            (code(&output), stdout(&output)),
            (exit, printed),
            "{arguments}"
        );
    }
    let asked = daemon.asked.lock().unwrap();
    let text = VALID.to_owned();
    assert_eq!(asked[0], Request::Diff { text: text.clone() });
    assert_eq!(
        asked[2],
        Request::Apply {
            text,
            dry_run: false
        }
    );
}

#[tokio::test]
async fn apply_says_what_it_ignores() {
    let daemon = Daemon::start(|_| done("applied 1 service"));
    let path = daemon.directory().join("lbd.yaml");
    let file = path.display();
    let admin = "admin: {http: \"127.0.0.1:9000\"}\n";
    std::fs::write(&path, VALID.to_owned() + admin).unwrap();
    for arguments in [format!("apply {file}"), format!("apply {file} --dry-run")] {
        let output = lbctl(&daemon.socket, &arguments).await;
        assert_eq!((code(&output), stdout(&output)), (0, "applied 1 service\n"));
        let lines: Vec<&str> = stderr(&output).lines().collect();
        let [node, admin] = lines[..] else {
            panic!("{lines:?}");
        };
        assert!(node.starts_with(&format!("{file}:1: warning: `node` is ignored")));
        assert!(admin.starts_with(&format!("{file}:8: warning: `admin` is ignored")));
    }
    let (_, services) = VALID.split_once('\n').unwrap();
    std::fs::write(&path, services).unwrap();
    let output = lbctl(&daemon.socket, &format!("apply {file}")).await;
    assert_eq!(stderr(&output), "");
}

#[tokio::test]
async fn no_difference_is_exit_code_0() {
    let daemon = Daemon::start(|_| Ok(Response::Diff { changes: vec![] }));
    let file = daemon.directory().join("lbd.yaml");
    std::fs::write(&file, VALID).unwrap();
    let output = lbctl(&daemon.socket, &format!("diff {}", file.display())).await;
    assert_eq!((code(&output), stdout(&output)), (0, ""));
}
