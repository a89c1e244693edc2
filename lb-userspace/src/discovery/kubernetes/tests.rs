//! The pure parts. The source against a server is in `lb-tests`.

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::{Value, json};

use super::{
    Select, Traffic, Wanted,
    join::join,
    wire::{self, Event},
};
use crate::discovery::{Class, InstanceState, Snapshot};

fn wanted() -> Wanted {
    Wanted {
        namespace: "shop".to_owned(),
        select: Select::Name("web".to_owned()),
        port: Some("http".to_owned()),
        traffic: Traffic::External,
        node: None,
        zone: None,
    }
}

fn service(name: &str, spec: Value) -> Service {
    let mut whole = json!({
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": "7"},
        "spec": {"ports": [
            {"name": "http", "port": 80, "targetPort": "http"},
            {"name": "metrics", "port": 9100},
        ]},
    });
    for (key, value) in spec.as_object().unwrap() {
        whole["spec"][key] = value.clone();
    }
    serde_json::from_value(whole).unwrap()
}

fn web() -> Service {
    service("web", json!({}))
}

fn slice(name: &str, family: &str, port: Value, endpoints: Value) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {
            "name": name,
            "resourceVersion": "9",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": family,
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": endpoints,
    }))
    .unwrap()
}

/// An endpoint of a pod. `conditions` is three letters for ready, serving and terminating: `y`, `n`,
/// or `-` for none.
fn pod(address: &str, name: &str, conditions: &str) -> Value {
    let mut map = serde_json::Map::new();
    for (key, letter) in ["ready", "serving", "terminating"]
        .into_iter()
        .zip(conditions.chars())
    {
        if letter != '-' {
            map.insert(key.to_owned(), json!(letter == 'y'));
        }
    }
    json!({
        "addresses": [address],
        "conditions": map,
        "targetRef": {"kind": "Pod", "name": name, "namespace": "shop"},
    })
}

fn at(mut endpoint: Value, node: &str, zone: &str, for_zones: &[&str]) -> Value {
    endpoint["nodeName"] = json!(node);
    endpoint["zone"] = json!(zone);
    if !for_zones.is_empty() {
        let zones: Vec<Value> = for_zones.iter().map(|z| json!({"name": z})).collect();
        endpoint["hints"] = json!({"forZones": zones});
    }
    endpoint
}

/// `10.0.0.1:8080 up`, sorted.
fn shown(snapshot: &Snapshot) -> Vec<String> {
    let mut all: Vec<String> = snapshot
        .instances
        .iter()
        .map(|i| format!("{} {}", i.address, i.state.name()))
        .collect();
    all.sort();
    all
}

fn joined(wanted: &Wanted, service: &Service, slices: &[EndpointSlice]) -> Vec<String> {
    shown(&join(wanted, [service], slices).unwrap())
}

#[test]
fn slices_are_joined_with_their_own_numbers_and_each_address_once() {
    let slices = [
        slice(
            "web-b",
            "IPv4",
            json!(8081),
            json!([pod("10.0.0.2", "p2", "yyn")]),
        ),
        slice(
            "web-a",
            "IPv4",
            json!(8080),
            // The second address has no meaning.
            json!([
                pod("10.0.0.1", "p1", "yyn"),
                {"addresses": ["10.0.0.3", "10.0.0.9"], "conditions": {}},
            ]),
        ),
        // p1 moved here, and is not out of date here only.
        slice(
            "web-c",
            "IPv4",
            json!(8080),
            json!([pod("10.0.0.1", "p1", "nnn")]),
        ),
        slice(
            "web-6",
            "IPv6",
            json!(8080),
            json!([pod("2001:db8::1", "p1", "yyn")]),
        ),
    ];
    let snapshot = join(&wanted(), [&web()], &slices).unwrap();
    assert_eq!(
        shown(&snapshot),
        [
            "10.0.0.1:8080 up",
            "10.0.0.2:8081 up",
            "10.0.0.3:8080 up",
            "[2001:db8::1]:8080 up",
        ]
    );
    let mut ids: Vec<_> = snapshot.instances.iter().map(|i| i.id.as_str()).collect();
    ids.sort_unstable();
    assert_eq!(
        ids,
        [
            "10.0.0.3:8080",
            "p1/10.0.0.1:8080",
            "p1/[2001:db8::1]:8080",
            "p2/10.0.0.2:8081",
        ]
    );
    // Neither order matters.
    let turned = join(&wanted(), [&web()], slices.iter().rev()).unwrap();
    assert_eq!(turned, snapshot);
}

#[test]
fn conditions_and_what_stands_in_for_those_that_are_not_there() {
    for (conditions, state) in [
        ("---", "up"),
        ("y--", "up"),
        ("yyn", "up"),
        ("nyn", "down"),
        ("n--", "down"),
        ("nny", "down"),
        ("nyy", "drain"),
        // `serving` unknown is as `ready` says.
        ("n-y", "down"),
        // publishNotReadyAddresses makes it ready whatever happens.
        ("yny", "up"),
    ] {
        let slices = [slice(
            "web-a",
            "IPv4",
            json!(80),
            json!([
                pod("10.0.0.1", "p1", "yyn"),
                pod("10.0.0.2", "p2", conditions)
            ]),
        )];
        let all = joined(&wanted(), &web(), &slices);
        assert_eq!(all[1], format!("10.0.0.2:80 {state}"), "{conditions}");
    }
}

#[test]
fn those_that_are_going_serve_if_nothing_else_does() {
    let both = |first: &str| {
        [
            slice(
                "web-a",
                "IPv4",
                json!(80),
                json!([pod("10.0.0.1", "p1", first), pod("10.0.0.2", "p2", "nyy")]),
            ),
            slice(
                "web-6",
                "IPv6",
                json!(80),
                json!([pod("2001:db8::2", "p2", "nyy")]),
            ),
        ]
    };
    assert_eq!(
        joined(&wanted(), &web(), &both("nny")),
        ["10.0.0.1:80 down", "10.0.0.2:80 up", "[2001:db8::2]:80 up"]
    );
    // Each family for itself: nobody of IPv6 is ready.
    assert_eq!(
        joined(&wanted(), &web(), &both("yyn")),
        ["10.0.0.1:80 up", "10.0.0.2:80 drain", "[2001:db8::2]:80 up"]
    );
}

#[test]
fn addresses_that_are_not_ready_are_published_if_the_service_says_so() {
    let service = service("web", json!({"publishNotReadyAddresses": true}));
    let slices = [slice(
        "web-a",
        "IPv4",
        json!(80),
        json!([pod("10.0.0.1", "p1", "nnn")]),
    )];
    assert_eq!(joined(&wanted(), &service, &slices), ["10.0.0.1:80 up"]);
}

#[test]
fn a_port_by_name_by_number_and_the_only_one() {
    let slices = [slice(
        "web-a",
        "IPv4",
        json!(8080),
        json!([pod("10.0.0.1", "p1", "yyn")]),
    )];
    let with = |port: Option<&str>| Wanted {
        port: port.map(str::to_owned),
        ..wanted()
    };
    for port in ["http", "80"] {
        assert_eq!(
            joined(&with(Some(port)), &web(), &slices),
            ["10.0.0.1:8080 up"]
        );
    }
    // No endpoint has it, which is an answer.
    assert!(joined(&with(Some("9100")), &web(), &slices).is_empty());
    let unnamed = service("web", json!({"ports": [{"port": 80}]}));
    for (name, count) in [(json!(null), 1), (json!(""), 1), (json!("http"), 0)] {
        let mut slices = slices.clone();
        let ports = slices[0].ports.as_mut().unwrap();
        ports[0].name = name.as_str().map(str::to_owned);
        assert_eq!(
            joined(&with(None), &unnamed, &slices).len(),
            count,
            "{name}"
        );
    }
    let both = json!({"ports": [
        {"name": "d", "port": 53, "protocol": "UDP"}, {"name": "t", "port": 53},
    ]});
    for (wanted, service, class, words) in [
        (
            with(Some("htp")),
            web(),
            Class::Missing,
            "no port htp; it has http (80), metrics (9100)",
        ),
        (with(Some("81")), web(), Class::Missing, "no port 81"),
        (
            with(None),
            web(),
            Class::Config,
            "several ports; set `port`",
        ),
        (
            with(Some("53")),
            service("web", both),
            Class::Config,
            "give the port's name",
        ),
        (
            with(None),
            service("web", json!({"ports": []})),
            Class::Missing,
            "has no port",
        ),
        (
            with(None),
            service("web", json!({"type": "ExternalName"})),
            Class::Config,
            "ExternalName",
        ),
        (
            wanted(),
            service("other", json!({})),
            Class::Missing,
            "no Service shop/web",
        ),
    ] {
        let failure = join(&wanted, [&service], &slices).unwrap_err();
        assert_eq!(failure.class, class, "{failure}");
        assert!(failure.message.contains(words), "{failure}");
    }
}

#[test]
fn what_cannot_be_a_backend_is_told() {
    let slices = [
        slice(
            "fqdn",
            "FQDN",
            json!(80),
            json!([pod("web.example", "p1", "yyn")]),
        ),
        slice(
            "portless",
            "IPv4",
            json!(null),
            json!([pod("10.0.0.2", "p2", "yyn")]),
        ),
        slice(
            "large",
            "IPv4",
            json!(70000),
            json!([pod("10.0.0.2", "p2", "yyn")]),
        ),
        slice(
            "odd",
            "IPv4",
            json!(80),
            json!([pod("10.0.0.256", "p3", "yyn"), pod("::1", "p4", "yyn"), {"addresses": []}]),
        ),
        slice(
            "good",
            "IPv4",
            json!(80),
            json!([pod("10.0.0.1", "p5", "yyn")]),
        ),
    ];
    let snapshot = join(&wanted(), [&web()], &slices).unwrap();
    assert_eq!(shown(&snapshot), ["10.0.0.1:80 up"]);
    assert_eq!(
        snapshot.left_out,
        [
            "EndpointSlice fqdn has addresses of type FQDN",
            "EndpointSlice large has no number for port `http`",
            "EndpointSlice odd has an endpoint without address",
            "EndpointSlice odd: `10.0.0.256` is no IPv4 address",
            "EndpointSlice odd: `::1` is no IPv4 address",
            "EndpointSlice portless has no number for port `http`",
        ]
    );
}

#[test]
fn weight_and_version_from_annotations_and_labels() {
    let mut web = web();
    web.metadata.annotations = Some([("lbd.io/weight".to_owned(), "50".to_owned())].into());
    web.metadata.labels = Some([("version".to_owned(), "v1".to_owned())].into());
    let endpoint = at(pod("10.0.0.1", "p1", "yyn"), "n1", "a", &["a", "b"]);
    let mut slices = [slice("web-a", "IPv4", json!(80), json!([endpoint]))];
    let found = join(&wanted(), [&web], &slices)
        .unwrap()
        .instances
        .remove(0);
    assert_eq!(found.weight, Some(50));
    let labels: Vec<_> = found
        .labels
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    assert_eq!(
        labels,
        [
            "hint-zones=a,b",
            "node=n1",
            "pod=p1",
            "service=web",
            "version=v1",
            "zone=a"
        ]
    );
    // The slice's own come first, and an annotation before a label.
    let annotations = slices[0].metadata.annotations.get_or_insert_default();
    annotations.insert("lbd.io/weight".to_owned(), "0".to_owned());
    annotations.insert("lbd.io/version".to_owned(), "v2".to_owned());
    let found = join(&wanted(), [&web], &slices)
        .unwrap()
        .instances
        .remove(0);
    assert_eq!((found.weight, &*found.labels["version"]), (Some(0), "v2"));
    let annotations = slices[0].metadata.annotations.get_or_insert_default();
    annotations.insert("lbd.io/weight".to_owned(), "lots".to_owned());
    let snapshot = join(&wanted(), [&web], &slices).unwrap();
    assert_eq!(snapshot.instances[0].weight, None);
    assert!(
        snapshot.left_out[0].contains("0 to 65535, not `lots`"),
        "{snapshot:?}"
    );
}

#[test]
fn a_local_policy_leaves_those_of_this_node() {
    let slices = [slice(
        "web-a",
        "IPv4",
        json!(80),
        json!([
            at(pod("10.0.0.1", "p1", "nyy"), "n1", "a", &[]),
            at(pod("10.0.0.2", "p2", "yyn"), "n2", "a", &["b"]),
        ]),
    )];
    let local = |key: &str| service("web", json!({key: "Local"}));
    let external = local("externalTrafficPolicy");
    let on = |node: Option<&str>, traffic| Wanted {
        node: node.map(str::to_owned),
        traffic,
        ..wanted()
    };
    // The one that is going is all there is here.
    let here = on(Some("n1"), Traffic::External);
    assert_eq!(joined(&here, &external, &slices), ["10.0.0.1:80 up"]);
    assert!(joined(&on(Some("n3"), Traffic::External), &external, &slices).is_empty());
    assert_eq!(
        joined(&on(Some("n3"), Traffic::Internal), &external, &slices).len(),
        2
    );
    let internal = local("internalTrafficPolicy");
    let there = on(Some("n2"), Traffic::Internal);
    assert_eq!(joined(&there, &internal, &slices), ["10.0.0.2:80 up"]);
    // Nothing is lost where the node is not known.
    let snapshot = join(&on(None, Traffic::External), [&external], &slices).unwrap();
    assert_eq!(snapshot.instances.len(), 2);
    assert!(snapshot.left_out[0].contains("NODE_NAME"), "{snapshot:?}");
}

#[test]
fn hints_count_if_all_have_them_and_some_are_for_here() {
    let slices = |third: &[&str]| {
        [slice(
            "web-a",
            "IPv4",
            json!(80),
            json!([
                at(pod("10.0.0.1", "p1", "yyn"), "n1", "a", &["a"]),
                at(pod("10.0.0.2", "p2", "yyn"), "n2", "b", &["b"]),
                at(pod("10.0.0.3", "p3", "yyn"), "n3", "b", third),
                at(pod("10.0.0.4", "p4", "nyy"), "n3", "b", &[]),
            ]),
        )]
    };
    let zone = |zone: &str| Wanted {
        zone: Some(zone.to_owned()),
        ..wanted()
    };
    assert_eq!(
        joined(&zone("a"), &web(), &slices(&["a", "b"])),
        ["10.0.0.1:80 up", "10.0.0.3:80 up", "10.0.0.4:80 drain"]
    );
    assert_eq!(joined(&zone("c"), &web(), &slices(&["a", "b"])).len(), 4);
    assert_eq!(joined(&zone("a"), &web(), &slices(&[])).len(), 4);
    assert_eq!(joined(&wanted(), &web(), &slices(&["a"])).len(), 4);

    let mut slices = slices(&["b"]);
    for (n, endpoint) in slices[0].endpoints.iter_mut().take(3).enumerate() {
        let hints = json!({"forNodes": [{"name": format!("n{}", n + 1)}],
            "forZones": endpoint.hints.as_ref().unwrap().for_zones});
        endpoint.hints = Some(serde_json::from_value(hints).unwrap());
    }
    let mut here = zone("b");
    here.node = Some("n1".to_owned());
    assert_eq!(
        joined(&here, &web(), &slices),
        ["10.0.0.1:80 up", "10.0.0.4:80 drain"],
        "the node comes before the zone"
    );
    here.node = Some("n9".to_owned());
    assert_eq!(
        joined(&here, &web(), &slices).len(),
        3,
        "and the zone stands in for it"
    );
}

#[test]
fn services_by_label_are_joined() {
    let wanted = Wanted {
        select: Select::Labels("app=web".to_owned()),
        ..wanted()
    };
    let blue = service("blue", json!({}));
    let mut green = service("green", json!({}));
    green.metadata.annotations = Some([("lbd.io/weight".to_owned(), "5".to_owned())].into());
    let portless = service("odd", json!({"ports": [{"port": 1}]}));
    let mut slices = [
        slice(
            "a",
            "IPv4",
            json!(80),
            json!([pod("10.0.0.1", "p1", "yyn")]),
        ),
        slice(
            "b",
            "IPv4",
            json!(80),
            json!([pod("10.0.0.2", "p2", "yyn")]),
        ),
        slice(
            "c",
            "IPv4",
            json!(80),
            json!([pod("10.0.0.3", "p3", "yyn")]),
        ),
    ];
    for (slice, name) in slices.iter_mut().zip(["blue", "green", "stranger"]) {
        let labels = slice.metadata.labels.as_mut().unwrap();
        labels.insert("kubernetes.io/service-name".to_owned(), name.to_owned());
    }
    let snapshot = join(&wanted, [&green, &portless, &blue], &slices).unwrap();
    assert_eq!(shown(&snapshot), ["10.0.0.1:80 up", "10.0.0.2:80 up"]);
    let weights: Vec<_> = snapshot.instances.iter().map(|i| i.weight).collect();
    assert_eq!(weights, [None, Some(5)]);
    assert!(
        snapshot.left_out[0].contains("shop/odd has no port http"),
        "{snapshot:?}"
    );
    let none: [&Service; 0] = [];
    let failure = join(&wanted, none, &slices).unwrap_err();
    assert!(failure.message.contains("labels app=web"), "{failure}");
    assert_eq!(snapshot.instances[0].state, InstanceState::Up);
}

fn list(more: Value) -> Vec<u8> {
    let mut whole = json!({
        "kind": "EndpointSliceList",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"resourceVersion": "100"},
        "items": [],
    });
    for (key, value) in more.as_object().unwrap() {
        whole[key] = value.clone();
    }
    serde_json::to_vec(&whole).unwrap()
}

#[test]
fn a_page_is_a_list_and_nothing_else_is() {
    let mut item = serde_json::to_value(slice("a", "IPv4", json!(80), json!(null))).unwrap();
    item["metadata"]["managedFields"] = json!([{"manager": "kubelet"}]);
    item["unknown"] = json!({"of": "later"});
    let page = wire::page::<EndpointSlice>(&list(json!({
        "items": [item],
        "metadata": {"resourceVersion": "100", "continue": "abc", "remainingItemCount": 3},
    })));
    let page = page.unwrap();
    assert_eq!((&*page.version, page.next.as_deref()), ("100", Some("abc")));
    assert_eq!(page.items[0].metadata.managed_fields, None);
    let nothing = wire::page::<EndpointSlice>(&list(json!({"items": null}))).unwrap();
    assert!(nothing.items.is_empty() && nothing.next.is_none());
    for (bytes, words) in [
        (b"".to_vec(), "not the list"),
        (b"{}".to_vec(), "missing field `kind`"),
        (b"[]".to_vec(), "not the list"),
        (
            list(json!({"kind": "ServiceList"})),
            "a `ServiceList` in place",
        ),
        (list(json!({"kind": "Status"})), "a `Status` in place"),
        (list(json!({"metadata": {}})), "resourceVersion"),
        (
            list(json!({"metadata": {"resourceVersion": ""}})),
            "without a resourceVersion",
        ),
        (list(json!({"items": [{"endpoints": 7}]})), "invalid type"),
        (list(json!({"items": {}})), "not the EndpointSliceList"),
        (
            br#"{"kind": "EndpointSliceList", "metadata": {"resourceVersion": "1"}}"#.to_vec(),
            "`items`",
        ),
    ] {
        let failure = wire::page::<EndpointSlice>(&bytes).unwrap_err();
        assert_eq!(failure.class, Class::Malformed);
        assert!(failure.message.contains(words), "{words}: {failure}");
    }
    let whole = list(json!({"items": [serde_json::to_value(&page.items[0]).unwrap()]}));
    for end in 0..whole.len() {
        assert!(
            wire::page::<EndpointSlice>(&whole[..end]).is_err(),
            "{end} bytes"
        );
    }
}

#[test]
fn events_and_what_is_none() {
    let object = serde_json::to_value(slice("a", "IPv4", json!(80), json!([]))).unwrap();
    let event = |kind: &str, object: &Value| {
        let line = json!({"type": kind, "object": object});
        wire::event::<EndpointSlice>(&serde_json::to_vec(&line).unwrap())
    };
    for kind in ["ADDED", "MODIFIED"] {
        assert!(matches!(event(kind, &object), Ok(Event::Put(_))));
    }
    assert!(matches!(event("DELETED", &object), Ok(Event::Gone(_))));
    let mark = json!({"kind": "EndpointSlice", "metadata": {"resourceVersion": "12"}});
    assert_eq!(
        event("BOOKMARK", &mark),
        Ok(Event::Bookmark("12".to_owned()))
    );
    for status in [
        json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}),
        json!({"kind": "Status", "reason": "Expired"}),
        json!({"code": 410}),
    ] {
        assert_eq!(event("ERROR", &status), Ok(Event::Expired));
    }
    let other = json!({"code": 500, "reason": "InternalError", "message": "etcd is away"});
    let failure = event("ERROR", &other).unwrap_err();
    assert!(failure.message.contains("etcd is away"), "{failure}");
    assert_eq!(failure.class, Class::Refused);
    for (kind, object) in [
        ("ADDED", json!({})),
        (
            "ADDED",
            json!({"kind": "Service", "metadata": {"name": "a", "resourceVersion": "1"}}),
        ),
        (
            "ADDED",
            json!({"metadata": {"resourceVersion": "1"}, "addressType": "IPv4", "endpoints": []}),
        ),
        ("BOOKMARK", json!({"metadata": {}})),
        ("PATCHED", object.clone()),
        ("ADDED", json!(null)),
    ] {
        let failure = event(kind, &object).unwrap_err();
        assert_eq!(failure.class, Class::Malformed, "{kind} {object}");
    }
    assert!(wire::event::<EndpointSlice>(b"").is_err());
    assert!(wire::event::<EndpointSlice>(br#"{"type": "ADDED"}"#).is_err());
}

#[test]
fn what_has_more_values_than_any_server_sends_is_not_taken_apart() {
    let bomb = |what: &str| {
        let some = what.repeat(2_000_000);
        let text = format!(
            "{{\"kind\":\"EndpointSliceList\",\"metadata\":{{\"resourceVersion\":\"1\"}},\"items\":[{some}{{}}]}}"
        );
        wire::page::<EndpointSlice>(text.as_bytes()).unwrap_err()
    };
    for what in ["{},", "[],", "1,"] {
        assert!(bomb(what).message.contains("at most 1500000"), "{what}");
    }
    let line = format!(
        "{{\"type\":\"ADDED\",\"object\":{{\"endpoints\":[{}{{}}]}}}}",
        "{},".repeat(150_000)
    );
    let failure = wire::event::<EndpointSlice>(line.as_bytes()).unwrap_err();
    assert!(failure.message.contains("at most 200000"), "{failure}");
}

#[test]
fn a_page_of_the_largest_slices_is_read() {
    let pod = at(
        pod("10.200.30.40", "web-6d4cf56db6-abcde", "yyn"),
        "node-1",
        "a",
        &["a", "b"],
    );
    let slice =
        serde_json::to_value(slice("a", "IPv4", json!(80), json!(vec![pod; 1000]))).unwrap();
    let text = list(json!({"items": vec![slice; 50]}));
    assert!(text.len() < 32 << 20, "{}", text.len());
    let page = wire::page::<EndpointSlice>(&text).unwrap();
    assert_eq!(
        (page.items.len(), page.items[49].endpoints.len()),
        (50, 1000)
    );
}

#[test]
fn what_nobody_reads_is_not_held() {
    let mut item = json!({
        "metadata": {
            "name": "web", "resourceVersion": "9", "finalizers": ["a"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "web", "uid": "u"}],
            "annotations": {"lbd.io/weight": "5", "lbd.io/version": "v2"},
        },
        "addressType": "IPv4", "endpoints": [],
    });
    let key = "kubectl.kubernetes.io/last-applied-configuration";
    item["metadata"]["annotations"][key] = json!("x".repeat(1 << 20));
    let page = wire::page::<EndpointSlice>(&list(json!({"items": [item]}))).unwrap();
    let metadata = &page.items[0].metadata;
    assert_eq!(metadata.annotations.as_ref().unwrap().len(), 2);
    assert_eq!(
        (&metadata.finalizers, &metadata.owner_references),
        (&None, &None)
    );
}
