use anyhow::Context;
use tokio::signal::unix::{self, SignalKind};
use tracing::warn;

pub(super) enum Signal {
    Reload,
    /// With the signal's name.
    Stop(&'static str),
}

/// Signals from now on; none of them ends the process by itself any more.
pub(super) struct Signals {
    hangup: unix::Signal,
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

impl Signals {
    pub(super) fn new() -> anyhow::Result<Self> {
        let listen = |kind| unix::signal(kind).context("cannot listen for signals");
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Signal::Stop("SIGINT"),
            _ = self.hangup.recv() => Signal::Reload,
        }
    }

    /// For an operator who does not want to wait for an orderly end.
    pub(super) fn exit_on_the_next(mut self) {
        tokio::spawn(async move {
            loop {
                if let Signal::Stop(name) = self.next().await {
                    warn!(signal = name, "second signal: exiting at once");
                    std::process::exit(1);
                }
            }
        });
    }
}
