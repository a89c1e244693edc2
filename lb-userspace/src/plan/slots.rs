use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    net::{IpAddr, SocketAddr},
};

use lb_common::abi::{Address, Backend, Be16, V4, V6, backend_flag, backend_state, protocol};

use super::{Admit, DesiredBackend, Input, kept::Kept, services::Placed};
use crate::{
    model::{BackendRef, OnBackendDown, Protocol, is_v6},
    select::Member,
};

/// Where every backend stands.
pub(super) struct Slots {
    /// What every slot in use, or just freed, is to hold; by slot.
    pub(super) backends: Vec<(u32, Backend)>,
    /// By service, in the order of the placed services: its backends with their slots.
    pub(super) members: Vec<Vec<Placement>>,
    pub(super) placement: HashMap<BackendRef, u32>,
    pub(super) retired: HashSet<u32>,
}

pub(super) struct Placement {
    pub(super) member: Member,
    /// Takes new connections.
    pub(super) eligible: bool,
}

/// Gives every backend the slot under which the kernel knows it, else the lowest free one, and
/// retires or frees the slots of backends that are gone.
pub(super) fn assign(
    input: Input<'_>,
    placed: &[Placed<'_>],
    kept: &Kept,
    refused: &mut Vec<String>,
) -> Slots {
    let known = Known::new(input);
    let mut free = FreeSlots::new(input);
    let mut slots = Slots {
        backends: Vec::with_capacity(input.installed.backends.len()),
        members: Vec::with_capacity(placed.len()),
        placement: HashMap::with_capacity(input.installed.backends.len()),
        retired: HashSet::new(),
    };
    for service in placed {
        let known = known.of_service(service.id);
        let mut members = Vec::with_capacity(service.desired.backends.len());
        for backend in &service.desired.backends {
            let entry = entry(service, backend);
            let name = BackendRef {
                service: service.desired.name.clone(),
                address: backend.address,
            };
            let place = match slots.placement.entry(name) {
                Entry::Vacant(place) => place,
                Entry::Occupied(first) => {
                    let name = first.key();
                    refused.push(format!(
                        "backend {name}: listed twice; the first one counts"
                    ));
                    continue;
                }
            };
            match find(known, &entry).or_else(|| free.next(input)) {
                Some((slot, generation)) => {
                    place.insert(slot);
                    let entry = Backend {
                        generation,
                        ..entry
                    };
                    let former = input.installed.backends.get(&slot);
                    slots.backends.push((slot, keep_tunnel(entry, former)));
                    members.push(Placement::new(backend, slot));
                }
                None => refused.push(format!(
                    "backend {}: the kernel maps have room for {} backends; raise \
                     node.limits.backends",
                    place.key(),
                    input.capacity.backends
                )),
            }
        }
        slots.members.push(members);
    }
    slots.add_abandoned(input, kept);
    slots.backends.sort_unstable_by_key(|(slot, _)| *slot);
    slots
}

impl Slots {
    /// Adds the slots in use that no backend was given.
    fn add_abandoned(&mut self, input: Input<'_>, kept: &Kept) {
        let mut wanted = vec![false; input.capacity.backends as usize];
        for (slot, _) in &self.backends {
            wanted[*slot as usize] = true;
        }
        let is_wanted = |slot: u32| wanted.get(slot as usize).is_some_and(|w| *w);
        let has_flows = |slot| match input.present {
            Some(present) => present.get(slot).is_some_and(|n| *n > 0),
            None => true,
        };
        for (slot, backend) in &input.installed.backends {
            if is_wanted(*slot) || backend.state == backend_state::FREE {
                continue;
            }
            if kept.ids.contains(&backend.service) {
                self.backends.push((*slot, *backend));
            } else if input.retired.contains(slot) && !has_flows(slot) {
                self.backends.push((*slot, emptied(backend)));
            } else {
                self.retired.insert(*slot);
                self.backends.push((*slot, retire(backend)));
            }
        }
    }
}

impl Placement {
    fn new(backend: &DesiredBackend, slot: u32) -> Self {
        Self {
            member: Member {
                address: backend.address,
                slot,
                weight: backend.weight,
            },
            eligible: backend.admit == Admit::Active && backend.weight > 0,
        }
    }
}

/// What a free slot holds: a generation that no flow has, and nothing else.
pub(super) fn emptied(backend: &Backend) -> Backend {
    let generation = match backend.state {
        backend_state::FREE => backend.generation,
        _ => after(backend.generation),
    };
    Backend {
        generation,
        ..Backend::default()
    }
}

/// Never 0, which is that of a slot that was never used.
fn after(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}

/// TCP connections of a removed backend go on until they end, unless they were ending already; UDP
/// flows move at once.
fn retire(backend: &Backend) -> Backend {
    let state = match backend.protocol {
        protocol::UDP => backend_state::DOWN,
        _ if backend.ends_flows(false) => backend.state,
        _ => backend_state::DRAINING,
    };
    Backend { state, ..*backend }
}

/// What the slot of a backend holds, but for the generation.
fn entry(service: &Placed<'_>, desired: &DesiredBackend) -> Backend {
    // A packet cannot come from another family's address.
    let fits = |s: &IpAddr| is_v6(*s) == is_v6(desired.address.ip());
    let source = desired.source.filter(fits);
    let tunnel = desired.tunnel.filter(|t| fits(&t.source));
    let tunnel = tunnel.filter(|_| source.is_none());
    let resets = service.desired.on_backend_down == OnBackendDown::Reset;
    let flag = |is_set: bool, bit: u32| if is_set { bit } else { 0 };
    Backend {
        generation: 0,
        state: match desired.admit {
            Admit::Active => backend_state::ACTIVE,
            Admit::Draining => backend_state::DRAINING,
            Admit::Down => backend_state::DOWN,
            Admit::Closed => backend_state::CLOSED,
        },
        address: words(desired.address.ip()),
        source: source
            .or(tunnel.map(|t| t.source))
            .map(words)
            .unwrap_or_default(),
        port: Be16::new(desired.address.port()).0,
        family: if is_v6(desired.address.ip()) { 6 } else { 4 },
        protocol: protocol_number(service.desired.protocol),
        service: service.id,
        flags: flag(source.is_some() && desired.snat, backend_flag::SNAT)
            | flag(tunnel.is_some(), backend_flag::TUNNEL)
            | flag(resets, backend_flag::RESET_WHEN_DOWN),
        spread: low_bits(tunnel.map_or(0, |t| t.spread)).to_be(),
        max_connections: desired.max_connections,
        ..Backend::default()
    }
}

/// A tunnel outlives its service's forwarding, for the connections that began in it, as long as
/// nothing else needs the place of its source: then that is theirs too.
fn keep_tunnel(entry: Backend, former: Option<&Backend>) -> Backend {
    let same = former.filter(|f| f.generation == entry.generation);
    match same {
        Some(f) if entry.source == [0; 4] && f.flags & backend_flag::TUNNEL != 0 => Backend {
            source: f.source,
            spread: f.spread,
            flags: entry.flags | backend_flag::TUNNEL,
            ..entry
        },
        _ => entry,
    }
}

/// Address and port of a backend as the kernel holds them.
pub fn socket_address(backend: &Backend) -> SocketAddr {
    let ip = match backend.family {
        6 => backend.address::<V6>().ip(),
        _ => backend.address::<V4>().ip(),
    };
    (ip, Be16(backend.port).get()).into()
}

fn low_bits(count: u8) -> u32 {
    u32::MAX
        .checked_shr(32_u32.saturating_sub(count.into()))
        .unwrap_or(0)
}

fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(ip) => V4::from(ip).to_words(),
        IpAddr::V6(ip) => V6::from(ip).to_words(),
    }
}

const fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
    }
}

/// What makes a backend of a service the same backend.
type Identity = (u8, u8, u16, [u32; 4]);

const fn identity(backend: &Backend) -> Identity {
    (
        backend.family,
        backend.protocol,
        backend.port,
        backend.address,
    )
}

/// Slots in use, ordered by service and backend.
struct Known {
    slots: Vec<(u32, Identity, u32, u32)>,
}

impl Known {
    fn new(input: Input<'_>) -> Self {
        let in_use = input.installed.backends.iter().filter(|(slot, backend)| {
            backend.state != backend_state::FREE && **slot < input.capacity.backends
        });
        let mut slots: Vec<_> = in_use
            .map(|(slot, b)| (b.service, identity(b), *slot, b.generation))
            .collect();
        slots.sort_unstable();
        Self { slots }
    }

    fn of_service(&self, id: u32) -> &[(u32, Identity, u32, u32)] {
        let first = self.slots.partition_point(|s| s.0 < id);
        let own = &self.slots[first..];
        &own[..own.partition_point(|s| s.0 == id)]
    }
}

/// Slot and generation of a backend among its service's.
fn find(own: &[(u32, Identity, u32, u32)], backend: &Backend) -> Option<(u32, u32)> {
    let identity = identity(backend);
    let (_, found, slot, generation) = own.get(own.partition_point(|s| s.1 < identity))?;
    (*found == identity).then_some((*slot, *generation))
}

/// Free slots in ascending order. One freed by this very plan is not among them: until the plan is
/// carried out it is in use.
struct FreeSlots {
    used: Vec<bool>,
    next: usize,
}

impl FreeSlots {
    fn new(input: Input<'_>) -> Self {
        let mut used = vec![false; input.capacity.backends as usize];
        for (slot, backend) in &input.installed.backends {
            if let Some(used) = used.get_mut(*slot as usize) {
                *used = backend.state != backend_state::FREE;
            }
        }
        Self { used, next: 0 }
    }

    /// Slot, and a generation that it never had.
    fn next(&mut self, input: Input<'_>) -> Option<(u32, u32)> {
        let slot = self.next + self.used[self.next..].iter().position(|used| !used)?;
        self.next = slot + 1;
        let slot = slot as u32;
        let former = input
            .installed
            .backends
            .get(&slot)
            .map_or(0, |b| b.generation);
        Some((slot, after(former)))
    }
}
