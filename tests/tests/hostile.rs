//! Wrong configs, and bytes that are no requests: clear errors, and a daemon that goes on.
//!
//! ```text
//!   client ──── node (lbd: unix socket, HTTP port) ──── b1, b2, b3
//! ```

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::{fd::AsRawFd, unix::net::UnixStream},
    thread,
    time::Duration,
};

use lb_tests::{
    clients::{Protocol, burst, summary},
    daemon::{CONFIG, Config, Daemon, HTTP, Service},
    eventually,
    net::{Family, Network, Topology},
    note,
    servers::{HTTP_PORT, start_all},
    world::World,
};

/// For bytes to be taken, and to come.
const PATIENCE: Duration = Duration::from_secs(20);
/// What one connection takes at most of what has no end, before it is cut off.
const MOST: usize = 512 << 20;

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
    answers(world, 1);
}

/// lbctl is answered, with so many services, and so is the HTTP port.
fn answers(world: &World, services: usize) {
    assert_eq!(world.daemon.services().unwrap().len(), services);
    assert_eq!(world.daemon.http("/healthz").unwrap().0, 200);
}

#[test]
fn config_with_ten_mistakes_is_told_all_of_them() {
    let world = world();
    let path = "/run/lbd/wrong.yaml";
    fs::write(world.network.node.run_path("lbd/wrong.yaml"), MISTAKES).unwrap();

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
    let mut log = String::new();
    let mut failures = 0;
    eventually(Duration::from_secs(10), || {
        log = world.daemon.log();
        let lines = log.lines();
        failures = lines.filter(|line| line.contains("ReloadFailed")).count();
        failures >= 2
    });
    assert_eq!(failures, 2, "one by lbctl, one by SIGHUP: {log}");
    let status = world.daemon.ctl(&["status", "-o", "json"]);
    // Degraded is no failure to answer.
    let status = status.unwrap_or_else(|e| e.to_string());
    assert!(status.contains(&format!("{CONFIG}:3:")), "{status}");

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
trait Peer: Read + Write + Send {
    fn set_patience(&self);
    /// The same connection.
    fn another(&self) -> Box<dyn Peer>;
}

macro_rules! peer {
    ($stream:ty) => {
        impl Peer for $stream {
            fn set_patience(&self) {
                self.set_read_timeout(Some(PATIENCE)).unwrap();
                self.set_write_timeout(Some(PATIENCE)).unwrap();
            }

            fn another(&self) -> Box<dyn Peer> {
                Box::new(self.try_clone().unwrap())
            }
        }
    };
}

peer!(TcpStream);
peer!(UnixStream);

const UNIX: &str = "unix socket";
const PORT: &str = "HTTP port";

fn peers(world: &World) -> [(&'static str, Box<dyn Peer>); 2] {
    let unix = UnixStream::connect(world.daemon.socket_path()).unwrap();
    let http = world.network.node.run(|| TcpStream::connect(HTTP).unwrap());
    unix.set_patience();
    http.set_patience();
    [(UNIX, Box::new(unix)), (PORT, Box::new(http))]
}

/// Sends all bytes, or as many as are taken, and returns what comes back until the end.
fn converse(peer: &mut dyn Peer, bytes: &[u8]) -> Vec<u8> {
    let _ = peer.write_all(bytes);
    let mut answer = Vec::new();
    let _ = peer.read_to_end(&mut answer);
    answer
}

/// Status and body of a refusal, which must be whole.
fn refusal(place: &str, answer: &[u8]) -> (u16, String) {
    let answer = String::from_utf8_lossy(answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{place}: {answer:?}"));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("{place}: {head}"));
    assert!((400..600).contains(&status), "{place}: {head}");
    (status, body.to_owned())
}

/// Somebody pours bytes without end, until it is cut off, and gets this answer.
fn pour(peer: &mut dyn Peer, head: &[u8], drop: &[u8], pause: Duration) -> Vec<u8> {
    let mut writer = peer.another();
    let mut bytes = head.to_vec();
    let bucket = match pause.is_zero() {
        true => drop.repeat((64 << 10) / drop.len()),
        false => drop.to_vec(),
    };
    let pours = thread::spawn(move || {
        let mut poured = 0;
        while writer.write_all(&bytes).is_ok() {
            poured += bytes.len();
            assert!(poured < MOST, "nobody cuts it off");
            bytes.clone_from(&bucket);
            thread::sleep(pause);
        }
    });
    let mut answer = Vec::new();
    let _ = peer.read_to_end(&mut answer);
    pours.join().unwrap();
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
            let (status, words) = refusal(place, &converse(&mut *peer, &noise));
            assert_eq!(status, 400, "{place}, round {round}: {words}");
            assert!(words.contains("no HTTP request"), "{place}: {words}");
        }
    }
    for (place, mut peer) in peers(&world) {
        let request = b"POST /v1/call HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\
            Content-Type: application/json\r\nConnection: close\r\n\r\n{\"verb\":1";
        let (status, words) = refusal(place, &converse(&mut *peer, request));
        note(format!("{place}: {status} {words}"));
        let (expected, told) = match place {
            UNIX => (400, "invalid type: integer `1`"),
            _ => (404, "no such path"),
        };
        assert_eq!(status, expected, "{place}: {words}");
        assert!(words.contains(told), "{place}: {words}");
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

/// Bytes that lbd took at most while `work` went on, beyond what it had.
fn peak_of(world: &World, work: impl FnOnce()) -> u64 {
    let before = world.daemon.resident_bytes().unwrap();
    world.daemon.forget_peak().unwrap();
    work();
    let peak = world.daemon.peak_bytes().unwrap();
    peak.saturating_sub(before)
}

#[test]
fn ten_megabytes_do_not_become_memory() {
    let world = world();
    let post = b"POST /v1/call HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n";
    // What is not HTTP at all is told so. Of a line that does not end HTTP says no more than the status.
    let heads: [(&[u8], &[u16], &str); 3] = [
        (b"", &[400], "no HTTP request"),
        (b"GET /", &[414, 431], ""),
        (post, &[413, 404], "e"),
    ];
    let grown = peak_of(&world, || {
        for (head, statuses, words) in heads {
            for (place, mut peer) in peers(&world) {
                let bytes = [head, &vec![b'x'; 10_000_000]].concat();
                let (status, told) = refusal(place, &converse(&mut *peer, &bytes));
                assert!(statuses.contains(&status), "{place}: {status} {told}");
                assert!(told.contains(words), "{place}: {status} {told}");
            }
        }
    });
    note(format!(
        "10 MB six times: at most {} KiB more",
        grown / 1024
    ));
    assert!(grown < 8_000_000, "{grown}");
    unharmed(&world, 10_000);
}

/// A request that never ends is cut off, and who sent it is told what was wrong.
#[test]
fn requests_without_end_are_cut_off() {
    const CHUNKED: &[u8] =
        b"POST /v1/call HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    const LONG: &[u8] =
        b"POST /v1/call HTTP/1.1\r\nHost: x\r\nContent-Length: 1099511627776\r\n\r\n";
    let at_once = Duration::ZERO;
    let chunk = [b"40\r\n", &[b'['; 64][..], b"\r\n"].concat();
    let now_and_then = Duration::from_millis(100);
    type Case<'a> = (&'a str, &'a [u8], &'a [u8], Duration, &'a [u16], &'a str);
    let cases: [Case; 5] = [
        ("chunks", CHUNKED, &chunk, at_once, &[413], "larger than"),
        (
            "a length",
            LONG,
            b"[[[[[[[[",
            at_once,
            &[413],
            "larger than",
        ),
        // So much to take apart for so little that time may be up first.
        (
            "chunks of a byte",
            CHUNKED,
            b"1\r\n[\r\n",
            at_once,
            &[408, 413],
            "body",
        ),
        (
            "a chunk now and then",
            CHUNKED,
            b"1\r\n[\r\n",
            now_and_then,
            &[408],
            "was not read",
        ),
        (
            "headers",
            b"GET /metrics HTTP/1.1\r\n",
            b"x-more: and more\r\n",
            at_once,
            &[431],
            "",
        ),
    ];
    let world = world();
    for (what, head, drop, pause, expected, words) in cases {
        let grown = peak_of(&world, || {
            for (place, mut peer) in peers(&world) {
                let answer = pour(&mut *peer, head, drop, pause);
                // TCP forgets what the peer's kernel, busy with sending, had no room for, when a
                // connection is closed of which not all is read.
                if place == PORT && answer.is_empty() {
                    note(format!("{what}, {place}: cut off"));
                    continue;
                }
                let (status, told) = refusal(place, &answer);
                note(format!("{what}, {place}: {status} {told}"));
                let (expected, words): (&[u16], _) = match (place, expected) {
                    (PORT, [431]) | (UNIX, _) => (expected, words),
                    // What is posted there need not be read to be refused.
                    _ => (&[404], "no such path"),
                };
                assert!(
                    expected.contains(&status),
                    "{what}, {place}: {status} {told}"
                );
                assert!(told.contains(words), "{what}, {place}: {told}");
            }
        });
        note(format!("{what}: at most {} KiB more", grown / 1024));
        // A body of 4 MiB is kept until it is seen to be larger, in a buffer that doubles.
        assert!(grown < 16 << 20, "{what}: {grown}");
        unharmed(&world, 10_000);
    }
}

/// Backends enough for answers that no buffer of the kernel's takes, as the node has them.
const MANY: u16 = 800;
/// Connections to each place.
const DEAF: usize = 16;

/// Who asks and does not read keeps a place and an answer in memory for some seconds, and no longer.
#[test]
fn answers_that_nobody_reads_are_thrown_away() {
    let network = Network::new(Topology::default()).unwrap();
    let agents = start_all(&network.backends).unwrap();
    let mut many = Service::new("many", Protocol::Tcp).listen(&network, 1, HTTP_PORT);
    many.health = "{type: none}";
    let address = |n: u16| SocketAddr::from(([10, 200, (n >> 8) as u8, n as u8], 80));
    many.backends = (0..MANY).map(|n| (address(n), 1)).collect();
    let config = config(&network).service(many);
    let buffers = [("ipv4/tcp_wmem", "4096 16384 65536")];
    network.node.sysctl(&buffers).unwrap();
    let daemon = Daemon::start(&network.node, &config).unwrap();
    let world = World {
        daemon,
        agents,
        network,
    };
    let page = world.daemon.http("/metrics").unwrap().1.len();
    let connections = || {
        let fds = fs::read_dir(format!("/proc/{}/fd", world.daemon.pid()));
        fds.unwrap().count()
    };
    let before = connections();
    let mut held = Vec::new();
    let grown = peak_of(&world, || {
        for _ in 0..DEAF {
            for (place, mut peer) in deaf(&world) {
                let request: &[u8] = match place {
                    UNIX => {
                        b"POST /v1/call HTTP/1.1\r\nHost: x\r\nContent-Length: 23\r\n\r\n\
                          {\"verb\":\"get-backends\"}"
                    }
                    _ => b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
                };
                peer.write_all(request).unwrap();
                held.push(peer);
            }
        }
        let taken = || connections() >= before + DEAF;
        assert!(
            eventually(Duration::from_secs(20), taken),
            "nobody took them"
        );
        answers(&world, 2);
        // Less than a connection may take that goes on.
        let gone = || connections() <= before + 2;
        assert!(eventually(Duration::from_secs(40), gone), "they are kept");
    });
    note(format!(
        "{} answers that nobody reads, pages of {} KiB among them: at most {} MiB more",
        held.len(),
        page / 1024,
        grown >> 20
    ));
    assert!(grown < (3 * DEAF * page) as u64, "{grown}");
    let mut whole = 0;
    // Of each sort; to such a peer the kernel hands what it has a little at a time.
    for mut peer in held.into_iter().take(4) {
        let mut answer = Vec::new();
        let _ = peer.read_to_end(&mut answer);
        let head = String::from_utf8_lossy(&answer[..answer.len().min(4096)]).into_owned();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse::<usize>().unwrap());
        let body = head.find("\r\n\r\n").map_or(0, |at| answer.len() - at - 4);
        whole += usize::from(length > 200_000 && body == length);
    }
    assert_eq!(whole, 0, "whole answers kept for who does not read");
    answers(&world, 2);
}

/// Connections that take little at a time.
fn deaf(world: &World) -> [(&'static str, Box<dyn Peer>); 2] {
    let unix = UnixStream::connect(world.daemon.socket_path()).unwrap();
    let http = world.network.node.run(|| TcpStream::connect(HTTP).unwrap());
    let little: libc::c_int = 4096;
    // SAFETY: the descriptor is open, and the option is an int that outlives the call.
    let set = unsafe {
        libc::setsockopt(
            http.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            (&raw const little).cast(),
            size_of_val(&little) as libc::socklen_t,
        )
    };
    assert_eq!(set, 0);
    unix.set_patience();
    http.set_patience();
    [(UNIX, Box::new(unix)), (PORT, Box::new(http))]
}
