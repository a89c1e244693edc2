//! The tree as a [`Config`]: types, keys and defaults. What values mean together is `check`'s.

use super::{
    check::{
        Item,
        node::{MAX_BACKENDS, MAX_FLOWS, MAX_SERVICES, MAX_SOURCES},
    },
    report::Report,
    service,
    tree::Node,
    value::{Fields, address, choice, list, number, one_or_many, text},
};
use crate::model::{Admin, AutoWord, Config, Interfaces, Limits, Node as NodeConfig, XdpMode};

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
    };
    let keys = ["node", "admin", "services"];
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
    config
}

fn node(value: &Node, node: &mut NodeConfig, report: &mut Report) {
    let keys = ["interfaces", "xdp", "state_dir", "bpffs", "limits"];
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
            MAX_SOURCES,
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
