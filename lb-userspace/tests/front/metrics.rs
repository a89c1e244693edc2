//! The HTTP port over real TCP.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::common::{backend, service, source, status};
use lb_userspace::{
    controller::Snapshot,
    datapath::MapFill,
    discovery::SourceItem,
    http::Limits,
    metrics::{self, METRICS, Source},
    model::BackendState,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

#[derive(Clone)]
struct Fake {
    snapshot: Arc<Mutex<Snapshot>>,
    /// Snapshots taken, and how many of them are being taken at a time.
    taken: Arc<AtomicUsize>,
    at_once: Arc<Semaphore>,
    takes: Duration,
    ready: bool,
    alive: Arc<AtomicBool>,
}

impl Source for Fake {
    async fn snapshot(&self) -> Snapshot {
        let _one = self.at_once.try_acquire().expect("two at a time");
        self.taken.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(self.takes).await;
        let mut snapshot = self.snapshot.lock().unwrap();
        let taken = snapshot.clone();
        snapshot.reconcile_seconds.clear();
        taken
    }

    fn is_ready(&self) -> bool {
        self.ready
    }

    async fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }
}

fn snapshot() -> Snapshot {
    Snapshot {
        services: vec![service("web")],
        backends: vec![
            backend("web", "10.1.0.11:8080", BackendState::Healthy),
            backend("web", "[2001:db8::1]:80", BackendState::Unhealthy),
        ],
        status: status(),
        drops: vec![0, 7, 0],
        map_fill: vec![MapFill {
            map: "FLOWS4",
            entries: 3,
            capacity: 262_144,
        }],
        health_checks: BTreeMap::from([(
            (
                "web".to_owned(),
                "10.1.0.11:8080".parse().unwrap(),
                "success",
            ),
            41,
        )]),
        reloads_ok: 2,
        reloads_failed: 1,
        repairs: 4,
        flows_aged: 9,
        tables_written: 12,
        reconcile_seconds: vec![0.002, 0.2],
        sources: vec![
            source("stale"),
            SourceItem {
                service: String::new(),
                services: Some(3),
                ..source("synced")
            },
        ],
    }
}

async fn start(ready: bool) -> (SocketAddr, Fake) {
    start_slow(ready, Duration::ZERO).await
}

/// With snapshots that take so long.
async fn start_slow(ready: bool, takes: Duration) -> (SocketAddr, Fake) {
    let fake = Fake {
        snapshot: Arc::new(Mutex::new(snapshot())),
        taken: Arc::default(),
        at_once: Arc::new(Semaphore::new(1)),
        takes,
        ready,
        alive: Arc::new(true.into()),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits = Limits {
        header_time: Duration::from_millis(300),
        ..Limits::default()
    };
    tokio::spawn(metrics::serve(listener, fake.clone(), limits));
    (address, fake)
}

async fn exchange(address: SocketAddr, request: &[u8]) -> String {
    exchange_on(&mut TcpStream::connect(address).await.unwrap(), request).await
}

pub(crate) async fn exchange_on(stream: &mut TcpStream, request: &[u8]) -> String {
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn get(address: SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    exchange(address, request.as_bytes()).await
}

#[tokio::test]
async fn the_list_of_metrics_is_what_is_emitted() {
    let (address, _) = start(true).await;
    let page = get(address, "/metrics").await;
    let emitted: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '))
        .collect();
    assert_eq!(emitted, METRICS.iter().copied().collect());
    for (name, _) in METRICS {
        let counter = page.contains(&format!("# TYPE {name} counter"));
        assert_eq!(counter, name.ends_with("_total"), "{name}");
    }
}

#[tokio::test]
async fn values_carry_their_labels() {
    let (address, _) = start(true).await;
    let page = get(address, "/metrics").await;
    for line in [
        r#"lbd_service_connections_total{service="web"} 120"#,
        r#"lbd_backend_bytes_total{backend="10.1.0.11:8080",direction="out",service="web"} 1536"#,
        r#"lbd_backend_state{backend="[2001:db8::1]:80",service="web",state="unhealthy"} 1"#,
        r#"lbd_backend_state{backend="[2001:db8::1]:80",service="web",state="healthy"} 0"#,
        r#"lbd_drops_total{reason="no_backend"} 7"#,
        r#"lbd_drops_total{reason="handshake_table_full"} 0"#,
        r#"lbd_health_checks_total{backend="10.1.0.11:8080",result="success",service="web"} 41"#,
        r#"lbd_map_capacity{map="FLOWS4"} 262144"#,
        r#"lbd_reloads_total{result="error"} 1"#,
        r#"lbd_build_info{version="0.1.0"} 1"#,
        r#"lbd_source_errors_total{class="unreachable",kind="consul",service="web",target="web"} 3"#,
        r#"lbd_source_errors_total{class="malformed",kind="consul",service="web",target="web"} 0"#,
        r#"lbd_source_instances{kind="consul",service="web",target="web"} 2"#,
        r#"lbd_source_last_success_timestamp_seconds{kind="consul",service="web",target="web"} 1700000000"#,
        r#"lbd_source_services{kind="consul",service="",target="web"} 3"#,
        r#"lbd_source_stale{kind="consul",service="web",target="web"} 1"#,
        r#"lbd_source_updates_total{kind="consul",service="web",target="web"} 7"#,
        "lbd_tables_written_total 12",
        "lbd_ready 1",
        r#"lbd_reconcile_duration_seconds_bucket{le="0.003"} 1"#,
        "lbd_reconcile_duration_seconds_count 2",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} not in:\n{page}");
    }
}

#[tokio::test]
async fn a_series_ends_with_its_object_and_the_histogram_goes_on() {
    let (address, fake) = start(true).await;
    get(address, "/metrics").await;
    fake.snapshot.lock().unwrap().backends.remove(0);
    fake.snapshot.lock().unwrap().health_checks.clear();
    fake.snapshot.lock().unwrap().sources.clear();
    let page = get(address, "/metrics").await;
    assert!(!page.contains("10.1.0.11"), "{page}");
    assert!(!page.contains("lbd_source"), "{page}");
    assert!(page.contains("lbd_reconcile_duration_seconds_count 2"));
}

#[tokio::test]
async fn readiness_says_what_is_missing() {
    let (address, fake) = start(false).await;
    let page = get(address, "/readyz").await;
    assert!(page.starts_with("HTTP/1.1 503"), "{page}");
    assert!(page.contains("not ready: the first sync"), "{page}");
    fake.snapshot.lock().unwrap().status.problems = vec!["eth0: no programs".to_owned()];
    assert!(
        get(address, "/readyz")
            .await
            .contains("not ready: eth0: no programs")
    );
    assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get(address, "/metrics").await.contains("\nlbd_ready 0"));
    fake.alive.store(false, Ordering::Relaxed);
    let page = get(address, "/healthz").await;
    assert!(page.starts_with("HTTP/1.1 503"), "{page}");
    assert!(page.contains("the controller does not answer"), "{page}");

    let (address, _) = start(true).await;
    assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn only_get_and_head_on_known_paths() {
    let (address, _) = start(true).await;
    let head = exchange(address, b"HEAD /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "{head}");

    let post = b"POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    let refused = exchange(address, post).await;
    assert!(refused.starts_with("HTTP/1.1 405"), "{refused}");
    assert!(refused.contains("allow: GET, HEAD"), "{refused}");

    let missing = get(address, "/").await;
    assert!(missing.starts_with("HTTP/1.1 404"), "{missing}");
    assert!(missing.contains("/readyz"), "{missing}");
}

#[tokio::test]
async fn slow_and_senseless_peers_do_no_harm() {
    let (address, _) = start(true).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(b"GET /met").await;
        held.push(stream);
    }
    let noise = exchange(address, &vec![0xff; 10 << 20]).await;
    assert!(noise.starts_with("HTTP/1.1 400"), "{noise}");
    let tls = exchange(address, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
    assert!(tls.contains("this is no HTTP request"), "{tls}");
    assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
}

/// A liveness probe that finds no place has the daemon restarted.
#[tokio::test]
async fn silent_peers_give_way_to_those_who_ask() {
    let (address, _) = start(true).await;
    let limit = Limits::default().connections;
    let mut silent = Vec::new();
    for number in 0..3 * limit {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if number % 2 == 0 {
            let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\n").await;
        }
        silent.push(stream);
        if number >= limit {
            let answer = get(address, "/healthz").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{number}: {answer}");
        }
    }
    // Those that came last still have their time.
    let mut last = silent.pop().unwrap();
    let answer = exchange_on(&mut last, b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Also if whoever asks goes away at once: what is begun is ended before another begins.
#[tokio::test]
async fn scrapes_at_one_time_share_a_page() {
    let (address, fake) = start_slow(true, Duration::from_millis(100)).await;
    let mut scrapes = JoinSet::new();
    for _ in 0..16 {
        scrapes.spawn(async move { get(address, "/metrics").await });
    }
    while let Some(page) = scrapes.join_next().await {
        let page = page.unwrap();
        assert!(page.contains("lbd_build_info{version="), "{page}");
    }
    let taken = || fake.taken.load(Ordering::Relaxed);
    assert!((1..=2).contains(&taken()), "{}", taken());

    let began = Instant::now();
    for _ in 0..10 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
        stream.write_all(request).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // What is shown is never older than the question.
    fake.snapshot.lock().unwrap().reloads_ok = 77;
    let page = get(address, "/metrics").await;
    let reloads = "lbd_reloads_total{result=\"ok\"} 77";
    assert!(page.contains(reloads), "{page}");
    let most = 4 + began.elapsed().as_millis() as usize / 400;
    assert!(taken() <= most, "{} of {most}", taken());
}

/// Beyond those that may wait, a scrape is refused at once, and a probe finds a place.
#[tokio::test]
async fn a_crowd_of_scrapes_leaves_room_for_probes() {
    let (address, _) = start_slow(true, Duration::from_secs(2)).await;
    let mut crowd = Vec::new();
    for _ in 0..2 * Limits::default().connections {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
        let _ = stream.write_all(request).await;
        crowd.push(stream);
    }
    let refused = get(address, "/metrics").await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(refused.contains("scrapes wait already"), "{refused}");
    let alive = get(address, "/healthz").await;
    assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");
}
