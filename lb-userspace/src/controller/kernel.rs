//! The kernel's side as the controller keeps it: what stands where, what was left out, and what
//! was counted.

use std::{collections::HashSet, net::IpAddr, sync::Arc, time::Instant};

use lb_common::abi::{Backend, backend_state, map};

use super::{
    totals::{Life, Totals},
    world::{Touched, Transition, World},
};
use crate::{
    datapath::{Datapath, FlowScan, MapFill, Route},
    model::BackendRef,
    plan::{Admit, Installed, Placement},
    reconcile::{Reconciler, Tables},
};

/// Durations kept for a snapshot that nobody takes.
const MAX_SECONDS: usize = 4096;

pub(super) struct Kernel {
    pub datapath: Arc<dyn Datapath>,
    pub placement: Arc<Placement>,
    pub scan: Option<Arc<FlowScan>>,
    pub totals: Totals,
    /// Objects that do not fit, in words.
    pub refused: Vec<String>,
    /// Why the last pass failed.
    pub failure: Option<String>,
    /// Seconds of each pass since they were last taken.
    pub seconds: Vec<f64>,
    reconciler: Reconciler,
    /// Backends came or went since the last pass that succeeded.
    moved: bool,
    /// A repair failed: services nobody touched may not be as planned.
    damaged: bool,
    /// Number of the last scan begun when a pass last had backends come or go.
    moved_at: u64,
}

impl Kernel {
    pub(super) fn new(datapath: Arc<dyn Datapath>) -> anyhow::Result<Self> {
        Ok(Self {
            reconciler: Reconciler::new(datapath.clone())?,
            datapath,
            placement: Arc::default(),
            scan: None,
            totals: Totals::default(),
            refused: Vec::new(),
            failure: None,
            seconds: Vec::new(),
            moved: true,
            damaged: false,
            moved_at: 0,
        })
    }

    pub(super) fn installed(&self) -> &Installed {
        self.reconciler.installed()
    }

    pub(super) fn tables_written(&self) -> u64 {
        self.reconciler.tables_written()
    }

    /// Says that the next pass adds or removes objects.
    pub(super) fn note_moves(&mut self) {
        self.moved = true;
    }

    /// Leaves out the connections of backends whose time to drain is over: they have ended, whether
    /// their clients have heard of it or not.
    pub(super) fn discount(&self, scan: &mut FlowScan) {
        let backends = &self.installed().backends;
        let is_closed = |b: &Backend| b.state == backend_state::CLOSED;
        scan.active
            .retain(|slot, _| !backends.get(slot).is_some_and(is_closed));
    }

    /// Tables in which established connections are running out of room, one sentence each.
    pub(super) fn nearly_full(&self) -> Vec<String> {
        let fill = self.scan.iter().flat_map(|scan| &scan.fill);
        fill.filter_map(nearly_full).collect()
    }

    /// Open connections of a backend as of the last scan.
    pub(super) fn active(&self, backend: &BackendRef) -> u64 {
        let slot = self.placement.slots.get(backend);
        let scan = slot.zip(self.scan.as_ref());
        let active = scan.and_then(|(slot, scan)| scan.active.get(slot));
        active.copied().unwrap_or(0)
    }

    /// Takes in the scan begun as the `number`th. Slots are freed only by a scan that began after
    /// they lost their backend; earlier ones may have missed a connection.
    pub(super) fn take_scan(&mut self, number: u64, scan: FlowScan) {
        self.scan = Some(Arc::new(scan));
        if number > self.moved_at {
            self.reconciler.scanned();
        }
        // The next pass frees them.
        self.moved |= self.has_empty_slots();
    }

    /// Some slot has neither backend nor flows any more.
    pub(super) fn has_empty_slots(&self) -> bool {
        let Some(scan) = &self.scan else {
            return false;
        };
        let in_use = |backend: &Backend| backend.state != backend_state::FREE;
        let backends = &self.installed().backends;
        if backends.values().filter(|b| in_use(b)).count() == self.placement.slots.len() {
            return false;
        }
        let placed: HashSet<u32> = self.placement.slots.values().copied().collect();
        backends.iter().any(|(slot, backend)| {
            let present = scan.present.get(slot).copied().unwrap_or(0);
            in_use(backend) && !placed.contains(slot) && present == 0
        })
    }

    /// Brings the kernel to what `world` desires, the last scan begun being `scan`. A failure is kept in
    /// [`Kernel::failure`].
    pub(super) fn apply(&mut self, world: &World, scan: u64) -> Result<(), String> {
        let began = Instant::now();
        if self.moved {
            // Also where a pass that failed is made up for: until now a slot may have taken
            // connections that an earlier scan did not see.
            self.moved_at = scan;
        }
        let result = match self.apply_part(world) {
            Ok(None) => self.apply_all(world),
            Ok(Some(changes)) => Ok(changes),
            Err(error) => Err(error),
        };
        if self.seconds.len() < MAX_SECONDS {
            self.seconds.push(began.elapsed().as_secs_f64());
        }
        match result {
            Ok(changes) => {
                let took = began.elapsed();
                tracing::debug!(changes, ?took, "brought the kernel up to date");
                self.failure = None;
                Ok(())
            }
            Err(error) => {
                let text = format!("{error:#}");
                self.failure = Some(text.clone());
                Err(text)
            }
        }
    }

    /// Where nothing came or went and all is well otherwise, only what was touched is looked at:
    /// `None` if it is not so.
    fn apply_part(&mut self, world: &World) -> anyhow::Result<Option<usize>> {
        let Touched::Some(places) = world.touched() else {
            return Ok(None);
        };
        let is_well = self.failure.is_none() && self.refused.is_empty() && !self.damaged;
        if self.moved || !is_well {
            return Ok(None);
        }
        let placement = &self.placement;
        self.reconciler
            .apply_part(world.desired(), places, placement)
    }

    fn apply_all(&mut self, world: &World) -> anyhow::Result<usize> {
        let leaving = self.moved.then(|| self.leaving(world));
        let present = self.scan.as_ref().map(|scan| &scan.present);
        let applied = self.reconciler.apply(world.desired(), present)?;
        self.refused = applied.refused;
        self.placement = Arc::new(applied.placement);
        self.damaged = false;
        if let Some(leaving) = leaving {
            self.settle(leaving, world);
            self.moved = false;
        }
        Ok(applied.changes)
    }

    /// Stops new connections to backends that failed, at once: the pass that must follow takes
    /// milliseconds where there are many services.
    pub(super) fn evict(&mut self, transitions: &[Transition]) {
        if self.failure.is_some() {
            // What was placed may not be what the kernel holds.
            return;
        }
        let failed = |t: &&Transition| t.after.admit == Admit::Down;
        for transition in transitions.iter().filter(failed) {
            if let Some(slot) = self.placement.slots.get(&transition.backend) {
                // If this fails, so does the pass, which is retried.
                let _ = self.reconciler.evict(*slot);
            }
        }
    }

    /// Reads what [`Kernel::verify`] wants, away from this.
    pub(super) fn begin_verify(
        &mut self,
    ) -> impl FnOnce() -> anyhow::Result<Tables> + Send + 'static {
        self.reconciler.begin_verify()
    }

    /// Reads the kernel back and repairs it; what was repaired, in words. After an error the next
    /// pass makes up for it.
    pub(super) fn verify(&mut self, tables: Tables) -> anyhow::Result<Vec<String>> {
        let verified = self.reconciler.verify(tables);
        self.damaged |= verified.is_err();
        let mut repaired = verified?;
        repaired.extend(self.datapath.repair_attachments()?);
        Ok(repaired)
    }

    /// Makes the packet path look up every next hop anew.
    pub(super) fn raise_epoch(&self) -> anyhow::Result<()> {
        self.datapath.raise_epoch()
    }

    /// Backends that are placed and no longer wanted, with the connections counted until now.
    fn leaving(&self, world: &World) -> Vec<Leaving> {
        let wanted: HashSet<BackendRef> = world
            .services()
            .iter()
            .flat_map(|s| s.facts().map(|facts| s.reference(facts.spec)))
            .collect();
        self.placement
            .slots
            .iter()
            .filter(|(backend, _)| !wanted.contains(backend))
            .filter_map(|(backend, &slot)| {
                Some(Leaving {
                    backend: backend.clone(),
                    life: self.life(slot)?,
                    connections: self.connections(slot),
                })
            })
            .collect()
    }

    fn settle(&mut self, leaving: Vec<Leaving>, world: &World) {
        let installed: HashSet<Life> = self
            .installed()
            .backends
            .iter()
            .filter(|(_, backend)| backend.state != backend_state::FREE)
            .map(|(&slot, backend)| Life {
                slot,
                generation: backend.generation,
            })
            .collect();
        let placed: HashSet<Life> = self
            .placement
            .slots
            .values()
            .filter_map(|&slot| self.life(slot))
            .collect();
        let taken: HashSet<u32> = placed.iter().map(|life| life.slot).collect();
        for gone in leaving {
            // Connections begun between the first reading and the pass count as well, unless the
            // counters are another backend's by now.
            let connections = if taken.contains(&gone.life.slot) {
                gone.connections
            } else {
                gone.connections.max(self.connections(gone.life.slot))
            };
            self.totals
                .retire(gone.life, &gone.backend.service, connections);
        }
        let services = world.services().iter().map(|s| s.name()).collect();
        self.totals.settle(&placed, &installed, &services);
    }

    fn life(&self, slot: u32) -> Option<Life> {
        let generation = self.installed().backends.get(&slot)?.generation;
        Some(Life { slot, generation })
    }

    fn connections(&self, slot: u32) -> u64 {
        self.datapath.counters(slot).map_or(0, |c| c.connections)
    }
}

struct Leaving {
    backend: BackendRef,
    life: Life,
    connections: u64,
}

/// `None`, and a line in the log, if the kernel cannot tell.
pub(super) fn route(datapath: &dyn Datapath, address: IpAddr) -> Option<Route> {
    datapath
        .route(address)
        .inspect_err(|error| tracing::warn!("cannot look up the route to {address}: {error:#}"))
        .ok()
}

/// Handshakes push each other out; for what is established there is no room but this.
fn nearly_full(fill: &MapFill) -> Option<String> {
    /// Percent.
    const NEARLY: u64 = 80;
    let MapFill {
        map,
        entries,
        capacity,
    } = *fill;
    let percent = (entries * 100).checked_div(capacity)?;
    let counts = [map::FLOWS4, map::FLOWS6].contains(&map) && percent >= NEARLY;
    counts.then(|| {
        format!(
            "map {map} is {percent} % full ({entries} of {capacity} entries, two a connection): when \
             it is full new connections are refused; raise node.limits.connections and restart lbd, \
             which ends none"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_evicts_nothing_is_reported_before_it_is_full() {
        let fill = |map, entries| MapFill {
            map,
            entries,
            capacity: 1000,
        };
        assert_eq!(nearly_full(&fill(map::FLOWS4, 799)), None);
        assert_eq!(nearly_full(&fill(map::HANDSHAKES4, 1000)), None);
        let told = nearly_full(&fill(map::FLOWS6, 800)).unwrap();
        assert!(
            told.contains("80 %") && told.contains("node.limits.connections"),
            "{told}"
        );
        let empty = MapFill {
            capacity: 0,
            ..fill(map::FLOWS4, 0)
        };
        assert_eq!(nearly_full(&empty), None);
    }
}
