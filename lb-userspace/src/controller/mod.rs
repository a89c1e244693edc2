//! The daemon's one owner of truth: configured, overridden, observed. Everything that changes it
//! comes in as a message; everything that reads it gets a snapshot.

use std::{path::PathBuf, sync::Arc};

use crate::{
    api::types::{BackendItem, Fault, Request, Response, ServiceItem, StatusItem},
    datapath::{Datapath, MapFill},
    model::Config,
};

/// How the rest of the daemon talks to the controller. Cheap to clone.
#[derive(Clone)]
pub struct Handle {}

/// What `/metrics` shows, taken in one go.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub services: Vec<ServiceItem>,
    pub backends: Vec<BackendItem>,
    pub status: StatusItem,
    /// Drops by `lb_common::abi::Drop` number.
    pub drops: Vec<u64>,
    pub map_fill: Vec<MapFill>,
    /// (service, backend, result) → count.
    pub health_checks:
        std::collections::BTreeMap<(String, std::net::SocketAddr, &'static str), u64>,
    pub reloads_ok: u64,
    pub reloads_failed: u64,
    pub repairs: u64,
    pub flows_aged: u64,
    /// Seconds of each reconcile pass since the last snapshot, for a histogram.
    pub reconcile_seconds: Vec<f64>,
}

/// Starts the controller as a task. `config_file` is what `Reload` reads again.
pub fn start(
    config: Config,
    config_file: Option<PathBuf>,
    datapath: Arc<dyn Datapath>,
) -> anyhow::Result<Handle> {
    let _ = (config, config_file, datapath);
    todo!()
}

impl Handle {
    pub async fn call(&self, request: Request) -> Result<Response, Fault> {
        let _ = request;
        todo!()
    }

    pub async fn snapshot(&self) -> Snapshot {
        todo!()
    }

    /// Something about routes, neighbours or links changed: new epoch, SNAT sources looked up anew.
    pub fn network_changed(&self) {
        todo!()
    }

    /// True once the programs are attached and the first sync is done.
    pub fn is_ready(&self) -> bool {
        todo!()
    }

    /// Stops probing and reconciling; the data path keeps running.
    pub async fn stop(&self) {
        todo!()
    }
}
