//! The network of a scene, its services, and the hands that break things there.
//!
//! ```text
//!   nat                    ┌── b1                    direct        ┌── b1   each holds the
//!   client ── node (lbd) ──┼── b2   behind a         client ──┐    ├── b2   service's address
//!                          ├── b3   switch             node ──┴────┼── b3
//!                          └── b4                      (lbd) switch└── b4
//! ```

use std::{
    fmt::Write as _,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    judge::History,
    plan::{BACKENDS, Fault, Trouble},
    traffic::Target,
};
use crate::{
    clients::Protocol,
    daemon::{Config, Service},
    direct::{DATAGRAM_PORT, Direct},
    net::{Family, Layout, Network, Topology},
    servers::{ECHO_PORT, HTTP_PORT},
    world::World,
};

const FILE: &str = "lbd/instances/instances.yaml";
/// Datagrams are served at a port where no TCP is.
const DATAGRAM_HEALTH: &str = "{type: tcp, port: 7000, interval: 300ms, fast_interval: 100ms, \
     timeout: 200ms, rise: 2, fall: 3}";
/// What is idle is gone soon, and none of the clients is idle.
const TIMEOUTS: &str = "{tcp_established: 30s, tcp_closing: 15s, tcp_closed: 5s, udp: 15s}";
const LIMITS: &str = "{connections: 20000, handshakes: 20000, sources: 100, clients: 100}";

/// A row of the table of services.
struct Row {
    name: &'static str,
    protocol: Protocol,
    /// Of the service's address.
    vip: u8,
    port: u16,
    forwarding: &'static str,
    snat: &'static str,
    on_backend_down: &'static str,
    /// Its backends come from the file, not from the config.
    discovered: bool,
}

const fn row(name: &'static str, protocol: Protocol, vip: u8, port: u16) -> Row {
    Row {
        name,
        protocol,
        vip,
        port,
        forwarding: "nat",
        snat: "auto",
        on_backend_down: "keep",
        discovered: false,
    }
}

const NAT: [Row; 5] = [
    Row {
        snat: "always",
        ..row("tcp-snat", Protocol::Tcp, 0, ECHO_PORT)
    },
    Row {
        snat: "always",
        ..row("udp-snat", Protocol::Udp, 0, ECHO_PORT)
    },
    Row {
        snat: "never",
        discovered: true,
        ..row("tcp-plain", Protocol::Tcp, 1, ECHO_PORT)
    },
    Row {
        snat: "never",
        ..row("udp-plain", Protocol::Udp, 1, ECHO_PORT)
    },
    Row {
        snat: "never",
        on_backend_down: "reset",
        ..row("web", Protocol::Http, 1, HTTP_PORT)
    },
];

const DIRECT: [Row; 5] = [
    Row {
        forwarding: "dsr-l2",
        ..row("tcp-l2", Protocol::Tcp, 0, ECHO_PORT)
    },
    Row {
        forwarding: "dsr-ipip",
        on_backend_down: "reset",
        ..row("tcp-tunnel", Protocol::Tcp, 0, ECHO_PORT + 1)
    },
    Row {
        snat: "always",
        discovered: true,
        ..row("tcp-nat", Protocol::Tcp, 0, ECHO_PORT + 2)
    },
    Row {
        forwarding: "dsr-l2",
        ..row("udp-l2", Protocol::Udp, 0, DATAGRAM_PORT)
    },
    Row {
        forwarding: "dsr-ipip",
        ..row("web", Protocol::Http, 0, HTTP_PORT)
    },
];

/// Which network, and by which hook.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scene {
    pub(super) name: &'static str,
    direct: bool,
    xdp: &'static str,
}

const fn scene(name: &'static str, direct: bool, xdp: &'static str) -> Scene {
    Scene { name, direct, xdp }
}

pub(super) const SCENES: [Scene; 4] = [
    scene("nat xdp", false, "native"),
    scene("nat tc", false, "off"),
    scene("direct xdp", true, "native"),
    scene("direct tc", true, "off"),
];

impl Scene {
    fn rows(&self) -> &'static [Row] {
        if self.direct { &DIRECT } else { &NAT }
    }
}

/// What faults change of the config.
#[derive(Clone, Debug)]
struct Varied {
    weights: [u16; BACKENDS],
    policy: &'static str,
    removed: Vec<usize>,
}

pub(super) struct Stage {
    // Dropped in this order.
    slowed: Vec<(usize, Slowed)>,
    pub(super) world: World,
    _direct: Option<Direct>,
    scene: Scene,
    varied: Varied,
    /// Since when there has been no daemon, and what it is to be told when it is back.
    headless: Option<Instant>,
    to_be_told: Vec<Vec<String>>,
    pub(super) history: History,
}

impl Stage {
    pub(super) fn new(scene: Scene) -> anyhow::Result<Self> {
        let topology = Topology {
            backends: BACKENDS,
            layout: if scene.direct {
                Layout::OneArm
            } else {
                Layout::Switched
            },
            ..Topology::default()
        };
        let varied = Varied {
            weights: [3; BACKENDS],
            policy: "maglev",
            removed: Vec::new(),
        };
        let mut direct = None;
        let world = World::new(topology, |network| {
            if scene.direct {
                direct = Some(Direct::new(network).expect("backends for direct return"));
            }
            let written = crate::daemon::replace_file(
                &network.node,
                FILE,
                &instances(scene, network, &varied),
            );
            written.expect("the node's files can be written");
            config(scene, network, &varied)
        })?;
        let rows = scene.rows().iter();
        let resets = rows.filter(|row| row.on_backend_down == "reset");
        Ok(Self {
            slowed: Vec::new(),
            world,
            _direct: direct,
            scene,
            varied,
            headless: None,
            to_be_told: Vec::new(),
            history: History {
                resets_when_down: resets.map(|row| row.name).collect(),
                ..History::default()
            },
        })
    }

    /// Where clients go.
    pub(super) fn targets(&self) -> Vec<Target> {
        let network = &self.world.network;
        let rows = self.scene.rows().iter();
        rows.flat_map(|row| {
            Family::BOTH.map(|family| Target {
                service: row.name,
                protocol: row.protocol,
                address: (network.vip(row.vip, family), row.port).into(),
            })
        })
        .collect()
    }

    pub(super) fn sources(&self) -> [Vec<IpAddr>; 2] {
        Family::BOTH.map(|family| self.world.network.client_addresses(family))
    }

    pub(super) fn begin(&mut self, fault: Fault) -> anyhow::Result<()> {
        match fault {
            Fault::Server(place, trouble) => self.begin_trouble(place, trouble),
            Fault::Link => self.world.network.unplug_node(true),
            Fault::Drained(place, deadline) => {
                self.each_backend(place, &|named| drain(named, deadline))
            }
            Fault::Removed(place) => {
                self.varied.removed.push(place);
                self.write_instances()?;
                self.reconfigure()
            }
            Fault::Weights(seed) => {
                let mut random = StdRng::seed_from_u64(seed);
                self.varied.weights = std::array::from_fn(|_| random.random_range(1..10));
                self.write_instances()?;
                self.reconfigure()
            }
            Fault::Policy(policy) => {
                self.varied.policy = policy;
                self.reconfigure()
            }
            Fault::RegistryBroken => self
                .world
                .daemon
                .replace_file(FILE, "instances:\n- {address: [nowhere\n"),
            Fault::RegistryGone => {
                let path = self.world.network.node.run_path(FILE);
                Ok(std::fs::remove_file(path)?)
            }
            Fault::DaemonKilled => {
                self.headless = Some(Instant::now());
                self.world.daemon.kill9();
                Ok(())
            }
            Fault::DaemonStopped => {
                self.headless = Some(Instant::now());
                self.world.daemon.stop()
            }
        }
    }

    pub(super) fn end(&mut self, fault: Fault) -> anyhow::Result<()> {
        match fault {
            Fault::Server(place, trouble) => self.end_trouble(place, trouble),
            Fault::Link => self.world.network.unplug_node(false),
            Fault::Drained(place, _) => self.each_backend(place, &|named| {
                ["unset", "all", named].map(str::to_owned).to_vec()
            }),
            Fault::Removed(place) => {
                self.varied.removed.retain(|removed| *removed != place);
                self.write_instances()?;
                self.reconfigure()
            }
            // The next change ends them.
            Fault::Weights(_) | Fault::Policy(_) => Ok(()),
            Fault::RegistryBroken | Fault::RegistryGone => self.write_instances(),
            Fault::DaemonKilled | Fault::DaemonStopped => self.bring_back(),
        }
    }

    fn begin_trouble(&mut self, place: usize, trouble: Trouble) -> anyhow::Result<()> {
        let agent = &mut self.world.agents[place - 1];
        match trouble {
            Trouble::Killed => agent.kill(),
            Trouble::Paused => agent.pause(true),
            Trouble::CutOff => self.world.network.cut_off(place, true)?,
            Trouble::Slow => self.slowed.push((place, Slowed::start(agent.pid()))),
            Trouble::Resets => agent.reset_connections(true),
        }
        Ok(())
    }

    fn end_trouble(&mut self, place: usize, trouble: Trouble) -> anyhow::Result<()> {
        let agent = &mut self.world.agents[place - 1];
        match trouble {
            Trouble::Killed => agent.restart()?,
            Trouble::Paused => agent.pause(false),
            Trouble::CutOff => self.world.network.cut_off(place, false)?,
            Trouble::Slow => self.slowed.retain(|(slowed, _)| *slowed != place),
            Trouble::Resets => agent.reset_connections(false),
        }
        Ok(())
    }

    fn bring_back(&mut self) -> anyhow::Result<()> {
        self.world.daemon.restart()?;
        let gone = self.headless.take().unwrap_or_else(Instant::now);
        self.history.headless.push((gone, Instant::now()));
        let orders = std::mem::take(&mut self.to_be_told);
        if orders.is_empty() {
            return Ok(());
        }
        for order in orders {
            self.tell(order)?;
        }
        self.history.told_late(gone, Instant::now());
        Ok(())
    }

    /// `lbctl`, as soon as there is somebody who listens.
    fn tell(&mut self, order: Vec<String>) -> anyhow::Result<()> {
        if self.headless.is_some() {
            self.to_be_told.push(order);
            return Ok(());
        }
        let words: Vec<_> = order.iter().map(String::as_str).collect();
        self.world.daemon.ctl(&words)?;
        Ok(())
    }

    /// An order about a backend of every service.
    fn each_backend(
        &mut self,
        place: usize,
        order: &dyn Fn(&str) -> Vec<String>,
    ) -> anyhow::Result<()> {
        for row in self.scene.rows() {
            for family in Family::BOTH {
                let address = self.world.network.backend(place, family);
                let named = match address {
                    IpAddr::V4(ip) => format!("{}/{ip}:{}", row.name, row.port),
                    IpAddr::V6(ip) => format!("{}/[{ip}]:{}", row.name, row.port),
                };
                self.tell(order(&named))?;
            }
        }
        Ok(())
    }

    fn reconfigure(&mut self) -> anyhow::Result<()> {
        let config = config(self.scene, &self.world.network, &self.varied);
        self.world.daemon.write_config(&config.render())?;
        // A start reads it anyway.
        if self.headless.is_some() {
            return Ok(());
        }
        self.tell(vec!["reload".to_owned()])
    }

    fn write_instances(&self) -> anyhow::Result<()> {
        let text = instances(self.scene, &self.world.network, &self.varied);
        self.world.daemon.replace_file(FILE, &text)
    }
}

fn drain(named: &str, deadline: Option<u64>) -> Vec<String> {
    let mut order = vec!["drain".to_owned(), named.to_owned()];
    if let Some(ms) = deadline {
        order.extend(["--timeout".to_owned(), format!("{ms}ms")]);
    }
    order
}

fn config(scene: Scene, network: &Network, varied: &Varied) -> Config {
    let mut config = Config::new(network, scene.xdp);
    config.node.push(("timeouts", TIMEOUTS.to_owned()));
    config.node.push(("limits", LIMITS.to_owned()));
    for row in scene.rows() {
        let mut service = Service::new(row.name, row.protocol).listen(network, row.vip, row.port);
        service.policy = varied.policy;
        service.snat = row.snat;
        service.forwarding = row.forwarding;
        service.on_backend_down = row.on_backend_down;
        if row.port == DATAGRAM_PORT {
            service.health = DATAGRAM_HEALTH;
        }
        if row.discovered {
            service = service.discovery(format!("{{file: {{path: /run/{FILE}}}}}"));
        } else {
            service = service.backends(network, row.port, &varied.weights);
            let is_removed = |ip| {
                let mut removed = varied.removed.iter();
                removed.any(|i| Family::BOTH.iter().any(|f| network.backend(*i, *f) == ip))
            };
            service
                .backends
                .retain(|(address, _)| !is_removed(address.ip()));
        }
        config = config.service(service);
    }
    config
}

/// What the registry says.
fn instances(scene: Scene, network: &Network, varied: &Varied) -> String {
    let mut rows = scene.rows().iter();
    let port = rows.find(|row| row.discovered).map_or(0, |row| row.port);
    let mut text = "instances:\n".to_owned();
    for place in (1..=BACKENDS).filter(|place| !varied.removed.contains(place)) {
        for family in Family::BOTH {
            let address = std::net::SocketAddr::new(network.backend(place, family), port);
            let weight = varied.weights[place - 1];
            let _ = writeln!(text, "- {{address: \"{address}\", weight: {weight}}}");
        }
    }
    text
}

/// A process that runs a third of the time, until this is dropped.
struct Slowed {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Slowed {
    /// The process must not be waited for meanwhile.
    fn start(process: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let signal = move |signal| {
            // SAFETY: a signal to a child process that has not been waited for.
            unsafe { libc::kill(process as libc::pid_t, signal) };
        };
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                signal(libc::SIGSTOP);
                sleep(Duration::from_millis(60));
                signal(libc::SIGCONT);
                sleep(Duration::from_millis(30));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Slowed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
