use std::{io, str::FromStr};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use crate::datapath::kernel::Level;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    /// One JSON object a line
    Json,
}

/// `off` or a level.
#[derive(Clone, Copy)]
pub(super) struct DatapathLog(pub(super) Option<Level>);

impl FromStr for DatapathLog {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "off" => Ok(Self(None)),
            level => level.parse().map(|level| Self(Some(level))),
        }
    }
}

/// Logs to stderr, coloured on a terminal only.
pub(super) fn start(level: &str, format: LogFormat) -> anyhow::Result<()> {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(level)?)
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()));
    match format {
        LogFormat::Text => subscriber.with_target(false).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
    Ok(())
}
