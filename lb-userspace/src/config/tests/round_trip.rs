//! What `render` writes, `parse` reads back.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use proptest::prelude::*;

use super::accepted;
use crate::{
    config::{check, parse, render},
    discovery::{
        ServicesKind, ServicesSpec, Settings,
        kubernetes::{self, Access, Select, services::SELECTOR},
    },
    model::{
        Admin, Admission, Affinity, AutoWord, BackendSpec, Config, Forwarding, Health, HealthCheck,
        Interfaces, Limits, NoBackend, Node, OnBackendDown, Policy, Prefix, Prefixes, Protocol,
        Rate, ServiceSpec, Snat, SnatPool, Timeouts, XdpMode,
    },
};

#[test]
fn a_config_reads_well() {
    let text = "\
node:
  interfaces:
  - eth0
  xdp: off
  timeouts:
    tcp_established: 3h
  snat_addresses:
  - 10.0.0.1
  - 2001:db8::1
  snat_ports: 20000-29999
services:
- name: web
  listen: 192.0.2.10:80
  protocol: tcp
  policy: maglev
  health:
    type: http
    path: /healthz
    expect_status:
    - 200-299
    - 301
    interval: 5s
    rise: 2
    fall: 3
  backends:
  - address: 10.1.0.11:8080
    weight: 100
    labels:
      version: v1
- name: dns
  listen:
  - 192.0.2.10:53
  - '[2001:db8::10]:53'
  protocol: udp
  snat: always
  policy: random
  no_backend: drop
  on_backend_down: reset
  backends: []
";
    assert_eq!(render(&accepted(text).config), text);
    assert_eq!(render(&accepted("").config), "services: []\n");
}

proptest! {
    #[test]
    fn every_valid_config_survives(config in config()) {
        prop_assume!(check(&config).is_empty());
        let text = render(&config);
        match parse(&text, "f") {
            Ok(parsed) => prop_assert_eq!(parsed.config, config, "{}", text),
            Err(faults) => prop_assert!(false, "{}\n{}", faults, text),
        }
    }
}

prop_compose! {
    fn config()(
        node in node(),
        socket in path(),
        http in address(),
        services in prop::collection::vec(service(), 0..4),
        finder in prop::option::of(finder()),
    ) -> Config {
        let services = services.into_iter().enumerate();
        let services = services.map(|(index, mut service)| {
            service.name += &index.to_string();
            service
        });
        Config {
            node,
            admin: Admin { socket: socket.into(), http },
            services: services.collect(),
            discovery: finder.into_iter().collect(),
        }
    }
}

prop_compose! {
    fn finder()(
        namespace in prop::option::of("[a-z]{1,8}"),
        name in prop::option::of("[a-z]{1,8}"),
        selector in prop::sample::select(vec![SELECTOR, "app=web", "a in (b, c)"]),
        nodeports in prefixes(),
        node in prop::option::of("[a-z0-9]{1,8}"),
        context in prop::option::of("[a-z]{1,8}"),
        weight in any::<u16>(),
        hold in 0..=86_400u64,
        like in service(),
    ) -> ServicesSpec {
        ServicesSpec {
            kind: ServicesKind::Kubernetes(kubernetes::services::Config {
                access: match context {
                    Some(_) => Access::Kubeconfig { path: "/etc/lbd/config".into(), context },
                    None => Access::InCluster,
                },
                select: match name.filter(|_| namespace.is_some()) {
                    Some(name) => Select::Name(name),
                    None => Select::Labels(selector.to_owned()),
                },
                namespace,
                nodeport_addresses: nodeports.to_vec(),
                node,
                zone: None,
                watch_timeout: kubernetes::WATCH_TIMEOUT,
            }),
            settings: Settings {
                weight,
                removal_hold: Duration::from_secs(hold),
                ..Settings::default()
            },
            defaults: ServiceSpec {
                name: String::new(),
                listen: Vec::new(),
                protocol: Protocol::Tcp,
                admission: Admission {
                    allow_sources: Prefixes::default(),
                    deny_sources: Prefixes::default(),
                    ..like.admission
                },
                backends: Vec::new(),
                ..like
            },
        }
    }
}

prop_compose! {
    fn node()(
        interfaces in prop_oneof![
            Just(Interfaces::Auto(AutoWord::Auto)),
            prop::collection::hash_set("[a-z0-9~'\"#-]{1,15}", 1..3)
                .prop_map(|names| Interfaces::Named(names.into_iter().collect())),
        ],
        xdp in prop::sample::select(vec![
            XdpMode::Auto, XdpMode::Native, XdpMode::Generic, XdpMode::Off,
        ]),
        state_dir in path(),
        bpffs in path(),
        connections in 1..=1u32 << 24,
        closing in 1..=86_400u64,
        addresses in prop::collection::hash_set(1..=250u8, 0..3),
        ports in prop::option::of((1..=9000u16, 9000..=u16::MAX)),
    ) -> Node {
        Node {
            interfaces,
            xdp,
            state_dir: state_dir.into(),
            bpffs: bpffs.into(),
            limits: Limits { connections, ..Limits::default() },
            snat: SnatPool {
                addresses: addresses.into_iter().map(|n| [10, 0, 0, n].into()).collect(),
                ports,
            },
            timeouts: Timeouts {
                tcp_closing: Duration::from_secs(closing),
                ..Timeouts::default()
            },
        }
    }
}

fn path() -> impl Strategy<Value = String> {
    "/[^\\p{Cc}]{0,20}"
}

fn address() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        (any::<Ipv4Addr>(), 1..=u16::MAX).prop_map(SocketAddr::from),
        (any::<Ipv6Addr>(), 1..=u16::MAX).prop_map(SocketAddr::from),
    ]
}

prop_compose! {
    fn service()(
        name in "[a-z0-9]{1,8}",
        listen in prop::collection::vec(address(), 1..3),
        protocol in prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]),
        snat in prop::sample::select(vec![Snat::Auto, Snat::Always, Snat::Never]),
        policy in prop::sample::select(vec![Policy::Maglev, Policy::RoundRobin, Policy::Random]),
        no_backend in prop::sample::select(vec![NoBackend::Reject, NoBackend::Drop]),
        on_backend_down in prop::sample::select(vec![OnBackendDown::Keep, OnBackendDown::Reset]),
        admission in admission(),
        health in health(),
        backends in prop::collection::vec(backend(), 0..4),
    ) -> ServiceSpec {
        ServiceSpec {
            name,
            listen,
            protocol,
            forwarding: Forwarding::Nat,
            snat,
            tunnel_source: Vec::new(),
            policy,
            no_backend,
            on_backend_down,
            admission,
            health,
            backends,
            discovery: Vec::new(),
        }
    }
}

fn prefixes() -> impl Strategy<Value = Prefixes> {
    let prefix =
        (any::<std::net::IpAddr>(), any::<u8>()).prop_filter_map("host bits", |(ip, length)| {
            let bits = if ip.is_ipv6() { 128 } else { 32 };
            (Prefix::new(ip, length % (bits + 1)).ok()).or_else(|| Prefix::new(ip, bits).ok())
        });
    prop::collection::hash_set(prefix, 0..4).prop_map(|list| list.into_iter().collect())
}

prop_compose! {
    fn rate()(
        connections_per_second in 1..=1_000_000u32,
        burst in 1..=1_000_000u32,
    ) -> Rate {
        Rate { connections_per_second, burst }
    }
}

prop_compose! {
    fn admission()(
        allow_sources in prefixes(),
        deny_sources in prefixes(),
        max_connections in prop::option::of(1..=1u32 << 24),
        rate in prop::option::of(rate()),
        source_rate in prop::option::of(rate()),
        affinity in prop::option::of((1..=86_400u64).prop_map(|seconds| Affinity {
            client_ip: Duration::from_secs(seconds),
        })),
    ) -> Admission {
        Admission { allow_sources, deny_sources, max_connections, rate, source_rate, affinity }
    }
}

prop_compose! {
    fn health()(
        check in prop_oneof![
            Just(HealthCheck::None),
            Just(HealthCheck::Tcp),
            (
                "/[!-~]{0,20}",
                prop::option::of("[!-.0-~]{1,20}"),
                prop::collection::hash_set(100..=599u16, 1..9),
            )
                .prop_map(|(path, host, statuses)| HealthCheck::Http {
                    path,
                    host,
                    expect_status: statuses.into_iter().collect(),
                }),
        ],
        port in prop::option::of(1..=u16::MAX),
        interval in time(),
        fast_interval in time(),
        timeout in time(),
        rise in 1..=1000u32,
        fall in 1..=1000u32,
    ) -> Health {
        Health { check, port, interval, fast_interval, timeout, rise, fall }
    }
}

fn time() -> impl Strategy<Value = Duration> {
    prop_oneof![
        (1..=86_400_000u64).prop_map(Duration::from_millis),
        (1..=86_400u64).prop_map(Duration::from_secs),
    ]
}

prop_compose! {
    fn backend()(
        address in address(),
        weight in any::<u16>(),
        max_connections in prop::option::of(1..=1u32 << 24),
        labels in prop::collection::btree_map("[A-Za-z0-9._/-]{1,9}", "[^\\p{Cc}]{0,20}", 0..3),
    ) -> BackendSpec {
        let labels: BTreeMap<String, String> = labels;
        BackendSpec { address, weight, max_connections, labels }
    }
}
