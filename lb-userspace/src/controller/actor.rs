//! The controller's task: takes one input at a time, decides with the pure parts, then acts on
//! disk, kernel and probes, in this order. While it waits for the disk it takes reports of health.

use std::{
    net::IpAddr,
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::anyhow;
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::oneshot,
    task::{block_in_place, spawn_blocking},
    time::Instant,
};

use super::{
    changes::{self, Change},
    clock::Wall,
    diff, drains,
    drains::Drains,
    events::{Event, Events, Reason},
    faults,
    inputs::{Input, Inputs, Message, Routed, Scanned},
    kernel::{self, Kernel},
    view::{Counts, View},
    world::{Layers, Relayered, Transition, World},
};
use crate::{
    api::types::{Fault, Response},
    config::{Finding, Parsed},
    discovery::{Clock, Sources},
    health::{Checks, Report},
    model::Config,
    plan::Placement,
    reconcile::Tables,
    state::{Saving, Store},
    utc,
};

const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Flow scans and route look-ups take at most one part in this many of a CPU each.
const BACKGROUND_SHARE: u32 = 20;
const SCAN_EVERY: Duration = Duration::from_secs(1);
/// While a deadline is to come, the wall clock is looked at this often: somebody may set it, and the
/// deadlines on disk should go with it before this daemon is killed.
const CLOCK_EVERY: Duration = Duration::from_secs(10);
/// Reports of health are looked for this often while the disk is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

pub(super) struct Actor {
    pub inputs: Inputs,
    pub world: World,
    /// Tells what time it is.
    pub time: Clock,
    pub wall: Wall,
    pub kernel: Kernel,
    pub store: Store,
    pub checks: Checks,
    pub sources: Sources,
    pub config_file: Option<PathBuf>,
    /// What the daemon began with, without services: node and admin settings hold until it ends.
    pub began_with: Config,
    pub ready: Arc<AtomicBool>,
    pub note: Notes,
}

/// What the task remembers for those who ask.
pub(super) struct Notes {
    pub started: std::time::Instant,
    pub events: Events,
    pub counts: Counts,
    pub last_reload: String,
    pub drains: Drains,
    pub scans_begun: u64,
    pub store_problems: Vec<String>,
    /// Deadlines moved along with the wall clock, and are not on disk like that.
    pub unsaved_deadlines: bool,
    pub verify_failure: Option<String>,
    pub scan_failure: Option<String>,
    /// Configured for SNAT, and not the node's own.
    pub snat_left_out: Vec<IpAddr>,
}

impl Notes {
    pub(super) fn new(store_problems: Vec<String>) -> Self {
        Self {
            started: std::time::Instant::now(),
            events: Events::default(),
            counts: Counts::default(),
            last_reload: "ok".to_owned(),
            drains: Drains::default(),
            scans_begun: 0,
            store_problems,
            unsaved_deadlines: false,
            verify_failure: None,
            scan_failure: None,
            snat_left_out: Vec::new(),
        }
    }
}

impl Actor {
    pub(super) async fn run(mut self) {
        self.begin();
        loop {
            let input = self.inputs.next().await;
            if let ControlFlow::Break(reply) = self.take(input) {
                return self.end(reply).await;
            }
        }
    }

    pub(super) fn begin(&mut self) {
        for conflict in self.world.conflicts() {
            tracing::warn!("{conflict}");
        }
        self.set_snat();
        // Routes may have changed while no daemon watched.
        self.raise_epoch();
        // So may deadlines have passed.
        let passed = self.world.pass_time((self.time)().ms);
        if self.apply().is_ok() {
            let Placement { services, slots } = &*self.kernel.placement;
            tracing::info!(
                services = services.len(),
                backends = slots.len(),
                "the kernel is up to date"
            );
        }
        self.checks.set_targets(&self.world.targets());
        for backend in passed {
            self.tell(drains::deadline_event(&backend, 0));
        }
        self.look_at_clock();
    }

    /// Does what one input asks for. Breaks if that is to end, with whom to tell.
    pub(super) fn take(&mut self, input: Input) -> ControlFlow<Option<oneshot::Sender<()>>> {
        match input {
            Input::Reports(reports) => self.take_reports(reports),
            Input::Message(Message::Stop { reply }) => return ControlFlow::Break(Some(reply)),
            Input::Abandoned => return ControlFlow::Break(None),
            Input::Message(Message::Change { decide, reply }) => {
                // What is said now is said by the clock as it is now.
                self.look_at_clock();
                let layers = self.world.layers().clone();
                let result = decide(&layers).and_then(|change| self.commit(change));
                let _ = reply.send(result.map(|message| Response::Done { message }));
            }
            Input::Message(Message::Reload { read, reply }) => {
                self.look_at_clock();
                let _ = reply.send(self.reload(*read));
            }
            Input::Message(Message::View { reply }) => {
                let _ = reply.send(self.view());
            }
            Input::Message(Message::Snapshot { reply }) => {
                let seconds = std::mem::take(&mut self.kernel.seconds);
                let _ = reply.send((self.view(), seconds));
            }
            Input::NetworkChanged => {
                self.follow_devices();
                self.set_snat();
                self.raise_epoch();
                self.inputs.routes_due = Some(self.inputs.routes_rest);
            }
            Input::RoutesDue => self.look_up_routes(),
            Input::Routed(routed) => self.take_routes(routed),
            Input::ScanDue => self.scan(),
            Input::Scanned(scanned) => self.take_scan(scanned),
            Input::VerifyDue => {
                self.inputs.tables = Some(spawn_blocking(self.kernel.begin_verify()));
                self.look_at_store();
            }
            Input::TablesRead(tables) => self.verify(tables),
            Input::StoreRead(problems) => {
                self.note.store_problems = problems.unwrap_or_default();
            }
            Input::RetryDue => {
                let _ = self.apply();
            }
            Input::DeadlineDue => self.look_at_clock(),
            Input::FoundDue => self.take_found(),
        }
        ControlFlow::Continue(())
    }

    /// Ends the drains whose time is over.
    fn look_at_clock(&mut self) {
        let now_ms = self.follow_clock();
        let passed = self.world.pass_time(now_ms);
        if !passed.is_empty() {
            let _ = self.apply();
        }
        for backend in passed {
            let active = self.kernel.active(&backend);
            self.tell(drains::deadline_event(&backend, active));
        }
        let left = |at: u64| Duration::from_millis(at - now_ms.min(at)).min(CLOCK_EVERY);
        let next = self.world.next_deadline();
        self.inputs.deadline_due = next.map(|at| Instant::now() + left(at));
    }

    /// A drain lasts as long as was said, whoever sets the wall clock meanwhile. Returns what it says
    /// now.
    fn follow_clock(&mut self) -> u64 {
        let now = (self.time)();
        if let Some(by_ms) = self.wall.look(now)
            && self.world.shift_clock(by_ms)
        {
            let by = Duration::from_millis(by_ms.unsigned_abs());
            let way = if by_ms < 0 { "back" } else { "forward" };
            tracing::warn!("the clock was set {way} by {by:?}; the deadlines of drains go with it");
            self.note.unsaved_deadlines = true;
        }
        if self.note.unsaved_deadlines {
            let state = self.world.layers().state.clone();
            let begun = self.store.begin_save(state);
            let saved = self.wait_for(begun);
            self.note.unsaved_deadlines = saved.is_err();
            if let Err(error) = saved {
                tracing::error!("cannot save the deadlines of drains: {error:#}");
            }
        }
        now.ms
    }

    async fn end(mut self, reply: Option<oneshot::Sender<()>>) {
        if let Some(scan) = self.inputs.scan.take() {
            let _ = scan.await;
        }
        if let Some(tables) = self.inputs.tables.take() {
            let _ = tables.await;
        }
        self.sources.stop().await;
        tracing::info!("controller stopped; the data path keeps running");
        drop(self);
        if let Some(reply) = reply {
            let _ = reply.send(());
        }
    }

    /// Waits for the disk. An eviction does not: it comes in between.
    fn wait_for(&mut self, saving: Saving) -> anyhow::Result<()> {
        // Most are quick.
        if let Some(saved) = saving.wait(LOOK_EVERY) {
            return saved;
        }
        let mut wait = || {
            loop {
                let reports = self.inputs.reports_so_far();
                self.take_reports(reports);
                if let Some(saved) = saving.wait(LOOK_EVERY) {
                    return saved;
                }
            }
        };
        // What this thread does beside goes on on another, probes above all.
        let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
        match flavor {
            Ok(RuntimeFlavor::MultiThread) => block_in_place(wait),
            _ => wait(),
        }
    }

    fn take_reports(&mut self, reports: Vec<Report>) {
        let transitions: Vec<Transition> = reports
            .into_iter()
            .filter_map(|report| self.world.observe(report))
            .collect();
        self.follow(transitions);
    }

    /// Brings transitions to the kernel first, then tells of them.
    fn follow(&mut self, transitions: Vec<Transition>) {
        if transitions.is_empty() {
            return;
        }
        self.kernel.evict(&transitions);
        let _ = self.apply();
        for event in transitions.iter().filter_map(Event::transition) {
            self.tell(event);
        }
    }

    /// Makes a change true and lasting; says what was done.
    fn commit(&mut self, change: Change) -> Result<String, Fault> {
        let Change { layers, message } = change;
        let old = self.world.layers().clone();
        if layers == *old && self.kernel.failure.is_none() {
            return Ok(message);
        }
        let mut saving = None;
        if layers.state != old.state {
            let begun = self.store.begin_save(layers.state.clone());
            // Disks take longer than the kernel. An override is taken back without harm if it
            // cannot be kept; what comes and goes is not undone so easily, so it waits.
            match layers.differs_in_overrides_only(&old) {
                true => saving = Some(begun),
                false => self.wait_for(begun).map_err(not_saved)?,
            }
        }
        let refused_before = self.kernel.refused.clone();
        let applied = self.put_in_force(layers);
        if let Some(Err(error)) = saving.map(|begun| self.wait_for(begun)) {
            // What the kernel refuses is tried again every second.
            let _ = self.put_in_force(Layers::clone(&old));
            return Err(not_saved(error));
        }

        let new = self.world.layers().clone();
        for difference in changes::differences(&old, &new) {
            self.tell(Event::difference(difference));
        }
        for event in drains::override_events(&old.state, &new.state) {
            self.tell(event);
        }
        self.note
            .drains
            .follow(&old.state, &new.state, self.note.scans_begun);

        applied.map_err(|error| {
            faults::failed(format!(
                "{message}, but the kernel could not be brought up to date: {error}; lbd tries \
                 again every second, see `lbctl status`"
            ))
        })?;
        let refused = &self.kernel.refused;
        match refused.iter().find(|r| !refused_before.contains(r)) {
            Some(refused) => Err(faults::failed(format!("{message}, but {refused}"))),
            None => Ok(message),
        }
    }

    /// Brings other layers to the kernel, then to the probes.
    fn put_in_force(&mut self, layers: Layers) -> Result<(), String> {
        let datapath = self.kernel.datapath.clone();
        let former = self.world.layers().file.clone();
        let Relayered { moved, probes } = self
            .world
            .relayer(layers, |address| kernel::route(&*datapath, address));
        self.inputs.deadline_due = Some(Instant::now());
        if moved {
            self.kernel.note_moves();
        }
        if self.world.layers().file.node.snat != former.node.snat {
            self.set_snat();
        }
        if moved {
            self.follow_sources();
        }
        let applied = self.apply();
        if probes {
            self.checks.set_targets(&self.world.targets());
        }
        applied
    }

    fn reload(&mut self, read: Result<Parsed, Fault>) -> Result<Response, Fault> {
        let change = read.and_then(|parsed| self.reloaded(parsed));
        let wanted = change
            .as_ref()
            .ok()
            .map(|change| Arc::clone(&change.layers.file));
        let result = change.and_then(|change| self.commit(change));
        match &result {
            Ok(message) => {
                self.note.counts.reloads_ok += 1;
                self.note.last_reload = "ok".to_owned();
                self.tell(Event::node(Reason::Reloaded, message.clone()));
            }
            Err(fault) => {
                self.note.counts.reloads_failed += 1;
                // What the kernel does not take is a problem of its own, which ends by itself.
                let in_force =
                    wanted.is_some_and(|file| Arc::ptr_eq(&file, &self.world.layers().file));
                self.note.last_reload = match in_force {
                    true => "ok".to_owned(),
                    false => fault.message.clone(),
                };
                self.tell(Event::node(Reason::ReloadFailed, fault.message.clone()));
            }
        }
        result.map(|message| Response::Done { message })
    }

    fn reloaded(&self, parsed: Parsed) -> Result<Change, Fault> {
        let mut change = changes::reload(self.world.layers(), parsed.config)?;
        let file = self.config_file.as_ref().map(|path| path.display());
        let file = file.map(|file| file.to_string()).unwrap_or_default();
        for warning in &parsed.warnings {
            let Finding {
                line,
                column,
                message,
            } = warning;
            tracing::warn!("{file}:{line}:{column}: {message}");
            change.message += &format!("; warning: {file}:{line}:{column}: {message}");
        }
        Ok(change)
    }

    /// Puts the configured SNAT pool in force, as far as its addresses are the node's own by now.
    fn set_snat(&mut self) {
        let pool = &self.world.layers().file.node.snat;
        let left_out = match self.kernel.datapath.set_snat(pool) {
            Ok(left_out) => left_out,
            Err(error) => {
                tracing::error!("cannot set what SNAT takes: {error:#}");
                return;
            }
        };
        for address in &left_out {
            if !self.note.snat_left_out.contains(address) {
                tracing::warn!("{}", foreign_source(*address));
            }
        }
        self.note.snat_left_out = left_out;
    }

    fn raise_epoch(&self) {
        if let Err(error) = self.kernel.raise_epoch() {
            tracing::error!("cannot make the packet path look up next hops anew: {error:#}");
        }
    }

    /// A device that comes without programs would break connections that have packets on it. What
    /// fails is tried again when all is verified.
    fn follow_devices(&mut self) {
        match self.kernel.datapath.follow_devices() {
            Ok(repaired) => self.tell_repaired(repaired),
            Err(error) => tracing::error!("cannot serve the devices there are now: {error:#}"),
        }
    }

    fn tell_repaired(&mut self, repaired: Vec<String>) {
        self.note.counts.repairs += repaired.len() as u64;
        for words in repaired {
            self.tell(Event::node(Reason::Repaired, words));
        }
    }

    fn look_up_routes(&mut self) {
        let addresses = self.world.routed();
        let datapath = self.kernel.datapath.clone();
        self.inputs.routes = Some(spawn_blocking(move || {
            let began = Instant::now();
            let routes = addresses
                .into_iter()
                .filter_map(|address| Some((address, kernel::route(&*datapath, address)?)))
                .collect();
            Routed {
                took: began.elapsed(),
                routes,
            }
        }));
    }

    fn take_routes(&mut self, routed: Option<Routed>) {
        let Some(Routed { took, routes }) = routed else {
            tracing::error!("looking up routes panicked");
            return;
        };
        self.inputs.routes_rest = Instant::now() + took * BACKGROUND_SHARE;
        let transitions = self.world.reroute(routes);
        self.follow(transitions);
    }

    fn scan(&mut self) {
        self.note.scans_begun += 1;
        let number = self.note.scans_begun;
        let datapath = self.kernel.datapath.clone();
        let timeouts = self.world.layers().file.node.timeouts;
        self.inputs.scan = Some(spawn_blocking(move || {
            let began = Instant::now();
            let result = datapath.scan_flows(&timeouts);
            Scanned {
                number,
                took: began.elapsed(),
                result,
            }
        }));
    }

    fn take_scan(&mut self, scanned: Option<Scanned>) {
        let took = scanned.as_ref().map_or(Duration::ZERO, |s| s.took);
        self.inputs.scan_due = Instant::now() + SCAN_EVERY.max(took * BACKGROUND_SHARE);
        let (number, mut scan) = match scanned {
            Some(Scanned {
                number,
                result: Ok(scan),
                ..
            }) => (number, scan),
            Some(Scanned {
                result: Err(error), ..
            }) => {
                tracing::warn!("cannot scan the flow tables: {error:#}");
                self.note.scan_failure = Some(format!("{error:#}"));
                return;
            }
            None => {
                self.note.scan_failure = Some("the scan panicked".to_owned());
                return;
            }
        };
        self.note.scan_failure = None;
        self.note.counts.flows_aged += scan.aged;
        self.kernel.discount(&mut scan);
        for event in self
            .note
            .drains
            .ended(number, &scan, &self.kernel.placement)
        {
            self.tell(event);
        }
        self.kernel.take_scan(number, scan);
        if self.kernel.has_empty_slots() {
            let _ = self.apply();
        }
    }

    /// Disks may hang: nothing waits for this.
    fn look_at_store(&mut self) {
        if self.inputs.store.is_none() {
            self.inputs.store = Some(spawn_blocking(self.store.look_for_problems()));
            return;
        }
        self.note.store_problems = vec![
            "the state directory has not answered for ten seconds: what lbctl changes may have to \
             wait for its disk"
                .to_owned(),
        ];
    }

    fn verify(&mut self, tables: Option<anyhow::Result<Tables>>) {
        let tables = tables.unwrap_or_else(|| Err(anyhow!("reading the tables panicked")));
        match tables.and_then(|tables| self.kernel.verify(tables)) {
            Ok(repaired) => {
                self.note.verify_failure = None;
                self.tell_repaired(repaired);
            }
            Err(error) => {
                tracing::error!("cannot verify the kernel's side: {error:#}");
                self.note.verify_failure = Some(format!("{error:#}"));
                self.inputs.retry_due = Some(Instant::now() + RETRY_AFTER);
            }
        }
        if self.world.has_unreachable() {
            self.inputs.routes_due = Some(self.inputs.routes_rest);
        }
    }

    pub(super) fn apply(&mut self) -> Result<(), String> {
        let failed_before = self.kernel.failure.is_some();
        let result = self.kernel.apply(&self.world, self.note.scans_begun);
        match &result {
            Ok(()) => {
                self.inputs.retry_due = None;
                self.world.settled();
                self.ready.store(true, Ordering::Release);
                if failed_before {
                    let text = "the kernel is up to date again".to_owned();
                    self.tell(Event::node(Reason::ApplyRecovered, text));
                }
            }
            Err(error) => {
                self.inputs.retry_due = Some(Instant::now() + RETRY_AFTER);
                if !failed_before {
                    self.tell(Event::node(Reason::ApplyFailed, error.clone()));
                }
            }
        }
        result
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.note.events.push(event, utc::now_ms());
    }

    fn view(&self) -> View {
        View {
            layers: self.world.layers().clone(),
            services: self.world.services().to_vec(),
            placement: self.kernel.placement.clone(),
            scan: self.kernel.scan.clone().unwrap_or_default(),
            totals: self.kernel.totals.by_service(),
            events: self.note.events.all(),
            problems: self.problems(),
            sources: self.sources.items(),
            ready: self.ready.load(Ordering::Acquire),
            started: self.note.started,
            config_file: self.config_file.clone(),
            last_reload: self.note.last_reload.clone(),
            counts: Counts {
                tables_written: self.kernel.tables_written(),
                ..self.note.counts
            },
        }
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = self.note.store_problems.clone();
        problems.extend(self.sources.disk_faults());
        if let Some(failure) = &self.kernel.failure {
            problems.push(format!(
                "the kernel could not be brought up to date: {failure}; tried again every second"
            ));
        }
        if let Some(failure) = &self.note.verify_failure {
            problems.push(format!(
                "the kernel's side could not be verified: {failure}"
            ));
        }
        if let Some(failure) = &self.note.scan_failure {
            problems.push(format!("the flow tables could not be scanned: {failure}"));
        }
        if self.note.last_reload != "ok" {
            let failure = &self.note.last_reload;
            problems.push(format!("the last reload failed: {failure}"));
        }
        problems.extend(self.kernel.nearly_full());
        let left_out = self.note.snat_left_out.iter();
        problems.extend(left_out.map(|address| foreign_source(*address)));
        problems.extend(self.kernel.refused.iter().cloned());
        problems.extend(self.world.conflicts().iter().cloned());
        if self.world.kept() > 0 {
            problems.push(format!(
                "what a source of services said last was not saved: where nothing known listens, {} \
                 addresses are served as a former lbd left them, unprobed, until it answers (`lbctl \
                 get sources`)",
                self.world.kept()
            ));
        }
        let settings = diff::settings(&self.began_with, &self.world.layers().file);
        if !settings.is_empty() {
            problems.push(format!(
                "settings of the config file that take a restart of lbd: {}",
                settings.join(", ")
            ));
        }
        problems
    }
}

fn foreign_source(address: IpAddr) -> String {
    format!(
        "`node.snat_addresses`: {address} is no address of this node and is left out; give it to a \
         device (`ip address add`), or take it off the list"
    )
}

fn not_saved(error: anyhow::Error) -> Fault {
    tracing::error!("cannot save the state: {error:#}");
    faults::failed(format!("nothing was changed: {error:#}"))
}
