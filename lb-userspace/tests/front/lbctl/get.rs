use super::*;

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
                mode: Some(Mode::Drain),
                deadline_ms: Some(1_700_000_060_000),
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
         web/[2001:db8::1]:80   50%      drain until 2023-11-14T22:14:20Z\n"
    );
    let output = lbctl(&daemon.socket, "get overrides -o json").await;
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        json["items"][0]["override"],
        serde_json::json!({
            "weight": {"percent": 50}, "mode": "drain", "deadlineMs": 1_700_000_060_000_u64,
        })
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
async fn sources_as_a_table() {
    let daemon = Daemon::start(|request| {
        let Request::GetSources { service } = request else {
            panic!("{request:?}");
        };
        assert_eq!(service.as_deref(), Some("web"));
        let well = SourceItem {
            last_success_ms: None,
            target: "api".to_owned(),
            ..source("synced")
        };
        let failing = SourceItem {
            last_success_ms: None,
            ..source("failing")
        };
        Ok(Response::Sources {
            items: vec![well, failing],
        })
    });
    let output = lbctl(&daemon.socket, "get sources web").await;
    assert_eq!(
        stdout(&output),
        "SERVICE   KIND     TARGET   INSTANCES   STATE     LAST-SUCCESS   UPDATES   ERRORS   LAST-ERROR\n\
         web       consul   api      2           synced    never          7         3        -\n\
         web       consul   web      2           failing   never          7         3        cannot connect to 10.0.0.5:8500: connection refused\n"
    );
    let output = lbctl(&daemon.socket, "get src web -o wide").await;
    let text = stdout(&output);
    assert!(text.contains("2023-11-14T22:14:20Z"), "{text}");
    assert!(text.contains("unspecified address"), "{text}");
    let output = lbctl(&daemon.socket, "get sources web -o json").await;
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["kind"], "Sources");
    assert_eq!(json["items"][0]["errorsByClass"]["unreachable"], 3);
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
async fn describe_shows_everything() {
    let daemon = Daemon::start(|request| match request {
        Request::DescribeService { .. } => Ok(Response::Service {
            spec: Box::new(ServiceSpec {
                name: "web".to_owned(),
                listen: service("web").listen,
                protocol: Protocol::Tcp,
                forwarding: Default::default(),
                snat: Default::default(),
                tunnel_source: Vec::new(),
                policy: Policy::RoundRobin,
                no_backend: Default::default(),
                on_backend_down: Default::default(),
                admission: Default::default(),
                health: Health::default(),
                backends: vec![],
                discovery: vec![],
            }),
            item: service("web"),
            backends: backends(),
            sources: vec![SourceItem {
                last_success_ms: None,
                ..source("failing")
            }],
            events: vec![],
        }),
        _ => Ok(described(backends().remove(1))),
    });
    let output = lbctl(&daemon.socket, "describe service web").await;
    assert_eq!(
        stdout(&output),
        "Name:          web\n\
         Listen:        192.0.2.10:80\n\
         Protocol:      tcp\n\
         Forwarding:    nat\n\
         SNAT:          auto\n\
         Policy:        round-robin\n\
         No backend:    reject\n\
         Backend down:  keep\n\
         Health:        tcp every 5s (1s while changing), timeout 2s, rise 2, fall 3\n\
         Source:        file\n\
         Backends:      1 of 2 healthy\n\
         Connections:   5 active, 120 in total\n\
         \n\
         Backends:\n  \
         ADDRESS            STATE       WEIGHT   EFFECTIVE   ACTIVE   TOTAL   FAILED   REASON\n  \
         10.1.0.11:8080     healthy     100      100         5        60      2        -\n  \
         [2001:db8::1]:80   unhealthy   100      0           5        60      2        health: connection refused (3 of 3) (+1)\n\
         \n\
         Sources:\n  \
         KIND     TARGET   INSTANCES   STATE     LAST-SUCCESS   UPDATES   ERRORS   LAST-ERROR\n  \
         consul   web      2           failing   never          7         3        cannot connect to 10.0.0.5:8500: connection refused\n  \
         consul:web left out: `x`: 0.0.0.0:80 is the unspecified address\n"
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
