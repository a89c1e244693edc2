//! The daemon's one owner of truth: configured, overridden, observed. Everything that changes it
//! comes in as a message; everything that reads it gets a snapshot.
//!
//! [`actor`] acts; [`world`], [`effective`], [`merge`], [`changes`], [`clock`], [`diff`],
//! [`inherit`] and [`totals`] decide, and know neither clock, disk nor kernel.

mod actor;
mod changes;
mod clock;
mod diff;
mod directories;
mod drains;
mod effective;
mod events;
mod faults;
mod found;
mod inherit;
mod inputs;
mod items;
mod kernel;
mod merge;
mod orphans;
mod reads;
mod requests;
mod totals;
mod view;
mod world;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    sync::{Mutex, Notify, mpsc, oneshot},
    task::spawn_blocking,
};

pub use self::{
    changes::{Change, configuration},
    directories::Directories,
    requests::{Decision, decision},
    world::Layers,
};

use self::{
    actor::{Actor, Notes},
    clock::Wall,
    inputs::{Inputs, Message},
    kernel::Kernel,
    view::View,
    world::World,
};
use crate::{
    api::types::{BackendItem, Fault, Request, Response, ServiceItem, StatusItem},
    config::{self, Parsed},
    datapath::{Datapath, MapFill},
    discovery::{Clock, SourceItem, Sources, system_clock},
    health::Checks,
    model::Config,
    state::Store,
};

/// How the rest of the daemon talks to the controller. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    messages: mpsc::UnboundedSender<Message>,
    network: Arc<Notify>,
    ready: Arc<AtomicBool>,
    datapath: Arc<dyn Datapath>,
    config_file: Option<Arc<Path>>,
    directories: Directories,
    /// Held from the reading of the config file until it is in force: of two reloads the one that
    /// read last counts.
    reloading: Arc<Mutex<()>>,
}

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
    /// Selection tables.
    pub tables_written: u64,
    /// Seconds of each reconcile pass since the last snapshot, for a histogram.
    pub reconcile_seconds: Vec<f64>,
    pub sources: Vec<SourceItem>,
}

/// Starts the controller as a task of the current tokio runtime. `config_file` is what `Reload`
/// reads again.
///
/// # Errors
/// If the state directory is in use or holds a later version's state, or the kernel's maps cannot
/// be read. That the first pass over the kernel fails is no error: it is tried again, and
/// [`Handle::is_ready`] stays false until it succeeds.
pub fn start(
    config: Config,
    config_file: Option<PathBuf>,
    datapath: Arc<dyn Datapath>,
) -> anyhow::Result<Handle> {
    let (actor, handle) = prepare(config, config_file, datapath, system_clock())?;
    tokio::spawn(actor.run());
    Ok(handle)
}

/// The controller before its first pass. All goes by `clock`.
fn prepare(
    config: Config,
    config_file: Option<PathBuf>,
    datapath: Arc<dyn Datapath>,
    clock: Clock,
) -> anyhow::Result<(Actor, Handle)> {
    let (store, state) = Store::open(&config.node.state_dir)?;
    let kernel = Kernel::new(datapath.clone())?;
    // They outlive even a cleanup, and explain a backend that takes no traffic.
    for (backend, value) in &state.overrides {
        tracing::info!(%backend, ?value, "override in force");
    }
    let began_with = Config {
        services: Vec::new(),
        ..config.clone()
    };
    let directories = Directories::new(config_file.as_deref(), &config.node.state_dir);
    let found = Arc::new(Notify::new());
    let sources = Sources::new(&config.node.state_dir, found.clone(), clock.clone());
    let layers = begin_sources(
        Layers {
            file: Arc::new(config),
            state,
            found: Arc::default(),
        },
        &sources,
    );
    let layers = adopt_orphans(layers, &sources, &kernel);
    let inherited = inherit::verdicts(kernel.installed(), &layers);
    let mut world = World::new(layers, &inherited, |ip| kernel::route(&*datapath, ip));
    let orphans = orphans::listens(kernel.installed(), world.layers(), world.desired());
    world.keep(orphans);

    let (reports_sender, reports) = mpsc::unbounded_channel();
    let (messages_sender, messages) = mpsc::unbounded_channel();
    let network = Arc::new(Notify::new());
    let ready = Arc::new(AtomicBool::new(false));
    let actor = Actor {
        inputs: Inputs::new(reports, messages, network.clone(), found),
        world,
        wall: Wall::new(clock()),
        time: clock,
        kernel,
        note: Notes::new(store.look_for_problems()()),
        store,
        checks: Checks::new(reports_sender),
        sources,
        config_file: config_file.clone(),
        began_with,
        ready: ready.clone(),
    };
    let handle = Handle {
        messages: messages_sender,
        network,
        ready,
        datapath,
        directories,
        config_file: config_file.map(Arc::from),
        reloading: Arc::default(),
    };
    Ok((actor, handle))
}

/// Starts all sources; what they last knew is in force from the first pass on.
fn begin_sources(layers: Layers, sources: &Sources) -> Layers {
    let mut configured = layers.file.services.iter().chain(&layers.state.services);
    let services = match configured.any(|spec| !spec.discovery.is_empty()) {
        true => merge::merge(&layers).services,
        false => Vec::new(),
    };
    let wanted = merge::sources(&layers.file, &services);
    sources.forget_all_but(&wanted);
    sources.set(&wanted);
    Layers {
        found: sources.found(),
        ..layers
    }
}

/// Lets sources of which nothing is known begin with what the kernel serves for them.
fn adopt_orphans(layers: Layers, sources: &Sources, kernel: &Kernel) -> Layers {
    let table = |table| {
        let read = kernel.datapath.table(table);
        read.inspect_err(|error| tracing::warn!("{error:#}")).ok()?
    };
    for (source, instances) in orphans::backends(kernel.installed(), &layers, table) {
        sources.assume(&source, instances);
    }
    Layers {
        found: sources.found(),
        ..layers
    }
}

impl Handle {
    /// Carries out one request. A change that is answered with [`Response::Done`] is on disk and
    /// in the kernel.
    pub async fn call(&self, request: Request) -> Result<Response, Fault> {
        requests::answer(self, request).await
    }

    /// After [`Handle::stop`], a snapshot of nothing.
    pub async fn snapshot(&self) -> Snapshot {
        let answer = self.ask(|reply| Message::Snapshot { reply }).await;
        let (view, seconds) = answer.unwrap_or_else(|_| (View::stopped(), Vec::new()));
        let datapath = self.datapath.clone();
        let taken = spawn_blocking(move || take_snapshot(&view, &*datapath, seconds)).await;
        taken.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// Something about routes, neighbours or links changed: new epoch, SNAT sources looked up anew.
    pub fn network_changed(&self) {
        self.network.notify_one();
    }

    /// True once the programs are attached and the first sync is done.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Stops probing and reconciling; the data path keeps running.
    pub async fn stop(&self) {
        let (reply, stopped) = oneshot::channel();
        if self.messages.send(Message::Stop { reply }).is_ok() {
            let _ = stopped.await;
        }
        self.ready.store(false, Ordering::Release);
    }

    /// Answers from a view, away from the controller's task.
    async fn read(
        &self,
        answer: impl FnOnce(&View, &dyn Datapath) -> Result<Response, Fault> + Send + 'static,
    ) -> Result<Response, Fault> {
        let view = self.ask(|reply| Message::View { reply }).await?;
        let datapath = self.datapath.clone();
        spawn_blocking(move || answer(&view, &*datapath))
            .await
            .unwrap_or_else(|error| Err(faults::failed(format!("the request failed: {error}"))))
    }

    async fn change(
        &self,
        decide: impl FnOnce(&Layers) -> Result<changes::Change, Fault> + Send + 'static,
    ) -> Result<Response, Fault> {
        self.ask(|reply| Message::Change {
            decide: Box::new(decide),
            reply,
        })
        .await?
    }

    /// Reads the file away from the controller's task, which a large one would hold up.
    async fn reload(&self) -> Result<Response, Fault> {
        let _turn = self.reloading.lock().await;
        let file = self.config_file.clone();
        let read = spawn_blocking(move || read_config(file.as_deref()))
            .await
            .unwrap_or_else(|error| Err(faults::failed(format!("the reload failed: {error}"))));
        self.ask(|reply| Message::Reload {
            read: Box::new(read),
            reply,
        })
        .await?
    }

    async fn ask<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> Result<T, Fault> {
        let stopping = || faults::failed("lbd is stopping; the data path keeps running");
        let (reply, answer) = oneshot::channel();
        self.messages.send(message(reply)).map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }
}

fn read_config(path: Option<&Path>) -> Result<Parsed, Fault> {
    let path = path.ok_or_else(|| {
        faults::refused("lbd was started without a config file; use `lbctl apply FILE`")
    })?;
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| faults::failed(format!("cannot read {file}: {error}")))?;
    config::parse(&text, &file).map_err(|invalid| faults::invalid(invalid.to_string()))
}

fn take_snapshot(view: &View, datapath: &dyn Datapath, reconcile_seconds: Vec<f64>) -> Snapshot {
    let (services, backends): (Vec<_>, Vec<_>) = view
        .services
        .iter()
        .map(|service| items::items(view, datapath, service))
        .unzip();
    let drops = datapath.drops().unwrap_or_else(|error| {
        tracing::warn!("cannot read the drop counters: {error:#}");
        Vec::new()
    });
    Snapshot {
        services,
        backends: backends.into_iter().flatten().collect(),
        status: view.status(datapath),
        drops,
        map_fill: view.scan.fill.clone(),
        health_checks: view.probes(),
        reloads_ok: view.counts.reloads_ok,
        reloads_failed: view.counts.reloads_failed,
        repairs: view.counts.repairs,
        flows_aged: view.counts.flows_aged,
        tables_written: view.counts.tables_written,
        reconcile_seconds,
        sources: view.sources.clone(),
    }
}
