//! Subscriptions come and go while their directories are replaced, on several threads.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    sync::mpsc::{self, UnboundedReceiver},
    time::timeout,
};

use super::*;
use crate::{discovery::file::watch::directories, testing::Directory as TestDirectory};

/// Long enough for any machine; no passing test waits for it.
const PATIENT: Duration = Duration::from_secs(30);

/// A subscription, and what it hears.
struct Listener {
    subscription: Subscription,
    events: UnboundedReceiver<Event>,
}

impl Listener {
    fn new() -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        Self {
            subscription: subscribe(sender).expect("the kernel has an instance"),
            events,
        }
    }

    /// As a source does that has just read what is at `path`.
    fn follow(&mut self, path: &Path) {
        let mut wanted = directories(path);
        wanted.retain(|directory, _| directory == path);
        self.subscription.set(wanted);
    }

    /// Whether it hears of a new file in the directory.
    async fn hears_of(&mut self, directory: &Path) -> bool {
        while self.events.try_recv().is_ok() {}
        let file = directory.join("new.yaml");
        fs::write(&file, "").unwrap();
        let heard = async {
            while let Some(event) = self.events.recv().await {
                if event.paths.contains(&file) {
                    return true;
                }
            }
            false
        };
        timeout(PATIENT, heard).await.unwrap_or(false)
    }
}

/// Makes another directory of that name.
fn replace(directory: &Path) {
    let former = directory.with_extension("former");
    fs::rename(directory, &former).unwrap();
    fs::create_dir(directory).unwrap();
    fs::remove_dir_all(former).unwrap();
}

/// Waits until nothing is watched there: who goes leaves that to another thread.
async fn is_left_alone(root: &Path) -> bool {
    let is_watched = || {
        let watched = lock(&WATCHED);
        watched.directories.keys().any(|d| d.starts_with(root))
    };
    for _ in 0..500 {
        if !is_watched() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

#[tokio::test]
async fn who_looked_before_a_directory_was_replaced_ends_nobodys_watch() {
    let root = TestDirectory::new("watched-late");
    let path = root.path().join("d");
    fs::create_dir(&path).unwrap();
    let former = directories(&path).remove(&path).unwrap();
    replace(&path);
    let (mut stays, mut late) = (Listener::new(), Listener::new());
    stays.follow(&path);
    late.subscription.set([(path.clone(), former)].into());
    late.follow(&path);
    drop(late);
    assert!(stays.hears_of(&path).await);
    drop(stays);
    assert!(is_left_alone(root.path()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_come_and_go_while_directories_are_replaced() {
    const DIRECTORIES: usize = 3;
    const REPLACED: u32 = 200;
    let root = TestDirectory::new("watched");
    let paths: Vec<_> = (0..DIRECTORIES)
        .map(|n| root.path().join(n.to_string()))
        .collect();
    paths.iter().for_each(|path| fs::create_dir(path).unwrap());
    let mut staying: Vec<_> = paths.iter().map(|_| Listener::new()).collect();
    let over = AtomicBool::new(false);

    let heard = thread::scope(|scope| {
        for seed in 0..4 {
            let (paths, over) = (&paths, &over);
            scope.spawn(move || {
                let mut dice = StdRng::seed_from_u64(seed);
                while !over.load(Ordering::Relaxed) {
                    let path = &paths[dice.random_range(0..DIRECTORIES)];
                    let mut listener = Listener::new();
                    for _ in 0..dice.random_range(1..4) {
                        let mut wanted = directories(path);
                        wanted.retain(|directory, _| directory == path);
                        // It is replaced meanwhile.
                        thread::sleep(Duration::from_micros(dice.random_range(0..500)));
                        listener.subscription.set(wanted);
                    }
                }
            });
        }
        let followers: Vec<_> = (staying.iter_mut().zip(&paths))
            .map(|(listener, path)| {
                let over = &over;
                scope.spawn(move || {
                    let mut heard = 0u32;
                    while !over.load(Ordering::Relaxed) {
                        listener.follow(path);
                        while listener.events.try_recv().is_ok() {
                            heard += 1;
                        }
                        thread::sleep(Duration::from_micros(300));
                    }
                    listener.follow(path);
                    heard
                })
            })
            .collect();
        let mut dice = StdRng::seed_from_u64(99);
        for _ in 0..REPLACED {
            let path = &paths[dice.random_range(0..DIRECTORIES)];
            replace(path);
            fs::write(path.join("some.yaml"), "").unwrap();
            thread::sleep(Duration::from_millis(2));
        }
        over.store(true, Ordering::Relaxed);
        followers
            .into_iter()
            .map(|follower| follower.join().unwrap())
            .collect::<Vec<_>>()
    });
    assert!(heard.iter().all(|count| *count > 0), "{heard:?}");

    // All others are gone; those that stayed hear of what is there now.
    for (listener, path) in staying.iter_mut().zip(&paths) {
        assert!(listener.hears_of(path).await, "{}", path.display());
    }
    drop(staying);
    assert!(is_left_alone(root.path()).await);
}
