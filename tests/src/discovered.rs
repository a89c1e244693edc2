//! What tests of discovery sources have in common: a service `web` whose backends a source finds,
//! and traffic to them.

use std::{
    cell::Cell,
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_userspace::{api::types::BackendItem, discovery::SourceItem};

use crate::{
    clients::{Burst, LongLived, Protocol, any_port, ask_once, burst, summary},
    daemon::{Config, Daemon, Service},
    eventually,
    net::{Family, Network, Topology},
    note,
    servers::{Agent, ECHO_PORT, start_all},
};

/// Longest wait for something that is to happen.
pub const LONG: Duration = Duration::from_secs(30);

/// A network with a registry of kind `R` and a daemon that asks it. Its methods panic where a test
/// would.
pub struct Scene<R> {
    // Dropped in this order.
    pub daemon: Daemon,
    _agents: Vec<Agent>,
    pub registry: R,
    pub network: Network,
    next_port: Cell<u16>,
}

/// The service, whose `discovery` is this YAML.
pub fn web_service(network: &Network, discovery: impl Into<String>) -> Service {
    Service::new("web", Protocol::Tcp)
        .listen(network, 0, ECHO_PORT)
        .discovery(discovery)
}

impl<R> Scene<R> {
    /// `registry` is started first; `discovery` is the service's, as YAML.
    pub fn new(registry: impl FnOnce(&Network) -> R, discovery: &str) -> Self {
        let network = Network::new(Topology::default()).unwrap();
        let registry = registry(&network);
        let service = web_service(&network, discovery);
        Self::with(network, registry, service)
    }

    /// The same with a service that is like [`web_service`].
    pub fn with(network: Network, registry: R, service: Service) -> Self {
        let agents = start_all(&network.backends).unwrap();
        let config = Config::new(&network, "native").service(service);
        let daemon = Daemon::start(&network.node, &config).unwrap();
        Self {
            daemon,
            _agents: agents,
            registry,
            network,
            next_port: Cell::new(10_000),
        }
    }

    /// The echo server of a host.
    pub fn address(&self, host: usize) -> SocketAddr {
        (self.network.backend(host, Family::V4), ECHO_PORT).into()
    }

    fn target(&self) -> SocketAddr {
        (self.network.vip(0, Family::V4), ECHO_PORT).into()
    }

    pub fn burst(&self, count: usize) -> Burst {
        let port = self.next_port.get();
        self.next_port.set(port + 1000);
        let sources = self.network.client_addresses(Family::V4);
        let client = &self.network.client;
        let result = burst(client, &sources, port, count, Protocol::Tcp, self.target());
        assert_eq!(summary(&result.failures), "none");
        result
    }

    /// Backends that a hundred new connections reach.
    pub fn reached(&self) -> Vec<String> {
        self.burst(100).by_backend.into_keys().collect()
    }

    /// Waits until a new connection reaches this host, and says how long it took.
    pub fn wait_reached(&self, host: usize, what: &str) {
        let began = Instant::now();
        let reached = eventually(LONG, || {
            let source = any_port(self.network.client_addresses(Family::V4)[0]);
            let target = self.target();
            let asked = || ask_once(Protocol::Tcp, source, target, "who");
            let answer = self.network.client.run(asked);
            answer.is_ok_and(|answer| answer.backend == format!("b{host}"))
        });
        assert!(reached, "{what}: no connection reaches b{host}");
        note(format!(
            "{what}: a connection reaches it {:.0?} later",
            began.elapsed()
        ));
    }

    /// Waits until the backend on a host satisfies `condition`.
    pub fn wait(&self, host: usize, condition: impl Fn(&BackendItem) -> bool) {
        let address = self.address(host);
        self.daemon
            .wait_backend("web", address, LONG, condition)
            .unwrap();
    }

    /// Waits until the backends on these hosts, and no others, take connections.
    pub fn wait_serving(&self, hosts: &[usize]) {
        let wanted: Vec<_> = hosts.iter().map(|host| self.address(*host)).collect();
        let mut last = Vec::new();
        let met = eventually(LONG, || {
            last = self.daemon.backends().unwrap_or_default();
            let serving = last.iter().filter(|b| b.effective_weight > 0);
            let mut serving: Vec<_> = serving.map(|b| b.address).collect();
            serving.sort();
            serving == wanted
        });
        assert!(met, "not {wanted:?}: {last:#?}");
    }

    pub fn wait_source(&self, condition: impl Fn(&SourceItem) -> bool) -> SourceItem {
        self.daemon.wait_source("web", LONG, condition).unwrap()
    }

    /// Addresses of all backends.
    pub fn known(&self) -> Vec<SocketAddr> {
        let backends = self.daemon.backends().unwrap();
        backends.iter().map(|b| b.address).collect()
    }

    /// Waits until the backend on a host is none any more.
    pub fn wait_gone(&self, host: usize) {
        let gone = self.address(host);
        let met = eventually(LONG, || !self.known().contains(&gone));
        assert!(met, "{gone} is still known");
    }

    /// A connection to the backend on this host.
    pub fn connection_to(&self, host: usize) -> LongLived {
        for _ in 0..200 {
            let source = any_port(self.network.client_addresses(Family::V4)[1]);
            let client = &self.network.client;
            let one = LongLived::open(client, Protocol::Tcp, source, self.target()).unwrap();
            if one.backend() == format!("b{host}") {
                return one;
            }
            one.close().unwrap();
        }
        panic!("no connection reached b{host}");
    }

    pub fn goes_on(&self, connection: &LongLived, when: &str) {
        let goal = connection.exchanges() + 4;
        let alive = eventually(LONG, || {
            connection.exchanges() >= goal || !connection.is_alive()
        });
        assert!(
            alive && connection.is_alive(),
            "{when}: the connection broke"
        );
    }
}
