//! What stands on the daemon's sockets before any request is understood: whoever sends whatever bytes
//! gets one whole answer of HTTP, or none, and the site is shown only bodies that are in their limits.

use std::{future::pending, io, sync::Arc, time::Duration};

use hyper::{Method, StatusCode, body::Bytes};
use lb_userspace::http::{Accept, Limits, Reply, Route, Site, serve};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::Mutex,
};

/// Of a body.
const LIMIT: usize = 256;

/// All an input can be answered with fits.
const ROOM: usize = 1 << 16;

/// Nobody waits, as the client has said all that it will: whoever does waits for ever.
const LONG: Duration = Duration::from_secs(120);

const LIMITS: Limits = Limits {
    connections: 4,
    body: LIMIT,
    header_time: LONG,
    body_time: LONG,
    answer_time: LONG,
};

pub fn run(bytes: &[u8]) -> bool {
    let answer = super::wait(async {
        let (mut near, far) = duplex(ROOM.max(bytes.len()));
        near.write_all(bytes).await.expect("there is room");
        near.shutdown().await.expect("it is open");
        let serving = serve(One(Mutex::new(Some(far))), Arc::new(Echo), LIMITS);
        let mut answer = Vec::new();
        let read = async { tokio::time::timeout(LONG / 2, near.read_to_end(&mut answer)).await };
        tokio::select! {
            () = serving => unreachable!("it serves until it is dropped"),
            read = read => drop(read.expect("the connection ends")),
        }
        answer
    });
    if answer.is_empty() {
        return false;
    }
    // The sizes of header and body that are refused unread are hyper's to answer, with no body.
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, body) = answer.split_at(end.expect("a whole head") + 4);
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    assert!(head.starts_with("http/1."), "{head}");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    if let Some(length) = length {
        let length: usize = length.parse().expect("a length");
        // An answer to HEAD, which no path takes, has none.
        assert!(body.is_empty() || body.len() == length, "{head}");
    }
    head[9..].starts_with("200")
}

/// One connection, and no other.
struct One(Mutex<Option<DuplexStream>>);

impl Accept for One {
    type Stream = DuplexStream;

    async fn accept(&self) -> io::Result<DuplexStream> {
        match self.0.lock().await.take() {
            Some(stream) => Ok(stream),
            None => pending().await,
        }
    }
}

struct Echo;

impl Site for Echo {
    const ROUTES: &'static [Route] = &[("/call", &[Method::POST]), ("/look", &[Method::GET])];

    async fn answer(&self, path: &str, body: Bytes) -> Reply {
        assert!(body.len() <= LIMIT);
        assert!(path == "/call" || body.is_empty());
        Reply::text(StatusCode::OK, body)
    }
}
