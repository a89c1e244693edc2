//! Services that come, change and go.

use super::*;
use crate::{
    datapath::Listen,
    discovery::{FoundService, Services},
    model::Protocol,
};

const FILE: &str = "
discovery: {kubernetes: {namespace: shop}}
services:
- name: web
  listen: 192.0.2.1:80
  backends: [{address: \"10.0.0.1:80\"}]
";

fn finder() -> SourceName {
    config::parse(FILE, "f").unwrap().config.discovery[0].name()
}

fn set_of(service: &str) -> SourceName {
    SourceName {
        service: service.to_owned(),
        ..finder()
    }
}

fn services(found: &[(&str, &str)]) -> Services {
    let found = found.iter().map(|(name, listen)| FoundService {
        spec: testing::service(name, listen, &[]),
        backends: set_of(name),
    });
    Arc::new(found.collect())
}

fn bed() -> Bed {
    let layers = Layers {
        file: Arc::new(config::parse(FILE, "f").unwrap().config),
        state: State::default(),
        found: Arc::default(),
    };
    let mut world = World::new(layers, &HashMap::new(), near);
    world.settled();
    Bed {
        world,
        found: Discovered::default(),
    }
}

impl Bed {
    fn find(&mut self, found: Services) -> Rediscovered {
        self.found.services.insert(finder(), found);
        self.world
            .discover(Arc::new(self.found.clone()), &HashMap::new(), near)
    }

    fn fill(&mut self, service: &str, set: Arc<Vec<Found>>) -> Rediscovered {
        self.found.sets.insert(set_of(service), set);
        self.world
            .discover(Arc::new(self.found.clone()), &HashMap::new(), near)
    }

    fn shown(&self) -> Vec<String> {
        let services = self.world.services().iter().map(|service| {
            let backends = service.facts().map(|f| f.spec.address.to_string());
            let backends: Vec<_> = backends.collect();
            format!("{}: {}", service.name(), backends.join(" "))
        });
        services.collect()
    }
}

/// A removed service must not come back because its source is silent.
#[test]
fn what_nobody_knows_is_kept_until_the_source_was_heard() {
    let mut bed = bed();
    bed.found.unknown.insert(finder());
    let unknown = Arc::new(bed.found.clone());
    bed.world.discover(unknown, &HashMap::new(), near);
    let listen = |address: &str| Listen {
        address: address.parse().unwrap(),
        protocol: Protocol::Tcp,
    };
    let (a, b) = (listen("192.0.2.7:80"), listen("192.0.2.8:80"));
    bed.world.keep([a, b].into());
    assert_eq!(bed.world.kept(), 2);

    let mut layers = Layers::clone(bed.world.layers());
    layers.state.services = vec![testing::service("a", "192.0.2.7:80", &[])];
    let with_a = layers.clone();
    bed.world.relayer(with_a, near);
    assert_eq!(bed.world.desired().kept, [b].into(), "somebody's by now");
    layers.state.services.clear();
    bed.world.relayer(layers, near);
    assert_eq!(bed.world.desired().kept, [b].into());

    bed.found.unknown.clear();
    let told = bed.find(services(&[]));
    assert!(told.moved && told.changed, "{told:?}");
    assert_eq!(bed.world.kept(), 0);
}

fn words(told: &Rediscovered) -> Vec<String> {
    let all = told.differences.iter().flat_map(|(_, d)| d);
    all.map(ToString::to_string).collect()
}

#[test]
fn services_come_change_and_go_and_the_others_stay_as_they_are() {
    let mut bed = bed();
    bed.healthy_of("web", "10.0.0.1:80");
    bed.found.sets.insert(
        set_of("shop.a.http"),
        set(&[("10.0.0.2:80", 1, Up), ("10.0.0.3:80", 1, Up)]),
    );
    let told = bed.find(services(&[("shop.a.http", "10.96.0.1:80")]));
    assert!(told.moved && told.changed);
    assert_eq!(
        words(&told),
        [
            "+ service shop.a.http",
            "+ backend shop.a.http/10.0.0.2:80",
            "+ backend shop.a.http/10.0.0.3:80"
        ]
    );
    assert_eq!(
        bed.shown(),
        ["web: 10.0.0.1:80", "shop.a.http: 10.0.0.2:80 10.0.0.3:80"]
    );
    bed.healthy_of("shop.a.http", "10.0.0.2:80");

    // Another service, and another backend of the first.
    bed.found
        .sets
        .insert(set_of("shop.a.http"), set(&[("10.0.0.2:80", 5, Up)]));
    let told = bed.find(services(&[
        ("shop.a.http", "10.96.0.1:80"),
        ("shop.b.http", "10.96.0.2:80"),
    ]));
    assert_eq!(
        words(&told),
        [
            "~ backend shop.a.http/10.0.0.2:80: weight 1 → 5",
            "- backend shop.a.http/10.0.0.3:80",
            "+ service shop.b.http"
        ]
    );
    let healthy = |bed: &Bed, at: usize| bed.world.services()[at].observed[0].verdict.healthy;
    assert_eq!(
        (healthy(&bed, 0), healthy(&bed, 1)),
        (Some(true), Some(true))
    );
    assert_eq!(bed.world.desired().services.len(), 3);

    let told = bed.find(services(&[("shop.b.http", "10.96.0.2:80")]));
    assert_eq!(
        words(&told),
        ["- service shop.a.http", "- backend shop.a.http/10.0.0.2:80"]
    );
    assert_eq!(bed.shown(), ["web: 10.0.0.1:80", "shop.b.http: "]);
}

#[test]
fn a_set_alone_touches_its_service_alone() {
    let mut bed = bed();
    let both = [
        ("shop.a.http", "10.96.0.1:80"),
        ("shop.b.http", "10.96.0.2:80"),
    ];
    bed.find(services(&both));
    bed.fill("shop.a.http", set(&[("10.0.0.2:80", 1, Up)]));
    bed.world.settled();
    let told = bed.fill("shop.a.http", set(&[("10.0.0.2:80", 2, Up)]));
    assert_eq!(
        words(&told),
        ["~ backend shop.a.http/10.0.0.2:80: weight 1 → 2"]
    );
    assert!(!told.moved);
    assert_eq!(bed.world.touched(), &Touched::Some([1].into()));
}

#[test]
fn an_override_waits_for_its_service() {
    let mut bed = bed();
    let both = services(&[("shop.a.http", "10.96.0.1:80")]);
    bed.find(both.clone());
    bed.fill("shop.a.http", set(&[("10.0.0.2:80", 1, Up)]));
    let mut layers = Layers::clone(bed.world.layers());
    let said = Override {
        mode: Some(Mode::Drain),
        ..Override::default()
    };
    let backend: BackendRef = "shop.a.http/10.0.0.2:80".parse().unwrap();
    layers.state.overrides.insert(backend, said.clone());
    bed.world.relayer(layers, near);
    bed.find(services(&[]));
    assert_eq!(bed.world.conflicts(), [] as [String; 0]);
    bed.find(both);
    assert_eq!(bed.world.services()[1].observed[0].said, said);
}

#[test]
fn the_source_runs_and_those_out_of_force_are_told() {
    let mut bed = bed();
    let sources: Vec<_> = bed.world.sources().into_keys().collect();
    assert_eq!(sources, [finder()]);
    bed.find(services(&[("shop.a.http", "192.0.2.1:80")]));
    assert_eq!(bed.shown(), ["web: 10.0.0.1:80"]);
    let told = bed.world.conflicts();
    assert!(told[0].contains("belongs to service `web`"), "{told:?}");
    let sources: Vec<_> = bed.world.sources().into_keys().collect();
    assert_eq!(sources, [finder()]);
}
