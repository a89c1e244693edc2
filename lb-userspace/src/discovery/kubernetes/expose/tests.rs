use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A Service `shop/web` with these parts of `spec`, and these addresses of its load balancer.
fn service(spec: Value, ingress: Value) -> Service {
    let mut whole = json!({
        "metadata": {
            "name": "web",
            "namespace": "shop",
            "resourceVersion": "7",
            "creationTimestamp": "2024-01-01T00:00:00Z",
        },
        "spec": {
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
        },
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    for (key, value) in spec.as_object().unwrap() {
        whole["spec"][key] = value.clone();
    }
    serde_json::from_value(whole).unwrap()
}

fn nodes() -> Vec<IpAddr> {
    ["10.0.0.5", "2001:db8::5"]
        .map(|ip| ip.parse().unwrap())
        .into()
}

/// Each group as `NAME LISTEN,LISTEN TRAFFIC`.
fn groups(service: &Service) -> Vec<String> {
    let exposed = expose(service, &nodes());
    assert_eq!(exposed.left_out, Vec::<String>::new());
    shown(&exposed)
}

fn shown(exposed: &Exposed<'_>) -> Vec<String> {
    let groups = exposed.groups.iter().map(|group| {
        let listens: Vec<_> = group.offer.listen.iter().map(ToString::to_string).collect();
        let name = &group.offer.name;
        format!("{name} {} {}", listens.join(","), group.traffic.name())
    });
    groups.collect()
}

#[test]
fn each_kind_of_address_is_a_service_of_its_own() {
    let all = service(
        json!({"type": "LoadBalancer", "externalIPs": ["192.0.2.7"]}),
        json!([
            {"ip": "198.51.100.1"},
            {"ip": "198.51.100.2", "ipMode": "VIP"},
            {"ip": "198.51.100.3", "ipMode": "Proxy"},
            {"hostname": "lb.example"},
        ]),
    );
    assert_eq!(
        groups(&all),
        [
            "shop.web.http 10.96.0.10:80 internal",
            "shop.web.http.external 10.0.0.5:30080,192.0.2.7:80 external",
            "shop.web.http.lb 198.51.100.1:80,198.51.100.2:80 external",
        ]
    );
    let node_port = service(json!({"type": "NodePort"}), json!([{"ip": "198.51.100.1"}]));
    assert_eq!(
        groups(&node_port),
        [
            "shop.web.http 10.96.0.10:80 internal",
            "shop.web.http.external 10.0.0.5:30080 external",
        ]
    );
    let plain = service(json!({"type": "ClusterIP"}), json!(null));
    assert_eq!(groups(&plain), ["shop.web.http 10.96.0.10:80 internal"]);
    let offer = expose(&plain, &[]).groups.remove(0).offer;
    assert_eq!(offer.since, 1_704_067_200);
}

#[test]
fn both_families_are_one_service_and_strange_ones_are_none() {
    let dual = service(
        json!({"type": "NodePort", "clusterIPs": ["10.96.0.10", "fd00::10"]}),
        json!(null),
    );
    assert_eq!(
        groups(&dual),
        [
            "shop.web.http 10.96.0.10:80,[fd00::10]:80 internal",
            "shop.web.http.external 10.0.0.5:30080,[2001:db8::5]:30080 external",
        ]
    );
    let single = service(
        json!({"type": "LoadBalancer", "clusterIPs": [], "clusterIP": "fd00::10",
            "externalIPs": ["192.0.2.7"]}),
        json!([{"ip": "198.51.100.1"}]),
    );
    assert_eq!(
        groups(&single),
        [
            "shop.web.http [fd00::10]:80 internal",
            "shop.web.http.external [2001:db8::5]:30080 external",
        ]
    );
}

#[test]
fn an_address_in_two_groups_belongs_to_the_one_with_ranges() {
    let twice = service(
        json!({"type": "LoadBalancer", "externalIPs": ["198.51.100.1", "10.96.0.10"],
            "ports": [{"port": 80}]}),
        json!([{"ip": "198.51.100.1"}]),
    );
    assert_eq!(
        groups(&twice),
        [
            "shop.web.80 10.96.0.10:80 internal",
            "shop.web.80.lb 198.51.100.1:80 external",
        ]
    );
}

#[test]
fn ports_are_services_and_what_is_neither_tcp_nor_udp_is_told() {
    let several = service(
        json!({"ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            {"name": "assoc", "port": 9, "protocol": "SCTP"},
        ]}),
        json!(null),
    );
    let exposed = expose(&several, &[]);
    assert_eq!(
        shown(&exposed),
        [
            "shop.web.dns 10.96.0.10:53 internal",
            "shop.web.dns-tcp 10.96.0.10:53 internal",
        ]
    );
    assert_eq!(exposed.groups[0].offer.protocol, Protocol::Udp);
    assert_eq!(exposed.groups[1].offer.protocol, Protocol::Tcp);
    assert_eq!(
        exposed.left_out,
        ["Service shop/web: port assoc is SCTP, which lbd does not balance"]
    );
}

#[test]
fn headless_and_external_names_have_nothing_to_balance() {
    for spec in [
        json!({"clusterIP": "None", "clusterIPs": ["None"]}),
        json!({"clusterIP": "", "clusterIPs": []}),
        json!({"clusterIP": null, "clusterIPs": null, "externalIPs": ["192.0.2.7"]}),
    ] {
        assert_eq!(groups(&service(spec, json!(null))), Vec::<String>::new());
    }
    let named = service(
        json!({"type": "ExternalName", "externalName": "web.example"}),
        json!(null),
    );
    let exposed = expose(&named, &[]);
    assert_eq!(exposed.groups.len(), 0);
    assert!(exposed.left_out[0].contains("ExternalName"), "{exposed:?}");
}

#[test]
fn ranges_hold_for_the_load_balancer_alone_and_never_fall_open() {
    let with = |ranges: Value| {
        service(
            json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ranges}),
            json!([{"ip": "198.51.100.1"}]),
        )
    };
    let some = with(json!([" 10.1.2.3/8", "10.0.0.0/8", "2001:db8::/32", "x"]));
    let exposed = expose(&some, &[]);
    let allowed = |n: usize| -> Vec<String> {
        let prefixes = exposed.groups[n].offer.allow_sources.iter();
        prefixes.map(ToString::to_string).collect()
    };
    assert_eq!(shown(&exposed).len(), 2);
    assert_eq!(allowed(0), Vec::<String>::new());
    assert_eq!(allowed(1), ["2001:db8::/32", "10.0.0.0/8"]);
    assert!(exposed.left_out[0].contains("`x`"), "{exposed:?}");

    let none = with(json!(["x", "10.0.0.0/33"]));
    let exposed = expose(&none, &[]);
    assert_eq!(shown(&exposed), ["shop.web.http 10.96.0.10:80 internal"]);
    assert!(
        exposed.left_out[2].contains("nobody may come in"),
        "{exposed:?}"
    );
    assert_eq!(groups(&with(json!([]))).len(), 3);
}

#[test]
fn clients_stay_where_the_service_says_so() {
    let seconds = |spec: Value| {
        let service = service(spec, json!(null));
        let affinity = expose(&service, &[]).groups.remove(0).offer.affinity;
        affinity.map(|affinity| affinity.client_ip.as_secs())
    };
    assert_eq!(seconds(json!({"sessionAffinity": "None"})), None);
    assert_eq!(
        seconds(json!({"sessionAffinity": "ClientIP"})),
        Some(10_800)
    );
    let some = json!({"sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 30}}});
    assert_eq!(seconds(some), Some(30));
}

#[test]
fn addresses_that_are_none_are_told() {
    let odd = service(
        json!({"externalIPs": ["192.0.2.7", "here", "010.0.0.1"], "clusterIPs": ["10.96.0.10", "?"]}),
        json!(null),
    );
    let exposed = expose(&odd, &[]);
    assert_eq!(
        shown(&exposed),
        [
            "shop.web.http 10.96.0.10:80 internal",
            "shop.web.http.external 192.0.2.7:80 external",
        ]
    );
    assert_eq!(exposed.left_out.len(), 3, "{exposed:?}");
}

fn address() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "10.96.0.10",
        "10.0.0.5",
        "192.0.2.7",
        "fd00::10",
        "2001:db8::5",
        "None",
        "",
        "x",
    ])
}

fn addresses() -> impl Strategy<Value = Vec<&'static str>> {
    prop::collection::vec(address(), 0..4)
}

proptest! {
    /// Whatever a Service says: no two groups have a name or a listen in common, and none is empty.
    #[test]
    fn groups_never_overlap(
        kind in prop::sample::select(vec!["ClusterIP", "NodePort", "LoadBalancer"]),
        cluster in addresses(),
        external in addresses(),
        balancer in addresses(),
        ports in prop::collection::hash_set((1..4i32, any::<bool>()), 0..4),
    ) {
        let ports = ports.into_iter().map(|(number, udp)| json!({
            "name": format!("p{number}-{udp}"),
            "port": number,
            "nodePort": 30_000 + number,
            "protocol": if udp { "UDP" } else { "TCP" },
        }));
        let ingress = balancer.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>();
        let service = service(
            json!({"type": kind, "clusterIPs": cluster, "externalIPs": external,
                "ports": ports.collect::<Vec<_>>()}),
            json!(ingress),
        );
        let exposed = expose(&service, &nodes());
        let (mut names, mut listens) = (BTreeSet::new(), BTreeSet::new());
        for group in &exposed.groups {
            prop_assert!(names.insert(&group.offer.name));
            prop_assert!(!group.offer.listen.is_empty());
            for listen in &group.offer.listen {
                prop_assert!(listens.insert((listen, group.offer.protocol)), "{:?}", exposed);
            }
        }
    }
}
