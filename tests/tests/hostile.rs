//! Wrong configs, and bytes that are no requests: clear errors, and a daemon that goes on.
//!
//! ```text
//!   client ──── node (lbd: unix socket, HTTP port) ──── b1, b2, b3
//! ```

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    time::Duration,
};

use lb_tests::{
    clients::{Protocol, burst, summary},
    daemon::{CONFIG, Config, HTTP, Service},
    eventually,
    net::{Family, Network, Topology},
    note,
    servers::HTTP_PORT,
    world::World,
};

/// Ten mistakes: line, and what the finding must mention. Lines count from 1.
const MISTAKES: &str = r#"node:
  interfaces: [client, b1, b2, b3]
  xpd: native
  state_dir: /run/lbd/state
admin: {socket: /run/lbd/lbd.sock, http: "127.0.0.1"}
services:
  - name: Web_1
    listen: ["192.0.2.300:8080"]
    protocol: tpc
    policy: magelv
    health: {type: tcp, interval: 5, rise: 0}
    backends:
      - {address: "10.1.1.2:8080", weight: 70000}
      - {adress: "10.1.2.2:8080", weight: 1}
"#;
const FINDINGS: [(usize, &str); 10] = [
    (3, "xdp"),
    (5, "127.0.0.1"),
    (7, "Web_1"),
    (8, "192.0.2.300:8080"),
    (9, "tcp"),
    (10, "maglev"),
    (11, "interval"),
    (11, "rise"),
    (13, "65535"),
    (14, "address"),
];

fn config(network: &Network) -> Config {
    Config::new(network, "native").service(
        Service::new("web", Protocol::Tcp)
            .listen(network, 0, HTTP_PORT)
            .backends(network, HTTP_PORT, &[1, 2, 3]),
    )
}

fn world() -> World {
    World::new(Topology::default(), config).unwrap()
}

/// The service answers, and so does lbctl.
fn unharmed(world: &World, first_port: u16) {
    let network = &world.network;
    let sources = network.client_addresses(Family::V4);
    let target = SocketAddr::new(network.vip(0, Family::V4), HTTP_PORT);
    let result = burst(
        &network.client,
        &sources,
        first_port,
        100,
        Protocol::Http,
        target,
    );
    assert_eq!(summary(&result.failures), "none");
    assert_eq!(world.daemon.services().unwrap().len(), 1);
    assert_eq!(world.daemon.http("/healthz").unwrap().0, 200);
}

#[test]
fn config_with_ten_mistakes_is_told_all_of_them() {
    let world = world();
    let path = "/run/lbd/wrong.yaml";
    std::fs::write(world.network.node.run_path("lbd/wrong.yaml"), MISTAKES).unwrap();

    let checked = world.daemon.lbctl(&["check", path]);
    let by_daemon = world.daemon.lbd(&["--config", path, "--check"]).unwrap();
    for (program, output) in [("lbctl check", checked), ("lbd --check", by_daemon)] {
        assert!(!output.status.success(), "{program}");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        let findings: Vec<_> = text.lines().filter(|l| l.contains("wrong.yaml:")).collect();
        assert_eq!(findings.len(), FINDINGS.len(), "{program}:\n{text}");
        for (line, word) in FINDINGS {
            let place = format!("wrong.yaml:{line}:");
            let told = findings
                .iter()
                .any(|f| f.contains(&place) && f.contains(word));
            assert!(
                told,
                "{program} says nothing about `{word}` in line {line}:\n{text}"
            );
        }
    }
}

#[test]
fn reload_of_a_wrong_config_changes_nothing() {
    let world = world();
    let before = (world.daemon.ctl(&["export"]).unwrap(), weights(&world));
    world.daemon.write_config(MISTAKES).unwrap();

    let reload = world.daemon.lbctl(&["reload"]);
    assert!(!reload.status.success());
    let told = [reload.stdout, reload.stderr].concat();
    let told = String::from_utf8(told).unwrap();
    assert!(told.contains(&format!("{CONFIG}:3:")), "{told}");

    world.daemon.signal(libc::SIGHUP);
    std::thread::sleep(Duration::from_millis(500));
    let log = world.daemon.log();
    let failures = log.lines().filter(|line| line.contains("ReloadFailed"));
    assert_eq!(failures.count(), 2, "one by lbctl, one by SIGHUP: {log}");
    let status = world.daemon.ctl(&["status", "-o", "json"]);
    // Degraded is no failure to answer.
    let status = status.unwrap_or_else(|e| e.to_string());
    assert!(status.contains(":3:") || status.contains("10 "), "{status}");

    let after = (world.daemon.ctl(&["export"]).unwrap(), weights(&world));
    assert_eq!(before, after);
    unharmed(&world, 10_000);

    // Mended, it is taken.
    let mut mended = config(&world.network);
    mended.services[0].backends[0].1 = 9;
    world.daemon.write_config(&mended.render()).unwrap();
    world.daemon.ctl(&["reload"]).unwrap();
    assert_eq!(weights(&world)[0], 9);
}

fn weights(world: &World) -> Vec<u16> {
    let mut backends = world.daemon.backends().unwrap();
    backends.sort_by_key(|b| b.address);
    backends.iter().map(|b| b.weight).collect()
}

/// Somewhere to send bytes to, and read from.
trait Peer: Read + Write {
    fn set_patience(&self);
}

impl Peer for TcpStream {
    fn set_patience(&self) {
        self.set_read_timeout(Some(Duration::from_secs(15)))
            .unwrap();
        self.set_write_timeout(Some(Duration::from_secs(15)))
            .unwrap();
    }
}

impl Peer for UnixStream {
    fn set_patience(&self) {
        self.set_read_timeout(Some(Duration::from_secs(15)))
            .unwrap();
        self.set_write_timeout(Some(Duration::from_secs(15)))
            .unwrap();
    }
}

fn peers(world: &World) -> [(&'static str, Box<dyn Peer>); 2] {
    let unix = UnixStream::connect(world.daemon.socket_path()).unwrap();
    let http = world.network.node.run(|| TcpStream::connect(HTTP).unwrap());
    unix.set_patience();
    http.set_patience();
    [
        ("unix socket", Box::new(unix)),
        ("HTTP port", Box::new(http)),
    ]
}

/// Sends all bytes, or as many as are taken, and returns what comes back until the end.
fn converse(peer: &mut dyn Peer, bytes: &[u8]) -> Vec<u8> {
    let _ = peer.write_all(bytes);
    let mut answer = Vec::new();
    let _ = peer.read_to_end(&mut answer);
    answer
}

#[test]
fn garbage_is_answered_by_an_error() {
    let world = world();
    let mut random = lb_tests::bulk::Stream::new(3);
    let mut noise = vec![0; 4096];
    for round in 0..20 {
        random.fill(&mut noise);
        for (place, mut peer) in peers(&world) {
            let answer = converse(&mut *peer, &noise);
            let head = String::from_utf8_lossy(&answer).into_owned();
            let refused = answer.is_empty() || head.starts_with("HTTP/1.1 4");
            assert!(refused, "{place}, round {round}: {head}");
        }
    }
    for (place, mut peer) in peers(&world) {
        let request = b"POST /v1/call HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\
            Content-Type: application/json\r\nConnection: close\r\n\r\n{\"verb\":1";
        let answer = String::from_utf8(converse(&mut *peer, request)).unwrap();
        note(format!(
            "{place}: {}",
            answer.lines().next().unwrap_or("closed")
        ));
        assert!(answer.starts_with("HTTP/1.1 4"), "{place}: {answer}");
    }
    unharmed(&world, 10_000);
}

/// Opens connections to both places, says part of a request on each, and keeps them.
fn hold_half_requests(world: &World, count: usize) -> Vec<Box<dyn Peer>> {
    let request = b"POST /v1/call HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{";
    let mut held = Vec::new();
    for i in 0..count {
        for (_, mut peer) in peers(world) {
            let part = 1 + i * (request.len() - 1) / count;
            // Those beyond the daemon's limit are refused.
            let _ = peer.write_all(&request[..part]);
            held.push(peer);
        }
    }
    held
}

#[test]
fn half_requests_do_not_keep_others_waiting() {
    let world = world();
    let held = hold_half_requests(&world, 50);
    unharmed(&world, 10_000);
    drop(held);
    unharmed(&world, 11_000);
}

/// More half requests than the daemon serves at a time: it throws out who does not go on.
#[test]
fn half_requests_in_great_number_are_thrown_out() {
    let world = world();
    let held = hold_half_requests(&world, 200);
    let served_again = eventually(Duration::from_secs(15), || world.daemon.services().is_ok());
    assert!(served_again, "lbctl is kept waiting");
    unharmed(&world, 10_000);
    drop(held);
}

#[test]
fn ten_megabytes_do_not_become_memory() {
    let world = world();
    let before = world.daemon.resident_bytes().unwrap();
    let heads: [&[u8]; 3] = [
        b"",
        b"GET /",
        b"POST /v1/call HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n",
    ];
    for head in heads {
        for (place, mut peer) in peers(&world) {
            let bytes = [head, &vec![b'x'; 10_000_000]].concat();
            let answer = converse(&mut *peer, &bytes);
            let text = String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned();
            let refused = answer.is_empty() || text.starts_with("HTTP/1.1 4");
            assert!(refused, "{place}: {text}");
        }
    }
    let grown = world
        .daemon
        .resident_bytes()
        .unwrap()
        .saturating_sub(before);
    note(format!("10 MB six times: lbd grew by {} KiB", grown / 1024));
    assert!(grown < 8_000_000, "{grown}");
    unharmed(&world, 10_000);
}
