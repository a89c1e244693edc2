//! A controller and its model, side by side.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use lb_common::abi::backend_state as state;
use tokio::{runtime::Runtime, sync::oneshot, task::JoinHandle};

use super::{
    kernel::{self, Guard, ensure},
    model::Model,
    operations::{File, NAMES, Operation, Said, backend, host_number},
};
use crate::{
    api::types::{Fault, Response},
    config,
    controller::{
        Handle,
        actor::Actor,
        changes,
        inputs::{Decision, Input, Message, Scanned},
        prepare, read_config, reads, testing,
    },
    datapath::{Capacity, FlowScan, memory::Memory},
    discovery::{Class, Clock, Failure, Report, Snapshot, rules::Now},
    model::{BackendRef, ServiceSpec},
    testing::Directory,
};

const CAPACITY: Capacity = Capacity {
    services: 64,
    backends: 256,
    sources: 1000,
};

/// Some day.
const BEGAN_MS: u64 = 1_800_000_000_000;

type Outcome = Result<(), String>;

pub(super) struct Life {
    memory: Arc<Memory>,
    guard: Arc<Mutex<Guard>>,
    clock_ms: Arc<AtomicU64>,
    /// By how much the wall clock was set in all.
    set_by_ms: Arc<AtomicI64>,
    clock: Clock,
    daemon: Option<(Actor, Handle)>,
    model: Model,
    file: File,
    /// A scan under way.
    scan: Option<Scanned>,
    /// As last seen, with the number of its time in force.
    slots: BTreeMap<BackendRef, (u64, kernel::Life)>,
    reached: BTreeSet<&'static str>,
    directory: Directory,
    /// Its tasks never run. Goes last.
    runtime: Runtime,
}

impl Life {
    pub(super) fn new(first: &File) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let memory = Arc::new(Memory::new(CAPACITY));
        let guard = Arc::new(Mutex::new(Guard::default()));
        let watcher = guard.clone();
        memory.watch(move |write, maps| watcher.lock().unwrap().watch(write, maps));
        let clock_ms = Arc::new(AtomicU64::new(BEGAN_MS));
        let set_by_ms = Arc::new(AtomicI64::new(0));
        let mut life = Self {
            memory,
            guard,
            clock: clock(clock_ms.clone(), set_by_ms.clone()),
            clock_ms,
            set_by_ms,
            daemon: None,
            model: Model::new(BEGAN_MS),
            file: File(Vec::new()),
            scan: None,
            slots: BTreeMap::new(),
            reached: BTreeSet::new(),
            directory: Directory::in_memory("history"),
            runtime,
        };
        // Whoever writes a file that is refused starts without.
        if config::parse(&life.text(&first.specs()), "f").is_ok() {
            life.file = first.clone();
        }
        life.start(0)?;
        life.check()?;
        Ok(life)
    }

    pub(super) fn step(&mut self, operation: &Operation) -> Outcome {
        match operation {
            Operation::Reload(_)
            | Operation::ReloadFaulty(..)
            | Operation::AddService(_)
            | Operation::RemoveService(_)
            | Operation::AddBackend(..)
            | Operation::RemoveBackend(_)
            | Operation::SetWeight(..)
            | Operation::SetMode(..)
            | Operation::Unset(..)
            | Operation::Apply(_) => self.request(operation)?,
            Operation::AskElsewhere(name, asks) => {
                let file = self.file.asking(*name, *asks);
                self.request(&Operation::Reload(file))?;
            }
            Operation::Report(name, said) => self.report(NAMES[*name], said),
            Operation::Probe(answers) => self.probe(answers),
            Operation::Wait(seconds) => self.wait(*seconds)?,
            Operation::SetClock(seconds) => self.set_clock(*seconds),
            Operation::Flows(mask) => self.set_flows(*mask),
            Operation::ScanBegins => self.begin_scan(),
            Operation::ScanEnds => self.end_scan(),
            Operation::FailCall(n) => self.memory.fail_call(*n),
            Operation::BreakAtCall(n) => self.memory.break_at_call(*n),
            Operation::Mend => self.memory.fail_call(0),
            Operation::Retry => self.retry(),
            Operation::Verify => self.verify()?,
            Operation::DiskFills => self.fill_disk(true),
            Operation::DiskEmpties => self.fill_disk(false),
            Operation::SaveSources => {
                self.actor().sources.save();
                self.model.sources().save();
            }
            Operation::Crash(file, fail) => self.crash(file.as_ref(), *fail)?,
            Operation::Quiet => self.rest()?,
        }
        self.settle();
        self.check()
    }

    /// Comes to rest; nothing is left of what was.
    pub(super) fn end(mut self) -> Result<Vec<&'static str>, String> {
        self.rest()?;
        self.set_flows(0);
        self.rest()?;
        self.crash(None, 0)?;
        self.rest()?;
        // Ports of what is gone go with the next pass over everything.
        let decisions: [Decision; 2] = [
            Box::new(|layers| {
                let service = testing::service("other", "192.0.2.9:9", &[]);
                changes::add_service(layers, service)
            }),
            Box::new(|layers| changes::remove_service(layers, "other")),
        ];
        for decide in decisions {
            let (reply, answer) = oneshot::channel();
            let done = self.take_and_hear(Message::Change { decide, reply }, answer);
            done.map_err(|fault| fault.message)?;
        }
        kernel::check_ports(&self.memory.maps())?;
        self.reached.extend(&self.model.reached);
        Ok(self.reached.into_iter().collect())
    }

    fn actor(&mut self) -> &mut Actor {
        &mut self.daemon.as_mut().unwrap().0
    }

    fn take(&mut self, input: Input) {
        let runtime = self.runtime.handle().clone();
        let _context = runtime.enter();
        assert!(self.actor().take(input).is_continue());
    }

    fn state_directory(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn config_file(&self) -> PathBuf {
        self.directory.path().join("lbd.yaml")
    }

    fn text(&self, services: &[ServiceSpec]) -> String {
        let mut config = testing::config(services.iter().cloned());
        config.node.state_dir = self.state_directory();
        config::render(&config)
    }

    fn guard(&self) -> MutexGuard<'_, Guard> {
        self.guard.lock().unwrap()
    }

    /// As whoever supervises a daemon does, until it starts.
    fn start(&mut self, fail: u64) -> Outcome {
        let text = self.text(&self.file.specs());
        std::fs::write(self.config_file(), &text).unwrap();
        let config = config::parse(&text, "f").unwrap().config;
        self.memory.fail_call(0);
        let maps = self.memory.maps();
        let runtime = self.runtime.handle().clone();
        let _context = runtime.enter();
        let daemon = prepare(
            config,
            Some(self.config_file()),
            self.memory.clone(),
            self.clock.clone(),
        );
        self.daemon = Some(daemon.map_err(|error| format!("cannot start: {error:#}"))?);
        self.memory.fail_call(fail);
        self.actor().begin();
        self.model.restart(self.file.specs(), &maps);
        Ok(())
    }

    fn crash(&mut self, file: Option<&File>, fail: u64) -> Outcome {
        self.reached.insert("crash");
        if self.actor().kernel.failure.is_some() {
            self.reached.insert("crash while the kernel is behind");
        }
        if let Some(file) = file
            && config::parse(&self.text(&file.specs()), "f").is_ok()
        {
            self.reached.insert("crash with another file");
            self.file = file.clone();
        }
        self.scan = None;
        self.daemon = None;
        self.start(fail)?;
        if self.actor().kernel.failure.is_some() {
            self.reached.insert("a call fails at the start");
        }
        Ok(())
    }

    fn request(&mut self, operation: &Operation) -> Outcome {
        self.model.look_at_clock();
        let result = self.ask(operation);
        let is_granted = self.model.request(operation);
        let failure = self.actor().kernel.failure.clone();
        match (&result, is_granted) {
            (Ok(_), true) => self.reached.insert("a request is granted"),
            (Err(fault), true)
                if failure
                    .as_ref()
                    .is_some_and(|why| fault.message.contains(why.as_str())) =>
            {
                self.reached.insert("granted while the kernel is behind")
            }
            (Err(fault), false)
                if fault
                    .message
                    .starts_with("nothing was changed: cannot write") =>
            {
                self.reached.insert("a full disk takes an override back")
            }
            (Err(_), false) => self.reached.insert("a request is refused"),
            (result, _) => return Err(format!("granted: {is_granted}, but {result:?}")),
        };
        if let (Operation::Reload(file), true) = (operation, is_granted) {
            self.file = file.clone();
        }
        Ok(())
    }

    fn ask(&mut self, operation: &Operation) -> Result<Response, Fault> {
        let now_ms = self.wall_ms();
        let decide: Decision = match operation.clone() {
            Operation::Reload(file) => {
                let text = self.text(&file.specs());
                return self.reload(&text);
            }
            Operation::ReloadFaulty(file, slip) => {
                let text = self.text(&file.specs()) + slip;
                return self.reload(&text);
            }
            Operation::AddService(draft) => {
                Box::new(move |layers| changes::add_service(layers, draft.spec()))
            }
            Operation::RemoveService(name) => {
                Box::new(move |layers| changes::remove_service(layers, NAMES[name]))
            }
            Operation::AddBackend(place, weight) => Box::new(move |layers| {
                let spec = backend((place.1, weight, None));
                changes::add_backend(layers, NAMES[place.0], spec)
            }),
            Operation::RemoveBackend(place) => {
                Box::new(move |layers| changes::remove_backend(layers, &place.reference()))
            }
            Operation::SetWeight(place, weight) => {
                Box::new(move |layers| changes::set_weight(layers, &place.reference(), weight))
            }
            Operation::SetMode(place, mode, seconds) => Box::new(move |layers| {
                let deadline = seconds.map(|seconds| now_ms + 1000 * seconds);
                changes::set_mode(layers, &place.reference(), mode, deadline)
            }),
            Operation::Unset(place, what) => {
                Box::new(move |layers| changes::unset(layers, &place.reference(), what))
            }
            Operation::Apply(file) => {
                let services = reads::applied(&self.text(&file.specs()))?;
                Box::new(move |layers| changes::apply(layers, services))
            }
            other => panic!("{other:?} asks for nothing"),
        };
        let (reply, answer) = oneshot::channel();
        self.take_and_hear(Message::Change { decide, reply }, answer)
    }

    fn reload(&mut self, text: &str) -> Result<Response, Fault> {
        std::fs::write(self.config_file(), text).unwrap();
        let (reply, answer) = oneshot::channel();
        let read = Box::new(read_config(Some(&self.config_file())));
        self.take_and_hear(Message::Reload { read, reply }, answer)
    }

    fn take_and_hear<T>(&mut self, message: Message, mut answer: oneshot::Receiver<T>) -> T {
        self.take(Input::Message(message));
        answer.try_recv().unwrap()
    }

    fn report(&mut self, service: &str, said: &Said) {
        let Some(name) = self.model.source(service) else {
            return;
        };
        let known = self.actor().world.sources();
        let source = known
            .into_keys()
            .find(|s| (&s.service, s.kind, &s.target) == (&name.0, name.1, &name.2));
        let (now_ms, wall_ms) = (self.model.now_ms, self.wall_ms());
        let report = match said {
            Said::Instances(_, decided) => {
                let instances = said.instances();
                self.model
                    .sources()
                    .answer(&name, &instances, *decided, now_ms, wall_ms);
                Report::Snapshot(Snapshot {
                    decided: *decided,
                    ..instances.into()
                })
            }
            Said::Failure => {
                self.model.sources().fail(&name);
                Report::Failure(Failure::new(Class::Refused, "no"))
            }
        };
        self.actor().sources.say(&source.unwrap(), report);
        if self.model.sources().holds_any() {
            self.reached.insert("a missing instance is held");
        }
    }

    fn probe(&mut self, answers: &[Option<bool>]) {
        let before = self.memory.maps().backends;
        self.actor()
            .checks
            .probe_all(|backend| answers[host_number(backend.address)]);
        self.model.probe(|address| answers[host_number(address)]);
        self.settle();
        if self.memory.maps().backends != before {
            self.reached.insert("probes change a state");
        }
    }

    fn wait(&mut self, seconds: u64) -> Outcome {
        let is_awaited = self.model.awaits_deadline();
        self.model.now_ms += 1000 * seconds;
        self.clock_ms.store(self.model.now_ms, Ordering::Relaxed);
        let due = self.actor().inputs.deadline_due.take();
        ensure!(due.is_some() || !is_awaited, "nobody waits for a deadline");
        if due.is_some() {
            self.look_at_clock();
        }
        Ok(())
    }

    /// While a deadline is to come somebody looks at once, else with the next request.
    fn set_clock(&mut self, seconds: i64) {
        self.set_by_ms.fetch_add(1000 * seconds, Ordering::Relaxed);
        self.model.set_clock(1000 * seconds);
        if self.actor().inputs.deadline_due.take().is_some() {
            self.reached
                .insert("the clock is set while a drain has time left");
            self.look_at_clock();
        }
    }

    fn look_at_clock(&mut self) {
        self.model.look_at_clock();
        self.take(Input::DeadlineDue);
    }

    fn wall_ms(&self) -> u64 {
        let set_by_ms = self.set_by_ms.load(Ordering::Relaxed);
        self.model.now_ms.saturating_add_signed(set_by_ms)
    }

    /// Only a backend that takes connections gets any.
    fn set_flows(&mut self, mask: u16) {
        let maps = self.memory.maps();
        let mut guard = self.guard.lock().unwrap();
        let chosen = kernel::in_use(&maps).into_iter().enumerate();
        let chosen = chosen.filter(|(rank, _)| mask >> (rank % 16) & 1 == 1);
        let chosen = chosen.filter(|(_, slot)| {
            maps.backends[slot].state == state::ACTIVE || guard.flows.contains_key(slot)
        });
        guard.flows = chosen
            .map(|(_, slot)| (slot, 1 + u64::from(slot)))
            .collect();
        let flows: std::collections::HashMap<u32, u64> = guard.flows.clone().into_iter().collect();
        self.memory.set_flows(FlowScan {
            active: flows.clone(),
            present: flows,
            ..FlowScan::default()
        });
    }

    fn begin_scan(&mut self) {
        if self.scan.is_some() {
            return;
        }
        self.take(Input::ScanDue);
        let scan = self.actor().inputs.scan.take().unwrap();
        self.scan = Some(join(scan));
    }

    fn end_scan(&mut self) {
        if let Some(scan) = self.scan.take() {
            let before = kernel::in_use(&self.memory.maps());
            self.take(Input::Scanned(Some(scan)));
            if kernel::in_use(&self.memory.maps()).len() < before.len() {
                self.reached.insert("a slot is freed");
            }
            self.reached.insert("a scan ends after changes");
        }
    }

    fn retry(&mut self) {
        if self.actor().inputs.retry_due.take().is_some() {
            self.reached.insert("a call fails");
            self.take(Input::RetryDue);
        }
    }

    /// Nobody else writes, so nothing is repaired.
    fn verify(&mut self) -> Outcome {
        let repairs = self.actor().note.counts.repairs;
        self.take(Input::VerifyDue);
        let tables = self.actor().inputs.tables.take().unwrap();
        self.take(Input::TablesRead(Some(join(tables))));
        let problems = self.actor().inputs.store.take().unwrap();
        self.take(Input::StoreRead(Some(join(problems))));
        let repaired = self.actor().note.counts.repairs - repairs;
        ensure!(repaired == 0, "{repaired} repairs");
        Ok(())
    }

    /// Where a file should be written there is a directory.
    fn fill_disk(&mut self, is_full: bool) {
        let new = self.state_directory().join("state.json.new");
        match is_full {
            true => {
                self.reached.insert("a disk is full");
                let _ = std::fs::create_dir(new);
            }
            false => {
                let _ = std::fs::remove_dir(new);
            }
        }
        self.model.disk_is_full = is_full;
    }

    /// All that is due by itself.
    fn settle(&mut self) {
        let mut reports = Vec::new();
        while let Ok(report) = self.actor().inputs.reports.try_recv() {
            reports.push(report);
        }
        if !reports.is_empty() {
            self.take(Input::Reports(reports));
        }
        self.actor().sources.advance();
        self.model.discover();
        let found = self.actor().inputs.found.clone();
        if poll(found.notified()).is_some() {
            self.take(Input::FoundDue);
        }
        let due = &mut self.actor().inputs.deadline_due;
        if due
            .take_if(|at| *at <= tokio::time::Instant::now())
            .is_some()
        {
            self.look_at_clock();
        }
    }

    /// Everything works again, for long enough.
    fn rest(&mut self) -> Outcome {
        self.memory.fail_call(0);
        self.fill_disk(false);
        self.settle();
        self.retry();
        self.end_scan();
        self.verify()?;
        self.begin_scan();
        self.end_scan();
        self.check()?;
        let failure = &self.actor().kernel.failure;
        ensure!(failure.is_none(), "never recovers: {failure:?}");
        let found = kernel::check(&self.model, &self.memory.maps(), CAPACITY.backends)?;
        let flows = self.guard().flows.clone();
        for slot in &found.left {
            ensure!(flows.contains_key(slot), "slot {slot} is kept for nothing");
            self.reached
                .insert("a backend removed with connections keeps its slot");
        }
        self.reached.insert("at rest");
        Ok(())
    }

    fn check(&mut self) -> Outcome {
        if let Some(violation) = self.guard().violation.take() {
            return Err(violation);
        }
        let is_behind = self.actor().kernel.failure.is_some();
        let is_retried = self.actor().inputs.retry_due.is_some();
        ensure!(is_retried || !is_behind, "a failure is not made up for");
        if is_behind {
            return Ok(());
        }
        let maps = self.memory.maps();
        let found = kernel::check(&self.model, &maps, CAPACITY.backends)?;
        if maps.backends.values().any(|b| b.state == state::CLOSED) {
            self.reached.insert("a deadline passes");
        }
        let mut slots = BTreeMap::new();
        for (reference, is) in found.slots {
            let life = self.model.life(&reference);
            if let Some((former, was)) = self.slots.get(&reference)
                && *former == life
            {
                ensure!(*was == is, "{reference} moves from {was:?} to {is:?}");
            }
            slots.insert(reference, (life, is));
        }
        self.slots = slots;
        Ok(())
    }
}

fn clock(ms: Arc<AtomicU64>, set_by_ms: Arc<AtomicI64>) -> Clock {
    let began = Instant::now();
    Arc::new(move || {
        let ms = ms.load(Ordering::Relaxed);
        Now {
            at: began + Duration::from_millis(ms - BEGAN_MS),
            ms: ms.saturating_add_signed(set_by_ms.load(Ordering::Relaxed)),
        }
    })
}

/// `None` if it is not ready.
fn poll<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Waits for what another thread does.
fn join<T>(mut task: JoinHandle<T>) -> T {
    loop {
        if let Some(value) = poll(&mut task) {
            return value.unwrap();
        }
        thread::yield_now();
    }
}
