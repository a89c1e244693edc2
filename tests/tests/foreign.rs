//! Traffic that is none of the load balancer's business passes as if it were not there: the same
//! frames are sent without lbd, with lbd on XDP and with lbd on TC, and the captures compared.
//!
//! ```text
//!   client ── eth0 ───── client ┐
//!                               ├ bridge (10.0.0.1, fd00:c::1) ── node with lbd on `client`
//!   spy ───── eth0 ──────── spy ┘
//! ```
//!
//! A frame to the spy's hardware address arrives there as it left the client, however malformed:
//! a bridge does not look inside. A frame to the node is answered by the node, or not.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use lb_tests::{
    capture::Wire,
    clients::{Protocol, any_port, ask_once},
    daemon::{Config, Daemon, Service},
    eventually,
    frames::{
        ACK, ICMP, ICMPV6, IPV4, IPV6, Mac, SCTP, SERVICE_VLAN, SYN, TCP, UDP, VLAN, arp_request,
        echo_request, ethernet, ip, ipv4, ipv6, neighbour_solicitation, tagged, tcp, udp,
    },
    host::{Host, cable},
    net::Family,
    note, patience,
    servers::{Agent, ECHO_PORT},
    stacks,
};

const SERVICE_PORT: u16 = 7000;
const OTHER_PORT: u16 = 7001;

/// Silence after which no more frames are expected.
const QUIET: Duration = Duration::from_millis(300);

struct Scene {
    client: Host,
    node: Host,
    wire: Wire,
    spy_wire: Wire,
    macs: Macs,
    _server: Agent,
}

#[derive(Clone, Copy)]
struct Macs {
    client: Mac,
    node: Mac,
    spy: Mac,
}

/// What came of one frame.
#[derive(PartialEq, Eq, Debug)]
struct Outcome {
    name: &'static str,
    /// Frames that reached the spy.
    passed: Vec<Vec<u8>>,
    /// Frames that the client got back, without what the node draws by chance.
    answered: Vec<Vec<u8>>,
}

impl Scene {
    fn new() -> anyhow::Result<Self> {
        let (client, node, spy) = (Host::new("client")?, Host::new("node")?, Host::new("spy")?);
        for host in [&client, &spy] {
            // These two speak only the frames of the test.
            host.sysctl(&[("ipv6/conf/default/disable_ipv6", "1")])?;
        }
        cable(&client, "eth0", &node, "client")?;
        cable(&spy, "eth0", &node, "spy")?;
        for host in [&client, &spy] {
            host.execute("ethtool", &["-K", "eth0", "gro", "off"])?;
        }
        node.ip("link add name bridge type bridge mcast_snooping 0\n\
             link set dev client master bridge\n\
             link set dev spy master bridge\n\
             link set dev bridge up\n\
             addr add 10.0.0.1/24 dev bridge\n\
             addr add fd00:c::1/64 dev bridge nodad\n")?;
        // No SYN-ACK comes twice, and nothing of an answer is drawn by chance that can be helped.
        node.sysctl(&[
            ("ipv4/tcp_synack_retries", "0"),
            ("ipv6/auto_flowlabels", "0"),
        ])?;
        node.run(|| {
            // A bridge that calls the firewall looks inside after all. Absent without br_netfilter.
            for family in ["ip", "ip6", "arp"] {
                let path = format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables");
                let _ = std::fs::write(path, "0");
            }
        });
        let macs = Macs {
            client: client.mac("eth0")?,
            node: node.mac("bridge")?,
            spy: spy.mac("eth0")?,
        };
        let scene = Self {
            wire: Wire::open(&client, "eth0")?,
            spy_wire: Wire::open(&spy, "eth0")?,
            macs,
            _server: Agent::start(&node)?,
            client,
            node,
        };
        // The bridge learns where the spy is, the node where the client is.
        scene.spy_wire.send(&arp_request(macs.spy, SPY4, NODE4))?;
        scene.wire.send(&arp_request(macs.client, CLIENT4, NODE4))?;
        let client6 = macs.client.map(|b| format!("{b:02x}")).join(":");
        scene.node.ip(&format!(
            "neigh replace {CLIENT4} lladdr {client6} dev bridge nud permanent\n\
             neigh replace {CLIENT6} lladdr {client6} dev bridge nud permanent\n"
        ))?;
        scene.wire.receive(QUIET)?;
        Ok(scene)
    }

    /// Sends every frame on its own and notes what came of it. As many frames are waited for as came
    /// `before`: some are a process's answers, which gets its time when it does. Where nobody knows yet,
    /// silence must be long.
    fn outcomes(&self, before: &[Outcome]) -> anyhow::Result<Vec<Outcome>> {
        let quiet = Duration::from_millis(if before.is_empty() { 200 } else { 20 });
        self.wire.receive(QUIET)?;
        self.spy_wire.receive(quiet)?;
        let frames = frames(self.macs);
        let outcomes = frames.into_iter().enumerate().map(|(i, (name, frame))| {
            let before = before.get(i);
            self.wire.send(&frame)?;
            let expected = before.map_or(0, |outcome| outcome.answered.len());
            let answered = self.receive(&self.wire, quiet, expected)?;
            let expected = before.map_or(0, |outcome| outcome.passed.len());
            let passed = self.receive(&self.spy_wire, quiet / 4, expected)?;
            Ok(Outcome {
                name,
                passed,
                answered: answered.into_iter().map(without_chance).collect(),
            })
        });
        outcomes.collect()
    }

    /// Frames received until as many as expected are there, or 3 s are over, and until silence.
    fn receive(
        &self,
        wire: &Wire,
        quiet: Duration,
        expected: usize,
    ) -> anyhow::Result<Vec<Vec<u8>>> {
        let end = Instant::now() + patience(Duration::from_secs(3));
        let mut frames = Vec::new();
        loop {
            let ours = |frame: &Vec<u8>| !is_chatter(frame, self.macs.client);
            frames.extend(wire.receive(quiet)?.into_iter().filter(ours));
            if frames.len() >= expected || Instant::now() > end {
                return Ok(frames);
            }
        }
    }

    fn daemon(&self, xdp: &'static str) -> anyhow::Result<Daemon> {
        let mut services = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let mut service = Service::new(&format!("s-{protocol}").to_lowercase(), protocol);
            service.health = "{type: none}";
            service.listen = vec![(VIP4, SERVICE_PORT).into(), (VIP6, SERVICE_PORT).into()];
            service.backends = vec![
                ((SPY4, SERVICE_PORT).into(), 1),
                ((SPY6, SERVICE_PORT).into(), 1),
            ];
            services.push(service);
        }
        let config = Config {
            interfaces: vec!["client".to_owned()],
            node: Vec::new(),
            xdp,
            services,
        };
        Daemon::start(&self.node, &config)
    }
}

const CLIENT4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const NODE4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const SPY4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
const VIP4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
const OTHER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xc, 0, 0, 0, 0, 0, 2);
const NODE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xc, 0, 0, 0, 0, 0, 1);
const SPY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xc, 0, 0, 0, 0, 0, 3);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x200);

/// The frames, each with a name.
fn frames(macs: Macs) -> Vec<(&'static str, Vec<u8>)> {
    let mut frames = to_the_node(macs);
    frames.extend(past_the_node(macs));
    frames.extend(malformed(macs));
    frames
}

/// Questions that the node itself answers.
fn to_the_node(macs: Macs) -> Vec<(&'static str, Vec<u8>)> {
    let v4 = |protocol, payload: &[u8]| {
        let packet = ip(CLIENT4.into(), NODE4.into(), protocol, payload);
        ethernet(macs.node, macs.client, IPV4, &packet)
    };
    let v6 = |protocol, payload: &[u8]| {
        let packet = ip(CLIENT6.into(), NODE6.into(), protocol, payload);
        ethernet(macs.node, macs.client, IPV6, &packet)
    };
    let (client4, client6): (IpAddr, IpAddr) = (CLIENT4.into(), CLIENT6.into());
    let (node4, node6): (IpAddr, IpAddr) = (NODE4.into(), NODE6.into());
    vec![
        ("ARP request", arp_request(macs.client, CLIENT4, NODE4)),
        (
            "neighbour solicitation",
            neighbour_solicitation(macs.client, CLIENT6, NODE6),
        ),
        (
            "ping",
            v4(ICMP, &echo_request(client4, node4, b"ping of the node")),
        ),
        (
            "ping6",
            v6(ICMPV6, &echo_request(client6, node6, b"ping of the node")),
        ),
        (
            "SYN to the node's server at a service's port",
            v4(TCP, &tcp((client4, 3001), (node4, SERVICE_PORT), SYN, &[])),
        ),
        (
            "SYN to the node's server at a service's port, IPv6",
            v6(TCP, &tcp((client6, 3001), (node6, SERVICE_PORT), SYN, &[])),
        ),
        (
            "SYN to the node's server at a port no service uses",
            v4(TCP, &tcp((client4, 3002), (node4, 8080), SYN, &[])),
        ),
        (
            "SYN to a closed port",
            v4(TCP, &tcp((client4, 3003), (node4, 9), SYN, &[])),
        ),
        (
            "SYN to a closed port, IPv6",
            v6(TCP, &tcp((client6, 3003), (node6, 9), SYN, &[])),
        ),
        (
            "datagram to the node's server at a service's port",
            v4(UDP, &udp((client4, 3004), (node4, SERVICE_PORT), b"hello")),
        ),
        (
            "datagram to the node's server at a service's port, IPv6",
            v6(UDP, &udp((client6, 3004), (node6, SERVICE_PORT), b"hello")),
        ),
    ]
}

/// Frames that the bridge hands on to the spy.
fn past_the_node(macs: Macs) -> Vec<(&'static str, Vec<u8>)> {
    let v4 = |packet: &[u8]| ethernet(macs.spy, macs.client, IPV4, packet);
    let v6 = |packet: &[u8]| ethernet(macs.spy, macs.client, IPV6, packet);
    let (client4, client6): (IpAddr, IpAddr) = (CLIENT4.into(), CLIENT6.into());
    let (other4, other6): (IpAddr, IpAddr) = (OTHER4.into(), OTHER6.into());
    let (vip4, vip6): (IpAddr, IpAddr) = (VIP4.into(), VIP6.into());
    let syn4 = |to, port| {
        ip(
            client4,
            to,
            TCP,
            &tcp((client4, 3010), (to, port), SYN, &[]),
        )
    };
    let syn6 = |to, port| {
        ip(
            client6,
            to,
            TCP,
            &tcp((client6, 3010), (to, port), SYN, &[]),
        )
    };
    // A reply of a backend's port, from an address that is no backend.
    let reply4 = ip(
        other4,
        client4,
        TCP,
        &tcp((other4, SERVICE_PORT), (client4, 3010), ACK, b"x"),
    );
    let sctp = [0x0b, 0xc2, 0x1b, 0x58, 0, 0, 0, 0, 1, 2, 3, 4, 1, 0, 0, 4];
    vec![
        (
            "TCP, service's port, other address",
            v4(&syn4(other4, SERVICE_PORT)),
        ),
        (
            "TCP, service's port, other address, IPv6",
            v6(&syn6(other6, SERVICE_PORT)),
        ),
        (
            "TCP, service's address, other port",
            v4(&syn4(vip4, OTHER_PORT)),
        ),
        (
            "TCP, service's address, other port, IPv6",
            v6(&syn6(vip6, OTHER_PORT)),
        ),
        ("TCP from a backend's port, other address", v4(&reply4)),
        (
            "UDP, service's port, other address",
            v4(&ip(
                client4,
                other4,
                UDP,
                &udp((client4, 3011), (other4, SERVICE_PORT), b"udp"),
            )),
        ),
        ("VLAN tag", tagged(v4(&syn4(other4, SERVICE_PORT)), VLAN, 7)),
        (
            "VLAN tag with priority, IPv6",
            tagged(v6(&syn6(other6, 80)), VLAN, 0x6007),
        ),
        (
            "two VLAN tags",
            tagged(tagged(v4(&syn4(other4, 80)), VLAN, 7), SERVICE_VLAN, 8),
        ),
        (
            "three VLAN tags",
            tagged(
                tagged(tagged(v4(&syn4(vip4, SERVICE_PORT)), VLAN, 1), VLAN, 2),
                VLAN,
                3,
            ),
        ),
        (
            "SCTP to a service's address and port",
            v4(&ip(client4, vip4, SCTP, &sctp)),
        ),
        (
            "SCTP to a service's address and port, IPv6",
            v6(&ip(client6, vip6, SCTP, &sctp)),
        ),
        (
            "GRE",
            v4(&ip(client4, vip4, 47, &[0, 0, 8, 0, 0x45, 0, 0, 0])),
        ),
        ("fragment of another's packet", {
            let mut packet = ipv4(CLIENT4, OTHER4, UDP, &[], &[7; 64]);
            packet[6..8].copy_from_slice(&[0x20, 0x08]);
            v4(&packet)
        }),
        (
            "IPv4 options",
            v4(&ipv4(
                CLIENT4,
                OTHER4,
                UDP,
                &[1; 8],
                &udp((client4, 1), (other4, 2), b"options"),
            )),
        ),
        (
            "IPv6 extension headers",
            v6(&ipv6(
                CLIENT6,
                OTHER6,
                0,
                &[&[60, 0, 1, 4, 0, 0, 0, 0][..], &[59, 0, 1, 4, 0, 0, 0, 0]].concat(),
            )),
        ),
        (
            "unknown EtherType",
            ethernet(macs.spy, macs.client, 0x88b5, &[9; 50]),
        ),
        (
            "length instead of EtherType",
            ethernet(macs.spy, macs.client, 46, &[0x42; 46]),
        ),
        (
            "broadcast",
            ethernet([0xff; 6], macs.client, 0x88b5, &[5; 50]),
        ),
        ("no addressee on the node", {
            let packet = ip(
                client4,
                other4,
                UDP,
                &udp((client4, 1), (other4, SERVICE_PORT), b"?"),
            );
            ethernet(macs.spy, macs.client, IPV4, &packet)
        }),
    ]
}

/// Cut and wrong frames to a service's address, as far as they let one tell.
fn malformed(macs: Macs) -> Vec<(&'static str, Vec<u8>)> {
    let v4 = |packet: &[u8]| ethernet(macs.spy, macs.client, IPV4, packet);
    let v6 = |packet: &[u8]| ethernet(macs.spy, macs.client, IPV6, packet);
    let (client4, client6): (IpAddr, IpAddr) = (CLIENT4.into(), CLIENT6.into());
    let (vip4, vip6): (IpAddr, IpAddr) = (VIP4.into(), VIP6.into());
    let syn4 = ip(
        client4,
        vip4,
        TCP,
        &tcp((client4, 3020), (vip4, SERVICE_PORT), SYN, &[]),
    );
    let syn6 = ip(
        client6,
        vip6,
        TCP,
        &tcp((client6, 3020), (vip6, SERVICE_PORT), SYN, &[]),
    );
    let datagram = ip(
        client4,
        vip4,
        UDP,
        &udp((client4, 3021), (vip4, SERVICE_PORT), b"data"),
    );
    let changed = |packet: &[u8], at: usize, value: u8| {
        let mut packet = packet.to_vec();
        packet[at] = value;
        packet
    };
    vec![
        ("Ethernet header only", v4(&[])),
        ("IPv4 header cut at 10 bytes", v4(&syn4[..10])),
        ("IPv4 without a TCP header", v4(&syn4[..20])),
        ("TCP header cut before the ports end", v4(&syn4[..23])),
        ("TCP header cut at 12 bytes", v4(&syn4[..32])),
        ("UDP header cut at 6 bytes", v4(&datagram[..26])),
        ("IPv4 header length 4", v4(&changed(&syn4, 0, 0x44))),
        (
            "IPv4 header longer than the packet",
            v4(&changed(&syn4, 0, 0x4f)),
        ),
        ("IPv4 version 5", v4(&changed(&syn4, 0, 0x55))),
        (
            "IPv4 total length beyond the frame",
            v4(&changed(&syn4, 2, 0x05)),
        ),
        (
            "IPv4 total length shorter than its header",
            v4(&changed(&syn4, 3, 10)),
        ),
        ("TCP data offset 2", v4(&changed(&syn4, 32, 0x20))),
        (
            "TCP data offset beyond the packet",
            v4(&changed(&syn4, 32, 0xf0)),
        ),
        ("IPv6 header cut at 20 bytes", v6(&syn6[..20])),
        ("IPv6 without a TCP header", v6(&syn6[..40])),
        ("IPv6 TCP header cut at 12 bytes", v6(&syn6[..52])),
        ("IPv6 version 4", v6(&changed(&syn6, 0, 0x40))),
        (
            "IPv6 payload length beyond the frame",
            v6(&changed(&syn6, 4, 0x05)),
        ),
        (
            "IPv6 extension header beyond the packet",
            v6(&ipv6(CLIENT6, VIP6, 0, &[6, 200, 1, 4, 0, 0, 0, 0])),
        ),
        (
            "IPv6 extension header cut",
            v6(&ipv6(CLIENT6, VIP6, 60, &[6])),
        ),
        (
            "VLAN tag cut, which the kernel drops",
            ethernet(macs.spy, macs.client, VLAN, &[0, 7]),
        ),
        (
            "VLAN tag on a cut packet",
            ethernet(macs.spy, macs.client, VLAN, &[0, 7, 8, 0, 0x45, 0]),
        ),
        ("IPv6 EtherType on IPv4", v6(&syn4)),
    ]
}

/// Frames that the node and the bridge send on their own: MLD reports, and ARP requests.
fn is_chatter(frame: &[u8], client: Mac) -> bool {
    let from_client = frame.get(6..12) == Some(&client[..]);
    let report = frame.starts_with(&[0x33, 0x33]) && frame.get(20) == Some(&0);
    let question = frame.get(12..14) == Some(&[0x08, 0x06]) && frame.get(20..22) == Some(&[0, 1]);
    !from_client && (report || question)
}

/// An answer of the node without IPv4 identification and checksum, initial sequence number,
/// timestamps and checksum of TCP: the kernel draws them by chance.
fn without_chance(mut frame: Vec<u8>) -> Vec<u8> {
    let (network, protocol_at, length) = match frame.get(12..14) {
        Some([0x08, 0x00]) => (14, 23, 20),
        Some([0x86, 0xdd]) => (14, 20, 40),
        _ => return frame,
    };
    if length == 20 {
        frame[network + 4..network + 6].fill(0);
        frame[network + 10..network + 12].fill(0);
    }
    if frame[protocol_at] == TCP {
        let segment = network + length;
        frame[segment + 4..segment + 8].fill(0);
        frame[segment + 16..segment + 18].fill(0);
    }
    frame
}

#[test]
fn foreign_frames_pass_as_without_lbd() {
    let scene = Scene::new().unwrap();
    let before = scene.outcomes(&[]).unwrap();
    for outcome in &before {
        let seen = outcome.passed.len() + outcome.answered.len();
        let dropped_by_kernel = outcome.name.ends_with("which the kernel drops");
        assert_ne!(seen > 0, dropped_by_kernel, "without lbd: {outcome:?}");
    }
    let again = scene.outcomes(&before).unwrap();
    assert_same(&before, &again, "sent twice without lbd");
    for xdp in ["native", "generic", "off"] {
        let daemon = scene.daemon(xdp).unwrap();
        let with = scene.outcomes(&before).unwrap();
        assert_same(&before, &with, &format!("xdp {xdp}"));
        note(format!(
            "xdp {xdp}: {} frames, all as without lbd",
            with.len()
        ));
        real_connections(&scene);
        drop(daemon);
        let after = scene.outcomes(&before).unwrap();
        assert_same(&before, &after, "after lbd --cleanup");
    }
}

fn assert_same(before: &[Outcome], after: &[Outcome], when: &str) {
    let hex = |frames: &[Vec<u8>]| -> Vec<String> {
        let digits = |f: &Vec<u8>| f.iter().map(|b| format!("{b:02x}")).collect();
        frames.iter().map(digits).collect()
    };
    let mut differences = String::new();
    for (before, after) in before.iter().zip(after).filter(|(a, b)| a != b) {
        for outcome in [before, after] {
            let (passed, answered) = (hex(&outcome.passed), hex(&outcome.answered));
            let name = outcome.name;
            differences += &format!("\n{name}: passed {passed:?}, answered {answered:?}");
        }
    }
    assert!(
        differences.is_empty(),
        "{when}: two lines each, without and with:{differences}"
    );
}

/// Conversations of real programs with the node's own server, at a service's port.
fn real_connections(scene: &Scene) {
    let client = &scene.client;
    for (protocol, family) in [(Protocol::Tcp, Family::V4), (Protocol::Udp, Family::V4)] {
        let address = Ipv4Addr::new(10, 0, 0, 4);
        // Present only meanwhile: the client's kernel must not answer the frames of the test.
        client.add_address("eth0", address.into(), 24).unwrap();
        let target = (NODE4, ECHO_PORT).into();
        let answer = client.run(|| ask_once(protocol, any_port(address.into()), target, "hello"));
        // Later on nobody would acknowledge what the server says, and it would say it again.
        let ended = eventually(Duration::from_secs(10), || !has_open_connection(client));
        client
            .ip(&format!("addr del {address}/24 dev eth0"))
            .unwrap();
        let answer = answer.unwrap_or_else(|e| panic!("{protocol} {family}: {e}"));
        assert_eq!(answer.backend, "node");
        assert!(ended, "{protocol} {family}: the server does not close");
    }
}

/// Whether the other end of a TCP connection of the host's has yet to be heard of.
fn has_open_connection(host: &Host) -> bool {
    stacks::proc_net(host, "tcp").lines().any(|line| {
        let state = line.split_whitespace().nth(3);
        // ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, CLOSING.
        state.is_some_and(|state| ["01", "04", "05", "08", "0B"].contains(&state))
    })
}
