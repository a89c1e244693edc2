//! The other end of the socket.

use std::{
    fmt,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, StatusCode, body::Bytes, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};

use super::{
    server::PATH,
    types::{Fault, Request, Response},
};

/// Longer than the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// An answer with every backend of a full node is a tenth of this.
const ANSWER: usize = 256 << 20;

/// Calls the daemon, with a connection for each request.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

#[derive(Debug)]
pub enum CallError {
    /// No daemon, one that is too busy to listen, or one that does not speak our language; what
    /// happened and what to do.
    Unreachable(String),
    /// The daemon's own answer.
    Fault(Fault),
}

impl Client {
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    pub async fn call(&self, request: &Request) -> Result<Response, CallError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| CallError::Unreachable(self.remedy(&error)))?;
        let broken = |error: &dyn fmt::Display| {
            let socket = self.socket.display();
            CallError::Unreachable(format!("the daemon on {socket} gave no answer: {error}"))
        };
        let (status, body) = match timeout(PATIENCE, post(stream, request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(broken(&error)),
            Err(_) => return Err(broken(&format!("none within {PATIENCE:?}"))),
        };
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| broken(&error));
        }
        match serde_json::from_slice::<Fault>(&body) {
            // It did not come to the request.
            Ok(Fault { message, .. }) if status == StatusCode::SERVICE_UNAVAILABLE => {
                Err(CallError::Unreachable(message))
            }
            Ok(fault) => Err(CallError::Fault(fault)),
            Err(_) => Err(broken(&format!("HTTP status {status}"))),
        }
    }

    fn remedy(&self, error: &io::Error) -> String {
        let socket = self.socket.display();
        match error.kind() {
            ErrorKind::PermissionDenied => format!(
                "no permission for {socket}; run lbctl as root or as a member of the group lbd"
            ),
            ErrorKind::NotFound => format!(
                "no daemon: there is no socket {socket}; start lbd \
                 (lbd --config FILE), or point to its socket with --socket PATH or LBCTL_SOCKET"
            ),
            ErrorKind::ConnectionRefused => format!(
                "no daemon answers on {socket}, which one left behind; start lbd \
                 (lbd --config FILE), or point to its socket with --socket PATH or LBCTL_SOCKET"
            ),
            _ => format!("cannot reach the daemon on {socket}: {error}"),
        }
    }
}

async fn post(stream: UnixStream, request: &Request) -> anyhow::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = hyper::Request::builder()
        .method(Method::POST)
        .uri(PATH)
        .header(HOST, "lbd")
        .body(Full::<Bytes>::from(serde_json::to_vec(request)?))?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
        Ok((status, body))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = connection => match ended {
            // The connection may end in the same instant in which the answer is complete.
            Ok(()) => exchange.await,
            Err(error) => Err(error.into()),
        },
    }
}
