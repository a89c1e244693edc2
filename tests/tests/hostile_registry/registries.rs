//! Registries that are asked by TCP.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use lb_tests::{
    cluster::{Cluster, Pod, endpoint, service, slice},
    etcd::Etcd,
    eureka::{Eureka, Instance, Oddities},
    hostile::{HOSTS, Suspect, Victims},
    net::{Network, Topology},
    registry::{Registry, Reply, Request},
    servers::ECHO_PORT,
    zookeeper::{ADDRESS, Registrar, Zookeeper},
};
use lb_userspace::discovery::Class::{self, Malformed, Timeout, Unreachable};

/// What five sources may take at once, each with an answer of 10 MiB that it reads and takes apart, or of
/// 32 MiB from Kubernetes, in a buffer that doubles.
const ROOM: u64 = 192 << 20;
/// What one connection is sent at most, where there is no end.
const MOST: usize = 1024 << 20;

type Harm = fn(&mut TcpStream) -> io::Result<()>;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nX-Consul-Index: 1\r\n";

const MALFORMED: &[Class] = &[Malformed];
/// A stream that ends where its connection breaks may tell of either first.
const BROKEN: &[Class] = &[Malformed, Unreachable];
/// Where there is no end, either limit may be the first: that of size or that of time.
const ENDLESS: &[Class] = &[Malformed, Timeout];

/// What is done, and what sources that speak HTTP/1.1 may say of it. To etcd, which speaks HTTP/2, and to
/// ZooKeeper all of it is malformed, or breaks the connection.
const HARMS: [(&str, &[Class], Harm); 11] = [
    ("10 MB of instances", MALFORMED, |peer| {
        let one = br#"{"Service":{"ID":"i","Address":"10.0.0.1","Port":80}},"#;
        whole(
            peer,
            [&b"["[..], &one.repeat((10 << 20) / one.len() - 1), b"1]"].concat(),
        )
    }),
    ("a length that nobody has", ENDLESS, |peer| {
        peer.write_all(OK)?;
        peer.write_all(b"content-length: 1099511627776\r\n\r\n")?;
        pour(peer, b"[1,2,3,4,5,6,7,8,9],")
    }),
    ("nesting", MALFORMED, |peer| {
        whole(peer, b"[".repeat(9 << 20))
    }),
    ("nesting of objects", MALFORMED, |peer| {
        whole(peer, br#"{"a":"#.repeat(2 << 20))
    }),
    ("bytes that are no text", MALFORMED, |peer| {
        whole(
            peer,
            [&b"[{\"ID\":\""[..], &[0xff; 1 << 20], b"\"}]"].concat(),
        )
    }),
    ("a body without end", ENDLESS, |peer| {
        peer.write_all(OK)?;
        peer.write_all(b"transfer-encoding: chunked\r\n\r\n")?;
        let chunk = [b"1000\r\n", &[b'['; 4096][..], b"\r\n"].concat();
        pour(peer, &chunk)
    }),
    ("headers without end", ENDLESS, |peer| {
        peer.write_all(OK)?;
        pour(peer, b"x-more: and more and more and more\r\n")
    }),
    ("byte by byte", &[Timeout], |peer| {
        for byte in OK.iter().cycle() {
            peer.write_all(&[*byte])?;
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }),
    // A length in front as ZooKeeper has it, and a frame as HTTP/2 has them.
    ("huge frames", MALFORMED, |peer| {
        peer.write_all(&[0x7f, 0xff, 0xff, 0xff])?;
        pour(peer, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1])
    }),
    // As little as makes a client believe that etcd answers it.
    ("a gRPC message without end", MALFORMED, |peer| {
        // Length, type, flags and stream; settings are empty, and the client's are acknowledged.
        peer.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])?;
        peer.write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0])?;
        // `:status: 200` and `content-type: application/grpc` (RFC 7541: 8 and 31 of the static table).
        let kind = b"application/grpc";
        let headers = [&[0x88, 0x0f, 0x10, kind.len() as u8], &kind[..]].concat();
        peer.write_all(&[0, 0, headers.len() as u8, 1, 4, 0, 0, 0, 1])?;
        peer.write_all(&headers)?;
        // A message of 2 GiB, in frames of 16 KiB.
        peer.write_all(&[0, 0, 5, 0, 0, 0, 0, 0, 1, 0, 0x7f, 0xff, 0xff, 0xff])?;
        let frame = [&[0, 0x40, 0, 0, 0, 0, 0, 0, 1][..], &[0; 1 << 14]].concat();
        pour(peer, &frame)
    }),
    // The length of a packet that ZooKeeper may send.
    ("a packet that nearly fits", MALFORMED, |peer| {
        peer.write_all(&[0x00, 0xff, 0xff, 0xf0])?;
        pour(peer, &[0xff; 16])
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

/// Stands in front of all registries: hands on what is said while there is no harm to do.
#[derive(Clone, Default)]
struct Front(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    harm: Option<Harm>,
    open: Vec<TcpStream>,
}

impl Front {
    /// In front of a registry of the node; returns where it listens there.
    fn start(&self, network: &Network, target: SocketAddr) -> SocketAddr {
        let bound = network.node.run(|| TcpListener::bind("127.0.0.1:0"));
        let listener = bound.unwrap();
        let address = listener.local_addr().unwrap();
        let front = self.clone();
        network.node.spawn(move || {
            for peer in listener.incoming().flatten() {
                let front = front.clone();
                // Threads are where who began them is.
                thread::spawn(move || front.serve(peer, target));
            }
        });
        address
    }

    fn serve(&self, mut peer: TcpStream, target: SocketAddr) -> io::Result<()> {
        let harm = {
            let mut state = self.0.lock().unwrap();
            state.open.push(peer.try_clone()?);
            state.harm
        };
        let Some(harm) = harm else {
            let server = TcpStream::connect(target)?;
            let (from, to) = (peer.try_clone()?, server.try_clone()?);
            thread::spawn(move || hand_on(from, to));
            hand_on(server, peer);
            return Ok(());
        };
        // A hostile peer reads no more than it must.
        peer.set_read_timeout(Some(Duration::from_secs(1)))?;
        let _ = peer.read(&mut [0; 4096]);
        peer.set_write_timeout(Some(Duration::from_secs(2)))?;
        let done = harm(&mut peer);
        // Its end is the harm's end, though `open` has it too.
        let _ = peer.shutdown(Shutdown::Both);
        done
    }

    /// From the next connection on; those that are open end.
    fn set(&self, harm: Option<Harm>) {
        let mut state = self.0.lock().unwrap();
        state.harm = harm;
        for peer in state.open.drain(..) {
            let _ = peer.shutdown(Shutdown::Both);
        }
    }
}

fn hand_on(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Registries that hold the backends, and that stand until they are dropped.
struct Registries {
    _consul: Registry,
    _eureka: Eureka,
    _cluster: Cluster,
    _etcd: Etcd,
    _registrar: Registrar,
    _zookeeper: Zookeeper,
}

const ETCD: &str = "http://127.0.0.1:2379";

impl Registries {
    fn start(network: &Network) -> Self {
        let node = &network.node;
        let eureka = Eureka::start(node, local(8761), Oddities::default()).unwrap();
        let cluster = Cluster::start(node, local(6443)).unwrap();
        cluster.apply(service("shop", "web", &[("echo", 80)]));
        let etcd = Etcd::start(node, ETCD, &[], &[]).unwrap();
        let zookeeper = Zookeeper::start(node).unwrap();
        let registrar = Registrar::new(node, None).unwrap();
        for host in HOSTS {
            let ip = format!("10.1.{host}.2");
            let address: SocketAddr = format!("{ip}:{ECHO_PORT}").parse().unwrap();
            eureka.put(Instance::new(format!("i{host}"), address));
            let pod = vec![endpoint(&ip, "pod", Pod::Ready)];
            let name = format!("web-{host}");
            cluster.apply(slice("shop", "web", &name, ("echo", ECHO_PORT), pod));
            let value = format!("{{\"address\": \"{address}\"}}");
            etcd.put(&format!("web/i{host}"), &value).unwrap();
            let node = format!("{{\"address\": \"{ip}\", \"port\": {ECHO_PORT}}}");
            registrar.register(&format!("/web/i{host}"), &node).unwrap();
        }
        Self {
            _consul: Registry::start(node, local(8500), consul).unwrap(),
            _eureka: eureka,
            _cluster: cluster,
            _etcd: etcd,
            _registrar: registrar,
            _zookeeper: zookeeper,
        }
    }
}

/// As Consul answers, with an index that stays.
fn consul(request: &Request) -> Reply {
    if request.query.contains_key("index") {
        thread::sleep(Duration::from_secs(1));
    }
    let entries = HOSTS.map(|host| {
        format!(
            r#"{{"Node": {{"Node": "n{host}", "Address": "10.1.{host}.2"}},
                "Service": {{"ID": "i{host}", "Service": "web", "Port": {ECHO_PORT}}}, "Checks": []}}"#
        )
    });
    Reply::json(format!("[{}]", entries.join(", "))).header("X-Consul-Index", 7)
}

#[test]
fn no_registry_takes_memory_or_time_from_others() {
    let network = Network::new(Topology::default()).unwrap();
    let _registries = Registries::start(&network);
    let front = Front::default();
    let at = |target: SocketAddr| front.start(&network, target);
    let suspects = vec![
        Suspect::new(
            "consul",
            format!("url: \"http://{}\", service: web", at(local(8500))),
        ),
        Suspect::new(
            "eureka",
            format!(
                "urls: [\"http://{}/eureka\"], app: web, interval: 1s",
                at(local(8761))
            ),
        ),
        Suspect::new(
            "kubernetes",
            format!(
                "server: \"http://{}\", namespace: shop, service: web, port: echo",
                at(local(6443))
            ),
        ),
        Suspect::new(
            "etcd",
            format!("endpoints: [\"http://{}\"], prefix: web/", at(local(2379))),
        ),
        Suspect::new(
            "zookeeper",
            format!(
                "servers: [\"{}\"], path: /web, session_timeout: 3s",
                at(ADDRESS.parse().unwrap())
            ),
        ),
    ];
    let victims = Victims::new(network, suspects);
    for (what, fitting, harm) in HARMS {
        let fitting = |kind: &str| match kind {
            // ZooKeeper's client waits for a whole packet as long as for a connection.
            "etcd" | "zookeeper" => BROKEN,
            _ => fitting,
        };
        victims.suffer(what, fitting, ROOM, || front.set(Some(harm)));
    }
    front.set(None);
    victims.recover();
}
