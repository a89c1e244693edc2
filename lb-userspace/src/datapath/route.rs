//! How the node reaches an address: one question to the kernel's routing tables.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result};

use super::{
    Route,
    netlink::{Message, Socket, attribute, put_attribute},
};

/// Of linux/rtnetlink.h; libc has them for glibc alone.
const RTM_F_FIB_MATCH: u32 = 0x2000;
const RTA_VIA: u16 = 18;

/// Whoever asks for routes, with the socket for it: a new one for each of 20,000 questions takes
/// longer than the answers.
#[derive(Default)]
pub(super) struct Routes {
    socket: Mutex<Option<Socket>>,
}

impl Routes {
    pub(super) fn route(&self, address: IpAddr) -> Result<Route> {
        self.ask(address, route)
    }

    /// Whether the address is the node's own.
    pub(super) fn is_own(&self, address: IpAddr) -> Result<bool> {
        self.ask(address, |socket, address| {
            Ok(look_up(socket, address, 0)?.is_some_and(|route| is_local(&route)))
        })
    }

    fn ask<T>(
        &self,
        address: IpAddr,
        question: impl FnOnce(&Socket, IpAddr) -> io::Result<T>,
    ) -> Result<T> {
        let ask = || -> io::Result<T> {
            let mut kept = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
            // After an error answers may be left in it, so it is not kept.
            let socket = match kept.take() {
                Some(socket) => socket,
                None => Socket::open(libc::NETLINK_ROUTE)?,
            };
            let answer = question(&socket, address)?;
            *kept = Some(socket);
            Ok(answer)
        };
        ask().with_context(|| format!("asking the kernel for the route to {address}"))
    }
}

/// All addresses of this node, in no order.
///
/// # Errors
/// If the kernel does not tell.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    // struct ifaddrmsg: any family, and nothing else asked for.
    let socket = Socket::open(libc::NETLINK_ROUTE)?;
    let messages = socket.request(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[0; 8])?;
    let address = |message: &Message| {
        let attributes = message.body.get(8..)?;
        // Of a point-to-point link `IFA_ADDRESS` is the far end.
        let local = attribute(attributes, libc::IFA_LOCAL);
        ip(local.or_else(|| attribute(attributes, libc::IFA_ADDRESS))?)
    };
    Ok(messages.iter().filter_map(address).collect())
}

/// Asks twice: the resolved route tells the source address, the matched entry the prefix length.
fn route(socket: &Socket, address: IpAddr) -> io::Result<Route> {
    let Some(resolved) = look_up(socket, address, 0)? else {
        return Ok(Route {
            source: None,
            returns_here: false,
            is_neighbour: false,
        });
    };
    let matched = look_up(socket, address, RTM_F_FIB_MATCH)?;
    Ok(Route {
        source: attribute(tail(&resolved), libc::RTA_PREFSRC).and_then(ip),
        returns_here: is_local(&resolved) || matched.is_some_and(|m| is_host_route(&m)),
        is_neighbour: !is_local(&resolved) && !has_gateway(&resolved),
    })
}

/// `None` if the node has no route to `address`, or one that refuses.
fn look_up(socket: &Socket, address: IpAddr, flags: u32) -> io::Result<Option<Message>> {
    let (family, octets) = match address {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    // struct rtmsg: family, destination length, six more bytes, flags.
    let mut body = vec![family as u8, octets.len() as u8 * 8, 0, 0, 0, 0, 0, 0];
    body.extend(flags.to_ne_bytes());
    put_attribute(&mut body, libc::RTA_DST, &octets);
    match socket.request(libc::RTM_GETROUTE, 0, &body) {
        Ok(answer) => Ok(answer
            .into_iter()
            .next()
            .filter(|m| matches!(kind(m), libc::RTN_UNICAST | libc::RTN_LOCAL))),
        // Unreachable, prohibit and blackhole routes answer with these (RTN_* in
        // net/ipv4/fib_semantics.c, fib_props).
        Err(error) => match error.raw_os_error() {
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL) => Ok(None),
            _ => Err(error),
        },
    }
}

fn kind(message: &Message) -> u8 {
    message.body.get(7).copied().unwrap_or_default()
}

fn tail(message: &Message) -> &[u8] {
    message.body.get(12..).unwrap_or_default()
}

fn is_local(message: &Message) -> bool {
    kind(message) == libc::RTN_LOCAL
}

/// One address, on the link: how container networks route to a pod.
fn is_host_route(message: &Message) -> bool {
    let full = match message.body.first().map(|f| i32::from(*f)) {
        Some(libc::AF_INET) => 32,
        _ => 128,
    };
    message.body.get(1) == Some(&full) && !has_gateway(message)
}

fn has_gateway(message: &Message) -> bool {
    [libc::RTA_GATEWAY, RTA_VIA, libc::RTA_MULTIPATH]
        .iter()
        .any(|kind| attribute(tail(message), *kind).is_some())
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(octets).map(|o| Ipv4Addr::from(o).into());
    let v6 = || <[u8; 16]>::try_from(octets).map(|o| Ipv6Addr::from(o).into());
    v4().or_else(|_| v6()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::testing::{ip_commands, isolated};

    /// The node: 10.0.0.1/24 and 2001:db8::1/64 on `one`, a pod behind `pod`.
    #[test]
    fn sources_and_pods_are_found() {
        isolated(|_| {
            ip_commands(
                "link set lo up
                 link add one type veth peer name far
                 link add pod type veth peer name eth
                 link set one up
                 link set far up
                 link set pod up
                 link set eth up
                 addr add 10.0.0.1/24 dev one
                 addr add 2001:db8::1/64 dev one nodad
                 route add 10.9.0.7/32 dev pod src 10.0.0.1
                 route add 10.9.0.8/32 via 10.0.0.2
                 route add default via 10.0.0.254
                 route add unreachable 10.66.0.0/16
                 -6 route add 2001:db8:9::7/128 dev pod",
            );
            let node = |source: &str, returns_here, is_neighbour| Route {
                source: Some(source.parse().unwrap()),
                returns_here,
                is_neighbour,
            };
            let routes = Routes::default();
            let ask = |address: &str| routes.route(address.parse().unwrap()).unwrap();
            assert_eq!(ask("10.0.0.9"), node("10.0.0.1", false, true));
            assert_eq!(ask("10.0.0.1"), node("10.0.0.1", true, false));
            assert_eq!(ask("127.0.0.1"), node("127.0.0.1", true, false));
            assert_eq!(ask("10.9.0.7"), node("10.0.0.1", true, true));
            assert_eq!(ask("10.9.0.8"), node("10.0.0.1", false, false));
            assert_eq!(ask("198.51.100.1"), node("10.0.0.1", false, false));
            assert_eq!(ask("2001:db8::9"), node("2001:db8::1", false, true));
            assert!(ask("2001:db8:9::7").returns_here);
            let none = Route {
                source: None,
                returns_here: false,
                is_neighbour: false,
            };
            assert_eq!(ask("10.66.0.1"), none);
            assert_eq!(ask("2001:db9::1"), none);

            let mut own = own_addresses().unwrap();
            own.retain(|ip| !ip.is_loopback() && !ip.to_string().starts_with("fe80"));
            own.sort_unstable();
            let own: Vec<_> = own.iter().map(ToString::to_string).collect();
            assert_eq!(own, ["10.0.0.1", "2001:db8::1"]);
        });
    }
}
