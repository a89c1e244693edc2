//! `discovery: {dns: …}`.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde_yaml_ng::{Mapping, Value};

use super::{
    super::{
        address::parse_address,
        render::put,
        suggest::quoted,
        value::{choice, duration, number, one_or_many, text},
    },
    Fields, Form, Node, Report, SourceRemarks,
};
use crate::{
    discovery::dns::{Config, Family, Lookup, name_fault},
    model::duration_text,
};

const FAMILIES: [(&str, Family); 3] = [
    ("both", Family::Both),
    ("ipv4", Family::Ipv4),
    ("ipv6", Family::Ipv6),
];

const DNS_PORT: u16 = 53;
const MAX_SERVERS: usize = 16;
const MAX_SEARCH: usize = 32;

impl Form for Config {
    const KEYS: &'static [&'static str] = &[
        "name", "port", "srv", "family", "servers", "search", "ndots", "min_ttl", "timeout",
    ];

    fn decode(fields: &Fields<'_>, report: &mut Report) -> Option<Self> {
        let lookup = lookup(fields, report);
        let mut sound = lookup.is_some();
        let mut config = Self::new(lookup.unwrap_or(Lookup::Srv {
            name: String::new(),
        }));
        if let Some(value) = fields.get("family") {
            match choice(value, "family", &FAMILIES, &[], report) {
                Some(family) => config.family = family,
                None => sound = false,
            }
        }
        if let Some(value) = fields.get("servers") {
            let nodes = one_or_many(value);
            if nodes.is_empty() {
                let message = "`servers` is empty; leave it out for those of /etc/resolv.conf";
                report.fault(value.place, message);
                sound = false;
            }
            let servers = nodes.iter().map(|node| server(node, report));
            config.servers = servers.collect::<Vec<_>>().into_iter().flatten().collect();
            sound &= config.servers.len() == nodes.len();
        }
        if let Some(value) = fields.get("search") {
            let nodes = one_or_many(value);
            let expected = "a domain such as example.internal";
            let domains = nodes
                .iter()
                .map(|node| text(node, "search", expected, report));
            let domains: Vec<_> = domains.collect();
            let domains: Vec<_> = domains.into_iter().flatten().map(str::to_owned).collect();
            sound &= domains.len() == nodes.len();
            config.search = Some(domains);
        }
        if let Some(value) = fields.get("ndots") {
            let ndots = number(value, "ndots", 0..=u32::from(Self::MAX_NDOTS), report);
            sound &= ndots.is_some();
            config.ndots = ndots.and_then(|ndots| u8::try_from(ndots).ok());
        }
        for (key, time) in [
            ("min_ttl", &mut config.min_ttl),
            ("timeout", &mut config.timeout),
        ] {
            if let Some(value) = fields.get(key) {
                match duration(value, key, report) {
                    Some(duration) => *time = duration,
                    None => sound = false,
                }
            }
        }
        sound.then_some(config)
    }

    fn check(&self, remarks: &mut SourceRemarks<'_>) {
        let Self {
            lookup,
            family: _,
            servers,
            search,
            ndots,
            min_ttl,
            timeout,
        } = self;
        let key = match lookup {
            Lookup::Host { .. } => "name",
            Lookup::Srv { .. } => "srv",
        };
        if let Some(fault) = name_fault(lookup.name()) {
            remarks.fault(key, format!("{} {fault}", quoted(lookup.name())));
        }
        if let Lookup::Host { port: 0, .. } = lookup {
            remarks.fault("port", "must be 1 to 65535");
        }
        if servers.len() > MAX_SERVERS {
            remarks.fault("servers", format!("are more than {MAX_SERVERS}"));
        }
        for (at, server) in servers.iter().enumerate() {
            let ip = server.ip();
            if server.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
                remarks.fault(
                    "servers",
                    format!("has {server}, at which no server can be"),
                );
            } else if servers[..at].contains(server) {
                remarks.fault("servers", format!("has {server} twice"));
            }
        }
        let search = search.as_deref().unwrap_or_default();
        if search.len() > MAX_SEARCH {
            remarks.fault("search", format!("has more than {MAX_SEARCH} domains"));
        }
        for domain in search {
            if let Some(fault) = name_fault(domain) {
                remarks.fault("search", format!("{} {fault}", quoted(domain)));
            } else if domain.trim_matches('.').len() + lookup.name().len() > 252 {
                let message = format!("{} is too long for this name", quoted(domain));
                remarks.fault("search", message);
            }
        }
        if ndots.is_some_and(|ndots| ndots > Self::MAX_NDOTS) {
            remarks.fault("ndots", format!("must be at most {}", Self::MAX_NDOTS));
        }
        let hour = Duration::from_secs(3600);
        for (key, time, longest) in [
            ("min_ttl", *min_ttl, hour),
            ("timeout", *timeout, Duration::from_secs(30)),
        ] {
            if time < Duration::from_millis(100) || time > longest {
                let longest = duration_text::format(longest);
                remarks.fault(key, format!("must be 100ms to {longest}"));
            } else if time.subsec_nanos() % 1_000_000 != 0 {
                remarks.fault(key, "must be whole milliseconds");
            }
        }
    }

    fn render(&self, map: &mut Mapping) {
        let Self {
            lookup,
            family,
            servers,
            search,
            ndots,
            min_ttl,
            timeout,
        } = self;
        match lookup {
            Lookup::Host { name, port } => {
                put(map, "name", name.clone());
                put(map, "port", *port);
            }
            Lookup::Srv { name } => put(map, "srv", name.clone()),
        }
        if *family != Family::Both
            && let Some((name, _)) = FAMILIES.iter().find(|(_, known)| known == family)
        {
            put(map, "family", *name);
        }
        if !servers.is_empty() {
            put(
                map,
                "servers",
                texts(servers.iter().map(ToString::to_string)),
            );
        }
        if let Some(search) = search {
            put(map, "search", texts(search.iter().cloned()));
        }
        if let Some(ndots) = ndots {
            put(map, "ndots", *ndots);
        }
        for (key, time, usual) in [
            ("min_ttl", min_ttl, Self::MIN_TTL),
            ("timeout", timeout, Self::TIMEOUT),
        ] {
            if *time != usual {
                put(map, key, duration_text::format(*time));
            }
        }
    }
}

fn lookup(fields: &Fields<'_>, report: &mut Report) -> Option<Lookup> {
    let expected = "a name such as web.example.internal";
    if let Some(value) = fields.get("srv") {
        for (key, why) in [
            (
                "name",
                "a source asks for the addresses of a name or for SRV records",
            ),
            ("port", "SRV records have ports of their own"),
        ] {
            if let Some(other) = fields.get(key) {
                let message = format!("`{key}` beside `srv`: {why}; leave one of them out");
                report.fault(other.place, message);
            }
        }
        let name = text(value, "srv", expected, report)?.to_owned();
        return Some(Lookup::Srv { name });
    }
    let what = "the dns source without `srv`";
    let value = fields.require("name", what, "web.example.internal", report);
    let port = fields.require("port", what, "8080", report);
    let name = value.and_then(|value| text(value, "name", expected, report));
    let port = port.and_then(|value| number(value, "port", 1..=65_535, report));
    Some(Lookup::Host {
        name: name?.to_owned(),
        port: u16::try_from(port?).ok()?,
    })
}

/// `IP` or `IP:PORT`.
fn server(node: &Node, report: &mut Report) -> Option<SocketAddr> {
    let written = text(node, "servers", "IP or IP:PORT, e.g. 10.0.0.53", report)?;
    if let Ok(ip) = written.parse::<IpAddr>() {
        return Some((ip, DNS_PORT).into());
    }
    parse_address(written)
        .map_err(|fault| report.fault(node.place, format!("`servers`: {fault}")))
        .ok()
}

fn texts(items: impl Iterator<Item = String>) -> Vec<Value> {
    items.map(Value::from).collect()
}
