use serde_json::{Value, json};

use super::*;
use crate::discovery::InstanceState;

fn service(namespace: &str, name: &str, more: Value) -> Service {
    let mut whole = json!({
        "metadata": {"name": name, "namespace": namespace, "resourceVersion": "7"},
        "spec": {"clusterIPs": ["10.96.0.10"], "type": "NodePort",
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}]},
    });
    for (key, value) in more.as_object().unwrap() {
        whole["spec"][key] = value.clone();
    }
    serde_json::from_value(whole).unwrap()
}

fn slice(namespace: &str, service: &str, name: &str, hosts: &[(u8, &str)]) -> EndpointSlice {
    let endpoints = hosts
        .iter()
        .map(|(host, node)| json!({"addresses": [format!("10.0.0.{host}")], "nodeName": node}));
    serde_json::from_value(json!({
        "metadata": {
            "name": name,
            "namespace": namespace,
            "resourceVersion": "9",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints.collect::<Vec<_>>(),
    }))
    .unwrap()
}

fn own() -> std::io::Result<Vec<IpAddr>> {
    let all = ["127.0.0.1", "10.0.0.5", "172.16.0.5"];
    Ok(all.map(|ip| ip.parse().unwrap()).into())
}

fn market() -> Market {
    let place = Place {
        node: Some("n1".to_owned()),
        zone: None,
        nodeport_addresses: vec![
            "10.0.0.0/8".parse().unwrap(),
            "127.0.0.0/8".parse().unwrap(),
        ],
    };
    Market::new(place, own)
}

/// Each service with where it listens and the hosts of its backends.
fn shown(catalogue: &Catalogue) -> Vec<String> {
    let services = catalogue.services.instances.iter().map(|offer| {
        let listens: Vec<_> = offer.listen.iter().map(ToString::to_string).collect();
        let backends = &catalogue.backends[&offer.name].instances;
        let hosts: Vec<_> = backends
            .iter()
            .map(|i| i.address.to_string().replace("10.0.0.", ""))
            .collect();
        format!("{} {} → {}", offer.name, listens.join(","), hosts.join(" "))
    });
    services.collect()
}

#[test]
fn services_have_the_backends_of_their_slices_in_their_namespace() {
    let mut market = market();
    market
        .put_service(service("shop", "web", json!({})))
        .unwrap();
    market
        .put_service(service("test", "web", json!({"type": "ClusterIP"})))
        .unwrap();
    market
        .put_slice(slice("shop", "web", "a", &[(1, "n1"), (2, "n2")]))
        .unwrap();
    market
        .put_slice(slice("shop", "web", "b", &[(3, "n1")]))
        .unwrap();
    market
        .put_slice(slice("test", "web", "a", &[(9, "n1")]))
        .unwrap();
    market
        .put_slice(slice("shop", "other", "c", &[(7, "n1")]))
        .unwrap();
    assert_eq!(
        shown(&market.catalogue()),
        [
            "shop.web.http 10.96.0.10:80 → 1:8080 2:8080 3:8080",
            "shop.web.http.external 10.0.0.5:30080 → 1:8080 2:8080 3:8080",
            "test.web.http 10.96.0.10:80 → 9:8080",
        ]
    );
    market.drop_slice(&slice("shop", "web", "a", &[]));
    market.drop_service(&service("test", "web", json!({})));
    let catalogue = market.catalogue();
    assert_eq!(
        shown(&catalogue),
        [
            "shop.web.http 10.96.0.10:80 → 3:8080",
            "shop.web.http.external 10.0.0.5:30080 → 3:8080",
        ]
    );
    let backend = &catalogue.backends["shop.web.http"].instances[0];
    assert_eq!(backend.state, InstanceState::Up);
    assert_eq!(backend.labels["service"], "web");
}

#[test]
fn each_group_obeys_its_own_policy() {
    let mut market = market();
    let local = json!({"externalTrafficPolicy": "Local"});
    market.put_service(service("shop", "web", local)).unwrap();
    market
        .put_slice(slice("shop", "web", "a", &[(1, "n1"), (2, "n2")]))
        .unwrap();
    assert_eq!(
        shown(&market.catalogue()),
        [
            "shop.web.http 10.96.0.10:80 → 1:8080 2:8080",
            "shop.web.http.external 10.0.0.5:30080 → 1:8080",
        ]
    );
    let local = json!({"internalTrafficPolicy": "Local"});
    market.put_service(service("shop", "web", local)).unwrap();
    assert_eq!(
        shown(&market.catalogue()),
        [
            "shop.web.http 10.96.0.10:80 → 1:8080",
            "shop.web.http.external 10.0.0.5:30080 → 1:8080 2:8080",
        ]
    );
}

#[test]
fn a_group_has_the_backends_of_the_families_that_it_listens_on() {
    let mut market = market();
    let dual = json!({"clusterIPs": ["10.96.0.10", "fd00::10"]});
    market.put_service(service("shop", "web", dual)).unwrap();
    market
        .put_slice(slice("shop", "web", "a", &[(1, "n1")]))
        .unwrap();
    let mut six = slice("shop", "web", "b", &[]);
    six.address_type = "IPv6".to_owned();
    six.endpoints = serde_json::from_value(json!([{"addresses": ["fd00::1"]}])).unwrap();
    market.put_slice(six).unwrap();
    assert_eq!(
        shown(&market.catalogue()),
        [
            "shop.web.http 10.96.0.10:80,[fd00::10]:80 → 1:8080 [fd00::1]:8080",
            "shop.web.http.external 10.0.0.5:30080 → 1:8080",
        ]
    );
}

#[test]
fn what_did_not_change_stays_the_same() {
    let mut market = market();
    for name in ["web", "api"] {
        market
            .put_service(service("shop", name, json!({"type": "ClusterIP"})))
            .unwrap();
        market
            .put_slice(slice("shop", name, name, &[(1, "n1")]))
            .unwrap();
    }
    let first = market.catalogue();
    market
        .put_slice(slice("shop", "web", "more", &[(2, "n1")]))
        .unwrap();
    // An object that is written again as it was.
    market
        .put_service(service("shop", "api", json!({"type": "ClusterIP"})))
        .unwrap();
    let second = market.catalogue();
    let same = |name: &str| Arc::ptr_eq(&first.backends[name], &second.backends[name]);
    assert!(same("shop.api.http") && !same("shop.web.http"));
    for (a, b) in first
        .services
        .instances
        .iter()
        .zip(&second.services.instances)
    {
        assert!(Arc::ptr_eq(a, b), "{a:?}");
    }
    // Everything is listed anew.
    let begun = market.begin(
        vec![service("shop", "api", json!({"type": "ClusterIP"}))],
        vec![slice("shop", "api", "api", &[(1, "n1")])],
    );
    begun.unwrap();
    let third = market.catalogue();
    assert_eq!(shown(&third), ["shop.api.http 10.96.0.10:80 → 1:8080"]);
    let (before, after) = (&first.backends, &third.backends);
    assert!(Arc::ptr_eq(
        &before["shop.api.http"],
        &after["shop.api.http"]
    ));
}

#[test]
fn a_slice_may_change_its_service() {
    let mut market = market();
    for name in ["web", "api"] {
        market
            .put_service(service("shop", name, json!({"type": "ClusterIP"})))
            .unwrap();
    }
    market
        .put_slice(slice("shop", "web", "a", &[(1, "n1")]))
        .unwrap();
    market.catalogue();
    market
        .put_slice(slice("shop", "api", "a", &[(1, "n1")]))
        .unwrap();
    assert_eq!(
        shown(&market.catalogue()),
        [
            "shop.api.http 10.96.0.10:80 → 1:8080",
            "shop.web.http 10.96.0.10:80 → ",
        ]
    );
    let mut stray = slice("shop", "api", "a", &[(1, "n1")]);
    stray.metadata.labels = None;
    market.put_slice(stray).unwrap();
    let backends = market.catalogue().backends;
    assert!(backends.values().all(|set| set.instances.is_empty()));
}

#[test]
fn what_is_asked_follows_what_is_wanted() {
    let config = |namespace: Option<&str>, select: Select| Config {
        access: Access::InCluster,
        namespace: namespace.map(str::to_owned),
        select,
        nodeport_addresses: Vec::new(),
        node: None,
        zone: None,
        watch_timeout: Duration::from_secs(60),
    };
    let all = config(None, Select::Labels(SELECTOR.to_owned()));
    assert_eq!(
        all.target(),
        "*/[service.kubernetes.io/service-proxy-name=lbd]"
    );
    let (services, slices) = all.queries();
    assert_eq!((services.namespace, slices.namespace), (None, None));
    assert_eq!(services.labels.as_deref(), Some(SELECTOR));
    assert_eq!(slices.labels.as_deref(), Some(SERVICE_LABEL));
    let one = config(Some("shop"), Select::Name("web".to_owned()));
    assert_eq!(one.target(), "shop/web");
    let (services, slices) = one.queries();
    assert_eq!(services.fields.as_deref(), Some("metadata.name=web"));
    let label = "kubernetes.io/service-name=web";
    assert_eq!(slices.labels.as_deref(), Some(label));
}

#[test]
fn slices_are_held_up_to_a_bound() {
    let endpoint = |n: usize| {
        json!({
            "addresses": [format!("10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{}", n % 5000),
            "targetRef": {
                "kind": "Pod", "namespace": "shop", "name": format!("web-6d4cf56db6-{n}"),
                "uid": "3b0d7a3e-7b8f-4f1c-9d1e-0a1b2c3d4e5f",
            },
            "zone": "eu-central-1a",
            "hints": {"forZones": [{"name": "eu-central-1a"}]},
        })
    };
    let mut large = slice("shop", "web", "", &[]);
    let endpoints = (0..1000).map(|n| serde_json::from_value(endpoint(n)).unwrap());
    large.endpoints = endpoints.collect();
    let mut market = Market::new(Place::default(), || Ok(Vec::new()));
    let mut put = |n: usize| {
        large.metadata.name = Some(format!("web-{n}"));
        market.put_slice(large.clone())
    };
    // Those of 100,000 pods with an address of each family.
    (0..200).for_each(|n| put(n).unwrap());
    let full = (200..1000).find_map(|n| put(n).err()).unwrap();
    assert!(full.message.contains("256 MiB"), "{full}");

    // Endpoints that say nothing take memory as well.
    let mut empty = slice("shop", "web", "", &[]);
    empty.endpoints = vec![Default::default(); 100_000];
    let mut market = Market::new(Place::default(), || Ok(Vec::new()));
    let full = (0..12).find_map(|n| {
        empty.metadata.name = Some(format!("web-{n}"));
        market.slice(Event::Put(empty.clone())).err()
    });
    assert!(full.unwrap().message.contains("endpointslices take more"));
}
