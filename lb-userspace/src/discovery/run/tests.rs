use tokio::time::timeout;

use super::*;
use crate::discovery::{Instance, Report, Settings};

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
