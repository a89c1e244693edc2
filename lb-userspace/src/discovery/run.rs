//! Acts on the rules: a task for each source, one that sleeps until a set is due, and one that
//! saves what is known.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinHandle, spawn_blocking},
    time::sleep,
};

use super::{
    Backoff, Class, Discovered, Failure, Feed, Instance, ServicesSpec, Settings, Source,
    SourceItem, SourceName, SourceSpec, heirs,
    rules::{Now, Restored},
    saved::Shelf,
};
use crate::utc;

mod ruled;
use ruled::Ruled;

/// Shortest time between two writes of one set to disk.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// A set that stays the same is written again after so many milliseconds, with its last success.
const SAVE_ANYWAY_MS: u64 = 600_000;
/// Pause after a source panicked.
const AFTER_PANIC: Duration = Duration::from_secs(5);

/// What a source is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// Of one service.
    Backends(Box<SourceSpec>),
    Services(Box<ServicesSpec>),
}

impl Asked {
    fn settings(&self) -> &Settings {
        match self {
            Self::Backends(spec) => &spec.settings,
            Self::Services(spec) => &spec.settings,
        }
    }
}

/// Tells what time it is.
pub type Clock = Arc<dyn Fn() -> Now + Send + Sync>;

/// The time as it is.
pub fn system_clock() -> Clock {
    Arc::new(|| Now {
        at: Instant::now(),
        ms: utc::now_ms(),
    })
}

/// All sources of the daemon. Stops them when dropped.
pub struct Sources {
    hub: Arc<Hub>,
    tasks: [AbortHandle; 2],
}

struct Hub {
    shared: Mutex<Shared>,
    shelf: Shelf,
    clock: Clock,
    /// A set may be due earlier than the driver knows.
    wake: Notify,
    /// Something may have to be saved.
    unsaved: Notify,
    /// Other sets are in force.
    changed: Arc<Notify>,
}

struct Shared {
    running: BTreeMap<SourceName, Running>,
    found: Arc<Discovered>,
    /// Number of tasks ever begun. A task that is being stopped may still report.
    lives: u64,
}

struct Running {
    asked: Asked,
    machine: Ruled,
    /// What is in force means something, whoever said it.
    is_known: bool,
    /// The source itself said what is in force, now or in an earlier life.
    is_heard: bool,
    life: u64,
    task: AbortHandle,
    /// What is in force is not on disk.
    unsaved: bool,
    saved: Option<Instant>,
    saved_success_ms: u64,
    /// What is wrong with its file, in words.
    disk_fault: Option<String>,
}

impl Sources {
    /// Other sets in force are told to `changed`. `clock` says when they come into force.
    pub fn new(state_dir: &Path, changed: Arc<Notify>, clock: Clock) -> Self {
        let hub = Arc::new(Hub {
            shared: Mutex::new(Shared {
                running: BTreeMap::new(),
                found: Arc::default(),
                lives: 0,
            }),
            shelf: Shelf::open(state_dir),
            clock,
            wake: Notify::new(),
            unsaved: Notify::new(),
            changed,
        });
        let driver = tokio::spawn(Arc::clone(&hub).drive()).abort_handle();
        let saver = tokio::spawn(Arc::clone(&hub).save()).abort_handle();
        let tasks = [driver, saver];
        Self { hub, tasks }
    }

    /// Forgets what was saved of sources that are not among these: they left the config while no
    /// daemon ran.
    pub fn forget_all_but(&self, wanted: &BTreeMap<SourceName, Asked>) {
        self.hub.shelf.keep_only(wanted.keys());
    }

    /// Runs exactly these from now on. One that stays as it is goes on undisturbed; one of which
    /// other keys changed begins to ask anew and keeps what it knows; a new one begins with what a
    /// former daemon knew, or the source in whose place it comes ([`heirs`]).
    pub fn set(&self, wanted: &BTreeMap<SourceName, Asked>) {
        let mut shared = self.hub.lock();
        let Shared {
            running,
            found: _,
            lives,
        } = &mut *shared;
        let heirs = heirs(running.keys(), wanted.keys());
        let mut left = BTreeMap::new();
        let gone = running.extract_if(.., |name, _| !wanted.contains_key(name));
        for (name, source) in gone {
            source.task.abort();
            if let Err(error) = self.hub.shelf.remove(&name) {
                tracing::warn!("{error:#}");
            }
            left.insert(name, source.machine);
        }
        for (name, asked) in wanted {
            match running.get_mut(name) {
                Some(source) if source.asked == *asked => {}
                Some(source) => {
                    source.task.abort();
                    *lives += 1;
                    source.life = *lives;
                    source.asked = asked.clone();
                    source.machine.set(asked, (self.hub.clock)());
                    source.task = self.hub.begin(name, asked, *lives);
                }
                None => {
                    *lives += 1;
                    let former = heirs.get(name).and_then(|former| left.remove(former));
                    let source = self.hub.running(name, asked, *lives, former);
                    running.insert(name.clone(), source);
                }
            }
        }
        shared.gather();
        drop(shared);
        self.hub.wake.notify_one();
        self.hub.unsaved.notify_one();
    }

    /// Lets a source of which nothing is known begin with these backends.
    pub fn assume(&self, name: &SourceName, instances: Vec<Instance>) {
        let mut shared = self.hub.lock();
        let Some(source) = shared.running.get_mut(name) else {
            return;
        };
        if source.is_known {
            return;
        }
        if source.machine.is_blank() {
            let count = instances.len();
            tracing::warn!(
                source = %name,
                count,
                "what it said last was not saved: begins with the backends that the kernel holds"
            );
            let restored = Restored {
                instances,
                ..Restored::default()
            };
            source.machine = Ruled::new(name, &source.asked, restored, (self.hub.clock)());
        } else {
            // It has just answered.
            source.machine.advance((self.hub.clock)());
        }
        source.is_known = true;
        shared.gather();
        drop(shared);
        self.hub.wake.notify_one();
    }

    /// The sets in force.
    pub fn found(&self) -> Arc<Discovered> {
        self.hub.lock().found.clone()
    }

    pub fn items(&self) -> Vec<SourceItem> {
        let shared = self.hub.lock();
        let running = shared.running.iter();
        running.map(|(name, source)| source.item(name)).collect()
    }

    /// What is wrong with the files of sets, one sentence each.
    pub fn disk_faults(&self) -> Vec<String> {
        let shared = self.hub.lock();
        let running = shared.running.values();
        running.filter_map(|s| s.disk_fault.clone()).collect()
    }

    /// Stops all sources, and saves what is not saved yet.
    pub async fn stop(&self) {
        for source in self.hub.lock().running.values() {
            source.task.abort();
        }
        for task in &self.tasks {
            task.abort();
        }
        let hub = self.hub.clone();
        let _ = spawn_blocking(move || {
            let names: Vec<_> = hub.lock().running.keys().cloned().collect();
            for name in names {
                hub.save_one(&name, true);
            }
        })
        .await;
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        for source in self.hub.lock().running.values() {
            source.task.abort();
        }
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Hub {
    /// `former` is the machine of the source in whose place this one comes.
    fn running(
        self: &Arc<Self>,
        name: &SourceName,
        asked: &Asked,
        life: u64,
        former: Option<Ruled>,
    ) -> Running {
        let (restored, disk_fault) = self.shelf.load(name);
        if let Some(fault) = &disk_fault {
            tracing::error!(source = %name, "{fault}");
        }
        let now = (self.clock)();
        let heir = former.filter(|_| restored == Restored::default());
        let heir = heir.and_then(|former| former.heir(asked, now));
        let heir = heir.filter(|heir| !heir.is_blank());
        if let Some(heir) = &heir {
            let count = heir.instances();
            tracing::info!(source = %name, count, "begins with what another one had in its place");
        }
        let unsaved = heir.is_some();
        if !restored.instances.is_empty() {
            let count = restored.instances.len();
            tracing::info!(source = %name, count, "begins with the instances last known");
        }
        if !restored.services.is_empty() {
            let count = restored.services.len();
            tracing::info!(source = %name, count, "begins with the services last known");
        }
        let saved_success_ms = restored.last_success_ms.unwrap_or(0);
        let machine = heir.unwrap_or_else(|| Ruled::new(name, asked, restored, now));
        Running {
            asked: asked.clone(),
            saved_success_ms,
            is_known: !machine.is_blank(),
            is_heard: machine.last_success_ms().is_some(),
            machine,
            life,
            task: self.begin(name, asked, life),
            unsaved,
            saved: None,
            disk_fault,
        }
    }

    fn begin(self: &Arc<Self>, name: &SourceName, asked: &Asked, life: u64) -> AbortHandle {
        let (hub, source) = (Arc::downgrade(self), name.clone());
        let take = move |report: ruled::AnyReport| {
            if let Some(hub) = hub.upgrade() {
                hub.take(&source, life, report);
            }
        };
        let settings = asked.settings();
        let task = match asked {
            Asked::Backends(spec) => {
                let feed = Feed::new(
                    settings,
                    Arc::new(move |report| take(ruled::AnyReport::Backends(report))),
                );
                tokio::spawn(spec.kind.clone().run(name.service.clone(), feed))
            }
            Asked::Services(spec) => {
                let feed = Feed::new(
                    settings,
                    Arc::new(move |report| take(ruled::AnyReport::Services(report))),
                );
                tokio::spawn(spec.kind.clone().run(feed))
            }
        };
        task.abort_handle()
    }

    fn take(&self, name: &SourceName, life: u64, report: ruled::AnyReport) {
        let mut shared = self.lock();
        let Some(source) = shared.running.get_mut(name).filter(|s| s.life == life) else {
            return;
        };
        let was_failing = source.machine.is_failing();
        let left_out = source.machine.left_out();
        source.machine.report(report, (self.clock)());
        let is_failing = source.machine.is_failing();
        let failure = source.machine.last_failure();
        let failure = failure.filter(|_| is_failing && !was_failing);
        let failure = failure.map(|(failure, _)| failure.clone());
        let mut notes = source.machine.left_out();
        notes.retain(|note| !left_out.contains(note));
        // Whoever reads the log may be slow, and everybody waits for what is shared.
        drop(shared);
        if let Some(failure) = failure {
            tracing::warn!(source = %name, "{failure}");
        }
        if was_failing && !is_failing {
            tracing::info!(source = %name, "answers again");
        }
        for note in notes {
            tracing::warn!(source = %name, "left out: {note}");
        }
        self.wake.notify_one();
        self.unsaved.notify_one();
    }

    /// Puts sets in force as they fall due, for ever.
    async fn drive(self: Arc<Self>) {
        loop {
            match self.advance() {
                Some(at) => {
                    let at = tokio::time::Instant::from_std(at);
                    let _ = tokio::time::timeout_at(at, self.wake.notified()).await;
                }
                None => self.wake.notified().await,
            }
        }
    }

    fn advance(&self) -> Option<Instant> {
        let mut shared = self.lock();
        let now = (self.clock)();
        let mut any = false;
        for source in shared.running.values_mut() {
            if source.machine.advance(now) {
                source.unsaved = true;
                any = true;
            }
            if !source.is_known && !source.machine.is_blank() {
                source.is_known = true;
                any = true;
            }
            if !source.is_heard && source.machine.last_success_ms().is_some() {
                source.is_heard = true;
                any = true;
            }
        }
        if any {
            shared.gather();
            self.changed.notify_one();
            self.unsaved.notify_one();
        }
        let running = shared.running.values();
        running.filter_map(|s| s.machine.wake_at()).min()
    }

    /// Saves sets as they come into force, for ever.
    async fn save(self: Arc<Self>) {
        loop {
            self.unsaved.notified().await;
            loop {
                let names = self.to_save();
                if names.is_empty() {
                    break;
                }
                let hub = self.clone();
                let _ = spawn_blocking(move || {
                    for name in names {
                        hub.save_one(&name, false);
                    }
                })
                .await;
                sleep(SAVE_EVERY).await;
            }
        }
    }

    fn to_save(&self) -> Vec<SourceName> {
        let shared = self.lock();
        let running = shared.running.iter();
        running
            .filter(|(_, source)| source.is_unsaved())
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// To be called where it may take a disk's time.
    fn save_one(&self, name: &SourceName, at_once: bool) {
        let known = {
            let mut shared = self.lock();
            let Some(source) = shared.running.get_mut(name) else {
                return;
            };
            let rests = |saved: Instant| saved.elapsed() < SAVE_EVERY;
            if !source.is_unsaved() || (!at_once && source.saved.is_some_and(rests)) {
                return;
            }
            source.unsaved = false;
            source.saved = Some(Instant::now());
            source.saved_success_ms = source.machine.last_success_ms().unwrap_or(0);
            source.machine.to_save()
        };
        let result = self.shelf.save(name, known);
        let mut shared = self.lock();
        match (shared.running.get_mut(name), result) {
            (Some(source), Ok(())) => source.disk_fault = None,
            (Some(source), Err(error)) => {
                let fault = format!("what is known of source {name} is not saved: {error:#}");
                if source.disk_fault.as_ref() != Some(&fault) {
                    tracing::error!("{fault}");
                }
                source.disk_fault = Some(fault);
                source.unsaved = true;
            }
            // It was taken off the config meanwhile.
            (None, _) => {
                let _ = self.shelf.remove(name);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn gather(&mut self) {
        let mut found = Discovered::default();
        for (name, source) in &self.running {
            source.machine.gather(name, &mut found);
            if !source.is_known {
                found.unknown.insert(name.clone());
            }
            if !source.is_heard {
                found.unheard.insert(name.clone());
            }
        }
        self.found = Arc::new(found);
    }
}

impl Running {
    fn is_unsaved(&self) -> bool {
        let success = self.machine.last_success_ms().unwrap_or(0);
        self.unsaved || success > self.saved_success_ms.saturating_add(SAVE_ANYWAY_MS)
    }

    fn item(&self, name: &SourceName) -> SourceItem {
        let machine = &self.machine;
        let counts = machine.counts();
        let by_class = counts.errors.iter();
        let by_class = by_class.map(|(class, count)| (class.name().to_owned(), *count));
        let failure = machine.last_failure();
        SourceItem {
            service: name.service.clone(),
            kind: name.kind.to_owned(),
            target: name.target.clone(),
            state: machine.state(Instant::now()).name().to_owned(),
            services: machine.services().map(|count| count as u32),
            instances: machine.instances() as u32,
            held: machine.held() as u32,
            last_success_ms: machine.last_success_ms(),
            updates: counts.updates,
            errors: counts.errors.values().sum(),
            errors_by_class: by_class.collect(),
            last_error: failure.map(|(failure, _)| failure.message.clone()),
            last_error_ms: failure.map(|(_, ms)| *ms),
            left_out: machine.left_out(),
        }
    }
}

/// Runs a source for ever, and another in its place if it panics.
pub(super) async fn run<A, S>(make: impl Fn() -> S, mut feed: Feed<A>)
where
    A: Clone + Send + 'static,
    S: Source<A>,
{
    loop {
        let session = Task(tokio::spawn(sessions(make(), feed.clone())));
        let what = match session.join().await {
            Err(error) if error.is_panic() => "the source panicked; please report this",
            _ => "the source's task ended",
        };
        feed.failure(Failure::new(Class::Internal, what));
        sleep(AFTER_PANIC).await;
    }
}

async fn sessions<A, S>(mut source: S, mut feed: Feed<A>)
where
    A: Send + 'static,
    S: Source<A>,
{
    let mut backoff = Backoff::default();
    loop {
        let before = feed.snapshots();
        let result = source.session(&mut feed).await;
        if feed.snapshots() > before || result.is_ok() {
            backoff.reset();
        }
        if let Err(failure) = result {
            feed.failure(failure);
        }
        let pause = backoff.pause(&mut rand::rng());
        sleep(pause).await;
    }
}

/// A task that ends with whoever waits for it.
struct Task<T>(JoinHandle<T>);

impl<T> Task<T> {
    async fn join(mut self) -> Result<T, tokio::task::JoinError> {
        (&mut self.0).await
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod by_hand;
#[cfg(test)]
mod tests;
