//! Clients of all kinds, which check every byte, and keep a record of what failed.

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpStream, UdpSocket},
    task,
    time::{MissedTickBehavior, sleep, timeout},
};

use super::place::Places;
use crate::{
    bulk::{self, CHUNK, Stream},
    clients::{
        Answer, Failure, Protocol, ask_datagram, ask_http, ask_line, connect, read_http_head,
        runtime,
    },
    host::Host,
    stacks::Losses,
};

/// How long a client waits for anything over TCP: longer than any fault lasts, and than it takes
/// until a segment is sent again thereafter.
pub(super) const PATIENCE: Duration = Duration::from_secs(9);
/// How long it waits for a datagram's answer.
pub(super) const DATAGRAM_PATIENCE: Duration = Duration::from_secs(3);

/// A thread that gets no time for so long does not know what it has missed.
const STALL: Duration = Duration::from_millis(500);

/// New connections to each TCP service, and to each UDP service, a second and family.
const ARRIVALS: u32 = 8;
/// Open connections to each service of each family, and how long one lives, in milliseconds.
const OPEN: usize = 3;
const LIVES: std::ops::Range<u64> = 2_000..40_000;
const LONGEST_LINE: usize = 6000;
/// What comes back, longer by name and address, fits a frame, in a tunnel too.
const LONGEST_DATAGRAM: usize = 1200;
const LARGEST: u64 = 1_500_000;

/// What a client does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    Short,
    Long,
    Bulk,
}

/// Where a client goes.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) service: &'static str,
    pub(super) protocol: Protocol,
    pub(super) address: SocketAddr,
}

/// One that did not end well.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    pub(super) kind: Kind,
    pub(super) target: Target,
    pub(super) source: SocketAddr,
    /// The one it was on, from 1, `None` if nobody knows.
    pub(super) backend: Option<usize>,
    /// Whether that backend had answered.
    pub(super) was_answered: bool,
    pub(super) began: Instant,
    /// The last time that all was well.
    pub(super) heard: Instant,
    pub(super) ended: Instant,
    pub(super) how: How,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum How {
    Failed(Failure),
    /// Another backend answers, and all is well otherwise.
    Moved,
}

/// What all clients of a scene did.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    pub(super) connections: u64,
    pub(super) datagrams: u64,
    pub(super) exchanges: u64,
    /// Checked bytes, both ways.
    pub(super) bytes: u64,
    /// Connections that ended well, by backend.
    pub(super) well: std::collections::BTreeMap<usize, u64>,
    pub(super) failed: Vec<Failed>,
    /// When the machine gave the clients no time, or those beside them, from and to.
    pub(super) stalls: Vec<(Instant, Instant)>,
    /// When hosts and cables lost packets.
    pub(super) overruns: Vec<(Instant, Instant)>,
}

/// The clients of a scene, at work until stopped or dropped.
pub(super) struct Traffic {
    stop: Arc<AtomicBool>,
    record: Arc<Mutex<Record>>,
    thread: Option<JoinHandle<()>>,
}

impl Traffic {
    pub(super) fn start(
        client: &Host,
        sources: [Vec<IpAddr>; 2],
        targets: Vec<Target>,
        places: Places,
        losses: Losses,
        seed: u64,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let record = Arc::new(Mutex::new(Record::default()));
        let (stopped, recorded) = (stop.clone(), record.clone());
        let clients = client.spawn(move || {
            let crowd = Rc::new(Crowd {
                stop: stopped,
                record: recorded,
                sources,
                next: Cell::new(0),
                places,
            });
            task::LocalSet::new().block_on(&runtime(), crowd.work(targets, seed));
        });
        let recorded = record.clone();
        let thread = thread::spawn(move || {
            watch(&clients, losses, &recorded);
            let _ = clients.join();
        });
        Self {
            stop,
            record,
            thread: Some(thread),
        }
    }

    pub(super) fn so_far(&self) -> Record {
        lock(&self.record).clone()
    }

    /// Ends what goes on, in good order.
    pub(super) fn stop(mut self) -> Record {
        self.end();
        self.so_far()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}

/// Notices what the clients cannot, as long as they are at work: that others get no time, and that hosts
/// and cables lose packets.
fn watch(clients: &JoinHandle<()>, mut losses: Losses, record: &Mutex<Record>) {
    const TICK: Duration = Duration::from_millis(250);
    let mut read = || (Instant::now(), losses.read().expect("the hosts' counters"));
    let mut last = read();
    while !clients.is_finished() {
        let began = Instant::now();
        thread::sleep(TICK);
        if began.elapsed() > TICK + STALL {
            lock(record).stalls.push((began, Instant::now()));
        }
        let (since, before) = std::mem::replace(&mut last, read());
        if last.1 > before {
            lock(record).overruns.push((since, Instant::now()));
        }
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().expect("not poisoned")
}

struct Crowd {
    stop: Arc<AtomicBool>,
    record: Arc<Mutex<Record>>,
    sources: [Vec<IpAddr>; 2],
    next: Cell<usize>,
    places: Places,
}

impl Crowd {
    async fn work(self: Rc<Self>, targets: Vec<Target>, seed: u64) {
        let mut all = task::JoinSet::new();
        for (number, target) in targets.into_iter().enumerate() {
            let random = |salt: u64| {
                StdRng::seed_from_u64(seed ^ (number as u64) << 32 ^ salt.wrapping_mul(0x9e37_79b9))
            };
            if target.protocol == Protocol::Http {
                all.spawn_local(self.clone().series(Kind::Bulk, target, random(1)));
                continue;
            }
            for salt in 0..OPEN as u64 {
                let series = self
                    .clone()
                    .series(Kind::Long, target.clone(), random(salt));
                all.spawn_local(series);
            }
            all.spawn_local(self.clone().arrivals(target, random(99)));
        }
        all.spawn_local(self.clone().notice_stalls());
        while all.join_next().await.is_some() {}
    }

    /// On a machine that is busy otherwise nobody can tell who was late.
    async fn notice_stalls(self: Rc<Self>) {
        const TICK: Duration = Duration::from_millis(100);
        while !self.stopped() {
            let began = Instant::now();
            sleep(TICK).await;
            if began.elapsed() > TICK + STALL {
                lock(&self.record).stalls.push((began, Instant::now()));
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// One after the other.
    async fn series(self: Rc<Self>, kind: Kind, target: Target, mut random: StdRng) {
        while !self.stopped() {
            self.one(kind, target.clone(), random.random()).await;
            sleep(Duration::from_millis(random.random_range(50..1500))).await;
        }
    }

    /// So many a second, however long each takes.
    async fn arrivals(self: Rc<Self>, target: Target, mut random: StdRng) {
        let mut open = task::JoinSet::new();
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / ARRIVALS);
        // No bursts after a pause, which the servers' sockets would not take.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.stopped() {
            ticks.tick().await;
            while open.try_join_next().is_some() {}
            let (crowd, target, seed) = (self.clone(), target.clone(), random.random());
            open.spawn_local(async move { crowd.one(Kind::Short, target, seed).await });
        }
        while open.join_next().await.is_some() {}
    }

    /// Addresses and ports that nobody has used for long.
    fn source(&self, target: &Target) -> SocketAddr {
        const PORTS: std::ops::Range<usize> = 2_000..32_000;
        let number = self.next.replace(self.next.get() + 1);
        let sources = &self.sources[usize::from(target.address.is_ipv6())];
        let port = PORTS.start + number / sources.len() % PORTS.len();
        (sources[number % sources.len()], port as u16).into()
    }

    async fn one(&self, kind: Kind, target: Target, seed: u64) {
        let source = self.source(&target);
        let mut talk = Talk::new(source, target, seed);
        let began = talk.heard;
        let result = match kind {
            Kind::Short => talk.short().await,
            Kind::Long => talk.long(&self.stop).await,
            Kind::Bulk => talk.bulk().await,
        };
        let backend = talk.backend();
        let mut record = lock(&self.record);
        match talk.target.protocol {
            Protocol::Udp => record.datagrams += talk.exchanges,
            Protocol::Tcp | Protocol::Http => record.exchanges += talk.exchanges,
        }
        record.connections += 1;
        record.bytes += talk.bytes;
        match result {
            Ok(()) => *record.well.entry(backend.unwrap_or_default()).or_default() += 1,
            Err(how) => {
                let protocol = talk.target.protocol;
                let place = self.places.of(protocol, source, talk.target.address);
                // The one that leaves a datagram unanswered, or turns it away, may be another than
                // answered before.
                let is_left = matches!(how, How::Failed(Failure::Timeout | Failure::Refused));
                let place = match protocol {
                    Protocol::Udp if is_left => place.or(backend),
                    _ => backend.or(place),
                };
                record.failed.push(Failed {
                    kind,
                    source,
                    backend: place,
                    was_answered: backend.is_some() && backend == place,
                    began,
                    heard: talk.heard,
                    ended: Instant::now(),
                    how,
                    target: talk.target,
                });
            }
        }
    }
}

/// A connection, or what is like one with datagrams.
struct Talk {
    source: SocketAddr,
    target: Target,
    random: StdRng,
    /// Who answers.
    answered: Option<Answer>,
    heard: Instant,
    exchanges: u64,
    bytes: u64,
}

enum Line {
    Stream(BufReader<TcpStream>),
    Datagrams(UdpSocket),
}

/// Within the client's patience.
async fn patient<T>(
    protocol: Protocol,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, How> {
    let patience = match protocol {
        Protocol::Udp => DATAGRAM_PATIENCE,
        Protocol::Tcp | Protocol::Http => PATIENCE,
    };
    let result = timeout(patience, work).await;
    result.unwrap_or(Err(Failure::Timeout)).map_err(How::Failed)
}

impl Talk {
    fn new(source: SocketAddr, target: Target, seed: u64) -> Self {
        Self {
            source,
            target,
            random: StdRng::seed_from_u64(seed),
            answered: None,
            heard: Instant::now(),
            exchanges: 0,
            bytes: 0,
        }
    }

    fn backend(&self) -> Option<usize> {
        let name = &self.answered.as_ref()?.backend;
        name.strip_prefix('b')?.parse().ok()
    }

    async fn short(&mut self) -> Result<(), How> {
        let mut line = self.open().await?;
        for _ in 0..self.random.random_range(1..4) {
            self.exchange(&mut line).await?;
        }
        Ok(())
    }

    async fn long(&mut self, stop: &AtomicBool) -> Result<(), How> {
        let end = self.heard + Duration::from_millis(self.random.random_range(LIVES));
        let mut line = self.open().await?;
        while Instant::now() < end && !stop.load(Ordering::Relaxed) {
            self.exchange(&mut line).await?;
            sleep(Duration::from_millis(self.random.random_range(20..300))).await;
        }
        Ok(())
    }

    async fn open(&self) -> Result<Line, How> {
        let protocol = self.target.protocol;
        patient(protocol, async {
            if protocol == Protocol::Udp {
                let socket = UdpSocket::bind(self.source).await?;
                socket.connect(self.target.address).await?;
                return Ok(Line::Datagrams(socket));
            }
            let stream = connect(self.source, self.target.address).await?;
            Ok(Line::Stream(stream))
        })
        .await
    }

    /// A text of random length and content, which must come back from the same as ever.
    async fn exchange(&mut self, line: &mut Line) -> Result<(), How> {
        let longest = match line {
            Line::Stream(_) => LONGEST_LINE,
            Line::Datagrams(_) => LONGEST_DATAGRAM,
        };
        let length = self.random.random_range(1..longest);
        let letter = |_| char::from(self.random.random_range(b'!'..=b'~'));
        let text: String = (0..length).map(letter).collect();
        let answer = patient(self.target.protocol, async {
            match line {
                Line::Stream(stream) => ask_line(stream, &text).await,
                Line::Datagrams(socket) => ask_datagram(socket, &text).await,
            }
        });
        let answer = answer.await?;
        if self
            .answered
            .as_ref()
            .is_some_and(|before| *before != answer)
        {
            return Err(self.changed(&answer));
        }
        self.answered = Some(answer);
        self.heard_well(2 * length);
        Ok(())
    }

    /// Another backend is no fault of datagrams.
    fn changed(&self, answer: &Answer) -> How {
        let before = self.answered.as_ref();
        if self.target.protocol == Protocol::Udp
            && before.is_some_and(|before| before.backend != answer.backend)
        {
            return How::Moved;
        }
        How::Failed(Failure::Wrong(format!(
            "{answer:?} answers, not {before:?}"
        )))
    }

    fn heard_well(&mut self, bytes: usize) {
        self.exchanges += 1;
        self.bytes += bytes as u64;
        self.heard = Instant::now();
    }

    /// One transfer each way over a connection whose server has said who it is.
    async fn bulk(&mut self) -> Result<(), How> {
        const HTTP: Protocol = Protocol::Http;
        let (source, target) = (self.source, self.target.address);
        let opening = async { Ok(connect(source, target).await?) };
        let mut connection = patient(HTTP, opening).await?;
        self.answered = Some(patient(HTTP, ask_http(&mut connection)).await?);
        self.heard_well(0);
        self.download(&mut connection).await?;
        self.upload(&mut connection).await
    }

    async fn download(&mut self, connection: &mut BufReader<TcpStream>) -> Result<(), How> {
        let (seed, mut left) = (self.random.random(), self.random.random_range(1..LARGEST));
        let request = format!("GET /download/{seed}/{left} HTTP/1.1\r\nHost: lbt\r\n\r\n");
        let announced = patient(Protocol::Http, async {
            connection.write_all(request.as_bytes()).await?;
            read_http_head(connection).await
        });
        if announced.await? != left {
            return Err(How::Failed(Failure::Wrong("another length".to_owned())));
        }
        let (mut stream, mut expected, mut received) =
            (Stream::new(seed), vec![0; CHUNK], vec![0; CHUNK]);
        while left > 0 {
            let part = left.min(CHUNK as u64) as usize;
            let reading = async {
                connection.read_exact(&mut received[..part]).await?;
                Ok(())
            };
            patient(Protocol::Http, reading).await?;
            stream.fill(&mut expected);
            if received[..part] != expected[..part] {
                return Err(How::Failed(Failure::Wrong("other bytes".to_owned())));
            }
            left -= part as u64;
            self.heard_well(part);
        }
        Ok(())
    }

    async fn upload(&mut self, connection: &mut BufReader<TcpStream>) -> Result<(), How> {
        let (seed, length) = (self.random.random(), self.random.random_range(1..LARGEST));
        let head = format!("POST /upload HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
        let (mut stream, mut buffer, mut left) = (Stream::new(seed), vec![0; CHUNK], length);
        let sending = async { Ok(connection.write_all(head.as_bytes()).await?) };
        patient(Protocol::Http, sending).await?;
        while left > 0 {
            stream.fill(&mut buffer);
            let part = left.min(CHUNK as u64) as usize;
            let sending = async { Ok(connection.write_all(&buffer[..part]).await?) };
            patient(Protocol::Http, sending).await?;
            left -= part as u64;
            // Sent is not heard.
            self.bytes += part as u64;
        }
        let mut body = Vec::new();
        let answer = async {
            body.resize(read_http_head(connection).await? as usize, 0);
            connection.read_exact(&mut body).await?;
            Ok(())
        };
        patient(Protocol::Http, answer).await?;
        if body != format!("{} {length}", bulk::digest(seed, length)).into_bytes() {
            return Err(How::Failed(Failure::Wrong(
                "other bytes arrived".to_owned(),
            )));
        }
        self.heard_well(0);
        Ok(())
    }
}
