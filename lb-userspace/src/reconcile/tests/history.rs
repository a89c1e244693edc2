use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use lb_common::abi::{Backend, Be16, PortKind, Service, backend_state, port_bit, protocol};
use proptest::prelude::*;

use super::{super::*, CAPACITY, memory, service};
use crate::{
    datapath::{
        Listen,
        memory::{Maps, Write},
    },
    model::{Admission, Policy, Protocol, is_v6},
    plan::{Admit, DesiredBackend, DesiredService, socket_address},
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_history_ends_as_a_fresh_install(steps in prop::collection::vec(step(), 0..25), last in desired()) {
        run(steps, last);
    }

    #[test]
    fn a_part_does_what_the_whole_does(
        first in desired(),
        others in prop::collection::vec(prop::option::of(attributes()), 15),
    ) {
        let (whole, part) = (memory(), memory());
        let mut of_whole = Reconciler::new(whole.clone()).unwrap();
        let mut of_part = Reconciler::new(part.clone()).unwrap();
        of_whole.apply(&first, None).unwrap();
        let applied = of_part.apply(&first, None).unwrap();
        if !applied.refused.is_empty() {
            // Then the whole is gone over.
            return Ok(());
        }
        let mut second = first;
        let mut touched = BTreeSet::new();
        let mut others = others.into_iter().cycle();
        for (place, service) in second.services.iter_mut().enumerate() {
            for backend in &mut service.backends {
                if let Some(Some((weight, admit, snat))) = others.next() {
                    touched.insert(place);
                    (backend.weight, backend.admit, backend.source) = (weight, admit, snat);
                    backend.snat = snat.is_some();
                }
            }
        }
        let changes = of_whole.apply(&second, None).unwrap().changes;
        let done = of_part.apply_part(&second, &touched, &applied.placement).unwrap();
        prop_assert_eq!(done, Some(changes));
        prop_assert_eq!(part.maps(), whole.maps());
        prop_assert_eq!(of_part.installed(), of_whole.installed());
    }

    #[test]
    fn a_part_with_new_backends_is_left_to_the_whole(first in desired(), second in desired()) {
        let memory = memory();
        let mut reconciler = Reconciler::new(memory.clone()).unwrap();
        let placement = reconciler.apply(&first, None).unwrap().placement;
        let before = memory.maps();
        let names = |service: &DesiredService| {
            let name = service.name.clone();
            let name = move |b: &DesiredBackend| format!("{name}/{}", b.address);
            service.backends.iter().map(name).collect::<Vec<_>>()
        };
        let known: BTreeSet<String> = first.services.iter().flat_map(names).collect();
        let touched = (0..second.services.len()).collect();
        if !second.services.iter().flat_map(names).all(|name| known.contains(&name)) {
            let done = reconciler.apply_part(&second, &touched, &placement).unwrap();
            prop_assert_eq!(done, None);
            prop_assert_eq!(memory.maps(), before);
        }
    }
}

fn run(steps: Vec<Step>, last: Desired) {
    let memory = memory();
    let invariants = Arc::new(Mutex::new(Invariants {
        before: memory.maps(),
        flows: HashMap::new(),
        may_lack_table: BTreeSet::new(),
    }));
    let watcher = invariants.clone();
    memory.watch(move |write, maps| watcher.lock().unwrap().check(write, maps));
    let mut reconciler = Reconciler::new(memory.clone()).unwrap();
    let mut present = None;
    let mut current = Desired::default();
    let mut approached: Vec<Desired> = Vec::new();
    let mut apply =
        |reconciler: &mut Reconciler, desired: &Desired, present: &Option<HashMap<_, _>>| {
            approached.push(desired.clone());
            let lack = approached.iter().flat_map(|d| {
                let served = served(d);
                approached
                    .iter()
                    .flat_map(listens)
                    .filter(move |l| !served.contains(l))
            });
            invariants.lock().unwrap().may_lack_table = lack.collect();
            let result = reconciler.apply(desired, present.as_ref());
            if result.is_ok() {
                approached = vec![desired.clone()];
            }
            result
        };
    for step in steps {
        match step {
            Step::Apply(desired) => {
                current = desired;
                let _ = apply(&mut reconciler, &current, &present);
            }
            Step::Again => {
                let _ = apply(&mut reconciler, &current, &present);
            }
            Step::Restart => {
                memory.fail_call(0);
                reconciler = Reconciler::new(memory.clone()).unwrap();
                present = None;
            }
            Step::FailCall(n) => memory.fail_call(n),
            Step::Flows(slots) => {
                let flows: HashMap<u32, u64> = slots.into_iter().map(|slot| (slot, 1)).collect();
                invariants.lock().unwrap().flows = flows.clone();
                present = Some(flows);
                reconciler.scanned();
            }
            Step::Verify => {
                memory.fail_call(0);
                assert_eq!(
                    super::verify(&mut reconciler).unwrap(),
                    Vec::<String>::new()
                );
            }
        }
    }
    memory.fail_call(0);
    invariants.lock().unwrap().flows.clear();
    let mut applied = Applied::default();
    for _ in 0..3 {
        reconciler.scanned();
        applied = apply(&mut reconciler, &last, &Some(HashMap::new())).unwrap();
    }
    assert_eq!(applied.changes, 0);

    let fresh = super::memory();
    let expected = Reconciler::new(fresh.clone())
        .unwrap()
        .apply(&last, None)
        .unwrap();
    assert_eq!(applied.refused, expected.refused);
    assert_eq!(
        format!("{:?}", essence(&memory.maps())),
        format!("{:?}", essence(&fresh.maps()))
    );
}

fn listens(desired: &Desired) -> Vec<Listen> {
    let of = |s: &DesiredService| {
        let protocol = s.protocol;
        s.listen
            .clone()
            .into_iter()
            .map(move |address| Listen { address, protocol })
    };
    desired.services.iter().flat_map(of).collect()
}

/// What must hold after every single write.
struct Invariants {
    before: Maps,
    flows: HashMap<u32, u64>,
    /// Listens that may be without a table: those that lack backends in any state of affairs that
    /// is being left or approached.
    may_lack_table: BTreeSet<Listen>,
}

impl Invariants {
    fn check(&mut self, write: Write, maps: &Maps) {
        for (table, slots) in &maps.tables {
            for slot in distinct(slots) {
                let backend = maps
                    .backends
                    .get(&slot)
                    .expect("a table names a slot never used");
                assert_ne!(
                    backend.state,
                    backend_state::FREE,
                    "{write:?}: a table names a free slot"
                );
                assert_eq!(2 * backend.service + u32::from(backend.family == 6), *table);
                if maps.services.values().any(|s| s.table == *table) {
                    let kind = match backend.protocol {
                        protocol::UDP => PortKind::BackendUdp,
                        _ => PortKind::BackendTcp,
                    };
                    assert!(has_port(maps, kind, Be16(backend.port).get()), "{write:?}");
                }
            }
        }
        for (listen, service) in &maps.services {
            let has_table = maps.tables.contains_key(&service.table);
            assert!(
                has_table || self.may_lack_table.contains(listen),
                "{write:?}: {listen:?} lacks its table"
            );
            let kind = match listen.protocol {
                Protocol::Tcp => PortKind::ServiceTcp,
                Protocol::Udp => PortKind::ServiceUdp,
            };
            assert!(has_port(maps, kind, listen.address.port()), "{write:?}");
        }
        for (slot, was) in &self.before.backends {
            let is = maps
                .backends
                .get(slot)
                .expect("a generation is never forgotten");
            let identity = |b: &Backend| (b.service, b.family, b.protocol, b.port, b.address);
            let is_free = |b: &Backend| b.state == backend_state::FREE;
            if !is_free(was) && !is_free(is) || self.flows.contains_key(slot) && !is_free(was) {
                assert_eq!(
                    (identity(was), was.generation),
                    (identity(is), is.generation),
                    "{write:?}"
                );
            } else if !is_free(is) || !is_free(was) {
                // A flow left over finds neither the next owner nor a free slot to be its own.
                assert!(is.generation > was.generation, "{write:?}");
            }
        }
        self.before = maps.clone();
    }
}

fn has_port(maps: &Maps, kind: PortKind, port: u16) -> bool {
    let (index, bit) = port_bit(kind, port);
    maps.ports[index as usize] & bit != 0
}

fn distinct(slots: &[u32]) -> Vec<u32> {
    let mask = slots.iter().fold(0u64, |mask, slot| mask | 1 << slot);
    (0..64).filter(|slot| mask >> slot & 1 == 1).collect()
}

/// Listens of `desired` with an eligible backend of their family.
fn served(desired: &Desired) -> BTreeSet<Listen> {
    let mut served = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for service in &desired.services {
        for address in &service.listen {
            let listen = Listen {
                address: *address,
                protocol: service.protocol,
            };
            let mut first = BTreeSet::new();
            let mut backends = service.backends.iter().filter(|b| first.insert(b.address));
            let is_eligible = |b: &DesiredBackend| {
                b.admit == Admit::Active
                    && b.weight > 0
                    && is_v6(b.address.ip()) == is_v6(address.ip())
            };
            if seen.insert(listen) && backends.any(is_eligible) {
                served.insert(listen);
            }
        }
    }
    served
}

/// The maps without numbers: everything by the listens it belongs to.
fn essence(maps: &Maps) -> impl PartialEq + std::fmt::Debug {
    let mut listens: BTreeMap<u32, Vec<Listen>> = BTreeMap::new();
    for (listen, service) in &maps.services {
        listens.entry(service.id).or_default().push(*listen);
    }
    let services: Vec<_> = maps
        .services
        .iter()
        .map(|(l, s)| {
            (
                *l,
                Service {
                    id: 0,
                    table: s.table - 2 * s.id,
                    ..*s
                },
            )
        })
        .collect();
    let mut backends: Vec<_> = maps
        .backends
        .values()
        .filter(|b| b.state != backend_state::FREE)
        .map(|b| {
            let rest = Backend {
                service: 0,
                generation: 0,
                ..*b
            };
            (
                listens[&b.service].clone(),
                socket_address(b),
                format!("{rest:?}"),
            )
        })
        .collect();
    backends.sort();
    let name = |slot: &u32| socket_address(&maps.backends[slot]);
    let mut tables: Vec<(Vec<Listen>, u32, Vec<SocketAddr>)> = maps
        .tables
        .iter()
        .map(|(t, slots)| {
            (
                listens[&(t / 2)].clone(),
                t % 2,
                slots.iter().map(name).collect(),
            )
        })
        .collect();
    tables.sort();
    let rules = maps.admissions.iter().map(|(id, rules)| {
        let rules = lb_common::abi::Admission {
            counter: 0,
            ..*rules
        };
        format!("{:?} {rules:?}", listens[id])
    });
    let sources = maps.sources.iter();
    let sources = sources.map(|((id, p), is)| format!("{:?} {p} {is}", listens[id]));
    let admissions: BTreeSet<String> = rules.chain(sources).collect();
    (
        services,
        maps.echoes.clone(),
        backends,
        tables,
        maps.ports.clone(),
        admissions,
    )
}

#[derive(Clone, Debug)]
enum Step {
    Apply(Desired),
    /// Apply what was last desired again.
    Again,
    Restart,
    FailCall(u64),
    Flows(BTreeSet<u32>),
    Verify,
}

fn desired_service(name: &'static str) -> impl Strategy<Value = DesiredService> {
    const LISTENS: [&str; 5] = [
        "192.0.2.1:80",
        "192.0.2.1:81",
        "192.0.2.2:80",
        "[2001:db8::1]:80",
        "[2001:db8::2]:443",
    ];
    const BACKENDS: [&str; 5] = [
        "10.0.0.1:80",
        "10.0.0.2:80",
        "10.0.0.1:8080",
        "[2001:db8::a]:80",
        "[2001:db8::b]:8080",
    ];
    let backend = (prop::sample::select(&BACKENDS[..]), attributes()).prop_map(
        |(address, (weight, admit, snat))| DesiredBackend {
            weight,
            admit,
            source: snat,
            snat: snat.is_some(),
            tunnel: None,
            ..super::backend(address)
        },
    );
    (
        prop::sample::subsequence(&LISTENS[..], 1..3),
        prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)],
        prop_oneof![
            Just(Policy::RoundRobin),
            Just(Policy::RoundRobin),
            Just(Policy::Maglev)
        ],
        prop::collection::vec(backend, 0..5),
        admission(),
    )
        .prop_map(
            move |(listen, protocol, policy, backends, admission)| DesiredService {
                forwarding: Default::default(),
                sources: admission.sources(),
                admission,
                listen: listen.iter().map(|l| l.parse().unwrap()).collect(),
                protocol,
                policy,
                backends,
                ..service(name, "192.0.2.1:80", &[])
            },
        )
}

fn admission() -> impl Strategy<Value = Admission> {
    const PREFIXES: [&str; 4] = ["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32", "::/0"];
    let list = || {
        prop::sample::subsequence(&PREFIXES[..], 0..3)
            .prop_map(|list| list.iter().map(|p| p.parse().unwrap()).collect())
    };
    let limit = prop::option::of(1..3u32);
    (list(), list(), limit).prop_map(|(allow_sources, deny_sources, max_connections)| Admission {
        allow_sources,
        deny_sources,
        max_connections,
        ..Admission::default()
    })
}

/// Of a backend: weight, admission and source address.
fn attributes() -> impl Strategy<Value = (u32, Admit, Option<IpAddr>)> {
    let admit =
        prop_oneof![4 => Just(Admit::Active), 1 => Just(Admit::Draining), 1 => Just(Admit::Down)];
    let weight = prop_oneof![4 => Just(100), 1 => Just(0), 1 => 1..300u32];
    let source = prop::option::of(Just("10.9.9.9".parse().unwrap()));
    (weight, admit, source)
}

fn desired() -> impl Strategy<Value = Desired> {
    let one = |name| prop::option::weighted(0.7, desired_service(name));
    (one("a"), one("b"), one("c")).prop_map(|(a, b, c)| Desired {
        kept: Default::default(),
        services: [a, b, c].into_iter().flatten().collect(),
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => desired().prop_map(Step::Apply),
        2 => Just(Step::Again),
        1 => Just(Step::Restart),
        3 => (1..30u64).prop_map(Step::FailCall),
        2 => prop::collection::btree_set(0..CAPACITY.backends, 0..4).prop_map(Step::Flows),
        1 => Just(Step::Verify),
    ]
}
