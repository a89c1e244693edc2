//! Differences between configurations, in words. Pure.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    net::IpAddr,
};

use crate::{
    discovery::{ServicesSpec, SourceSpec},
    model::{
        Admin, Admission, Affinity, BackendSpec, Config, Health, HealthCheck, Limits, Node,
        ServiceSpec, SnatPool, Timeouts, duration_text,
    },
};

/// One object that differs; displays as `~ backend web/10.0.0.1:80: weight 100 → 50`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Difference {
    pub kind: Kind,
    /// `service web`, `backend web/10.0.0.1:80`, `discovery kubernetes:shop/web` or `node`.
    pub object: String,
    /// `weight 100 → 50, labels …`; empty unless changed.
    pub detail: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Added,
    Removed,
    Changed,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            object,
            detail,
        } = self;
        match kind {
            Kind::Added => write!(f, "+ {object}"),
            Kind::Removed => write!(f, "- {object}"),
            Kind::Changed => write!(f, "~ {object}: {detail}"),
        }
    }
}

/// From `old` to `new`, services by name.
pub(super) fn services<'a>(
    old: impl IntoIterator<Item = &'a ServiceSpec>,
    new: impl IntoIterator<Item = &'a ServiceSpec>,
) -> Vec<Difference> {
    let by_name = |service: &'a ServiceSpec| (service.name.as_str(), service);
    let mut out = Vec::new();
    for (name, pair) in pairs(
        old.into_iter().map(by_name).collect(),
        new.into_iter().map(by_name).collect(),
    ) {
        let object = format!("service {name}");
        match pair {
            Pair::Both(old, new) if old == new => continue,
            Pair::Both(old, new) => out.extend(changed(object, service_fields(old, new))),
            Pair::Old(_) => out.push(whole(Kind::Removed, object)),
            Pair::New(_) => out.push(whole(Kind::Added, object)),
        }
        let (old, new) = pair.sides();
        out.extend(backends(
            name,
            old.map_or(&[][..], |s| &s.backends),
            new.map_or(&[][..], |s| &s.backends),
        ));
    }
    out
}

/// Sources of services, from `old` to `new`.
pub(super) fn discovery(old: &[ServicesSpec], new: &[ServicesSpec]) -> Vec<Difference> {
    let by_name = |list: &[ServicesSpec]| -> Vec<(String, ServicesSpec)> {
        let named = list.iter().map(|s| (s.name().to_string(), s.clone()));
        named.collect()
    };
    let (old, new) = (by_name(old), by_name(new));
    let pairs = pairs(
        old.iter().map(|(name, s)| (name, s)).collect(),
        new.iter().map(|(name, s)| (name, s)).collect(),
    );
    pairs
        .into_iter()
        .filter_map(|(name, pair)| {
            let object = format!("discovery {name}");
            match pair {
                Pair::Both(old, new) if old == new => None,
                Pair::Both(..) => changed(object, vec!["other keys".to_owned()]),
                Pair::Old(_) => Some(whole(Kind::Removed, object)),
                Pair::New(_) => Some(whole(Kind::Added, object)),
            }
        })
        .collect()
}

/// Settings of `node` that differ and come into force at once.
pub(super) fn node(old: &Node, new: &Node) -> Option<Difference> {
    let Node {
        // These take a restart.
        interfaces: _,
        xdp: _,
        state_dir: _,
        bpffs: _,
        limits: _,
        timeouts,
        snat,
    } = old;
    let Timeouts {
        tcp_established,
        tcp_closing,
        tcp_closed,
        udp,
    } = timeouts;
    let SnatPool { addresses, ports } = snat;
    let mut fields = Fields::default();
    let is = &new.timeouts;
    for (name, was, is) in [
        ("tcp_established", tcp_established, is.tcp_established),
        ("tcp_closing", tcp_closing, is.tcp_closing),
        ("tcp_closed", tcp_closed, is.tcp_closed),
        ("udp", udp, is.udp),
    ] {
        let time = duration_text::format;
        fields.add(&format!("timeouts.{name}"), time(*was), time(is));
    }
    let pool = |addresses: &[IpAddr]| {
        let words: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        format!("[{}]", words.join(" "))
    };
    let range =
        |ports: &Option<(u16, u16)>| or_none(&ports.map(|(first, last)| format!("{first}-{last}")));
    fields.add("snat_addresses", pool(addresses), pool(&new.snat.addresses));
    fields.add("snat_ports", range(ports), range(&new.snat.ports));
    changed("node".to_owned(), fields.0)
}

/// Settings of `node` and `admin` that differ and need a restart.
pub(super) fn settings(old: &Config, new: &Config) -> Vec<String> {
    let Node {
        interfaces,
        xdp,
        state_dir,
        bpffs,
        limits,
        // In force at once: see `node`.
        timeouts: _,
        snat: _,
    } = &old.node;
    let Limits {
        connections,
        handshakes,
        services,
        backends,
        sources,
        clients,
    } = limits;
    let Admin { socket, http } = &old.admin;
    let mut out = Vec::new();
    let mut note = |name: &str, differs: bool| {
        if differs {
            out.push(name.to_owned());
        }
    };
    note("node.interfaces", *interfaces != new.node.interfaces);
    note("node.xdp", *xdp != new.node.xdp);
    note("node.state_dir", *state_dir != new.node.state_dir);
    note("node.bpffs", *bpffs != new.node.bpffs);
    let limits = &new.node.limits;
    note(
        "node.limits.connections",
        *connections != limits.connections,
    );
    note("node.limits.handshakes", *handshakes != limits.handshakes);
    note("node.limits.services", *services != limits.services);
    note("node.limits.backends", *backends != limits.backends);
    note("node.limits.sources", *sources != limits.sources);
    note("node.limits.clients", *clients != limits.clients);
    note("admin.socket", *socket != new.admin.socket);
    note("admin.http", *http != new.admin.http);
    out
}

fn backends(service: &str, old: &[BackendSpec], new: &[BackendSpec]) -> Vec<Difference> {
    let by_address = |list: &'_ [BackendSpec]| -> BTreeMap<_, _> {
        list.iter().map(|b| (b.address, b.clone())).collect()
    };
    let (old, new) = (by_address(old), by_address(new));
    pairs(
        old.iter().map(|(a, b)| (*a, b)).collect(),
        new.iter().map(|(a, b)| (*a, b)).collect(),
    )
    .into_iter()
    .filter_map(|(address, pair)| {
        let object = format!("backend {service}/{address}");
        match pair {
            Pair::Both(old, new) => changed(object, backend_fields(old, new)),
            Pair::Old(_) => Some(whole(Kind::Removed, object)),
            Pair::New(_) => Some(whole(Kind::Added, object)),
        }
    })
    .collect()
}

fn service_fields(old: &ServiceSpec, new: &ServiceSpec) -> Vec<String> {
    let ServiceSpec {
        name: _,
        listen,
        protocol,
        forwarding,
        snat,
        tunnel_source,
        policy,
        no_backend,
        on_backend_down,
        admission,
        health,
        backends: _,
        discovery,
    } = old;
    let mut fields = Fields::default();
    let join = |list: &[std::net::SocketAddr]| {
        let words: Vec<_> = list.iter().map(ToString::to_string).collect();
        words.join(" ")
    };
    fields.add("listen", join(listen), join(&new.listen));
    fields.add("protocol", protocol, new.protocol);
    fields.add("forwarding", forwarding, new.forwarding);
    fields.add("snat", snat, new.snat);
    let prefixes = |list: &[crate::model::Prefix]| {
        let words: Vec<_> = list.iter().map(ToString::to_string).collect();
        words.join(" ")
    };
    fields.add(
        "tunnel_source",
        prefixes(tunnel_source),
        prefixes(&new.tunnel_source),
    );
    fields.add("policy", policy, new.policy);
    fields.add("no_backend", no_backend, new.no_backend);
    fields.add("on_backend_down", on_backend_down, new.on_backend_down);
    admission_fields(admission, &new.admission, &mut fields);
    let Health {
        check,
        port,
        interval,
        fast_interval,
        timeout,
        rise,
        fall,
    } = health;
    let sources = &new.discovery;
    let new = &new.health;
    let port_words = |port: Option<u16>| port.map_or("backend's".to_owned(), |p| p.to_string());
    let time = duration_text::format;
    fields.add("health", check_words(check), check_words(&new.check));
    fields.add("health port", port_words(*port), port_words(new.port));
    fields.add("health interval", time(*interval), time(new.interval));
    fields.add(
        "health fast_interval",
        time(*fast_interval),
        time(new.fast_interval),
    );
    fields.add("health timeout", time(*timeout), time(new.timeout));
    fields.add("health rise", rise, new.rise);
    fields.add("health fall", fall, new.fall);
    fields.0.extend(discovery_words(discovery, sources));
    fields.0
}

fn discovery_words(old: &[SourceSpec], new: &[SourceSpec]) -> Option<String> {
    let words = |sources: &[SourceSpec]| {
        let names = sources.iter();
        let names = names.map(|s| format!("{}:{}", s.kind.name(), s.kind.target()));
        format!("[{}]", names.collect::<Vec<_>>().join(" "))
    };
    let (before, after) = (words(old), words(new));
    match before == after {
        false => Some(format!("discovery {before} → {after}")),
        true if old != new => Some(format!("other keys of discovery {after}")),
        true => None,
    }
}

fn backend_fields(old: &BackendSpec, new: &BackendSpec) -> Vec<String> {
    let BackendSpec {
        address: _,
        weight,
        max_connections,
        labels,
    } = old;
    let mut fields = Fields::default();
    let words = |labels: &BTreeMap<String, String>| {
        let words: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        format!("[{}]", words.join(" "))
    };
    fields.add("weight", weight, new.weight);
    fields.add(
        "max_connections",
        or_none(max_connections),
        or_none(&new.max_connections),
    );
    fields.add("labels", words(labels), words(&new.labels));
    fields.0
}

fn admission_fields(old: &Admission, new: &Admission, fields: &mut Fields) {
    let Admission {
        allow_sources,
        deny_sources,
        max_connections,
        rate,
        source_rate,
        affinity,
    } = old;
    for (name, old, new) in [
        ("allow_sources", allow_sources, &new.allow_sources),
        ("deny_sources", deny_sources, &new.deny_sources),
    ] {
        let [was, is]: [HashSet<_>; 2] = [old, new].map(|list| list.iter().collect());
        if was != is {
            let (more, less) = (is.difference(&was).count(), was.difference(&is).count());
            fields.0.push(format!("{name} +{more} -{less}"));
        }
    }
    fields.add(
        "max_connections",
        or_none(max_connections),
        or_none(&new.max_connections),
    );
    fields.add("rate", or_none(rate), or_none(&new.rate));
    fields.add(
        "source_rate",
        or_none(source_rate),
        or_none(&new.source_rate),
    );
    let time = |a: &Option<Affinity>| or_none(&a.map(|a| duration_text::format(a.client_ip)));
    fields.add("affinity client_ip", time(affinity), time(&new.affinity));
}

fn or_none(value: &Option<impl fmt::Display>) -> String {
    value
        .as_ref()
        .map_or("none".to_owned(), ToString::to_string)
}

fn check_words(check: &HealthCheck) -> String {
    match check {
        HealthCheck::None => "none".to_owned(),
        HealthCheck::Tcp => "tcp".to_owned(),
        HealthCheck::Http {
            path,
            host,
            expect_status,
        } => {
            let host = host.as_ref().map(|h| format!(" host {h}"));
            format!(
                "http {path}{} expecting {expect_status:?}",
                host.unwrap_or_default()
            )
        }
    }
}

#[derive(Default)]
struct Fields(Vec<String>);

impl Fields {
    fn add(&mut self, name: &str, old: impl fmt::Display, new: impl fmt::Display) {
        let (old, new) = (old.to_string(), new.to_string());
        if old != new {
            self.0.push(format!("{name} {old} → {new}"));
        }
    }
}

fn whole(kind: Kind, object: String) -> Difference {
    Difference {
        kind,
        object,
        detail: String::new(),
    }
}

fn changed(object: String, fields: Vec<String>) -> Option<Difference> {
    (!fields.is_empty()).then(|| Difference {
        kind: Kind::Changed,
        object,
        detail: fields.join(", "),
    })
}

#[derive(Clone, Copy)]
enum Pair<'a, T> {
    Old(&'a T),
    New(&'a T),
    Both(&'a T, &'a T),
}

impl<'a, T> Pair<'a, T> {
    fn sides(self) -> (Option<&'a T>, Option<&'a T>) {
        match self {
            Self::Old(old) => (Some(old), None),
            Self::New(new) => (None, Some(new)),
            Self::Both(old, new) => (Some(old), Some(new)),
        }
    }
}

fn pairs<'a, K: Ord, T>(
    mut old: BTreeMap<K, &'a T>,
    new: BTreeMap<K, &'a T>,
) -> BTreeMap<K, Pair<'a, T>> {
    let mut out: BTreeMap<K, Pair<'a, T>> = new
        .into_iter()
        .map(|(key, new)| match old.remove(&key) {
            Some(old) => (key, Pair::Both(old, new)),
            None => (key, Pair::New(new)),
        })
        .collect();
    out.extend(old.into_iter().map(|(key, old)| (key, Pair::Old(old))));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        controller::testing::{config, service},
        model::{Policy, XdpMode},
    };

    fn words(old: &[ServiceSpec], new: &[ServiceSpec]) -> Vec<String> {
        services(old, new).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn says_what_differs() {
        let web = service("web", "192.0.2.1:80", &["10.0.0.1:80", "10.0.0.2:80"]);
        let mut new = service("web", "192.0.2.1:80", &["10.0.0.1:80", "10.0.0.3:80"]);
        new.policy = Policy::RoundRobin;
        new.health.interval = std::time::Duration::from_secs(10);
        new.backends[0].weight = 50;
        new.backends[0].labels.insert("version".into(), "v2".into());
        let dns = service("dns", "192.0.2.1:53", &["10.0.0.9:53"]);
        assert_eq!(
            words(&[web.clone(), dns.clone()], &[dns.clone(), new]),
            [
                "~ service web: policy maglev → round-robin, health interval 5s → 10s",
                "~ backend web/10.0.0.1:80: weight 100 → 50, labels [] → [version=v2]",
                "- backend web/10.0.0.2:80",
                "+ backend web/10.0.0.3:80",
            ]
        );
        assert_eq!(
            words(std::slice::from_ref(&web), &[dns, web.clone()]),
            ["+ service dns", "+ backend dns/10.0.0.9:53"]
        );
    }

    #[test]
    fn order_is_no_difference() {
        let one = service("web", "192.0.2.1:80", &["10.0.0.1:80", "10.0.0.2:80"]);
        let two = service("web", "192.0.2.1:80", &["10.0.0.2:80", "10.0.0.1:80"]);
        assert_eq!(words(&[one], &[two]), Vec::<String>::new());
    }

    #[test]
    fn settings_of_the_node_that_need_none() {
        let old = config([]).node;
        let words = |new: &Node| node(&old, new).map(|difference| difference.to_string());
        let mut new = old.clone();
        new.xdp = XdpMode::Off;
        assert_eq!(words(&new), None);
        new.timeouts.udp = std::time::Duration::from_secs(30);
        assert_eq!(words(&new).unwrap(), "~ node: timeouts.udp 2m → 30s");
        new.timeouts.tcp_established = std::time::Duration::from_secs(60);
        new.timeouts.tcp_closing = std::time::Duration::from_secs(2);
        new.timeouts.tcp_closed = std::time::Duration::from_secs(1);
        new.snat.addresses = vec![[192, 0, 2, 1].into(), [192, 0, 2, 2].into()];
        new.snat.ports = Some((20_000, 29_999));
        assert_eq!(
            words(&new).unwrap(),
            "~ node: timeouts.tcp_established 124m → 1m, timeouts.tcp_closing 4m → 2s, \
             timeouts.tcp_closed 10s → 1s, timeouts.udp 2m → 30s, snat_addresses [] → [192.0.2.1 \
             192.0.2.2], snat_ports none → 20000-29999"
        );
    }

    #[test]
    fn settings_that_need_a_restart() {
        let old = config([]);
        let mut new = config([]);
        assert_eq!(settings(&old, &new), Vec::<String>::new());
        new.node.xdp = XdpMode::Off;
        new.node.limits.services = 1;
        assert_eq!(settings(&old, &new), ["node.xdp", "node.limits.services"]);
    }
}
