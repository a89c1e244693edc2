//! The whole of it, over real sockets.

use std::{net::SocketAddr, time::Duration};

use tokio::{io::AsyncReadExt, net::TcpListener, time::timeout};

use super::*;
use crate::model::HealthCheck;

/// Long enough for any machine; no passing test waits for it.
const PATIENT: Duration = Duration::from_secs(60);

fn target(check: HealthCheck) -> Target {
    let health = Health {
        check,
        interval: Duration::from_millis(20),
        fast_interval: Duration::from_millis(10),
        timeout: PATIENT,
        ..Health::default()
    };
    let inherited = None;
    Target { health, inherited }
}

fn http() -> HealthCheck {
    HealthCheck::Http {
        path: "/".into(),
        host: None,
        expect_status: vec![200],
    }
}

fn named(service: &str, address: SocketAddr) -> BackendRef {
    BackendRef {
        service: service.into(),
        address,
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A port that refuses as long as the socket lives.
fn refusing() -> (tokio::net::TcpSocket, SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

async fn next(reports: &mut mpsc::UnboundedReceiver<Report>) -> Report {
    timeout(PATIENT, reports.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_backend_goes_up_and_down() {
    let (sender, mut reports) = mpsc::unbounded_channel();
    let mut checks = Checks::new(sender);
    let (socket, address) = refusing();
    let backend = named("web", address);
    let targets = BTreeMap::from([(backend.clone(), target(HealthCheck::Tcp))]);
    checks.set_targets(&targets);

    let report = next(&mut reports).await;
    assert_eq!(report.result, "refused");
    assert!(report.changed);
    assert_eq!(report.verdict.healthy, Some(false));
    assert_eq!(
        report.verdict.last_result.as_deref(),
        Some("connection refused")
    );

    let listener = socket.listen(16).unwrap();
    let accept = tokio::spawn(async move {
        loop {
            let _ = listener.accept().await;
        }
    });
    let up = loop {
        let report = next(&mut reports).await;
        if report.changed {
            break report;
        }
    };
    assert_eq!(up.verdict.healthy, Some(true));
    assert_eq!(up.verdict.successes_in_row, 2);
    assert_eq!(checks.verdict(&backend).unwrap().healthy, Some(true));

    accept.abort();
    let down = loop {
        let report = next(&mut reports).await;
        if report.changed {
            break report;
        }
    };
    assert_eq!(down.verdict.healthy, Some(false));
    assert_eq!(down.verdict.failures_in_row, 3);
}

#[tokio::test]
async fn removal_ends_the_probe_under_way_and_its_reports() {
    let (sender, mut reports) = mpsc::unbounded_channel();
    let mut checks = Checks::new(sender);
    let (silent, address) = listen().await;
    let (_socket, other) = refusing();
    let mut targets = BTreeMap::from([
        (named("silent", address), target(http())),
        (named("other", other), target(HealthCheck::Tcp)),
    ]);
    checks.set_targets(&targets);
    let (mut stream, _) = timeout(PATIENT, silent.accept()).await.unwrap().unwrap();

    targets.remove(&named("silent", address));
    checks.set_targets(&targets);
    let mut taken = Vec::new();
    // Ends because the probe closes the connection, be it by reset.
    let _ = timeout(PATIENT, stream.read_to_end(&mut taken))
        .await
        .unwrap();
    assert!(checks.verdict(&named("silent", address)).is_none());
    for _ in 0..5 {
        assert_eq!(next(&mut reports).await.backend.service, "other");
    }
}

#[tokio::test]
async fn dropping_stops_everything() {
    let (sender, mut reports) = mpsc::unbounded_channel();
    let mut checks = Checks::new(sender);
    let (silent, address) = listen().await;
    let targets = BTreeMap::from([(named("silent", address), target(http()))]);
    checks.set_targets(&targets);
    let (_stream, _) = timeout(PATIENT, silent.accept()).await.unwrap().unwrap();

    drop(checks);
    // The channel closes once the driver and the probe are gone.
    let end = timeout(PATIENT, reports.recv()).await.unwrap();
    assert!(end.is_none());
}

#[tokio::test]
async fn backends_without_a_check_are_reported_once() {
    let (sender, mut reports) = mpsc::unbounded_channel();
    let mut checks = Checks::new(sender);
    let backend = named("web", ([192, 0, 2, 1], 80).into());
    let targets = BTreeMap::from([(backend.clone(), target(HealthCheck::None))]);
    for _ in 0..3 {
        checks.set_targets(&targets);
    }
    drop(checks);
    let report = next(&mut reports).await;
    assert_eq!((report.backend, report.result), (backend, "success"));
    assert!(timeout(PATIENT, reports.recv()).await.unwrap().is_none());
}
