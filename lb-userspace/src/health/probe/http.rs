//! `GET path` over a fresh connection, judged by its status alone.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::future::{Either, select};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request,
    body::{Body, Bytes, Incoming},
    client::conn::http1,
    header::{CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{Kind, Outcome, from_io, outcome};

/// Of status line and headers together.
const MAX_HEAD: usize = 16 * 1024;

/// How much of the body is taken, and for how long, so that an ordinary server can finish its
/// answer without an error in its log.
const BODY_BYTES: usize = 64 * 1024;
const BODY_TIME: Duration = Duration::from_millis(100);

pub(super) enum Failure {
    /// No status by the deadline.
    Late,
    Broken(hyper::Error),
}

/// Fails if `path` or `host` cannot stand in a request.
pub(super) fn request(
    path: &str,
    host: Option<&str>,
    address: SocketAddr,
) -> Result<Request<Empty<Bytes>>, Outcome> {
    // Without a zone: `fe80::1%2` means something on this node only.
    let authority = SocketAddr::new(address.ip(), address.port()).to_string();
    Request::get(path)
        .header(HOST, host.unwrap_or(&authority))
        .header(USER_AGENT, concat!("lbd/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| outcome(Kind::Error, format!("cannot ask for `{path}`: {error}")))
}

/// The status that `request` is answered with.
pub(super) async fn status(
    stream: TcpStream,
    request: Request<Empty<Bytes>>,
    deadline: Instant,
) -> Result<u16, Failure> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(Failure::Broken)?;

    let exchange = Box::pin(async move {
        let answer = timeout_at(deadline, sender.send_request(request)).await;
        let answer = answer
            .map_err(|_| Failure::Late)?
            .map_err(Failure::Broken)?;
        let status = answer.status().as_u16();
        let patience = deadline.min(Instant::now() + BODY_TIME);
        // The verdict is known; how the body ends changes nothing.
        let _ = timeout_at(patience, discard(answer.into_body())).await;
        Ok(status)
    });
    match select(exchange, Box::pin(connection)).await {
        Either::Left((status, _)) => status,
        // The connection hands its error to whoever waits for the answer.
        Either::Right((_, exchange)) => exchange.await,
    }
}

async fn discard(mut body: Incoming) {
    let mut taken = 0;
    while taken < BODY_BYTES && !body.is_end_stream() {
        let Some(Ok(frame)) = body.frame().await else {
            return;
        };
        taken += frame.data_ref().map_or(0, Bytes::len);
    }
}

pub(super) fn judge(status: u16, expected: &[u16]) -> Outcome {
    if expected.contains(&status) {
        return outcome(Kind::Success, format!("HTTP status {status}"));
    }
    let expected: Vec<String> = expected.iter().map(u16::to_string).collect();
    let expected = match expected.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => "nothing".to_owned(),
    };
    outcome(
        Kind::Status,
        format!("HTTP status {status}, expected {expected}"),
    )
}

pub(super) fn from_hyper(error: &hyper::Error) -> Outcome {
    let cause = std::error::Error::source(error).and_then(|e| e.downcast_ref::<io::Error>());
    if let Some(cause) = cause {
        return from_io(cause);
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return outcome(Kind::Error, "connection closed without a complete answer");
    }
    outcome(Kind::Error, format!("not HTTP: {error}"))
}
