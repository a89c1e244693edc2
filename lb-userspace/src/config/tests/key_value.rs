//! `discovery:` from etcd and ZooKeeper.

use super::{accepted, faults, service_with, warnings};
use crate::{
    config::{check, render},
    discovery::Kind,
};

fn discovery(text: &str) -> String {
    service_with(&format!("discovery: {text}"))
}

#[test]
fn every_key_is_read_and_written() {
    let text = "\
services:
- name: web
  listen: 192.0.2.10:80
  protocol: tcp
  policy: maglev
  discovery:
  - etcd:
      endpoints:
      - https://10.0.0.5:2379
      - https://etcd.example:2379
      prefix: services/web/
      user: lbd
      password:
        file: /etc/lbd/password
      tls:
        ca_file: /etc/lbd/ca.pem
        server_name: etcd.example
      removal_hold: 1s
  - zookeeper:
      servers:
      - 10.0.0.5:2181
      - '[2001:db8::1]:2181'
      chroot: /prod
      path: /services/web
      user: lbd
      password:
        env: PASSWORD
      ssl_port: true
      session_timeout: 5s
      removal_hold: 1s
";
    let parsed = accepted(text).config;
    assert_eq!(render(&parsed), text);
    assert_eq!(check(&parsed), Vec::<String>::new());
}

#[test]
fn what_may_be_left_out_has_its_default() {
    let text = "{etcd: {endpoints: \"http://10.0.0.5:2379\", prefix: a/}, \
                 zookeeper: {servers: \"zk:2181\", path: /a}}";
    assert_eq!(warnings(&discovery(text)), Vec::<String>::new());
    let sources = accepted(&discovery(text))
        .config
        .services
        .remove(0)
        .discovery;
    let names: Vec<_> = sources.iter().map(|s| s.name("web").to_string()).collect();
    assert_eq!(
        names,
        ["web/etcd:10.0.0.5:2379/a/", "web/zookeeper:zk:2181/a"]
    );
    assert_eq!(sources[1].settings.removal_hold.as_secs(), 2);
    let Kind::Zookeeper(config) = &sources[1].kind else {
        panic!("{sources:?}");
    };
    assert_eq!(
        (config.session_timeout.as_secs(), config.ssl_port),
        (10, false)
    );
}

#[test]
fn faults_say_what_to_do() {
    let etcd = |more: &str| format!("{{etcd: {{endpoints: \"http://a:2379\", prefix: a/{more}}}}}");
    let zookeeper = |more: &str| format!("{{zookeeper: {{servers: \"a:2181\", path: /a{more}}}}}");
    for (text, words) in [
        (
            "{etcd: {}}".to_owned(),
            "the etcd source has no `endpoints`",
        ),
        (
            "{etcd: {endpoints: \"http://a\"}}".to_owned(),
            "has no `prefix`; write e.g. `prefix: services/web/`",
        ),
        (
            "{etcd: {endpoints: [], prefix: a/}}".to_owned(),
            "must name at least one URL",
        ),
        (
            "{etcd: {endpoints: \"a:2379\", prefix: a/}}".to_owned(),
            "must begin with http:// or https://",
        ),
        (
            "{etcd: {endpoints: \"http://a/x\", prefix: a/}}".to_owned(),
            "URLs without a path",
        ),
        (
            "{etcd: {endpoints: [\"http://a\", \"http://a\"], prefix: a/}}".to_owned(),
            "lists http://a twice",
        ),
        (
            "{etcd: {endpoints: \"http://a\", prefix: \"\"}}".to_owned(),
            "must have 1 to 512 bytes",
        ),
        (etcd(", user: lbd"), "needs a `password`"),
        (etcd(", password: {env: X}"), "needs a `user`"),
        (
            etcd(", user: lbd, password: hunter2"),
            "must say where the secret is",
        ),
        (
            etcd(", tls: {ca_file: /a}"),
            "needs endpoints that begin with https://",
        ),
        ("{zookeeper: {path: /a}}".to_owned(), "has no `servers`"),
        (
            "{zookeeper: {servers: \"a\", path: /a}}".to_owned(),
            "`a` is no HOST:PORT",
        ),
        (
            "{zookeeper: {servers: \"a:1\", path: a}}".to_owned(),
            "must be an absolute path",
        ),
        (
            "{zookeeper: {servers: \"a:1\", path: /}}".to_owned(),
            "must not be / itself",
        ),
        (
            "{zookeeper: {servers: \"a:1\", path: /a//b}}".to_owned(),
            "must have no empty part",
        ),
        (zookeeper(", chroot: b"), "must be an absolute path"),
        (
            zookeeper(", ssl_port: maybe"),
            "unknown value `maybe` for `ssl_port`",
        ),
        (zookeeper(", session_timeout: 2m"), "must be from 1s to 1m"),
        (
            zookeeper(", user: \"a:b\", password: {env: X}"),
            "must have no colon",
        ),
    ] {
        let found = faults(&discovery(&text));
        assert!(found.iter().any(|f| f.contains(words)), "{text}: {found:?}");
        assert!(!found.iter().any(|f| f.contains("hunter2")), "{found:?}");
    }
    let warned = warnings(&discovery("{etcd: {endpoints: \"http://a\", prefix: web}}"));
    assert!(warned[0].contains("does not end with /"), "{warned:?}");
}
