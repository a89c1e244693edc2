//! One question to servers, one after another, by UDP and TCP.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::op::ResponseCode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout, timeout_at},
};

use super::message::{Answer, Question, Reply, Wrong, ask, read};
use crate::discovery::{Class, Failure};

/// Times that a server is asked which gives no answer: a datagram may get lost.
const TRIES: usize = 2;

/// Whom to ask.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) servers: Vec<SocketAddr>,
    /// For one answer of one server.
    pub(super) timeout: Duration,
    /// Place of the server that answered last: one that is dead is waited for once, not every time.
    pub(super) first: Arc<AtomicUsize>,
}

impl Client {
    pub(super) async fn ask(&self, question: &Question) -> Result<Answer, Failure> {
        let count = self.servers.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut failures: Vec<(usize, Failure)> = Vec::new();
        for attempt in 0..TRIES {
            for offset in 0..count {
                let place = (first + offset) % count;
                let known = failures.iter().position(|(at, _)| *at == place);
                // One that said no is not asked again.
                let silent =
                    |at: usize| matches!(failures[at].1.class, Class::Timeout | Class::Malformed);
                if attempt > 0 && !known.is_some_and(silent) {
                    continue;
                }
                match self.ask_one(self.servers[place], question).await {
                    Ok(answer) => {
                        self.first.store(place, Ordering::Relaxed);
                        return Ok(answer);
                    }
                    Err(failure) => match known {
                        Some(at) => failures[at].1 = failure,
                        None => failures.push((place, failure)),
                    },
                }
            }
        }
        let class = failures.first().map_or(Class::Config, |(_, f)| f.class);
        let words: Vec<_> = failures.into_iter().map(|(_, f)| f.message).collect();
        let message = format!("{question}: {}", words.join("; "));
        Err(Failure::new(class, message))
    }

    async fn ask_one(&self, server: SocketAddr, question: &Question) -> Result<Answer, Failure> {
        let mut reply = self.by_udp(server, question, true).await?;
        let no_edns = |code: &ResponseCode| {
            use ResponseCode::{BADVERS, FormErr, NotImp};
            matches!(code, FormErr | NotImp | BADVERS)
        };
        if matches!(&reply, Reply::Error(code) if no_edns(code)) {
            reply = self.by_udp(server, question, false).await?;
        }
        let by = match reply {
            Reply::Truncated => {
                reply = self.by_tcp(server, question).await?;
                " by TCP"
            }
            _ => "",
        };
        match reply {
            Reply::Answer(answer) => Ok(answer),
            Reply::Truncated => Err(Failure::new(
                Class::Malformed,
                format!("{server} cuts its answer short even by TCP"),
            )),
            Reply::Error(code) => Err(Failure::new(
                Class::Refused,
                format!("{server} answers {}{by}", words(code)),
            )),
            Reply::Referral => Err(Failure::new(
                Class::Refused,
                format!(
                    "{server} refers to other servers{by}; it must resolve for lbd, or hold the zone"
                ),
            )),
        }
    }

    /// What does not belong to the question is passed over: anyone can send a datagram.
    async fn by_udp(
        &self,
        server: SocketAddr,
        question: &Question,
        edns: bool,
    ) -> Result<Reply, Failure> {
        let unreachable = |error: io::Error| unreachable(server, "UDP", &error);
        let id = rand::random();
        let question_bytes = written(question, id, edns)?;
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // Another port for each question, so that an answer is hard to forge.
        let socket = UdpSocket::bind((any, 0)).await.map_err(unreachable)?;
        socket.connect(server).await.map_err(unreachable)?;
        socket.send(&question_bytes).await.map_err(unreachable)?;
        let end = Instant::now() + self.timeout;
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let mut wrong = None;
        loop {
            let Ok(received) = timeout_at(end, socket.recv(&mut buffer)).await else {
                return Err(self.silence(server, wrong));
            };
            let length = received.map_err(unreachable)?;
            match read(&buffer[..length], id, question) {
                Ok(reply) => return Ok(reply),
                Err(other) => wrong = Some(other),
            }
        }
    }

    fn silence(&self, server: SocketAddr, wrong: Option<Wrong>) -> Failure {
        let limit = self.timeout;
        match wrong {
            None => Failure::new(
                Class::Timeout,
                format!("{server} gives no answer within {limit:?}"),
            ),
            Some(wrong) => Failure::new(
                Class::Malformed,
                format!("{server} gives no answer within {limit:?}, but {wrong}"),
            ),
        }
    }

    async fn by_tcp(&self, server: SocketAddr, question: &Question) -> Result<Reply, Failure> {
        let id = rand::random();
        let message = written(question, id, true)?;
        let exchanged = timeout(self.timeout, exchange(server, &message)).await;
        let answer = exchanged
            .map_err(|_| {
                let limit = self.timeout;
                let message = format!("{server} gives no whole answer by TCP within {limit:?}");
                Failure::new(Class::Timeout, message)
            })?
            .map_err(|error| unreachable(server, "TCP", &error))?;
        read(&answer, id, question).map_err(|wrong| {
            Failure::new(Class::Malformed, format!("{server} sends by TCP {wrong}"))
        })
    }
}

async fn exchange(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    // In one segment: some servers read no further than the first.
    let framed = [&length.to_be_bytes()[..], message].concat();
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn written(question: &Question, id: u16, edns: bool) -> Result<Vec<u8>, Failure> {
    ask(question, id, edns).map_err(|fault| Failure::new(Class::Internal, fault))
}

fn unreachable(server: SocketAddr, by: &str, error: &io::Error) -> Failure {
    let (class, what) = match error.kind() {
        io::ErrorKind::ConnectionRefused => (Class::Unreachable, "nobody listens there".to_owned()),
        io::ErrorKind::UnexpectedEof => (
            Class::Malformed,
            "it ends the connection before its answer is whole".to_owned(),
        ),
        _ => (Class::Unreachable, error.to_string()),
    };
    Failure::new(class, format!("{server} by {by}: {what}"))
}

/// As the RFCs and other programs name it.
fn words(code: ResponseCode) -> String {
    match code {
        ResponseCode::ServFail => "SERVFAIL (it cannot resolve the name now)".to_owned(),
        ResponseCode::Refused => "REFUSED (it does not serve lbd, or not this name)".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        ResponseCode::NotAuth => "NOTAUTH".to_owned(),
        other => format!("error {} ({other})", u16::from(other)),
    }
}
