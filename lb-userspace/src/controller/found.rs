//! The controller's task, as far as sources are concerned.

use std::{collections::HashMap, sync::Arc};

use tokio::time::Instant;

use super::{
    actor::Actor,
    events::Event,
    inherit, kernel,
    world::{Layers, Rediscovered},
};
use crate::{discovery::Discovered, model::BackendRef};

/// After taking in what sources found, the task rests from that for so many times as long.
const REST: u32 = 4;

impl Actor {
    /// Runs the sources of the services in force, and no others.
    pub(super) fn follow_sources(&mut self) {
        self.sources.set(&self.world.sources());
        self.discover();
    }

    /// Puts the sets that sources found in force. To be followed by a pass if anything changed.
    fn discover(&mut self) -> Rediscovered {
        let datapath = self.kernel.datapath.clone();
        let found = self.sources.found();
        let inherited = self.inherited(&found);
        let rediscovered = self.world.discover(found, &inherited, |address| {
            kernel::route(&*datapath, address)
        });
        if rediscovered.moved {
            self.kernel.note_moves();
        }
        rediscovered
    }

    /// What a former daemon knew of the backends of services that are nobody's so far.
    fn inherited(&self, found: &Arc<Discovered>) -> HashMap<BackendRef, bool> {
        if self.world.kept() == 0 {
            return HashMap::new();
        }
        let layers = Layers {
            found: found.clone(),
            ..Layers::clone(self.world.layers())
        };
        inherit::verdicts(self.kernel.installed(), &layers)
    }

    pub(super) fn take_found(&mut self) {
        let began = Instant::now();
        let Rediscovered {
            moved,
            changed,
            differences,
        } = self.discover();
        if changed {
            let _ = self.apply();
        }
        if moved {
            self.checks.set_targets(&self.world.targets());
        }
        self.inputs.found_rest = Instant::now() + began.elapsed() * REST;
        for (service, differences) in differences {
            for event in Event::discovered(&service, differences) {
                self.tell(event);
            }
        }
    }
}
