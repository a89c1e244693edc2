//! The tree as a [`Config`]: types, keys and defaults. What values mean together is `check`'s.

use std::net::{IpAddr, Ipv4Addr};

use super::{
    check::{
        Item,
        node::{MAX_BACKENDS, MAX_FLOWS, MAX_PREFIXES, MAX_SERVICES},
    },
    discovery,
    report::Report,
    service,
    suggest::quoted,
    tree::{Data, Node},
    value::{Fields, address, choice, duration, list, number, one_or_many, text},
};
use crate::model::{
    Admin, AutoWord, Config, Interfaces, Limits, Node as NodeConfig, Timeouts, XdpMode,
};

pub(super) const XDP_MODES: [(&str, XdpMode); 4] = [
    ("auto", XdpMode::Auto),
    ("native", XdpMode::Native),
    ("generic", XdpMode::Generic),
    ("off", XdpMode::Off),
];

/// A config in which whatever was faulty has its default or is left out.
pub(super) fn config(root: Option<&Node>, report: &mut Report) -> Config {
    let mut config = Config {
        node: NodeConfig::default(),
        admin: Admin::default(),
        services: Vec::new(),
        discovery: Vec::new(),
    };
    let keys = ["node", "admin", "services", "discovery"];
    let Some(fields) = root.and_then(|root| Fields::of(root, "the file", &keys, &[], report))
    else {
        return config;
    };
    if let Some(value) = fields.get("node") {
        node(value, &mut config.node, report);
    }
    if let Some(value) = fields.get("admin") {
        admin(value, &mut config.admin, report);
    }
    if let Some(value) = fields.get("services") {
        report.found_at(Item::Setting("services"), value.place);
        config.services = list(value, "services", "a list of services", report)
            .unwrap_or(&[])
            .iter()
            .enumerate()
            .map(|(index, value)| service::service(value, index, report))
            .collect();
    }
    if let Some(value) = fields.get("discovery") {
        let first = config.services.len();
        config.discovery = discovery::services::services(value, first, report);
    }
    config
}

/// What the file says of the daemon itself, and in which line.
pub(super) fn settings(root: Option<&Node>) -> Vec<(&'static str, usize)> {
    let Some(Data::Map(entries)) = root.map(|root| &*root.data) else {
        return Vec::new();
    };
    let line = |key: &'static str| {
        let entry = entries.iter().find(|entry| entry.key == key)?;
        Some((key, entry.place.line))
    };
    ["node", "admin"].into_iter().filter_map(line).collect()
}

fn node(value: &Node, node: &mut NodeConfig, report: &mut Report) {
    let keys = [
        "interfaces",
        "xdp",
        "state_dir",
        "bpffs",
        "limits",
        "timeouts",
        "snat_addresses",
        "snat_ports",
    ];
    let Some(fields) = Fields::of(value, "node", &keys, &[], report) else {
        return;
    };
    if let Some(value) = fields.get("interfaces") {
        node.interfaces = interfaces(value, report);
    }
    if let Some(xdp) = fields
        .get("xdp")
        .and_then(|value| choice(value, "xdp", &XDP_MODES, &[], report))
    {
        node.xdp = xdp;
    }
    path(
        &fields,
        "state_dir",
        "node.state_dir",
        &mut node.state_dir,
        report,
    );
    path(&fields, "bpffs", "node.bpffs", &mut node.bpffs, report);
    if let Some(value) = fields.get("limits") {
        limits(value, &mut node.limits, report);
    }
    if let Some(value) = fields.get("timeouts") {
        timeouts(value, &mut node.timeouts, report);
    }
    if let Some(value) = fields.get("snat_addresses") {
        node.snat.addresses = snat_addresses(value, report);
    }
    if let Some(value) = fields.get("snat_ports") {
        node.snat.ports = snat_ports(value, report);
    }
}

fn interfaces(value: &Node, report: &mut Report) -> Interfaces {
    report.found_at(Item::Setting("node.interfaces"), value.place);
    let expected = "`auto` or a list of device names";
    let mut names = Vec::new();
    for (index, node) in one_or_many(value).iter().enumerate() {
        let name = text(node, "interfaces", expected, report);
        match name {
            Some("auto") if std::ptr::eq(node, value) => return Interfaces::Auto(AutoWord::Auto),
            Some(_) => report.found_at(Item::Interface(index), node.place),
            None => report.faulty(Item::Interface(index)),
        }
        names.push(name.unwrap_or_default().to_owned());
    }
    Interfaces::Named(names)
}

fn limits(value: &Node, limits: &mut Limits, report: &mut Report) {
    let keys = [
        "connections",
        "handshakes",
        "services",
        "backends",
        "sources",
        "clients",
    ];
    let Some(fields) = Fields::of(value, "limits", &keys, &[], report) else {
        return;
    };
    for (key, item, max, target) in [
        (
            "connections",
            "node.limits.connections",
            MAX_FLOWS,
            &mut limits.connections,
        ),
        (
            "handshakes",
            "node.limits.handshakes",
            MAX_FLOWS,
            &mut limits.handshakes,
        ),
        (
            "services",
            "node.limits.services",
            MAX_SERVICES,
            &mut limits.services,
        ),
        (
            "backends",
            "node.limits.backends",
            MAX_BACKENDS,
            &mut limits.backends,
        ),
        (
            "sources",
            "node.limits.sources",
            MAX_PREFIXES,
            &mut limits.sources,
        ),
        (
            "clients",
            "node.limits.clients",
            MAX_FLOWS,
            &mut limits.clients,
        ),
    ] {
        let Some(value) = fields.get(key) else {
            continue;
        };
        match number(value, key, 1..=max, report) {
            Some(number) => {
                report.found_at(Item::Setting(item), value.place);
                *target = number;
            }
            None => report.faulty(Item::Setting(item)),
        }
    }
}

/// A faulty one counts as the unspecified address, about which nothing else is said.
fn snat_addresses(value: &Node, report: &mut Report) -> Vec<IpAddr> {
    report.found_at(Item::Setting("node.snat_addresses"), value.place);
    let expected = "an IP address of this node or a list of them";
    let mut addresses = Vec::new();
    for (index, node) in one_or_many(value).iter().enumerate() {
        let item = Item::SnatAddress(index);
        let written = text(node, "snat_addresses", expected, report);
        let address = written.and_then(|text| match text.parse() {
            Ok(address) => Some(address),
            Err(_) => {
                let message = format!(
                    "`snat_addresses`: {} is no IP address; write e.g. 10.0.0.1",
                    quoted(text)
                );
                report.fault(node.place, message);
                None
            }
        });
        match address {
            Some(_) => report.found_at(item, node.place),
            None => report.faulty(item),
        }
        addresses.push(address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
    }
    addresses
}

fn snat_ports(value: &Node, report: &mut Report) -> Option<(u16, u16)> {
    let item = Item::Setting("node.snat_ports");
    let expected = "the first and the last port, e.g. 20000-29999";
    let written = text(value, "snat_ports", expected, report)?;
    let range = written
        .split_once('-')
        .and_then(|(first, last)| Some((first.trim().parse().ok()?, last.trim().parse().ok()?)));
    match range {
        Some(_) => report.found_at(item, value.place),
        None => {
            report.faulty(item);
            let message = format!("`snat_ports` must be {expected}, not {}", quoted(written));
            report.fault(value.place, message);
        }
    }
    range
}

fn timeouts(value: &Node, timeouts: &mut Timeouts, report: &mut Report) {
    let keys = ["tcp_established", "tcp_closing", "tcp_closed", "udp"];
    let Some(fields) = Fields::of(value, "timeouts", &keys, &[], report) else {
        return;
    };
    let Timeouts {
        tcp_established,
        tcp_closing,
        tcp_closed,
        udp,
    } = timeouts;
    for (key, item, target) in [
        (
            "tcp_established",
            "node.timeouts.tcp_established",
            tcp_established,
        ),
        ("tcp_closing", "node.timeouts.tcp_closing", tcp_closing),
        ("tcp_closed", "node.timeouts.tcp_closed", tcp_closed),
        ("udp", "node.timeouts.udp", udp),
    ] {
        let Some(value) = fields.get(key) else {
            continue;
        };
        match duration(value, key, report) {
            Some(time) => {
                report.found_at(Item::Setting(item), value.place);
                *target = time;
            }
            None => report.faulty(Item::Setting(item)),
        }
    }
}

fn admin(value: &Node, admin: &mut Admin, report: &mut Report) {
    let Some(fields) = Fields::of(value, "admin", &["socket", "http"], &[], report) else {
        return;
    };
    path(&fields, "socket", "admin.socket", &mut admin.socket, report);
    if let Some(value) = fields.get("http") {
        match address(value, "http", report) {
            Some(http) => {
                report.found_at(Item::Setting("admin.http"), value.place);
                admin.http = http;
            }
            None => report.faulty(Item::Setting("admin.http")),
        }
    }
}

fn path(
    fields: &Fields<'_>,
    key: &str,
    item: &'static str,
    target: &mut std::path::PathBuf,
    report: &mut Report,
) {
    let Some(value) = fields.get(key) else {
        return;
    };
    match text(value, key, "an absolute path", report) {
        Some(path) => {
            report.found_at(Item::Setting(item), value.place);
            *target = path.into();
        }
        None => report.faulty(Item::Setting(item)),
    }
}
