//! Datagrams in fragments arrive whole at one backend, in whatever order the fragments come, and the
//! answer comes back whole.
//!
//! ```text
//!                            ┌── b1
//!   client ──── node (lbd) ──┼── b2
//!                            └── b3
//! ```
//! The client's fragments are sent as frames of the test's own, so that their order is its choice.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use lb_tests::{
    capture::Wire,
    clients::Protocol,
    daemon::{Config, Daemon, Service},
    eventually,
    frames::{self, IPV4, IPV6, Mac, UDP, ethernet},
    net::{Family, Network, Topology},
    note,
    servers::ECHO_PORT,
    world::World,
};

const XDP: &str = "native";
const GENERIC: &str = "generic";
const TC: &str = "off";

/// Bytes of a datagram in each fragment of the test's own: what fits an MTU of 1,500 in both families.
const PIECE: usize = 1448;

/// Longest time until an answer.
const ANSWER: Duration = Duration::from_secs(5);

fn world(xdp: &'static str, snat: &'static str) -> World {
    World::new(Topology::default(), |network| {
        let weights = vec![1; network.backends.len()];
        let mut service = Service::new("echo", Protocol::Udp)
            .listen(network, 0, ECHO_PORT)
            .backends(network, ECHO_PORT, &weights);
        service.snat = snat;
        Config::new(network, xdp).service(service)
    })
    .unwrap()
}

/// A client's socket towards the service, and its hands on the wire.
struct Client<'n> {
    network: &'n Network,
    socket: UdpSocket,
    source: SocketAddr,
    target: SocketAddr,
    wire: Wire,
    macs: (Mac, Mac),
}

impl<'n> Client<'n> {
    fn new(network: &'n Network, family: Family) -> anyhow::Result<Self> {
        let address = network.client_addresses(family)[0];
        let target = (network.vip(0, family), ECHO_PORT).into();
        let socket = network.client.run(|| UdpSocket::bind((address, 0)))?;
        socket.set_read_timeout(Some(ANSWER))?;
        Ok(Self {
            network,
            source: socket.local_addr()?,
            socket,
            target,
            wire: Wire::open(&network.client, "eth0")?,
            macs: (network.node.mac("client")?, network.client.mac("eth0")?),
        })
    }

    /// The frames of a datagram in fragments.
    fn fragments(&self, id: u32, payload: &[u8]) -> Vec<Vec<u8>> {
        let (from, to) = (self.source, self.target);
        let datagram = frames::udp((from.ip(), from.port()), (to.ip(), to.port()), payload);
        let pieces = datagram.chunks(PIECE).enumerate();
        pieces
            .map(|(i, piece)| {
                let start = i * PIECE;
                let more = start + piece.len() < datagram.len();
                let (kind, packet) = fragment((from.ip(), to.ip()), id, (start, more), piece);
                ethernet(self.macs.0, self.macs.1, kind, &packet)
            })
            .collect()
    }

    fn send(&self, frames: &[Vec<u8>]) -> anyhow::Result<()> {
        frames
            .iter()
            .try_for_each(|frame| Ok(self.wire.send(frame)?))
    }

    /// The next answer, without the words that the server puts in front, and the server's name.
    fn answer(&self) -> anyhow::Result<(String, Vec<u8>)> {
        let mut buffer = vec![0; 1 << 16];
        let (length, from) = self.socket.recv_from(&mut buffer)?;
        assert_eq!(from, self.target);
        let mut words = buffer[..length].splitn(3, |byte| *byte == b' ');
        let name = String::from_utf8(words.next().unwrap_or_default().to_vec())?;
        Ok((name, words.nth(1).unwrap_or_default().to_vec()))
    }

    fn ask(&self, payload: &[u8]) -> anyhow::Result<(String, Vec<u8>)> {
        self.network
            .client
            .run(|| self.socket.send_to(payload, self.target))?;
        self.answer()
    }
}

/// A packet with a fragment: the datagram's bytes from `start` on, and whether there are more behind.
fn fragment(
    ends: (IpAddr, IpAddr),
    id: u32,
    (start, more): (usize, bool),
    piece: &[u8],
) -> (u16, Vec<u8>) {
    if ends.0.is_ipv4() {
        let mut packet = frames::ip(ends.0, ends.1, UDP, piece);
        let field = u16::from(more) << 13 | (start / 8) as u16;
        packet[4..6].copy_from_slice(&(id as u16).to_be_bytes());
        packet[6..8].copy_from_slice(&field.to_be_bytes());
        packet[10..12].fill(0);
        let mut sum: u32 = packet[..20]
            .chunks(2)
            .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
            .sum();
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        return (IPV4, packet);
    }
    let mut header = vec![UDP, 0];
    header.extend((start as u16 | u16::from(more)).to_be_bytes());
    header.extend(id.to_be_bytes());
    header.extend(piece);
    (IPV6, frames::ip(ends.0, ends.1, 44, &header))
}

fn payload(length: usize, seed: usize) -> Vec<u8> {
    (0..length)
        .map(|i| (i * 31 + seed * 7 + i / 251) as u8)
        .collect()
}

/// Packets counted under a reason so far.
fn drops(daemon: &Daemon, reason: &str) -> u64 {
    let (_, text) = daemon.http("/metrics").unwrap();
    let name = format!("lbd_drops_total{{reason=\"{reason}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.expect("a counter of its own").parse().unwrap()
}

#[test]
fn fragments_in_order_go_and_come_whole() {
    for (xdp, snat) in [
        (XDP, "never"),
        (XDP, "always"),
        (GENERIC, "never"),
        (TC, "always"),
    ] {
        let world = world(xdp, snat);
        for family in Family::BOTH {
            let client = Client::new(&world.network, family).unwrap();
            for (seed, length) in [2000, 8000, 2000, 20_000].into_iter().enumerate() {
                let sent = payload(length, seed);
                let (_, came) = client.ask(&sent).unwrap();
                assert!(came == sent, "{family} {xdp} {snat}: {length} bytes");
            }
            note(format!(
                "{family} {xdp}, snat {snat}: 2,000, 8,000 and 20,000 bytes there and back"
            ));
        }
        assert_eq!(drops(&world.daemon, "fragment_held"), 0);
        assert_eq!(drops(&world.daemon, "fragment_unknown"), 0);
    }
}

/// With the daemon dead: all is done in the kernel.
#[test]
fn fragments_reversed_arrive_whole() {
    for (xdp, snat) in [(XDP, "never"), (GENERIC, "always"), (TC, "always")] {
        let mut world = world(xdp, snat);
        world.daemon.kill9();
        let mut later = 0;
        for family in Family::BOTH {
            let client = Client::new(&world.network, family).unwrap();
            for (id, length) in [(1, 2000), (2, 8000), (3, 2000), (4, 11_000)] {
                let sent = payload(length, id);
                let mut frames = client.fragments(0x0001_0000 + id as u32, &sent);
                later += frames.len() as u64 - 1;
                frames.reverse();
                client.send(&frames).unwrap();
                let (_, came) = client
                    .answer()
                    .unwrap_or_else(|e| panic!("{family} {xdp}, snat {snat}, {length} bytes: {e}"));
                assert!(came == sent, "{family} {xdp} {snat}: {length} bytes");
            }
        }
        world.daemon.launch().unwrap();
        world.daemon.wait_ready().unwrap();
        let held = drops(&world.daemon, "fragment_held");
        let resumed = drops(&world.daemon, "fragment_resumed");
        note(format!(
            "{xdp}, snat {snat}: {later} fragments before their first, {held} put aside, {resumed} went on"
        ));
        assert_eq!((held, resumed), (later, later));
    }
}

/// Datagrams of two flows, fragment by fragment in turn, first those in order, then with the last
/// fragments first.
#[test]
fn fragments_interleaved_arrive_whole() {
    for xdp in [XDP, TC] {
        let world = world(xdp, "always");
        for family in Family::BOTH {
            let clients = [(); 2].map(|()| Client::new(&world.network, family).unwrap());
            for (round, reverse) in [false, true, false, true].into_iter().enumerate() {
                let sent = [payload(8000, 2 * round), payload(8000, 2 * round + 1)];
                let [one, two] = [0, 1].map(|i| {
                    let mut frames = clients[i].fragments((2 * round + i) as u32, &sent[i]);
                    if reverse {
                        frames.reverse();
                    }
                    frames
                });
                for (a, b) in one.into_iter().zip(two) {
                    clients[0].send(&[a, b]).unwrap();
                }
                for (client, sent) in clients.iter().zip(sent) {
                    let (_, came) = client.answer().unwrap();
                    assert!(came == sent, "{family} {xdp}, reversed: {reverse}");
                }
            }
        }
        note(format!(
            "{xdp}: 16 datagrams of 8,000 bytes, two flows in turn"
        ));
    }
}

/// Fragments whose first never comes: bounded, counted, and no harm to others.
#[test]
fn fragments_without_a_first_disturb_nobody() {
    for xdp in [XDP, TC] {
        let world = world(xdp, "always");
        let mut sent_early = 0;
        for family in Family::BOTH {
            let client = Client::new(&world.network, family).unwrap();
            for id in 1..=2000 {
                let frames = client.fragments(0x0002_0000 + id, &payload(8000, 1));
                client.send(&frames[3..4]).unwrap();
                sent_early += 1;
                // The ring of a cable holds 256.
                if id % 100 == 0 {
                    let come = || drops(&world.daemon, "fragment_held") >= sent_early;
                    let all = eventually(Duration::from_secs(5), come);
                    assert!(all, "{family} {xdp}: fewer than {sent_early} put aside");
                }
            }
            let sent = payload(8000, 5);
            // An identification of its own in IPv4's 16 bits, too: what waits for another first fragment
            // of the same one is taken for a part of this datagram.
            let mut frames = client.fragments(0x0003_0000, &sent);
            sent_early += frames.len() as u64 - 1;
            frames.reverse();
            client.send(&frames).unwrap();
            let (_, came) = client.answer().unwrap();
            assert!(came == sent, "{family} {xdp}");
        }
        let held = drops(&world.daemon, "fragment_held");
        let resumed = drops(&world.daemon, "fragment_resumed");
        note(format!("{xdp}: {held} put aside, {resumed} went on"));
        assert_eq!((held, resumed), (2 * (2000 + 5), 2 * 5));
    }
}
