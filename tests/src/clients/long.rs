use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::{
    net::UdpSocket,
    time::{sleep, timeout},
};

use super::{Answer, Failure, Protocol, ask_datagram, ask_line, connect, runtime};
use crate::host::Host;

/// Pause between two exchanges.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection counts as broken when an answer takes longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection that exchanges a few bytes every 50 ms until it is closed, and notices any break.
pub struct LongLived {
    stop: Arc<AtomicBool>,
    exchanges: Arc<AtomicU64>,
    backend: String,
    /// `None` once it was closed.
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl LongLived {
    /// Opens the connection and makes the first exchange.
    pub fn open(
        client: &Host,
        protocol: Protocol,
        source: SocketAddr,
        target: SocketAddr,
    ) -> Result<Self, Failure> {
        let (stop, exchanges) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, counter) = (stop.clone(), exchanges.clone());
        let (first, opened) = std::sync::mpsc::channel();
        let thread = client.spawn(move || {
            runtime().block_on(async {
                let mut talk = match Talk::open(protocol, source, target).await {
                    Ok(talk) => talk,
                    Err(failure) => {
                        let _ = first.send(Err(failure));
                        return Err("never opened".to_owned());
                    }
                };
                let begun = Instant::now();
                let mut answered: Option<Answer> = None;
                while !stopped.load(Ordering::Relaxed) {
                    let number = counter.load(Ordering::Relaxed);
                    let answer = talk.exchange(&format!("exchange {number}")).await;
                    let broken = |what: String| {
                        format!(
                            "{:.2?} after opening, exchange {number}: {what}",
                            begun.elapsed()
                        )
                    };
                    let answer = match answer {
                        Ok(answer) => answer,
                        Err(failure) => {
                            let text = broken(failure.to_string());
                            let _ = first.send(Err(failure));
                            return Err(text);
                        }
                    };
                    match &answered {
                        Some(before) if *before != answer => {
                            return Err(broken(format!("{answer:?} answers, not {before:?}")));
                        }
                        Some(_) => {}
                        None => {
                            let _ = first.send(Ok(answer.backend.clone()));
                            answered = Some(answer);
                        }
                    }
                    counter.fetch_add(1, Ordering::Relaxed);
                    sleep(PAUSE).await;
                }
                Ok(())
            })
        });
        let backend = opened.recv().unwrap_or(Err(Failure::Closed))?;
        Ok(Self {
            stop,
            exchanges,
            backend,
            thread: Some(thread),
        })
    }

    /// Name of the backend that serves the connection.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Number of exchanges so far.
    pub fn exchanges(&self) -> u64 {
        self.exchanges.load(Ordering::Relaxed)
    }

    /// False once it broke.
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|t| !t.is_finished())
    }

    /// Closes the connection; an error says when and how it had broken.
    pub fn close(mut self) -> Result<u64, String> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("closed once");
        thread.join().map_err(|_| "panic".to_owned())??;
        Ok(self.exchanges())
    }
}

impl Drop for LongLived {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

enum Talk {
    Stream(tokio::io::BufReader<tokio::net::TcpStream>),
    Datagrams(UdpSocket),
}

impl Talk {
    async fn open(
        protocol: Protocol,
        source: SocketAddr,
        target: SocketAddr,
    ) -> Result<Self, Failure> {
        match protocol {
            Protocol::Udp => {
                let socket = UdpSocket::bind(source).await?;
                socket.connect(target).await?;
                Ok(Self::Datagrams(socket))
            }
            Protocol::Tcp | Protocol::Http => {
                let stream = timeout(crate::patience(PATIENCE), connect(source, target)).await;
                Ok(Self::Stream(stream.map_err(|_| Failure::Timeout)??))
            }
        }
    }

    async fn exchange(&mut self, text: &str) -> Result<Answer, Failure> {
        let answer = async {
            match self {
                Self::Stream(stream) => ask_line(stream, text).await,
                Self::Datagrams(socket) => ask_datagram(socket, text).await,
            }
        };
        timeout(crate::patience(PATIENCE), answer)
            .await
            .unwrap_or(Err(Failure::Timeout))
    }
}
