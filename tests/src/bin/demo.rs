//! `make demo`: shows lbd at work on a small network of its own, in under a minute. Exits with 1 if
//! anything is not as promised.

use std::{
    io::Write,
    net::SocketAddr,
    path::Path,
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Context;
use lb_tests::{
    clients::{Burst, Load, LongLived, Protocol, Report, any_port, burst, summary},
    daemon::{BPFFS, CONFIG, Config, Daemon, Service},
    net::{Family, Network, Topology},
    servers::{Agent, ECHO_PORT, HTTP_PORT, start_all},
};

const PICTURE: &str = "
                                            ┌── b1  10.1.1.2  fd00:1:1::2   weight 5
   client ─────────── node with lbd ────────┼── b2  10.1.2.2  fd00:1:2::2   weight 3
   10.0.0.2 …         192.0.2.100:8080      └── b3  10.1.3.2  fd00:1:3::2   weight 2
   fd00:c::2 …        [2001:db8::64]:8080
";

const WEIGHTS: [u16; 3] = [5, 3, 2];

/// Connections per measurement of shares; their standard deviation is then 0.9 % at most.
const CONNECTIONS: usize = 3000;
const TOLERANCE: f64 = 0.04;

fn main() -> ExitCode {
    let began = Instant::now();
    let mut demo = match Demo::new() {
        Ok(demo) => demo,
        Err(error) => return fail(&error),
    };
    let acts = [
        Demo::shares,
        Demo::failure,
        Demo::weight_and_drain,
        Demo::daemon_killed,
    ];
    for act in acts {
        if let Err(error) = act(&mut demo) {
            println!("\nlbd's log:\n{}", demo.daemon.log());
            return fail(&error);
        }
    }
    let (kept, broken) = (demo.kept, demo.broken);
    drop(demo);
    println!(
        "\n{kept} promises kept, {broken} broken, in {:.0} s; the network is gone again.",
        began.elapsed().as_secs_f64()
    );
    if broken == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("\nThe demo could not go on: {error:#}");
    ExitCode::FAILURE
}

struct Demo {
    // Dropped in this order.
    daemon: Daemon,
    agents: Vec<Agent>,
    network: Network,
    kept: u32,
    broken: u32,
    next_port: u16,
}

impl Demo {
    fn new() -> anyhow::Result<Self> {
        title("A network: one client, one node, three backends with HTTP servers");
        println!("{PICTURE}");
        let network = Network::new(Topology::default())?;
        let agents = start_all(&network.backends)?;

        title("lbd starts with a config file");
        let web = Service::new("web", Protocol::Tcp)
            .listen(&network, 0, HTTP_PORT)
            .backends(&network, HTTP_PORT, &WEIGHTS);
        let echo = Service::new("echo", Protocol::Tcp)
            .listen(&network, 0, ECHO_PORT)
            .backends(&network, ECHO_PORT, &WEIGHTS);
        let config = Config::new(&network, "native").service(web).service(echo);
        let text = config.render();
        let shown = text.split("  - name: echo").next().unwrap_or(&text);
        println!("\n# {CONFIG} (service `echo` left out here)\n{shown}");
        let started = Instant::now();
        let daemon = Daemon::start(&network.node, &config)?;
        let ready = started.elapsed();
        daemon.wait_all_healthy()?;
        let mut demo = Self {
            daemon,
            agents,
            network,
            kept: 0,
            broken: 0,
            next_port: 10_000,
        };
        println!(
            "ready after {} ms, all backends healthy after {} ms",
            ready.as_millis(),
            started.elapsed().as_millis()
        );
        demo.command(&["get", "backends", "web"])?;
        Ok(demo)
    }

    fn shares(&mut self) -> anyhow::Result<()> {
        title(&format!(
            "{CONNECTIONS} connections of each family, by weight"
        ));
        for family in Family::BOTH {
            let result = self.connections(family);
            println!("\n{family}:");
            self.bars(&result, &WEIGHTS);
        }
        Ok(())
    }

    fn failure(&mut self) -> anyhow::Result<()> {
        title("500 connections a second, and the server on b2 is killed");
        let failed = self.backend(2);
        let load = self.load();
        sleep(Duration::from_millis(1500));
        let killed_at = Instant::now();
        self.agents[1].kill();
        println!("\nkill -9 of the server on b2 …");
        let limit = Duration::from_secs(5);
        self.daemon
            .wait_backend("web", failed, limit, |b| b.effective_weight == 0)?;
        let evicted_at = Instant::now();
        sleep(Duration::from_millis(1500));
        let report = load.so_far();
        let (errors, last) = (report.failures().count(), report.last_failure_ended());
        println!(
            "evicted after {} ms; until then {errors} of {} connections failed ({}), the last one \
             {} ms after the kill",
            (evicted_at - killed_at).as_millis(),
            report.attempts.len(),
            report.failure_summary(),
            last.map_or(0, |last| last
                .saturating_duration_since(killed_at)
                .as_millis()),
        );
        self.command(&["get", "backends", "web"])?;
        let late = report.last_failure_began().is_some_and(|t| t > evicted_at);
        self.promise(!late, "no connection fails that began after the eviction");
        self.promise(
            evicted_at - killed_at < Duration::from_secs(1),
            "evicted within a second",
        );

        println!("\nthe server on b2 starts again …");
        let restarted_at = Instant::now();
        self.agents[1].restart()?;
        self.daemon
            .wait_backend("web", failed, limit, |b| b.effective_weight > 0)?;
        let healthy_at = Instant::now();
        sleep(Duration::from_secs(1));
        let report = load.stop();
        let back = report.by_backend(healthy_at).get("b2").copied();
        println!(
            "back after {} ms (two successful probes); {} connections in the second after that",
            (healthy_at - restarted_at).as_millis(),
            back.unwrap_or(0)
        );
        self.promise(back.is_some(), "b2 takes traffic again");
        let failed_later = report.failures().any(|a| a.began > evicted_at);
        self.promise(!failed_later, "its return costs no connection");
        Ok(())
    }

    fn weight_and_drain(&mut self) -> anyhow::Result<()> {
        title("An operator changes a weight");
        let (b1, b3) = (self.backend(1), self.backend(3));
        self.command(&["set", "weight", &format!("web/{b1}"), "1"])?;
        let result = self.connections(Family::V4);
        self.bars(&result, &[1, 3, 2]);
        self.command(&["unset", "all", &format!("web/{b1}")])?;

        title("… and drains a backend that has a connection open");
        let long = self.long_lived("b3")?;
        let echo_b3 = SocketAddr::new(b3.ip(), ECHO_PORT);
        self.command(&["drain", &format!("web/{b3}")])?;
        self.command(&["drain", &format!("echo/{echo_b3}")])?;
        let before = long.exchanges();
        let result = self.connections(Family::V4);
        self.bars(&result, &[5, 3, 0]);
        sleep(Duration::from_millis(300));
        let exchanged = long.exchanges() - before;
        let closed = long.close();
        println!("the open connection to b3 made {exchanged} more exchanges meanwhile");
        self.promise(
            closed.is_ok() && exchanged > 0,
            "an open connection outlives the drain",
        );
        self.command(&["unset", "all", &format!("web/{b3}")])?;
        self.command(&["unset", "all", &format!("echo/{echo_b3}")])?;
        Ok(())
    }

    fn daemon_killed(&mut self) -> anyhow::Result<()> {
        title("The daemon is killed while traffic goes on");
        let long = self.long_lived("b1")?;
        let load = self.load();
        sleep(Duration::from_secs(1));
        let pid = self.daemon.pid();
        self.daemon.kill9();
        println!("\nkill -9 {pid} (lbd) …");
        let dead_at = Instant::now();
        sleep(Duration::from_secs(2));
        let without = Report {
            attempts: load
                .so_far()
                .attempts
                .into_iter()
                .filter(|a| a.began > dead_at)
                .collect(),
        };
        println!(
            "2 s without a daemon: {} new connections, failed: {}",
            without.attempts.len(),
            without.failure_summary()
        );
        let started = Instant::now();
        self.daemon.restart()?;
        println!(
            "started again: ready after {} ms, with what the kernel held",
            started.elapsed().as_millis()
        );
        sleep(Duration::from_secs(1));
        let report = load.stop();
        let (failures, total) = (report.failure_summary(), report.attempts.len());
        println!("altogether {total} connections, failed: {failures}");
        self.promise(
            failures == "none",
            "no connection fails, with or without the daemon",
        );
        let closed = long.close();
        match &closed {
            Ok(exchanges) => println!("the connection open since before: {exchanges} exchanges"),
            Err(broken) => println!("the connection open since before broke: {broken}"),
        }
        self.promise(closed.is_ok(), "an open connection outlives the daemon");

        title("And it leaves nothing");
        self.daemon.stop()?;
        let removed = self.daemon.lbd(&["--config", CONFIG, "--cleanup"])?;
        print!(
            "\n$ lbd --cleanup\n{}",
            String::from_utf8_lossy(&removed.stdout)
        );
        let pins = self
            .network
            .node
            .run(|| Path::new(BPFFS).join("lbd").exists());
        self.promise(
            removed.status.success() && !pins,
            "nothing is left under the bpffs",
        );
        Ok(())
    }

    fn backend(&self, i: usize) -> SocketAddr {
        (self.network.backend(i, Family::V4), HTTP_PORT).into()
    }

    /// Many connections to `web` at once.
    fn connections(&mut self, family: Family) -> Burst {
        let sources = self.network.client_addresses(family);
        let port = self.next_port;
        self.next_port += 500;
        let target = (self.network.vip(0, family), HTTP_PORT).into();
        burst(
            &self.network.client,
            &sources,
            port,
            CONNECTIONS,
            Protocol::Http,
            target,
        )
    }

    fn load(&self) -> Load {
        Load::start(
            &self.network.client,
            &self.network.client_addresses(Family::V4),
            Protocol::Http,
            (self.network.vip(0, Family::V4), HTTP_PORT).into(),
            500,
            Duration::from_secs(2),
        )
    }

    /// A connection to `echo` that happens to be served by `backend`.
    fn long_lived(&self, backend: &str) -> anyhow::Result<LongLived> {
        let source = any_port(self.network.client_addresses(Family::V4)[0]);
        let target = (self.network.vip(0, Family::V4), ECHO_PORT).into();
        let connections =
            (0..100).map(|_| LongLived::open(&self.network.client, Protocol::Tcp, source, target));
        let mut opened = connections.filter_map(Result::ok);
        opened
            .find(|connection| connection.backend() == backend)
            .with_context(|| format!("100 connections, and none to {backend}"))
    }

    /// Shares as bars, each with a mark where its weight would have it.
    fn bars(&mut self, result: &Burst, weights: &[u16]) {
        let total: u16 = weights.iter().sum();
        let mut good = result.failures.is_empty();
        println!();
        for (i, weight) in (1..).zip(weights) {
            let name = format!("b{i}");
            let (share, due) = (result.share(&name), f64::from(*weight) / f64::from(total));
            good &= (share - due).abs() <= TOLERANCE && (*weight > 0 || share == 0.0);
            println!(
                "  {name}  {}  {:5.1} %   weight {weight:>2} = {:4.1} %",
                bar(share, due),
                100.0 * share,
                100.0 * due
            );
        }
        println!("  failed: {}", summary(&result.failures));
        self.promise(good, "every share is that of its weight");
    }

    /// Runs an lbctl command and shows it with what it says.
    fn command(&mut self, arguments: &[&str]) -> anyhow::Result<()> {
        let said = self.daemon.ctl(arguments)?;
        print!("\n$ lbctl {}\n{said}", arguments.join(" "));
        Ok(())
    }

    fn promise(&mut self, kept: bool, what: &str) {
        let (mark, count) = if kept {
            ("✓", &mut self.kept)
        } else {
            ("✗ BROKEN:", &mut self.broken)
        };
        *count += 1;
        println!("  {mark} {what}");
        let _ = std::io::stdout().flush();
    }
}

/// Forty characters for 0–100 %, with `|` where `due` ends.
fn bar(share: f64, due: f64) -> String {
    let cells = |part: f64| (part * 40.0).round() as usize;
    (0..=40)
        .map(|cell| match cell {
            _ if cell == cells(due) => '|',
            _ if cell < cells(share) => '█',
            _ => '·',
        })
        .collect()
}

fn title(text: &str) {
    println!(
        "\n── {text} {}",
        "─".repeat(76usize.saturating_sub(text.chars().count()))
    );
}
