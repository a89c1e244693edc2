use super::*;
use crate::discovery::{Instance, InstanceState, Snapshot};

fn reading() -> Reading {
    Reading {
        port: Port::Any,
        weight_key: "weight".to_owned(),
    }
}

/// An instance as Eureka writes it, with these keys in place of or besides the usual ones.
fn entry(id: &str, status: &str, more: &str) -> String {
    let more = match more {
        "" => r#""port": {"$": 8080, "@enabled": "true"}"#,
        more => more,
    };
    format!(
        r#"{{"instanceId": "{id}", "hostName": "{id}.example", "app": "WEB", "ipAddr": "10.1.1.2",
            "status": "{status}", "overriddenStatus": "UNKNOWN", "countryId": 1, {more},
            "dataCenterInfo": {{"@class": "InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn"}},
            "vipAddress": "web", "lastUpdatedTimestamp": "1700000000000"}}"#
    )
}

fn apps(hash: &str, apps: &[(&str, &[String])]) -> String {
    let apps: Vec<_> = apps
        .iter()
        .map(|(name, entries)| {
            format!(
                r#"{{"name": "{name}", "instance": [{}]}}"#,
                entries.join(", ")
            )
        })
        .collect();
    format!(
        r#"{{"applications": {{"versions__delta": "1", "apps__hashcode": "{hash}",
            "application": [{}]}}}}"#,
        apps.join(", ")
    )
}

fn envelope(text: &str) -> Envelope {
    serde_json::from_str(text).unwrap()
}

fn all(entries: &[String]) -> Registry {
    Registry::of_all("WEB", envelope(&apps("?", &[("WEB", entries)]))).unwrap()
}

fn one(status: &str, more: &str) -> Instance {
    let snapshot = all(&[entry("web-1", status, more)]).snapshot(&reading());
    assert_eq!(snapshot.left_out, Vec::<String>::new());
    snapshot.instances.into_iter().next().unwrap()
}

#[test]
fn an_instance_with_all_there_is_to_say_of_it() {
    let instance = one(
        "UP",
        r#""port": {"$": 8080, "@enabled": "true"}, "securePort": {"$": 8443, "@enabled": "false"},
           "metadata": {"@class": "java.util.HashMap", "version": "v2", "weight": "30",
                        "canary": true, "shard": 7, "odd": null}"#,
    );
    assert_eq!(instance.id, "web-1");
    assert_eq!(instance.address, "10.1.1.2:8080".parse().unwrap());
    assert_eq!(
        (instance.weight, instance.state),
        (Some(30), InstanceState::Up)
    );
    for (key, value) in [("version", "v2"), ("canary", "true"), ("shard", "7")] {
        assert_eq!(instance.labels[key], value);
    }
    assert!(!instance.labels.contains_key("odd"));
}

#[test]
fn each_status_has_its_state() {
    use InstanceState::{Down, Drain, Up};
    for (status, state) in [
        ("UP", Up),
        ("OUT_OF_SERVICE", Drain),
        ("DOWN", Down),
        ("STARTING", Down),
        ("UNKNOWN", Down),
        ("OF_A_LATER_VERSION", Down),
    ] {
        assert_eq!(one(status, "").state, state, "{status}");
    }
}

#[test]
fn ports_are_numbers_or_texts_and_may_be_disabled() {
    for (ports, port) in [
        (r#""port": {"$": 8080, "@enabled": "true"}"#, Some(8080)),
        (r#""port": {"$": "8080", "@enabled": true}"#, Some(8080)),
        (r#""port": {"$": 8080}"#, Some(8080)),
        (r#""port": 8080"#, Some(8080)),
        (r#""port": "8080""#, Some(8080)),
        (
            r#""port": {"$": 8080, "@enabled": "false"},
               "securePort": {"$": "8443", "@enabled": "true"}"#,
            Some(8443),
        ),
        (r#""port": {"$": 8080, "@enabled": false}"#, None),
        (r#""port": {"$": 0, "@enabled": "true"}"#, None),
        (r#""port": {"$": 80800, "@enabled": "true"}"#, None),
        (r#""port": {"@enabled": "true"}"#, None),
        (r#""metadata": {}"#, None),
    ] {
        let snapshot = all(&[entry("web-1", "UP", ports)]).snapshot(&reading());
        let found = snapshot.instances.first().map(|i| i.address.port());
        assert_eq!(found, port, "{ports}");
        assert_eq!(snapshot.left_out.len(), usize::from(port.is_none()));
    }
    let both =
        r#""port": {"$": 1, "@enabled": "true"}, "securePort": {"$": 2, "@enabled": "true"}"#;
    for (port, wanted) in [(Port::Any, 1), (Port::Plain, 1), (Port::Secure, 2)] {
        let reading = Reading { port, ..reading() };
        let snapshot = all(&[entry("web-1", "UP", both)]).snapshot(&reading);
        assert_eq!(snapshot.instances[0].address.port(), wanted);
    }
}

#[test]
fn a_list_of_one_may_be_an_object_and_an_empty_one_missing() {
    let one = entry("web-1", "UP", "");
    let text = format!(
        r#"{{"applications": {{"versions__delta": 1, "apps__hashcode": "UP_1_",
            "application": {{"name": "web", "instance": {one}}}}}}}"#
    );
    let registry = Registry::of_all("WEB", envelope(&text)).unwrap();
    assert_eq!(registry.snapshot(&reading()).instances.len(), 1);
    assert_eq!(registry.hash(), "UP_1_");
    let app = format!(r#"{{"application": {{"name": "WEB", "instance": {one}}}}}"#);
    let app = serde_json::from_str(&app).unwrap();
    let registry = Registry::of_app("WEB", app).unwrap();
    assert_eq!(registry.snapshot(&reading()).instances.len(), 1);

    let none = r#"{"applications": {"versions__delta": "1", "apps__hashcode": ""}}"#;
    let registry = Registry::of_all("WEB", envelope(none)).unwrap();
    assert_eq!(registry.snapshot(&reading()), Snapshot::default());
}

#[test]
fn ids_and_addresses_are_found_as_eurekas_clients_find_them() {
    for (text, id, address) in [
        (
            r#"{"instanceId": "a", "hostName": "h", "ipAddr": "10.0.0.1", "status": "UP", "port": 80}"#,
            "a",
            "10.0.0.1:80",
        ),
        (
            r#"{"hostName": "h", "ipAddr": "10.0.0.1", "status": "UP", "port": 80,
                "dataCenterInfo": {"name": "Amazon", "metadata": {"instance-id": "i-1"}}}"#,
            "i-1",
            "10.0.0.1:80",
        ),
        (
            r#"{"instanceId": "", "hostName": "10.0.0.2", "ipAddr": "", "status": "UP", "port": 80}"#,
            "10.0.0.2",
            "10.0.0.2:80",
        ),
    ] {
        let snapshot = all(&[text.to_owned()]).snapshot(&reading());
        assert_eq!(snapshot.instances[0].id, id);
        assert_eq!(snapshot.instances[0].address, address.parse().unwrap());
    }
    let named = r#"{"instanceId": "a", "ipAddr": "web.example", "status": "UP", "port": 80}"#;
    let snapshot = all(&[named.to_owned()]).snapshot(&reading());
    assert_eq!(
        snapshot.left_out,
        ["`a`: its ipAddr `web.example` is no IP address"]
    );
}

#[test]
fn weights_have_their_ends_and_what_is_none_is_the_sources() {
    for (text, weight) in [
        (r#""7""#, Some(7)),
        ("7", Some(7)),
        (r#""70000""#, Some(65_535)),
        (r#""-1""#, None),
        (r#""heavy""#, None),
    ] {
        let more = format!(r#""port": 80, "metadata": {{"weight": {text}}}"#);
        assert_eq!(one("UP", &more).weight, weight, "{text}");
    }
}

#[test]
fn a_delta_leads_to_what_the_server_holds_or_counts_for_nothing() {
    let full = || {
        let web = [entry("a", "UP", ""), entry("b", "UP", "")];
        let other = [entry("x", "DOWN", "")];
        let text = apps("DOWN_1_UP_2_", &[("WEB", &web), ("OTHER", &other)]);
        let registry = Registry::of_all("WEB", envelope(&text)).unwrap();
        assert_eq!(registry.hash(), "DOWN_1_UP_2_");
        registry
    };
    let action = |id: &str, status: &str, action: &str| {
        entry(
            id,
            status,
            &format!(r#""port": 80, "actionType": "{action}""#),
        )
    };
    let ids = |registry: &Registry| {
        let all = registry.snapshot(&reading()).instances.into_iter();
        all.map(|i| i.id).collect::<Vec<_>>()
    };

    let mut registry = full();
    assert!(registry.apply(envelope(&apps("DOWN_1_UP_2_", &[]))));
    let web = [
        action("c", "UP", "ADDED"),
        action("a", "OUT_OF_SERVICE", "MODIFIED"),
        action("b", "UP", "DELETED"),
    ];
    let other = [action("x", "UP", "MODIFIED"), action("y", "UP", "ADDED")];
    let delta = apps(
        "OUT_OF_SERVICE_1_UP_3_",
        &[("WEB", &web), ("OTHER", &other)],
    );
    assert!(registry.apply(envelope(&delta)));
    assert_eq!(ids(&registry), ["a", "c"]);
    assert!(
        registry.apply(envelope(&delta)),
        "told again, as Eureka does"
    );
    assert_eq!(ids(&registry), ["a", "c"]);

    let stranger = [action("c", "UP", "REPLACED")];
    for (what, delta) in [
        ("another hash", apps("DOWN_1_UP_3_", &[])),
        ("of a server that holds nothing", apps("", &[])),
        (
            "unknown action",
            apps("DOWN_1_UP_3_", &[("WEB", &stranger)]),
        ),
        (
            "no action",
            apps("DOWN_1_UP_3_", &[("WEB", &[entry("c", "UP", "")])]),
        ),
        (
            "no hash",
            r#"{"applications": {"application": []}}"#.to_owned(),
        ),
    ] {
        assert!(!full().apply(envelope(&delta)), "{what}");
    }
}

#[test]
fn what_is_not_eurekas_is_refused() {
    for text in [
        "",
        "null",
        "[]",
        "{}",
        r#"{"applications": []}"#,
        r#"{"applications": "x"}"#,
    ] {
        assert!(serde_json::from_str::<Envelope>(text).is_err(), "{text}");
    }
    let nothing = envelope(r#"{"applications": {}}"#);
    assert!(Registry::of_all("WEB", nothing).is_err_and(|w| w.contains("is this Eureka?")));
    let nameless = [r#"{"ipAddr": "10.0.0.1", "status": "UP"}"#.to_owned()];
    let nameless = envelope(&apps("UP_1_", &[("WEB", &nameless)]));
    assert!(Registry::of_all("WEB", nameless).is_err_and(|w| w.contains("without an id")));
    for (text, words) in [
        (
            r#"{"application": {"name": "OTHER", "instance": []}}"#,
            "`OTHER`",
        ),
        (r#"{"application": {"name": "WEB"}}"#, "without `instance`"),
    ] {
        let app = serde_json::from_str(text).unwrap();
        let fault = Registry::of_app("WEB", app).err().unwrap();
        assert!(fault.contains(words), "{fault}");
    }
}
