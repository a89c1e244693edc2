//! What a package takes from the programs.

use std::{collections::BTreeSet, fs, process::Command};

use serde_json::{Value, json};

use super::{BackendState, OverrideItem, backend, event, service, source, status};
use crate::common::Directory;
use lb_userspace::model::{Mode, Override, WeightOverride};

#[test]
fn man_pages_and_completions_of_both_programs() {
    let directory = Directory::new();
    let status = Command::new(env!("CARGO_BIN_EXE_lbctl"))
        .arg("documents")
        .arg(&*directory)
        .status()
        .unwrap();
    assert!(status.success());
    let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
    assert!(read("man/lbd.8").contains(".TH lbd 8"));
    assert!(read("man/lbd.8").contains("cleanup"));
    assert!(read("man/lbctl.1").contains("lbctl\\-drain(1)"));
    assert!(read("man/lbctl-describe-backend.1").contains("SERVICE/ADDR:PORT"));
    assert!(!directory.join("man/lbctl-documents.1").exists(), "hidden");
    for name in ["lbctl.bash", "_lbctl", "lbctl.fish"] {
        let script = read(&format!("completions/{name}"));
        assert!(script.contains("drain"), "{name}");
    }
    for name in ["lbd.bash", "_lbd", "lbd.fish"] {
        let script = read(&format!("completions/{name}"));
        assert!(script.contains("cleanup"), "{name}");
    }
}

/// Programs rely on them; the table is what they were promised.
#[test]
fn the_readme_has_every_field_of_an_item_and_no_other() {
    let of_services = lb_userspace::discovery::SourceItem {
        services: Some(1),
        ..source("synced")
    };
    let said = OverrideItem {
        backend: "web/10.0.0.1:80".parse().unwrap(),
        value: Override {
            weight: Some(WeightOverride::Percent(50)),
            mode: Some(Mode::Drain),
            deadline_ms: Some(1),
        },
    };
    let items = [
        ("service", json!(service("web"))),
        (
            "backend",
            json!(backend("web", "10.0.0.1:80", BackendState::Healthy)),
        ),
        ("source", json!(of_services)),
        ("override", json!(said)),
        ("event", json!(event(1))),
        ("status", json!(status())),
    ];
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let (_, table) = readme.split_once("\n| item | fields |\n").unwrap();
    for (name, item) in items {
        let row = table
            .lines()
            .find_map(|line| line.strip_prefix(&format!("| {name} | ")));
        let written = row.unwrap().split('`').skip(1).step_by(2);
        let mut fields: BTreeSet<&str> = keys(&item).collect();
        fields.extend(keys(&item["override"]));
        assert_eq!(written.collect::<BTreeSet<_>>(), fields, "{name}");
    }
}

fn keys(object: &Value) -> impl Iterator<Item = &str> {
    let fields = object.as_object().into_iter().flatten();
    fields.map(|(key, _)| key.as_str())
}
