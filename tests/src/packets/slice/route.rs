//! The standard world's routes, as the namespace of [`super::super::kernel`] has them.

use std::net::IpAddr;

use lb_common::{
    abi::{NextHop, from_bytes, link},
    path::Route,
};

use super::super::world::{self, Addresses, Mac};

/// Numbers of the devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Devices {
    pub client_side: u32,
    pub backend_side: u32,
}

impl Default for Devices {
    /// Any two will do.
    fn default() -> Self {
        Self {
            client_side: 11,
            backend_side: 12,
        }
    }
}

/// Where packets from `src` to `dst` go.
pub(super) fn route(devices: Devices, src: IpAddr, dst: IpAddr) -> (Route, NextHop) {
    let none = NextHop::default();
    let a = Addresses { v6: dst.is_ipv6() };
    if is_never_forwarded(src) && a.v6 || is_never_forwarded(dst) || is_local(a, dst) {
        return (Route::Stack, none);
    }
    let same = |other: std::net::SocketAddr| other.ip() == dst;
    let lies_in = |prefix| covers(prefix, dst);
    if lies_in(a.black_holes()) {
        return (Route::Refused, none);
    }
    let [routed, narrow] = a.routes();
    let (gateway, mtu) = match (lies_in(routed), lies_in(narrow)) {
        (true, _) => (link::GATEWAY, world::MTU),
        (_, true) => (link::GATEWAY, world::NARROW_MTU),
        _ => (0, world::MTU),
    };
    if gateway != 0 || lies_in(a.backends()) {
        let mut hop = neighbour(devices.backend_side, world::TO_BACKEND, mtu);
        hop.link |= gateway;
        let is_known = gateway != 0 || (1..64).any(|last| same(a.backend(last, 0)));
        return known(is_known, hop);
    }
    if !lies_in(a.clients()) {
        return (Route::Stack, none);
    }
    let mtu = match lies_in(a.narrow_clients()) {
        true => world::NARROW_MTU,
        false => world::MTU,
    };
    let neighbours = [a.client(0), a.neighbour_of_clients(0), a.narrow_client(0)];
    let hop = neighbour(devices.client_side, world::TO_CLIENT, mtu);
    known(neighbours.into_iter().any(same), hop)
}

/// The kernel tells no more than the device of a neighbour whose address it does not know.
fn known(is_known: bool, hop: NextHop) -> (Route, NextHop) {
    if is_known {
        return (Route::Neighbour, hop);
    }
    let hop = NextHop {
        macs: [0; 3],
        link: hop.link & !link::MTU | world::MTU,
        ..hop
    };
    (Route::Unresolved, hop)
}

/// Loopback, link-local and multicast addresses.
fn is_never_forwarded(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_multicast() || v6.is_unicast_link_local(),
    }
}

/// Addresses of the node, and those that mean every host of a network.
fn is_local(a: Addresses, address: IpAddr) -> bool {
    let own = [a.node(0), a.second_node(0), a.node_to_clients(0)];
    own.iter().any(|own| own.ip() == address) || a.groups().contains(&address)
}

fn covers((network, length): (IpAddr, u32), address: IpAddr) -> bool {
    let bits = |address| match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let ((network, size), (address, other)) = (bits(network), bits(address));
    let differ = (network ^ address).checked_shr(128 - length).unwrap_or(0);
    size == other && differ == 0
}

fn neighbour(ifindex: u32, (dst, src): (Mac, Mac), mtu: u32) -> NextHop {
    let bytes = [dst, src].concat();
    NextHop {
        ifindex,
        epoch: 0,
        macs: from_bytes(&bytes).unwrap_or_default(),
        link: link::new(mtu, true),
    }
}
