//! Everything that can happen to the controller, as one stream.

use std::{collections::HashMap, future::pending, net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until},
};

use super::{changes::Change, view::View, world::Layers};
use crate::{
    api::types::{Fault, Response},
    config::Parsed,
    datapath::{FlowScan, Route},
    health::Report,
    reconcile::Tables,
};

/// Changes of the network come in bursts; this long after the first, all are handled as one.
const SETTLE: Duration = Duration::from_millis(50);

const VERIFY_EVERY: Duration = Duration::from_secs(10);

/// Reports taken in before one pass over the kernel.
const BATCH: usize = 4096;

pub(super) type Decision = Box<dyn FnOnce(&Layers) -> Result<Change, Fault> + Send>;

/// What a [`super::Handle`] sends.
pub(super) enum Message {
    Change {
        decide: Decision,
        reply: oneshot::Sender<Result<Response, Fault>>,
    },
    /// With the config file as it was read.
    Reload {
        read: Box<Result<Parsed, Fault>>,
        reply: oneshot::Sender<Result<Response, Fault>>,
    },
    View {
        reply: oneshot::Sender<View>,
    },
    /// A view, and the seconds of each pass since the last such request.
    Snapshot {
        reply: oneshot::Sender<(View, Vec<f64>)>,
    },
    Stop {
        reply: oneshot::Sender<()>,
    },
}

/// One pass over the flow tables, begun as the `number`th.
pub(super) struct Scanned {
    pub number: u64,
    pub took: Duration,
    pub result: anyhow::Result<FlowScan>,
}

/// How the node reaches addresses now.
pub(super) struct Routed {
    pub took: Duration,
    pub routes: HashMap<IpAddr, Route>,
}

pub(super) enum Input {
    Reports(Vec<Report>),
    Message(Message),
    /// Every handle is gone.
    Abandoned,
    NetworkChanged,
    /// `None` if the pass panicked.
    Scanned(Option<Scanned>),
    Routed(Option<Routed>),
    /// `None` if reading panicked.
    TablesRead(Option<anyhow::Result<Tables>>),
    /// What is wrong in the state directory; `None` if looking panicked.
    StoreRead(Option<Vec<String>>),
    RoutesDue,
    ScanDue,
    VerifyDue,
    RetryDue,
    DeadlineDue,
    /// Sources have other sets in force.
    FoundDue,
}

pub(super) struct Inputs {
    pub reports: mpsc::UnboundedReceiver<Report>,
    pub messages: mpsc::UnboundedReceiver<Message>,
    pub network: Arc<Notify>,
    pub found: Arc<Notify>,
    pub scan: Option<JoinHandle<Scanned>>,
    pub routes: Option<JoinHandle<Routed>>,
    pub tables: Option<JoinHandle<anyhow::Result<Tables>>>,
    pub store: Option<JoinHandle<Vec<String>>>,
    pub routes_due: Option<Instant>,
    pub found_due: Option<Instant>,
    /// When sets that were found may be taken in again.
    pub found_rest: Instant,
    /// When routes may be looked up again.
    pub routes_rest: Instant,
    pub scan_due: Instant,
    pub retry_due: Option<Instant>,
    /// When the wall clock is to be looked at for the sake of drains.
    pub deadline_due: Option<Instant>,
    settled: Option<Instant>,
    verify: Interval,
}

impl Inputs {
    pub(super) fn new(
        reports: mpsc::UnboundedReceiver<Report>,
        messages: mpsc::UnboundedReceiver<Message>,
        network: Arc<Notify>,
        found: Arc<Notify>,
    ) -> Self {
        let now = Instant::now();
        let mut verify = interval_at(now + VERIFY_EVERY, VERIFY_EVERY);
        verify.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            reports,
            messages,
            network,
            found,
            scan: None,
            routes: None,
            tables: None,
            store: None,
            routes_due: None,
            found_due: None,
            found_rest: now,
            routes_rest: now,
            scan_due: now,
            retry_due: None,
            deadline_due: None,
            settled: None,
            verify,
        }
    }

    /// Those that have come, for who waits for something else than the next input.
    pub(super) fn reports_so_far(&mut self) -> Vec<Report> {
        std::iter::from_fn(|| self.reports.try_recv().ok())
            .take(BATCH)
            .collect()
    }

    /// Reports come first: an eviction waits for nothing.
    pub(super) async fn next(&mut self) -> Input {
        let mut reports = Vec::new();
        loop {
            tokio::select! {
                biased;
                1.. = self.reports.recv_many(&mut reports, BATCH) => {
                    return Input::Reports(reports);
                }
                message = self.messages.recv() => {
                    return message.map_or(Input::Abandoned, Input::Message);
                }
                () = self.network.notified() => {
                    self.settled.get_or_insert_with(|| Instant::now() + SETTLE);
                }
                () = at(self.settled) => {
                    self.settled = None;
                    return Input::NetworkChanged;
                }
                () = self.found.notified() => {
                    self.found_due = Some(self.found_rest);
                }
                () = at(self.found_due) => {
                    self.found_due = None;
                    return Input::FoundDue;
                }
                () = at(self.routes_due), if self.routes.is_none() => {
                    self.routes_due = None;
                    return Input::RoutesDue;
                }
                scanned = joined(&mut self.scan) => {
                    self.scan = None;
                    return Input::Scanned(scanned);
                }
                routes = joined(&mut self.routes) => {
                    self.routes = None;
                    return Input::Routed(routes);
                }
                tables = joined(&mut self.tables) => {
                    self.tables = None;
                    return Input::TablesRead(tables);
                }
                problems = joined(&mut self.store) => {
                    self.store = None;
                    return Input::StoreRead(problems);
                }
                () = at(self.retry_due) => {
                    self.retry_due = None;
                    return Input::RetryDue;
                }
                () = at(self.deadline_due) => {
                    self.deadline_due = None;
                    return Input::DeadlineDue;
                }
                () = sleep_until(self.scan_due), if self.scan.is_none() => {
                    return Input::ScanDue;
                }
                _ = self.verify.tick(), if self.tables.is_none() => return Input::VerifyDue,
            }
        }
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

/// The task's result, `None` if it panicked; never, without a task.
async fn joined<T>(task: &mut Option<JoinHandle<T>>) -> Option<T> {
    match task {
        Some(task) => task.await.ok(),
        None => pending().await,
    }
}
