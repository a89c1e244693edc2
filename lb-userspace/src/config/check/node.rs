//! `node:` and `admin:`.

use std::{
    collections::HashMap,
    net::IpAddr,
    ops::RangeInclusive,
    os::unix::ffi::OsStrExt,
    path::{Component, Path},
    time::Duration,
};

use lb_common::abi::MAX_SOURCES;

use super::{Item, Remarks};
use crate::{
    config::suggest::quoted,
    model::{Admin, Config, Interfaces, Limits, Node, Protocol, SnatPool, Timeouts, duration_text},
};

/// Highest `limits.connections` and `limits.handshakes`; beyond it a
/// table takes gigabytes.
pub(in crate::config) const MAX_FLOWS: u32 = 1 << 24;

/// Highest `limits.services`.
pub(in crate::config) const MAX_SERVICES: u32 = 1 << 16;

/// Highest `limits.backends`.
pub(in crate::config) const MAX_BACKENDS: u32 = 1 << 20;

/// Highest `limits.sources`.
pub(in crate::config) const MAX_PREFIXES: u32 = 1 << 20;

/// Shortest and longest timeout of a connection. The packet path's clock of 32 bits tells 24 days
/// apart at 1000 Hz.
const TIMEOUTS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(20 * 86_400);

/// Longest device name: IFNAMSIZ less its final NUL.
const MAX_INTERFACE: usize = 15;

/// Longest path of the socket: `sun_path` less its final NUL, and less what lbd puts behind the name of a
/// new one (`listen` in api/socket.rs).
const MAX_SOCKET_PATH: usize = 107 - ".new".len();

pub(super) fn node(node: &Node, remarks: &mut Remarks) {
    if let Interfaces::Named(names) = &node.interfaces {
        interfaces(names, remarks);
    }
    absolute("node.state_dir", &node.state_dir, remarks);
    absolute("node.bpffs", &node.bpffs, remarks);
    timeouts(&node.timeouts, remarks);
    snat(&node.snat, remarks);
    let Limits {
        connections,
        handshakes,
        services,
        backends,
        sources,
        clients,
    } = node.limits;
    for (item, value, max) in [
        ("node.limits.connections", connections, MAX_FLOWS),
        ("node.limits.handshakes", handshakes, MAX_FLOWS),
        ("node.limits.services", services, MAX_SERVICES),
        ("node.limits.backends", backends, MAX_BACKENDS),
        ("node.limits.sources", sources, MAX_PREFIXES),
        ("node.limits.clients", clients, MAX_FLOWS),
    ] {
        if !(1..=max).contains(&value) {
            let message = format!("`{item}` must be a number from 1 to {max}, not {value}");
            remarks.fault(Item::Setting(item), message);
        }
    }
}

/// Whether an address is the node's own is asked where the daemon runs.
fn snat(pool: &SnatPool, remarks: &mut Remarks) {
    let SnatPool { addresses, ports } = pool;
    let mut seen = HashMap::new();
    for (index, address) in addresses.iter().enumerate() {
        let item = Item::SnatAddress(index);
        let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() || link_local
        {
            let message = format!(
                "`snat_addresses`: backends cannot answer to {address}; write an address of this \
                 node that they reach"
            );
            remarks.fault(item, message);
        } else if let Some(&first) = seen.get(address) {
            let message = format!("`snat_addresses`: {address} is listed twice");
            remarks.conflict(item, Item::SnatAddress(first), message);
        } else {
            seen.insert(address, index);
        }
    }
    for is_v6 in [false, true] {
        let count = addresses.iter().filter(|a| a.is_ipv6() == is_v6).count();
        if count > MAX_SOURCES as usize {
            let message = format!(
                "`snat_addresses`: {count} addresses of one family, at most {MAX_SOURCES} are \
                 used; leave some out"
            );
            remarks.fault(Item::Setting("node.snat_addresses"), message);
        }
    }
    let item = Item::Setting("node.snat_ports");
    match *ports {
        Some((first, last)) if first > last => {
            let message = format!("`snat_ports`: {first} is behind {last}; write {last}-{first}");
            remarks.fault(item, message);
        }
        Some((0, _)) => remarks.fault(item, "`snat_ports`: there is no port 0; begin at 1"),
        _ => {}
    }
}

/// Which timeouts the daemon can keep.
fn timeouts(timeouts: &Timeouts, remarks: &mut Remarks) {
    let Timeouts {
        tcp_established,
        tcp_closing,
        tcp_closed,
        udp,
    } = *timeouts;
    for (item, value) in [
        ("node.timeouts.tcp_established", tcp_established),
        ("node.timeouts.tcp_closing", tcp_closing),
        ("node.timeouts.tcp_closed", tcp_closed),
        ("node.timeouts.udp", udp),
    ] {
        if !TIMEOUTS.contains(&value) {
            let (least, most) = (
                duration_text::format(*TIMEOUTS.start()),
                duration_text::format(*TIMEOUTS.end()),
            );
            let message = format!(
                "`{item}` must be from {least} to {most}, not {}; connections are looked at once \
                 a second",
                duration_text::format(value)
            );
            remarks.fault(Item::Setting(item), message);
        }
    }
}

pub(super) fn admin(admin: &Admin, remarks: &mut Remarks) {
    let Admin { socket, http } = admin;
    absolute("admin.socket", socket, remarks);
    if socket.as_os_str().len() > MAX_SOCKET_PATH {
        let message = format!(
            "`admin.socket`: a socket's path has at most {MAX_SOCKET_PATH} bytes, this one {}",
            socket.as_os_str().len()
        );
        remarks.fault(Item::Setting("admin.socket"), message);
    }
    let item = Item::Setting("admin.http");
    if http.port() == 0 {
        remarks.fault(
            item,
            "`admin.http` has port 0; write a port from 1 to 65535",
        );
    }
    if http.ip().is_multicast() {
        remarks.fault(
            item,
            "`admin.http` is a multicast address; write one of this node",
        );
    }
}

/// Whether the services fit the maps, and leave the admin address alone.
pub(super) fn fits_limits(config: &Config, remarks: &mut Remarks) {
    let Limits {
        services: max_services,
        backends: max_backends,
        ..
    } = config.node.limits;
    let services = config.services.len();
    if services > max_services as usize {
        let message =
            format!("{services} services, but `node.limits.services` is {max_services}; raise it");
        remarks.fault(Item::Setting("node.limits.services"), message);
    }
    let backends: usize = config.services.iter().map(|s| s.backends.len()).sum();
    if backends > max_backends as usize {
        let message =
            format!("{backends} backends, but `node.limits.backends` is {max_backends}; raise it");
        remarks.fault(Item::Setting("node.limits.backends"), message);
    }
    for (index, service) in config.services.iter().enumerate() {
        if service.protocol != Protocol::Tcp {
            continue;
        }
        if let Some(at) = service.listen.iter().position(|&l| l == config.admin.http) {
            let message = format!("{} is the address of `admin.http`", config.admin.http);
            remarks.conflict(
                Item::Listen(index, at),
                Item::Setting("admin.http"),
                message,
            );
        }
    }
}

fn interfaces(names: &[String], remarks: &mut Remarks) {
    if names.is_empty() {
        remarks.fault(
            Item::Setting("node.interfaces"),
            "`interfaces` names no device; write `auto` or a list such as [eth0]",
        );
    }
    let mut seen = HashMap::new();
    for (index, name) in names.iter().enumerate() {
        let item = Item::Interface(index);
        if let Some(fault) = interface_fault(name) {
            remarks.fault(item, format!("interface {} {fault}", quoted(name)));
        } else if let Some(&first) = seen.get(name) {
            let message = format!("interface {} is listed twice", quoted(name));
            remarks.conflict(item, Item::Interface(first), message);
        } else {
            seen.insert(name, index);
        }
    }
}

/// The kernel's own rule, `dev_valid_name` in net/core/dev.c.
fn interface_fault(name: &str) -> Option<String> {
    if name == "auto" {
        return Some("stands alone; write `interfaces: auto`".to_owned());
    }
    if name.len() > MAX_INTERFACE {
        return Some(format!("is longer than {MAX_INTERFACE} bytes"));
    }
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    let invalid = matches!(name, "" | "." | "..") || name.contains(forbidden);
    invalid.then(|| "is no device name".to_owned())
}

fn absolute(item: &'static str, path: &Path, remarks: &mut Remarks) {
    if let Some(fault) = path_fault(path) {
        remarks.fault(Item::Setting(item), format!("`{item}`: {fault}"));
    }
}

/// Why a path of the config is none, the path in front.
pub(in crate::config) fn path_fault(path: &Path) -> Option<String> {
    let shown = quoted(&path.to_string_lossy());
    let bytes = path.as_os_str().as_bytes();
    let fault = if !path.is_absolute() {
        "is no absolute path; begin it with /"
    } else if path.components().any(|part| part == Component::ParentDir) {
        "contains `..`; write it without"
    } else if path
        .to_str()
        .is_none_or(|text| text.contains(char::is_control))
        || bytes.is_empty()
    {
        "contains characters that a path cannot have here"
    } else {
        return None;
    };
    Some(format!("{shown} {fault}"))
}
