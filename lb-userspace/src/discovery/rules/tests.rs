use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::discovery::InstanceState;

const SECOND: Duration = Duration::from_secs(1);

fn settings() -> Settings {
    Settings {
        empty_hold: 60 * SECOND,
        removal_hold: 5 * SECOND,
        merge_window: Duration::from_millis(500),
        stale_after: 300 * SECOND,
        ..Settings::default()
    }
}

/// A machine and its clock.
struct Bed {
    machine: Machine,
    start: Instant,
    now: Duration,
}

impl Bed {
    fn new(settings: Settings, restored: &[&str]) -> Self {
        let start = Instant::now();
        let restored = restored.iter().map(|id| instance(id)).collect();
        let now = Now { at: start, ms: 0 };
        Self {
            machine: Machine::new(settings, restored, None, now),
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

    fn snapshot(&mut self, ids: &[&str]) {
        let instances: Vec<_> = ids.iter().map(|id| instance(id)).collect();
        self.report(Report::Snapshot(instances.into()));
    }

    fn failure(&mut self) {
        self.report(Report::Failure(Failure::new(Class::Unreachable, "gone")));
    }

    fn report(&mut self, report: Report) {
        let now = self.now();
        self.machine.report(report, now);
        self.machine.advance(now);
    }

    /// Lets time pass as the driver does: awake when something is due, and at the end.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.machine.wake_at().filter(|at| *at <= self.start + end) {
            self.now = self.now.max(at - self.start);
            let now = self.now();
            self.machine.advance(now);
        }
        self.now = end;
        let now = self.now();
        self.machine.advance(now);
    }

    fn ids(&self) -> Vec<String> {
        let mut ids: Vec<_> = self
            .machine
            .in_force()
            .iter()
            .map(|f| f.id.clone())
            .collect();
        ids.sort();
        ids
    }

    fn state(&self) -> State {
        self.machine.state(self.now().at)
    }
}

/// The address follows the id: `a` is 10.0.0.97:80. What is behind a slash is another instance's id at the
/// same address.
fn instance(id: &str) -> Instance {
    let host = id.as_bytes()[0];
    Instance::new(id, ([10, 0, 0, host], 80).into())
}

#[test]
fn a_failure_changes_nothing_however_long_it_lasts() {
    let mut bed = Bed::new(settings(), &[]);
    assert_eq!(bed.state(), State::Starting);
    bed.snapshot(&["a", "b"]);
    assert_eq!(
        (bed.ids(), bed.state()),
        (vec!["a".into(), "b".into()], State::Synced)
    );
    bed.failure();
    assert_eq!(bed.state(), State::Failing);
    bed.pass(86_400 * SECOND);
    assert_eq!(
        (bed.ids(), bed.state()),
        (vec!["a".into(), "b".into()], State::Stale)
    );
    bed.snapshot(&["a", "b", "c"]);
    assert_eq!((bed.ids().len(), bed.state()), (3, State::Synced));
    let failures: u64 = bed.machine.counts().errors.values().sum();
    assert_eq!((failures, bed.machine.counts().updates), (1, 2));
}

#[test]
fn an_empty_answer_is_believed_once_it_has_stood() {
    let mut bed = Bed::new(settings(), &[]);
    bed.snapshot(&["a"]);
    bed.pass(SECOND);
    bed.snapshot(&[]);
    bed.pass(59 * SECOND);
    bed.snapshot(&[]);
    assert_eq!((bed.ids().len(), bed.machine.held()), (1, 1));
    bed.pass(2 * SECOND);
    assert_eq!((bed.ids().len(), bed.state()), (0, State::Synced));
}

#[test]
fn the_first_empty_answer_has_nothing_to_hold() {
    let mut bed = Bed::new(settings(), &[]);
    bed.snapshot(&[]);
    assert_eq!((bed.ids().len(), bed.state()), (0, State::Synced));
    assert_eq!(bed.machine.wake_at(), None);
}

/// The registry restarts empty, and its instances register again one by one.
#[test]
fn those_that_come_back_one_by_one_never_leave() {
    let mut bed = Bed::new(settings(), &[]);
    bed.snapshot(&["a", "b", "c"]);
    bed.pass(SECOND);
    bed.failure();
    bed.pass(30 * SECOND);
    for ids in [&[][..], &["a"], &["a", "b"]] {
        bed.snapshot(ids);
        bed.pass(15 * SECOND);
        assert_eq!(bed.ids().len(), 3, "{ids:?}");
    }
    bed.pass(20 * SECOND);
    assert_eq!(bed.ids(), ["a", "b"], "c never came back");
}

/// It was down so briefly that the first answer shows but one of many.
#[test]
fn the_first_answer_after_a_failure_is_doubted() {
    let mut bed = Bed::new(settings(), &[]);
    bed.snapshot(&["a", "b", "c"]);
    bed.failure();
    bed.snapshot(&["a"]);
    bed.pass(30 * SECOND);
    assert_eq!(bed.ids().len(), 3);
    bed.snapshot(&["a", "b"]);
    bed.pass(31 * SECOND);
    assert_eq!(bed.ids(), ["a", "b"]);
}

#[test]
fn a_failure_begins_holds_anew() {
    let mut bed = Bed::new(settings(), &[]);
    bed.snapshot(&["a"]);
    bed.snapshot(&[]);
    bed.pass(59 * SECOND);
    bed.failure();
    bed.pass(100 * SECOND);
    assert_eq!(bed.ids().len(), 1);
    bed.snapshot(&[]);
    bed.pass(59 * SECOND);
    assert_eq!(bed.ids().len(), 1);
    bed.pass(2 * SECOND);
    assert_eq!(bed.ids().len(), 0);
}

#[test]
fn an_authoritative_source_is_believed_at_once() {
    let settings = Settings {
        empty_hold: Duration::ZERO,
        removal_hold: Duration::ZERO,
        ..settings()
    };
    let mut bed = Bed::new(settings, &[]);
    bed.snapshot(&["a"]);
    bed.pass(SECOND);
    bed.failure();
    bed.snapshot(&[]);
    assert_eq!(bed.ids().len(), 0);
}

#[test]
fn one_that_comes_back_within_its_hold_never_left() {
    let mut bed = Bed::new(settings(), &[]);
    bed.snapshot(&["a", "b"]);
    bed.pass(SECOND);
    for _ in 0..100 {
        bed.snapshot(&["a"]);
        bed.pass(4 * SECOND);
        bed.snapshot(&["a", "b"]);
        bed.pass(SECOND);
    }
    assert_eq!(bed.machine.counts().updates, 1);
    bed.snapshot(&["a"]);
    bed.pass(6 * SECOND);
    assert_eq!(bed.ids(), ["a"]);
}

#[test]
fn what_was_last_known_serves_until_the_first_answer() {
    let mut bed = Bed::new(settings(), &["a", "b"]);
    assert_eq!((bed.ids().len(), bed.state()), (2, State::Starting));
    bed.failure();
    assert_eq!(
        bed.state(),
        State::Stale,
        "nothing says that it is still so"
    );
    bed.pass(1000 * SECOND);
    assert_eq!(bed.ids().len(), 2);
    bed.snapshot(&["a", "b"]);
    assert_eq!(
        (bed.state(), bed.machine.counts().updates),
        (State::Synced, 0)
    );
}

#[test]
fn one_in_anothers_place_moves_nobody_until_something_is_due() {
    let mut bed = Bed::new(settings(), &[]);
    bed.snapshot(&["a", "b"]);
    bed.snapshot(&["a", "c"]);
    bed.machine = bed.machine.heir(settings(), bed.now());
    assert!(!bed.machine.advance(bed.now()));
    assert_eq!(bed.ids(), ["a", "b"]);
    assert_eq!(bed.state(), State::Starting);
    assert_eq!(bed.machine.last_success_ms(), None);
    // The merge window is over, and nobody goes on a word that another one gave.
    bed.pass(SECOND);
    assert_eq!(bed.ids(), ["a", "b", "c"]);
    bed.pass(200 * SECOND);
    assert_eq!(bed.ids(), ["a", "b", "c"]);
    bed.snapshot(&["c", "d"]);
    bed.pass(5 * SECOND);
    assert_eq!(bed.ids(), ["c", "d"]);

    // Whom the other one had let go goes as well.
    let at_once = Settings {
        removal_hold: Duration::ZERO,
        empty_hold: Duration::ZERO,
        ..settings()
    };
    let mut bed = Bed::new(at_once.clone(), &[]);
    bed.snapshot(&["a"]);
    bed.snapshot(&[]);
    bed.machine = bed.machine.heir(at_once, bed.now());
    assert!(!bed.machine.is_blank());
    assert_eq!(bed.ids(), ["a"]);
    bed.pass(SECOND);
    assert_eq!(bed.ids(), [] as [&str; 0]);
}

#[test]
fn an_instance_that_moves_leaves_its_old_address_at_once() {
    let mut bed = Bed::new(settings(), &[]);
    bed.snapshot(&["a"]);
    bed.pass(SECOND);
    let mut moved = instance("a");
    moved.address = "10.0.0.1:80".parse().unwrap();
    bed.report(Report::Snapshot(vec![moved.clone()].into()));
    let addresses: Vec<_> = bed
        .machine
        .in_force()
        .iter()
        .map(|f| f.spec.address)
        .collect();
    assert_eq!(addresses, [moved.address]);
}

#[test]
fn of_one_address_the_best_instance_counts() {
    let mut bed = Bed::new(settings(), &[]);
    let with = |id, state, weight| Instance {
        state,
        weight: Some(weight),
        ..instance(id)
    };
    let shown = |bed: &Bed| {
        let set = bed.machine.in_force();
        assert_eq!(set.len(), 1);
        (set[0].id.clone(), set[0].state, set[0].spec.weight)
    };
    let old = with("a/1", InstanceState::Drain, 1);
    let new = with("a/2", InstanceState::Up, 2);
    bed.report(Report::Snapshot(vec![old.clone(), new.clone()].into()));
    assert_eq!(shown(&bed), ("a/2".into(), InstanceState::Up, 2));
    // One that registers under another id takes the place of the one that is held.
    bed.pass(SECOND);
    bed.report(Report::Snapshot(
        vec![with("a/3", InstanceState::Up, 3)].into(),
    ));
    assert_eq!(shown(&bed), ("a/3".into(), InstanceState::Up, 3));
}

#[test]
fn weight_and_labels_come_from_the_settings_where_there_are_none() {
    let mut settings = settings();
    settings.weight = 7;
    settings.labels = [("zone", "z1"), ("version", "v0")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
    let mut bed = Bed::new(settings.clone(), &[]);
    let mut labelled = instance("a");
    labelled.labels = [("version".to_owned(), "v1".to_owned())].into();
    bed.report(Report::Snapshot(vec![labelled].into()));
    let spec = &bed.machine.in_force()[0].spec;
    assert_eq!(spec.weight, 7);
    assert_eq!(
        (&*spec.labels["zone"], &*spec.labels["version"]),
        ("z1", "v1")
    );
    settings.weight = 8;
    let now = bed.now();
    bed.machine.set_settings(settings, now);
    bed.pass(SECOND);
    assert_eq!(
        bed.machine.in_force()[0].spec.weight,
        8,
        "a reload counts at once"
    );
}

#[test]
fn what_a_registry_says_stands_on_one_line() {
    let note = brief(vec!["`x\n<0>lbd: forged`".to_owned(), "y".repeat(16 << 20)]);
    assert_eq!(note[0], "`x\\u{a}<0>lbd: forged`");
    assert_eq!(note[1].chars().count(), 201);
    let failure = Failure::new(Class::Malformed, "a\nb".repeat(1 << 20));
    let failure = failure.context("what\n");
    assert!(
        failure.message.starts_with("what\\u{a}: a\\u{a}b"),
        "{failure}"
    );
    assert!(failure.message.len() < 3000 && !failure.message.contains('\n'));
}

#[test]
fn what_cannot_be_a_backend_is_left_out_unless_nothing_is_left() {
    let mut bed = Bed::new(settings(), &[]);
    let odd = Instance::new("odd", "0.0.0.0:80".parse().unwrap());
    bed.report(Report::Snapshot(vec![instance("a"), odd.clone()].into()));
    assert_eq!(
        (bed.ids(), bed.machine.left_out().len()),
        (vec!["a".into()], 1)
    );
    bed.report(Report::Snapshot(vec![odd].into()));
    bed.pass(100 * SECOND);
    assert_eq!((bed.ids(), bed.state()), (vec!["a".into()], State::Failing));
    let (failure, _) = bed.machine.last_failure().unwrap();
    assert_eq!(failure.class, Class::Malformed);
}

#[test]
fn five_thousand_registrations_in_a_second_are_few_changes() {
    let mut bed = Bed::new(settings(), &[]);
    let mut all = Vec::new();
    for n in 0..5000u32 {
        let [_, _, high, low] = n.to_be_bytes();
        all.push(Instance::new(
            n.to_string(),
            ([10, 1, high, low], 80).into(),
        ));
        if n % 10 == 0 {
            bed.report(Report::Snapshot(all.clone().into()));
        }
        bed.pass(Duration::from_micros(200));
    }
    bed.report(Report::Snapshot(all.into()));
    bed.pass(SECOND);
    assert_eq!(bed.ids().len(), 5000);
    assert!(
        bed.machine.counts().updates <= 4,
        "{:?}",
        bed.machine.counts()
    );
}

#[test]
fn a_flapping_instance_is_few_changes() {
    let settings = Settings {
        removal_hold: Duration::ZERO,
        ..settings()
    };
    let mut bed = Bed::new(settings, &[]);
    for _ in 0..50 {
        bed.snapshot(&["a", "b"]);
        bed.pass(Duration::from_millis(100));
        bed.snapshot(&["a"]);
        bed.pass(Duration::from_millis(100));
    }
    assert!(
        bed.machine.counts().updates <= 21,
        "{:?}",
        bed.machine.counts()
    );
}

#[test]
fn silence_is_stale_too() {
    let mut bed = Bed::new(settings(), &[]);
    bed.snapshot(&["a"]);
    bed.pass(299 * SECOND);
    assert_eq!(bed.state(), State::Synced);
    bed.pass(SECOND);
    assert_eq!(bed.state(), State::Stale);
    bed.snapshot(&["a"]);
    assert_eq!(bed.state(), State::Synced);

    let settings = Settings {
        resync: Duration::ZERO,
        ..settings()
    };
    let mut bed = Bed::new(settings, &[]);
    bed.snapshot(&["a"]);
    bed.pass(1000 * SECOND);
    assert_eq!(bed.state(), State::Synced, "it is not to repeat itself");
    bed.failure();
    assert_eq!(bed.state(), State::Stale);
}

#[derive(Clone, Debug)]
enum Step {
    Snapshot(BTreeSet<u8>),
    Failure,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::btree_set(0..6u8, 0..6).prop_map(Step::Snapshot),
        1 => Just(Step::Failure),
        3 => (0..40_000u64).prop_map(Step::Pass),
    ]
}

/// What the rules promise, in the plainest words.
#[derive(Default)]
struct Model {
    /// Since when it has been missing without a failure in between, and for how long it must be.
    missing: BTreeMap<u8, (Duration, Duration)>,
    /// Missing for long enough; what comes into force next is without them.
    gone: BTreeSet<u8>,
    last: Option<BTreeSet<u8>>,
    failing: bool,
}

impl Model {
    fn pass(&mut self, now: Duration) {
        let over = self
            .missing
            .extract_if(.., |_, (since, hold)| *since + *hold <= now);
        self.gone.extend(over.map(|(id, _)| id));
    }
}

proptest! {
    #[test]
    fn promises_hold(
        steps in prop::collection::vec(step(), 1..60),
        empty_s in 0..100u32,
        removal_s in 0..20u32,
    ) {
        let settings = Settings {
            empty_hold: empty_s * SECOND,
            removal_hold: removal_s * SECOND,
            ..settings()
        };
        let mut bed = Bed::new(settings.clone(), &[]);
        let mut model = Model::default();
        let mut before: BTreeSet<u8> = BTreeSet::new();
        for step in steps {
            match step.clone() {
                Step::Snapshot(ids) => {
                    let doubtful = ids.is_empty() || model.failing;
                    let hold = match doubtful {
                        true => settings.removal_hold.max(settings.empty_hold),
                        false => settings.removal_hold,
                    };
                    for id in 0..6 {
                        if ids.contains(&id) {
                            model.missing.remove(&id);
                            model.gone.remove(&id);
                        } else if !model.gone.contains(&id) {
                            model.missing.entry(id).or_insert((bed.now, hold));
                        }
                    }
                    model.failing = false;
                    model.last = Some(ids.clone());
                    let names: Vec<String> = ids.iter().map(|id| id.to_string()).collect();
                    let instances: Vec<_> = ids.iter().zip(&names).map(|(id, name)| {
                        Instance::new(name.clone(), ([10, 0, 0, id + 1], 80).into())
                    }).collect();
                    bed.report(Report::Snapshot(instances.into()));
                }
                Step::Failure => {
                    model.failing = true;
                    model.missing.clear();
                    bed.failure();
                }
                Step::Pass(ms) => bed.pass(Duration::from_millis(ms)),
            }
            model.pass(bed.now);
            let now: BTreeSet<u8> = bed.machine.in_force().iter()
                .map(|found| match found.spec.address.ip() {
                    std::net::IpAddr::V4(ip) => ip.octets()[3] - 1,
                    std::net::IpAddr::V6(_) => unreachable!(),
                })
                .collect();
            prop_assert_eq!(now.len(), bed.machine.in_force().len());
            for gone in before.difference(&now) {
                prop_assert!(model.gone.contains(gone), "{gone} left too early, at {step:?}");
            }
            let windows = bed.now.as_millis() / settings.merge_window.as_millis();
            prop_assert!(u128::from(bed.machine.counts().updates) <= windows + 1);
            before = now;
        }
        // In the end what was said last is true, unless it is not known.
        if !model.failing && let Some(last) = model.last {
            bed.pass(200 * SECOND);
            prop_assert_eq!(bed.machine.in_force().len(), last.len());
            prop_assert_eq!(bed.machine.wake_at(), None);
        }
    }
}

#[test]
fn an_empty_answer_that_is_meant_waits_for_removal_hold_alone() {
    for before in ["nothing", "failure", "empty"] {
        let mut bed = Bed::new(settings(), &[]);
        bed.snapshot(&["a", "b"]);
        match before {
            "failure" => bed.failure(),
            "empty" => bed.snapshot(&[]),
            _ => {}
        }
        bed.report(Report::Snapshot(Snapshot {
            decided: true,
            ..Snapshot::default()
        }));
        bed.pass(4 * SECOND);
        assert_eq!(bed.ids(), ["a", "b"], "{before}");
        bed.pass(SECOND);
        assert_eq!(bed.ids(), Vec::<String>::new(), "{before}");
    }
}
