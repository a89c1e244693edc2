use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    config,
    discovery::{Class, Settings},
    model::{HealthCheck, Policy, Protocol},
};

const SECOND: Duration = Duration::from_secs(1);

fn spec(defaults: &str) -> ServicesSpec {
    let text = format!("discovery: {{kubernetes: {{removal_hold: 5s, defaults: {defaults}}}}}");
    config::parse(&text, "f")
        .unwrap()
        .config
        .discovery
        .remove(0)
}

fn offer(name: &str) -> Arc<Offer> {
    let host = name.as_bytes()[5];
    Arc::new(Offer {
        name: name.to_owned(),
        listen: vec![([10, 96, 0, host], 80).into()],
        protocol: Protocol::Tcp,
        allow_sources: Default::default(),
        affinity: None,
        since: 0,
    })
}

fn pods(hosts: &[u8]) -> Arc<Snapshot> {
    let pods = hosts
        .iter()
        .map(|host| Instance::new(format!("p{host}"), ([10, 0, 0, *host], 80).into()));
    Arc::new(pods.collect::<Vec<_>>().into())
}

type Shown = BTreeMap<String, Vec<u8>>;

struct Bed {
    machine: CatalogueMachine,
    start: Instant,
    now: Duration,
}

impl Bed {
    fn new(restored: Restored) -> Self {
        let start = Instant::now();
        let spec = spec("{}");
        let now = Now { at: start, ms: 0 };
        Self {
            machine: CatalogueMachine::new(spec.name(), &spec, restored, now),
            start,
            now: Duration::ZERO,
        }
    }

    fn now(&self) -> Now {
        Now {
            at: self.start + self.now,
            ms: self.now.as_millis() as u64,
        }
    }

    fn answer(&mut self, services: &[(&str, &Arc<Snapshot>)]) {
        let offers: Vec<_> = services.iter().map(|(name, _)| offer(name)).collect();
        let backends = services.iter();
        let backends = backends.map(|(name, set)| ((*name).to_owned(), (*set).clone()));
        self.report(Report::Snapshot(Catalogue {
            services: offers.into(),
            backends: backends.collect(),
        }));
    }

    fn failure(&mut self) {
        self.report(Report::Failure(Failure::new(Class::Unreachable, "gone")));
    }

    fn report(&mut self, report: Report<Catalogue>) {
        let now = self.now();
        self.machine.report(report, now);
        self.machine.advance(now);
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.machine.wake_at().filter(|at| *at <= self.start + end) {
            self.now = self.now.max(at - self.start);
            let now = self.now();
            self.machine.advance(now);
        }
        self.now = end;
    }

    /// Services in force with the hosts of their backends.
    fn shown(&self) -> Shown {
        let mut sets: BTreeMap<SourceName, Set> = self.machine.sets().collect();
        let services = self.machine.in_force().iter();
        let shown = services.map(|service| {
            let set = sets.remove(&service.backends).unwrap_or_default();
            let host = |ip: std::net::IpAddr| match ip {
                std::net::IpAddr::V4(v4) => v4.octets()[3],
                std::net::IpAddr::V6(_) => 0,
            };
            let hosts = set.iter().map(|found| host(found.spec.address.ip()));
            (service.spec.name.clone(), hosts.collect())
        });
        shown.collect()
    }

    fn is(&self, expected: &[(&str, &[u8])]) {
        let expected: Shown = expected
            .iter()
            .map(|(name, hosts)| ((*name).to_owned(), hosts.to_vec()))
            .collect();
        assert_eq!(self.shown(), expected);
    }
}

#[test]
fn a_failure_takes_neither_service_nor_backend() {
    let mut bed = Bed::new(Restored::default());
    bed.answer(&[
        ("shop.a.http", &pods(&[1, 2])),
        ("shop.b.http", &pods(&[3])),
    ]);
    bed.is(&[("shop.a.http", &[1, 2]), ("shop.b.http", &[3])]);
    bed.failure();
    bed.pass(86_400 * SECOND);
    bed.is(&[("shop.a.http", &[1, 2]), ("shop.b.http", &[3])]);
    assert_eq!(bed.machine.state(bed.now().at), State::Stale);
    // Nor does the first answer behind it, at once.
    bed.answer(&[("shop.a.http", &pods(&[1]))]);
    bed.is(&[("shop.a.http", &[1, 2]), ("shop.b.http", &[3])]);
    assert_eq!(bed.machine.held(), 2);
    bed.pass(61 * SECOND);
    bed.is(&[("shop.a.http", &[1])]);
    assert_eq!(bed.machine.held(), 0);
}

#[test]
fn an_empty_answer_is_believed_once_it_has_stood_about_all_services_and_about_one() {
    let mut bed = Bed::new(Restored::default());
    let (one, none) = (pods(&[1]), pods(&[]));
    bed.answer(&[("shop.a.http", &one), ("shop.b.http", &one)]);
    bed.answer(&[("shop.a.http", &one), ("shop.b.http", &none)]);
    bed.pass(59 * SECOND);
    bed.answer(&[("shop.a.http", &one), ("shop.b.http", &none)]);
    bed.is(&[("shop.a.http", &[1]), ("shop.b.http", &[1])]);
    bed.pass(2 * SECOND);
    bed.is(&[("shop.a.http", &[1]), ("shop.b.http", &[])]);

    bed.answer(&[]);
    bed.pass(59 * SECOND);
    bed.is(&[("shop.a.http", &[1]), ("shop.b.http", &[])]);
    bed.pass(2 * SECOND);
    bed.is(&[]);
    assert_eq!(bed.machine.sets().count(), 0, "nothing is left behind");
}

#[test]
fn a_service_goes_after_its_hold_and_comes_back_with_what_it_had() {
    let mut bed = Bed::new(Restored::default());
    let (one, two) = (pods(&[1]), pods(&[2]));
    bed.answer(&[("shop.a.http", &one), ("shop.b.http", &two)]);
    bed.answer(&[("shop.a.http", &one)]);
    bed.pass(4 * SECOND);
    bed.is(&[("shop.a.http", &[1]), ("shop.b.http", &[2])]);
    bed.answer(&[("shop.a.http", &one), ("shop.b.http", &two)]);
    bed.pass(60 * SECOND);
    bed.is(&[("shop.a.http", &[1]), ("shop.b.http", &[2])]);
    bed.answer(&[("shop.a.http", &one)]);
    bed.pass(6 * SECOND);
    bed.is(&[("shop.a.http", &[1])]);
}

#[test]
fn what_is_the_same_is_not_told_again() {
    let mut bed = Bed::new(Restored::default());
    let (one, two) = (pods(&[1]), pods(&[2]));
    bed.answer(&[("shop.a.http", &one), ("shop.b.http", &two)]);
    let before: Vec<_> = bed.machine.sets().collect();
    let services = bed.machine.in_force().clone();
    bed.pass(SECOND);
    bed.answer(&[("shop.a.http", &one), ("shop.b.http", &pods(&[2, 3]))]);
    bed.pass(SECOND);
    let after: Vec<_> = bed.machine.sets().collect();
    assert!(Arc::ptr_eq(&before[0].1, &after[0].1));
    assert!(!Arc::ptr_eq(&before[1].1, &after[1].1));
    assert!(Arc::ptr_eq(&services, bed.machine.in_force()));
    assert_eq!(bed.machine.counts().updates, 2);
}

#[test]
fn what_was_known_is_in_force_after_a_restart() {
    let mut bed = Bed::new(Restored::default());
    bed.answer(&[("shop.a.http", &pods(&[1, 2])), ("shop.b.http", &pods(&[]))]);
    let saved = bed.machine.to_save();
    let mut again = Bed::new(saved.clone());
    again.is(&[("shop.a.http", &[1, 2]), ("shop.b.http", &[])]);
    again.failure();
    again.is(&[("shop.a.http", &[1, 2]), ("shop.b.http", &[])]);
    assert_eq!(again.machine.state(again.now().at), State::Stale);
    assert_eq!(again.machine.to_save(), saved);
}

#[test]
fn what_is_no_service_is_told_and_the_others_stay() {
    let mut bed = Bed::new(Restored::default());
    let one = pods(&[1]);
    let mut odd = Snapshot::clone(&one);
    odd.instances[0].address.set_port(0);
    let mut catalogue = Catalogue {
        services: vec![offer("shop.a.http"), offer("shop.b.http")].into(),
        ..Catalogue::default()
    };
    Arc::make_mut(&mut catalogue.services.instances[1]).listen[0].set_port(0);
    let sets = [("shop.a.http", Arc::new(odd)), ("shop.b.http", one)];
    catalogue.backends = sets.map(|(name, set)| (name.to_owned(), set)).into();
    bed.report(Report::Snapshot(catalogue.clone()));
    bed.is(&[("shop.a.http", &[])]);
    let told = bed.machine.left_out();
    assert!(
        told[0].contains("`shop.b.http`: 10.96.0.98:0 has port 0"),
        "{told:?}"
    );
    assert!(
        told[1].contains("backends of shop.a.http: none of its 1 instances"),
        "{told:?}"
    );

    // None at all is no answer.
    catalogue.services.instances.remove(0);
    bed.report(Report::Snapshot(catalogue));
    assert!(bed.machine.is_failing());
    bed.is(&[("shop.a.http", &[])]);
    let words = &bed.machine.last_failure().unwrap().0.message;
    assert!(
        words.contains("none of its 1 services can be a service"),
        "{words}"
    );
}

#[test]
fn other_keys_hold_for_what_is_known() {
    let mut bed = Bed::new(Restored::default());
    bed.answer(&[("shop.a.http", &pods(&[1]))]);
    let service = bed.machine.in_force()[0].spec.clone();
    assert_eq!(service.health.check, HealthCheck::None);
    assert_eq!(service.policy, Policy::Maglev);
    let mut other = spec("{policy: random, health: tcp, affinity: {client_ip: 1m}}");
    other.settings = Settings {
        weight: 7,
        ..other.settings
    };
    bed.machine.set_spec(&other, bed.now());
    assert!(bed.machine.advance(bed.now()), "it is told");
    let service = bed.machine.in_force()[0].spec.clone();
    assert_eq!(service.health.check, HealthCheck::Tcp);
    assert_eq!(service.policy, Policy::Random);
    assert_eq!(service.admission.affinity.unwrap().client_ip, 60 * SECOND);
    bed.pass(SECOND);
    let set = bed.machine.sets().next().unwrap().1;
    assert_eq!(set[0].spec.weight, 7);
    // The Service's own word counts, and datagrams are not probed.
    let mut own = Offer::clone(&offer("shop.a.http"));
    own.protocol = Protocol::Udp;
    own.affinity = Some(crate::model::Affinity { client_ip: SECOND });
    let spec = own.serve(&other.defaults);
    assert_eq!(spec.health.check, HealthCheck::None);
    assert_eq!(spec.admission.affinity.unwrap().client_ip, SECOND);
}

#[derive(Clone, Debug)]
enum Act {
    /// Which of three services there are, each with the hosts of its backends.
    Answer(Vec<Option<Vec<u8>>>),
    Failure,
    Pass(u32),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let hosts = prop::option::of(prop::collection::vec(1..4u8, 0..3));
    let act = prop_oneof![
        prop::collection::vec(hosts, 3).prop_map(Act::Answer),
        Just(Act::Failure),
        (0..90u32).prop_map(Act::Pass),
    ];
    prop::collection::vec(act, 0..30)
}

proptest! {
    /// Whatever comes: failures change nothing, no service that was there is lost sooner than it may
    /// be, each has its set, and a whole answer is in force in the end.
    #[test]
    fn whatever_comes_nothing_is_lost_by_failures(acts in acts()) {
        const NAMES: [&str; 3] = ["shop.a.http", "shop.b.http", "shop.c.http"];
        let mut bed = Bed::new(Restored::default());
        for act in acts {
            let before = bed.shown();
            match act {
                Act::Failure => {
                    bed.failure();
                    // What was answered before comes into force yet.
                    bed.pass(SECOND);
                    let before = bed.shown();
                    bed.pass(86_400 * SECOND);
                    prop_assert_eq!(bed.shown(), before);
                }
                Act::Answer(services) => {
                    let sets: Vec<_> = services.iter().map(|hosts| {
                        hosts.as_ref().map(|hosts| pods(hosts))
                    }).collect();
                    let named = NAMES.iter().zip(&sets);
                    let there: Vec<_> = named.filter_map(|(n, s)| Some((*n, s.as_ref()?))).collect();
                    bed.answer(&there);
                    let after = bed.shown();
                    // The hold of five seconds is not over for anybody.
                    prop_assert!(before.keys().all(|name| after.contains_key(name)));
                }
                Act::Pass(seconds) => bed.pass(seconds * SECOND),
            }
            let sets: BTreeMap<SourceName, Set> = bed.machine.sets().collect();
            let services = bed.machine.in_force().iter();
            for service in services {
                prop_assert!(sets.contains_key(&service.backends));
            }
        }
        let one = pods(&[1]);
        let whole = NAMES.map(|name| (name, &one));
        bed.answer(&whole);
        bed.pass(61 * SECOND);
        bed.answer(&whole);
        bed.pass(61 * SECOND);
        let shown: Vec<_> = bed.shown().into_iter().collect();
        prop_assert_eq!(shown, NAMES.map(|name| (name.to_owned(), vec![1])).to_vec());
    }
}
