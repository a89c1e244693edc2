//! `discovery:` of a service.

use super::{accepted, faults, service_with, warnings};
use crate::{
    config::{check, discovery::secret, render, report::Report, tree},
    discovery::{Kind, Secret},
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
    let Kind::File(config) = &source.kind else {
        panic!("{source:?}");
    };
    assert_eq!(config.path.to_str(), Some("/etc/lbd/web.yaml"));
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
            "{fiel: {path: /a}}",
            "4:17: unknown key `fiel` in discovery; did you mean `file`? (allowed: file or \
             kubernetes)",
        ),
        (
            "{dns: {name: a}}",
            "4:17: `dns` is not supported by this version; use `file`",
        ),
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

#[test]
fn one_that_would_always_be_stale_is_warned_of() {
    let warned = warnings(&discovery(
        "{file: {path: /a, resync: 1m, stale_after: 1m}}",
    ));
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("hardly longer"), "{warned:?}");
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
