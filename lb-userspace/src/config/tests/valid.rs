//! What is accepted, and with which defaults.

use std::time::Duration;

use super::{accepted, faults, service_with, warnings};
use crate::{
    config::default_health,
    model::{
        Admin, AutoWord, Health, HealthCheck, Interfaces, Limits, Node, Policy, Protocol, XdpMode,
    },
};

#[test]
fn the_documented_example() {
    let parsed = accepted(
        r#"
node:
  interfaces: [eth0]          # or auto
  xdp: auto                   # auto | native | generic | off
  state_dir: /var/lib/lbd
  bpffs: /sys/fs/bpf
admin: {socket: /run/lbd/lbd.sock, http: "127.0.0.1:9464"}
services:
  - name: web
    listen: "192.0.2.10:80"
    protocol: tcp
    forwarding: nat
    snat: auto
    policy: maglev
    health: {type: http, path: /healthz, expect_status: [200], interval: 5s, timeout: 2s, rise: 2, fall: 3}
    backends:
      - {address: "10.1.0.11:8080", weight: 100, labels: {version: v1}}
"#,
    );
    assert_eq!(parsed.warnings, []);
    let config = parsed.config;
    assert_eq!(
        config.node.interfaces,
        Interfaces::Named(vec!["eth0".into()])
    );
    assert_eq!(config.admin, Admin::default());
    let web = &config.services[0];
    assert_eq!(web.policy, Policy::Maglev);
    assert_eq!(
        web.health.check,
        HealthCheck::Http {
            path: "/healthz".into(),
            host: None,
            expect_status: vec![200]
        }
    );
    assert_eq!(web.backends[0].labels["version"], "v1");
}

#[test]
fn an_empty_file_is_valid_but_odd() {
    let odd = "no services are configured: nothing is balanced until some are added";
    for text in [
        "",
        "# nothing\n",
        "---\n...\n",
        "\u{feff}",
        "{}",
        "node:\nadmin:\n",
    ] {
        let parsed = accepted(text);
        assert_eq!(parsed.config.node, Node::default());
        assert_eq!(warnings(text), [format!("1:1: {odd}")]);
    }
    assert_eq!(warnings("node:\nservices:  []"), [format!("2:12: {odd}")]);
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = accepted(&service_with("")).config;
    assert_eq!(config.node.interfaces, Interfaces::Auto(AutoWord::Auto));
    assert_eq!(config.node.limits, Limits::default());
    let web = &config.services[0];
    assert_eq!(web.health, Health::default());
    assert_eq!(web.backends[0].weight, 100);
}

#[test]
fn an_udp_service_is_not_probed_unless_it_says_so() {
    let health = |line| {
        accepted(&service_with(line)).config.services[0]
            .health
            .clone()
    };
    assert_eq!(health("protocol: udp").check, HealthCheck::None);
    assert_eq!(
        health("protocol: udp\n    health: tcp"),
        default_health(Protocol::Tcp)
    );
    let http = health("protocol: udp\n    health: {type: http, port: 8080}");
    assert_eq!(http.port, Some(8080));
    assert_eq!(
        http.check,
        HealthCheck::Http {
            path: "/".into(),
            host: None,
            expect_status: vec![200]
        }
    );
}

#[test]
fn health_times_follow_a_short_interval() {
    let health = |line| {
        accepted(&service_with(line)).config.services[0]
            .health
            .clone()
    };
    let short = health("health: {interval: 500ms}");
    assert_eq!(short.timeout, Duration::from_millis(500));
    assert_eq!(short.fast_interval, Duration::from_millis(500));
    let long = health("health: {interval: 1m}");
    assert_eq!(long.timeout, Duration::from_secs(2));
}

#[test]
fn statuses_may_be_ranges() {
    let line = "health: {type: http, expect_status: [200-202, '301', 404]}";
    let HealthCheck::Http { expect_status, .. } = accepted(&service_with(line)).config.services[0]
        .health
        .check
        .clone()
    else {
        panic!("no http check");
    };
    assert_eq!(expect_status, [200, 201, 202, 301, 404]);
}

#[test]
fn words_keep_the_spelling_of_the_file() {
    let config = accepted(&service_with(
        "backends: [{address: 10.1.0.11:80, labels: {version: 1.10, canary: true}}]",
    ))
    .config;
    let labels = &config.services[0].backends[0].labels;
    assert_eq!(labels["version"], "1.10");
    assert_eq!(labels["canary"], "true");
    let config = accepted("node: {interfaces: eth0, xdp: off}").config;
    assert_eq!(
        config.node.interfaces,
        Interfaces::Named(vec!["eth0".into()])
    );
    assert_eq!(config.node.xdp, XdpMode::Off);
}

#[test]
fn aliases_stand_for_their_value() {
    let config = accepted(
        "services:
  - {name: a, listen: 192.0.2.1:80, health: &h {rise: 5}, backends: &b [{address: 10.0.0.1:80}]}
  - {name: b, listen: 192.0.2.2:80, health: *h, backends: *b}",
    )
    .config;
    assert_eq!(config.services[0].health, config.services[1].health);
    assert_eq!(config.services[0].backends, config.services[1].backends);
}

#[test]
fn odd_but_valid_values_are_warned_of() {
    assert_eq!(
        warnings(&service_with("backends:")),
        ["4:13: service `web` has no backends; its connections are refused"]
    );
    assert_eq!(
        warnings("services: [{name: a, listen: 192.0.2.1:80}]"),
        ["1:12: service `a` has no backends; its connections are refused"]
    );
    assert_eq!(
        warnings(&service_with("backends: [{address: \"[2001:db8::1]:80\"}]")),
        ["3:13: `listen` 192.0.2.10:80 has no backend of its family; add one with IPv4"]
    );
    assert_eq!(
        warnings(&service_with("health: {timeout: 7s, fast_interval: 6s}")),
        [
            "4:23: health `timeout` 7s is longer than `interval` 5s",
            "4:42: health `fast_interval` 6s is longer than `interval` 5s",
        ]
    );
    assert_eq!(
        warnings(&service_with("backends: [{address: 127.0.0.1:80}]")),
        [
            "4:26: backend 127.0.0.1:80 is a loopback address, to which the kernel delivers \
             nothing from outside; write an address of the node"
        ]
    );
}

#[test]
fn a_warning_is_silent_while_there_are_faults() {
    assert_eq!(
        faults("node: {xdp: on}\nservices: [{name: a, listen: 192.0.2.1:80}]").len(),
        1
    );
}
