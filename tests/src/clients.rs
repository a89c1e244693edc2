//! Clients: many short connections, a steady load, connections that live long, bulk transfers.

mod burst;
mod herd;
mod load;
mod long;
mod transfer;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream, UdpSocket},
    time::timeout,
};

pub use self::{
    burst::{Burst, burst},
    herd::Herd,
    load::{Attempt, Load, Report},
    long::LongLived,
    transfer::{datagrams, download, upload},
};

/// How a client asks for the name of the backend that serves it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// A line to the echo server.
    Tcp,
    /// A datagram to the echo server.
    Udp,
    /// `GET /`.
    Http,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Http => "HTTP",
        })
    }
}

/// Why a connection failed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Failure {
    /// RST to the SYN, or ICMP port unreachable.
    Refused,
    /// RST to an open connection.
    Reset,
    /// No answer in time.
    Timeout,
    /// ICMP says there is no way.
    Unreachable,
    /// Closed in good order, but too early.
    Closed,
    /// Answered with something else than asked for.
    Wrong(String),
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("refused"),
            Self::Reset => f.write_str("reset"),
            Self::Timeout => f.write_str("timed out"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Closed => f.write_str("closed early"),
            Self::Wrong(what) => write!(f, "wrong answer: {what}"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionRefused => Self::Refused,
            Kind::ConnectionReset | Kind::BrokenPipe | Kind::ConnectionAborted => Self::Reset,
            Kind::TimedOut => Self::Timeout,
            Kind::HostUnreachable | Kind::NetworkUnreachable => Self::Unreachable,
            Kind::UnexpectedEof => Self::Closed,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// Who answered a question, and whom the answering host saw asking.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub backend: String,
    /// `None` over HTTP, which does not tell.
    pub seen_from: Option<SocketAddr>,
}

/// One connection: opened from `source`, one question, its answer, closed by the client.
pub async fn ask(
    protocol: Protocol,
    source: SocketAddr,
    target: SocketAddr,
    text: &str,
    limit: Duration,
) -> Result<Answer, Failure> {
    let conversation = async {
        match protocol {
            Protocol::Tcp => ask_line(&mut connect(source, target).await?, text).await,
            Protocol::Http => ask_http(&mut connect(source, target).await?).await,
            Protocol::Udp => {
                let socket = UdpSocket::bind(source).await?;
                socket.connect(target).await?;
                ask_datagram(&socket, text).await
            }
        }
    };
    timeout(crate::patience(limit), conversation)
        .await
        .unwrap_or(Err(Failure::Timeout))
}

/// [`ask`], waiting for the answer. To be called on a host's thread.
pub fn ask_once(
    protocol: Protocol,
    source: SocketAddr,
    target: SocketAddr,
    text: &str,
) -> Result<Answer, Failure> {
    runtime().block_on(ask(protocol, source, target, text, Duration::from_secs(3)))
}

pub(crate) async fn connect(
    source: SocketAddr,
    target: SocketAddr,
) -> io::Result<BufReader<TcpStream>> {
    let socket = if target.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if source.port() == 0 {
        // The kernel then chooses a source port per target rather than per source address.
        crate::sockets::set(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    } else {
        socket.set_reuseaddr(true)?;
    }
    socket.bind(source)?;
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

pub(crate) async fn ask_line(
    connection: &mut BufReader<TcpStream>,
    text: &str,
) -> Result<Answer, Failure> {
    connection.write_all(format!("{text}\n").as_bytes()).await?;
    let mut line = String::new();
    if connection.read_line(&mut line).await? == 0 {
        return Err(Failure::Closed);
    }
    understand(line.trim_end(), text)
}

pub(crate) async fn ask_datagram(socket: &UdpSocket, text: &str) -> Result<Answer, Failure> {
    socket.send(text.as_bytes()).await?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).await?;
    understand(&String::from_utf8_lossy(&buffer[..length]), text)
}

/// Takes `NAME PEER text` apart.
fn understand(answer: &str, text: &str) -> Result<Answer, Failure> {
    let wrong = || Failure::Wrong(format!("`{answer}` to `{text}`"));
    let mut words = answer.splitn(3, ' ');
    let (Some(backend), Some(peer), Some(echoed)) = (words.next(), words.next(), words.next())
    else {
        return Err(wrong());
    };
    if echoed != text {
        return Err(wrong());
    }
    Ok(Answer {
        backend: backend.to_owned(),
        seen_from: Some(peer.parse().map_err(|_| wrong())?),
    })
}

pub(crate) async fn ask_http(connection: &mut BufReader<TcpStream>) -> Result<Answer, Failure> {
    connection
        .write_all(b"GET / HTTP/1.1\r\nHost: lbt\r\n\r\n")
        .await?;
    let length = read_http_head(connection).await?;
    let mut body = vec![0; length as usize];
    connection.read_exact(&mut body).await?;
    Ok(Answer {
        backend: String::from_utf8_lossy(&body).into_owned(),
        seen_from: None,
    })
}

/// Reads the head of a response that must say 200; returns its Content-Length.
pub(crate) async fn read_http_head(connection: &mut BufReader<TcpStream>) -> Result<u64, Failure> {
    let (mut line, mut length, mut status) = (String::new(), None, false);
    loop {
        line.clear();
        if connection.read_line(&mut line).await? == 0 {
            return Err(Failure::Closed);
        }
        let text = line.trim_end();
        if !status {
            if !text.starts_with("HTTP/1.1 200") {
                return Err(Failure::Wrong(text.to_owned()));
            }
            status = true;
        } else if let Some(value) = text.strip_prefix("Content-Length:") {
            length = value.trim().parse().ok();
        } else if text.is_empty() {
            return length.ok_or_else(|| Failure::Wrong("no Content-Length".to_owned()));
        }
    }
}

/// An asynchronous runtime on the calling thread.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// A source address whose port the kernel chooses.
pub fn any_port(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 0)
}

/// Failures counted by kind, for people.
pub fn summary<'a>(failures: impl IntoIterator<Item = &'a Failure>) -> String {
    let mut counts = BTreeMap::<String, u32>::new();
    for failure in failures {
        *counts.entry(failure.to_string()).or_default() += 1;
    }
    let words: Vec<_> = counts
        .iter()
        .map(|(kind, n)| format!("{n} {kind}"))
        .collect();
    if words.is_empty() {
        "none".to_owned()
    } else {
        words.join(", ")
    }
}
