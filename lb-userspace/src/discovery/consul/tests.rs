use super::*;
use crate::discovery::{Instance, InstanceState, Snapshot};

fn config(text: &str) -> Config {
    let text = format!(
        "services:\n- {{name: web, listen: 192.0.2.10:80, discovery: {{consul: {text}}}}}\n"
    );
    let parsed = crate::config::parse(&text, "test").unwrap();
    assert_eq!(parsed.warnings, []);
    match parsed.config.services[0].discovery[0].kind.clone() {
        crate::discovery::Kind::Consul(config) => config,
        other => panic!("{other:?}"),
    }
}

/// An entry with these fields of its service, and these checks as id and status.
fn entry(service: &str, checks: &[(&str, &str)]) -> String {
    let checks: Vec<_> = checks
        .iter()
        .map(|(id, status)| {
            format!(r#"{{"CheckID": "{id}", "Status": "{status}", "Output": "text"}}"#)
        })
        .collect();
    format!(
        r#"{{"Node": {{"ID": "8a0d", "Node": "n1", "Address": "10.0.0.1", "Meta": null}},
            "Service": {{{service}}}, "Checks": [{}]}}"#,
        checks.join(", ")
    )
}

fn read(entries: &[String]) -> Snapshot {
    let body = format!("[{}]", entries.join(", "));
    parse(body.as_bytes(), 100).unwrap()
}

fn one(service: &str, checks: &[(&str, &str)]) -> Instance {
    let snapshot = read(&[entry(service, checks)]);
    assert_eq!(snapshot.left_out, Vec::<String>::new());
    snapshot.instances.into_iter().next().unwrap()
}

const WEB: &str = r#""ID": "web-1", "Service": "web", "Address": "10.1.1.2", "Port": 80"#;

#[test]
fn an_instance_with_all_there_is_to_say_of_it() {
    let service = format!(
        r#"{WEB}, "Tags": ["blue", "version=v1", "fast"], "Meta": {{"version": "v2", "zone": "a"}},
           "Weights": {{"Passing": 3, "Warning": 1}}, "EnableTagOverride": false"#
    );
    let instance = one(&service, &[("serfHealth", "passing")]);
    assert_eq!(instance.id, "n1/web-1");
    assert_eq!(instance.address, "10.1.1.2:80".parse().unwrap());
    assert_eq!(instance.weight, Some(300));
    assert_eq!(instance.state, InstanceState::Up);
    let labels: Vec<_> = instance.labels.iter().map(|(k, v)| (&**k, &**v)).collect();
    assert_eq!(
        labels,
        [("tags", "blue,fast"), ("version", "v2"), ("zone", "a")]
    );
}

#[test]
fn without_an_address_of_its_own_it_has_its_nodes() {
    for address in ["", r#", "Address": """#] {
        let service = format!(r#""ID": "web-1", "Port": 81{address}, "Tags": null, "Meta": null"#);
        let instance = one(&service, &[]);
        assert_eq!(instance.address, "10.0.0.1:81".parse().unwrap());
        assert_eq!((instance.weight, instance.state), (None, InstanceState::Up));
    }
    let six = r#""ID": "web-1", "Address": "2001:db8::1", "Port": 80"#;
    assert_eq!(one(six, &[]).address, "[2001:db8::1]:80".parse().unwrap());
}

#[test]
fn all_checks_count_and_maintenance_is_a_drain() {
    let service = format!(r#"{WEB}, "Weights": {{"Passing": 5, "Warning": 2}}"#);
    use InstanceState::{Down, Drain, Up};
    for (checks, state, weight) in [
        (&[][..], Up, 500),
        (&[("serfHealth", "passing"), ("tcp", "passing")], Up, 500),
        (&[("serfHealth", "passing"), ("tcp", "warning")], Up, 200),
        (&[("tcp", "warning"), ("serfHealth", "critical")], Down, 500),
        (&[("tcp", "of a later version")], Down, 500),
        (&[("_node_maintenance", "critical")], Drain, 500),
        (
            &[
                ("_service_maintenance:web-1", "critical"),
                ("tcp", "critical"),
            ],
            Drain,
            500,
        ),
    ] {
        let instance = one(&service, checks);
        assert_eq!(
            (instance.state, instance.weight),
            (state, Some(weight)),
            "{checks:?}"
        );
    }
}

#[test]
fn weights_have_their_ends() {
    for (passing, weight) in [("0", 0), ("655", 65_500), ("656", 65_535), ("-1", 0)] {
        let service = format!(r#"{WEB}, "Weights": {{"Passing": {passing}, "Warning": 1}}"#);
        assert_eq!(one(&service, &[]).weight, Some(weight));
    }
    let service = format!(r#"{WEB}, "Weights": {{"Passing": 9223372036854775807, "Warning": 1}}"#);
    assert_eq!(one(&service, &[]).weight, Some(65_535));
}

#[test]
fn what_is_no_address_is_left_out_and_told() {
    let snapshot = read(&[
        entry(r#""ID": "a", "Address": "web.example", "Port": 80"#, &[]),
        entry(r#""ID": "b", "Address": "10.0.0.1", "Port": 70000"#, &[]),
        entry(WEB, &[]),
    ]);
    assert_eq!(snapshot.instances.len(), 1);
    assert_eq!(
        snapshot.left_out,
        [
            "`n1/a`: its address `web.example` is no IP address",
            "`n1/b`: 70000 is no port"
        ]
    );
}

#[test]
fn one_id_on_two_nodes_is_two_instances() {
    let other = entry(WEB, &[]).replace("\"n1\"", "\"n2\"");
    let ids: Vec<_> = read(&[entry(WEB, &[]), other])
        .instances
        .into_iter()
        .map(|i| i.id)
        .collect();
    assert_eq!(ids, ["n1/web-1", "n2/web-1"]);
}

#[test]
fn what_is_not_the_list_is_refused() {
    assert_eq!(read(&[]), Snapshot::default());
    for body in [
        "",
        "null",
        "{}",
        "[null]",
        "[{}]",
        r#"[{"Node": {"Node": "n1"}, "Service": {}, "Checks": []}]"#,
        r#"[{"Node": null, "Service": {"ID": "a"}, "Checks": []}]"#,
        "[",
    ] {
        assert!(parse(body.as_bytes(), 100).is_err(), "{body}");
    }
}

#[test]
fn the_index_follows_the_documented_rules() {
    assert_eq!(next_index(None, 7), Some(7));
    assert_eq!(next_index(Some(7), 7), Some(7));
    assert_eq!(next_index(Some(7), 9), Some(9));
    assert_eq!(next_index(Some(9), 3), None, "another life of the cluster");
    assert_eq!(next_index(None, 0), Some(1), "0 would never wait");
    assert_eq!(next_index(Some(1), 0), Some(1));
    assert_eq!(next_index(Some(9), 0), None);
}

#[test]
fn what_is_asked_is_escaped_and_named_for_people() {
    let config = config(
        "{url: \"http://[::1]:8500/consul/\", service: web/a b, tags: [v1, \"a&b\"], \
         filter: 'Service.Meta.zone == \"a\"', datacenter: dc2, namespace: team, consistency: stale}",
    );
    assert_eq!(
        path(&config),
        "/v1/health/service/web%2Fa%20b?tag=v1&tag=a%26b&\
         filter=Service.Meta.zone%20%3D%3D%20%22a%22&dc=dc2&ns=team&stale"
    );
    assert_eq!(
        config.target(),
        "web/a b@[::1]:8500/consul?tag=v1&tag=a&b&filter=Service.Meta.zone == \"a\"&dc=dc2&ns=team"
    );
}

#[test]
fn the_least_config() {
    let config = config("{service: web}");
    assert_eq!(path(&config), "/v1/health/service/web");
    assert_eq!(config.target(), "web@127.0.0.1:8500");
    assert_eq!(config.wait, Duration::from_secs(60));
}
