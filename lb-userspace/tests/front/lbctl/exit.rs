use lb_userspace::http::Limits;

use super::*;

#[tokio::test]
async fn faults_become_exit_codes() {
    let cases = [
        (FaultCode::Invalid, 2),
        (FaultCode::Failed, 3),
        (FaultCode::NotFound, 5),
        (FaultCode::Conflict, 6),
        (FaultCode::Refused, 7),
    ];
    for (fault_code, exit) in cases {
        let daemon = Daemon::start(move |_| fault(fault_code, "no such thing"));
        let output = lbctl(&daemon.socket, "remove service web").await;
        assert_eq!(
            (code(&output), stdout(&output), stderr(&output)),
            (exit, "", "lbctl: no such thing\n")
        );
    }
}

#[tokio::test]
async fn usage_errors_exit_with_2_and_print_nothing_on_stdout() {
    let nowhere = Path::new("/nonexistent/lbd.sock");
    for arguments in [
        "",
        "frobnicate",
        "get nothing",
        "get events web",
        "set weight web/10.0.0.1:80 70000",
        "drain web",
        "drain web/10.0.0.1:80 --timeout 5",
        "add service web",
        "add service web --listen 192.0.2.1:80 --policy best",
        "add service web --listen 192.0.2.1:80 --health-status 200",
    ] {
        let output = lbctl(nowhere, arguments).await;
        assert_eq!((code(&output), stdout(&output)), (2, ""), "{arguments}");
        assert!(!output.stderr.is_empty(), "{arguments}");
    }
}

#[tokio::test]
async fn an_unreachable_daemon_is_4_with_the_socket_and_a_remedy() {
    let output = lbctl(Path::new("/nonexistent/lbd.sock"), "get services").await;
    assert_eq!(code(&output), 4);
    let message = stderr(&output);
    assert!(message.contains("/nonexistent/lbd.sock"), "{message}");
    assert!(message.contains("lbd --config FILE") && message.contains("--socket"));

    let directory = Directory::new();
    let stale = directory.join("lbd.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert_eq!(code(&lbctl(&stale, "status").await), 4);

    let talker = std::os::unix::net::UnixListener::bind(directory.join("talker")).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = talker.accept().unwrap();
        std::io::Write::write_all(&mut stream, b"220 smtp\r\n").unwrap();
    });
    let output = lbctl(&directory.join("talker"), "status").await;
    assert_eq!(code(&output), 4, "{}", stderr(&output));
}

#[tokio::test]
async fn status_tells_degraded_from_well() {
    let daemon = Daemon::start(|_| Ok(Response::Status(status())));
    let output = lbctl(&daemon.socket, "status").await;
    assert_eq!(
        (code(&output), stdout(&output)),
        (
            0,
            "State:        ready\n\
             Version:      0.1.0\n\
             Uptime:       61m\n\
             Config:       /etc/lbd/lbd.yaml\n\
             Last reload:  ok\n\
             Interfaces:   eth0 (xdp native)\n\
             Services:     1\n\
             Backends:     1 of 2 healthy\n\
             Connections:  5 active\n"
        )
    );
    let daemon = Daemon::start(|_| {
        let mut status = status();
        status.problems = vec!["eth1: no such device".to_owned()];
        Ok(Response::Status(status))
    });
    let output = lbctl(&daemon.socket, "status").await;
    assert_eq!(code(&output), 3);
    assert!(stdout(&output).ends_with("Problems:\n  - eth1: no such device\n"));
    let output = lbctl(&daemon.socket, "status --wait 300ms -o json").await;
    assert_eq!(code(&output), 3);
}

#[tokio::test]
async fn status_waits_for_a_daemon_that_is_still_starting() {
    let polls = AtomicU32::new(0);
    let daemon = Daemon::start(move |_| {
        let mut status = status();
        status.ready = polls.fetch_add(1, Ordering::Relaxed) > 1;
        Ok(Response::Status(status))
    });
    assert_eq!(code(&lbctl(&daemon.socket, "status --wait 10s").await), 0);
    let output = lbctl(Path::new("/nonexistent/lbd.sock"), "status --wait 300ms").await;
    assert_eq!(code(&output), 8);
}

#[tokio::test]
async fn a_closed_pipe_is_quiet() {
    let daemon = Daemon::start(|_| {
        let items = (0..20_000).map(|_| service("web")).collect();
        Ok(Response::Services { items })
    });
    for arguments in ["get services", "get services -o json", "completion bash"] {
        let mut child = command(&daemon.socket, arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().await.unwrap();
        assert_eq!((code(&output), stderr(&output)), (0, ""), "{arguments}");
    }
}

#[tokio::test]
async fn completion_and_version_need_no_daemon() {
    let nowhere = Path::new("/nonexistent/lbd.sock");
    for shell in ["bash", "zsh", "fish"] {
        let output = lbctl(nowhere, &format!("completion {shell}")).await;
        assert!(stdout(&output).contains("lbctl"), "{shell}");
    }
    let output = lbctl(nowhere, "--version").await;
    assert_eq!(
        stdout(&output),
        concat!("lbctl ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[tokio::test]
async fn a_busy_daemon_is_4_and_says_so() {
    let limits = Limits {
        connections: 2,
        ..Limits::default()
    };
    let daemon = Daemon::with_limits(limits, |_| done("never"));
    let connect = || tokio::net::UnixStream::connect(&daemon.socket);
    let _held = (connect().await.unwrap(), connect().await.unwrap());
    let output = lbctl(&daemon.socket, "remove service web").await;
    assert_eq!(
        (code(&output), stdout(&output), stderr(&output)),
        (
            4,
            "",
            "lbctl: the daemon is busy (2 connections); try again\n"
        )
    );
    assert!(daemon.asked.lock().unwrap().is_empty());
}
