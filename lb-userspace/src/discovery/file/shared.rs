//! One inotify instance for all file sources: a node has few (128 a user by default), and other
//! programs need them too.

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{runtime::Handle, sync::mpsc::UnboundedSender};

/// Device, inode, and when it was made, for inodes are used again.
pub(super) type Identity = (u64, u64, Option<SystemTime>);

/// Two locks: while the watcher is told what to watch, it may be telling of an event.
static WATCHED: LazyLock<Mutex<Watched>> = LazyLock::new(Mutex::default);
static SUBSCRIBERS: LazyLock<Mutex<Subscribers>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Watched {
    watcher: Option<RecommendedWatcher>,
    directories: HashMap<PathBuf, Directory>,
}

struct Directory {
    identity: Identity,
    /// Numbers of the subscriptions for whose sake it is watched.
    subscriptions: HashSet<u64>,
}

#[derive(Default)]
struct Subscribers {
    last: u64,
    by_number: HashMap<u64, Subscriber>,
}

struct Subscriber {
    directories: HashSet<PathBuf>,
    events: UnboundedSender<Event>,
}

/// Directories that are watched on somebody's behalf until it is dropped.
pub(super) struct Subscription {
    number: u64,
    directories: HashMap<PathBuf, Identity>,
}

/// Events of the subscription's directories go to `events`, and those that concern all.
///
/// # Errors
/// If the kernel has no instance to give.
pub(super) fn subscribe(events: UnboundedSender<Event>) -> notify::Result<Subscription> {
    let mut watched = lock(&WATCHED);
    if watched.watcher.is_none() {
        watched.watcher = Some(notify::recommended_watcher(tell)?);
    }
    drop(watched);
    let mut subscribers = lock(&SUBSCRIBERS);
    subscribers.last += 1;
    let number = subscribers.last;
    let subscriber = Subscriber {
        directories: HashSet::new(),
        events,
    };
    subscribers.by_number.insert(number, subscriber);
    Ok(Subscription {
        number,
        directories: HashMap::new(),
    })
}

fn tell(event: notify::Result<Event>) {
    // What was missed may have been anything.
    let event = event.unwrap_or_else(|_| {
        Event::new(notify::EventKind::Other).set_flag(notify::event::Flag::Rescan)
    });
    let parents: HashSet<_> = event.paths.iter().filter_map(|p| p.parent()).collect();
    for subscriber in lock(&SUBSCRIBERS).by_number.values() {
        let mut directories = subscriber.directories.iter();
        let concerns = |d: &PathBuf| parents.contains(&**d) || event.paths.contains(d);
        if event.need_rescan() || directories.any(concerns) {
            let _ = subscriber.events.send(event.clone());
        }
    }
}

impl Subscription {
    /// Watches these directories and no others. One that cannot be watched is tried again next time.
    pub(super) fn set(&mut self, wanted: HashMap<PathBuf, Identity>) {
        if wanted == self.directories {
            return;
        }
        if let Some(subscriber) = lock(&SUBSCRIBERS).by_number.get_mut(&self.number) {
            subscriber.directories = wanted.keys().cloned().collect();
        }
        let mut watched = lock(&WATCHED);
        let left = self
            .directories
            .extract_if(|directory, identity| wanted.get(directory) != Some(identity));
        for (directory, _) in left {
            watched.leave(&directory, self.number);
        }
        for (directory, identity) in wanted {
            if !self.directories.contains_key(&directory)
                && watched.enter(&directory, identity, self.number)
            {
                self.directories.insert(directory, identity);
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        lock(&SUBSCRIBERS).by_number.remove(&self.number);
        let directories = std::mem::take(&mut self.directories);
        let number = self.number;
        let leave = move || {
            let mut watched = lock(&WATCHED);
            for directory in directories.keys() {
                watched.leave(directory, number);
            }
        };
        // The lock may be held by one whose file system hangs.
        match Handle::try_current() {
            Ok(runtime) => _ = runtime.spawn_blocking(leave),
            Err(_) => leave(),
        }
    }
}

impl Watched {
    /// Whether it is watched now. Of two subscriptions that take different directories for the one of
    /// this name one has looked too early; both hear of the one that is there.
    fn enter(&mut self, path: &PathBuf, identity: Identity, subscription: u64) -> bool {
        let Some(watcher) = &mut self.watcher else {
            return false;
        };
        let former = self.directories.get_mut(path);
        if let Some(directory) = former {
            if directory.identity != identity {
                // Another directory of that name took its place.
                let _ = watcher.unwatch(path);
                if watcher.watch(path, RecursiveMode::NonRecursive).is_err() {
                    return false;
                }
                directory.identity = identity;
            }
            directory.subscriptions.insert(subscription);
            return true;
        }
        if watcher.watch(path, RecursiveMode::NonRecursive).is_err() {
            return false;
        }
        let directory = Directory {
            identity,
            subscriptions: HashSet::from([subscription]),
        };
        self.directories.insert(path.clone(), directory);
        true
    }

    fn leave(&mut self, path: &PathBuf, subscription: u64) {
        let Some(directory) = self.directories.get_mut(path) else {
            return;
        };
        directory.subscriptions.remove(&subscription);
        if directory.subscriptions.is_empty() {
            self.directories.remove(path);
            if let Some(watcher) = &mut self.watcher {
                let _ = watcher.unwatch(path);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(super) fn hold() -> impl Drop {
    lock(&WATCHED)
}
