use lb_common::abi::{Admission, admission_flag, backend_flag, backend_state, policy};

use crate::select::Builder;

use super::*;

const CAPACITY: Capacity = Capacity {
    services: 8,
    backends: 64,
    sources: 8,
};

fn service(name: &str, listen: &[&str], policy: Policy, backends: u8) -> DesiredService {
    DesiredService {
        name: name.to_owned(),
        listen: listen.iter().map(|l| l.parse().unwrap()).collect(),
        protocol: Protocol::Tcp,
        forwarding: Default::default(),
        policy,
        no_backend: NoBackend::Drop,
        on_backend_down: Default::default(),
        admission: Default::default(),
        sources: Default::default(),
        backends: (1..=backends)
            .map(|i| DesiredBackend {
                address: SocketAddr::from(([10, 0, 0, i], 8080)),
                weight: 10,
                admit: Admit::Active,
                source: Some("10.9.9.9".parse().unwrap()),
                snat: true,
                tunnel: None,
                max_connections: 0,
            })
            .collect(),
    }
}

fn plan_for(services: &[DesiredService], installed: &Installed) -> Plan {
    let desired = Desired {
        kept: Default::default(),
        services: services.to_vec(),
    };
    plan(Input {
        desired: &desired,
        installed,
        present: None,
        retired: &HashSet::new(),
        recipes: &HashMap::new(),
        capacity: CAPACITY,
    })
}

/// What is installed once a plan was carried out.
fn carried_out(mut installed: Installed, plan: &Plan) -> Installed {
    installed.ports.resize(4096, 0);
    for change in plan.changes.clone() {
        match change {
            Change::ClearCounters { .. } => {}
            Change::SetBackend { slot, backend } => drop(installed.backends.insert(slot, backend)),
            Change::SetPortWord { index, word } => installed.ports[index as usize] = word,
            Change::SetTable { table, recipe } => {
                let slots = recipe.build(&mut Builder::default());
                installed.tables.insert(table, Digest::of(&slots));
            }
            Change::RemoveTable { table } => drop(installed.tables.remove(&table)),
            Change::AddSources { service, sources } => {
                let lists = &mut installed.admissions.sources;
                let list = edited(lists.get(&service), &sources, &[]);
                lists.insert(service, list);
            }
            Change::RemoveSources { service, prefixes } => {
                let lists = &mut installed.admissions.sources;
                let list = edited(lists.get(&service), &[], &prefixes);
                lists.insert(service, list);
                lists.retain(|_, list| !list.is_empty());
            }
            Change::SetAdmission { service, admission } => {
                let rules = &mut installed.admissions.rules;
                rules.insert(service, admission);
                rules.retain(|_, rules| *rules != Admission::default());
            }
            Change::SetService { listen, service } => {
                installed.services.insert(listen, service);
            }
            Change::RemoveService { listen } => drop(installed.services.remove(&listen)),
            Change::SetEcho { address } => assert!(installed.echoes.insert(address)),
            Change::RemoveEcho { address } => assert!(installed.echoes.remove(&address)),
        }
    }
    installed
}

fn fresh(services: &[DesiredService]) -> Installed {
    carried_out(
        Installed::default(),
        &plan_for(services, &Installed::default()),
    )
}

#[test]
fn everything_configured_is_written() {
    let mut web = service(
        "web",
        &["192.0.2.1:80", "[2001:db8::1]:80"],
        Policy::Random,
        1,
    );
    web.backends[0].admit = Admit::Draining;
    let mut v6 = web.backends[0].clone();
    v6.address = "[2001:db8::a]:80".parse().unwrap();
    v6.admit = Admit::Active;
    web.backends.push(v6);
    let installed = fresh(&[web]);
    let services: Vec<_> = installed.services.values().collect();
    assert_eq!((services[0].id, services[0].table), (0, 0));
    assert_eq!((services[1].id, services[1].table), (0, 1));
    assert_eq!(
        (services[0].policy, services[0].no_backend),
        (policy::RANDOM, 1)
    );
    let (v4, v6) = (&installed.backends[&0], &installed.backends[&1]);
    assert_eq!(
        (v4.state, v4.generation, v4.family, v4.flags),
        (backend_state::DRAINING, 1, 4, 1)
    );
    assert_eq!(v4.source[0].to_ne_bytes(), [10, 9, 9, 9]);
    assert_eq!(socket_address(v4), "10.0.0.1:8080".parse().unwrap());
    assert_eq!(
        (v6.state, v6.family, v6.flags),
        (backend_state::ACTIVE, 6, 0),
        "another family's source"
    );
    assert_eq!(installed.tables.keys().collect::<Vec<_>>(), [&1]);
}

/// Another daemon's service, of which this one knows nothing yet.
#[test]
fn what_is_kept_stays_as_it_is() {
    let mut other = service("other", &["192.0.2.9:53"], Policy::Random, 2);
    other.admission.max_connections = Some(7);
    other.admission.deny_sources = ["10.0.0.0/8".parse().unwrap()].into_iter().collect();
    other.sources = other.admission.sources();
    let web = service("web", &["192.0.2.1:80"], Policy::Maglev, 2);
    let installed = fresh(&[web.clone(), other.clone()]);
    let kept = |services: &[DesiredService], installed: &Installed| {
        let desired = Desired {
            services: services.to_vec(),
            kept: installed.services.keys().copied().collect(),
        };
        plan(Input {
            desired: &desired,
            installed,
            present: Some(&HashMap::new()),
            retired: &HashSet::from([0, 1, 2, 3]),
            recipes: &HashMap::new(),
            capacity: CAPACITY,
        })
    };
    let alone = kept(&[], &installed);
    assert_eq!((alone.changes, alone.retired), (vec![], HashSet::new()));

    let third = service("third", &["192.0.2.3:80"], Policy::Random, 1);
    let after = carried_out(installed.clone(), &kept(&[third], &installed));
    let is_same = |slot: u32| after.backends[&slot] == installed.backends[&slot];
    assert!((0..4).all(is_same), "{after:#?}");
    assert_eq!(after.backends[&4].service, 2);
    let lost = |listen| !after.services.contains_key(listen);
    assert!(!installed.services.keys().any(lost), "{after:#?}");
    assert_eq!(after.admissions, installed.admissions);

    // One that is known by now is what is said of it.
    let fewer = service("again", &["192.0.2.9:53"], Policy::Random, 1);
    let known = kept(&[fewer], &installed);
    assert_eq!(known.placement.services["again"], 1);
    assert_eq!(known.retired, HashSet::new());
    let after = carried_out(installed.clone(), &known);
    assert_eq!(after.backends[&3].state, backend_state::FREE);
    assert_eq!(after.backends[&0], installed.backends[&0]);
    assert!(after.admissions.rules.is_empty());
}

#[test]
fn a_listen_moves_to_another_service_without_a_gap() {
    let installed = fresh(&[service(
        "web",
        &["192.0.2.1:80", "192.0.2.2:80"],
        Policy::RoundRobin,
        2,
    )]);
    let split = [
        service("web", &["192.0.2.1:80"], Policy::RoundRobin, 2),
        service("api", &["192.0.2.2:80"], Policy::RoundRobin, 2),
    ];
    let plan = plan_for(&split, &installed);
    assert_eq!(
        (
            plan.placement.services["web"],
            plan.placement.services["api"]
        ),
        (0, 1)
    );
    assert!(
        !plan
            .changes
            .iter()
            .any(|c| matches!(c, Change::RemoveService { .. }))
    );
    let place = |is: fn(&Change) -> bool| plan.changes.iter().position(is).unwrap();
    let table = place(|c| matches!(c, Change::SetTable { table: 2, .. }));
    assert!(table < place(|c| matches!(c, Change::SetService { .. })));

    let installed = carried_out(installed, &plan);
    let merged = [service(
        "web",
        &["192.0.2.1:80", "192.0.2.2:80"],
        Policy::RoundRobin,
        2,
    )];
    let plan = plan_for(&merged, &installed);
    let place = |is: fn(&Change) -> bool| plan.changes.iter().position(is).unwrap();
    let moved = place(|c| matches!(c, Change::SetService { .. }));
    assert!(moved < place(|c| matches!(c, Change::SetBackend { .. })));
    assert!(moved < place(|c| matches!(c, Change::RemoveTable { table: 2 })));
    assert_eq!(plan.retired, HashSet::from([2, 3]));
}

#[test]
fn a_failing_backend_keeps_the_size_of_a_maglev_table() {
    let mut web = service("web", &["192.0.2.1:80"], Policy::Maglev, 32);
    let table = |plan: &Plan| {
        let recipe = plan.changes.iter().find_map(|change| match change {
            Change::SetTable { recipe, .. } => Some(recipe),
            _ => None,
        });
        recipe.unwrap().build(&mut Builder::default())
    };
    let whole = plan_for(std::slice::from_ref(&web), &Installed::default());
    let before = carried_out(Installed::default(), &whole);
    web.backends[7].admit = Admit::Down;
    let (whole, rest) = (table(&whole), table(&plan_for(&[web], &before)));
    assert_eq!(whole.len(), rest.len());
    assert!(whole.contains(&7) && !rest.contains(&7));
}

#[test]
fn known_recipes_are_not_cooked_again() {
    let desired = Desired {
        kept: Default::default(),
        services: vec![service("web", &["192.0.2.1:80"], Policy::Maglev, 3)],
    };
    let first = plan_for(&desired.services, &Installed::default());
    let recipes = first.changes.iter().filter_map(|change| match change {
        Change::SetTable { table, recipe } => Some((*table, recipe.clone())),
        _ => None,
    });
    let recipes: HashMap<u32, Recipe> = recipes.collect();
    assert_eq!(recipes.len(), 1);
    let mut installed = carried_out(Installed::default(), &first);
    let again = |installed: &Installed| {
        plan(Input {
            desired: &desired,
            installed,
            present: None,
            retired: &HashSet::new(),
            recipes: &recipes,
            capacity: CAPACITY,
        })
    };
    assert!(again(&installed).changes.is_empty());
    installed.tables.clear();
    assert_eq!(again(&installed).changes.len(), 1, "it is gone");
}

#[test]
fn an_address_answers_echo_requests_as_long_as_any_service_has_it() {
    let web = service(
        "web",
        &["192.0.2.1:80", "[2001:db8::1]:80"],
        Policy::Random,
        1,
    );
    let mut dns = service("dns", &["192.0.2.1:53", "192.0.2.2:53"], Policy::Random, 0);
    dns.protocol = Protocol::Udp;
    let echoes = |installed: &Installed| -> Vec<String> {
        installed.echoes.iter().map(|a| a.to_string()).collect()
    };
    let both = fresh(&[web.clone(), dns.clone()]);
    assert_eq!(echoes(&both), ["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
    let plan = plan_for(std::slice::from_ref(&dns), &both);
    let one = carried_out(both, &plan);
    assert_eq!(echoes(&one), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(plan_for(&[dns], &one).changes, []);
    let none = carried_out(one.clone(), &plan_for(&[], &one));
    assert!(none.echoes.is_empty());
    // A listen that is refused is no service's.
    let thief = service("thief", &["192.0.2.1:80"], Policy::Random, 1);
    let refused = fresh(&[web, thief]);
    assert_eq!(echoes(&refused), ["192.0.2.1", "2001:db8::1"]);
}

#[test]
fn one_listen_belongs_to_one_service() {
    let plan = plan_for(
        &[
            service("web", &["192.0.2.1:80"], Policy::Random, 1),
            service("api", &["192.0.2.1:80", "192.0.2.1:81"], Policy::Random, 1),
            service("dup", &["192.0.2.1:81"], Policy::Random, 1),
        ],
        &Installed::default(),
    );
    assert_eq!(plan.refused.len(), 2);
    assert_eq!(
        plan.refused[0],
        "service api: 192.0.2.1:80/tcp belongs to service web; choose another address or port"
    );
    assert_eq!(plan.placement.services.len(), 2);
}

#[test]
fn ipv6_backends_serve_both_families_in_a_tunnel_only() {
    let listen = ["192.0.2.1:80", "[2001:db8::1]:80"];
    let mut web = service("web", &listen, Policy::RoundRobin, 1);
    let second = DesiredBackend {
        address: "[fd00::1]:8080".parse().unwrap(),
        ..web.backends[0].clone()
    };
    web.backends.push(second);
    web.backends.iter_mut().for_each(|b| b.source = None);
    let entries = |web: &DesiredService| {
        let plan = plan_for(std::slice::from_ref(web), &Installed::default());
        let slots = |index: u32| {
            let mut slots: Vec<u32> = plan
                .changes
                .iter()
                .filter_map(|change| match change {
                    Change::SetTable { table, recipe } if *table == index => {
                        Some(recipe.build(&mut Builder::default()))
                    }
                    _ => None,
                })
                .flatten()
                .collect();
            slots.sort_unstable();
            slots.dedup();
            slots
        };
        (slots(0), slots(1))
    };
    assert_eq!(entries(&web), (vec![0], vec![1]));
    web.forwarding = Forwarding::DsrIpip;
    assert_eq!(entries(&web), (vec![0, 1], vec![1]));
}

#[test]
fn a_tunnel_outlives_its_services_forwarding() {
    let mut web = service("web", &["192.0.2.1:80"], Policy::Maglev, 1);
    web.backends[0].source = None;
    web.backends[0].tunnel = Some(Tunnel {
        source: "172.16.0.0".parse().unwrap(),
        spread: 16,
    });
    web.forwarding = Forwarding::DsrIpip;
    let first = plan_for(std::slice::from_ref(&web), &Installed::default());
    let installed = carried_out(Installed::default(), &first);
    let tunnel = installed.backends[&0];
    assert_eq!(tunnel.source[0].to_ne_bytes(), [172, 16, 0, 0]);
    assert_eq!(tunnel.spread.to_ne_bytes(), [0, 0, 255, 255]);
    assert_eq!(tunnel.flags, backend_flag::TUNNEL);

    web.forwarding = Forwarding::Nat;
    web.backends[0].tunnel = None;
    let plan = plan_for(std::slice::from_ref(&web), &installed);
    let installed = carried_out(installed, &plan);
    assert_eq!(installed.backends[&0], tunnel);

    web.backends[0].source = Some("10.9.9.9".parse().unwrap());
    let plan = plan_for(std::slice::from_ref(&web), &installed);
    let snat = carried_out(installed, &plan).backends[&0];
    assert_eq!(snat.source[0].to_ne_bytes(), [10, 9, 9, 9]);
    assert_eq!((snat.flags, snat.spread), (backend_flag::SNAT, 0));
}

#[test]
fn what_ends_with_its_backend_does_not_go_on_when_that_is_removed() {
    let mut web = service("web", &["192.0.2.1:80"], Policy::Maglev, 4);
    web.on_backend_down = OnBackendDown::Reset;
    web.backends[1].admit = Admit::Down;
    web.backends[2].admit = Admit::Closed;
    web.backends[3].admit = Admit::Draining;
    let installed = fresh(&[web.clone()]);
    let states = |installed: &Installed| -> Vec<u32> {
        installed.backends.values().map(|b| b.state).collect()
    };
    use backend_state::{ACTIVE, CLOSED, DOWN, DRAINING};
    assert_eq!(states(&installed), [ACTIVE, DOWN, CLOSED, DRAINING]);
    let resets = |b: &Backend| b.flags & backend_flag::RESET_WHEN_DOWN != 0;
    assert!(installed.backends.values().all(resets));

    let mut emptied = web.clone();
    emptied.backends.clear();
    let removed = carried_out(installed.clone(), &plan_for(&[emptied], &installed));
    assert_eq!(states(&removed), [DRAINING, DOWN, CLOSED, DRAINING]);

    // The policy changes in place.
    web.on_backend_down = OnBackendDown::Keep;
    let kept = carried_out(installed.clone(), &plan_for(&[web], &installed));
    assert_eq!(states(&kept), states(&installed));
    assert!(!kept.backends.values().any(resets));
}

fn allowing(prefixes: &[&str]) -> DesiredService {
    let admission = crate::model::Admission {
        allow_sources: prefixes.iter().map(|p| p.parse().unwrap()).collect(),
        ..Default::default()
    };
    DesiredService {
        sources: admission.sources(),
        admission,
        ..service("web", &["192.0.2.1:80"], Policy::Maglev, 1)
    }
}

#[test]
fn nobody_gets_to_a_service_before_its_lists_are_there() {
    let changes = plan_for(&[allowing(&["10.0.0.0/8"])], &Installed::default()).changes;
    let at = |is: fn(&Change) -> bool| changes.iter().position(is).unwrap();
    let added = at(|c| matches!(c, Change::AddSources { .. }));
    let ruled = at(|c| matches!(c, Change::SetAdmission { .. }));
    let opened = at(|c| matches!(c, Change::SetService { .. }));
    assert!(added < ruled && ruled < opened, "{changes:?}");
    // And it is gone before they are.
    let changes = plan_for(&[], &fresh(&[allowing(&["10.0.0.0/8"])])).changes;
    let at = |is: fn(&Change) -> bool| changes.iter().position(is).unwrap();
    let closed = at(|c| matches!(c, Change::RemoveService { .. }));
    let ruled = at(|c| matches!(c, Change::SetAdmission { .. }));
    let removed = at(|c| matches!(c, Change::RemoveSources { .. }));
    assert!(closed < ruled && ruled < removed, "{changes:?}");
}

#[test]
fn lists_that_do_not_fit_open_nothing() {
    let many: Vec<_> = (0..9).map(|i| format!("10.{i}.0.0/16")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let plan = plan_for(&[allowing(&many)], &Installed::default());
    assert!(
        plan.refused[0].contains("node.limits.sources"),
        "{:?}",
        plan.refused
    );
    let installed = carried_out(Installed::default(), &plan);
    let closed = admission_flag::SOURCES | admission_flag::LISTED_ONLY;
    assert_eq!(installed.admissions.rules[&0].flags, closed);
    assert!(installed.admissions.sources.is_empty());
    // A service that has a list keeps it.
    let former = fresh(&[allowing(&["10.0.0.0/8"])]);
    let installed = carried_out(former.clone(), &plan_for(&[allowing(&many)], &former));
    assert_eq!(installed.admissions, former.admissions);
}
