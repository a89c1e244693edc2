//! `cargo run --release -p lb-tests --bin scale [SERVICES [BACKENDS]]`: the daemon with 1,000
//! services of 20 backends each (or as many as asked for). Prints the time of a cold start, the
//! time from one change to the kernel, and the resident memory, against the budgets of the design;
//! and the time of a cold start with weights from 1 to the number of backends. Exits with 1 if one
//! is not met. With `LBT_LOG=debug` it prints the daemon's log besides.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddrV4},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use aya::maps::{Array, Map, MapData};
use lb_common::abi::{ABI_VERSION, Backend, backend_state, from_bytes};
use lb_tests::{
    daemon::{BPFFS, Config, Daemon, SOCKET},
    net::{Network, Topology},
};
use lb_userspace::{
    api::{client::Client, types::Request},
    model::{BackendRef, BackendSpec, Mode},
};

const COLD_START: Duration = Duration::from_secs(2);
const CHANGE: Duration = Duration::from_millis(5);
const RESIDENT: u64 = 64 << 20;

/// Changes that are measured.
const CHANGES: usize = 101;
const ADDITIONS: usize = 11;

fn main() -> ExitCode {
    match measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("scale: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> anyhow::Result<bool> {
    let mut arguments = std::env::args().skip(1).map(|word| word.parse::<u32>());
    let services = arguments.next().unwrap_or(Ok(1000))?;
    let backends = arguments.next().unwrap_or(Ok(20))?;
    ensure!(services * backends <= 1 << 20, "at most a million backends");

    let network = Network::new(Topology {
        backends: 1,
        ..Topology::default()
    })?;
    network.node.ip("route add 10.64.0.0/10 via 10.1.1.2")?;
    let weights = |backend| 50 + 50 * (backend % 2);
    let config_of_two = config(&network, services, backends, weights);

    let began = Instant::now();
    let mut daemon = Daemon::start_with(&network.node, &config_of_two)?;
    let cold = began.elapsed();
    let known = daemon.backends()?;
    let taking = known.iter().filter(|b| b.effective_weight > 0).count();
    ensure!(
        taking == (services * backends) as usize,
        "ready with {taking} backends that take traffic"
    );
    let resident = daemon.resident_bytes()?;
    let mut changes = changes(&network, services, backends)?;
    changes.sort();
    let resident_after = daemon.resident_bytes()?;
    let mut additions = additions(&network, services, backends)?;
    additions.sort();
    daemon.kill9();
    let began = Instant::now();
    daemon.restart()?;
    let warm = began.elapsed();
    if std::env::var_os("LBT_LOG").is_some() {
        eprintln!("{}", daemon.log());
    }
    // Its end removes what it made.
    drop(daemon);
    let steep = config(&network, services, backends, |backend| 1 + backend);
    let began = Instant::now();
    let daemon = Daemon::start_with(&network.node, &steep)?;
    let cold_steep = began.elapsed();
    drop(daemon);

    println!("{services} services × {backends} backends\n");
    let mut kept = true;
    let mut row = |what: &str, value: String, budget: &str, met: bool| {
        kept &= met;
        println!(
            "{what:<44}{value:>12}   {budget:<12}{}",
            if met { "met" } else { "MISSED" }
        );
    };
    let ms = |time: Duration| format!("{:.1} ms", 1000.0 * time.as_secs_f64());
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64);
    let (median, p99) = (changes[CHANGES / 2], changes[CHANGES * 99 / 100]);
    row(
        "cold start to ready, all in the kernel",
        ms(cold),
        "< 2 s",
        cold < COLD_START,
    );
    row(
        &format!("the same, weights 1 to {backends}"),
        ms(cold_steep),
        "< 2 s",
        cold_steep < COLD_START,
    );
    row(
        "start after kill -9, adopting the kernel's",
        ms(warm),
        "< 2 s",
        warm < COLD_START,
    );
    row(
        "one backend drained → kernel, median",
        ms(median),
        "< 5 ms",
        median < CHANGE,
    );
    row(
        "one backend drained → kernel, 99 of 100",
        ms(p99),
        "< 5 ms",
        p99 < CHANGE,
    );
    row(
        "resident memory when ready",
        mib(resident),
        "< 64 MiB",
        resident < RESIDENT,
    );
    row(
        "resident memory after the changes",
        mib(resident_after),
        "< 64 MiB",
        resident_after < RESIDENT,
    );
    // All is planned anew; the budget is for what changes of a backend that is there.
    println!(
        "{:<44}{:>12}",
        "one backend added → answer, median",
        ms(additions[ADDITIONS / 2])
    );
    Ok(kept)
}

fn address(service: u32, backend: u32, backends: u32) -> SocketAddrV4 {
    let number = service * backends + backend;
    let base = u32::from(Ipv4Addr::new(10, 64, 0, 1));
    SocketAddrV4::new(Ipv4Addr::from(base + number), 8080)
}

/// Without health checks: these backends do not exist, and what is measured is the daemon.
fn config(network: &Network, services: u32, backends: u32, weight: impl Fn(u32) -> u32) -> String {
    let mut text = Config::new(network, "native").render();
    // Twice what is there: a removed backend keeps its slot until its connections have ended.
    let limits = format!(
        "  limits: {{services: {}, backends: {}}}\nadmin:",
        2 * services,
        2 * services * backends
    );
    text = text.replacen("admin:", &limits, 1);
    for service in 0..services {
        let vip = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 1)) + service);
        let _ = writeln!(
            text,
            "  - name: s{service}\n    listen: \"{vip}:80\"\n    health: {{type: none}}\n    backends:"
        );
        for backend in 0..backends {
            let address = address(service, backend, backends);
            let _ = writeln!(
                text,
                "      - {{address: \"{address}\", weight: {}}}",
                weight(backend)
            );
        }
    }
    text
}

/// Times from sending a request until the kernel's map of backends shows what it asks for, each of
/// another service.
fn changes(network: &Network, services: u32, backends: u32) -> anyhow::Result<Vec<Duration>> {
    network.node.run(|| {
        let path = format!("{BPFFS}/lbd/{ABI_VERSION}/BACKENDS");
        let map = MapData::from_pin(&path).context(path)?;
        let map = Map::Array(map);
        let slots = Slots(Array::try_from(&map)?);
        let client = Client::new(SOCKET.as_ref());
        let runtime = tokio::runtime::Runtime::new()?;
        let mut times = Vec::new();
        for change in 0..CHANGES {
            let service = change as u32 * services / CHANGES as u32;
            let address = address(service, change as u32 % backends, backends);
            let slot = slots
                .find(address)
                .context("no such backend in the kernel")?;
            let request = Request::SetMode {
                backend: BackendRef {
                    service: format!("s{service}"),
                    address: address.into(),
                },
                mode: Mode::Drain,
                deadline: None,
            };
            let client = client.clone();
            let began = Instant::now();
            let answer = runtime.spawn(async move { client.call(&request).await });
            while slots.get(slot)?.state != backend_state::DRAINING {
                ensure!(
                    began.elapsed() < Duration::from_secs(5),
                    "the kernel never hears of it"
                );
            }
            times.push(began.elapsed());
            let answer = runtime.block_on(answer)?;
            answer.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        }
        Ok(times)
    })
}

/// Times from asking for another backend until the answer, when it is on disk and in the kernel.
fn additions(network: &Network, services: u32, backends: u32) -> anyhow::Result<Vec<Duration>> {
    network.node.run(|| {
        let client = Client::new(SOCKET.as_ref());
        let runtime = tokio::runtime::Runtime::new()?;
        let addition = |number: u32| {
            let request = Request::AddBackend {
                service: format!("s{}", number % services),
                backend: BackendSpec {
                    max_connections: None,
                    address: address(services, number, backends).into(),
                    weight: 50,
                    labels: Default::default(),
                },
            };
            let began = Instant::now();
            let answer = runtime.block_on(client.call(&request));
            answer.map_err(|error| anyhow::anyhow!("{error:?}"))?;
            Ok(began.elapsed())
        };
        (0..ADDITIONS as u32).map(addition).collect()
    })
}

/// The kernel's map of backends, by slot.
struct Slots<'m>(Array<&'m MapData, [u8; size_of::<Backend>()]>);

impl Slots<'_> {
    fn get(&self, slot: u32) -> anyhow::Result<Backend> {
        from_bytes(&self.0.get(&slot, 0)?).context("a backend's bytes")
    }

    fn find(&self, address: SocketAddrV4) -> Option<u32> {
        let wanted = u32::from_ne_bytes(address.ip().octets());
        (0..self.0.len()).find(|slot| {
            let found = self.get(*slot);
            found.is_ok_and(|b| b.state != backend_state::FREE && b.address[0] == wanted)
        })
    }
}
