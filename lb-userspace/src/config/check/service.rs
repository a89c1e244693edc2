//! One service, and services among each other.

use std::collections::{BTreeMap, HashMap};

use super::{
    Item, Remarks,
    address::{backend_fault, listen_fault},
};
use crate::{
    config::suggest::quoted,
    model::{Config, Forwarding, OnBackendDown, Prefix, Protocol, ServiceSpec, Snat},
};

/// Longest service name and label key, as in DNS labels.
const MAX_NAME: usize = 63;

/// Longest label value, in bytes.
const MAX_LABEL_VALUE: usize = 255;

pub(super) fn service(spec: &ServiceSpec, index: usize, remarks: &mut Remarks) {
    if !is_name(&spec.name) {
        let message = format!(
            "`name` {} must be 1 to {MAX_NAME} characters a-z, 0-9 and -, \
             beginning and ending with a letter or digit",
            quoted(&spec.name)
        );
        remarks.fault(Item::Name(index), message);
    }
    if spec.listen.is_empty() {
        let message = "`listen` is empty; write at least one IP:PORT";
        remarks.fault(Item::Listens(index), message);
    }
    for (at, listen) in spec.listen.iter().enumerate() {
        if let Some(fault) = listen_fault(*listen) {
            remarks.fault(
                Item::Listen(index, at),
                format!("`listen` {listen} {fault}"),
            );
        }
    }
    if spec.on_backend_down == OnBackendDown::Reset && spec.protocol == Protocol::Udp {
        let message = "`on_backend_down: reset` does nothing for UDP, whose flows move to another \
                       backend at once; remove it";
        remarks.warn(Item::OnBackendDown(index), message);
    }
    backends(spec, index, remarks);
    families(spec, index, remarks);
    manners(spec, index, remarks);
}

/// How it is served, whatever it is.
pub(in crate::config) fn manners(spec: &ServiceSpec, index: usize, remarks: &mut Remarks) {
    tunnel_source(spec, index, remarks);
    if spec.forwarding != Forwarding::Nat {
        direct(spec, index, remarks);
    }
}

/// Direct return: the backend gets what the client sent.
fn direct(spec: &ServiceSpec, index: usize, remarks: &mut Remarks) {
    let forwarding = spec.forwarding;
    if spec.snat == Snat::Always {
        let message = format!(
            "`snat: always` contradicts `forwarding: {forwarding}`, with which backends answer \
             clients themselves; remove it, or use `forwarding: nat`"
        );
        remarks.fault(Item::Choice(index, "snat"), message);
    }
    for (at, backend) in spec.backends.iter().enumerate() {
        let address = backend.address;
        let item = Item::Backend(index, at);
        if let Some(listen) = spec.listen.iter().find(|l| l.port() != address.port()) {
            let message = format!(
                "backend {address} has another port than {listen}, but `forwarding: {forwarding}` \
                 changes no ports; write port {}, or use `forwarding: nat`",
                listen.port()
            );
            remarks.fault(item, message);
        }
        let can_serve = |listen: &std::net::SocketAddr| {
            let in_ipv6 = forwarding == Forwarding::DsrIpip && address.is_ipv6();
            in_ipv6 || listen.is_ipv6() == address.is_ipv6()
        };
        if !spec.listen.iter().any(can_serve) {
            let message = if address.is_ipv6() {
                format!(
                    "backend {address} cannot serve IPv4 with `forwarding: {forwarding}`; write \
                     its IPv4 address, or use `forwarding: dsr-ipip`"
                )
            } else {
                format!(
                    "backend {address} cannot serve IPv6 with `forwarding: {forwarding}`; write \
                     its IPv6 address"
                )
            };
            remarks.fault(item, message);
        }
    }
}

fn tunnel_source(spec: &ServiceSpec, index: usize, remarks: &mut Remarks) {
    let item = Item::Choice(index, "tunnel_source");
    if !spec.tunnel_source.is_empty() && spec.forwarding != Forwarding::DsrIpip {
        let message = format!(
            "`tunnel_source` means nothing with `forwarding: {}`",
            spec.forwarding
        );
        remarks.warn(item, message);
    }
    for (at, prefix) in spec.tunnel_source.iter().enumerate() {
        let address = prefix.address();
        if prefix.length() < 8 || address.is_multicast() || address.is_loopback() {
            let message = format!(
                "`tunnel_source` {prefix} is no range of hosts; write one such as 172.16.0.0/16"
            );
            remarks.fault(item, message);
        }
        let same = |other: &Prefix| other.is_v6() == prefix.is_v6();
        if spec.tunnel_source[..at].iter().any(same) {
            let message =
                format!("`tunnel_source` {prefix} is the second of its family; write one of each");
            remarks.fault(item, message);
        }
    }
}

pub(super) fn names_differ(config: &Config, remarks: &mut Remarks) {
    let mut seen = HashMap::new();
    for (index, service) in config.services.iter().enumerate() {
        match seen.get(&service.name) {
            Some(&first) => {
                let message = format!("the name {} is used twice", quoted(&service.name));
                remarks.conflict(Item::Name(index), Item::Name(first), message);
            }
            None => {
                seen.insert(&service.name, index);
            }
        }
    }
}

/// No address is listened on twice with one protocol, nor forwarded to by any service.
pub(super) fn listens_differ(config: &Config, remarks: &mut Remarks) {
    let mut seen = HashMap::new();
    for (index, service) in config.services.iter().enumerate() {
        for (at, &listen) in service.listen.iter().enumerate() {
            let item = Item::Listen(index, at);
            let Some(&(owner, first)) = seen.get(&(listen, service.protocol)) else {
                seen.insert((listen, service.protocol), (index, item));
                continue;
            };
            let protocol = service.protocol;
            let message = if owner == index {
                format!("`listen` {listen} is listed twice")
            } else {
                let owner = quoted(&config.services[owner].name);
                format!("`listen` {listen} ({protocol}) is already taken by service {owner}")
            };
            remarks.conflict(item, first, message);
        }
    }
    for (index, service) in config.services.iter().enumerate() {
        for (at, backend) in service.backends.iter().enumerate() {
            if let Some(&(owner, listen)) = seen.get(&(backend.address, service.protocol)) {
                let message = format!(
                    "backend {} is what service {} listens on; packets would come straight back, \
                     so write a server's address",
                    backend.address,
                    quoted(&config.services[owner].name)
                );
                remarks.conflict(Item::Backend(index, at), listen, message);
            }
        }
    }
}

fn is_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let edge = |b: Option<&u8>| b.is_some_and(|&b| inner(b) && b != b'-');
    let bytes = name.as_bytes();
    bytes.len() <= MAX_NAME
        && bytes.iter().all(|&b| inner(b))
        && edge(bytes.first())
        && edge(bytes.last())
}

fn backends(spec: &ServiceSpec, index: usize, remarks: &mut Remarks) {
    if spec.backends.is_empty() && spec.discovery.is_empty() {
        let message = format!(
            "service {} has no backends; its connections are refused",
            quoted(&spec.name)
        );
        remarks.warn(Item::Backends(index), message);
    }
    let mut seen = HashMap::new();
    for (at, backend) in spec.backends.iter().enumerate() {
        let item = Item::Backend(index, at);
        let address = backend.address;
        if let Some(fault) = backend_fault(address) {
            remarks.fault(item, format!("backend {address} {fault}"));
        }
        if address.ip().is_loopback() {
            let message = format!(
                "backend {address} is a loopback address, to which the kernel delivers nothing \
                 from outside; write an address of the node"
            );
            remarks.warn(item, message);
        }
        match seen.get(&address) {
            Some(&first) => {
                let message = format!("backend {address} is listed twice");
                remarks.conflict(item, Item::Backend(index, first), message);
            }
            None => {
                seen.insert(address, at);
            }
        }
        labels(&backend.labels, Item::Labels(index, at), remarks);
    }
}

fn labels(labels: &BTreeMap<String, String>, item: Item, remarks: &mut Remarks) {
    for (key, value) in labels {
        if let Some(fault) = label_fault(key, value) {
            remarks.fault(item, fault);
        }
    }
}

/// Why this cannot be a backend's label.
pub(crate) fn label_fault(key: &str, value: &str) -> Option<String> {
    let key_char = |b: u8| b.is_ascii_alphanumeric() || b"._/-".contains(&b);
    if key.is_empty() || key.len() > MAX_NAME || !key.bytes().all(key_char) {
        return Some(format!(
            "label {} must be 1 to {MAX_NAME} characters a-z, A-Z, 0-9, `.`, `_`, `/` and `-`",
            quoted(key)
        ));
    }
    if value.len() > MAX_LABEL_VALUE || value.contains(char::is_control) {
        return Some(format!(
            "the value of label {} must be at most {MAX_LABEL_VALUE} bytes on one line",
            quoted(key)
        ));
    }
    None
}

/// A listen whose family no backend has is refused like one without backends.
fn families(spec: &ServiceSpec, index: usize, remarks: &mut Remarks) {
    if spec.backends.is_empty() || !spec.discovery.is_empty() {
        return;
    }
    for (at, listen) in spec.listen.iter().enumerate() {
        let any_family = spec.forwarding == Forwarding::DsrIpip && listen.is_ipv4();
        let served = |backend: &crate::model::BackendSpec| {
            any_family || backend.address.is_ipv6() == listen.is_ipv6()
        };
        if !spec.backends.iter().any(served) {
            let family = if listen.is_ipv6() { "IPv6" } else { "IPv4" };
            let message =
                format!("`listen` {listen} has no backend of its family; add one with {family}");
            remarks.warn(Item::Listen(index, at), message);
        }
    }
}
