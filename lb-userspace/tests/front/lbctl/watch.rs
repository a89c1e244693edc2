use super::*;

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

/// That time passes since a source's last success is no change of it.
#[tokio::test]
async fn watched_sources_are_not_printed_every_second() {
    let polls = AtomicU32::new(0);
    let last = lb_userspace::utc::now_ms();
    let daemon = Daemon::start(move |_| {
        let state = match polls.fetch_add(1, Ordering::Relaxed) {
            0..=2 => "synced",
            _ => "failing",
        };
        let item = SourceItem {
            last_success_ms: Some(last),
            ..source(state)
        };
        Ok(Response::Sources { items: vec![item] })
    });
    let mut child = command(&daemon.socket, "get sources -w")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for wanted in ["LAST-SUCCESS", "synced", "failing"] {
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line());
        let line = line.await.unwrap().unwrap().unwrap();
        assert!(line.contains(wanted), "{line}");
    }
}
