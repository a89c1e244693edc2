//! A scripted DNS server, for what real ones do not do on demand.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, SOA, SRV},
    },
};

/// How often threads look whether they are to end.
const TICK: Duration = Duration::from_millis(20);

/// A question that came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub at: Instant,
    pub id: u16,
    pub query: Query,
    pub by_tcp: bool,
    /// The payload that the client's EDNS record offers, if there is one.
    pub edns: Option<u16>,
}

impl Asked {
    /// Without the last dot.
    pub fn name(&self) -> String {
        let name = self.query.name().to_ascii();
        name.trim_end_matches('.').to_owned()
    }

    pub fn kind(&self) -> RecordType {
        self.query.query_type()
    }

    /// An answer with nothing in it but this code.
    pub fn code(&self, code: ResponseCode) -> Message {
        let mut message = Message::new(self.id, MessageType::Response, OpCode::Query);
        message.metadata.response_code = code;
        message.metadata.recursion_available = true;
        message.add_query(self.query.clone());
        message
    }
}

/// What is sent back, one datagram or TCP message after another; nothing for silence.
pub type Replies = Vec<Vec<u8>>;

type Script = dyn Fn(&Asked) -> Replies + Send + Sync;

/// What is done to a TCP connection when its question has come.
type Stream = dyn Fn(&Asked, &mut TcpStream) -> io::Result<()> + Send + Sync;

struct Shared {
    script: Mutex<Arc<Script>>,
    /// In place of the script's replies.
    stream: Mutex<Option<Arc<Stream>>>,
    asked: Mutex<Vec<Asked>>,
    ends: AtomicBool,
}

/// A DNS server by UDP and TCP. Ends when dropped.
pub struct Names {
    address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Names {
    /// Listens on a port of the loopback device that the kernel chooses, in the network namespace of
    /// the calling thread.
    pub fn start(
        script: impl Fn(&Asked) -> Replies + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let (udp, tcp) = sockets().context("no port for a DNS server")?;
        let address = udp.local_addr()?;
        udp.set_read_timeout(Some(TICK))?;
        tcp.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            script: Mutex::new(Arc::new(script)),
            stream: Mutex::default(),
            asked: Mutex::default(),
            ends: AtomicBool::new(false),
        });
        let (a, b) = (shared.clone(), shared.clone());
        Ok(Self {
            address,
            shared,
            threads: vec![
                thread::spawn(move || serve_udp(&a, &udp)),
                thread::spawn(move || serve_tcp(&b, &tcp)),
            ],
        })
    }

    /// One that answers from a zone.
    pub fn of(zone: Zone) -> anyhow::Result<Self> {
        Self::start(move |asked| zone.replies(asked))
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Another script from the next question on.
    pub fn set(&self, script: impl Fn(&Asked) -> Replies + Send + Sync + 'static) {
        *lock(&self.shared.script) = Arc::new(script);
    }

    pub fn set_zone(&self, zone: Zone) {
        self.set(move |asked| zone.replies(asked));
    }

    /// What becomes of questions by TCP, from the next one on; `None` for the script's replies.
    pub fn set_stream(
        &self,
        stream: Option<impl Fn(&Asked, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static>,
    ) {
        *lock(&self.shared.stream) = stream.map(|stream| Arc::new(stream) as Arc<Stream>);
    }

    /// All questions since the last call.
    pub fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut lock(&self.shared.asked))
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// One port for both; another try where one of them is taken.
fn sockets() -> io::Result<(UdpSocket, TcpListener)> {
    let mut last = None;
    for _ in 0..20 {
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        match UdpSocket::bind(tcp.local_addr()?) {
            Ok(udp) => return Ok((udp, tcp)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn asked(&self, bytes: &[u8], by_tcp: bool) -> Option<Asked> {
        let message = Message::from_vec(bytes).ok()?;
        let [query] = &message.queries[..] else {
            return None;
        };
        let asked = Asked {
            at: Instant::now(),
            id: message.metadata.id,
            query: query.clone(),
            by_tcp,
            edns: message.edns.as_ref().map(|edns| edns.max_payload()),
        };
        lock(&self.asked).push(asked.clone());
        Some(asked)
    }

    fn replies(&self, asked: &Asked) -> Replies {
        // The script may wait for something, and must not hold up others.
        let script = lock(&self.script).clone();
        script(asked)
    }

    fn ends(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }
}

fn serve_udp(shared: &Shared, socket: &UdpSocket) {
    let mut buffer = [0; 4096];
    while !shared.ends() {
        let Ok((length, client)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let Some(asked) = shared.asked(&buffer[..length], false) else {
            continue;
        };
        for reply in shared.replies(&asked) {
            let _ = socket.send_to(&reply, client);
        }
    }
}

fn serve_tcp(shared: &Arc<Shared>, listener: &TcpListener) {
    while !shared.ends() {
        match listener.accept() {
            Ok((stream, _)) => {
                let shared = shared.clone();
                thread::spawn(move || serve_stream(&shared, stream));
            }
            Err(_) => thread::sleep(TICK),
        }
    }
}

fn serve_stream(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes)?;
    let Some(asked) = shared.asked(&bytes, true) else {
        return Ok(());
    };
    let done = lock(&shared.stream).clone();
    if let Some(done) = done {
        return done(&asked, &mut stream);
    }
    for reply in shared.replies(&asked) {
        stream.write_all(&framed(&reply))?;
    }
    Ok(())
}

/// A message as it stands in TCP.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("a DNS message");
    [&length.to_be_bytes()[..], message].concat()
}

/// What a server knows; everything below `example.internal` is its own.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    records: BTreeMap<String, Vec<Record>>,
    negative_ttl: u32,
}

impl Zone {
    /// With the time in seconds for which negative answers hold.
    pub fn new(negative_ttl: u32) -> Self {
        Self {
            negative_ttl,
            records: BTreeMap::new(),
        }
    }

    #[must_use]
    pub fn address(self, name: &str, ttl: u32, ip: &str) -> Self {
        let data = match ip.parse().expect("an address") {
            IpAddr::V4(ip) => RData::A(A(ip)),
            IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
        };
        self.record(name, ttl, data)
    }

    /// `target` is `.` for a service that is decidedly not offered.
    #[must_use]
    pub fn srv(
        self,
        name: &str,
        ttl: u32,
        (priority, weight): (u16, u16),
        target: &str,
        port: u16,
    ) -> Self {
        let data = RData::SRV(SRV::new(priority, weight, port, full(target)));
        self.record(name, ttl, data)
    }

    #[must_use]
    pub fn alias(self, name: &str, ttl: u32, target: &str) -> Self {
        self.record(name, ttl, RData::CNAME(CNAME(full(target))))
    }

    fn record(mut self, name: &str, ttl: u32, data: RData) -> Self {
        let record = Record::from_rdata(full(name), ttl, data);
        self.records
            .entry(name.to_owned())
            .or_default()
            .push(record);
        self
    }

    pub fn replies(&self, asked: &Asked) -> Replies {
        vec![self.answer(asked).to_vec().expect("a message")]
    }

    /// The whole answer, however long.
    pub fn answer(&self, asked: &Asked) -> Message {
        let mut message = asked.code(ResponseCode::NoError);
        let mut name = asked.name();
        loop {
            let Some(records) = self.records.get(&name) else {
                message.metadata.response_code = ResponseCode::NXDomain;
                break;
            };
            let fit = records.iter().filter(|r| r.record_type() == asked.kind());
            let fit: Vec<_> = fit.cloned().collect();
            if !fit.is_empty() {
                message.add_answers(fit);
                return message;
            }
            let alias = records.iter().find_map(|r| match &r.data {
                RData::CNAME(target) => Some((r, target.0.to_ascii())),
                _ => None,
            });
            let Some((record, target)) = alias else {
                break;
            };
            message.add_answer(record.clone());
            name = target.trim_end_matches('.').to_owned();
        }
        let zone = full("example.internal");
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 60, 60, 60, self.negative_ttl);
        message.add_authority(Record::from_rdata(zone, 3600, RData::SOA(soa)));
        message
    }
}

fn full(name: &str) -> Name {
    let mut name = Name::from_ascii(name).expect("a name");
    name.set_fqdn(true);
    name
}
