//! One probe of one backend, over ordinary sockets: it takes the node's own routes, which are the
//! data path's.

mod http;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, io, net::SocketAddr, time::Duration};

use tokio::{net::TcpStream, time::Instant};

use crate::model::{Health, HealthCheck, duration_text};

/// What a probe found, as a kind and in words for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Outcome {
    pub(super) kind: Kind,
    pub(super) words: Cow<'static, str>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Success,
    Refused,
    Timeout,
    Unreachable,
    /// An HTTP status that was not expected.
    Status,
    Error,
    /// This node could not send the probe: no file descriptor, port or memory was left.
    Local,
}

impl Kind {
    /// Label of the metric.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Status => "status",
            Self::Error | Self::Local => "error",
        }
    }

    /// `None` if nothing was learnt about the backend: the node's own shortage must not evict
    /// every backend at once.
    pub(super) fn success(self) -> Option<bool> {
        match self {
            Self::Success => Some(true),
            Self::Local => None,
            Self::Refused | Self::Timeout | Self::Unreachable | Self::Status | Self::Error => {
                Some(false)
            }
        }
    }
}

/// Probes `backend` as `health` says, within `health.timeout`.
pub(super) async fn run(health: &Health, backend: SocketAddr) -> Outcome {
    let mut address = backend;
    address.set_port(health.port.unwrap_or(backend.port()));
    let deadline = Instant::now() + health.timeout.min(LONGEST_TIMEOUT);

    let stream = match tokio::time::timeout_at(deadline, connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return from_io(&error),
        Err(_) => return no_answer("", health.timeout),
    };
    match &health.check {
        HealthCheck::None | HealthCheck::Tcp => outcome(Kind::Success, "connection accepted"),
        HealthCheck::Http {
            path,
            host,
            expect_status,
        } => {
            let request = match http::request(path, host.as_deref(), address) {
                Ok(request) => request,
                Err(outcome) => return outcome,
            };
            match http::status(stream, request, deadline).await {
                Ok(status) => http::judge(status, expect_status),
                Err(http::Failure::Late) => no_answer("connected, but ", health.timeout),
                Err(http::Failure::Broken(error)) => http::from_hyper(&error),
            }
        }
    }
}

/// Keeps `Instant` from overflowing, whatever was configured.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60 * 60);

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    prepare(&stream, address)?;
    Ok(stream)
}

fn prepare(stream: &TcpStream, address: SocketAddr) -> io::Result<()> {
    // Closing by RST leaves no TIME_WAIT: 20,000 backends every 5 s would pile up 240,000.
    stream.set_zero_linger()?;
    if stream.local_addr()? == address {
        // Nobody listens, and TCP's simultaneous open met itself: possible for a port of this
        // node within the ephemeral range.
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(())
}

fn from_io(error: &io::Error) -> Outcome {
    use io::ErrorKind::*;
    if let Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL) =
        error.raw_os_error()
    {
        return outcome(Kind::Local, format!("this node cannot probe: {error}"));
    }
    match error.kind() {
        ConnectionRefused => outcome(Kind::Refused, "connection refused"),
        HostUnreachable => outcome(Kind::Unreachable, "no route to host"),
        NetworkUnreachable => outcome(Kind::Unreachable, "network unreachable"),
        NetworkDown => outcome(Kind::Unreachable, "network is down"),
        TimedOut => outcome(Kind::Timeout, "connection timed out"),
        ConnectionReset | BrokenPipe => outcome(Kind::Error, "connection reset"),
        _ => outcome(Kind::Error, error.to_string()),
    }
}

fn no_answer(prefix: &str, timeout: Duration) -> Outcome {
    let timeout = duration_text::format(timeout);
    outcome(Kind::Timeout, format!("{prefix}no answer within {timeout}"))
}

fn outcome(kind: Kind, words: impl Into<Cow<'static, str>>) -> Outcome {
    Outcome {
        kind,
        words: words.into(),
    }
}
