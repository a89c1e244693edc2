//! Addresses that cannot be listened on or forwarded to.

use std::net::{IpAddr, SocketAddr};

/// Why packets to `address` cannot be balanced.
pub(crate) fn listen_fault(address: SocketAddr) -> Option<String> {
    if address.ip().is_loopback() {
        return Some(
            "is a loopback address; listen on an address that other hosts reach".to_owned(),
        );
    }
    common_fault(address)
}

/// Why packets cannot be forwarded to `address`.
pub(crate) fn backend_fault(address: SocketAddr) -> Option<String> {
    common_fault(address)
}

fn common_fault(address: SocketAddr) -> Option<String> {
    if address.port() == 0 {
        return Some("has port 0; write a port from 1 to 65535".to_owned());
    }
    let fault = match address {
        SocketAddr::V4(v4) if v4.ip().is_broadcast() => "is the broadcast address",
        SocketAddr::V6(v6) if v6.scope_id() != 0 || v6.flowinfo() != 0 => "has a zone",
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => {
            "is link-local, which means nothing without a device"
        }
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => return Some(format!("is an IPv4 address in IPv6 form; write {v4}")),
            None => general_fault(address.ip())?,
        },
        SocketAddr::V4(_) => general_fault(address.ip())?,
    };
    Some(format!("{fault}; write the address of one host"))
}

fn general_fault(ip: IpAddr) -> Option<&'static str> {
    if ip.is_unspecified() {
        Some("is the unspecified address")
    } else if ip.is_multicast() {
        Some("is a multicast address")
    } else {
        None
    }
}
