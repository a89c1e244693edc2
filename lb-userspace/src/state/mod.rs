//! What operators said with `lbctl`, kept in the state directory across reloads, restarts and
//! crashes: a change is on disk before it is acknowledged.

pub mod file;
mod lock;
mod store;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use store::{Saving, Store};

use crate::model::{BackendRef, BackendSpec, Override, ServiceSpec};

/// The CLI layer of the configuration, and the overrides.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Services that exist because of `lbctl add service` or `lbctl apply`.
    #[serde(default)]
    pub services: Vec<ServiceSpec>,
    /// Backends that `lbctl add backend` gave to services of the config file.
    #[serde(default)]
    pub backends: Vec<AddedBackend>,
    #[serde(default)]
    pub overrides: BTreeMap<BackendRef, Override>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddedBackend {
    pub service: String,
    pub backend: BackendSpec,
}

impl AddedBackend {
    pub fn reference(&self) -> BackendRef {
        BackendRef {
            service: self.service.clone(),
            address: self.backend.address,
        }
    }
}
