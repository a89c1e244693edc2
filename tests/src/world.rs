//! A whole balanced network: hosts, servers, and the daemon.

use anyhow::ensure;

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
        let config = configure(&network);
        let daemon = Daemon::start(&network.node, &config)?;
        attached_as_asked(&daemon, config.xdp)?;
        daemon.wait_all_healthy()?;
        Ok(Self {
            daemon,
            agents,
            network,
        })
    }
}

/// A test of XDP or of TC must not pass because the daemon fell back on the other.
fn attached_as_asked(daemon: &Daemon, xdp: &str) -> anyhow::Result<()> {
    let wanted = match xdp {
        "off" => "tc".to_owned(),
        "auto" => return Ok(()),
        mode => format!("xdp {mode}"),
    };
    let interfaces = &daemon.status()?.interfaces;
    let wrong = interfaces.iter().find(|(_, how)| !how.starts_with(&wanted));
    ensure!(
        wrong.is_none() && !interfaces.is_empty(),
        "asked for {wanted}, attached {interfaces:?}"
    );
    Ok(())
}
