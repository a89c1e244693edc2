//! Registries that mean harm: whatever they say, the daemon's memory has a bound, nobody else waits,
//! and somebody is told why there is nothing.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use lb_tests::{
    clients::{Protocol, burst, summary},
    daemon::{Config, Daemon, Service},
    net::{Family, Network, Topology},
    note,
    servers::{ECHO_PORT, start_all},
};

const PORT: u16 = 8500;
/// How long each harm lasts: several attempts of every source.
const EACH: Duration = Duration::from_secs(4);
/// What five sources may take at once, each with an answer of 10 MiB that it reads and takes apart.
const ROOM: u64 = 128 << 20;
/// What one connection is sent at most, where there is no end.
const MOST: usize = 1024 << 20;

type Harm = fn(&mut TcpStream) -> io::Result<()>;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nX-Consul-Index: 1\r\n";

const HARMS: [(&str, Harm); 9] = [
    ("10 MB of instances", |peer| {
        let one = br#"{"Service":{"ID":"i","Address":"10.0.0.1","Port":80}},"#;
        whole(
            peer,
            [&b"["[..], &one.repeat((10 << 20) / one.len() - 1), b"1]"].concat(),
        )
    }),
    ("a length that nobody has", |peer| {
        peer.write_all(OK)?;
        peer.write_all(b"content-length: 1099511627776\r\n\r\n")?;
        pour(peer, b"[1,2,3,4,5,6,7,8,9],")
    }),
    ("nesting", |peer| whole(peer, b"[".repeat(9 << 20))),
    ("nesting of objects", |peer| {
        whole(peer, br#"{"a":"#.repeat(2 << 20))
    }),
    ("bytes that are no text", |peer| {
        whole(
            peer,
            [&b"[{\"ID\":\""[..], &[0xff; 1 << 20], b"\"}]"].concat(),
        )
    }),
    ("a body without end", |peer| {
        peer.write_all(OK)?;
        peer.write_all(b"transfer-encoding: chunked\r\n\r\n")?;
        pour(peer, b"10\r\n[[[[[[[[[[[[[[[[\r\n")
    }),
    ("headers without end", |peer| {
        peer.write_all(OK)?;
        pour(peer, b"x-more: and more and more and more\r\n")
    }),
    ("byte by byte", |peer| {
        for byte in OK.iter().cycle() {
            peer.write_all(&[*byte])?;
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }),
    // A length in front as ZooKeeper has it, and a frame as HTTP/2 has them.
    ("huge frames", |peer| {
        peer.write_all(&[0x7f, 0xff, 0xff, 0xff])?;
        pour(peer, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1])
    }),
];

fn whole(peer: &mut TcpStream, body: impl AsRef<[u8]>) -> io::Result<()> {
    let body = body.as_ref();
    peer.write_all(OK)?;
    write!(peer, "content-length: {}\r\n\r\n", body.len())?;
    peer.write_all(body)
}

fn pour(peer: &mut TcpStream, drop: &[u8]) -> io::Result<()> {
    let bucket = drop.repeat((64 << 10) / drop.len());
    (0..MOST / bucket.len()).try_for_each(|_| peer.write_all(&bucket))
}

fn serve(listener: &TcpListener, harm: &Mutex<Harm>) {
    for mut peer in listener.incoming().flatten() {
        let harm = *harm.lock().unwrap();
        thread::spawn(move || {
            // A hostile peer reads no more than it must.
            let _ = peer.set_read_timeout(Some(Duration::from_secs(1)));
            let _ = peer.read(&mut [0; 4096]);
            let _ = peer.set_write_timeout(Some(Duration::from_secs(2)));
            harm(&mut peer)
        });
    }
}

fn config(network: &Network) -> Config {
    let at = SocketAddr::from(([127, 0, 0, 1], PORT));
    let sources = [
        format!("{{consul: {{url: \"http://{at}\", service: a}}}}"),
        format!("{{eureka: {{urls: [\"http://{at}\"], app: a, interval: 1s}}}}"),
        format!("{{kubernetes: {{server: \"http://{at}\", namespace: a, service: b}}}}"),
        format!("{{etcd: {{endpoints: [\"http://{at}\"], prefix: /a/}}}}"),
        format!("{{zookeeper: {{servers: [\"{at}\"], path: /a}}}}"),
    ];
    let echo = Service::new("echo", Protocol::Tcp)
        .listen(network, 0, ECHO_PORT)
        .backends(network, ECHO_PORT, &[1, 1, 1]);
    let mut config = Config::new(network, "native").service(echo);
    for (n, source) in (1..).zip(sources) {
        let service = Service::new(&format!("hostile{n}"), Protocol::Tcp).listen(network, n, 80);
        config = config.service(service.discovery(source));
    }
    config
}

#[test]
fn no_registry_takes_memory_or_time_from_others() {
    let network = Network::new(Topology::default()).unwrap();
    let _agents = start_all(&network.backends).unwrap();
    let bound = network.node.run(|| TcpListener::bind(("127.0.0.1", PORT)));
    let listener = bound.unwrap();
    let harm = Arc::new(Mutex::new(HARMS[0].1));
    let served = harm.clone();
    thread::spawn(move || serve(&listener, &served));

    let daemon = Daemon::start(&network.node, &config(&network)).unwrap();
    let before = daemon.resident_bytes().unwrap();
    let family = Family::V4;
    let sources = network.client_addresses(family);
    let target = (network.vip(0, family), ECHO_PORT).into();
    let mut port = 20_000;
    for (what, next) in HARMS {
        *harm.lock().unwrap() = next;
        let began = Instant::now();
        let (mut peak, mut slowest) = (0, Duration::ZERO);
        while began.elapsed() < EACH {
            peak = peak.max(daemon.resident_bytes().unwrap());
            let asked = Instant::now();
            daemon.status().unwrap();
            slowest = slowest.max(asked.elapsed());
            thread::sleep(Duration::from_millis(50));
        }
        let mib = |bytes: u64| bytes >> 20;
        note(format!(
            "{what}: {} MiB, at most {} MiB, `lbctl status` within {slowest:.0?}",
            mib(before),
            mib(peak)
        ));
        assert!(peak < before + ROOM, "{what}: {} MiB", mib(peak));
        port += 200;
        let result = burst(&network.client, &sources, port, 100, Protocol::Tcp, target);
        assert_eq!(summary(&result.failures), "none", "{what}");
    }
    for source in daemon.sources().unwrap() {
        let told = source.last_error.clone();
        note(format!(
            "{}: {}",
            source.kind,
            told.clone().unwrap_or_default()
        ));
        assert!(told.is_some(), "{source:?}");
        assert!(told.unwrap().len() < 1000, "{source:?}");
    }
}
