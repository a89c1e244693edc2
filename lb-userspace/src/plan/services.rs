use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use lb_common::abi::{Service, backend_state, forwarding, no_backend, policy};

use super::{DesiredService, Input};
use crate::{
    datapath::Listen,
    model::{Forwarding, NoBackend, Policy, is_v6},
};

/// A desired service that has a number.
pub(super) struct Placed<'a> {
    pub(super) desired: &'a DesiredService,
    pub(super) id: u32,
    pub(super) listens: Vec<Listen>,
}

impl Placed<'_> {
    /// The service's entries in the kernel's service maps.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Listen, Service)> {
        self.listens.iter().map(|listen| {
            let service = Service {
                id: self.id,
                table: table_index(self.id, listen.address.ip()),
                policy: match self.desired.policy {
                    Policy::Maglev => policy::MAGLEV,
                    Policy::RoundRobin => policy::ROUND_ROBIN,
                    Policy::Random => policy::RANDOM,
                },
                forwarding: match self.desired.forwarding {
                    Forwarding::Nat => forwarding::NAT,
                    Forwarding::DsrL2 => forwarding::DSR_L2,
                    Forwarding::DsrIpip => forwarding::DSR_IPIP,
                },
                no_backend: match self.desired.no_backend {
                    NoBackend::Reject => no_backend::REJECT,
                    NoBackend::Drop => no_backend::DROP,
                },
                ..Service::default()
            };
            (*listen, service)
        })
    }

    /// The addresses at which the service listens.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.listens.iter().map(|listen| listen.address.ip())
    }
}

/// Table of a service for clients of the family of `address`.
pub const fn table_index(service: u32, address: IpAddr) -> u32 {
    2 * service + is_v6(address) as u32
}

/// Gives every service the id under which the kernel knows any of its listens, else a free one.
pub(super) fn place<'a>(input: Input<'a>, refused: &mut Vec<String>) -> Vec<Placed<'a>> {
    let mut free = FreeIds::new(input);
    let mut adopted = HashSet::new();
    let known = admit_listens(input, refused)
        .into_iter()
        .map(|(desired, listens)| {
            let ids = listens
                .iter()
                .filter_map(|l| input.installed.services.get(l));
            let id = ids
                .map(|s| s.id)
                .find(|id| *id < input.capacity.services && !adopted.contains(id));
            adopted.extend(id);
            (desired, listens, id)
        })
        .collect::<Vec<_>>();
    let mut placed = Vec::with_capacity(known.len());
    for (desired, listens, id) in known {
        match id.or_else(|| free.next()) {
            Some(id) => placed.push(Placed {
                desired,
                id,
                listens,
            }),
            None => refused.push(format!(
                "service {}: the kernel maps have room for {} services; raise node.limits.services",
                desired.name, input.capacity.services
            )),
        }
    }
    placed
}

/// The listens of every service that no other service has and that fit the maps.
fn admit_listens<'a>(
    input: Input<'a>,
    refused: &mut Vec<String>,
) -> Vec<(&'a DesiredService, Vec<Listen>)> {
    let mut owners: HashMap<Listen, &str> = HashMap::new();
    let mut left = [input.capacity.services; 2];
    let mut admitted = Vec::with_capacity(input.desired.services.len());
    for service in &input.desired.services {
        let mut listens = Vec::with_capacity(service.listen.len());
        for address in &service.listen {
            let listen = Listen {
                address: *address,
                protocol: service.protocol,
            };
            let left = &mut left[usize::from(is_v6(address.ip()))];
            if let Some(owner) = owners.get(&listen) {
                refused.push(format!(
                    "service {}: {address}/{} belongs to service {owner}; choose another address or port",
                    service.name, service.protocol
                ));
            } else if *left == 0 {
                refused.push(format!(
                    "service {}: no room for {address}/{}, the kernel maps hold {} addresses per \
                     family; raise node.limits.services",
                    service.name, service.protocol, input.capacity.services
                ));
            } else {
                *left -= 1;
                owners.insert(listen, &service.name);
                listens.push(listen);
            }
        }
        if !listens.is_empty() {
            admitted.push((service, listens));
        }
    }
    admitted
}

/// Ids in ascending order that neither a service nor a flow's backend refers to.
struct FreeIds {
    used: Vec<bool>,
    next: usize,
}

impl FreeIds {
    fn new(input: Input<'_>) -> Self {
        let services = input.installed.services.values().map(|s| s.id);
        let backends = input.installed.backends.values();
        let in_use = backends.filter(|b| b.state != backend_state::FREE);
        let mut used = vec![false; input.capacity.services as usize];
        for id in services.chain(in_use.map(|b| b.service)) {
            if let Some(used) = used.get_mut(id as usize) {
                *used = true;
            }
        }
        Self { used, next: 0 }
    }

    fn next(&mut self) -> Option<u32> {
        let id = self.next + self.used[self.next..].iter().position(|used| !used)?;
        self.next = id + 1;
        Some(id as u32)
    }
}
