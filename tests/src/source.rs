//! A source on its own, on a thread of a host: what it reports comes out at the other end.

use std::{
    sync::mpsc::{Receiver, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use lb_userspace::discovery::{Failure, Feed, Report, Settings, Snapshot, Source};

use crate::host::Host;

/// Longest wait for a report.
const LONG: Duration = Duration::from_secs(30);

/// A source that runs on a thread of the host.
pub struct Running<A = Snapshot> {
    pub reports: Receiver<Report<A>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl<A: Clone + Send + 'static> Running<A> {
    /// Runs what `make` makes; the merge window is short.
    pub fn of<S: Source<A>>(
        host: &Host,
        make: impl FnOnce() -> S + Send + 'static,
        resync: Duration,
    ) -> Self {
        let (sender, reports) = channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = host.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let settings = Settings {
                resync,
                merge_window: Duration::from_millis(20),
                ..Settings::default()
            };
            runtime.block_on(async move {
                let (mut feed, mut inner) = Feed::open(&settings);
                let mut source = make();
                let forward = sender.clone();
                let run = async move {
                    loop {
                        if let Err(failure) = source.session(&mut feed).await {
                            feed.failure(failure);
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                };
                let pass = async move {
                    while let Some(report) = inner.recv().await {
                        let _ = forward.send(report);
                    }
                };
                tokio::select! {
                    () = run => {}
                    () = pass => {}
                    _ = stopped => {}
                }
            });
            // Not for a blocking thread that may be waiting for something.
            runtime.shutdown_background();
        });
        Self {
            reports,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Panics if there is none in time.
    pub fn next(&self) -> Report<A> {
        self.reports.recv_timeout(LONG).expect("no report")
    }

    /// Waits for a failure, past snapshots.
    pub fn fails(&self) -> Failure {
        loop {
            if let Report::Failure(failure) = self.next() {
                return failure;
            }
        }
    }

    /// Waits for a snapshot, past failures.
    pub fn recovers(&self) {
        while !matches!(self.next(), Report::Snapshot(_)) {}
    }
}

impl Running {
    /// Waits for a snapshot with these addresses; a failure before it fails the test.
    pub fn has(&self, wanted: &[&str]) {
        let end = Instant::now() + LONG;
        let mut last = None;
        loop {
            match self
                .reports
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(Report::Snapshot(snapshot)) => {
                    let mut found: Vec<String> = snapshot
                        .instances
                        .iter()
                        .map(|i| i.address.ip().to_string())
                        .collect();
                    found.sort();
                    if found == wanted {
                        return;
                    }
                    last = Some(found);
                }
                Ok(Report::Failure(failure)) => panic!("waiting for {wanted:?}: {failure}"),
                Err(error) => panic!("waiting for {wanted:?}: {error}, last {last:?}"),
            }
        }
    }
}

impl<A> Drop for Running<A> {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
