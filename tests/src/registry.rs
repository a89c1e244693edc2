//! A scripted registry that speaks HTTP/1.1, with the faults that registries have. A test of a
//! source scripts the answers; faults, death and restart are the same for all.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, ensure};

use crate::{eventually, host::Host};

/// What was asked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Request {
    pub method: String,
    /// Without the query.
    pub path: String,
    /// Parameters as they stand in the query, not unescaped.
    pub query: BTreeMap<String, String>,
    /// By their names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// What is answered.
pub enum Reply {
    Whole {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// Status 200 and a body that the function writes for as long as it likes, in chunks. It should
    /// end when writing fails: the client is gone, or the registry was killed.
    Stream(Box<Writer>),
}

/// Writes the body of a [`Reply::Stream`].
pub type Writer = dyn FnOnce(&mut Chunks<'_>) -> io::Result<()> + Send;

impl Reply {
    pub fn json(body: impl Into<String>) -> Self {
        Self::status(200, body)
    }

    pub fn status(status: u16, body: impl Into<String>) -> Self {
        Self::Whole {
            status,
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: body.into().into_bytes(),
        }
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        if let Self::Whole { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.to_string()));
        }
        self
    }
}

/// The body of a [`Reply::Stream`].
pub struct Chunks<'a>(&'a mut TcpStream);

impl Chunks<'_> {
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let bytes = bytes.as_ref();
        write!(self.0, "{:x}\r\n", bytes.len())?;
        self.0.write_all(bytes)?;
        self.0.write_all(b"\r\n")
    }

    /// Whether anybody still listens.
    pub fn is_open(&self) -> bool {
        let mut byte = [0];
        let _ = self.0.set_nonblocking(true);
        let peeked = self.0.peek(&mut byte);
        let _ = self.0.set_nonblocking(false);
        !matches!(peeked, Ok(0))
            && peeked.map_or_else(|error| error.kind() == io::ErrorKind::WouldBlock, |_| true)
    }
}

/// What is done instead of answering.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// This status, with words.
    Status(u16),
    /// A good status, and a body that is nothing.
    Garbage,
    /// A good status and an empty body.
    Nothing,
    /// The first half of the answer's body, then the end of the connection.
    HalfBody,
    /// Bytes that are no HTTP.
    NoHttp,
    /// The connection ends without a word.
    Drop,
    /// Nothing comes, for as long as the fault lasts and the client waits.
    Hang,
    /// The answer comes byte by byte, one a tenth of a second.
    Drip,
    /// A body without end.
    Endless,
}

impl Fault {
    /// Those from which a client can be expected to recover without waiting for its own timeouts.
    pub const QUICK: [Self; 6] = [
        Self::Status(500),
        Self::Garbage,
        Self::Nothing,
        Self::HalfBody,
        Self::NoHttp,
        Self::Drop,
    ];
}

type Script = dyn Fn(&Request) -> Reply + Send + Sync;

struct Shared {
    script: Arc<Script>,
    fault: Option<Fault>,
    asked: Vec<Request>,
    /// Grows with every end, so that connections of a former life end.
    life: u64,
    open: Vec<TcpStream>,
}

/// A registry on a host. Killed when dropped.
pub struct Registry {
    host: Host,
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    listener: Option<(TcpListener, JoinHandle<()>)>,
}

impl Registry {
    /// Listens on `address` of `host`. `script` answers each request on a thread of its connection,
    /// and may take its time.
    pub fn start(
        host: &Host,
        address: SocketAddr,
        script: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let mut registry = Self {
            host: host.clone(),
            address,
            shared: Arc::new(Mutex::new(Shared {
                script: Arc::new(script),
                fault: None,
                asked: Vec::new(),
                life: 0,
                open: Vec::new(),
            })),
            listener: None,
        };
        registry.restart()?;
        Ok(registry)
    }

    /// Where it listens; port 0 was replaced by the one the kernel chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on, and for requests that wait.
    pub fn set_fault(&self, fault: impl Into<Option<Fault>>) {
        self.lock().fault = fault.into();
    }

    /// Another script from the next request on.
    pub fn set_script(&self, script: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
        self.lock().script = Arc::new(script);
    }

    /// All requests since the last call, in the order in which they came.
    pub fn take_asked(&self) -> Vec<Request> {
        std::mem::take(&mut self.lock().asked)
    }

    /// Waits for a request that was not taken yet and that satisfies `condition`.
    pub fn wait_asked(
        &self,
        limit: Duration,
        condition: impl Fn(&Request) -> bool,
    ) -> anyhow::Result<Request> {
        let mut found = None;
        eventually(limit, || {
            found = self.lock().asked.iter().find(|r| condition(r)).cloned();
            found.is_some()
        });
        let asked = || format!("not asked within {limit:?}: {:?}", self.lock().asked);
        found.with_context(asked)
    }

    /// Ends all connections, as a proxy in between might.
    pub fn drop_connections(&self) {
        end(&mut self.lock());
    }

    /// The process dies: connections are reset, new ones refused.
    pub fn kill(&mut self) {
        if let Some((listener, thread)) = self.listener.take() {
            // SAFETY: the descriptor is open; shutting a listener down ends its accept.
            unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) };
            drop(listener);
            let _ = thread.join();
        }
        end(&mut self.lock());
    }

    /// Starts it again, with the script it had.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        ensure!(self.listener.is_none(), "the registry runs already");
        let address = self.address;
        let listener = self
            .host
            .run(move || TcpListener::bind(address))
            .with_context(|| format!("cannot listen on {address}"))?;
        self.address = listener.local_addr()?;
        let (accepting, shared) = (listener.try_clone()?, self.shared.clone());
        let thread = thread::spawn(move || {
            for stream in accepting.incoming() {
                let Ok(stream) = stream else {
                    return;
                };
                accept(&shared, stream);
            }
        });
        self.listener = Some((listener, thread));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn end(shared: &mut Shared) {
    shared.life += 1;
    for stream in shared.open.drain(..) {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn accept(shared: &Arc<Mutex<Shared>>, stream: TcpStream) {
    let life = {
        let mut shared = lock(shared);
        if let Ok(other) = stream.try_clone() {
            shared.open.push(other);
        }
        shared.life
    };
    let shared = shared.clone();
    thread::spawn(move || {
        // What fails here, the client hears of.
        let _ = serve(&shared, stream, life);
    });
}

fn serve(shared: &Mutex<Shared>, mut stream: TcpStream, life: u64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream.try_clone()?);
    while let Some(request) = read(&mut input)? {
        // The script may wait for something, and must not hold up others.
        let script = {
            let mut shared = lock(shared);
            if shared.life != life {
                break;
            }
            shared.asked.push(request.clone());
            shared.script.clone()
        };
        let reply = script(&request);
        // One that was waiting meanwhile is hit as well.
        let fault = lock(shared).fault.clone();
        let goes_on = match fault {
            None => answer(&mut stream, reply)?,
            Some(fault) => break_off(shared, &mut stream, fault, reply)?,
        };
        if !goes_on {
            break;
        }
    }
    stream.shutdown(Shutdown::Both)
}

/// Answers in good order; whether the connection goes on.
fn answer(stream: &mut TcpStream, reply: Reply) -> io::Result<bool> {
    match reply {
        Reply::Whole {
            status,
            headers,
            body,
        } => {
            head(stream, status, &headers, Some(body.len()))?;
            stream.write_all(&body)?;
        }
        Reply::Stream(write) => {
            head(stream, 200, &[], None)?;
            write(&mut Chunks(stream))?;
            stream.write_all(b"0\r\n\r\n")?;
        }
    }
    Ok(true)
}

/// Does what `fault` says; whether the connection goes on.
fn break_off(
    shared: &Mutex<Shared>,
    stream: &mut TcpStream,
    fault: Fault,
    reply: Reply,
) -> io::Result<bool> {
    let body = match reply {
        Reply::Whole { body, .. } => body,
        Reply::Stream(_) => b"{}".to_vec(),
    };
    match fault {
        Fault::Status(status) => {
            let text = b"no leader, or something of the kind";
            head(stream, status, &[], Some(text.len()))?;
            stream.write_all(text)?;
            Ok(true)
        }
        Fault::Garbage => {
            let text = b"\x00\xff<html>}]not what you want[{\n";
            head(stream, 200, &[], Some(text.len()))?;
            stream.write_all(text)?;
            Ok(true)
        }
        Fault::Nothing => {
            head(stream, 200, &[], Some(0))?;
            Ok(true)
        }
        Fault::HalfBody => {
            head(stream, 200, &[], Some(body.len().max(2)))?;
            stream.write_all(&body[..body.len() / 2])?;
            Ok(false)
        }
        Fault::NoHttp => {
            stream.write_all(b"220 mail.example ESMTP\r\n\r\n")?;
            Ok(false)
        }
        Fault::Drop => Ok(false),
        Fault::Hang => {
            while lock(shared).fault == Some(Fault::Hang) && Chunks(stream).is_open() {
                thread::sleep(Duration::from_millis(20));
            }
            Ok(false)
        }
        Fault::Drip => {
            head(stream, 200, &[], Some(body.len()))?;
            for byte in body {
                stream.write_all(&[byte])?;
                thread::sleep(Duration::from_millis(100));
            }
            Ok(true)
        }
        Fault::Endless => {
            head(stream, 200, &[], None)?;
            let mut chunks = Chunks(stream);
            loop {
                chunks.send([b'['; 0x4000])?;
            }
        }
    }
}

fn head(
    stream: &mut TcpStream,
    status: u16,
    headers: &[(String, String)],
    length: Option<usize>,
) -> io::Result<()> {
    let mut text = format!("HTTP/1.1 {status} Whatever\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += &match length {
        Some(length) => format!("content-length: {length}\r\n\r\n"),
        None => "transfer-encoding: chunked\r\n\r\n".to_owned(),
    };
    stream.write_all(text.as_bytes())
}

/// `None` at the end of the connection.
fn read(input: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter(|pair| !pair.is_empty());
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        ..Request::default()
    };
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        let name = name.to_lowercase();
        request.headers.insert(name, value.trim().to_owned());
    }
    let length = request.headers.get("content-length");
    let length = length.and_then(|l| l.parse().ok()).unwrap_or(0);
    request.body = vec![0; length];
    input.read_exact(&mut request.body)?;
    Ok(Some(request))
}
