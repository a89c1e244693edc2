//! A whole balanced network: hosts, servers, and the daemon.

use crate::{
    daemon::{Config, Daemon},
    net::{Network, Topology},
    servers::{Agent, start_all},
};

/// A network with servers on its backends and the daemon on its node, all backends healthy.
pub struct World {
    // Dropped in this order.
    pub daemon: Daemon,
    /// Agent of backend 1 is element 0.
    pub agents: Vec<Agent>,
    pub network: Network,
}

impl World {
    pub fn new(
        topology: Topology,
        configure: impl FnOnce(&Network) -> Config,
    ) -> anyhow::Result<Self> {
        let network = Network::new(topology)?;
        let agents = start_all(&network.backends)?;
        let daemon = Daemon::start(&network.node, &configure(&network))?;
        daemon.wait_all_healthy()?;
        Ok(Self {
            daemon,
            agents,
            network,
        })
    }
}
