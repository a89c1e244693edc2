//! The built lbctl against a scripted daemon: what it asks, what it prints, how it exits.

mod common;

use std::{
    path::Path,
    process::{Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use common::{Daemon, backend, done, fault, fresh_directory, service, status};
use lb_userspace::{
    api::types::{
        BackendItem, EventItem, FaultCode, HealthItem, OverrideItem, Request, Response, UnsetWhat,
    },
    model::{
        BackendState, Health, HealthCheck, Mode, Override, Policy, Protocol, ServiceSpec,
        WeightOverride,
    },
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

async fn lbctl(socket: &Path, arguments: &str) -> Output {
    command(socket, arguments).output().await.unwrap()
}

fn command(socket: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lbctl"));
    command
        .env("LBCTL_SOCKET", socket)
        .args(arguments.split_whitespace())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn backends() -> Vec<BackendItem> {
    let mut failed = backend("web", "[2001:db8::1]:80", BackendState::Unhealthy);
    failed.reasons.push("override: weight 50%".to_owned());
    vec![
        backend("web", "10.1.0.11:8080", BackendState::Healthy),
        failed,
    ]
}

fn event(id: u64) -> EventItem {
    EventItem {
        id,
        time_ms: 1_772_366_400_000,
        severity: "Warning".to_owned(),
        reason: "BackendUnhealthy".to_owned(),
        object: "backend/web/10.1.0.11:8080".to_owned(),
        message: format!("connection refused ({id} of 3)"),
    }
}

fn described(item: BackendItem) -> Response {
    Response::Backend {
        item,
        health: HealthItem {
            check: "tcp".to_owned(),
            successes_in_row: 0,
            failures_in_row: 3,
            last_result: Some("connection refused".to_owned()),
            last_probe_seconds_ago: Some(4),
        },
        events: vec![],
    }
}

#[tokio::test]
async fn services_as_a_table() {
    let daemon = Daemon::start(|_| {
        let items = vec![service("web"), service("a-long-name")];
        Ok(Response::Services { items })
    });
    let output = lbctl(&daemon.socket, "get svc").await;
    assert_eq!(
        stdout(&output),
        "NAME          LISTEN          PROTOCOL   POLICY   HEALTHY   ACTIVE   TOTAL\n\
         web           192.0.2.10:80   tcp        maglev   1/2       5        120\n\
         a-long-name   192.0.2.10:80   tcp        maglev   1/2       5        120\n"
    );
    let output = lbctl(&daemon.socket, "get services web -o wide").await;
    assert_eq!(
        stdout(&output),
        "NAME   LISTEN          PROTOCOL   POLICY   HEALTHY   ACTIVE   TOTAL   FORWARDING   SNAT   NO-BACKEND   SOURCE\n\
         web    192.0.2.10:80   tcp        maglev   1/2       5        120     nat          auto   reject       file\n"
    );
    let output = lbctl(&daemon.socket, "get services nope").await;
    assert_eq!((code(&output), stdout(&output)), (5, ""));
}

#[tokio::test]
async fn backends_as_a_table() {
    let daemon = Daemon::start(|_| Ok(Response::Backends { items: backends() }));
    let output = lbctl(&daemon.socket, "get be web").await;
    assert_eq!(
        stdout(&output),
        "SERVICE   ADDRESS            STATE       WEIGHT   EFFECTIVE   ACTIVE   TOTAL   FAILED   REASON\n\
         web       10.1.0.11:8080     healthy     100      100         5        60      2        -\n\
         web       [2001:db8::1]:80   unhealthy   100      0           5        60      2        health: connection refused (3 of 3) (+1)\n"
    );
    let output = lbctl(&daemon.socket, "-h").await;
    assert_eq!(code(&output), 0);
    let output = lbctl(&daemon.socket, "get be -o wide").await;
    assert_eq!(
        stdout(&output),
        "SERVICE   ADDRESS            STATE       WEIGHT   EFFECTIVE   ACTIVE   TOTAL   FAILED   PACKETS-IN   PACKETS-OUT   BYTES-IN   BYTES-OUT   LABELS       SOURCE   REASON\n\
         web       10.1.0.11:8080     healthy     100      100         5        60      2        1.2M         999           5.0MiB     1.5KiB      version=v1   file     -\n\
         web       [2001:db8::1]:80   unhealthy   100      0           5        60      2        1.2M         999           5.0MiB     1.5KiB      version=v1   file     health: connection refused (3 of 3); override: weight 50%\n"
    );
    let asked = daemon.asked.lock().unwrap();
    let of_web = Request::GetBackends {
        service: Some("web".to_owned()),
    };
    assert_eq!(asked[0], of_web);
}

#[tokio::test]
async fn overrides_and_events_as_tables() {
    let daemon = Daemon::start(|request| {
        let items = vec![OverrideItem {
            backend: "web/[2001:db8::1]:80".parse().unwrap(),
            value: Override {
                weight: Some(WeightOverride::Percent(50)),
                mode: None,
            },
        }];
        match request {
            Request::GetOverrides => Ok(Response::Overrides { items }),
            _ => Ok(Response::Events {
                items: vec![event(7)],
            }),
        }
    });
    let output = lbctl(&daemon.socket, "get overrides").await;
    assert_eq!(
        stdout(&output),
        "BACKEND                WEIGHT   MODE\n\
         web/[2001:db8::1]:80   50%      -\n"
    );
    let output = lbctl(&daemon.socket, "get events -o wide").await;
    assert_eq!(
        stdout(&output),
        "TIME                   ID   TYPE      REASON             OBJECT                       MESSAGE\n\
         2026-03-01T12:00:00Z   7    Warning   BackendUnhealthy   backend/web/10.1.0.11:8080   connection refused (7 of 3)\n"
    );
}

#[tokio::test]
async fn json_and_yaml_have_one_structure() {
    let daemon = Daemon::start(|_| Ok(Response::Backends { items: backends() }));
    let json = lbctl(&daemon.socket, "get backends -o json").await;
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["apiVersion"], "lb/v1");
    assert_eq!(json["kind"], "Backends");
    for field in [
        "service",
        "address",
        "weight",
        "effectiveWeight",
        "state",
        "reasons",
        "labels",
        "activeConnections",
        "totalConnections",
        "failedConnections",
    ] {
        assert!(!json["items"][0][field].is_null(), "{field}");
    }
    let yaml = lbctl(&daemon.socket, "get backends -o yaml").await;
    let yaml: Value = serde_yaml_ng::from_slice(&yaml.stdout).unwrap();
    assert_eq!(yaml, json);
}

#[tokio::test]
async fn an_empty_list_says_so_on_stderr_and_stays_a_list_in_json() {
    let daemon = Daemon::start(|_| Ok(Response::Services { items: vec![] }));
    let output = lbctl(&daemon.socket, "get services").await;
    assert_eq!(
        (code(&output), stdout(&output), stderr(&output)),
        (0, "", "no services\n")
    );
    let output = lbctl(&daemon.socket, "get services -o json").await;
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["items"], Value::Array(vec![]));
}

#[tokio::test]
async fn watch_prints_what_changes_only() {
    let polls = AtomicU32::new(0);
    let daemon = Daemon::start(move |_| {
        let mut items = backends();
        match polls.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => {}
            2 => items[1].active_connections = 77,
            _ => drop(items.remove(1)),
        }
        Ok(Response::Backends { items })
    });
    let mut child = command(&daemon.socket, "get backends --watch")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut seen = Vec::new();
    for _ in 0..4 {
        let line = tokio::time::timeout(Duration::from_secs(10), lines.next_line());
        seen.push(line.await.unwrap().unwrap().unwrap());
    }
    assert!(seen[0].starts_with("SERVICE"), "{seen:?}");
    assert!(
        seen[3].contains("[2001:db8::1]:80") && seen[3].contains("77"),
        "{seen:?}"
    );
    let removed = errors.next_line().await.unwrap().unwrap();
    assert_eq!(removed, "web/[2001:db8::1]:80: removed");
}

#[tokio::test]
async fn watched_events_are_asked_for_since_the_last_one() {
    let daemon = Daemon::start(|request| match request {
        Request::GetEvents { since } => Ok(Response::Events {
            items: vec![event(since + 1)],
        }),
        _ => fault(FaultCode::Invalid, "unexpected"),
    });
    let mut child = command(&daemon.socket, "get events -w -o wide")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for id in 0..3 {
        let line = lines.next_line().await.unwrap().unwrap();
        assert!(id == 0 || line.contains(&format!("({id} of 3)")), "{line}");
    }
}

#[tokio::test]
async fn describe_shows_everything() {
    let daemon = Daemon::start(|request| match request {
        Request::DescribeService { .. } => Ok(Response::Service {
            spec: ServiceSpec {
                name: "web".to_owned(),
                listen: service("web").listen,
                protocol: Protocol::Tcp,
                forwarding: Default::default(),
                snat: Default::default(),
                policy: Policy::RoundRobin,
                no_backend: Default::default(),
                health: Health::default(),
                backends: vec![],
            },
            item: service("web"),
            backends: backends(),
            events: vec![],
        }),
        _ => Ok(described(backends().remove(1))),
    });
    let output = lbctl(&daemon.socket, "describe service web").await;
    assert_eq!(
        stdout(&output),
        "Name:         web\n\
         Listen:       192.0.2.10:80\n\
         Protocol:     tcp\n\
         Forwarding:   nat\n\
         SNAT:         auto\n\
         Policy:       round-robin\n\
         No backend:   reject\n\
         Health:       tcp every 5s (1s while changing), timeout 2s, rise 2, fall 3\n\
         Source:       file\n\
         Backends:     1 of 2 healthy\n\
         Connections:  5 active, 120 in total\n\
         \n\
         Backends:\n  \
         ADDRESS            STATE       WEIGHT   EFFECTIVE   ACTIVE   TOTAL   FAILED   REASON\n  \
         10.1.0.11:8080     healthy     100      100         5        60      2        -\n  \
         [2001:db8::1]:80   unhealthy   100      0           5        60      2        health: connection refused (3 of 3) (+1)\n"
    );
    let output = lbctl(&daemon.socket, "describe be web/[2001:db8::1]:80").await;
    assert_eq!(
        stdout(&output),
        "Service:       web\n\
         Address:       [2001:db8::1]:80\n\
         State:         unhealthy\n\
         Reasons:       health: connection refused (3 of 3); override: weight 50%\n\
         Weight:        100, effective 0\n\
         Labels:        version=v1\n\
         Source:        file\n\
         Connections:   5 active, 60 in total, 2 refused\n\
         In:            1.2M packets, 5.0MiB\n\
         Out:           999 packets, 1.5KiB\n\
         Health check:  tcp\n\
         Last probe:    connection refused, 4s ago\n\
         In a row:      0 successes, 3 failures\n"
    );
    let output = lbctl(&daemon.socket, "describe service web -o json").await;
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&json["kind"], &json["apiVersion"]),
        (&"Service".into(), &"lb/v1".into())
    );
    assert_eq!(json["spec"]["policy"], "round-robin");
}

#[tokio::test]
async fn verbs_become_requests() {
    let daemon = Daemon::start(|_| done("done"));
    let web = || "web/10.0.0.1:80".parse().unwrap();
    let cases = [
        (
            "set weight web/10.0.0.1:80 50%",
            Request::SetWeight {
                backend: web(),
                weight: WeightOverride::Percent(50),
            },
        ),
        (
            "drain web/10.0.0.1:80",
            Request::SetMode {
                backend: web(),
                mode: Mode::Drain,
            },
        ),
        (
            "maint web/10.0.0.1:80",
            Request::SetMode {
                backend: web(),
                mode: Mode::Maintenance,
            },
        ),
        (
            "unset mode web/10.0.0.1:80",
            Request::Unset {
                backend: web(),
                what: UnsetWhat::Mode,
            },
        ),
        (
            "rm be web/10.0.0.1:80",
            Request::RemoveBackend { backend: web() },
        ),
        ("reload", Request::Reload),
    ];
    for (arguments, expected) in cases {
        let output = lbctl(&daemon.socket, arguments).await;
        assert_eq!(
            (code(&output), stdout(&output)),
            (0, "done\n"),
            "{arguments}"
        );
        assert_eq!(daemon.asked.lock().unwrap().pop(), Some(expected));
    }
}

#[tokio::test]
async fn add_service_takes_flags() {
    let daemon = Daemon::start(|_| done("done"));
    let arguments = "add service web --listen 192.0.2.10:80 --listen [2001:db8::10]:80 \
        --policy round-robin --health http:/healthz --health-status 204 --health-interval 500ms \
        --backend 10.0.0.1:80 --backend [2001:db8::1]:80=7";
    let output = lbctl(&daemon.socket, arguments).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let Some(Request::AddService { service }) = daemon.asked.lock().unwrap().pop() else {
        panic!("no AddService");
    };
    assert_eq!(service.listen.len(), 2);
    assert_eq!(service.policy, Policy::RoundRobin);
    assert_eq!(
        service
            .backends
            .iter()
            .map(|b| b.weight)
            .collect::<Vec<_>>(),
        [100, 7]
    );
    assert_eq!(service.health.interval, Duration::from_millis(500));
    assert!(service.health.fast_interval <= service.health.interval);
    let HealthCheck::Http { expect_status, .. } = service.health.check else {
        panic!("{:?}", service.health);
    };
    assert_eq!(expect_status, [204]);
}

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
    assert!(message.contains("systemctl start lbd") && message.contains("--socket"));

    let directory = fresh_directory();
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
    std::fs::remove_dir_all(directory).unwrap();
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
    assert_eq!(code(&output), 8);
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
async fn drain_waits_until_idle_or_times_out() {
    let polls = AtomicU32::new(0);
    let daemon = Daemon::start(move |request| match request {
        Request::DescribeBackend { .. } => {
            let mut item = backend("web", "10.0.0.1:80", BackendState::Draining);
            if polls.fetch_add(1, Ordering::Relaxed) > 0 {
                item.active_connections = 0;
            }
            Ok(described(item))
        }
        _ => done("web/10.0.0.1:80 drains"),
    });
    let output = lbctl(&daemon.socket, "drain web/10.0.0.1:80 --wait").await;
    assert_eq!(
        (code(&output), stdout(&output)),
        (0, "web/10.0.0.1:80 drains\n")
    );

    let daemon = Daemon::start(|request| match request {
        Request::DescribeBackend { .. } => Ok(described(backends().remove(1))),
        _ => done("done"),
    });
    for arguments in [
        "drain web/10.0.0.1:80 --wait --timeout 200ms",
        "ready web/10.0.0.1:80 --timeout 200ms",
    ] {
        let output = lbctl(&daemon.socket, arguments).await;
        assert_eq!(code(&output), 8, "{arguments}");
        assert!(stderr(&output).contains("5 active connections after 200ms"));
    }
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
