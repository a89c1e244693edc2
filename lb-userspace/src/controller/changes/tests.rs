use proptest::prelude::*;

use super::*;
use crate::{
    api::types::FaultCode,
    controller::testing::{backend, config, service},
    model::Override,
    state::State,
};

/// `web` in the file with one backend of each layer, `dns` added by lbctl.
fn layers() -> Layers {
    Layers {
        file: Arc::new(config([service("web", "192.0.2.1:80", &["10.0.0.1:80"])])),
        state: State {
            services: vec![service(
                "dns",
                "192.0.2.1:53",
                &["10.0.0.9:53", "10.0.0.8:53"],
            )],
            backends: vec![AddedBackend {
                service: "web".to_owned(),
                backend: backend("10.0.0.2:80", 10),
            }],
            overrides: [overridden("web/10.0.0.2:80"), overridden("dns/10.0.0.9:53")].into(),
        },
        found: Default::default(),
    }
}

fn overridden(backend: &str) -> (BackendRef, Override) {
    let said = Override {
        weight: Some(WeightOverride::Absolute(1)),
        mode: Some(Mode::Drain),
        deadline_ms: Some(5),
    };
    (reference(backend), said)
}

fn reference(backend: &str) -> BackendRef {
    backend.parse().unwrap()
}

fn lines(change: &Change) -> Vec<String> {
    differences(&layers(), &change.layers)
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn with_file(services: impl IntoIterator<Item = ServiceSpec>) -> Result {
    reload(&layers(), config(services))
}

#[test]
fn faults_say_what_where_and_what_to_do() {
    use FaultCode as C;
    let old = layers();
    let mut invalid = service("Wrong_Name", "192.0.2.9:80", &[]);
    invalid.listen.push("127.0.0.1:80".parse().unwrap());
    let cases: [(Result, C, &[&str]); 15] = [
        (
            add_service(&old, service("web", "192.0.2.9:80", &[])),
            C::Conflict,
            &["`web`", "config file"],
        ),
        (
            add_service(&old, service("dns", "192.0.2.9:80", &[])),
            C::Conflict,
            &["`dns`", "lbctl apply"],
        ),
        (
            add_service(&old, service("new", "192.0.2.1:80", &[])),
            C::Conflict,
            &["192.0.2.1:80/tcp", "`web` of the config file"],
        ),
        (
            add_service(&old, invalid),
            C::Invalid,
            &["Wrong_Name", "loopback"],
        ),
        (
            remove_service(&old, "web"),
            C::Refused,
            &["config file", "lbctl reload"],
        ),
        (
            remove_service(&old, "dnss"),
            C::NotFound,
            &["did you mean `dns`?"],
        ),
        (
            add_backend(&old, "wbe", backend("10.0.0.3:80", 1)),
            C::NotFound,
            &["did you mean `web`?", "web, dns"],
        ),
        (
            add_backend(&old, "web", backend("10.0.0.2:80", 1)),
            C::Conflict,
            &["web/10.0.0.2:80", "lbctl set weight"],
        ),
        (
            add_backend(&old, "web", backend("0.0.0.0:80", 1)),
            C::Invalid,
            &["unspecified"],
        ),
        (
            remove_backend(&old, &reference("web/10.0.0.1:80")),
            C::Refused,
            &["config file", "lbctl reload", "lbctl maint web/10.0.0.1:80"],
        ),
        (
            remove_backend(&old, &reference("web/10.0.0.7:80")),
            C::NotFound,
            &["no backend 10.0.0.7:80", "it has 10.0.0.1:80, 10.0.0.2:80"],
        ),
        (
            set_weight(
                &old,
                &reference("web/10.0.0.1:80"),
                WeightOverride::Percent(1001),
            ),
            C::Invalid,
            &["1001%", "at most 1000%"],
        ),
        (
            set_mode(&old, &reference("web/10.0.0.7:80"), Mode::Drain, None),
            C::NotFound,
            &["10.0.0.7:80"],
        ),
        (
            unset(&old, &reference("web/10.0.0.7:80"), UnsetWhat::All),
            C::NotFound,
            &["10.0.0.7:80"],
        ),
        (
            apply(&old, vec![service("web", "192.0.2.9:80", &[])]),
            C::Conflict,
            &["owns web", "lbctl reload"],
        ),
    ];
    for (number, (result, code, words)) in cases.into_iter().enumerate() {
        let fault = result.expect_err(&format!("case {number}"));
        assert_eq!(fault.code, code, "case {number}: {}", fault.message);
        for word in words {
            assert!(
                fault.message.contains(word),
                "case {number}: {}",
                fault.message
            );
        }
    }
}

#[test]
fn objects_come_and_go_with_their_overrides() {
    let old = layers();
    let added = add_service(&old, service("new", "192.0.2.9:80", &["10.0.0.1:80"])).unwrap();
    assert_eq!(
        lines(&added),
        ["+ service new", "+ backend new/10.0.0.1:80"]
    );

    let removed = remove_service(&old, "dns").unwrap();
    assert_eq!(removed.layers.state.services, []);
    assert_eq!(
        removed.layers.state.overrides,
        [overridden("web/10.0.0.2:80")].into()
    );

    for service in ["web", "dns"] {
        let added = add_backend(&old, service, backend("10.0.0.3:80", 5)).unwrap();
        assert_eq!(lines(&added), [format!("+ backend {service}/10.0.0.3:80")]);
        assert_eq!(added.layers.file, old.file);
    }
    for gone in ["web/10.0.0.2:80", "dns/10.0.0.9:53"] {
        let removed = remove_backend(&old, &reference(gone)).unwrap();
        assert_eq!(lines(&removed), [format!("- backend {gone}")]);
        assert!(
            !removed
                .layers
                .state
                .overrides
                .contains_key(&reference(gone))
        );
    }
}

#[test]
fn overrides_are_set_and_unset_one_by_one() {
    let one = reference("web/10.0.0.1:80");
    let half = set_weight(&layers(), &one, WeightOverride::Percent(50)).unwrap();
    assert_eq!(half.message, "weight of web/10.0.0.1:80 set to 50% of 100");
    let both = set_mode(&half.layers, &one, Mode::Drain, Some(7000)).unwrap();
    assert!(
        both.message
            .ends_with("until 1970-01-01T00:00:07Z, then end"),
        "{}",
        both.message
    );
    let said = |change: &Change| change.layers.state.overrides.get(&one).cloned();
    let weight = Some(WeightOverride::Percent(50));
    let mode = Some(Mode::Drain);
    assert_eq!(
        said(&both),
        Some(Override {
            weight,
            mode,
            deadline_ms: Some(7000)
        })
    );
    let without = set_mode(&both.layers, &one, Mode::Drain, None).unwrap();
    assert_eq!(said(&without).unwrap().deadline_ms, None);
    let faulty = set_mode(&both.layers, &one, Mode::Ready, Some(7000));
    assert_eq!(faulty.unwrap_err().code, FaultCode::Invalid);
    assert_eq!(
        said(&set_mode(&both.layers, &one, Mode::Ready, None).unwrap()),
        Some(Override {
            weight,
            mode: Some(Mode::Ready),
            deadline_ms: None
        })
    );
    let drained = unset(&both.layers, &one, UnsetWhat::Weight).unwrap();
    assert_eq!(
        said(&drained),
        Some(Override {
            weight: None,
            mode,
            deadline_ms: Some(7000)
        })
    );
    let nothing = unset(&drained.layers, &one, UnsetWhat::Mode).unwrap();
    assert_eq!(said(&nothing), None);
    let again = unset(&nothing.layers, &one, UnsetWhat::All).unwrap();
    assert_eq!(again.layers, nothing.layers);
}

#[test]
fn overrides_of_backends_long_gone_can_be_unset() {
    let mut old = layers();
    old.state.overrides.extend([overridden("gone/10.0.0.1:80")]);
    let kept = set_mode(&old, &reference("web/10.0.0.1:80"), Mode::Ready, None).unwrap();
    assert!(
        kept.layers
            .state
            .overrides
            .contains_key(&reference("gone/10.0.0.1:80"))
    );
    let dropped = unset(&old, &reference("gone/10.0.0.1:80"), UnsetWhat::All).unwrap();
    assert_eq!(dropped.layers, layers());
}

#[test]
fn apply_replaces_and_adds_all_or_nothing() {
    let mut dns = service("dns", "192.0.2.1:53", &["10.0.0.9:53"]);
    dns.backends[0].weight = 7;
    let new = service("new", "192.0.2.9:80", &[]);
    let change = apply(&layers(), vec![dns.clone(), new.clone()]).unwrap();
    assert_eq!(
        lines(&change),
        [
            "- backend dns/10.0.0.8:53",
            "~ backend dns/10.0.0.9:53: weight 100 → 7",
            "+ service new"
        ]
    );
    assert_eq!(change.layers.state.services, [dns, new]);

    let taken = service("new", "192.0.2.1:80", &[]);
    let fault = apply(&layers(), vec![taken]).unwrap_err();
    assert_eq!(fault.code, FaultCode::Conflict, "{}", fault.message);
    let swapped = service("new", "192.0.2.1:53", &[]);
    let moved = service("dns", "192.0.2.1:54", &[]);
    apply(&layers(), vec![swapped, moved]).unwrap();
}

#[test]
fn reload_that_collides_with_the_cli_layer_changes_nothing() {
    for services in [
        service("dns", "192.0.2.7:80", &[]),
        service("other", "192.0.2.1:53", &[]),
    ] {
        let fault = with_file([services]).unwrap_err();
        assert_eq!(fault.code, FaultCode::Conflict, "{}", fault.message);
        assert!(
            fault.message.contains("lbctl remove service dns"),
            "{}",
            fault.message
        );
    }
}

#[test]
fn reload_takes_over_what_lbctl_added() {
    let web = service("web", "192.0.2.1:80", &["10.0.0.1:80", "10.0.0.2:80"]);
    let change = with_file([web]).unwrap();
    assert_eq!(change.layers.state.backends, []);
    assert_eq!(
        lines(&change),
        ["~ backend web/10.0.0.2:80: weight 10 → 100"]
    );
    let kept = overridden("web/10.0.0.2:80");
    assert!(
        change.layers.state.overrides.contains_key(&kept.0),
        "same backend"
    );
}

#[test]
fn reload_forgets_additions_to_a_service_that_is_gone() {
    let change = with_file([]).unwrap();
    assert_eq!(change.layers.state.backends, []);
    assert_eq!(
        change.layers.state.overrides,
        [overridden("dns/10.0.0.9:53")].into()
    );
}

#[test]
fn reload_names_settings_that_take_a_restart() {
    let mut file = Config::clone(&layers().file);
    file.admin.socket = "/tmp/other.sock".into();
    let change = reload(&layers(), file).unwrap();
    assert!(
        change.message.contains("restart of lbd: admin.socket"),
        "{}",
        change.message
    );
}

/// With a found service, which has a backend that an operator drains.
fn with_found() -> Layers {
    let text = "discovery: {kubernetes: {namespace: shop}}\n\
                services: [{name: web, listen: \"192.0.2.1:80\"}]";
    let file = crate::config::parse(text, "f").unwrap().config;
    let finder = file.discovery[0].name();
    let name = "shop.api.http";
    let set = crate::discovery::SourceName {
        service: name.to_owned(),
        ..finder.clone()
    };
    let api = crate::discovery::FoundService {
        spec: service(name, "10.96.0.1:80", &[]),
        backends: set.clone(),
    };
    let one = crate::discovery::Found {
        id: "p1".to_owned(),
        spec: backend("10.0.0.5:8080", 100),
        state: Default::default(),
    };
    let found = crate::discovery::Discovered {
        sets: [(set, Arc::new(vec![one]))].into(),
        services: [(finder, Arc::new(vec![api]))].into(),
        ..Default::default()
    };
    Layers {
        file: Arc::new(file),
        state: State {
            overrides: [overridden("shop.api.http/10.0.0.5:8080")].into(),
            ..State::default()
        },
        found: Arc::new(found),
    }
}

#[test]
fn found_services_are_overruled_and_not_changed() {
    let old = with_found();
    let at = reference("shop.api.http/10.0.0.5:8080");
    set_mode(&old, &at, Mode::Maintenance, None).unwrap();
    unset(&old, &at, UnsetWhat::All).unwrap();
    for (result, words) in [
        (
            remove_service(&old, "shop.api.http"),
            "found by the kubernetes source of the config file: remove it there",
        ),
        (
            add_backend(&old, "shop.api.http", backend("10.0.0.6:80", 1)),
            "found by the kubernetes source of the config file: add the backend there",
        ),
        (
            remove_backend(&old, &at),
            "found by the service's kubernetes source: deregister it there",
        ),
    ] {
        let fault = result.unwrap_err();
        assert_eq!(fault.code, FaultCode::Refused, "{fault:?}");
        assert!(fault.message.contains(words), "{fault:?}");
    }
}

#[test]
fn found_services_give_way_and_keep_what_operators_said() {
    let old = with_found();
    let added = service("mine", "10.96.0.1:80", &["10.0.0.7:80"]);
    for change in [
        add_service(&old, added.clone()).unwrap(),
        apply(&old, vec![added.clone()]).unwrap(),
    ] {
        let merge = merge::merge(&change.layers);
        let names: Vec<_> = names(&merge.services).collect();
        assert_eq!(names, ["web", "mine"]);
        assert!(merge.left_out[0].contains("belongs to service `mine`"));
        assert_eq!(change.layers.state.overrides, old.state.overrides);
    }
    // The file does not collide with it either.
    let mut file = Config::clone(&old.file);
    file.services.push(added);
    let change = reload(&old, file).unwrap();
    assert_eq!(merge::merge(&change.layers).left_out.len(), 1);
    // Without the source they go, and with them what was said.
    let mut file = Config::clone(&old.file);
    file.discovery.clear();
    let change = reload(&old, file).unwrap();
    let told = differences(&old, &change.layers);
    let told: Vec<_> = told.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "- discovery kubernetes:shop/[service.kubernetes.io/service-proxy-name=lbd]",
            "- service shop.api.http",
            "- backend shop.api.http/10.0.0.5:8080",
        ]
    );
    assert!(change.layers.state.overrides.is_empty());
    assert!(change.message.contains("3 changes"), "{}", change.message);
}

/// `web` has a configured backend and a source, which found another; each is drained, as is one that
/// was found before.
fn with_source() -> Layers {
    let file = with_discovery(&["10.0.0.1:80"], "file: {path: /old}");
    let source = file.services[0].discovery[0].name("web");
    let one = crate::discovery::Found {
        id: "i5".to_owned(),
        spec: backend("10.0.0.5:80", 100),
        state: Default::default(),
    };
    let found = crate::discovery::Discovered {
        sets: [(source, Arc::new(vec![one]))].into(),
        ..Default::default()
    };
    let drained = ["web/10.0.0.1:80", "web/10.0.0.5:80", "web/10.0.0.6:80"];
    Layers {
        file: Arc::new(file),
        state: State {
            overrides: drained.map(overridden).into(),
            ..State::default()
        },
        found: Arc::new(found),
    }
}

/// `web` with these backends and this source, if any.
fn with_discovery(backends: &[&str], discovery: &str) -> Config {
    let mut web = service("web", "192.0.2.1:80", backends);
    if !discovery.is_empty() {
        let text =
            format!("services: [{{name: web, listen: 192.0.2.1:80, discovery: {{{discovery}}}}}]");
        let parsed = crate::config::parse(&text, "f").unwrap().config;
        web.discovery.clone_from(&parsed.services[0].discovery);
    }
    config([web])
}

/// Last bytes of the backends whose overrides a change leaves.
fn left(change: &Change) -> Vec<u8> {
    let hosts = change.layers.state.overrides.keys();
    let last = |b: &BackendRef| match b.address.ip() {
        std::net::IpAddr::V4(ip) => ip.octets()[3],
        std::net::IpAddr::V6(_) => 0,
    };
    hosts.map(last).collect()
}

#[test]
fn what_operators_said_of_found_backends_outlives_changes_of_their_source() {
    let old = with_source();
    let (old_source, one) = ("file: {path: /old}", &["10.0.0.1:80"][..]);
    let dns = "dns: {name: web.example, port: 80}";
    for (backends, discovery, kept) in [
        (one, old_source, &[1, 5, 6][..]),
        (one, "file: {path: /old, weight: 7}", &[1, 5, 6]),
        (one, "file: {path: /new}", &[1, 5, 6]),
        (one, dns, &[1, 5, 6]),
        // What is configured goes, unless a new source may have it.
        (&[], old_source, &[5, 6]),
        (&[], "file: {path: /new}", &[1, 5, 6]),
        (&[], dns, &[1, 5, 6]),
        (&["10.0.0.2:80"], old_source, &[5, 6]),
        // Nobody can find them any more.
        (one, "", &[1]),
        (&["10.0.0.5:80"], "", &[5]),
    ] {
        let change = reload(&old, with_discovery(backends, discovery)).unwrap();
        assert_eq!(left(&change), kept, "{backends:?} {discovery}");
    }
    let gone = reload(&old, config([])).unwrap();
    assert_eq!(left(&gone), [] as [u8; 0]);
    let renamed = service("other", "192.0.2.1:80", &["10.0.0.1:80"]);
    let renamed = reload(&old, config([renamed])).unwrap();
    assert_eq!(left(&renamed), [] as [u8; 0]);

    // A source that was not heard so far may have it as well.
    let mut unheard = with_source();
    let found = Arc::make_mut(&mut unheard.found);
    found.unheard = found.sets.keys().cloned().collect();
    let change = reload(&unheard, with_discovery(&[], old_source)).unwrap();
    assert_eq!(left(&change), [1, 5, 6]);

    // The same of a service added by lbctl.
    let mut added = with_source();
    added.state.services = added.file.services.clone();
    added.file = Arc::new(config([]));
    let web = with_discovery(one, "file: {path: /new}").services;
    assert_eq!(left(&apply(&added, web).unwrap()), [1, 5, 6]);
    let gone = remove_service(&added, "web").unwrap();
    assert_eq!(left(&gone), [] as [u8; 0]);
    let configured = reference("web/10.0.0.1:80");
    let gone = remove_backend(&added, &configured).unwrap();
    assert_eq!(left(&gone), [5, 6]);
}

#[test]
fn a_source_in_anothers_place_begins_with_what_that_found() {
    let old = with_source();
    let new = with_discovery(&["10.0.0.1:80"], "file: {path: /new}");
    let change = reload(&old, new).unwrap();
    let service = &merged(&change.layers)[0];
    assert_eq!(service.spec.backends, merged(&old)[0].spec.backends);
    let told = differences(&old, &change.layers);
    assert!(
        told.iter().all(|d| d.object.starts_with("service")),
        "{told:?}"
    );
    for discovery in ["", "dns: {name: web.example, port: 80}"] {
        let change = reload(&old, with_discovery(&["10.0.0.1:80"], discovery)).unwrap();
        assert_eq!(merged(&change.layers)[0].spec.backends.len(), 1);
    }
}

/// The file's `web` hid another one that was added by lbctl, as after an edit while no daemon ran.
#[test]
fn a_source_begins_with_what_that_found_which_was_in_force() {
    let mut old = with_source();
    old.state.services = with_discovery(&["10.0.0.1:80"], "file: {path: /new}").services;
    let change = reload(&old, config([])).unwrap();
    let service = &merged(&change.layers)[0];
    assert_eq!(service.layer, Layer::Cli);
    assert_eq!(service.spec.backends, merged(&old)[0].spec.backends);
    assert_eq!(left(&change), [1, 5, 6]);
}

/// One request of each kind, over few names and addresses so that they meet.
fn any_request() -> impl Strategy<Value = (u8, usize, u8, u16)> {
    (0u8..9, 0usize..3, 1u8..5, 0u16..3)
}

fn carry_out(old: &Layers, (verb, name, host, number): (u8, usize, u8, u16)) -> Result {
    let name = ["web", "dns", "new"][name];
    let address = format!("10.0.0.{host}:80");
    let at = reference(&format!("{name}/{address}"));
    let spec = service(name, &format!("192.0.2.{host}:80"), &[&address]);
    match verb {
        0 => add_service(old, spec),
        1 => remove_service(old, name),
        2 => add_backend(old, name, backend(&address, number)),
        3 => remove_backend(old, &at),
        4 => set_weight(old, &at, WeightOverride::Percent(number)),
        5 => set_mode(old, &at, Mode::Drain, None),
        6 => unset(old, &at, UnsetWhat::All),
        7 => apply(old, vec![spec]),
        _ => reload(old, config([spec])),
    }
}

proptest! {
    #[test]
    fn whatever_is_asked_the_layers_stay_sound(
        requests in prop::collection::vec(any_request(), 0..40),
    ) {
        let mut layers = layers();
        layers.state.overrides.clear();
        for request in requests {
            let Ok(change) = carry_out(&layers, request) else {
                continue;
            };
            layers = change.layers;
            let merge::Merge { services, conflicts, orphans, left_out } =
                merge::merge(&layers);
            prop_assert_eq!(conflicts.len() + orphans.len() + left_out.len(), 0);
            let whole = config(services.iter().map(|s| s.spec.clone()));
            prop_assert_eq!(crate::config::check(&whole), Vec::<String>::new());
            let known = references(&services);
            prop_assert!(layers.state.overrides.keys().all(|b| known.contains(b)));
        }
    }
}
