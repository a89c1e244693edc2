//! Targets change, probes end and others look on, all at the same time, on several threads.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc::UnboundedReceiver,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::*;
use crate::{
    health::Checks,
    model::{Health, HealthCheck},
};

/// Long enough for any machine; no passing test waits for it.
const PATIENT: Duration = Duration::from_secs(60);

const BACKENDS: usize = 24;
const ROUNDS: u32 = 400;

/// Fewer than there are backends that hang, so that a slot that is lost is missed.
const SLOTS: usize = 4;

type Targets = BTreeMap<BackendRef, Target>;

/// One of each: who accepts, who refuses, who says nothing.
struct Servers {
    accepting: SocketAddr,
    refusing: SocketAddr,
    silent: SocketAddr,
    _socket: TcpSocket,
    tasks: [JoinHandle<()>; 2],
}

impl Servers {
    async fn start() -> Self {
        let listen = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (accepting, silent) = (listen().await, listen().await);
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self {
            accepting: accepting.local_addr().unwrap(),
            refusing: socket.local_addr().unwrap(),
            silent: silent.local_addr().unwrap(),
            _socket: socket,
            tasks: [
                tokio::spawn(async move {
                    loop {
                        let _ = accepting.accept().await;
                    }
                }),
                tokio::spawn(async move {
                    let mut kept: Vec<TcpStream> = Vec::new();
                    loop {
                        kept.extend(silent.accept().await.map(|(stream, _)| stream));
                        let gone = kept.len().saturating_sub(100);
                        kept.drain(..gone);
                    }
                }),
            ],
        }
    }

    /// Backend number `n`, and one of two specs for it.
    fn target(&self, n: usize, spec: u32) -> (BackendRef, Target) {
        let http = HealthCheck::Http {
            path: "/".into(),
            host: None,
            expect_status: vec![200],
        };
        let (address, check) = match n % 4 {
            0 => (self.accepting, HealthCheck::Tcp),
            1 => (self.refusing, HealthCheck::Tcp),
            2 => (self.silent, http),
            _ => (self.silent, HealthCheck::None),
        };
        let health = Health {
            check,
            interval: Duration::from_millis(10),
            fast_interval: Duration::from_millis(10),
            timeout: Duration::from_millis(15),
            fall: 1 + spec,
            ..Health::default()
        };
        let service = format!("s{n}");
        let inherited = None;
        (
            BackendRef { service, address },
            Target { health, inherited },
        )
    }

    fn all(&self) -> Targets {
        (0..BACKENDS).map(|n| self.target(n, 0)).collect()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// What came out of the channel, checked against what came before.
#[derive(Default)]
struct Books {
    verdicts: HashMap<BackendRef, Option<bool>>,
    reports: usize,
}

impl Books {
    /// The targets were changed, and when that was done `earlier` reports were waiting: those may be
    /// about the former targets, and no others.
    fn take(
        &mut self,
        reports: &mut UnboundedReceiver<Report>,
        earlier: usize,
        former: &Targets,
        targets: &Targets,
    ) {
        let mut number = 0;
        while let Ok(report) = reports.try_recv() {
            let backend = &report.backend;
            let late = number >= earlier;
            assert!(
                targets.contains_key(backend) || !late && former.contains_key(backend),
                "{backend} is reported {number} reports after {earlier} that were waiting"
            );
            number += 1;
            let healthy = report.verdict.healthy;
            let before = self.verdicts.insert(report.backend.clone(), healthy);
            assert_eq!(report.changed, before.flatten() != healthy, "{backend}");
        }
        self.reports += number;
        self.verdicts
            .retain(|backend, _| targets.contains_key(backend));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn targets_change_while_probes_end_and_others_look() {
    let servers = Servers::start().await;
    let (sender, mut reports) = mpsc::unbounded_channel();
    let runner = Arc::new(Runner::new(sender, SLOTS));
    let driver = tokio::spawn(Arc::clone(&runner).drive());

    let over = Arc::new(AtomicBool::new(false));
    let lookers: Vec<_> = (0..2)
        .map(|_| {
            let (runner, over) = (Arc::clone(&runner), Arc::clone(&over));
            let all: Vec<_> = servers.all().into_keys().collect();
            thread::spawn(move || {
                let mut seen = 0u64;
                while !over.load(Ordering::Relaxed) {
                    for verdict in all.iter().filter_map(|backend| runner.verdict(backend)) {
                        assert!(verdict.successes_in_row == 0 || verdict.failures_in_row == 0);
                        let is_decided = verdict.healthy.is_some();
                        assert_eq!(is_decided, verdict.last_probe.is_some(), "{verdict:?}");
                        seen += 1;
                    }
                }
                seen
            })
        })
        .collect();

    let mut dice = StdRng::seed_from_u64(1);
    let (mut former, mut books) = (Targets::new(), Books::default());
    for round in 0..ROUNDS {
        let targets: Targets = (0..BACKENDS)
            .filter(|_| dice.random_ratio(2, 3))
            .map(|n| servers.target(n, round / 8 % 2))
            .collect();
        runner.set_targets(&targets);
        let earlier = reports.len();
        sleep(Duration::from_micros(dice.random_range(0..6000))).await;
        books.take(&mut reports, earlier, &former, &targets);
        former = targets;
    }
    assert!(books.reports > ROUNDS as usize, "{}", books.reports);

    // Whatever was cut off gave its slot back: nobody starves.
    let all = servers.all();
    runner.set_targets(&all);
    let mut missing: BTreeSet<_> = all
        .iter()
        .filter(|(_, target)| target.health.check != HealthCheck::None)
        .map(|(backend, _)| backend.clone())
        .collect();
    // Those that wait are of before.
    for _ in 0..reports.len() {
        let _ = reports.try_recv();
    }
    while !missing.is_empty() {
        let report = timeout(PATIENT, reports.recv()).await;
        missing.remove(&report.expect("somebody starves").unwrap().backend);
    }
    over.store(true, Ordering::Relaxed);
    for looker in lookers {
        assert!(looker.join().unwrap() > 0);
    }

    runner.set_targets(&Targets::new());
    {
        let shared = runner.lock();
        assert!(shared.running.is_empty(), "{:?}", shared.running);
        assert_eq!(shared.schedule.wake_at(), None);
    }
    driver.abort();
    drop(runner);
    let earlier = reports.len();
    for _ in 0..earlier {
        assert!(reports.try_recv().is_ok());
    }
    // It closes when the last probe is gone.
    assert!(timeout(PATIENT, reports.recv()).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_end_at_any_moment_is_the_end() {
    let servers = Servers::start().await;
    let mut dice = StdRng::seed_from_u64(2);
    let mut said = 0;
    for _ in 0..100 {
        let (sender, mut reports) = mpsc::unbounded_channel();
        let mut checks = Checks::new(sender);
        checks.set_targets(&servers.all());
        sleep(Duration::from_micros(dice.random_range(0..20_000))).await;
        drop(checks);
        let earlier = reports.len();
        said += earlier;
        for _ in 0..earlier {
            assert!(reports.try_recv().is_ok());
        }
        let end = timeout(PATIENT, reports.recv()).await.expect("it ends");
        assert!(end.is_none(), "{end:?}");
    }
    assert!(said > 100, "{said}");
}
