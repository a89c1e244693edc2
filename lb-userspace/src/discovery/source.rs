//! What a source is, and what it is given.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use rand::Rng as _;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{Settings, Snapshot, text::one_line};

/// Most characters of a failure's message: those of a sentence for each of several servers.
const MAX_MESSAGE: usize = 800;

/// A registry, or one query to it.
///
/// A source asks and reports; what becomes of its answers is decided by [`super::rules`], the same
/// for all: a source never filters, delays, remembers or compares. `A` is its whole answer:
/// instances of one service, or services with theirs ([`super::Catalogue`]).
pub trait Source<A = Snapshot>: Send + 'static {
    /// Asks the registry for as long as it answers, and reports whole sets to `feed`.
    /// Ends by a failure, which is reported; it is called again after a pause, which is longer
    /// after each failure in a row and which a snapshot makes short again. `Ok` wants to be called
    /// again after a short pause, and is no failure.
    ///
    /// The future is dropped at any `await` when the source is to stop. What must outlive a
    /// session (an index, a connection) is kept in `self`.
    fn session(&mut self, feed: &mut Feed<A>) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Why a registry's answer is not known, in words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub class: Class,
    /// What was asked, what was wrong, and, where it is known, what to do. Never a secret. One line, which
    /// has an end, whatever a registry said.
    pub message: String,
}

impl Failure {
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self {
            class,
            message: one_line(message, MAX_MESSAGE),
        }
    }

    /// The same, with what was being done in front.
    #[must_use]
    pub fn context(self, what: impl fmt::Display) -> Self {
        Self::new(self.class, format!("{what}: {}", self.message))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Kinds of failures; the label of `lbd_source_errors_total`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// Nobody listens there, no route, no such host, the connection broke.
    Unreachable,
    /// No answer, or not the whole of it, in time.
    Timeout,
    /// Credentials or certificates are refused, by either side.
    Denied,
    /// It answers that it cannot answer.
    Refused,
    /// What is asked for is not there.
    Missing,
    /// The answer is not understood.
    Malformed,
    /// What the config names (a secret, a certificate) cannot be used.
    Config,
    /// A fault of lbd.
    Internal,
}

impl Class {
    pub const ALL: [Self; 8] = [
        Self::Unreachable,
        Self::Timeout,
        Self::Denied,
        Self::Refused,
        Self::Missing,
        Self::Malformed,
        Self::Config,
        Self::Internal,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Denied => "denied",
            Self::Refused => "refused",
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Config => "config",
            Self::Internal => "internal",
        }
    }
}

/// What a source reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Report<A = Snapshot> {
    /// All there is.
    Snapshot(A),
    /// What there is is not known.
    Failure(Failure),
}

type Sink<A> = Arc<dyn Fn(Report<A>) + Send + Sync>;

/// Where a source reports to, and its clock.
#[derive(Clone)]
pub struct Feed<A = Snapshot> {
    sink: Sink<A>,
    merge_window: Duration,
    resync: Duration,
    last_snapshot: Option<Instant>,
    resync_at: Option<Instant>,
    snapshots: u64,
}

impl<A: Send + 'static> Feed<A> {
    pub(super) fn new(settings: &Settings, sink: Sink<A>) -> Self {
        let mut feed = Self {
            sink,
            merge_window: settings.merge_window,
            resync: settings.resync,
            last_snapshot: None,
            resync_at: None,
            snapshots: 0,
        };
        feed.plan_resync();
        feed
    }

    /// A feed whose reports come out at the other end, for tests of sources.
    pub fn open(settings: &Settings) -> (Self, mpsc::UnboundedReceiver<Report<A>>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let sink = move |report| {
            let _ = sender.send(report);
        };
        (Self::new(settings, Arc::new(sink)), receiver)
    }

    /// Reports all there are. One that is not among them is gone.
    pub fn snapshot(&mut self, snapshot: impl Into<A>) {
        self.snapshots += 1;
        self.last_snapshot = Some(Instant::now());
        self.plan_resync();
        (self.sink)(Report::Snapshot(snapshot.into()));
    }

    /// Reports a failure that does not end the session. Where it is what came of asking anew, that is
    /// planned again: a registry whose answer is a failure is not asked without a pause.
    pub fn failure(&mut self, failure: Failure) {
        if self.resync_at.is_some_and(|at| at <= Instant::now()) {
            self.plan_resync();
        }
        (self.sink)(Report::Failure(failure));
    }

    /// Waits until another snapshot may come into force at once: a watch that brings many small
    /// changes gathers them until then and reports once. Cancel safe.
    pub async fn turn(&self) {
        if let Some(last) = self.last_snapshot {
            sleep_until(last + self.merge_window).await;
        }
    }

    /// Waits until all there is should be asked for anew, `resync` after the last snapshot or the last time
    /// that this failed, give or take a tenth; for ever with `resync: 0s`. Cancel safe.
    pub async fn resync(&self) {
        match self.resync_at {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Longest time that an answer may count; `None` with `resync: 0s`. For a source that plans by
    /// itself when it asks what.
    pub fn resync_every(&self) -> Option<Duration> {
        (!self.resync.is_zero()).then_some(self.resync)
    }

    /// Snapshots reported since it was made.
    pub fn snapshots(&self) -> u64 {
        self.snapshots
    }

    fn plan_resync(&mut self) {
        self.resync_at = (!self.resync.is_zero()).then(|| Instant::now() + jittered(self.resync));
    }
}

/// A time within a tenth of `time`, so that many nodes do not ask at once.
pub fn jittered(time: Duration) -> Duration {
    time.mul_f64(rand::rng().random_range(0.9..=1.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_fails_when_asked_anew_is_asked_again_later() {
        let settings = Settings {
            resync: Duration::from_millis(1),
            ..Settings::default()
        };
        let (mut feed, _reports) = Feed::<Snapshot>::open(&settings);
        let planned = feed.resync_at;
        feed.resync().await;
        feed.failure(Failure::new(Class::Missing, "gone"));
        assert!(feed.resync_at > planned);
    }

    #[test]
    fn other_failures_do_not_put_off_what_is_planned() {
        let (mut feed, _reports) = Feed::<Snapshot>::open(&Settings::default());
        let planned = feed.resync_at;
        feed.failure(Failure::new(Class::Missing, "gone"));
        assert!(planned.is_some() && feed.resync_at == planned);
    }
}
