//! One connection, from its first byte to its close.

use std::{convert::Infallible, future::poll_fn, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Bytes, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Notify, Semaphore, SemaphorePermit},
    time::{sleep, timeout},
};
use tracing::debug;

use super::{
    Limits, Reply, Site,
    line::{Line, Place},
    sniff::{Sniffed, sniff},
};
use crate::api::types::FaultCode;

/// Bytes of a request's line and headers.
const HEAD: usize = 16 << 10;
const HEADERS: usize = 64;
/// Bodies up to this many bytes are read without a permit.
const SMALL_BODY: u64 = 64 << 10;
/// Larger bodies in memory at a time; with [`Limits::body`] this bounds what strangers can make
/// the daemon hold.
const LARGE_BODIES: usize = 1;
/// For the first byte of a request that is refused whatever it says.
const REFUSE_TIME: Duration = Duration::from_secs(1);
/// For an answer to be read: it is in memory for so long.
const SEND_TIME: Duration = Duration::from_secs(10);
/// For the answer to leave, and for what the peer still sends to be read away.
const CLOSE_TIME: Duration = Duration::from_secs(5);
/// Bytes that are read away.
const SCRAP: u64 = 16 << 20;

pub(super) struct Server<S> {
    site: Arc<S>,
    limits: Limits,
    large_bodies: Semaphore,
    pub(super) line: Line,
}

impl<S: Site> Server<S> {
    pub(super) fn new(site: Arc<S>, limits: Limits) -> Self {
        Self {
            site,
            limits,
            large_bodies: Semaphore::new(LARGE_BODIES),
            line: Line::default(),
        }
    }

    pub(super) async fn connection(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send) {
        let Limits {
            header_time,
            body_time,
            answer_time,
            ..
        } = self.limits;
        let life = header_time * 2 + body_time + answer_time + SEND_TIME;
        let (place, answered) = (self.line.join(), Notify::new());
        let unread = async {
            answered.notified().await;
            sleep(SEND_TIME).await;
        };
        tokio::select! {
            ended = timeout(life, self.converse(stream, &place, &answered)) => {
                if ended.is_err() {
                    debug!("connection closed: it took longer than {life:?}");
                }
            }
            () = unread => debug!("connection closed: the answer was not read in {SEND_TIME:?}"),
            () = place.dismissed() => debug!("connection closed: it was silent, and others came"),
        }
    }

    async fn converse(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send,
        place: &Place<'_>,
        answered: &Notify,
    ) {
        let http = match timeout(self.limits.header_time, sniff(stream)).await {
            Ok(Ok(Sniffed::Http(http))) => http,
            Ok(Ok(Sniffed::Garbage(stream))) => {
                let words = format!("this is no HTTP request; {}", routes::<S>());
                let reply = Reply::fault(StatusCode::BAD_REQUEST, FaultCode::Invalid, words);
                return say_and_close(stream, reply).await;
            }
            Ok(Ok(Sniffed::Nothing) | Err(_)) | Err(_) => return,
        };
        let mut connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_time)
            .max_buf_size(HEAD)
            .max_headers(HEADERS)
            .keep_alive(false)
            // A peer may shut down its side once it has sent the request.
            .half_close(true)
            .serve_connection(
                TokioIo::new(http),
                service_fn(|request| Box::pin(self.request(request, place, answered))),
            );
        let served = poll_fn(|context| connection.poll_without_shutdown(context)).await;
        if let Err(error) = served {
            debug!(%error, "connection ended early");
            if error.is_timeout() {
                return;
            }
        }
        let close = close(connection.into_parts().io.into_inner());
        place.rejoin();
        close.await;
    }

    async fn request(
        &self,
        request: Request<Incoming>,
        place: &Place<'_>,
        answered: &Notify,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let reply = self.reply(request, place).await;
        let reply = reply.unwrap_or_else(|refusal| refusal);
        answered.notify_one();
        Ok(reply.into_response())
    }

    async fn reply(&self, request: Request<Incoming>, place: &Place<'_>) -> Result<Reply, Reply> {
        let (head, body) = request.into_parts();
        let path = match_route::<S>(&head.method, head.uri.path())?;
        let (body, _permit) = match head.method {
            Method::POST => self.read(body).await?,
            _ => (Bytes::new(), None),
        };
        place.leave();
        timeout(self.limits.answer_time, self.site.answer(path, body))
            .await
            .map_err(|_| {
                let words = format!("no answer within {:?}", self.limits.answer_time);
                Reply::fault(StatusCode::GATEWAY_TIMEOUT, FaultCode::Failed, words)
            })
    }

    /// The permit is to be held for as long as the body is in memory.
    async fn read(&self, body: Incoming) -> Result<(Bytes, Option<SemaphorePermit<'_>>), Reply> {
        let limit = self.limits.body_time;
        let read = async {
            let large = body.size_hint().upper().is_none_or(|n| n > SMALL_BODY);
            let permit = match large {
                true => self.large_bodies.acquire().await.ok(),
                false => None,
            };
            Ok((collect(body, self.limits.body).await?, permit))
        };
        timeout(limit, read).await.unwrap_or_else(|_| {
            let words = format!("the body was not read within {limit:?}");
            Err(Reply::fault(
                StatusCode::REQUEST_TIMEOUT,
                FaultCode::Invalid,
                words,
            ))
        })
    }
}

/// Tells a peer beyond the limit of connections to come back.
pub(super) async fn refuse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    connections: usize,
) {
    // An answer that comes before the request is no answer to an HTTP client.
    let _ = timeout(REFUSE_TIME, stream.read(&mut [0])).await;
    let words = format!("the daemon is busy ({connections} connections); try again");
    let reply = Reply::fault(StatusCode::SERVICE_UNAVAILABLE, FaultCode::Failed, words);
    say_and_close(stream, reply).await;
}

fn match_route<S: Site>(method: &Method, path: &str) -> Result<&'static str, Reply> {
    let Some((path, methods)) = S::ROUTES.iter().find(|(route, _)| *route == path) else {
        let words = format!("no such path; {}", routes::<S>());
        return Err(Reply::fault(
            StatusCode::NOT_FOUND,
            FaultCode::NotFound,
            words,
        ));
    };
    if methods.contains(method) {
        return Ok(path);
    }
    let allowed = names(methods);
    let words = format!("{path} takes {allowed} only");
    Err(Reply::fault(StatusCode::METHOD_NOT_ALLOWED, FaultCode::Invalid, words).allow(allowed))
}

fn routes<S: Site>() -> String {
    let routes: Vec<_> = S::ROUTES
        .iter()
        .map(|(path, methods)| format!("{} {path}", names(methods)))
        .collect();
    format!("served here: {}", routes.join("; "))
}

fn names(methods: &[Method]) -> String {
    let names: Vec<_> = methods.iter().map(Method::as_str).collect();
    names.join(", ")
}

/// Reads a body of up to `limit` bytes. A larger one is read away for a while, not kept: a peer
/// that is still sending would see a broken connection instead of the answer.
async fn collect(mut body: Incoming, limit: usize) -> Result<Bytes, Reply> {
    let mut keep = body.size_hint().lower() <= limit as u64;
    let mut seen = 0;
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let words = format!("the body ended early: {error}");
            Reply::fault(StatusCode::BAD_REQUEST, FaultCode::Invalid, words)
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        seen += data.len();
        keep &= seen <= limit;
        if keep {
            text.extend_from_slice(&data);
        } else {
            text = Vec::new();
        }
        if seen > limit * 4 {
            break;
        }
    }
    if keep {
        return Ok(text.into());
    }
    let words = format!("the body is larger than {limit} bytes");
    Err(Reply::fault(
        StatusCode::PAYLOAD_TOO_LARGE,
        FaultCode::Invalid,
        words,
    ))
}

async fn say_and_close(mut stream: impl AsyncRead + AsyncWrite + Unpin + Send, reply: Reply) {
    let bytes = reply.into_bytes();
    match timeout(CLOSE_TIME, stream.write_all(&bytes)).await {
        Ok(Ok(())) => close(stream).await,
        Ok(Err(error)) => debug!(%error, "connection ended before the answer was read"),
        Err(_) => {}
    }
}

/// Closing with unread input would reset the connection, and the peer might never see the answer: for a
/// while what still comes is read away.
async fn close(mut stream: impl AsyncRead + AsyncWrite + Unpin + Send) {
    let linger = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(SCRAP), &mut tokio::io::sink()).await?;
        std::io::Result::Ok(())
    };
    if let Ok(Err(error)) = timeout(CLOSE_TIME, linger).await {
        debug!(%error, "connection ended before the answer was read");
    }
}
