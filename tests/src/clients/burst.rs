use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::task;

use super::{Failure, Protocol, ask, runtime};
use crate::host::Host;

/// Connections open at once: enough to keep two cores busy.
const CONCURRENCY: usize = 64;

/// Longest time for one connection.
const LIMIT: Duration = Duration::from_secs(5);

/// What became of a number of short connections.
#[derive(Debug, Default)]
pub struct Burst {
    /// Connections by the backend that answered.
    pub by_backend: BTreeMap<String, u64>,
    /// Backend by client address: the flows, for comparison.
    pub by_source: BTreeMap<SocketAddr, String>,
    pub failures: Vec<Failure>,
    pub elapsed: Duration,
}

impl Burst {
    /// Share of a backend among the answered connections, 0–1.
    pub fn share(&self, backend: &str) -> f64 {
        let total: u64 = self.by_backend.values().sum();
        let own = self.by_backend.get(backend).copied().unwrap_or(0);
        own as f64 / total.max(1) as f64
    }
}

/// Opens `count` connections, each from its own source address and port (ports from `first_port`
/// up, the addresses taking turns), so that no two are the same flow.
pub fn burst(
    client: &Host,
    sources: &[IpAddr],
    first_port: u16,
    count: usize,
    protocol: Protocol,
    target: SocketAddr,
) -> Burst {
    let sources = (0..count).map(|i| {
        let port = usize::from(first_port) + i / sources.len();
        let port = u16::try_from(port).expect("not more connections than ports");
        SocketAddr::new(sources[i % sources.len()], port)
    });
    let queue: Vec<_> = sources.rev().collect();
    client.run(|| {
        let began = Instant::now();
        let state = Rc::new(RefCell::new((queue, Burst::default())));
        task::LocalSet::new().block_on(&runtime(), async {
            let workers: Vec<_> = (0..CONCURRENCY)
                .map(|_| task::spawn_local(work(state.clone(), protocol, target)))
                .collect();
            for worker in workers {
                worker.await.expect("a worker does not panic");
            }
        });
        let (_, mut burst) = state.take();
        burst.elapsed = began.elapsed();
        burst
    })
}

async fn work(
    state: Rc<RefCell<(Vec<SocketAddr>, Burst)>>,
    protocol: Protocol,
    target: SocketAddr,
) {
    loop {
        let Some(source) = state.borrow_mut().0.pop() else {
            return;
        };
        let text = format!("from {source}");
        let result = ask(protocol, source, target, &text, LIMIT).await;
        let burst = &mut state.borrow_mut().1;
        match result {
            Ok(answer) => {
                *burst.by_backend.entry(answer.backend.clone()).or_default() += 1;
                burst.by_source.insert(source, answer.backend);
            }
            Err(failure) => burst.failures.push(failure),
        }
    }
}
