use std::net::SocketAddr;

use super::*;
use crate::{
    controller::testing::{backend, config, service},
    model::{BackendState, Health, WeightOverride},
    plan::Admit,
};

const ONE: &str = "web/10.0.0.1:80";

fn layers(modes: &[(&str, Mode)]) -> Layers {
    let said = |mode| Override {
        mode: Some(mode),
        ..Override::default()
    };
    Layers {
        file: Arc::new(config([service(
            "web",
            "192.0.2.1:80",
            &["10.0.0.1:80", "10.0.0.2:80"],
        )])),
        state: State {
            overrides: modes
                .iter()
                .map(|(backend, mode)| (backend.parse().unwrap(), said(*mode)))
                .collect(),
            ..State::default()
        },
        found: Default::default(),
    }
}

fn near(_: IpAddr) -> Option<Route> {
    Some(Route {
        source: None,
        returns_here: true,
        is_neighbour: true,
    })
}

fn world(modes: &[(&str, Mode)]) -> World {
    World::new(layers(modes), &HashMap::new(), near)
}

fn report(backend: &str, healthy: bool) -> Report {
    Report {
        backend: backend.parse().unwrap(),
        verdict: Verdict {
            healthy: Some(healthy),
            successes_in_row: u32::from(healthy),
            failures_in_row: u32::from(!healthy),
            last_result: Some("as told".to_owned()),
            last_probe: None,
        },
        changed: true,
        result: if healthy { "success" } else { "refused" },
        duration: Default::default(),
    }
}

fn state(world: &World, place: usize) -> BackendState {
    effective::effective(world.services[0].fact(place)).state
}

fn admit(world: &World, place: usize) -> Admit {
    world.desired().services[0].backends[place].admit
}

#[test]
fn verdicts_move_backends_and_only_them() {
    let mut world = world(&[]);
    assert_eq!(
        (state(&world, 0), admit(&world, 0)),
        (BackendState::Unknown, Admit::Draining)
    );
    let transition = world.observe(report(ONE, true)).unwrap();
    assert_eq!(transition.before.state, BackendState::Unknown);
    assert_eq!(transition.after.state, BackendState::Healthy);
    assert_eq!(admit(&world, 0), Admit::Active);
    assert_eq!(admit(&world, 1), Admit::Draining);
    assert_eq!(world.observe(report(ONE, true)), None, "nothing new");
    world.observe(report(ONE, false)).unwrap();
    assert_eq!(admit(&world, 0), Admit::Down);
    let probes = &world.services[0].observed[0].probes;
    assert_eq!(probes, &[("success", 2), ("refused", 1)].into());
}

#[test]
fn a_failing_backend_keeps_its_weight_in_the_table() {
    let mut world = world(&[]);
    world.observe(report(ONE, false)).unwrap();
    assert_eq!(world.desired().services[0].backends[0].weight, 100);
}

#[test]
fn reports_of_strangers_are_ignored() {
    let mut world = world(&[("web/10.0.0.2:80", Mode::Maintenance)]);
    for backend in ["web/10.0.0.9:80", "gone/10.0.0.1:80", "web/10.0.0.2:80"] {
        assert_eq!(world.observe(report(backend, true)), None, "{backend}");
    }
    assert!(world.services[0].observed[1].probes.is_empty());
}

#[test]
fn other_layers_keep_what_was_observed() {
    let mut world = world(&[]);
    world.observe(report(ONE, true)).unwrap();
    let mut more = layers(&[]);
    let web = &mut Arc::make_mut(&mut more.file).services[0];
    web.backends.push(backend("10.0.0.3:80", 1));
    web.health.rise = 9;
    world.relayer(more, near);
    assert_eq!(state(&world, 0), BackendState::Healthy);
    assert_eq!(state(&world, 2), BackendState::Unknown);
    assert_eq!(world.services[0].observed[0].probes["success"], 1);
}

#[test]
fn a_backend_back_from_maintenance_must_prove_itself() {
    let probed = |world: &World| world.targets().contains_key(&ONE.parse().unwrap());
    for is_same_file in [false, true] {
        let mut world = world(&[]);
        let file = world.layers().file.clone();
        let layers = |modes: &[(&str, Mode)]| {
            let mut layers = layers(modes);
            if is_same_file {
                layers.file = file.clone();
            }
            layers
        };
        world.observe(report(ONE, true)).unwrap();
        let done = world.relayer(layers(&[(ONE, Mode::Maintenance)]), near);
        assert_eq!((done.moved, done.probes), (!is_same_file, true));
        assert_eq!(state(&world, 0), BackendState::Maintenance);
        assert!(!probed(&world));
        let done = world.relayer(layers(&[]), near);
        assert!(done.probes && probed(&world));
        assert_eq!(state(&world, 0), BackendState::Unknown);
        assert_eq!(world.services[0].observed[0].probes["success"], 1);
    }
}

#[test]
fn overrides_touch_their_services_and_no_other() {
    let mut first = layers(&[]);
    let file = Arc::make_mut(&mut first.file);
    let api = service("api", "192.0.2.2:80", &["10.0.0.1:80"]);
    file.services.push(api);
    let mut world = World::new(first.clone(), &HashMap::new(), near);
    assert_eq!(*world.touched(), Touched::All);
    world.settled();

    let mut second = layers(&[("api/10.0.0.1:80", Mode::Ready), (ONE, Mode::Drain)]);
    second.file = first.file.clone();
    let stray = "web/10.0.0.9:80".parse().unwrap();
    second.state.overrides.insert(stray, Override::default());
    let done = world.relayer(second.clone(), near);
    assert_eq!((done.moved, done.probes), (false, false));
    assert_eq!(*world.touched(), Touched::Some([0, 1].into()));
    assert_eq!(world.conflicts().len(), 1, "{:?}", world.conflicts());
    let fresh = World::new(second, &HashMap::new(), near);
    assert_eq!(world.desired(), fresh.desired());
    assert_eq!(world.conflicts(), fresh.conflicts());

    world.settled();
    world.relayer(first, near);
    assert_eq!(*world.touched(), Touched::Some([0, 1].into()));
    assert!(world.conflicts().is_empty());
    world.settled();
    world.observe(report("api/10.0.0.1:80", true)).unwrap();
    assert_eq!(*world.touched(), Touched::Some([1].into()));
}

#[test]
fn a_check_that_begins_takes_nobody_down() {
    let unchecked = Health {
        check: HealthCheck::None,
        ..Health::default()
    };
    let mut first = layers(&[]);
    Arc::make_mut(&mut first.file).services[0].health = unchecked;
    let mut world = World::new(first, &HashMap::new(), near);
    assert_eq!(world.targets(), BTreeMap::new());
    assert_eq!(state(&world, 0), BackendState::Healthy);
    world.relayer(layers(&[]), near);
    assert_eq!(state(&world, 0), BackendState::Healthy);
    assert_eq!(world.targets()[&ONE.parse().unwrap()].inherited, Some(true));
}

#[test]
fn routes_decide_on_source_addresses() {
    let source: IpAddr = "192.0.2.254".parse().unwrap();
    let far = Route {
        source: Some(source),
        returns_here: false,
        is_neighbour: true,
    };
    let lost = Route {
        source: None,
        returns_here: false,
        is_neighbour: true,
    };
    let ip = |address: &str| address.parse::<SocketAddr>().unwrap().ip();
    let (one, two) = (ip("10.0.0.1:80"), ip("10.0.0.2:80"));
    let mut world = World::new(layers(&[]), &[(ONE.parse().unwrap(), true)].into(), near);
    assert_eq!(world.routed(), [one, two].into());

    let transitions = world.reroute([(one, far)].into());
    assert_eq!(transitions.len(), 1);
    assert_eq!(transitions[0].before, transitions[0].after);
    let snat = |world: &World, place: usize| {
        let backend = &world.desired().services[0].backends[place];
        (backend.snat, backend.source)
    };
    assert_eq!(snat(&world, 0), (true, Some(source)));
    assert!(!snat(&world, 1).0);

    let transitions = world.reroute([(one, lost)].into());
    assert_eq!(transitions.len(), 1);
    assert_eq!(transitions[0].after.state, BackendState::Unhealthy);
    assert_eq!(admit(&world, 0), Admit::Down);
    assert!(world.has_unreachable());

    world.reroute([(one, far)].into());
    assert_eq!(admit(&world, 0), Admit::Active);
    assert_eq!(
        world.reroute(HashMap::new()),
        [],
        "no answer changes nothing"
    );
    assert_eq!(admit(&world, 0), Admit::Active);
}

#[test]
fn overrides_without_a_backend_are_told_of() {
    let world = world(&[("web/10.0.0.9:80", Mode::Drain)]);
    assert_eq!(world.conflicts().len(), 1, "{:?}", world.conflicts());
    assert!(world.conflicts()[0].contains("lbctl unset all web/10.0.0.9:80"));
}

#[test]
fn a_drain_is_over_at_its_deadline_and_only_a_new_word_takes_that_back() {
    let until = |deadline_ms| {
        let mut layers = layers(&[(ONE, Mode::Drain)]);
        let said = layers.state.overrides.values_mut().next().unwrap();
        said.deadline_ms = deadline_ms;
        layers
    };
    let mut world = World::new(until(Some(5000)), &HashMap::new(), near);
    let admit = |world: &World| world.desired().services[0].backends[0].admit;
    assert_eq!(world.pass_time(4999), []);
    assert_eq!(
        (admit(&world), world.next_deadline()),
        (Admit::Draining, Some(5000))
    );
    let one: BackendRef = ONE.parse().unwrap();
    assert_eq!(world.pass_time(5000), std::slice::from_ref(&one));
    assert_eq!(
        (admit(&world), world.next_deadline()),
        (Admit::Closed, None)
    );
    // Told once; and a clock that is set back changes nothing.
    assert_eq!(world.pass_time(1000), []);
    assert_eq!(admit(&world), Admit::Closed);

    world.relayer(until(Some(9000)), near);
    assert_eq!(
        (admit(&world), world.next_deadline()),
        (Admit::Draining, Some(9000))
    );
    assert_eq!(world.pass_time(9000), [one]);
    world.relayer(until(None), near);
    assert_eq!(
        (admit(&world), world.next_deadline()),
        (Admit::Draining, None)
    );
    assert_eq!(world.pass_time(u64::MAX), []);
}

#[test]
fn a_clock_that_is_set_leaves_every_drain_its_time() {
    let drained = |file: &Arc<Config>, deadline_ms| {
        let mut layers = layers(&[(ONE, Mode::Drain)]);
        layers.file = file.clone();
        let said = layers.state.overrides.values_mut().next().unwrap();
        said.deadline_ms = Some(deadline_ms);
        layers
    };
    const HOUR: u64 = 3_600_000;
    let one: BackendRef = ONE.parse().unwrap();
    let file = layers(&[]).file;
    for (by_ms, now_ms) in [(-2, 1), (2, 5)].map(|(by, at)| (by * HOUR as i64, at * HOUR)) {
        let mut world = World::new(drained(&file, 4 * HOUR), &HashMap::new(), near);
        assert_eq!(world.pass_time(3 * HOUR), []);
        assert!(world.shift_clock(by_ms));
        assert_eq!(world.pass_time(now_ms), [], "an hour is left");
        assert_eq!(world.next_deadline(), Some(now_ms + HOUR));
        let deadline = world.layers().state.overrides[&one].deadline_ms;
        assert_eq!(deadline, Some(now_ms + HOUR), "what is saved");
        assert_eq!(world.services[0].observed[0].said.deadline_ms, deadline);
        assert_eq!(world.pass_time(now_ms + HOUR - 1), []);
        assert_eq!(world.pass_time(now_ms + HOUR), std::slice::from_ref(&one));
        world.shift_clock(-by_ms);
        assert_eq!(world.pass_time(4 * HOUR), [], "told once");
        assert_eq!(admit(&world, 0), Admit::Closed);
    }

    // A new word counts by the clock as it is, however late it was.
    for is_same_file in [true, false] {
        let mut world = World::new(layers(&[]), &HashMap::new(), near);
        world.pass_time(9 * HOUR);
        assert!(!world.shift_clock(-7 * HOUR as i64), "there is none");
        world.pass_time(2 * HOUR);
        let file = match is_same_file {
            true => world.layers().file.clone(),
            false => file.clone(),
        };
        world.relayer(drained(&file, 3 * HOUR), near);
        assert_eq!(admit(&world, 0), Admit::Draining);
        assert_eq!(world.next_deadline(), Some(3 * HOUR));
        assert_eq!(world.pass_time(3 * HOUR), std::slice::from_ref(&one));
    }
}

#[test]
fn what_has_ended_has_ended_whatever_else_changes() {
    let ended = |weight| {
        let mut layers = layers(&[(ONE, Mode::Drain)]);
        let said = layers.state.overrides.values_mut().next().unwrap();
        (said.deadline_ms, said.weight) = (Some(5000), weight);
        layers
    };
    let mut world = World::new(ended(None), &HashMap::new(), near);
    assert_eq!(world.pass_time(5000).len(), 1);
    // Set by less than is told apart from a wrong rate.
    assert_eq!(world.pass_time(4500), []);
    let mut heavier = ended(Some(WeightOverride::Absolute(1)));
    heavier.file = world.layers().file.clone();
    let done = world.relayer(heavier, near);
    assert_eq!((done.moved, admit(&world, 0)), (false, Admit::Closed));
    let done = world.relayer(ended(None), near);
    assert_eq!((done.moved, admit(&world, 0)), (true, Admit::Closed));
    assert_eq!(world.pass_time(5000), [], "told once");
}
