//! HTTP/1 for the daemon's own few paths, made to survive whoever connects: every wait has an
//! end, every buffer a limit, and whatever is refused is refused in words.
//!
//! One request per connection: nobody can hold a connection open for free, and the callers
//! (lbctl, a scrape every few seconds) lose nothing by it.

mod connection;
mod line;
mod reply;
mod sniff;

use std::{future::Future, io, sync::Arc, time::Duration};

use hyper::{Method, body::Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};
use tracing::warn;

pub use reply::Reply;

use connection::Server;

/// Path and the methods it takes.
pub type Route = (&'static str, &'static [Method]);

/// What is served: the routes, and the answers to requests that matched one.
pub trait Site: Send + Sync + 'static {
    const ROUTES: &'static [Route];
    /// Where strangers may connect: if all places are taken, a new connection gets that of whoever
    /// was silent for longest.
    const SILENT_GIVE_WAY: bool = false;

    /// `path` is one of [`Site::ROUTES`]; `body` is empty unless the method is POST.
    fn answer(&self, path: &str, body: Bytes) -> impl Future<Output = Reply> + Send;
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections served at a time; those beyond it get a 503.
    pub connections: usize,
    /// Bytes of a request's body.
    pub body: usize,
    /// From the connection's first moment to the end of the request's headers.
    pub header_time: Duration,
    /// For the whole body.
    pub body_time: Duration,
    /// For [`Site::answer`].
    pub answer_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            body: 4 << 20,
            header_time: Duration::from_secs(5),
            body_time: Duration::from_secs(10),
            answer_time: Duration::from_secs(30),
        }
    }
}

/// A listening socket of either kind.
pub trait Accept: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<Self::Stream> {
        Ok(UnixListener::accept(self).await?.0)
    }
}

impl Accept for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<Self::Stream> {
        Ok(TcpListener::accept(self).await?.0)
    }
}

/// Serves until the future is dropped.
pub async fn serve<A: Accept, S: Site>(listener: A, site: Arc<S>, limits: Limits) {
    let served = Arc::new(Semaphore::new(limits.connections));
    let refused = Arc::new(Semaphore::new(limits.connections));
    let server = Arc::new(Server::new(site, limits));
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                // Out of file descriptors: accept would fail again at once.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Ok(permit) = served.clone().try_acquire_owned() {
            let server = server.clone();
            tokio::spawn(async move {
                server.connection(stream).await;
                drop(permit);
            });
        } else if S::SILENT_GIVE_WAY && server.line.dismiss() {
            let (server, served) = (server.clone(), served.clone());
            tokio::spawn(async move {
                if let Ok(permit) = served.acquire_owned().await {
                    server.connection(stream).await;
                    drop(permit);
                }
            });
        } else if let Ok(permit) = refused.clone().try_acquire_owned() {
            tokio::spawn(async move {
                connection::refuse(stream, limits.connections).await;
                drop(permit);
            });
        }
    }
}
