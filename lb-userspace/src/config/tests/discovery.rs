//! `discovery:` of a service.

use super::{accepted, faults, service_with, warnings};
use crate::{
    config::{check, discovery::secret, render, report::Report, tree},
    discovery::{Kind, Secret, dns},
};

fn discovery(text: &str) -> String {
    service_with(&format!("discovery: {text}"))
}

#[test]
fn one_source_with_its_defaults_and_with_every_key() {
    let parsed = accepted(&discovery("{file: {path: /etc/lbd/web.yaml}}")).config;
    let [source] = &parsed.services[0].discovery[..] else {
        panic!("{parsed:?}");
    };
    assert_eq!(source.kind.target(), "/etc/lbd/web.yaml");
    assert_eq!(source.settings, source.kind.usual());
    assert_eq!(source.name("web").to_string(), "web/file:/etc/lbd/web.yaml");

    let text = "\
services:
- name: web
  listen: 192.0.2.10:80
  protocol: tcp
  policy: maglev
  discovery:
  - file:
      path: /etc/lbd/one.yaml
      empty_hold: 10s
      removal_hold: 1500ms
      resync: 1m
      merge_window: 1s
      stale_after: 10m
      weight: 7
      labels:
        zone: z1
  - file:
      path: /etc/lbd/two
";
    let parsed = accepted(text).config;
    assert_eq!(render(&parsed), text);
    assert_eq!(check(&parsed), Vec::<String>::new());
}

#[test]
fn a_service_with_sources_needs_no_backends() {
    let text = "services:\n- {name: web, listen: 192.0.2.10:80, discovery: {file: {path: /a}}}";
    assert_eq!(warnings(text), Vec::<String>::new());
}

#[test]
fn every_fault_has_its_place() {
    for (text, fault) in [
        (
            "{file: {pth: /a}}",
            "4:24: unknown key `pth` in file; did you mean `path`? (allowed: path, empty_hold, \
             removal_hold, resync, merge_window, stale_after, weight or labels)",
        ),
        (
            "{file: {}}",
            "4:23: the file source has no `path`; write e.g. `path: /etc/lbd/web.yaml`",
        ),
        (
            "{file: {path: a/b}}",
            "4:30: file `path` `a/b` is no absolute path; begin it with /",
        ),
        (
            "{file: {path: /a, empty_hold: 60}}",
            "4:46: `empty_hold`: `60` has no unit; write e.g. 5s",
        ),
        (
            "{file: {path: /a, resync: 10ms}}",
            "4:42: file `resync` must be at least 1s, or 0s for never",
        ),
        (
            "{file: {path: /a, merge_window: 2m}}",
            "4:48: file `merge_window` must be at most 1m",
        ),
        (
            "{file: {path: /a, weight: 70000}}",
            "4:42: `weight` must be a whole number from 0 to 65535, not `70000`",
        ),
        (
            "[{file: {path: /a}}, {file: {path: /a}}]",
            "4:38: file `/a` is listed twice; first defined at line 4",
        ),
        (
            "web",
            "4:16: `discovery` must be a mapping such as `file: {path: /etc/lbd/web.yaml}`, or a \
             list of them",
        ),
    ] {
        assert_eq!(faults(&discovery(text)), [fault], "{text}");
    }
}

/// Their ends list the kinds there are.
#[test]
fn faults_about_kinds() {
    for (text, fault) in [
        ("{}", "4:16: `discovery` names no source; write one of "),
        (
            "{fiel: {path: /a}}",
            "4:17: unknown key `fiel` in discovery; did you mean `file`?",
        ),
    ] {
        let faults = faults(&discovery(text));
        assert!(faults[0].starts_with(fault), "{faults:?}");
    }
}

#[test]
fn one_that_would_always_be_stale_is_warned_of() {
    let warned = warnings(&discovery(
        "{file: {path: /a, resync: 1m, stale_after: 1m}}",
    ));
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("hardly longer"), "{warned:?}");
}

#[test]
fn consul_with_every_key() {
    let text = "\
services:
- name: web
  listen: 192.0.2.10:80
  protocol: tcp
  policy: maglev
  discovery:
    consul:
      url: https://consul.example:8501/base
      service: web
      tags:
      - v1
      - blue
      filter: Service.Meta.zone == \"a\"
      datacenter: dc2
      namespace: team
      token:
        file: /etc/lbd/token
      tls:
        ca_file: /etc/lbd/ca.pem
      consistency: stale
      wait: 5m
      weight_unit: 10
      weight: 7
";
    let parsed = accepted(text).config;
    assert_eq!(render(&parsed), text);
    assert_eq!(check(&parsed), Vec::<String>::new());
}

#[test]
fn faults_of_consul() {
    for (text, fault) in [
        (
            "{consul: {}}",
            "4:25: the consul source has no `service`; write e.g. `service: web`",
        ),
        (
            "{consul: {service: \"\"}}",
            "4:35: consul `service` must not be empty, and stand on one line",
        ),
        (
            "{consul: {service: web, wait: 11m}}",
            "4:46: consul `wait` must be from 1s to 10m",
        ),
        (
            "{consul: {service: web, url: 10.0.0.5}}",
            "4:45: `url` must begin with http:// or https://",
        ),
        (
            "{consul: {service: web, consistency: stal}}",
            "4:53: unknown value `stal` for `consistency`; did you mean `stale`? (allowed: \
             default, stale or consistent)",
        ),
        (
            "[{consul: {service: web}}, {consul: {service: web, wait: 2s}}]",
            "4:44: consul `web@127.0.0.1:8500` is listed twice; first defined at line 4",
        ),
    ] {
        assert_eq!(faults(&discovery(text)), [fault], "{text}");
    }
    // Others of the same service are told apart by what they select.
    accepted(&discovery(
        "[{consul: {service: web}}, {consul: {service: web, tags: v2}}]",
    ));
    let warned = warnings(&discovery(
        "{consul: {service: web, url: \"http://10.0.0.5:8500\", token: {env: TOKEN}}}",
    ));
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("unencrypted"), "{warned:?}");
}

#[test]
fn eureka_with_every_key() {
    let text = "\
services:
- name: web
  listen: 192.0.2.10:80
  protocol: tcp
  policy: maglev
  discovery:
    eureka:
      urls:
      - https://eureka-1.example:8761/eureka
      - https://eureka-2.example:8761
      app: web
      user: lbd
      password:
        env: PASSWORD
      tls:
        ca_file: /etc/lbd/ca.pem
      fetch: delta
      port: secure
      interval: 30s
      weight_key: lb.weight
      removal_hold: 0s
";
    let parsed = accepted(text).config;
    assert_eq!(render(&parsed), text);
    assert_eq!(check(&parsed), Vec::<String>::new());
}

#[test]
fn faults_of_eureka() {
    for (text, fault) in [
        (
            "{eureka: {app: web}}",
            "4:25: the eureka source has no `urls`; write e.g. `urls: \
             \"http://10.0.0.5:8761/eureka\"`",
        ),
        (
            "{eureka: {app: web, urls: []}}",
            "4:42: eureka `urls` must name a server",
        ),
        (
            "{eureka: {app: web, urls: \"http://10.0.0.5\", user: lbd}}",
            "4:25: the eureka source has no `password`; write e.g. `password: {file: \
             /etc/lbd/eureka-password}`",
        ),
        (
            "{eureka: {app: web, urls: \"http://10.0.0.5\", password: {env: A}}}",
            "4:71: `password` stands without `user`",
        ),
        (
            "{eureka: {app: web, urls: \"http://10.0.0.5\", interval: 10ms}}",
            "4:71: eureka `interval` must be from 1s to 10m",
        ),
    ] {
        assert_eq!(faults(&discovery(text)), [fault], "{text}");
    }
}

#[test]
fn a_secret_is_a_place_and_is_never_repeated() {
    let read = |text: &str| {
        let mut report = Report::default();
        let node = tree::load(text, &mut report).unwrap();
        let secret = secret(&node, "token", &mut report);
        (secret, report.finish().err().unwrap_or_default())
    };
    let (secret, faults) = read("{file: /etc/token}");
    assert_eq!(
        (secret, faults.len()),
        (Some(Secret::File("/etc/token".into())), 0)
    );
    let (secret, faults) = read("{env: TOKEN}");
    assert_eq!(
        (secret, faults.len()),
        (Some(Secret::Env("TOKEN".into())), 0)
    );
    for text in [
        "hunter2",
        "{file: hunter2}",
        "{value: hunter2}",
        "[hunter2]",
        "{env: ''}",
    ] {
        let (secret, faults) = read(text);
        assert_eq!((secret, faults.len()), (None, 1), "{text}");
        assert!(!faults[0].message.contains("hunter2"), "{faults:?}");
    }
}

#[test]
fn dns_with_its_defaults_and_with_every_key() {
    let parsed = accepted(&discovery(
        "{dns: {name: Web.example.internal, port: 8080}}",
    ))
    .config;
    let source = &parsed.services[0].discovery[0];
    assert_eq!(
        source.name("web").to_string(),
        "web/dns:web.example.internal:8080"
    );
    assert_eq!(source.settings, source.kind.usual());
    let Kind::Dns(config) = &source.kind else {
        panic!("{source:?}");
    };
    assert_eq!(*config, dns::Config::new(config.lookup.clone()));

    let text = "\
services:
- name: web
  listen: 192.0.2.10:80
  protocol: tcp
  policy: maglev
  discovery:
  - dns:
      name: web
      port: 8080
      family: ipv4
      servers:
      - 10.0.0.53:53
      - '[2001:db8::53]:5353'
      search:
      - example.internal
      ndots: 2
      min_ttl: 1s
      timeout: 500ms
      empty_hold: 10s
  - dns:
      srv: _http._tcp.web.example.internal
      search: []
";
    let parsed = accepted(text).config;
    assert_eq!(render(&parsed), text);
    assert_eq!(check(&parsed), Vec::<String>::new());
    let short = discovery("{dns: {name: a, port: 1, servers: 10.0.0.53, search: b.c}}");
    let config = accepted(&short).config;
    let Kind::Dns(config) = &config.services[0].discovery[0].kind else {
        panic!("{config:?}");
    };
    assert_eq!(config.servers, ["10.0.0.53:53".parse().unwrap()]);
    assert_eq!(config.search.as_deref(), Some(&["b.c".to_owned()][..]));
}

#[test]
fn faults_of_dns_have_their_places() {
    for (text, fault) in [
        (
            "{dns: {}}",
            "the dns source without `srv` has no `name`; write e.g. `name: web.example.internal`",
        ),
        (
            "{dns: {name: a.b}}",
            "the dns source without `srv` has no `port`; write e.g. `port: 8080`",
        ),
        (
            "{dns: {srv: a.b, port: 80}}",
            "`port` beside `srv`: SRV records have ports of their own; leave one of them out",
        ),
        (
            "{dns: {srv: a.b, name: c.d}}",
            "`name` beside `srv`: a source asks for the addresses of a name or for SRV records; \
             leave one of them out",
        ),
        (
            "{dns: {name: 10.0.0.1, port: 80}}",
            "dns `name` `10.0.0.1` is an address, not a name; list it under `backends`",
        ),
        (
            "{dns: {srv: \"\"}}",
            "dns `srv` `` must be labels of 1 to 63 characters with dots between",
        ),
        (
            "{dns: {name: a, port: 0}}",
            "`port` must be a whole number from 1 to 65535, not `0`",
        ),
        (
            "{dns: {srv: a, servers: []}}",
            "`servers` is empty; leave it out for those of /etc/resolv.conf",
        ),
        (
            "{dns: {srv: a, servers: [10.0.0.1, 10.0.0.1:53]}}",
            "dns `servers` has 10.0.0.1:53 twice",
        ),
        (
            "{dns: {srv: a, servers: 0.0.0.0}}",
            "dns `servers` has 0.0.0.0:53, at which no server can be",
        ),
        (
            "{dns: {srv: a, search: [b c]}}",
            "dns `search` `b c` has a ' '; letters, digits, `-`, `_` and dots make a name",
        ),
        (
            "{dns: {srv: a, family: ipv5}}",
            "unknown value `ipv5` for `family`; did you mean `ipv4`? (allowed: both, ipv4 or ipv6)",
        ),
        (
            "{dns: {srv: a, min_ttl: 10ms}}",
            "dns `min_ttl` must be 100ms to 1h",
        ),
        (
            "{dns: {srv: a, timeout: 31s}}",
            "dns `timeout` must be 100ms to 30s",
        ),
        (
            "{dns: {srv: a, ndots: 16}}",
            "`ndots` must be a whole number from 0 to 15, not `16`",
        ),
    ] {
        let told = faults(&discovery(text));
        assert!(
            told.iter().any(|told| told.ends_with(fault)),
            "{text}: {told:?}"
        );
    }
}
