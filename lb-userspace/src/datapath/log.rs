//! What the programs log, for those who look for a fault: off unless asked for.

use std::{os::fd::AsRawFd, str::FromStr, thread};

use anyhow::{Context, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};

/// How much the programs log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Level(log::Level);

impl Level {
    /// Reads `LBD_DATAPATH_LOG`, for programs without a command line of their own.
    ///
    /// # Errors
    /// The variable is set to a word that is no level.
    pub fn from_env() -> Result<Option<Self>> {
        match std::env::var("LBD_DATAPATH_LOG") {
            Ok(word) if !word.is_empty() && word != "off" => {
                let level = word.parse().map_err(anyhow::Error::msg);
                level.map(Some).context("LBD_DATAPATH_LOG")
            }
            _ => Ok(None),
        }
    }

    /// As `AYA_LOG_LEVEL` in the object counts: 1 for errors to 5 for everything.
    pub(super) fn number(self) -> &'static u8 {
        &[1, 2, 3, 4, 5][self.0 as usize - 1]
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(word: &str) -> std::result::Result<Self, String> {
        let level = word.parse().map(Self);
        level.map_err(|_| format!("`{word}`: expected error, warn, info, debug or trace"))
    }
}

/// Passes the programs' records on to `tracing` from a thread of its own, as long as the process
/// lives.
pub(super) fn follow(ebpf: &mut Ebpf) -> Result<()> {
    let mut logger = EbpfLogger::init_with_logger(ebpf, ToTracing)
        .context("the object was built without logs")?;
    thread::Builder::new()
        .name("datapath-log".to_owned())
        .spawn(move || {
            loop {
                let mut wait = libc::pollfd {
                    fd: logger.as_raw_fd(),
                    events: libc::POLLIN,
                    revents: 0,
                };
                // SAFETY: one `pollfd`, whose descriptor `logger` keeps open.
                unsafe { libc::poll(&mut wait, 1, -1) };
                logger.flush();
            }
        })
        .context("starting the thread that reads the programs' logs")?;
    Ok(())
}

struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let (target, text) = (record.target(), record.args());
        match record.level() {
            log::Level::Error => tracing::error!(target: "datapath", "{target}: {text}"),
            log::Level::Warn => tracing::warn!(target: "datapath", "{target}: {text}"),
            log::Level::Info => tracing::info!(target: "datapath", "{target}: {text}"),
            log::Level::Debug => tracing::debug!(target: "datapath", "{target}: {text}"),
            log::Level::Trace => tracing::trace!(target: "datapath", "{target}: {text}"),
        }
    }

    fn flush(&self) {}
}
