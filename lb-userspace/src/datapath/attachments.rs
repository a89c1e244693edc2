//! All devices together: which are served, how, and what had to be repaired.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use aya::Ebpf;
use tracing::{info, warn};

use super::{
    Attachment,
    attach::{Hooks, Served},
    devices::{self, Device},
    sysctl,
    undo::Undo,
};
use crate::model::Node;

pub(super) struct Attachments {
    hooks: Hooks,
    undo: Undo,
    node: Node,
    /// By device number: the name, and how the device is served or why not.
    served: BTreeMap<u32, (String, Outcome)>,
    /// Configured names without a device.
    missing: Vec<String>,
}

type Outcome = Result<Served, String>;

impl Attachments {
    /// Attaches to the configured devices and releases all others.
    ///
    /// # Errors
    /// A device does not exist, or cannot be served as configured.
    pub(super) fn start(hooks: Hooks, undo: Undo, node: &Node) -> Result<Self> {
        let mut new = Self {
            hooks,
            undo,
            node: node.clone(),
            served: BTreeMap::new(),
            missing: Vec::new(),
        };
        let all = devices::list()?;
        let (chosen, missing) = new.select(&all)?;
        devices::require(&chosen, &missing, &all)?;
        for change in new.serve(&chosen, &all)? {
            info!("{change}");
        }
        for (name, outcome) in new.served.values() {
            match outcome {
                Ok(_) => warn_of(name, outcome),
                Err(error) => bail!("{error}"),
            }
        }
        Ok(new)
    }

    /// Has other programs, which use the same maps, take the place of these.
    pub(super) fn replace_programs(&mut self, ebpf: Ebpf) -> Result<()> {
        self.hooks.replace(ebpf)?;
        self.repair().map(drop)
    }

    /// Brings everything back to what is configured, devices that came or went included. Returns
    /// what it changed; what it cannot change it logs, once.
    pub(super) fn repair(&mut self) -> Result<Vec<String>> {
        let all = devices::list()?;
        let (chosen, missing) = self.select(&all)?;
        let before = self.served.clone();
        let repaired = self.serve(&chosen, &all)?;
        for (index, (name, outcome)) in &self.served {
            if before.get(index).map(|(_, was)| was) != Some(outcome) {
                warn_of(name, outcome);
            }
        }
        if !missing.is_empty() && missing != self.missing {
            let names = missing.join(", ");
            warn!("not served, because there is no such device: {names}");
        }
        self.missing = missing;
        Ok(repaired)
    }

    /// What the packet path is to know of every device, right now.
    pub(super) fn device_words(&self) -> Result<BTreeMap<u32, u32>> {
        let native = |(_, outcome): &(String, Outcome)| *outcome == Ok(Served::Native);
        device_words(self.served.values().any(native))
    }

    /// Name of each device, and how it is served.
    pub(super) fn describe(&self) -> Vec<(String, Attachment)> {
        let present = self.served.values().map(|(name, outcome)| {
            let how = match outcome {
                Ok(served) => Attachment::Served(served.name()),
                Err(error) => Attachment::Refused(error.clone()),
            };
            (name.clone(), how)
        });
        let missing = self.missing.iter();
        let missing = missing.map(|name| (name.clone(), Attachment::Missing));
        present.chain(missing).collect()
    }

    fn select<'a>(&self, all: &'a [Device]) -> Result<(Vec<&'a Device>, Vec<String>)> {
        let default_route = devices::with_default_route()?;
        let serving = self.served.keys().copied().collect();
        let interfaces = &self.node.interfaces;
        Ok(devices::select(interfaces, all, &default_route, &serving))
    }

    /// Says what it changed. A device that cannot be served keeps its error.
    fn serve(&mut self, chosen: &[&Device], all: &[Device]) -> Result<Vec<String>> {
        let mut changes = Vec::new();
        let mut served = BTreeMap::new();
        for device in chosen {
            let outcome = match self.hooks.serve(device, self.node.xdp, &mut self.undo) {
                Ok((how, changed)) => {
                    changes.extend(changed);
                    Ok(how)
                }
                Err(error) => Err(format!("{error:#}")),
            };
            changes.extend(sysctl::let_forward(&device.name, &mut self.undo)?);
            served.insert(device.index, (device.name.clone(), outcome));
        }
        let keep = served.keys().copied().collect();
        changes.extend(self.hooks.release_others(&keep, all, &self.undo)?);
        self.hooks.pin_programs()?;
        self.served = served;
        Ok(changes)
    }
}

/// What the packet path is to know of every device, right now, if native XDP is in use and if not.
pub(super) fn device_words(any_native: bool) -> Result<BTreeMap<u32, u32>> {
    let told = devices::redirect_targets();
    let all = devices::list()?;
    let direct = devices::direct(&all, told, any_native);
    Ok(devices::words(&all, &direct))
}

fn warn_of(name: &str, outcome: &Outcome) {
    match outcome {
        Ok(Served::Native | Served::Generic | Served::Tc(None)) => {}
        Ok(Served::Tc(Some(reason))) => warn!("{name}: XDP is not used: {reason}"),
        Err(error) => warn!("{name}: not served: {error}"),
    }
}
