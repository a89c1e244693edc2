//! The whole controller over the data path that only remembers.

mod bench;
mod discovery;
mod history;
mod life;
mod requests;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{Handle, start, testing};
use crate::{
    api::types::{BackendItem, Fault, Request, Response, StatusItem},
    config,
    datapath::{Capacity, memory::Memory},
    model::{BackendRef, Config, Health, HealthCheck, ServiceSpec},
    testing::Directory,
};

/// A daemon's surroundings: kernel, state directory and config file outlive the controller.
struct Bed {
    memory: Arc<Memory>,
    directory: Directory,
}

impl Bed {
    fn new() -> Self {
        let capacity = Capacity {
            services: 2048,
            backends: 32_768,
            sources: 1000,
        };
        Self {
            memory: Arc::new(Memory::new(capacity)),
            directory: Directory::new("controller"),
        }
    }

    fn config(&self, services: impl IntoIterator<Item = ServiceSpec>) -> Config {
        let mut config = testing::config(services);
        config.node.state_dir = self.state();
        config
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("lbd.yaml")
    }

    /// Writes the config file and starts with it; returns once the kernel is up to date.
    async fn start(&self, services: impl IntoIterator<Item = ServiceSpec>) -> Handle {
        let config = self.config(services);
        write_config(&self.file(), &config);
        let handle = start(config, Some(self.file()), self.memory.clone()).unwrap();
        until("ready", async || handle.is_ready()).await;
        handle
    }
}

fn write_config(path: &Path, config: &Config) {
    std::fs::write(path, config::render(config)).unwrap();
}

/// Backends that need no probe.
fn trusted(name: &str, listen: &str, backends: &[&str]) -> ServiceSpec {
    ServiceSpec {
        health: Health {
            check: HealthCheck::None,
            ..Health::default()
        },
        ..testing::service(name, listen, backends)
    }
}

/// Waits for a condition; how long it takes is no matter, within reason.
async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    for _ in 0..3000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never came: {what}");
}

async fn done(handle: &Handle, request: Request) -> String {
    match handle.call(request).await {
        Ok(Response::Done { message }) => message,
        other => panic!("{other:?}"),
    }
}

async fn fault(handle: &Handle, request: Request) -> Fault {
    handle.call(request).await.unwrap_err()
}

async fn backend(handle: &Handle, backend: &str) -> BackendItem {
    let request = Request::DescribeBackend {
        backend: reference(backend),
    };
    match handle.call(request).await {
        Ok(Response::Backend { item, .. }) => item,
        other => panic!("{other:?}"),
    }
}

async fn status(handle: &Handle) -> StatusItem {
    match handle.call(Request::Status).await {
        Ok(Response::Status(status)) => status,
        other => panic!("{other:?}"),
    }
}

/// Reasons of all events, oldest first.
async fn told(handle: &Handle) -> Vec<String> {
    match handle.call(Request::GetEvents { since: 0 }).await {
        Ok(Response::Events { items }) => items.into_iter().map(|event| event.reason).collect(),
        other => panic!("{other:?}"),
    }
}

fn reference(backend: &str) -> BackendRef {
    backend.parse().unwrap()
}
