//! What systemd hears of the daemon's life, by sd_notify(3). Where no service manager listens,
//! nobody hears anything, and nothing is asked for its sake.

use std::{env, future::Future, sync::Arc, time::Duration};

use sd_notify::NotifyState;
use tokio::{
    sync::Mutex,
    task,
    time::{self, MissedTickBehavior},
};
use tracing::warn;

use crate::api::{
    server::Service,
    types::{Fault, FaultCode, Request, Response, StatusItem},
};

/// The status line is never older than this.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// Bytes of problems in the status line; `lbctl status` has all of them.
const PROBLEMS_SHOWN: usize = 400;

type Tell = dyn Fn(&[NotifyState<'_>]) + Send + Sync;

/// `S` answers for the controller.
pub(super) struct ServiceManager<S> {
    daemon: S,
    /// `None` if nobody listens.
    tell: Option<Box<Tell>>,
    /// Without a sign of life for this long the service manager ends the daemon.
    watchdog: Option<Duration>,
    /// Held while a reload is announced and not yet done: service managers count one at a time.
    reloading: Mutex<()>,
}

/// What was told last.
#[derive(Default)]
struct Told {
    ready: bool,
    status: String,
}

impl<S: Service> ServiceManager<S> {
    /// The one that the environment names, if any.
    pub(super) fn new(daemon: S) -> Self {
        let listens = env::var_os("NOTIFY_SOCKET").is_some();
        Self {
            daemon,
            tell: listens.then(|| Box::new(notify) as Box<Tell>),
            watchdog: sd_notify::watchdog_enabled().filter(|time| !time.is_zero()),
            reloading: Mutex::default(),
        }
    }

    /// Tells that the daemon serves, then how it is, and that it lives, for as long as it does.
    pub(super) async fn follow(self: Arc<Self>) {
        let half = self.watchdog.map(|watchdog| watchdog / 2);
        let mut ticks = time::interval(half.unwrap_or(STATUS_EVERY).min(STATUS_EVERY));
        // A controller that was busy has not died twice.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = Told::default();
        while self.tell.is_some() {
            ticks.tick().await;
            self.give_sign(&mut told).await;
        }
    }

    /// Every sign of life is an answer of the controller's: one that hangs gives none, and neither
    /// does one that is gone. Its first answer comes after its first pass over the kernel, which it
    /// tries again if it failed: that is told, and no reason to begin anew.
    async fn give_sign(&self, told: &mut Told) {
        let Ok(status) = self.status().await else {
            return;
        };
        let text = describe(&status);
        let mut states = vec![match told.ready {
            false => NotifyState::Ready,
            true => NotifyState::Watchdog,
        }];
        if text != told.status {
            states.push(NotifyState::Status(&text));
        }
        self.say(&states);
        *told = Told {
            ready: true,
            status: text,
        };
    }

    /// Has the config file read again. A reload that fails is over as well: the daemon goes on with
    /// what it had, and says so.
    pub(super) async fn reload(self: Arc<Self>) {
        let _turn = self.reloading.lock().await;
        self.say_reloading();
        let result = self.daemon.call(Request::Reload).await;
        if self.tell.is_none() {
            return;
        }
        let status = self.status().await.map(|status| describe(&status));
        let text = match (result, status) {
            (Ok(_), Ok(status)) => status,
            (Err(fault), Ok(status)) => {
                format!("reload failed: {}; {status}", line(&fault.message))
            }
            (_, Err(fault)) => line(&fault.message),
        };
        self.say(&[NotifyState::Ready, NotifyState::Status(&text)]);
    }

    pub(super) fn stopping(&self) {
        let text = "stopping; the data path keeps running";
        self.say(&[NotifyState::Stopping, NotifyState::Status(text)]);
    }

    /// In one datagram with the time, which tells systemd that this is its own signal's reload
    /// (systemd.service(5), `Type=notify-reload`).
    fn say_reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.say(&[NotifyState::Reloading, now]),
            Err(error) => warn!(%error, "no monotonic clock: the reload is not announced"),
        }
    }

    fn say(&self, states: &[NotifyState<'_>]) {
        if let Some(tell) = &self.tell {
            tell(states);
        }
    }

    fn status(&self) -> impl Future<Output = Result<StatusItem, Fault>> + Send {
        let answer = self.daemon.call(Request::Status);
        async {
            match answer.await? {
                Response::Status(status) => Ok(status),
                _ => Err(Fault {
                    code: FaultCode::Failed,
                    message: "the controller answered something else".to_owned(),
                }),
            }
        }
    }
}

/// Waits for a service manager that does not read, if it must: other tasks go on meanwhile.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = task::block_in_place(|| sd_notify::notify(states)) {
        warn!(%error, "the service manager is not told");
    }
}

/// The status line: what is served, and what is wrong.
fn describe(status: &StatusItem) -> String {
    let StatusItem {
        ready,
        problems,
        services,
        backends,
        healthy_backends,
        ..
    } = status;
    let counts =
        format!("services: {services}, healthy backends: {healthy_backends} of {backends}");
    let state = if *ready { "degraded" } else { "not ready" };
    if problems.is_empty() {
        return if *ready {
            counts
        } else {
            format!("{counts}; {state}")
        };
    }
    let told = line(&problems.join("; "));
    if told.len() <= PROBLEMS_SHOWN {
        return format!("{counts}; {state}: {told}");
    }
    let shown = &told[..told.floor_char_boundary(PROBLEMS_SHOWN)];
    format!("{counts}; {state}: {shown}… (`lbctl status` tells all)")
}

/// Status texts are one line each.
fn line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ")
}

#[cfg(test)]
mod tests;
