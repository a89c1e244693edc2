use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use tokio::time::timeout;

use super::*;
use crate::{
    discovery::{Kind, Report, file},
    testing::Directory,
};

const SOON: Duration = Duration::from_secs(30);

/// Does one thing after another, one a session.
struct Script(Vec<Act>);

#[derive(Clone, Copy)]
enum Act {
    Answer,
    Fail,
    Panic,
}

impl Source for Script {
    async fn session(&mut self, feed: &mut Feed) -> Result<(), Failure> {
        if self.0.is_empty() {
            std::future::pending::<()>().await;
        }
        match self.0.remove(0) {
            Act::Answer => {
                feed.snapshot(vec![Instance::new("a", ([10, 0, 0, 1], 80).into())]);
                Ok(())
            }
            Act::Fail => Err(Failure::new(Class::Refused, "no")),
            Act::Panic => panic!("on purpose"),
        }
    }
}

#[tokio::test]
async fn sessions_follow_each_other_and_failures_are_reported() {
    let (feed, mut reports) = Feed::open(&Settings::default());
    let acts = vec![Act::Fail, Act::Answer, Act::Fail];
    let task = Task(tokio::spawn(run(move || Script(acts.clone()), feed)));
    for wanted in [false, true, false] {
        let report = timeout(SOON, reports.recv()).await.unwrap().unwrap();
        assert_eq!(matches!(report, Report::Snapshot(_)), wanted, "{report:?}");
    }
    drop(task);
}

#[tokio::test]
async fn a_panic_is_a_failure_and_ends_nothing() {
    let (feed, mut reports) = Feed::open(&Settings::default());
    let lives = std::sync::atomic::AtomicU32::new(0);
    let make = move || match lives.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
        0 => Script(vec![Act::Panic]),
        _ => Script(vec![Act::Answer]),
    };
    let _task = Task(tokio::spawn(run(make, feed)));
    let report = timeout(SOON, reports.recv()).await.unwrap().unwrap();
    assert!(
        matches!(&report, Report::Failure(f) if f.class == Class::Internal),
        "{report:?}"
    );
    let report = timeout(SOON, reports.recv()).await.unwrap().unwrap();
    assert!(matches!(report, Report::Snapshot(_)), "{report:?}");
}

/// Files that say one thing after another, each in three instances whose weight is its number.
struct Files(Directory);

const FILES: usize = 6;
/// What is said last.
const LAST: u16 = 150;

impl Files {
    fn path(&self, n: usize) -> PathBuf {
        self.0.path().join(format!("{n}.yaml"))
    }

    fn say(&self, n: usize, number: u16) {
        let mut text = "instances:\n".to_owned();
        for i in 1..=3 {
            text += &format!("- {{address: \"10.0.{n}.{i}:80\", weight: {number}}}\n");
        }
        let new = self.path(n).with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path(n)).unwrap();
    }

    fn asked(&self, n: usize) -> (SourceName, Asked) {
        let spec = SourceSpec {
            kind: Kind::File(file::Config { path: self.path(n) }),
            settings: Settings {
                merge_window: Duration::ZERO,
                ..Settings::default()
            },
        };
        let service = format!("s{n}");
        (spec.name(&service), Asked::Backends(Box::new(spec)))
    }

    fn all(&self) -> BTreeMap<SourceName, Asked> {
        (0..FILES).map(|n| self.asked(n)).collect()
    }
}

/// What each source says now; 0 for nothing. No set holds parts of two.
fn numbers(found: &Discovered) -> BTreeMap<SourceName, u16> {
    let number = |(name, set): (&SourceName, &crate::discovery::Set)| {
        let mut weights = set.iter().map(|found| found.spec.weight);
        let first = weights.next().unwrap_or(0);
        assert!(set.is_empty() || set.len() == 3, "{set:?}");
        assert!(weights.all(|weight| weight == first), "{set:?}");
        (name.clone(), first)
    };
    found.sets.iter().map(number).collect()
}

/// Sources that report, a config that changes, a disk that is written and those who look on share one
/// state, on several threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sources_change_and_come_and_go_while_others_look() {
    let (files, state) = (
        Arc::new(Files(Directory::new("sources"))),
        Directory::new("state"),
    );
    (0..FILES).for_each(|n| files.say(n, 1));
    let all = files.all();
    // One that stays, and thereby never goes back.
    let staying = files.asked(0);
    let changed = Arc::new(Notify::new());
    let sources = Arc::new(Sources::new(state.path(), changed.clone(), system_clock()));
    sources.set(&all);

    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..FILES)
        .map(|n| {
            let files = files.clone();
            thread::spawn(move || {
                for number in 2..=LAST {
                    files.say(n, number);
                    thread::sleep(Duration::from_millis(1 + n as u64));
                }
            })
        })
        .collect();
    let lookers: Vec<_> = (0..2)
        .map(|_| {
            let (sources, over, name) = (sources.clone(), over.clone(), staying.0.clone());
            thread::spawn(move || {
                let mut last = 0;
                let mut looks = 0u64;
                while !over.load(Ordering::Relaxed) {
                    let number = numbers(&sources.found())[&name];
                    assert!(number >= last, "{number} after {last}");
                    last = number;
                    looks += 1;
                    assert!(sources.items().iter().any(|item| item.service == "s0"));
                }
                looks
            })
        })
        .collect();
    while !writers.iter().all(thread::JoinHandle::is_finished) {
        sources.set(&BTreeMap::from([staying.clone()]));
        sleep(Duration::from_millis(2)).await;
        sources.set(&all);
        let _ = timeout(Duration::from_millis(20), changed.notified()).await;
    }

    let everyone_said_it = || {
        let numbers = numbers(&sources.found());
        numbers.len() == FILES && numbers.values().all(|number| *number == LAST)
    };
    let end = Instant::now() + SOON;
    while !everyone_said_it() {
        assert!(Instant::now() < end, "{:?}", numbers(&sources.found()));
        sleep(Duration::from_millis(10)).await;
    }
    over.store(true, Ordering::Relaxed);
    for looker in lookers {
        assert!(looker.join().unwrap() > 0);
    }

    // What was said last is what the next one begins with.
    sources.stop().await;
    (0..FILES).for_each(|n| fs::remove_file(files.path(n)).unwrap());
    let next = Sources::new(state.path(), changed, system_clock());
    next.set(&all);
    let restored = numbers(&next.found());
    assert!(
        restored.values().all(|number| *number == LAST),
        "{restored:?}"
    );
}

#[tokio::test]
async fn a_source_in_anothers_place_is_heard_only_once_it_answers_itself() {
    let files = Files(Directory::new("heirs"));
    let begin = || Sources::new(files.0.path(), Arc::default(), system_clock());
    let (old, new) = (files.asked(1), files.asked(2));
    // Of the same service.
    let new = (
        SourceName {
            target: new.0.target,
            ..old.0.clone()
        },
        new.1,
    );
    let answers = |sources: &Sources, name: &SourceName| {
        let instance = Instance::new("a", ([10, 0, 0, 1], 80).into());
        sources.say(name, Report::Snapshot(vec![instance].into()));
        sources.advance();
    };
    let check = |sources: &Sources, has: usize, is_heard: bool| {
        let found = sources.found();
        assert_eq!(found.sets[&new.0].len(), has);
        assert_eq!(found.unknown.contains(&new.0), has == 0);
        assert_eq!(found.unheard.contains(&new.0), !is_heard);
    };
    let set = |sources: &Sources, one: &(SourceName, Asked)| sources.set(&[one.clone()].into());

    let sources = begin();
    set(&sources, &new);
    check(&sources, 0, false);
    set(&sources, &old);
    answers(&sources, &old.0);
    sources.save();
    set(&sources, &new);
    check(&sources, 1, false);
    sources.advance();
    check(&sources, 1, false);
    drop(sources);

    // What it began with was not saved, and the kernel has it.
    let sources = begin();
    set(&sources, &new);
    check(&sources, 0, false);
    sources.assume(&new.0, vec![Instance::new("b", ([10, 0, 0, 1], 80).into())]);
    check(&sources, 1, false);
    drop(sources);

    let sources = begin();
    set(&sources, &old);
    answers(&sources, &old.0);
    set(&sources, &new);
    sources.save();
    drop(sources);
    let sources = begin();
    set(&sources, &new);
    check(&sources, 1, false);
    answers(&sources, &new.0);
    check(&sources, 1, true);
    sources.save();
    drop(sources);
    let sources = begin();
    set(&sources, &new);
    check(&sources, 1, true);
}
