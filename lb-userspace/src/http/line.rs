//! Connections that have not asked for anything yet, or have had their answer, in the order in which they
//! came.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(super) struct Line(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    /// Number ever joined.
    joined: u64,
    by_age: BTreeMap<u64, Arc<Notify>>,
}

/// One connection's place.
#[derive(Debug)]
pub(super) struct Place<'a> {
    line: &'a Line,
    number: u64,
    dismissed: Arc<Notify>,
}

impl Line {
    pub(super) fn join(&self) -> Place<'_> {
        let mut waiting = self.lock();
        waiting.joined += 1;
        let (number, dismissed) = (waiting.joined, Arc::new(Notify::new()));
        waiting.by_age.insert(number, dismissed.clone());
        Place {
            line: self,
            number,
            dismissed,
        }
    }

    /// Has the oldest end; says whether there is one.
    pub(super) fn dismiss(&self) -> bool {
        let oldest = self.lock().by_age.pop_first();
        oldest.is_some_and(|(_, dismissed)| {
            dismissed.notify_one();
            true
        })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// It has asked, and is not dismissed any more.
    pub(super) fn leave(&self) {
        self.line.lock().by_age.remove(&self.number);
    }

    /// It has its answer: who only waits for the other side to close gives way as well.
    pub(super) fn rejoin(&self) {
        let mut waiting = self.line.lock();
        waiting.by_age.insert(self.number, self.dismissed.clone());
    }

    pub(super) async fn dismissed(&self) {
        self.dismissed.notified().await;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}
