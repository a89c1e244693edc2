//! Every fault by its place and its words.

use super::{faults, service_with};
use crate::config::{check, parse};

#[test]
fn ten_mistakes_are_ten_findings() {
    let text = r#"node:
  interfaces: [eth0]
  xpd: auto
services:
  - name: web
    listen: "192.0.2.10:80"
    protocol: tpc
    policy: least-connections
    health: {type: http, path: healthz, interval: 5}
    backends:
      - {address: "app.example:8080"}
      - {address: "10.1.0.11:8080", weight: 70000}
      - {address: "10.1.0.11:8080"}
  - name: web
    listen: "192.0.2.10:80"
"#;
    assert_eq!(
        faults(text),
        [
            "3:3: unknown key `xpd` in node; did you mean `xdp`? (allowed: interfaces, xdp, \
             state_dir, bpffs, limits, timeouts, snat_addresses or snat_ports)",
            "7:15: unknown value `tpc` for `protocol`; did you mean `tcp`? (allowed: tcp or udp)",
            "8:13: `least-connections` is not supported by this version; use `maglev`, \
             `round-robin` or `random`",
            "9:32: health `path` `healthz` must begin with / and be at most 1024 ASCII characters \
             without spaces; escape others as %XX",
            "9:51: `interval`: `5` has no unit; write e.g. 5s",
            "11:19: `address`: `app.example:8080`: `app.example` is a name; write the IP address \
             it stands for",
            "12:45: `weight` must be a whole number from 0 to 65535, not `70000`",
            "13:19: backend 10.1.0.11:8080 is listed twice; first defined at line 12",
            "14:11: the name `web` is used twice; first defined at line 5",
            "15:13: `listen` 192.0.2.10:80 (tcp) is already taken by service `web`; first defined \
             at line 6",
        ]
    );
}

#[test]
fn faults_show_the_file() {
    let faults = parse("node: 1\nadmin: 2", "/etc/lbd/lbd.yaml").unwrap_err();
    assert_eq!(
        faults.to_string(),
        "/etc/lbd/lbd.yaml:1:7: `node` must be a mapping with the keys interfaces, xdp, \
         state_dir, bpffs, limits, timeouts, snat_addresses, snat_ports, not `1`\n\
         /etc/lbd/lbd.yaml:2:8: `admin` must be a mapping with the keys socket, http, not `2`"
    );
}

#[test]
fn the_shape_of_the_file() {
    for (text, fault) in [
        (
            "hello",
            "1:1: the file must be a mapping with the keys node, admin, services, discovery, not `hello`",
        ),
        (
            "servces: []",
            "1:1: unknown key `servces` in the file; did you mean `services`? \
             (allowed: node, admin, services or discovery)",
        ),
        (
            "services: {}",
            "1:11: `services` must be a list of services, not a mapping",
        ),
        (
            "node: {}\nnode: {}",
            "2:1: key `node` is given twice; first at line 1",
        ),
        (
            "node: {}\n---\nnode: {}",
            "2:1: a second YAML document begins here; a config is one document",
        ),
        (
            "node: !x {}",
            "1:10: YAML tag `!x` is not supported; remove it",
        ),
        ("? [a]\n: b", "1:3: a key must be a word"),
        (
            "node: &a [*a]",
            "1:11: this alias is part of what it stands for",
        ),
        (
            "node:\n\txdp: off",
            "2:2: invalid YAML: tabs disallowed within this context (block indentation); indent \
             with spaces, not tabs",
        ),
        (
            "node: {}\r\nx: a\0b",
            "2:5: character U+0000 is not allowed in YAML; is this a text file?",
        ),
    ] {
        assert_eq!(faults(text), [fault], "{text}");
    }
}

#[test]
fn the_node() {
    for (node, fault) in [
        (
            "interfaces: []",
            "1:20: `interfaces` names no device; write `auto` or a list such as [eth0]",
        ),
        (
            "interfaces: [auto]",
            "1:21: interface `auto` stands alone; write `interfaces: auto`",
        ),
        (
            "interfaces: [a, abcdefghijklmnop]",
            "1:24: interface `abcdefghijklmnop` is longer than 15 bytes",
        ),
        ("interfaces: a/b", "1:20: interface `a/b` is no device name"),
        (
            "interfaces: [{}]",
            "1:21: `interfaces` must be `auto` or a list of device names, not a mapping",
        ),
        (
            "xdp: on",
            "1:13: unknown value `on` for `xdp`; allowed: auto, native, generic or off",
        ),
        (
            "xdp: Native",
            "1:13: unknown value `Native` for `xdp`; did you mean `native`? \
             (allowed: auto, native, generic or off)",
        ),
        (
            "state_dir: lbd",
            "1:19: `node.state_dir`: `lbd` is no absolute path; begin it with /",
        ),
        (
            "bpffs: ~",
            "1:15: `bpffs` must be an absolute path, not empty",
        ),
        (
            "bpffs: /sys/../x",
            "1:15: `node.bpffs`: `/sys/../x` contains `..`; write it without",
        ),
        (
            "limits: {connections: 0}",
            "1:30: `connections` must be a whole number from 1 to 16777216, not `0`",
        ),
        (
            "limits: {handshakes: 16777217}",
            "1:29: `handshakes` must be a whole number from 1 to 16777216, not `16777217`",
        ),
        (
            "limits: {backends: many}",
            "1:27: `backends` must be a whole number from 1 to 1048576, not `many`",
        ),
    ] {
        assert_eq!(faults(&format!("node: {{{node}}}")), [fault], "{node}");
    }
}

#[test]
fn the_admin_addresses() {
    for (text, fault) in [
        (
            "admin: {http: \":9464\"}",
            "1:15: `http`: `:9464` is no address; write e.g. \"192.0.2.10:80\" or \
             \"[2001:db8::1]:80\"",
        ),
        (
            "admin: {http: \"127.0.0.1:0\"}",
            "1:15: `admin.http` has port 0; write a port from 1 to 65535",
        ),
        (
            "admin: {socket: run}",
            "1:17: `admin.socket`: `run` is no absolute path; begin it with /",
        ),
        (
            "services: [{name: a, listen: 192.0.2.1:80}]\nadmin: {http: 192.0.2.1:80}",
            "1:30: 192.0.2.1:80 is the address of `admin.http`; defined at line 2",
        ),
    ] {
        assert_eq!(faults(text), [fault], "{text}");
    }
    assert_eq!(
        faults("services: [{name: a, listen: 127.0.0.1:9464}]"),
        [
            "1:30: 127.0.0.1:9464 is the address of `admin.http`",
            "1:30: `listen` 127.0.0.1:9464 is a loopback address; listen on an address that other \
             hosts reach",
        ]
    );
    let long = format!("admin: {{socket: /{}}}", "x".repeat(103));
    assert_eq!(
        faults(&long),
        ["1:17: `admin.socket`: a socket's path has at most 103 bytes, this one 104"]
    );
}

#[test]
fn listen_addresses() {
    for (listen, fault) in [
        (
            "192.0.2.10",
            "`192.0.2.10` has no port; write e.g. \"192.0.2.10:80\"",
        ),
        (
            "'2001:db8::10'",
            "`2001:db8::10` has no port; write e.g. \"[2001:db8::10]:80\"",
        ),
        (
            "'[2001:db8::10]:'",
            "`[2001:db8::10]:`: the port must be a number from 1 to 65535",
        ),
        (
            "192.0.2.10:66000",
            "`192.0.2.10:66000`: the port must be a number from 1 to 65535",
        ),
        (
            "'[192.0.2.10]:80'",
            "`[192.0.2.10]:80`: an IPv4 address takes no brackets: \"192.0.2.10:80\"",
        ),
        (
            "web.example:80",
            "`web.example:80`: `web.example` is a name; write the IP address it stands for",
        ),
        (
            "80",
            "`80` is no address; write IP:PORT, e.g. \"192.0.2.10:80\"",
        ),
    ] {
        let text = format!("services: [{{name: a, listen: {listen}}}]");
        assert_eq!(faults(&text), [format!("1:30: `listen`: {fault}")]);
    }
    for (listen, fault) in [
        (
            "192.0.2.10:0",
            "192.0.2.10:0 has port 0; write a port from 1 to 65535",
        ),
        (
            "0.0.0.0:80",
            "0.0.0.0:80 is the unspecified address; write the address of one host",
        ),
        (
            "224.0.0.1:80",
            "224.0.0.1:80 is a multicast address; write the address of one host",
        ),
        (
            "'[::1]:80'",
            "[::1]:80 is a loopback address; listen on an address that other hosts reach",
        ),
        (
            "'[fe80::1]:80'",
            "[fe80::1]:80 is link-local, which means nothing without a device; write the address \
             of one host",
        ),
        (
            "'[::ffff:192.0.2.1]:80'",
            "[::ffff:192.0.2.1]:80 is an IPv4 address in IPv6 form; write 192.0.2.1",
        ),
    ] {
        let text = format!("services: [{{name: a, listen: {listen}}}]");
        assert_eq!(faults(&text), [format!("1:30: `listen` {fault}")]);
    }
}

#[test]
fn an_unquoted_ipv6_address_is_told_to_be_quoted() {
    let faults = faults("services:\n  - name: a\n    listen: [2001:db8::10]:80\n");
    assert_eq!(faults.len(), 1);
    assert!(
        faults[0].starts_with("3:") && faults[0].contains("an IPv6 address needs quotes"),
        "{faults:?}"
    );
}

#[test]
fn services_left_incomplete() {
    assert_eq!(
        faults("services:\n  - {}\n  - name: b\n    listen: []\n  - web"),
        [
            "2:5: the service has no `name`; write e.g. `name: web`",
            "2:5: the service has no `listen`; write e.g. `listen: \"192.0.2.10:80\"`",
            "4:13: `listen` is empty; write at least one IP:PORT",
            "5:5: `service` must be a mapping with the keys name, listen, protocol, forwarding, \
             snat, tunnel_source, policy, no_backend, on_backend_down, health, backends, \
             allow_sources, deny_sources, max_connections, rate, source_rate, affinity, \
             discovery, not `web`",
        ]
    );
}

#[test]
fn one_service() {
    for (line, fault) in [
        (
            "affinity: {client_ip: 1500ms}",
            "4:27: `affinity.client_ip` must be whole seconds from 1s to 1d, not 1500ms",
        ),
        (
            "affinity: {}",
            "4:15: `affinity` has no `client_ip`; write e.g. `client_ip: 10m`",
        ),
        (
            "allow_sources: [10.0.0.0/8, 10.1.0.1/16]",
            "4:33: `allow_sources`: 10.1.0.1/16 has bits set behind its length; write \
             10.1.0.0/16, or 10.1.0.1/32 for the one address",
        ),
        (
            "deny_sources: [2001:db8::/129]",
            "4:20: `deny_sources`: 2001:db8::/129: the length is a number from 0 to 128",
        ),
        (
            "allow_sources: []",
            "4:20: `allow_sources` lists nothing; write at least one prefix, or remove it",
        ),
        (
            "rate: {burst: 5}",
            "4:11: `rate` has no `connections_per_second`; write e.g. `connections_per_second: 100`",
        ),
        (
            "source_rate: {connections_per_second: 0}",
            "4:43: `connections_per_second` must be a whole number from 1 to 1000000, not `0`",
        ),
        (
            "max_connections: 0",
            "4:22: `max_connections` must be a whole number from 1 to 16777216, not `0`",
        ),
        (
            "forwarding: dsr",
            "4:17: unknown value `dsr` for `forwarding`; allowed: nat, dsr-l2 or dsr-ipip",
        ),
        (
            "tunnel_source: 172.16",
            "4:20: `tunnel_source`: `172.16` is no prefix; write e.g. 10.0.0.0/8 or 2001:db8::/32",
        ),
        (
            "tunnel_source: 172.16.0.1/16",
            "4:20: `tunnel_source`: 172.16.0.1/16 has bits set behind its length; write \
             172.16.0.0/16, or 172.16.0.1/32 for the one address",
        ),
        (
            "policy: round_robin",
            "4:13: unknown value `round_robin` for `policy`; did you mean `round-robin`? \
             (allowed: maglev, round-robin or random)",
        ),
        (
            "snat: [auto]",
            "4:11: `snat` must be auto, always or never, not a list",
        ),
        (
            "no_backend: rejct",
            "4:17: unknown value `rejct` for `no_backend`; did you mean `reject`? \
             (allowed: reject or drop)",
        ),
        (
            "on_backend_down: rst",
            "4:22: unknown value `rst` for `on_backend_down`; allowed: keep or reset",
        ),
        (
            "backends: [{weight: 1}]",
            "4:16: the backend has no `address`; write e.g. `address: \"10.1.0.11:8080\"`",
        ),
        (
            "backends: [{address: 192.0.2.10:80}]",
            "4:26: backend 192.0.2.10:80 is what service `web` listens on; packets would come \
             straight back, so write a server's address; first defined at line 3",
        ),
        (
            "backends: [{address: 10.0.0.1:80, weight: \"5\"}]",
            "4:47: `weight` must be a whole number from 0 to 65535, not text; remove the quotes",
        ),
        (
            "backends: [{address: 10.0.0.1:80, weight: 010}]",
            "4:47: `weight` must be a whole number from 0 to 65535, not `010`",
        ),
        (
            "backends: [{address: 10.0.0.1:80, labels: {a b: c}}]",
            "4:47: label `a b` must be 1 to 63 characters a-z, A-Z, 0-9, `.`, `_`, `/` and `-`",
        ),
        (
            "backends: [{address: 10.0.0.1:80, labels: v1}]",
            "4:47: `labels` must be a mapping such as {version: v1}",
        ),
    ] {
        assert_eq!(faults(&service_with(line)), [fault], "{line}");
    }
}

#[test]
fn the_health_of_a_service() {
    for (health, fault) in [
        (
            "htp",
            "4:13: unknown value `htp` for `health`; did you mean `http`? \
             (allowed: none, tcp or http)",
        ),
        (
            "{path: /}",
            "4:20: `path` is only for `type: http`; set the type or remove it",
        ),
        (
            "{type: tcp, host: a}",
            "4:31: `host` is only for `type: http`; set the type or remove it",
        ),
        (
            "{interval: 0s}",
            "4:24: health `interval` is zero; write e.g. 1s",
        ),
        (
            "{timeout: 1.5ms}",
            "4:23: health `timeout` must be whole milliseconds",
        ),
        (
            "{interval: 2d}",
            "4:24: health `interval` must be from 1ms to 1d",
        ),
        (
            "{interval: soon}",
            "4:24: `interval`: `soon` is no duration; write e.g. 500ms, 5s, 10m",
        ),
        (
            "{rise: 0}",
            "4:20: `rise` must be a whole number from 1 to 1000, not `0`",
        ),
        (
            "{port: 0}",
            "4:20: `port` must be a whole number from 1 to 65535, not `0`",
        ),
        (
            "{type: http, expect_status: [2xx]}",
            "4:42: `expect_status`: `2xx` is not a status such as 200 or a range such as 200-299",
        ),
        (
            "{type: http, expect_status: [200-299, 204]}",
            "4:51: `expect_status`: 204 is listed twice",
        ),
        (
            "{type: http, expect_status: []}",
            "4:41: health `expect_status` is empty; write e.g. [200]",
        ),
        (
            "{type: http, host: \"a\\nb\"}",
            "4:32: health `host` `a\\nb` is no host name",
        ),
    ] {
        assert_eq!(
            faults(&service_with(&format!("health: {health}"))),
            [fault],
            "{health}"
        );
    }
}

#[test]
fn a_faulty_value_is_reported_once() {
    assert_eq!(
        faults("servces: [{nmae: web, listen: 0.0.0.0:80}]"),
        [
            "1:1: unknown key `servces` in the file; did you mean `services`? \
             (allowed: node, admin, services or discovery)",
            "1:12: unknown key `nmae` in service; did you mean `name`? (allowed: name, listen, \
             protocol, forwarding, snat, tunnel_source, policy, no_backend, on_backend_down, health, \
             backends, allow_sources, deny_sources, max_connections, rate, source_rate, affinity \
             or discovery)",
            "1:31: `listen` 0.0.0.0:80 is the unspecified address; write the address of one host",
        ]
    );
    assert_eq!(faults(&service_with("protocol: tcpp")).len(), 1);
    let twice = "services:\n- {listen: 192.0.2.1:80}\n- {listen: 192.0.2.2:80}";
    assert_eq!(faults(twice).len(), 2);
}

#[test]
fn limits_bound_what_is_configured() {
    let two = "services:\n- {name: a, listen: 192.0.2.1:80}\n- {name: b, listen: 192.0.2.2:80}\n";
    assert_eq!(
        faults(&format!("{two}node: {{limits: {{services: 1}}}}")),
        ["4:27: 2 services, but `node.limits.services` is 1; raise it"]
    );
}

#[test]
fn sources_that_nobody_could_answer() {
    let with = |node: &str| {
        faults(&format!(
            "services: [{{name: a, listen: 192.0.2.1:80}}]\nnode: {{{node}}}"
        ))
    };
    assert_eq!(
        with("snat_addresses: [10.0.0.1, 10.0.0, 127.0.0.1, 10.0.0.1], snat_ports: 9-1"),
        [
            "2:35: `snat_addresses`: `10.0.0` is no IP address; write e.g. 10.0.0.1",
            "2:43: `snat_addresses`: backends cannot answer to 127.0.0.1; write an address of \
             this node that they reach",
            "2:54: `snat_addresses`: 10.0.0.1 is listed twice; first defined at line 2",
            "2:77: `snat_ports`: 9 is behind 1; write 1-9",
        ]
    );
    assert_eq!(
        with("snat_ports: 20000"),
        ["2:20: `snat_ports` must be the first and the last port, e.g. 20000-29999, not `20000`"]
    );
    let many: Vec<_> = (1..=17).map(|n| format!("10.0.0.{n}")).collect();
    let many = with(&format!("snat_addresses: [{}]", many.join(", ")));
    assert!(many[0].contains("at most 16"), "{many:?}");
}

#[test]
fn timeouts_within_what_the_daemon_can_keep() {
    let with = |timeouts: &str| {
        let services = "services: [{name: a, listen: 192.0.2.1:80}]";
        faults(&format!("{services}\nnode: {{timeouts: {{{timeouts}}}}}"))
    };
    for wrong in ["2h4", "4m2h", "2h2h", "h", "2hm", "2h-4m"] {
        assert_eq!(with(&format!("udp: {wrong}")).len(), 1, "{wrong}");
    }
    assert_eq!(
        with("udp: 500ms, tcp_closed: 21d, tcp_closing: 10"),
        [
            "2:24: `node.timeouts.udp` must be from 1s to 20d, not 500ms; connections are looked \
             at once a second",
            "2:43: `node.timeouts.tcp_closed` must be from 1s to 20d, not 21d; connections are \
             looked at once a second",
            "2:61: `tcp_closing`: `10` has no unit; write e.g. 5s",
        ]
    );
}

#[test]
fn a_config_without_a_file_gets_the_same_checks() {
    let mut config = parse(&service_with(""), "f").unwrap().config;
    assert_eq!(check(&config), Vec::<String>::new());
    let mut copy = config.services[0].clone();
    copy.listen[0].set_port(0);
    config.services.push(copy);
    assert_eq!(
        check(&config),
        [
            "service `web`: `listen` 192.0.2.10:0 has port 0; write a port from 1 to 65535",
            "service `web`: the name `web` is used twice",
        ]
    );
}

#[test]
fn direct_return_contradicted() {
    let text = |keys: &str, listen: &str, backend: &str| {
        format!(
            "services:\n  - name: web\n    listen: \"{listen}\"\n    {keys}\n    backends: \
             [{{address: \"{backend}\"}}]\n"
        )
    };
    let (v4, v6) = ("192.0.2.1:80", "[2001:db8::1]:80");
    for (keys, listen, backend, fault) in [
        (
            "{forwarding: dsr-l2}",
            v4,
            "10.1.0.1:8080",
            "backend 10.1.0.1:8080 has another port than 192.0.2.1:80, but `forwarding: dsr-l2` \
             changes no ports; write port 80, or use `forwarding: nat`",
        ),
        (
            "{forwarding: dsr-ipip, snat: always}",
            v4,
            "10.1.0.1:80",
            "`snat: always` contradicts `forwarding: dsr-ipip`, with which backends answer clients \
             themselves; remove it, or use `forwarding: nat`",
        ),
        (
            "{forwarding: dsr-ipip}",
            v6,
            "10.1.0.1:80",
            "backend 10.1.0.1:80 cannot serve IPv6 with `forwarding: dsr-ipip`; write its IPv6 \
             address",
        ),
        (
            "{forwarding: dsr-l2}",
            v4,
            "[fd00::1]:80",
            "backend [fd00::1]:80 cannot serve IPv4 with `forwarding: dsr-l2`; write its IPv4 \
             address, or use `forwarding: dsr-ipip`",
        ),
        (
            "{forwarding: dsr-ipip, tunnel_source: [172.16.0.0/16, 172.17.0.0/16]}",
            v4,
            "10.1.0.1:80",
            "`tunnel_source` 172.17.0.0/16 is the second of its family; write one of each",
        ),
    ] {
        let keys = keys.trim_matches(['{', '}']);
        let keys = keys
            .split(", ")
            .fold(String::new(), |keys, key| match keys.is_empty() {
                true => key.to_owned(),
                // Inside a list the comma goes on.
                false if !key.contains(": ") => keys + ", " + key,
                false => keys + "\n    " + key,
            });
        let text = text(&keys, listen, backend);
        let found = faults(&text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].ends_with(fault), "{text}: {found:?}");
    }
    let crossed = text("forwarding: dsr-ipip", v4, "[fd00::1]:80");
    assert!(crate::config::parse(&crossed, "f").is_ok(), "{crossed}");
}
