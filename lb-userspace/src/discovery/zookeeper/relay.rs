//! Between the client and its server: the client believes any length and any count that a server puts in
//! front of something, and would take that much memory; and it keeps all that comes until somebody asks.

use std::{
    collections::HashSet,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, copy},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::Instant,
};

use super::PATIENCE;
use crate::discovery::{resolve, rules::MAX_INSTANCES};

/// Longest packet of a server, in bytes: the names of as many instances as a source may have.
pub const MAX_PACKET: u32 = 16 << 20;
/// All answers to what is asked at once, in bytes.
const MAX_ANSWERS: usize = 32 << 20;
/// Events that nobody took yet, in bytes.
const MAX_EVENTS: usize = 32 << 20;

/// What is in front of each answer and event: which request it answers, a transaction, an error.
const HEAD: usize = 16;
/// Of an event, beside its path: head, type, state, and the path's length.
const EVENT: usize = HEAD + 12;
/// The request that an event answers.
const NO_REQUEST: i32 = -1;
/// `GetChildren`, the one request of lbd's that is answered by a list.
const LIST: i32 = 8;

/// A way to one server for one connection. Ends when dropped.
pub(super) struct Relay {
    pub(super) address: SocketAddr,
    seen: Arc<Seen>,
    task: AbortHandle,
}

/// What passed.
#[derive(Default)]
pub struct Seen {
    fault: OnceLock<String>,
    /// The requests that are to be answered by a list.
    lists: Mutex<HashSet<i32>>,
    /// Bytes of answers since the session began to ask.
    answers: AtomicUsize,
    /// Bytes of events that the session did not take yet.
    events: AtomicUsize,
}

impl Relay {
    /// Connects to `server`, a name or an address with a port.
    pub(super) async fn begin(server: &str) -> io::Result<Self> {
        let far = connect(server).await?;
        far.set_nodelay(true)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Seen::default());
        let told = seen.clone();
        let task = tokio::spawn(async move {
            let Ok((near, _)) = listener.accept().await else {
                return;
            };
            // One is all that is served.
            drop(listener);
            let _ = near.set_nodelay(true);
            let (from_client, mut to_client) = near.into_split();
            let (from_server, mut to_server) = far.into_split();
            let mut from_client = BufReader::new(from_client);
            let mut from_server = BufReader::new(from_server);
            let ended = tokio::select! {
                ended = told.requests(&mut from_client, &mut to_server) => ended,
                ended = told.answers(&mut from_server, &mut to_client) => ended,
            };
            if let Err(error) = ended
                && error.kind() == io::ErrorKind::InvalidData
            {
                let _ = told.fault.set(error.to_string());
            }
        });
        Ok(Self {
            address,
            seen,
            task: task.abort_handle(),
        })
    }

    /// What the server did wrong, if that ended it.
    pub(super) fn fault(&self) -> Option<&str> {
        self.seen.fault.get().map(String::as_str)
    }

    /// All answers up to now were taken.
    pub(super) fn ask(&self) {
        self.seen.answers.store(0, Ordering::Relaxed);
    }

    /// An event with a path of this length, in bytes and as the server knows it, was taken.
    pub(super) fn taken(&self, path: usize) {
        let less = |events: usize| Some(events.saturating_sub(EVENT + path));
        let events = &self.seen.events;
        let _ = events.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connect(server: &str) -> io::Result<TcpStream> {
    let parts = server.rsplit_once(':');
    let parts = parts.and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = parts.ok_or(io::ErrorKind::InvalidInput)?;
    let addresses = resolve::addresses(host, port).await?;
    let connected = resolve::connect(&addresses, Instant::now() + PATIENCE).await;
    connected.map_err(|failed| match failed {
        Some((_, error)) => error,
        None => fault(format!("`{host}` has no address")),
    })
}

fn fault(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl Seen {
    /// Hands packets of the client on, and takes down what they ask for.
    async fn requests(
        &self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        let mut is_first = true;
        loop {
            let length = from.read_u32().await?;
            let mut head = [0; 8];
            let head = &mut head[..8.min(length as usize)];
            from.read_exact(head).await?;
            // The first one asks for a session, and has no number.
            if let (false, [a, b, c, d, kind @ ..]) = (is_first, &*head)
                && *kind == LIST.to_be_bytes()
            {
                let request = i32::from_be_bytes([*a, *b, *c, *d]);
                self.lists().insert(request);
            }
            is_first = false;
            to.write_u32(length).await?;
            to.write_all(head).await?;
            let rest = u64::from(length) - head.len() as u64;
            if copy(&mut from.take(rest), to).await? < rest {
                return Ok(());
            }
            to.flush().await?;
        }
    }

    /// Hands packets of the server on until one is too large, in itself or with others, or the end.
    ///
    /// # Errors
    /// What the server did wrong (`InvalidData`), or one of the sides fails.
    pub async fn answers(
        &self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        let mut is_first = true;
        loop {
            let length = from.read_u32().await?;
            if length > MAX_PACKET {
                let mib = MAX_PACKET >> 20;
                return Err(fault(format!(
                    "a packet longer than {mib} MiB; does ZooKeeper answer there?"
                )));
            }
            // With the count that a list begins with.
            let mut head = [0; HEAD + 4];
            let head = &mut head[..(HEAD + 4).min(length as usize)];
            from.read_exact(head).await?;
            let rest = length as usize - head.len();
            match std::mem::take(&mut is_first) {
                true => self.admit(length as usize)?,
                false => self.check(head, rest, length as usize)?,
            }
            to.write_u32(length).await?;
            to.write_all(head).await?;
            let rest = rest as u64;
            if copy(&mut from.take(rest), to).await? < rest {
                return Ok(());
            }
            to.flush().await?;
        }
    }

    /// What begins with `head` and has `rest` bytes behind it.
    fn check(&self, head: &[u8], rest: usize, length: usize) -> io::Result<()> {
        let Some(request) = head.first_chunk() else {
            return self.admit(length);
        };
        let request = i32::from_be_bytes(*request);
        if request == NO_REQUEST {
            let events = self.events.fetch_add(length, Ordering::Relaxed) + length;
            return match events > MAX_EVENTS {
                true => Err(fault(format!(
                    "more than {} MiB of events at once",
                    MAX_EVENTS >> 20
                ))),
                false => Ok(()),
            };
        }
        let is_list = self.lists().remove(&request);
        if let (true, Some(count)) = (is_list, head.last_chunk().filter(|_| head.len() > HEAD)) {
            let count = i32::from_be_bytes(*count);
            let count = usize::try_from(count).unwrap_or(0);
            // In front of each name is its length.
            if count > rest / 4 {
                return Err(fault(format!(
                    "a list of {count} nodes in {length} bytes; does ZooKeeper answer there?"
                )));
            }
            if count > MAX_INSTANCES {
                return Err(fault(format!(
                    "a list of {count} nodes; a source may have {MAX_INSTANCES}"
                )));
            }
        }
        self.admit(length)
    }

    /// Counts an answer of so many bytes.
    fn admit(&self, length: usize) -> io::Result<()> {
        let answers = self.answers.fetch_add(length, Ordering::Relaxed) + length;
        match answers > MAX_ANSWERS {
            true => Err(fault(format!(
                "the nodes that are read at once hold more than {} MiB; instances are shorter",
                MAX_ANSWERS >> 20
            ))),
            false => Ok(()),
        }
    }

    fn lists(&self) -> std::sync::MutexGuard<'_, HashSet<i32>> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(body: &[u8]) -> Vec<u8> {
        [&(body.len() as u32).to_be_bytes()[..], body].concat()
    }

    /// An answer to a request, with what is behind its head.
    fn answer(request: i32, body: &[u8]) -> Vec<u8> {
        packet(&[&request.to_be_bytes()[..], &[0; 12], body].concat())
    }

    /// What comes through of a server's packets, and how it ended, when request 7 asked for a list.
    async fn through(packets: &[Vec<u8>]) -> (usize, io::Error) {
        let seen = Seen::default();
        let asked = [packet(&[0; 44]), packet(&[0, 0, 0, 7, 0, 0, 0, 8, 0])].concat();
        let mut sent = Vec::new();
        let end = seen.requests(&mut &asked[..], &mut sent).await;
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(sent, asked);
        let all = [packet(&[1; 37]), packets.concat()].concat();
        let mut out = Vec::new();
        let end = seen.answers(&mut &all[..], &mut out).await.unwrap_err();
        assert!(all.starts_with(&out));
        (out.len().saturating_sub(41), end)
    }

    #[tokio::test]
    async fn packets_pass_up_to_a_length() {
        let small = [
            packet(b"abc"),
            packet(b""),
            answer(1, b"data"),
            packet(b"d"),
        ];
        let (passed, end) = through(&small).await;
        assert_eq!(passed, small.concat().len());
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);

        let seen = Seen::default();
        let mut out = Vec::new();
        let half = [vec![0, 0, 0, 40], vec![1; 30]].concat();
        seen.answers(&mut &half[..], &mut out).await.unwrap();
        assert_eq!(out, half);

        for long in [[1, 0, 0, 1], [0xff; 4]] {
            let (passed, end) = through(&[long.to_vec()]).await;
            assert_eq!((passed, end.kind()), (0, io::ErrorKind::InvalidData));
        }
    }

    #[tokio::test]
    async fn a_list_has_no_more_names_than_fit() {
        let list = |count: i32, rest: usize| {
            answer(7, &[&count.to_be_bytes()[..], &vec![0; rest]].concat())
        };
        for good in [list(0, 0), list(-1, 0), list(3, 12), list(100_000, 400_000)] {
            let (passed, end) = through(std::slice::from_ref(&good)).await;
            assert_eq!(passed, good.len());
            assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        }
        for (bad, words) in [
            (list(i32::MAX, 0), "2147483647 nodes in 20 bytes"),
            (list(4, 15), "4 nodes in 35 bytes"),
            (list(100_001, 400_004), "a source may have 100000"),
        ] {
            let (passed, end) = through(&[bad]).await;
            assert_eq!(passed, 0);
            assert!(end.to_string().contains(words), "{end}");
        }
        // What is no list may begin with any number: the length of a node's data.
        let data = answer(6, &[0, 1, 0, 0]);
        assert_eq!(through(std::slice::from_ref(&data)).await.0, data.len());
    }

    #[tokio::test]
    async fn what_nobody_takes_has_a_bound() {
        let large = answer(6, &vec![0; 15 << 20]);
        let (passed, end) = through(&[large.clone(), large.clone(), large.clone()]).await;
        assert_eq!(passed, 2 * large.len());
        assert!(end.to_string().contains("32 MiB"), "{end}");

        let event = answer(NO_REQUEST, &vec![0; 15 << 20]);
        let (passed, end) = through(&[event.clone(), event.clone(), event.clone()]).await;
        assert_eq!(passed, 2 * event.len());
        assert!(end.to_string().contains("events"), "{end}");
    }
}
