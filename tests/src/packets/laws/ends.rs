//! Who may be at both ends of what leaves, as the standard world has it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::LazyLock,
};

use lb_common::abi::{Backend, Be16, V4, V6, forwarding, protocol};

use super::{Law, hold, parse::Parsed};
use crate::packets::world::{self, Addresses};

/// A service as clients of one family see it.
struct Served {
    is_v6: bool,
    is_udp: bool,
    port: u16,
    forwarding: u8,
    backends: Vec<(SocketAddr, Backend)>,
}

static SERVED: LazyLock<Vec<Served>> = LazyLock::new(|| {
    let slots: Vec<_> = [false, true]
        .map(|v6| world::backends(Addresses { v6 }))
        .concat();
    let of = |listen: &world::Listen, is_v6| {
        let table = listen.table.iter().flatten();
        let drawn: Vec<u32> = table
            .map(|slot| listen.slot(*slot, Addresses { v6: is_v6 }))
            .collect();
        let own = slots.iter().filter(|(slot, backend)| {
            drawn.contains(slot) && backend.service == u32::from(listen.port)
        });
        Served {
            is_v6,
            is_udp: listen.udp,
            port: listen.port,
            forwarding: listen.forwarding,
            backends: own
                .map(|(_, backend)| (listens_at(backend), *backend))
                .collect(),
        }
    };
    let listens = world::listens();
    let both = listens
        .iter()
        .flat_map(|listen| [false, true].map(|is_v6| of(listen, is_v6)));
    both.collect()
});

fn ip(family: u8, words: [u32; 4]) -> IpAddr {
    match family {
        6 => V6(words).ip(),
        _ => V4(words[0]).ip(),
    }
}

fn listens_at(backend: &Backend) -> SocketAddr {
    SocketAddr::new(
        ip(backend.family, backend.address),
        Be16(backend.port).get(),
    )
}

pub(super) fn is_vip(address: IpAddr) -> bool {
    [false, true]
        .iter()
        .any(|v6| Addresses { v6: *v6 }.vip(0).ip() == address)
}

/// Services that packets of this family and protocol may be for; a later fragment may name none.
fn served<'p>(packet: &'p Parsed) -> impl Iterator<Item = &'static Served> + use<'p> {
    SERVED.iter().filter(|served| {
        let protocol = if served.is_udp {
            protocol::UDP
        } else {
            protocol::TCP
        };
        let is_its = protocol == packet.protocol || packet.is_later_fragment;
        served.is_v6 == packet.is_v6 && is_its
    })
}

/// Whether the packet was for a service, or came from a backend of one.
pub(super) fn concerns(packet: &Parsed) -> bool {
    let ports = packet.ports();
    served(packet).any(|served| {
        let is_for = is_vip(packet.dst()) && ports.is_some_and(|(_, dst)| dst == served.port);
        let is_of = |(backend, _): &(SocketAddr, _)| {
            ports.is_some_and(|(src, _)| SocketAddr::new(packet.src(), src) == *backend)
        };
        is_for || served.backends.iter().any(is_of)
    })
}

/// From a client to a backend of the service that it asked, or from that service to somebody for whom
/// one of its backends has an answer.
pub(super) fn translated(before: &Parsed, after: &Parsed) -> Law {
    let [was, is] = [before, after].map(|packet| {
        let ports = packet.ports().unwrap_or_default();
        (
            SocketAddr::new(packet.src(), ports.0),
            SocketAddr::new(packet.dst(), ports.1),
        )
    });
    // Ports of a later fragment are in another packet.
    let later = before.is_later_fragment;
    let same = |a: SocketAddr, b: SocketAddr| a.ip() == b.ip() && (later || a.port() == b.port());
    let own = Addresses { v6: before.is_v6 };
    // What stands for a client: itself, perhaps by another port, or the node.
    let hides = |end: SocketAddr, client: SocketAddr| {
        let by_port = SocketAddr::new(client.ip(), world::SNAT_PORT);
        let nodes = [
            own.node(world::SNAT_PORT),
            own.second_node(world::SNAT_PORT),
        ];
        same(end, client) || same(end, by_port) || nodes.iter().any(|node| same(end, *node))
    };
    let holds = served(before).any(|served| {
        let vip = own.vip(served.port);
        if served.forwarding == forwarding::DSR_L2 {
            return same(was.1, vip) && was == is;
        }
        if served.forwarding != forwarding::NAT {
            return false;
        }
        let one = |end: SocketAddr| {
            served
                .backends
                .iter()
                .any(|(backend, _)| same(*backend, end))
        };
        let is_asked = same(was.1, vip) && one(is.1) && hides(is.0, was.0);
        let is_answer = same(is.0, vip) && one(was.0) && hides(was.1, is.1);
        is_asked || is_answer
    });
    hold(holds, || format!("no service makes {is:?} of {was:?}"))
}

/// To a backend of the service that the packet is for, from the address that this backend's tunnel
/// begins at. Whose flow an error is about, and a later fragment of, is not asked.
pub(super) fn tunnelled(before: &Parsed, after: &Parsed) -> Law {
    hold(is_vip(before.dst()), || {
        "the packet inside was to no service".to_owned()
    })?;
    let port = before.ports().map(|(_, port)| port);
    let is_asked = |served: &&Served| {
        let protocol = if served.is_udp {
            protocol::UDP
        } else {
            protocol::TCP
        };
        let is_it = port.is_none_or(|port| (port, before.protocol) == (served.port, protocol));
        served.is_v6 == before.is_v6 && served.forwarding == forwarding::DSR_IPIP && is_it
    };
    let ends = |backend: &Backend| {
        let (src, dst) = (after.src(), after.dst());
        ip(backend.family, backend.address) == dst && begins(backend, src)
    };
    let mut asked = SERVED.iter().filter(is_asked);
    let holds = asked.any(|served| served.backends.iter().any(|(_, backend)| ends(backend)));
    hold(holds, || "the tunnel has other ends".to_owned())
}

fn begins(backend: &Backend, src: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let free = u128::from(u32::from_be(backend.spread));
    let source = ip(backend.family, backend.source);
    source.is_ipv6() == src.is_ipv6() && bits(source) & !free == bits(src) & !free
}
