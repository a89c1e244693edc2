//! The HTTP/1.1 client of the sources: one connection a request, every step with an end in time,
//! every answer with an end in size.

mod answer;
mod lines;
#[cfg(test)]
mod tests;
mod tls;
mod url;

use std::{
    future::Future,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{ACCEPT, AUTHORIZATION, HOST, HeaderName, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::{AbortHandle, spawn_blocking},
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

pub use self::{
    answer::{Answer, Stream},
    lines::Lines,
    tls::Tls,
    url::{BaseUrl, escaped},
};
use super::{Class, Failure, Secret, resolve};

/// Largest answer, in bytes.
pub const MAX_BODY: usize = 10 << 20;

/// Time to connect, TLS included, unless the request has less.
const CONNECT: Duration = Duration::from_secs(5);
/// Time after which certificate files are read again.
const TLS_AGE: Duration = Duration::from_secs(60);
const MAX_HEADERS: usize = 100;
/// All headers together, in bytes; also the most that is buffered.
const MAX_HEAD: usize = 64 << 10;

/// How the client says who it is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Auth {
    #[default]
    None,
    Basic {
        user: String,
        password: Secret,
    },
    Bearer(Secret),
    /// The secret alone in a header of its own: `x-consul-token`.
    Header(&'static str, Secret),
}

/// A client of one server. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    url: BaseUrl,
    tls: Tls,
    auth: Auth,
    certificates: Arc<Mutex<Option<Certificates>>>,
}

/// What the files of [`Tls`] hold.
struct Certificates {
    read: Instant,
    config: Arc<ClientConfig>,
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    /// Behind the URL's own path; begins with `/`, and is escaped.
    pub path: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Bytes,
    /// Time until the whole answer is there; of a [`Stream`], until its head is.
    pub patience: Duration,
}

impl Request {
    pub fn get(path: impl Into<String>, patience: Duration) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            headers: Vec::new(),
            body: Bytes::new(),
            patience,
        }
    }
}

/// A request on its way, in whose name failures are told.
struct Call {
    /// `http://10.0.0.5:8500/v1/health`, without the query: it may hold what nobody may read.
    name: String,
    patience: Duration,
    end: Instant,
}

impl Call {
    fn failure(&self, class: Class, what: impl std::fmt::Display) -> Failure {
        Failure::new(class, format!("{}: {what}", self.name))
    }

    async fn within<T>(
        &self,
        end: Instant,
        what: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        let end = end.min(self.end);
        timeout_at(end, work).await.map_err(|_| {
            let patience = self.patience - self.end.saturating_duration_since(Instant::now());
            self.failure(Class::Timeout, format!("{what} within {patience:.0?}"))
        })
    }
}

trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Ends the task that drives a connection with whoever reads from it.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    pub fn new(url: BaseUrl, tls: Tls, auth: Auth) -> Self {
        Self {
            url,
            tls,
            auth,
            certificates: Arc::default(),
        }
    }

    pub fn url(&self) -> &BaseUrl {
        &self.url
    }

    /// Asks, and reads the whole answer, whatever its status is. Redirects are not followed.
    ///
    /// # Errors
    /// If there is no whole HTTP answer of at most [`MAX_BODY`] bytes within the request's patience.
    pub async fn fetch(&self, request: Request) -> Result<Answer, Failure> {
        let call = self.call(&request);
        let (response, _driver) = self.send(&call, request).await?;
        answer::read(&call, response).await
    }

    /// Asks, and leaves the body to be read as it comes.
    ///
    /// # Errors
    /// If there is no head of an answer within the request's patience.
    pub async fn open(&self, request: Request) -> Result<Stream, Failure> {
        let call = self.call(&request);
        let (response, driver) = self.send(&call, request).await?;
        Ok(Stream::new(call, response, driver))
    }

    fn call(&self, request: &Request) -> Call {
        let path = request.path.split('?').next().unwrap_or_default();
        Call {
            name: format!("{}{path}", self.url),
            patience: request.patience,
            end: Instant::now() + request.patience,
        }
    }

    async fn send(
        &self,
        call: &Call,
        request: Request,
    ) -> Result<(hyper::Response<Incoming>, Driver), Failure> {
        let request = self.request(call, request).await?;
        let connection = self.connect(call).await?;
        let handshake = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .handshake(TokioIo::new(connection))
            .await;
        let (mut sender, connection) = handshake.map_err(|error| self.failed(call, &error))?;
        let driver = Driver(tokio::spawn(connection).abort_handle());
        let response = call
            .within(call.end, "no answer", sender.send_request(request))
            .await?
            .map_err(|error| self.failed(call, &error))?;
        Ok((response, driver))
    }

    async fn request(
        &self,
        call: &Call,
        request: Request,
    ) -> Result<hyper::Request<Full<Bytes>>, Failure> {
        let mut builder = hyper::Request::builder()
            .method(request.method)
            .uri(format!("{}{}", self.url.path, request.path))
            .header(HOST, self.url.authority())
            .header(USER_AGENT, concat!("lbd/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json");
        if let Some((name, value)) = self.credentials(call).await? {
            builder = builder.header(name, value);
        }
        if let Some(headers) = builder.headers_mut() {
            headers.extend(request.headers);
        }
        builder
            .body(Full::new(request.body))
            .map_err(|error| call.failure(Class::Config, error))
    }

    async fn credentials(&self, call: &Call) -> Result<Option<(HeaderName, HeaderValue)>, Failure> {
        let auth = self.auth.clone();
        let read = spawn_blocking(move || {
            Ok(Some(match auth {
                Auth::None => return Ok(None),
                Auth::Basic { user, password } => {
                    let pair = format!("{user}:{}", password.read()?.expose());
                    (AUTHORIZATION, format!("Basic {}", base64(pair.as_bytes())))
                }
                Auth::Bearer(token) => {
                    (AUTHORIZATION, format!("Bearer {}", token.read()?.expose()))
                }
                Auth::Header(name, secret) => {
                    let name = HeaderName::from_static(name);
                    (name, secret.read()?.expose().to_owned())
                }
            }))
        });
        let read = call
            .within(call.end, "the secret was not read", read)
            .await?;
        let Some((name, text)) = read.unwrap_or(Ok(None))? else {
            return Ok(None);
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| {
            call.failure(
                Class::Config,
                "the secret has characters that HTTP does not allow",
            )
        })?;
        value.set_sensitive(true);
        Ok(Some((name, value)))
    }

    async fn connect(&self, call: &Call) -> Result<Box<dyn Connection>, Failure> {
        let end = Instant::now() + CONNECT;
        let tcp = call
            .within(end, "no connection", self.tcp(call, end))
            .await??;
        if !self.url.is_tls {
            return Ok(Box::new(tcp));
        }
        let config = self.tls_config(call, end).await?;
        let name = self.tls.server_name.as_ref().unwrap_or(&self.url.host);
        let name = ServerName::try_from(name.clone())
            .map_err(|_| call.failure(Class::Config, format!("`{name}` is no server name")))?;
        let handshake = TlsConnector::from(config).connect(name, tcp);
        let stream = call.within(end, "no TLS handshake", handshake).await?;
        Ok(Box::new(stream.map_err(|error| {
            call.failure(Class::Denied, format!("TLS: {error}"))
        })?))
    }

    async fn tcp(&self, call: &Call, end: Instant) -> Result<TcpStream, Failure> {
        let BaseUrl { host, port, .. } = &self.url;
        let unknown =
            |error: io::Error| call.failure(Class::Unreachable, format!("no address: {error}"));
        let addresses = resolve::addresses(host, *port).await.map_err(unknown)?;
        let stream = resolve::connect(&addresses, end).await.map_err(|failed| {
            let what = match failed {
                Some((address, error)) => format!("cannot connect to {address}: {error}"),
                None => format!("`{host}` has no address"),
            };
            call.failure(Class::Unreachable, what)
        })?;
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    async fn tls_config(&self, call: &Call, end: Instant) -> Result<Arc<ClientConfig>, Failure> {
        let lock = || {
            let certificates = self.certificates.lock();
            certificates.unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(known) = &*lock()
            && known.read.elapsed() < TLS_AGE
        {
            return Ok(known.config.clone());
        }
        let tls = self.tls.clone();
        let read = spawn_blocking(move || tls.client_config());
        let read = call.within(end, "certificates were not read", read).await?;
        let config = read.unwrap_or_else(|_| {
            Err(Failure::new(
                Class::Internal,
                "reading certificates panicked",
            ))
        })?;
        *lock() = Some(Certificates {
            read: Instant::now(),
            config: config.clone(),
        });
        Ok(config)
    }

    fn failed(&self, call: &Call, error: &hyper::Error) -> Failure {
        let class = match error.is_parse() || error.is_parse_too_large() {
            true => Class::Malformed,
            false => Class::Unreachable,
        };
        call.failure(class, words(error))
    }
}

/// An error with its cause, which hyper leaves out.
fn words(error: &hyper::Error) -> String {
    let cause = std::error::Error::source(error);
    match cause {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let group = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            let digit = (group >> (18 - 6 * place)) & 63;
            text.push(match place <= chunk.len() {
                true => char::from(ALPHABET[digit as usize]),
                false => '=',
            });
        }
    }
    text
}
