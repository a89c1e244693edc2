use super::*;

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
                deadline: None,
            },
        ),
        (
            "drain web/10.0.0.1:80 --timeout 5m",
            Request::SetMode {
                backend: web(),
                mode: Mode::Drain,
                deadline: Some(Duration::from_secs(300).into()),
            },
        ),
        (
            "maint web/10.0.0.1:80",
            Request::SetMode {
                backend: web(),
                mode: Mode::Maintenance,
                deadline: None,
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
