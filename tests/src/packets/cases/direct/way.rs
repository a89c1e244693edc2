//! The ways of direct return, and what a packet looks like that leaves by one.

use super::super::{Connection, Table};
use crate::packets::build::{ACK, Packet, SYN, Transport};
use crate::packets::world::{self, Addresses, port, slot};
use crate::packets::{Expect, Step};
use lb_common::abi::{Be16, FlowKey, V4, V6, protocol};
use std::net::{IpAddr, SocketAddr};

/// One way of direct return: how packets of one client to one service leave.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) name: &'static str,
    /// TCP and UDP through it.
    pub(super) tcp: Connection,
    pub(super) udp: Connection,
    pub(super) slot: u32,
    pub(super) udp_slot: u32,
    pub(super) outer: Option<Outer>,
    /// Of the UDP service, whose backend may have another address.
    pub(super) udp_outer: Option<Outer>,
}

/// Addresses of the tunnel.
#[derive(Clone, Copy)]
pub(super) struct Outer {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
}

impl Outer {
    pub(super) fn between(source: SocketAddr, backend: SocketAddr) -> Self {
        Self {
            src: source.ip(),
            dst: backend.ip(),
        }
    }

    pub(super) fn overhead(self) -> usize {
        if self.dst.is_ipv6() { 40 } else { 20 }
    }
}

pub(super) fn ways(table: &Table) -> Vec<Way> {
    let a = table.addresses;
    let v6 = Addresses { v6: true };
    let to = |port| Connection::new(a.client(40_070), a.vip(port), a.vip(port));
    let dns_l2 = to(port::DNS_L2).udp();
    let dns_tunnel = to(port::DNS_TUNNEL).udp();
    let dns_outer = Outer::between(a.node(0), a.backend(22, 0));
    vec![
        Way {
            name: "l2",
            tcp: to(port::L2),
            udp: dns_l2,
            slot: table.slot(slot::L2),
            udp_slot: table.slot(slot::DNS_L2),
            outer: None,
            udp_outer: None,
        },
        Way {
            name: "tunnel",
            tcp: to(port::TUNNEL),
            udp: dns_tunnel.clone(),
            slot: table.slot(slot::TUNNEL),
            udp_slot: table.slot(slot::DNS_TUNNEL),
            outer: Some(Outer::between(a.node(0), a.routed(0))),
            udp_outer: Some(dns_outer),
        },
        Way {
            name: "ipv6_tunnel",
            tcp: to(port::CROSSED),
            udp: dns_tunnel,
            slot: slot::CROSSED + world::V6_SLOTS,
            udp_slot: table.slot(slot::DNS_TUNNEL),
            outer: Some(Outer::between(v6.node(0), v6.backend(26, 0))),
            udp_outer: Some(dns_outer),
        },
    ]
}

/// The low 32 bits in which flows' outer headers differ: the upper half of the flow's hash.
pub(super) fn label(packet: &Packet) -> u32 {
    let protocol = match packet.transport {
        Transport::Udp { .. } => protocol::UDP,
        _ => protocol::TCP,
    };
    let (src_port, dst_port) = (Be16::new(packet.src.port()), Be16::new(packet.dst.port()));
    let hash = match (packet.src.ip(), packet.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let (src, dst) = (V4::from(src), V4::from(dst));
            lb_common::hash::five_tuple(&FlowKey::new(src, src_port, dst, dst_port, protocol))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let (src, dst) = (V6::from(src), V6::from(dst));
            lb_common::hash::five_tuple(&FlowKey::new(src, src_port, dst, dst_port, protocol))
        }
        _ => panic!("both ends are of one family"),
    };
    (hash >> 32) as u32
}

/// `packet` as it leaves: one hop further, to the backend's MAC, perhaps in a tunnel.
pub(super) fn sent(packet: &Packet, outer: Option<Outer>) -> Vec<u8> {
    let inner = packet.moved(world::TO_BACKEND, packet.src, packet.dst);
    match outer {
        None => inner.bytes(),
        Some(outer) => inside(&inner, outer, label(packet)),
    }
}

/// `inner` in the tunnel `outer`; what lies behind the packet (padding) stays there.
pub(super) fn inside(inner: &Packet, outer: Outer, label: u32) -> Vec<u8> {
    let bytes = inner.bytes();
    let ip = &bytes[14..bytes.len() - inner.trailer.len()];
    let number = if inner.src.is_ipv6() { 41 } else { 4 };
    let mut out = inner
        .moved(
            inner.macs,
            SocketAddr::new(outer.src, 0),
            SocketAddr::new(outer.dst, 0),
        )
        .with(|packet| {
            packet.ttl = 64;
            packet.id = 0;
            packet.fragment = 0x4000;
            packet.options = Vec::new();
            packet.extensions = Vec::new();
            packet.transport = Transport::Other(number);
            packet.payload = ip.to_vec();
            packet.total_length = None;
        })
        .bytes();
    if outer.dst.is_ipv6() {
        let [_, a, b, c] = (label & 0xf_ffff).to_be_bytes();
        out[15] |= a;
        out[16] = b;
        out[17] = c;
    }
    out
}

impl Way {
    pub(super) fn forwards(&self, packet: Packet) -> Step {
        let out = sent(&packet, self.outer);
        Step::FromClient(packet.bytes(), Expect::Redirect(out))
    }

    pub(super) fn asks(&self, packet: Packet) -> Step {
        let out = sent(&packet, self.udp_outer);
        Step::FromClient(packet.bytes(), Expect::Redirect(out))
    }

    /// SYN, and the client's acknowledgement of an answer that does not come by.
    pub(super) fn opened(&self) -> Vec<Step> {
        let tcp = &self.tcp;
        vec![
            self.forwards(tcp.request(SYN)),
            self.forwards(tcp.request(ACK)),
        ]
    }

    pub(super) fn forget(&self) -> Step {
        let (src, dst) = (self.tcp.client, self.tcp.vip);
        Step::Known {
            src,
            dst,
            udp: false,
        }
    }
}
