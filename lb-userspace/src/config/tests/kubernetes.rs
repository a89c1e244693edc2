//! `discovery: {kubernetes: …}`.

use super::{accepted, faults, service_with, warnings};
use crate::{
    config::{check, render},
    discovery::{
        Kind,
        kubernetes::{Access, Select, Traffic, WATCH_TIMEOUT},
    },
};

fn discovery(text: &str) -> String {
    service_with(&format!("discovery: {{kubernetes: {text}}}"))
}

#[test]
fn the_least_and_everything() {
    let parsed = accepted(&discovery("{namespace: shop, service: web, port: 80}")).config;
    let source = &parsed.services[0].discovery[0];
    assert_eq!(source.name("web").to_string(), "web/kubernetes:shop/web:80");
    let Kind::Kubernetes(config) = &source.kind else {
        panic!("{source:?}");
    };
    assert_eq!(config.access, Access::InCluster);
    assert_eq!(config.wanted.select, Select::Name("web".to_owned()));
    assert_eq!(config.wanted.traffic, Traffic::External);
    assert_eq!(config.watch_timeout, WATCH_TIMEOUT);
    assert_eq!(check(&parsed), Vec::<String>::new());

    let text = "\
services:
- name: web
  listen: 192.0.2.10:80
  protocol: tcp
  policy: maglev
  discovery:
  - kubernetes:
      namespace: shop
      service: web
      port: http
      node: n1
      zone: a
      traffic: internal
      watch_timeout: 5m
      server: https://10.0.0.1:6443
      token:
        file: /etc/lbd/token
      tls:
        ca_file: /etc/lbd/ca.pem
      weight: 7
  - kubernetes:
      namespace: shop
      selector: app=web
      kubeconfig: /etc/lbd/kubeconfig
      context: east
";
    let parsed = accepted(text).config;
    assert_eq!(render(&parsed), text);
    assert_eq!(check(&parsed), Vec::<String>::new());
    let names = parsed.services[0].discovery.iter();
    let names: Vec<_> = names.map(|source| source.kind.target()).collect();
    assert_eq!(
        names,
        [
            "https://10.0.0.1:6443/shop/web:http",
            "/etc/lbd/kubeconfig#east:shop/[app=web]"
        ]
    );
}

#[test]
fn every_fault_is_told() {
    for (text, words) in [
        ("{service: web}", "has no `namespace`"),
        ("{namespace: shop}", "has no `service`"),
        (
            "{namespace: shop, service: web, selector: a=b}",
            "exclude each other",
        ),
        (
            "{namespace: Shop, service: web}",
            "kubernetes `namespace` `Shop` must be",
        ),
        (
            "{namespace: shop, service: we/b}",
            "kubernetes `service` `we/b` must be",
        ),
        (
            "{namespace: shop, selector: \"\"}",
            "must be a label selector",
        ),
        (
            "{namespace: shop, service: web, port: 70000}",
            "neither a port's name nor a number",
        ),
        (
            "{namespace: shop, service: web, traffic: both}",
            "`traffic`",
        ),
        (
            "{namespace: shop, service: web, watch_timeout: 500ms}",
            "whole seconds from 1s to 1h",
        ),
        (
            "{namespace: shop, service: web, kubeconfig: a}",
            "no absolute path",
        ),
        (
            "{namespace: shop, service: web, context: a}",
            "`context` goes with `kubeconfig`",
        ),
        (
            "{namespace: shop, service: web, token: {env: T}}",
            "`token` goes with `server`",
        ),
        (
            "{namespace: shop, service: web, kubeconfig: /a, server: \"http://a\"}",
            "`server` and `kubeconfig` exclude",
        ),
        (
            "{namespace: shop, service: web, server: \"https://a\", token: hunter2}",
            "`token` must say where the secret is",
        ),
    ] {
        let faults = faults(&discovery(text));
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        assert!(faults[0].contains(words), "{text}: {faults:?}");
        assert!(!faults[0].contains("hunter2"), "{faults:?}");
    }
    let warned = warnings(&discovery(
        "{namespace: shop, service: web, server: \"http://a\", token: {env: T}}",
    ));
    assert!(warned[0].contains("in the clear"), "{warned:?}");
}
