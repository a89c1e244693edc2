use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::{task, time};

use super::{Failure, Protocol, any_port, ask, runtime, summary};
use crate::host::Host;

/// What became of one connection.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub began: Instant,
    pub ended: Instant,
    /// Name of the backend.
    pub result: Result<String, Failure>,
}

/// Every connection of a load.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub attempts: Vec<Attempt>,
}

impl Report {
    pub fn failures(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|a| a.result.is_err())
    }

    /// Failures by kind, in words.
    pub fn failure_summary(&self) -> String {
        summary(self.failures().filter_map(|a| a.result.as_ref().err()))
    }

    /// Connections by backend among those that began at or after `since`.
    pub fn by_backend(&self, since: Instant) -> BTreeMap<&str, u64> {
        let mut counts = BTreeMap::new();
        for attempt in self.attempts.iter().filter(|a| a.began >= since) {
            if let Ok(backend) = &attempt.result {
                *counts.entry(backend.as_str()).or_default() += 1;
            }
        }
        counts
    }

    /// Latest time at which a failing connection began.
    pub fn last_failure_began(&self) -> Option<Instant> {
        self.failures().map(|a| a.began).max()
    }

    /// Latest time at which a failing connection ended.
    pub fn last_failure_ended(&self) -> Option<Instant> {
        self.failures().map(|a| a.ended).max()
    }
}

/// A steady load: so many new connections a second, however long each takes.
pub struct Load {
    stop: Arc<AtomicBool>,
    attempts: Arc<Mutex<Vec<Attempt>>>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// `limit` is the longest a client waits for one connection.
    pub fn start(
        client: &Host,
        sources: &[IpAddr],
        protocol: Protocol,
        target: SocketAddr,
        per_second: u32,
        limit: Duration,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let attempts = Arc::new(Mutex::new(Vec::new()));
        let (sources, stopped, record) = (sources.to_vec(), stop.clone(), attempts.clone());
        let thread = client.spawn(move || {
            task::LocalSet::new().block_on(&runtime(), async {
                let mut open = task::JoinSet::new();
                let mut ticks = time::interval(Duration::from_secs(1) / per_second);
                for source in sources.into_iter().cycle() {
                    ticks.tick().await;
                    if stopped.load(Ordering::Relaxed) {
                        break;
                    }
                    while open.try_join_next().is_some() {}
                    let record = record.clone();
                    open.spawn_local(async move {
                        let began = Instant::now();
                        let answer = ask(protocol, any_port(source), target, "load", limit).await;
                        record.lock().expect("not poisoned").push(Attempt {
                            began,
                            ended: Instant::now(),
                            result: answer.map(|a| a.backend),
                        });
                    });
                }
                while open.join_next().await.is_some() {}
            });
        });
        Self {
            stop,
            attempts,
            thread: Some(thread),
        }
    }

    /// What has ended so far.
    pub fn so_far(&self) -> Report {
        Report {
            attempts: self.attempts.lock().expect("not poisoned").clone(),
        }
    }

    /// Opens no more connections, waits for the open ones, and reports.
    pub fn stop(mut self) -> Report {
        self.end();
        Report {
            attempts: std::mem::take(&mut self.attempts.lock().expect("not poisoned")),
        }
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}
