mod services;

use super::*;
use crate::{
    config,
    controller::testing,
    discovery::{Found, InstanceState},
    model::{Config, Mode},
};

/// `web` with two sources and a configured backend; `dns` with neither.
fn file() -> Config {
    let text = "
services:
- name: web
  listen: 192.0.2.1:80
  backends: [{address: \"10.0.0.1:80\", weight: 7}]
  discovery: [{file: {path: /one}}, {file: {path: /two}}]
- name: dns
  listen: 192.0.2.1:53
  backends: [{address: \"10.0.0.9:53\"}]
";
    config::parse(text, "f").unwrap().config
}

fn name(path: &str) -> SourceName {
    SourceName {
        service: "web".to_owned(),
        kind: "file",
        target: path.to_owned(),
    }
}

fn set(found: &[(&str, u16, InstanceState)]) -> Arc<Vec<Found>> {
    let found = found.iter().map(|(address, weight, state)| Found {
        id: (*address).to_owned(),
        spec: testing::backend(address, *weight),
        state: *state,
    });
    Arc::new(found.collect())
}

fn near(_: IpAddr) -> Option<Route> {
    Some(Route {
        source: None,
        returns_here: true,
        is_neighbour: true,
    })
}

struct Bed {
    world: World,
    found: Discovered,
}

impl Bed {
    fn new() -> Self {
        let layers = Layers {
            file: Arc::new(file()),
            state: State::default(),
            found: Arc::default(),
        };
        let mut world = World::new(layers, &HashMap::new(), near);
        world.settled();
        Self {
            world,
            found: Discovered::default(),
        }
    }

    fn discover(&mut self, path: &str, set: Arc<Vec<Found>>) -> Rediscovered {
        self.found.sets.insert(name(path), set);
        self.world
            .discover(Arc::new(self.found.clone()), &HashMap::new(), near)
    }

    fn backends(&self) -> Vec<String> {
        let service = &self.world.services()[0];
        let shown = service
            .facts()
            .map(|f| format!("{}={}", f.spec.address, f.spec.weight));
        shown.collect()
    }

    fn healthy(&mut self, address: &str) {
        self.healthy_of("web", address);
    }

    fn healthy_of(&mut self, service: &str, address: &str) {
        let report = Report {
            backend: format!("{service}/{address}").parse().unwrap(),
            verdict: Verdict {
                healthy: Some(true),
                successes_in_row: 1,
                failures_in_row: 0,
                last_result: None,
                last_probe: None,
            },
            changed: true,
            result: "success",
            duration: Default::default(),
        };
        self.world.observe(report).unwrap();
    }
}

use InstanceState::{Drain, Up};

#[test]
fn what_is_found_joins_what_is_configured() {
    let mut bed = Bed::new();
    let told = bed.discover(
        "/two",
        set(&[("10.0.0.3:80", 2, Up), ("10.0.0.4:80", 2, Up)]),
    );
    assert!(told.moved && told.changed);
    bed.discover(
        "/one",
        set(&[("10.0.0.1:80", 1, Up), ("10.0.0.3:80", 1, Up)]),
    );
    // Configured before found, and an earlier source before a later one.
    assert_eq!(
        bed.backends(),
        ["10.0.0.1:80=7", "10.0.0.3:80=1", "10.0.0.4:80=2"]
    );
    assert_eq!(bed.world.desired().services[0].backends.len(), 3);
    bed.discover("/one", set(&[]));
    assert_eq!(
        bed.backends(),
        ["10.0.0.1:80=7", "10.0.0.3:80=2", "10.0.0.4:80=2"]
    );
}

#[test]
fn only_what_changed_is_touched() {
    let mut bed = Bed::new();
    bed.discover(
        "/one",
        set(&[("10.0.0.2:80", 1, Up), ("10.0.0.3:80", 1, Up)]),
    );
    assert_eq!(*bed.world.touched(), Touched::All);
    bed.world.settled();
    bed.healthy("10.0.0.3:80");
    bed.world.settled();
    let dns = bed.world.services()[1].clone();

    // The same again, as a set of its own.
    let told = bed.discover(
        "/one",
        set(&[("10.0.0.2:80", 1, Up), ("10.0.0.3:80", 1, Up)]),
    );
    assert_eq!(told, Rediscovered::default());
    assert_eq!(*bed.world.touched(), Touched::Some([].into()));

    let told = bed.discover(
        "/one",
        set(&[("10.0.0.2:80", 5, Up), ("10.0.0.3:80", 1, Drain)]),
    );
    assert!(told.changed && !told.moved);
    assert_eq!(*bed.world.touched(), Touched::Some([0].into()));
    let words: Vec<_> = told.differences[0]
        .1
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        words,
        [
            "~ backend web/10.0.0.2:80: weight 1 → 5",
            "~ backend web/10.0.0.3:80: up → drain"
        ]
    );
    bed.world.settled();

    let told = bed.discover("/one", set(&[("10.0.0.3:80", 1, Up)]));
    assert!(told.moved);
    let web = &bed.world.services()[0];
    assert_eq!(
        web.observed[1].verdict.healthy,
        Some(true),
        "one that stays keeps its verdict"
    );
    assert!(Arc::ptr_eq(&dns, &bed.world.services()[1]));
    assert!(!bed.world.routed().contains(&"10.0.0.2".parse().unwrap()));
}

#[test]
fn an_instance_where_a_service_listens_is_left_out_and_told() {
    let mut bed = Bed::new();
    bed.discover(
        "/one",
        set(&[("192.0.2.1:53", 1, Up), ("10.0.0.2:80", 1, Up)]),
    );
    assert_eq!(bed.backends(), ["10.0.0.1:80=7", "10.0.0.2:80=1"]);
    let conflicts = bed.world.conflicts();
    assert!(conflicts[0].contains("192.0.2.1:53"), "{conflicts:?}");
    bed.discover("/one", set(&[("10.0.0.2:80", 1, Up)]));
    assert_eq!(bed.world.conflicts(), [] as [String; 0]);
}

#[test]
fn an_override_waits_for_its_instance() {
    let mut bed = Bed::new();
    bed.discover("/one", set(&[("10.0.0.2:80", 1, Up)]));
    let mut layers = Layers::clone(bed.world.layers());
    let said = Override {
        mode: Some(Mode::Drain),
        ..Override::default()
    };
    let backend: BackendRef = "web/10.0.0.2:80".parse().unwrap();
    layers.state.overrides.insert(backend, said.clone());
    bed.world.relayer(layers, near);
    for found in [set(&[]), set(&[("10.0.0.2:80", 1, Up)])] {
        bed.discover("/one", found);
        assert_eq!(bed.world.conflicts(), [] as [String; 0]);
    }
    assert_eq!(bed.world.services()[0].observed[1].said, said);
}

#[test]
fn what_is_configured_is_told_apart() {
    let mut bed = Bed::new();
    bed.discover("/one", set(&[("10.0.0.2:80", 1, Up)]));
    let merged = &bed.world.services()[0].merged;
    assert_eq!(merged.configured(), file().services[0]);
    let names: Vec<_> = merged.origins.iter().map(|o| o.name()).collect();
    assert_eq!(names, ["file", "discovery:file"]);
    assert_eq!(
        bed.world.sources().keys().collect::<Vec<_>>(),
        [&name("/one"), &name("/two")]
    );
}
