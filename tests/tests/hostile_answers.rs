//! Registries that speak their protocol and mean harm: whatever they answer, the daemon lives, its memory
//! has a bound, and somebody is told.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lb_tests::{
    clients::Protocol,
    daemon::{Config, Daemon, Service},
    net::{Network, Topology},
    note,
};

/// What one source may take for what it is told.
const ROOM: u64 = 768 << 20;
/// How long each harm lasts.
const EACH: Duration = Duration::from_secs(6);
/// Longest time until a source fails.
const LONG: Duration = Duration::from_secs(120);

/// Serves peers for as long as the test lives; gives the number of those that came.
fn serve(
    network: &Network,
    port: u16,
    harm: impl Fn(&mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
) -> Arc<AtomicUsize> {
    let bound = network.node.run(|| TcpListener::bind(("127.0.0.1", port)));
    let listener = bound.unwrap();
    let (count, harm) = (Arc::new(AtomicUsize::new(0)), Arc::new(harm));
    let came = count.clone();
    thread::spawn(move || {
        for mut peer in listener.incoming().flatten() {
            came.fetch_add(1, Ordering::Relaxed);
            let harm = harm.clone();
            thread::spawn(move || {
                let _ = peer.set_nodelay(true);
                let _ = peer.set_read_timeout(Some(Duration::from_secs(10)));
                let _ = peer.set_write_timeout(Some(Duration::from_secs(30)));
                harm(&mut peer)
            });
        }
    });
    count
}

/// Runs lbd with one source and looks on, until it failed; gives why.
fn suffer(network: &Network, source: &str) -> String {
    look_on(network, source, LONG)
}

/// The same, for so long at most.
fn look_on(network: &Network, source: &str, most: Duration) -> String {
    let service = Service::new("web", Protocol::Tcp).listen(network, 0, 80);
    let config = Config::new(network, "native").service(service.discovery(source.to_owned()));
    let daemon = Daemon::start(&network.node, &config).unwrap();
    let before = daemon.resident_bytes().unwrap();
    let began = Instant::now();
    let (mut peak, mut slowest) = (0, Duration::ZERO);
    let mut told = None;
    while began.elapsed() < EACH || (told.is_none() && began.elapsed() < most) {
        peak = peak.max(daemon.resident_bytes().unwrap());
        let asked = Instant::now();
        daemon.status().unwrap();
        slowest = slowest.max(asked.elapsed());
        told = daemon.sources().unwrap().remove(0).last_error;
        thread::sleep(Duration::from_millis(50));
    }
    let told = told.unwrap_or_default();
    note(format!(
        "{source}: {} MiB, at most {} MiB, `lbctl status` within {slowest:.0?}: {told}",
        before >> 20,
        peak >> 20
    ));
    assert!(peak < before + ROOM, "{} MiB", peak >> 20);
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    told
}

fn packet(peer: &mut TcpStream, body: &[u8]) -> io::Result<()> {
    peer.write_all(&(body.len() as u32).to_be_bytes())?;
    peer.write_all(body)
}

fn request(peer: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    peer.read_exact(&mut length)?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    peer.read_exact(&mut body)?;
    Ok(body)
}

/// A server of ZooKeeper that answers everything, and lists with `list`.
fn zookeeper(peer: &mut TcpStream, list: &[u8]) -> io::Result<()> {
    request(peer)?;
    let session = [
        &[0; 4][..],
        &10_000_u32.to_be_bytes(),
        &1_u64.to_be_bytes(),
        &16_u32.to_be_bytes(),
        &[0; 17],
    ];
    packet(peer, &session.concat())?;
    loop {
        let asked = request(peer)?;
        let body = match asked[4..8] {
            [0, 0, 0, 8] => list,
            _ => &[],
        };
        packet(peer, &[&asked[..4], &[0; 12], body].concat())?;
    }
}

#[test]
fn zookeeper_counts_more_than_it_sends() {
    let network = Network::new(Topology::default()).unwrap();
    let came = serve(&network, 2181, |peer| {
        zookeeper(peer, &i32::MAX.to_be_bytes())
    });
    let told = suffer(
        &network,
        "{zookeeper: {servers: [\"127.0.0.1:2181\"], path: /a}}",
    );
    assert!(told.contains("a list of 2147483647 nodes"), "{told}");
    assert!(came.load(Ordering::Relaxed) > 1);
}

const CLUSTER: &str = "{kubernetes: {server: \"http://127.0.0.1:6443\", namespace: a, service: b}}";

/// An API server: `answer` is given the target of each request, and writes the whole answer.
fn cluster(
    peer: &mut TcpStream,
    answer: impl Fn(&str, &mut TcpStream) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            peer.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        answer(head.split(' ').nth(1).unwrap_or_default(), peer)?;
    }
}

fn list(peer: &mut TcpStream, target: &str, next: &str, items: &str) -> io::Result<()> {
    let kind = match target.contains("endpointslices") {
        true => "EndpointSliceList",
        false => "ServiceList",
    };
    let body = format!(
        "{{\"kind\":\"{kind}\",\"metadata\":{{\"resourceVersion\":\"1\",\"continue\":\"{next}\"}},\
         \"items\":[{items}]}}"
    );
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    peer.write_all(head.as_bytes())?;
    peer.write_all(body.as_bytes())
}

#[test]
fn kubernetes_sends_a_page_of_nothing() {
    let network = Network::new(Topology::default()).unwrap();
    let nothing = "{},".repeat(10 << 20) + "{}";
    serve(&network, 6443, move |peer| {
        cluster(peer, |target, peer| list(peer, target, "", &nothing))
    });
    let told = suffer(&network, CLUSTER);
    assert!(told.contains("at most 1500000 are read"), "{told}");
}

#[test]
fn kubernetes_has_always_another_page() {
    let network = Network::new(Topology::default()).unwrap();
    serve(&network, 6443, move |peer| {
        cluster(peer, |target, peer| list(peer, target, "more", ""))
    });
    let told = suffer(&network, CLUSTER);
    assert!(told.contains("more than 4000 pages"), "{told}");
}

#[test]
fn kubernetes_expires_after_every_event() {
    let network = Network::new(Topology::default()).unwrap();
    let lists = Arc::new(AtomicUsize::new(0));
    let count = lists.clone();
    serve(&network, 6443, move |peer| {
        cluster(peer, |target, peer| {
            if !target.contains("watch=") {
                count.fetch_add(1, Ordering::Relaxed);
                let service = "{\"metadata\":{\"name\":\"b\",\"resourceVersion\":\"1\"},\
                               \"spec\":{\"ports\":[{\"port\":80}]}}";
                let is_service = !target.contains("endpointslices");
                return list(peer, target, "", if is_service { service } else { "" });
            }
            let text = "{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"x\",\
                        \"resourceVersion\":\"2\"},\"addressType\":\"IPv4\",\"endpoints\":[]}}\n\
                        {\"type\":\"ERROR\",\"object\":{\"code\":410}}\n";
            let length = text.len();
            write!(
                peer,
                "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{text}"
            )
        })
    });
    look_on(&network, CLUSTER, EACH);
    // Of both kinds, after 0.5 to 1 s, then twice as long, and so on.
    let lists = lists.load(Ordering::Relaxed);
    assert!((4..=16).contains(&lists), "{lists}");
}

#[test]
fn kubernetes_tells_of_ever_more_slices() {
    let network = Network::new(Topology::default()).unwrap();
    serve(&network, 6443, move |peer| {
        cluster(peer, |target, peer| {
            let is_service = !target.contains("endpointslices");
            if !target.contains("watch=") {
                let service = "{\"metadata\":{\"name\":\"b\",\"resourceVersion\":\"1\"},\
                               \"spec\":{\"ports\":[{\"port\":80}]}}";
                return list(peer, target, "", if is_service { service } else { "" });
            }
            peer.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
            if is_service {
                thread::sleep(LONG);
                return Ok(());
            }
            let endpoints = "{\"addresses\":[\"10.0.0.1\"]},".repeat(9_999);
            for n in 1_u64.. {
                let line = format!(
                    "{{\"type\":\"ADDED\",\"object\":{{\"metadata\":{{\"name\":\"s{n}\",\
                     \"resourceVersion\":\"{n}\"}},\"addressType\":\"IPv4\",\
                     \"endpoints\":[{endpoints}{{\"addresses\":[]}}]}}}}\n"
                );
                write!(peer, "{:x}\r\n{line}\r\n", line.len())?;
            }
            Ok(())
        })
    });
    let told = suffer(&network, CLUSTER);
    assert!(
        told.contains("endpointslices take more than 256 MiB"),
        "{told}"
    );
}
