mod history;

use std::{sync::Arc, time::Instant};

use lb_common::abi::{Backend, PortKind, Service, port_bit};

use super::*;
use crate::{
    datapath::{
        Capacity, Listen,
        memory::{Memory, Write},
    },
    model::{NoBackend, Policy, Protocol},
    plan::{Admit, DesiredBackend, DesiredService},
};

const CAPACITY: Capacity = Capacity {
    services: 6,
    backends: 24,
    sources: 1000,
};

fn memory() -> Arc<Memory> {
    Arc::new(Memory::new(CAPACITY))
}

fn backend(address: &str) -> DesiredBackend {
    DesiredBackend {
        address: address.parse().unwrap(),
        weight: 100,
        admit: Admit::Active,
        source: None,
        snat: false,
        tunnel: None,
        max_connections: 0,
    }
}

fn service(name: &str, listen: &str, backends: &[&str]) -> DesiredService {
    DesiredService {
        name: name.to_owned(),
        listen: vec![listen.parse().unwrap()],
        protocol: Protocol::Tcp,
        forwarding: Default::default(),
        policy: Policy::RoundRobin,
        no_backend: NoBackend::Reject,
        on_backend_down: Default::default(),
        admission: Default::default(),
        sources: Default::default(),
        backends: backends.iter().map(|b| backend(b)).collect(),
    }
}

fn web(backends: &[&str]) -> Desired {
    Desired {
        kept: Default::default(),
        services: vec![service("web", "192.0.2.10:80", backends)],
    }
}

/// Both halves, with nothing in between.
fn verify(reconciler: &mut Reconciler) -> anyhow::Result<Vec<String>> {
    let tables = reconciler.begin_verify()()?;
    reconciler.verify(tables)
}

fn state(memory: &Memory, slot: u32) -> u32 {
    memory.maps().backends[&slot].state
}

mod adoption {
    use super::*;

    #[test]
    fn a_restart_changes_nothing() {
        let memory = memory();
        let desired = web(&["10.0.0.1:80", "10.0.0.2:80", "[2001:db8::1]:80"]);
        let first = Reconciler::new(memory.clone())
            .unwrap()
            .apply(&desired, None)
            .unwrap();
        memory.take_writes();
        let again = Reconciler::new(memory.clone())
            .unwrap()
            .apply(&desired, None)
            .unwrap();
        assert_eq!((again.changes, &again.placement), (0, &first.placement));
        assert!(memory.take_writes().is_empty());
    }

    #[test]
    fn a_listen_in_common_keeps_the_id() {
        let memory = memory();
        let mut reconciler = Reconciler::new(memory).unwrap();
        let mut desired = web(&["10.0.0.1:80"]);
        desired
            .services
            .insert(0, service("api", "192.0.2.11:80", &["10.0.0.1:80"]));
        let before = reconciler.apply(&desired, None).unwrap().placement;
        desired.services.reverse();
        desired.services[0].name = "shop".to_owned();
        desired.services[0]
            .listen
            .insert(0, "192.0.2.12:80".parse().unwrap());
        let after = reconciler.apply(&desired, None).unwrap().placement;
        assert_eq!(before.services["web"], after.services["shop"]);
        assert_eq!(before.services["api"], after.services["api"]);
    }
}

mod retirement {
    use super::*;

    fn retire(protocol: Protocol) -> (Arc<Memory>, Reconciler, Desired) {
        let memory = memory();
        let mut reconciler = Reconciler::new(memory.clone()).unwrap();
        let mut desired = web(&["10.0.0.1:80", "10.0.0.2:80"]);
        desired.services[0].protocol = protocol;
        reconciler.apply(&desired, None).unwrap();
        reconciler.scanned();
        desired.services[0].backends.remove(0);
        reconciler.apply(&desired, Some(&HashMap::new())).unwrap();
        (memory, reconciler, desired)
    }

    #[test]
    fn tcp_drains_and_udp_moves() {
        let (memory, ..) = retire(Protocol::Tcp);
        assert_eq!(state(&memory, 0), backend_state::DRAINING);
        let (memory, ..) = retire(Protocol::Udp);
        assert_eq!(state(&memory, 0), backend_state::DOWN);
    }

    #[test]
    fn only_a_later_scan_frees() {
        let (memory, mut reconciler, desired) = retire(Protocol::Tcp);
        reconciler.apply(&desired, Some(&HashMap::new())).unwrap();
        assert_eq!(state(&memory, 0), backend_state::DRAINING);
        reconciler.scanned();
        reconciler
            .apply(&desired, Some(&HashMap::from([(0, 1)])))
            .unwrap();
        assert_eq!(state(&memory, 0), backend_state::DRAINING);
        reconciler.apply(&desired, None).unwrap();
        assert_eq!(state(&memory, 0), backend_state::DRAINING);
        reconciler.scanned();
        reconciler.apply(&desired, Some(&HashMap::new())).unwrap();
        assert_eq!(state(&memory, 0), backend_state::FREE);
    }

    #[test]
    fn a_backend_that_returns_takes_its_slot_back() {
        let (memory, mut reconciler, mut desired) = retire(Protocol::Tcp);
        desired.services[0].backends.push(backend("10.0.0.1:80"));
        reconciler.apply(&desired, None).unwrap();
        let maps = memory.maps();
        assert_eq!(
            (maps.backends[&0].state, maps.backends[&0].generation),
            (backend_state::ACTIVE, 1)
        );
    }

    #[test]
    fn the_next_owner_gets_another_generation_even_after_a_restart() {
        let (memory, mut reconciler, mut desired) = retire(Protocol::Tcp);
        reconciler.scanned();
        reconciler.apply(&desired, Some(&HashMap::new())).unwrap();
        let of_the_slot = || {
            let slot = memory.maps().backends[&0];
            (slot.state, slot.generation)
        };
        // No connection of the former owner that nobody saw is this slot's.
        assert_eq!(of_the_slot(), (backend_state::FREE, 2));
        memory.tamper(|maps| {
            maps.counters.entry(0).or_default().connections = 7;
        });
        desired.services[0].backends.push(backend("10.0.0.3:80"));
        let mut restarted = Reconciler::new(memory.clone()).unwrap();
        restarted.apply(&desired, None).unwrap();
        assert_eq!(of_the_slot(), (backend_state::ACTIVE, 3));
        assert!(!memory.maps().counters.contains_key(&0));
    }

    #[test]
    fn a_removed_service_keeps_its_port_while_flows_go_on() {
        let memory = memory();
        let mut reconciler = Reconciler::new(memory.clone()).unwrap();
        reconciler.apply(&web(&["10.0.0.1:8080"]), None).unwrap();
        let (index, bit) = port_bit(PortKind::ServiceTcp, 80);
        let is_set = || memory.maps().ports[index as usize] & bit != 0;
        reconciler.scanned();
        reconciler
            .apply(&Desired::default(), Some(&HashMap::from([(0, 1)])))
            .unwrap();
        assert!(is_set() && memory.maps().services.is_empty());
        reconciler.scanned();
        reconciler
            .apply(&Desired::default(), Some(&HashMap::new()))
            .unwrap();
        assert!(memory.maps().ports.iter().all(|word| *word == 0));
    }
}

mod order {
    use super::*;

    fn position(writes: &[Write], write: Write) -> usize {
        writes.iter().position(|w| *w == write).unwrap()
    }

    #[test]
    fn failed_backends_first_removed_ones_after_their_successors() {
        let memory = memory();
        let mut reconciler = Reconciler::new(memory.clone()).unwrap();
        let mut desired = web(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
        reconciler.apply(&desired, None).unwrap();
        memory.take_writes();
        desired.services[0].backends[0].address = "10.0.0.9:80".parse().unwrap();
        desired.services[0].backends[2].admit = Admit::Down;
        reconciler.apply(&desired, None).unwrap();
        let writes = memory.take_writes();
        assert_eq!(position(&writes, Write::Backend(2)), 0);
        assert!(position(&writes, Write::Backend(3)) < position(&writes, Write::Table(0)));
        assert!(position(&writes, Write::Backend(0)) > position(&writes, Write::Table(0)));
    }

    #[test]
    fn what_does_not_fit_is_refused_until_there_is_room() {
        let memory = Arc::new(Memory::new(Capacity {
            services: 1,
            backends: 2,
            sources: 1000,
        }));
        let mut reconciler = Reconciler::new(memory).unwrap();
        let mut desired = web(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
        desired
            .services
            .push(service("api", "[2001:db8::1]:80", &["10.0.0.1:80"]));
        let applied = reconciler.apply(&desired, None).unwrap();
        assert_eq!(
            applied.refused,
            [
                "service api: the kernel maps have room for 1 services; raise node.limits.services",
                "backend web/10.0.0.3:80: the kernel maps have room for 2 backends; raise node.limits.backends",
            ]
        );
        desired.services.remove(0);
        desired.services[0].backends.clear();
        let applied = reconciler.apply(&desired, None).unwrap();
        assert!(applied.refused.len() == 1, "slots of web are not free yet");
        reconciler.scanned();
        reconciler
            .apply(&Desired::default(), Some(&HashMap::new()))
            .unwrap();
        assert!(reconciler.apply(&desired, None).unwrap().refused.is_empty());
    }

    #[test]
    fn one_failure_holds_back_only_its_own_service() {
        let memory = memory();
        let mut reconciler = Reconciler::new(memory.clone()).unwrap();
        let mut desired = web(&["10.0.0.1:80"]);
        desired
            .services
            .push(service("api", "192.0.2.11:80", &["10.0.0.2:80"]));
        memory.fail_call(2);
        let error = reconciler.apply(&desired, None).unwrap_err();
        assert!(
            format!("{error:#}").starts_with("backend web/10.0.0.1:80 (slot 0): "),
            "{error:#}"
        );
        let maps = memory.maps();
        assert_eq!(maps.services.len(), 1);
        assert_eq!(maps.tables.len(), 1);
        assert_eq!(
            *reconciler.installed(),
            Reconciler::new(memory.clone()).unwrap().installed
        );
        reconciler.apply(&desired, None).unwrap();
        assert_eq!(memory.maps().services.len(), 2);
    }
}

mod verification {
    use super::*;

    #[test]
    fn says_and_repairs_what_others_broke() {
        let memory = memory();
        let mut reconciler = Reconciler::new(memory.clone()).unwrap();
        reconciler
            .apply(&web(&["10.0.0.1:80", "10.0.0.2:80"]), None)
            .unwrap();
        let right = memory.maps();
        assert!(verify(&mut reconciler).unwrap().is_empty());
        memory.tamper(|maps| {
            maps.services.clear();
            let listen = Listen {
                address: "192.0.2.99:80".parse().unwrap(),
                protocol: Protocol::Udp,
            };
            maps.services.insert(
                listen,
                Service {
                    id: 5,
                    ..Service::default()
                },
            );
            maps.echoes = ["192.0.2.98".parse().unwrap()].into();
            maps.tables.remove(&0);
            maps.tables.insert(7, vec![1]);
            maps.backends.get_mut(&1).unwrap().state = backend_state::DOWN;
            maps.backends.insert(
                9,
                Backend {
                    generation: 3,
                    state: 1,
                    family: 4,
                    service: 5,
                    ..Backend::default()
                },
            );
            maps.ports[3] = 1;
        });
        let said = verify(&mut reconciler).unwrap();
        assert_eq!(
            said,
            [
                "service number 5 (192.0.2.99:80/udp): not ours, removed",
                "echo entry of 192.0.2.98: not ours, removed",
                "backend web/10.0.0.2:80 (slot 1): was changed, written again",
                "IPv4 table of service web: was missing, written again",
                "service web (192.0.2.10:80/tcp): was missing, written again",
                "echo entry of 192.0.2.10: was missing, written again",
                "IPv6 table of service number 3: not ours, removed",
                "backend 0.0.0.0:0 (slot 9): not ours, removed",
                "port bitmaps, word 3: was changed, written again",
            ]
        );
        let mut repaired = memory.maps();
        assert_eq!(
            repaired.backends.remove(&9).unwrap().state,
            backend_state::FREE
        );
        assert_eq!(repaired, right);
        assert!(verify(&mut reconciler).unwrap().is_empty());
    }

    #[test]
    fn an_entry_without_generation_is_removed_once() {
        let memory = memory();
        let mut reconciler = Reconciler::new(memory.clone()).unwrap();
        memory.tamper(|maps| {
            let foreign = Backend {
                state: backend_state::ACTIVE,
                ..Backend::default()
            };
            maps.backends.insert(9, foreign);
        });
        assert_eq!(verify(&mut reconciler).unwrap().len(), 1);
        assert!(verify(&mut reconciler).unwrap().is_empty());
    }

    #[test]
    fn what_is_written_meanwhile_is_no_damage() {
        let memory = memory();
        let mut reconciler = Reconciler::new(memory.clone()).unwrap();
        let mut desired = web(&["10.0.0.1:80", "10.0.0.2:80"]);
        let api = service("api", "192.0.2.11:80", &["10.0.0.3:80"]);
        desired.services.push(api.clone());
        reconciler.apply(&desired, None).unwrap();
        let tables = reconciler.begin_verify()().unwrap();
        desired.services.pop();
        desired.services[0].backends[0].admit = Admit::Draining;
        desired.services.push(DesiredService {
            listen: vec!["192.0.2.12:80".parse().unwrap()],
            name: "new".to_owned(),
            ..api
        });
        reconciler.apply(&desired, None).unwrap();
        let right = memory.maps();
        assert_eq!(reconciler.verify(tables).unwrap(), Vec::<String>::new());
        assert_eq!(memory.maps(), right);
        assert!(verify(&mut reconciler).unwrap().is_empty());
    }

    #[test]
    fn a_failed_repair_is_made_up_for() {
        let memory = memory();
        let mut reconciler = Reconciler::new(memory.clone()).unwrap();
        let desired = web(&["10.0.0.1:80", "10.0.0.2:80"]);
        reconciler.apply(&desired, None).unwrap();
        let right = memory.maps();
        memory.tamper(|maps| maps.tables.clear());
        // Six maps, and which tables there are: none.
        let reads = 6 + 1;
        memory.fail_call(reads + 1);
        verify(&mut reconciler).unwrap_err();
        reconciler.apply(&desired, None).unwrap();
        assert_eq!(memory.maps(), right);
    }
}

#[test]
#[ignore = "prints measurements"]
fn measure_one_change_among_a_thousand_services() {
    let memory = Arc::new(Memory::new(Capacity {
        services: 4096,
        backends: 32_768,
        sources: 1000,
    }));
    let services = (0..1000u32).map(|i| DesiredService {
        listen: vec![format!("10.1.{}.{}:80", i / 250, i % 250).parse().unwrap()],
        policy: Policy::Maglev,
        backends: (0..20)
            .map(|j| backend(&format!("10.{}.{}.{}:8080", 100 + i / 250, i % 250, j + 1)))
            .collect(),
        ..service(&format!("service-{i}"), "10.0.0.1:80", &[])
    });
    let mut desired = Desired {
        kept: Default::default(),
        services: services.collect(),
    };
    let timed = |what: &str, run: &mut dyn FnMut() -> usize| {
        let start = Instant::now();
        let changes = run();
        println!("{what}: {:?}, {changes} writes", start.elapsed());
    };
    let mut reconciler = Reconciler::new(memory.clone()).unwrap();
    let present = HashMap::new();
    timed("cold start", &mut || {
        reconciler.apply(&desired, None).unwrap().changes
    });
    for round in 0..10 {
        timed("nothing to do", &mut || {
            reconciler.apply(&desired, Some(&present)).unwrap().changes
        });
        desired.services[500 + round].backends[3].admit = Admit::Down;
        timed("one backend down", &mut || {
            reconciler.apply(&desired, Some(&present)).unwrap().changes
        });
        desired.services[700].backends.remove(3);
        timed("one backend removed", &mut || {
            reconciler.apply(&desired, Some(&present)).unwrap().changes
        });
    }
    timed("verify", &mut || verify(&mut reconciler).unwrap().len());
    let mut restarted = Reconciler::new(memory).unwrap();
    timed("restart", &mut || {
        restarted.apply(&desired, None).unwrap().changes
    });
}
