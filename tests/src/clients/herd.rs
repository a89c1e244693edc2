use std::{
    net::{IpAddr, SocketAddr},
    sync::mpsc,
    thread::JoinHandle,
    time::Duration,
};

use tokio::{io::BufReader, net::TcpStream, task, time::timeout};

use super::{Failure, any_port, ask_line, connect, runtime};
use crate::host::Host;

/// Longest time until a connection is open.
const PATIENCE: Duration = Duration::from_secs(5);

type Connection = BufReader<TcpStream>;

/// Many TCP connections to the echo server that speak when they are told to.
pub struct Herd {
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    /// Each makes an exchange within this time.
    Exchange(Duration, mpsc::Sender<Vec<Result<(), Failure>>>),
    /// So many are closed, the last ones first.
    Close(usize, mpsc::Sender<()>),
}

impl Herd {
    /// Opens `count` connections one after the other, the sources taking turns, each with a first
    /// exchange.
    pub fn open(
        client: &Host,
        sources: &[IpAddr],
        target: SocketAddr,
        count: usize,
    ) -> Result<Self, Failure> {
        let (orders, received) = mpsc::channel();
        let (opened, outcome) = mpsc::channel();
        let sources = sources.to_vec();
        let thread = client.spawn(move || {
            let runtime = runtime();
            let herd = runtime.block_on(async {
                let mut herd = Vec::new();
                for source in sources.into_iter().cycle().take(count) {
                    let open =
                        timeout(crate::patience(PATIENCE), connect(any_port(source), target)).await;
                    herd.push(open.map_err(|_| Failure::Timeout)??);
                    exchange(herd.last_mut().expect("just pushed"), PATIENCE).await?;
                }
                Ok(herd)
            });
            match herd {
                Ok(herd) => {
                    let _ = opened.send(Ok(()));
                    obey(&runtime, herd, &received);
                }
                Err(failure) => {
                    let _ = opened.send(Err(failure));
                }
            }
        });
        outcome.recv().unwrap_or(Err(Failure::Closed))?;
        Ok(Self {
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    /// Every connection makes an exchange, all at once.
    pub fn exchange(&self, patience: Duration) -> Vec<Result<(), Failure>> {
        let (reply, outcome) = mpsc::channel();
        self.order(Order::Exchange(patience, reply));
        outcome.recv().expect("the herd's thread lives")
    }

    /// Failures of one exchange of all, for people.
    pub fn failures(&self, patience: Duration) -> String {
        let outcome = self.exchange(patience);
        super::summary(outcome.iter().filter_map(|one| one.as_ref().err()))
    }

    pub fn close(&self, count: usize) {
        let (reply, done) = mpsc::channel();
        self.order(Order::Close(count, reply));
        done.recv().expect("the herd's thread lives");
    }

    fn order(&self, order: Order) {
        let orders = self.orders.as_ref().expect("until dropped");
        orders.send(order).expect("the herd's thread lives");
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn obey(
    runtime: &tokio::runtime::Runtime,
    mut herd: Vec<Connection>,
    orders: &mpsc::Receiver<Order>,
) {
    for order in orders {
        match order {
            Order::Exchange(patience, reply) => {
                let outcome = task::LocalSet::new().block_on(runtime, async {
                    let speak = |mut one: Connection| async move {
                        let outcome = exchange(&mut one, patience).await;
                        (one, outcome)
                    };
                    let speaking: Vec<_> = herd
                        .drain(..)
                        .map(|one| task::spawn_local(speak(one)))
                        .collect();
                    let mut outcome = Vec::new();
                    for one in speaking {
                        let (connection, result) = one.await.expect("no panic");
                        herd.push(connection);
                        outcome.push(result);
                    }
                    outcome
                });
                let _ = reply.send(outcome);
            }
            Order::Close(count, reply) => {
                let left = herd.len().saturating_sub(count);
                runtime.block_on(async { herd.truncate(left) });
                let _ = reply.send(());
            }
        }
    }
    runtime.block_on(async { herd.clear() });
}

async fn exchange(connection: &mut Connection, patience: Duration) -> Result<(), Failure> {
    let answer = timeout(crate::patience(patience), ask_line(connection, "moo")).await;
    answer.unwrap_or(Err(Failure::Timeout)).map(|_| ())
}
