//! The servers of one backend host, see `lb_tests::servers`. Usage: `lbt-agent NAME`.

use std::{cell::Cell, net::SocketAddr, rc::Rc};

use anyhow::Context;
use lb_tests::{
    bulk::{self, CHUNK},
    servers::{ECHO_PORT, ECHO_PORTS, HTTP_PORT},
    sockets,
};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    signal::unix::{SignalKind, signal},
    task,
};

thread_local! {
    /// Every connection is reset, instead of served.
    static RESETS: Cell<bool> = const { Cell::new(false) };
}

/// Longest head of an HTTP request, and longest line of the echo server.
const LINE_LIMIT: u64 = 16 * 1024;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let name = std::env::args().nth(1).context("usage: lbt-agent NAME")?;
    let name: Rc<str> = name.into();
    let servers = task::LocalSet::new();
    for (kind, resets) in [
        (SignalKind::user_defined1(), true),
        (SignalKind::user_defined2(), false),
    ] {
        let mut signals = signal(kind)?;
        servers.spawn_local(async move {
            while signals.recv().await.is_some() {
                RESETS.set(resets);
            }
        });
    }
    let http = listen(HTTP_PORT)?;
    servers.spawn_local(accept(http, name.clone(), serve_http));
    for port in ECHO_PORT..ECHO_PORT + ECHO_PORTS {
        let (lines, datagrams) = (listen(port)?, UdpSocket::bind(any(port)).await?);
        sockets::hold_much(&datagrams)?;
        servers.spawn_local(accept(lines, name.clone(), serve_echo));
        servers.spawn_local(echo_datagrams(datagrams, name.clone()));
    }
    println!("ready");
    servers.await;
    Ok(())
}

/// All addresses of both families.
fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0u16; 8], port))
}

fn listen(port: u16) -> anyhow::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    socket.set_reuseaddr(true)?;
    socket
        .bind(any(port))
        .with_context(|| format!("port {port}"))?;
    Ok(socket.listen(4096)?)
}

async fn accept<F>(
    listener: TcpListener,
    name: Rc<str>,
    serve: impl Fn(TcpStream, SocketAddr, Rc<str>) -> F + Copy + 'static,
) where
    F: Future<Output = anyhow::Result<()>> + 'static,
{
    loop {
        let Ok((connection, peer)) = listener.accept().await else {
            continue;
        };
        let _ = connection.set_nodelay(true);
        if RESETS.get() {
            reset(&connection);
            continue;
        }
        // A connection that fails concerns its client only.
        task::spawn_local(serve(connection, peer, name.clone()));
    }
}

/// Has the connection reset when it is dropped.
fn reset(connection: &TcpStream) {
    let _ = connection.set_zero_linger();
}

async fn serve_echo(connection: TcpStream, peer: SocketAddr, name: Rc<str>) -> anyhow::Result<()> {
    let mut connection = BufReader::new(connection);
    loop {
        let mut line = String::new();
        (&mut connection)
            .take(LINE_LIMIT)
            .read_line(&mut line)
            .await?;
        if !line.ends_with('\n') {
            return Ok(());
        }
        if RESETS.get() {
            reset(connection.get_ref());
            return Ok(());
        }
        let answer = format!("{name} {} {line}", plain(peer));
        connection.write_all(answer.as_bytes()).await?;
    }
}

async fn echo_datagrams(socket: UdpSocket, name: Rc<str>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        // Errors are of one peer (an ICMP message), not of the socket.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let mut answer = format!("{name} {} ", plain(peer)).into_bytes();
        answer.extend_from_slice(&buffer[..length]);
        let _ = socket.send_to(&answer, peer).await;
    }
}

async fn serve_http(connection: TcpStream, _peer: SocketAddr, name: Rc<str>) -> anyhow::Result<()> {
    let mut connection = BufReader::new(connection);
    while let Some(request) = read_head(&mut connection).await? {
        if RESETS.get() {
            reset(connection.get_ref());
            return Ok(());
        }
        match (&*request.method, request.path.trim_matches('/')) {
            ("GET", "") => answer(&mut connection, 200, &name).await?,
            ("GET", "healthz") => answer(&mut connection, 200, "ok").await?,
            ("POST", "upload") => {
                let digest = digest_body(&mut connection, request.body).await?;
                answer(&mut connection, 200, &format!("{digest} {}", request.body)).await?;
            }
            ("GET", path) if path.starts_with("download/") => {
                let mut numbers = path.split('/').skip(1).map(str::parse::<u64>);
                let (Some(Ok(seed)), Some(Ok(length))) = (numbers.next(), numbers.next()) else {
                    answer(&mut connection, 400, "download/SEED/LENGTH").await?;
                    continue;
                };
                send_stream(&mut connection, seed, length).await?;
            }
            _ => answer(&mut connection, 404, "not found").await?,
        }
    }
    Ok(())
}

struct Head {
    method: String,
    path: String,
    /// Content-Length.
    body: u64,
}

/// The next request's head, `None` at the end of the connection.
async fn read_head(connection: &mut BufReader<TcpStream>) -> anyhow::Result<Option<Head>> {
    let mut head = connection.take(LINE_LIMIT);
    let mut line = String::new();
    if head.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        anyhow::bail!("no request line");
    };
    let mut body = 0;
    loop {
        line.clear();
        if head.read_line(&mut line).await? == 0 {
            anyhow::bail!("head too long or cut off");
        }
        if line.trim_end().is_empty() {
            return Ok(Some(Head { method, path, body }));
        }
        if let Some((key, value)) = line.split_once(':')
            && key.eq_ignore_ascii_case("content-length")
        {
            body = value.trim().parse()?;
        }
    }
}

async fn answer(
    connection: &mut BufReader<TcpStream>,
    status: u16,
    body: &str,
) -> anyhow::Result<()> {
    let length = body.len();
    let text = format!("HTTP/1.1 {status} \r\nContent-Length: {length}\r\n\r\n{body}");
    Ok(connection.write_all(text.as_bytes()).await?)
}

async fn digest_body(connection: &mut BufReader<TcpStream>, length: u64) -> anyhow::Result<String> {
    let (mut body, mut buffer, mut hash) = (connection.take(length), vec![0; CHUNK], Sha256::new());
    loop {
        let read = body.read(&mut buffer).await?;
        if read == 0 {
            return Ok(bulk::hex(hash));
        }
        hash.update(&buffer[..read]);
    }
}

async fn send_stream(
    connection: &mut BufReader<TcpStream>,
    seed: u64,
    mut length: u64,
) -> anyhow::Result<()> {
    let head = format!("HTTP/1.1 200 \r\nContent-Length: {length}\r\n\r\n");
    connection.write_all(head.as_bytes()).await?;
    let (mut stream, mut buffer) = (bulk::Stream::new(seed), vec![0; CHUNK]);
    while length > 0 {
        stream.fill(&mut buffer);
        let part = length.min(CHUNK as u64);
        connection.write_all(&buffer[..part as usize]).await?;
        length -= part;
    }
    Ok(())
}

/// IPv4 addresses as such, not mapped into IPv6.
fn plain(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}
