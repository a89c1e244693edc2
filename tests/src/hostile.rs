//! What tests of sources that mean harm have in common: services whose backends these sources found
//! while they were well, and what must hold whatever they say then.

use std::{cell::Cell, collections::BTreeMap, net::SocketAddr, time::Duration};

use lb_userspace::discovery::{Class, SourceItem};

use crate::{
    clients::{Herd, Protocol, burst, summary},
    daemon::{Config, Daemon, Service},
    eventually,
    net::{Family, Network},
    note,
    servers::{Agent, ECHO_PORT, start_all},
};

/// Hosts whose backends the sources find while they are well.
pub const HOSTS: [usize; 3] = [1, 2, 3];

/// Longest wait for a source to say that something is wrong: each has an end in time of its own for an
/// answer, and asks more than once.
const TOLD: Duration = Duration::from_secs(90);
/// Longest wait for all to be well.
const WELL: Duration = Duration::from_secs(60);
/// What a person may have to read.
const WORDS: usize = 1000;
/// Connections that are open while harm is done, to each service.
const OPEN: usize = 12;

/// A source: its kind, and what stands in its braces but `merge_window`.
#[derive(Clone, Debug)]
pub struct Suspect {
    pub kind: &'static str,
    pub keys: String,
}

impl Suspect {
    pub fn new(kind: &'static str, keys: impl Into<String>) -> Self {
        Self {
            kind,
            keys: keys.into(),
        }
    }
}

/// The errors by class of each service's source.
type Errors = BTreeMap<String, BTreeMap<String, u64>>;

/// A node with a service for each of some sources.
pub struct Victims {
    // Dropped in this order.
    pub daemon: Daemon,
    _agents: Vec<Agent>,
    pub network: Network,
    suspects: Vec<Suspect>,
    turn: Cell<u32>,
    next_port: Cell<u16>,
    /// Resident bytes while all are well.
    usual: u64,
}

impl Victims {
    /// Waits until each source has found all of [`HOSTS`].
    pub fn new(network: Network, suspects: Vec<Suspect>) -> Self {
        let agents = start_all(&network.backends).unwrap();
        let config = config(&network, &suspects, 0);
        let daemon = Daemon::start(&network.node, &config).unwrap();
        let mut victims = Self {
            daemon,
            _agents: agents,
            network,
            suspects,
            turn: Cell::new(0),
            next_port: Cell::new(20_000),
            usual: 0,
        };
        victims.wait_well();
        victims.daemon.wait_all_healthy().unwrap();
        victims.usual = victims.daemon.resident_bytes().unwrap();
        victims
    }

    /// Does harm, and has every source ask at once. Each must come to fail, with an error of a class
    /// that `fitting` names for its kind and in words that a person can read. Meanwhile lbd takes no more
    /// than `room` bytes beyond the usual, lbctl is answered, and no backend and no connection is lost.
    pub fn suffer(
        &self,
        what: &str,
        fitting: impl Fn(&str) -> &'static [Class],
        room: u64,
        harm: impl FnOnce(),
    ) {
        let herds: Vec<_> = (0..self.suspects.len()).map(|n| self.herd(n)).collect();
        let pool = self.pool();
        self.daemon.forget_peak().unwrap();
        harm();
        self.ask_again();
        // What fails from now on fails by this harm.
        let before = self.errors();
        let mut silent = Vec::new();
        let told = eventually(TOLD, || {
            let now = self.errors();
            silent = before
                .iter()
                .filter(|(service, errors)| now[*service] == **errors)
                .map(|(service, _)| service.clone())
                .collect();
            silent.is_empty()
        });
        let sources = self.daemon.sources().unwrap();
        assert!(told, "{what}: {silent:?} complain of nothing: {sources:#?}");
        let peak = self.daemon.peak_bytes().unwrap();
        let beyond = peak.saturating_sub(self.usual);
        note(format!("{what}: at most {} MiB more", beyond >> 20));
        for source in &sources {
            let classes = newly(&source.errors_by_class, &before[&source.service]);
            let fit: Vec<_> = fitting(&source.kind).iter().map(|c| c.name()).collect();
            let words = source.last_error.clone().unwrap_or_default();
            note(format!("    {} {classes:?}: {words:.160}", source.service));
            assert!(
                classes.iter().all(|class| fit.contains(&&**class)),
                "{what}: {classes:?}, not {fit:?}: {source:#?}"
            );
            assert!(words.len() < WORDS, "{what}: {source:#?}");
            assert!(!words.contains(char::is_control), "{what}: {source:#?}");
            assert_eq!(source.state, "failing", "{what}: {source:#?}");
            assert_eq!(source.instances as usize, HOSTS.len(), "{what}");
        }
        assert!(beyond < room, "{what}: {} MiB", beyond >> 20);
        assert_eq!(self.pool(), pool, "{what}");
        for (n, herd) in herds.iter().enumerate() {
            let open = herd.failures(Duration::from_secs(10));
            assert_eq!(open, "none", "{what}: open connections to service {n}");
            self.reach_all(n, what);
        }
    }

    /// Waits until each source is believed again, which is asked at once.
    pub fn recover(&self) {
        self.ask_again();
        self.wait_well();
        let problems = self.daemon.status().unwrap().problems;
        assert_eq!(problems, Vec::<String>::new());
    }

    /// New connections to the service of a suspect, by its number, reach all hosts.
    pub fn reach_all(&self, n: usize, what: &str) {
        let port = self.next_port.get();
        self.next_port.set(20_000 + (port - 20_000 + 100) % 10_000);
        let sources = self.network.client_addresses(Family::V4);
        let client = &self.network.client;
        let result = burst(client, &sources, port, 60, Protocol::Tcp, self.target(n));
        assert_eq!(summary(&result.failures), "none", "{what}: service {n}");
        assert_eq!(result.by_backend.len(), HOSTS.len(), "{what}: service {n}");
    }

    /// Has every source begin anew, by other settings of it: one that failed waits a while.
    pub fn ask_again(&self) {
        self.turn.set(self.turn.get() + 1);
        let config = config(&self.network, &self.suspects, self.turn.get());
        self.daemon.write_config(&config.render()).unwrap();
        self.daemon.ctl(&["reload"]).unwrap();
    }

    fn herd(&self, n: usize) -> Herd {
        let sources = self.network.client_addresses(Family::V4);
        Herd::open(&self.network.client, &sources, self.target(n), OPEN).unwrap()
    }

    fn target(&self, n: usize) -> SocketAddr {
        (self.network.vip(n as u8, Family::V4), ECHO_PORT).into()
    }

    fn wait_well(&self) {
        let mut last = Vec::new();
        let is_well = |s: &SourceItem| s.state == "synced" && s.instances as usize == HOSTS.len();
        let well = eventually(WELL, || {
            last = self.daemon.sources().unwrap();
            last.len() == self.suspects.len() && last.iter().all(is_well)
        });
        assert!(well, "{last:#?}");
    }

    /// Each backend with its weight, and what of it is in force.
    pub fn pool(&self) -> Vec<(String, SocketAddr, u16, u32)> {
        let backends = self.daemon.backends().unwrap().into_iter();
        let pool = backends.map(|b| (b.service, b.address, b.weight, b.effective_weight));
        let mut pool: Vec<_> = pool.collect();
        pool.sort();
        pool
    }

    fn errors(&self) -> Errors {
        let sources = self.daemon.sources().unwrap().into_iter();
        sources.map(|s| (s.service, s.errors_by_class)).collect()
    }
}

fn config(network: &Network, suspects: &[Suspect], turn: u32) -> Config {
    let mut config = Config::new(network, "native");
    for (n, Suspect { kind, keys }) in (0..).zip(suspects) {
        let window = 100 + turn;
        let service = Service::new(&format!("s{n}-{kind}"), Protocol::Tcp)
            .listen(network, n, ECHO_PORT)
            .discovery(format!("{{{kind}: {{{keys}, merge_window: {window}ms}}}}"));
        config = config.service(service);
    }
    config
}

/// Classes of which there are more than before.
fn newly(now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> Vec<String> {
    let more = now
        .iter()
        .filter(|(class, n)| before.get(*class) != Some(n));
    more.map(|(class, _)| class.clone()).collect()
}
