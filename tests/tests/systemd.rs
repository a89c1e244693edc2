//! lbd under a service manager: what it tells of itself, and when it falls silent.
//!
//! ```text
//!   test ── datagram socket /run/notify ◀── lbd (node) ── b1
//! ```

use std::{
    fs,
    io::Read,
    os::unix::net::UnixDatagram,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use lb_tests::{
    clients::Protocol,
    daemon::{Config, Daemon, STATE, Service},
    eventually,
    host::start,
    net::{Network, Topology},
    servers::{HTTP_PORT, start_all},
};

/// What the daemon is told as `WATCHDOG_USEC`.
const WATCHDOG: Duration = Duration::from_millis(400);
/// Nobody waits longer for a datagram.
const PATIENCE: Duration = Duration::from_secs(20);

/// What systemd listens on.
struct Manager(UnixDatagram);

impl Manager {
    fn listen(network: &Network) -> anyhow::Result<Self> {
        let socket = UnixDatagram::bind(network.node.run_path("notify"))?;
        Ok(Self(socket))
    }

    fn environment() -> Vec<(&'static str, String)> {
        vec![
            ("NOTIFY_SOCKET", "/run/notify".to_owned()),
            ("WATCHDOG_USEC", WATCHDOG.as_micros().to_string()),
        ]
    }

    /// The next datagram within `limit`.
    fn hear(&self, limit: Duration) -> Option<String> {
        self.0.set_read_timeout(Some(limit)).ok()?;
        let mut bytes = [0; 4096];
        let length = self.0.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    /// The next datagram that is more than a sign of life.
    fn hear_news(&self) -> anyhow::Result<String> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            match self.hear(PATIENCE) {
                Some(told) if told.starts_with("WATCHDOG=1\n") => {}
                Some(told) => return Ok(told),
                None => break,
            }
        }
        anyhow::bail!("nothing told within {PATIENCE:?}")
    }

    fn hear_sign_of_life(&self) -> anyhow::Result<()> {
        let told = self.hear(PATIENCE).context("no sign of life")?;
        ensure!(told.starts_with("WATCHDOG=1\n"), "told {told:?}");
        Ok(())
    }

    /// Whether signs of life cease for longer than systemd would wait.
    fn falls_silent(&self) -> bool {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if self.hear(WATCHDOG * 4).is_none() {
                return true;
            }
        }
        false
    }
}

/// Microseconds of CLOCK_MONOTONIC.
fn now() -> u64 {
    // SAFETY: an all-zero `timespec` is valid, and the pointer is to one.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time);
        time
    };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

fn config(network: &Network, name: &str) -> String {
    let mut service = Service::new(name, Protocol::Tcp)
        .listen(network, 0, HTTP_PORT)
        .backends(network, HTTP_PORT, &[1]);
    service.health = "none";
    Config::new(network, "off").service(service).render()
}

/// SIGHUP, and the two datagrams that have to follow.
fn reload(daemon: &Daemon, manager: &Manager) -> anyhow::Result<String> {
    let before = now();
    daemon.signal(libc::SIGHUP);
    let announced = manager.hear_news()?;
    let time = announced
        .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
        .with_context(|| announced.clone())?;
    let time: u64 = time.trim_end().parse()?;
    ensure!((before..=now()).contains(&time), "{before} {time}");
    let over = manager.hear_news()?;
    let status = over.strip_prefix("READY=1\nSTATUS=");
    Ok(status.with_context(|| over.clone())?.trim_end().to_owned())
}

fn service_names(daemon: &Daemon) -> anyhow::Result<Vec<String>> {
    Ok(daemon.services()?.into_iter().map(|s| s.name).collect())
}

#[test]
fn a_service_manager_hears_of_the_daemons_life() -> anyhow::Result<()> {
    let network = Network::new(Topology {
        backends: 1,
        ..Topology::default()
    })?;
    let _agents = start_all(&network.backends)?;
    let manager = Manager::listen(&network)?;
    let node = &network.node;
    let mut daemon = Daemon::start_in(node, &config(&network, "web"), Manager::environment())?;

    let ready = manager.hear(PATIENCE).context("never ready")?;
    let counts = "services: 1, healthy backends: 2 of 2";
    assert_eq!(ready, format!("READY=1\nSTATUS={counts}\n"));
    for _ in 0..3 {
        manager.hear_sign_of_life()?;
    }

    // A good reload: told when it is in force.
    daemon.write_config(&config(&network, "shop"))?;
    assert_eq!(reload(&daemon, &manager)?, counts);
    assert_eq!(service_names(&daemon)?, ["shop"]);

    // A bad one: over as well, the reason in the status, and nothing changed.
    daemon.write_config("services: 5\n")?;
    let status = reload(&daemon, &manager)?;
    assert!(
        status.starts_with("reload failed: ") && status.contains("lbd.yaml:1:"),
        "{status}"
    );
    assert_eq!(service_names(&daemon)?, ["shop"]);
    manager.hear_sign_of_life()?;

    hang(&daemon, &manager, &network)?;

    daemon.write_config(&config(&network, "web"))?;
    assert_eq!(reload(&daemon, &manager)?, counts);

    // Stop, and start: ready is told when others find it ready.
    daemon.stop()?;
    let stopping = manager.hear_news()?;
    assert!(
        stopping.starts_with("STOPPING=1\nSTATUS=stopping"),
        "{stopping}"
    );
    daemon.launch()?;
    let ready = manager.hear_news()?;
    assert_eq!(ready, format!("READY=1\nSTATUS={counts}\n"));
    assert_eq!(daemon.http("/readyz")?.0, 200);
    assert_eq!(service_names(&daemon)?, ["web"]);
    Ok(())
}

/// The controller waits for a disk that does not answer: a state file that is a pipe without a
/// reader. Every other task of the daemon goes on.
fn hang(daemon: &Daemon, manager: &Manager, network: &Network) -> anyhow::Result<()> {
    let pipe = network.node.run_path("lbd/state/state.json.new");
    network
        .node
        .execute("mkfifo", &[&format!("{STATE}/state.json.new")])?;
    let mut command =
        daemon.lbctl_command(&["add", "service", "extra", "--listen", "192.0.2.99:81"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut request = start(command)?;
    assert!(
        manager.falls_silent(),
        "signs of life from a controller that hangs"
    );
    // The process is well otherwise, and says so to Kubernetes too.
    let is_unwell = || daemon.http("/healthz").is_ok_and(|answer| answer.0 == 503);
    assert!(eventually(PATIENCE, is_unwell));
    assert!(request.try_wait()?.is_none());

    // Somebody reads: the disk answers, and with it the controller.
    fs::File::open(&pipe)?.read_to_end(&mut Vec::new())?;
    fs::remove_file(&pipe).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    manager.hear_sign_of_life()?;
    assert_eq!(daemon.http("/healthz")?.0, 200);
    request.wait()?;
    Ok(())
}
