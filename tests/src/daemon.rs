//! The daemon under test, on the node of a test network, and `lbctl` talking to it.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::LazyLock,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use lb_userspace::{
    api::types::{BackendItem, ServiceItem, StatusItem},
    discovery::SourceItem,
};
use serde::de::DeserializeOwned;

use crate::{
    clients::Protocol,
    eventually,
    host::{Host, start},
    net::{Family, Network, family},
    patience,
};

/// Where the daemon's files are, as the node sees them. `/run` is the node's own.
pub const CONFIG: &str = "/run/lbd/lbd.yaml";
pub const STATE: &str = "/run/lbd/state";
pub const SOCKET: &str = "/run/lbd/lbd.sock";
pub const BPFFS: &str = "/sys/fs/bpf";
pub const HTTP: &str = "127.0.0.1:9464";
const LOG: &str = "lbd/lbd.log";

/// Longest time until the daemon is ready, on a machine that is busy otherwise.
const READY: Duration = Duration::from_secs(60);

/// Health checks that notice a failure within half a second; on a slow machine later, for else they see
/// failures everywhere.
pub static QUICK_HEALTH: LazyLock<String> = LazyLock::new(|| {
    let [interval, fast, timeout] =
        [300, 100, 200].map(|time| patience(Duration::from_millis(time)).as_millis());
    format!(
        "{{type: tcp, interval: {interval}ms, fast_interval: {fast}ms, timeout: {timeout}ms, rise: 2, fall: 3}}"
    )
});

/// A service of a config file.
#[derive(Clone, Debug)]
pub struct Service {
    pub name: String,
    pub listen: Vec<SocketAddr>,
    pub protocol: &'static str,
    pub policy: &'static str,
    pub snat: &'static str,
    pub forwarding: &'static str,
    /// YAML, `[]` for none.
    pub tunnel_source: &'static str,
    pub on_backend_down: &'static str,
    /// YAML.
    pub health: &'static str,
    /// More of the service, a line of YAML each.
    pub more: Vec<String>,
    /// Address and weight.
    pub backends: Vec<(SocketAddr, u16)>,
    /// YAML; empty for none.
    pub discovery: String,
}

impl Service {
    pub fn new(name: &str, protocol: Protocol) -> Self {
        Self {
            name: name.to_owned(),
            listen: Vec::new(),
            protocol: if protocol == Protocol::Udp {
                "udp"
            } else {
                "tcp"
            },
            policy: "maglev",
            snat: "auto",
            forwarding: "nat",
            tunnel_source: "[]",
            on_backend_down: "keep",
            health: &QUICK_HEALTH,
            more: Vec::new(),
            backends: Vec::new(),
            discovery: String::new(),
        }
    }

    /// Where more backends come from, as YAML: `{file: {path: /run/lbd/web.yaml}}`.
    pub fn discovery(mut self, yaml: impl Into<String>) -> Self {
        self.discovery = yaml.into();
        self
    }

    /// Listens on the network's `n`th service address of both families.
    pub fn listen(mut self, network: &Network, n: u8, port: u16) -> Self {
        for family in Family::BOTH {
            self.listen.push((network.vip(n, family), port).into());
        }
        self
    }

    /// One backend of each family on the first hosts of the network, with these weights.
    pub fn backends(mut self, network: &Network, port: u16, weights: &[u16]) -> Self {
        for (i, weight) in weights.iter().enumerate() {
            for family in Family::BOTH {
                let address = network.backend(i + 1, family);
                self.backends.push(((address, port).into(), *weight));
            }
        }
        self
    }

    /// Where clients of a family connect to.
    pub fn address(&self, of: Family) -> SocketAddr {
        let mut listen = self.listen.iter();
        *listen
            .find(|a| family(a) == of)
            .expect("listens on both families")
    }
}

/// What a test varies of a config file.
#[derive(Clone, Debug)]
pub struct Config {
    pub interfaces: Vec<String>,
    /// `native`, `generic`, `off` or `auto`.
    pub xdp: &'static str,
    /// More keys of `node`, each with its value.
    pub node: Vec<(&'static str, String)>,
    pub services: Vec<Service>,
}

impl Config {
    pub fn new(network: &Network, xdp: &'static str) -> Self {
        Self {
            interfaces: network.node_devices(),
            xdp,
            node: Vec::new(),
            services: Vec::new(),
        }
    }

    pub fn service(mut self, service: Service) -> Self {
        self.services.push(service);
        self
    }

    /// The file's text.
    pub fn render(&self) -> String {
        let mut text = format!(
            "node:\n  interfaces: [{}]\n  xdp: {}\n  state_dir: {STATE}\n  bpffs: {BPFFS}\n",
            self.interfaces.join(", "),
            // In YAML 1.1 a bare `off` is a boolean.
            if self.xdp == "off" {
                "\"off\""
            } else {
                self.xdp
            },
        );
        for (key, value) in &self.node {
            let _ = writeln!(text, "  {key}: {value}");
        }
        let _ = writeln!(
            text,
            "admin: {{socket: {SOCKET}, http: \"{HTTP}\"}}\nservices:"
        );
        for service in &self.services {
            let listen: Vec<_> = service.listen.iter().map(|a| format!("\"{a}\"")).collect();
            let _ = write!(
                text,
                "  - name: {}\n    listen: [{}]\n    protocol: {}\n    snat: {}\n    forwarding: {}\n\
                 \x20   tunnel_source: {}\n    policy: {}\n\
                 \x20   on_backend_down: {}\n    health: {}\n",
                service.name,
                listen.join(", "),
                service.protocol,
                service.snat,
                service.forwarding,
                service.tunnel_source,
                service.policy,
                service.on_backend_down,
                service.health,
            );
            for line in &service.more {
                let _ = writeln!(text, "    {line}");
            }
            text += "    backends:\n";
            for (address, weight) in &service.backends {
                let _ = writeln!(text, "      - {{address: \"{address}\", weight: {weight}}}");
            }
            if !service.discovery.is_empty() {
                let _ = writeln!(text, "    discovery: {}", service.discovery);
            }
        }
        text
    }
}

/// A running daemon. When dropped it is killed and everything it made removed; if the test
/// failed, its log is printed first.
pub struct Daemon {
    node: Host,
    process: Option<Child>,
    lbd: PathBuf,
    lbctl: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Daemon {
    /// Writes the config, starts the daemon, and waits until it is ready.
    pub fn start(node: &Host, config: &Config) -> anyhow::Result<Self> {
        Self::start_with(node, &config.render())
    }

    /// Like [`Self::start`], with the config file's text.
    pub fn start_with(node: &Host, config: &str) -> anyhow::Result<Self> {
        Self::start_in(node, config, Vec::new())
    }

    /// Like [`Self::start_with`], with more variables in its environment.
    pub fn start_in(
        node: &Host,
        config: &str,
        environment: Vec<(&'static str, String)>,
    ) -> anyhow::Result<Self> {
        let mut daemon = Self {
            node: node.clone(),
            process: None,
            lbd: crate::program("lbd", "LBD_BIN")?,
            lbctl: crate::program("lbctl", "LBCTL_BIN")?,
            environment,
        };
        daemon.write_config(config)?;
        daemon.launch()?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Starts the process without waiting for anything.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        ensure!(self.process.is_none(), "lbd runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.node.run_path(LOG))?;
        let mut command = self.node.command(&self.lbd);
        command
            .args(["--config", CONFIG])
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .env(
                "RUST_LOG",
                std::env::var("LBT_LOG").unwrap_or("info".into()),
            )
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.process = Some(start(command).context("cannot start lbd")?);
        Ok(())
    }

    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + patience(READY);
        loop {
            let process = self.process.as_mut().context("lbd was not started")?;
            if let Some(status) = process.try_wait()? {
                self.process = None;
                bail!("lbd ended: {status}; its log:\n{}", self.log());
            }
            if let Ok((200, _)) = self.http("/readyz") {
                return Ok(());
            }
            if Instant::now() > end {
                let threads = threads(self.pid());
                bail!(
                    "lbd is not ready after {:?}; its threads:\n{threads}its log:\n{}",
                    patience(READY),
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What is started.
    pub fn program(&self) -> PathBuf {
        self.lbd.clone()
    }

    /// Another program, built beside it.
    pub fn sibling(&self, name: &str) -> PathBuf {
        self.lbd.with_file_name(name)
    }

    /// Has another program be started from now on.
    pub fn set_program(&mut self, lbd: PathBuf) {
        self.lbd = lbd;
    }

    /// Has the daemon be started with a variable in its environment from now on.
    pub fn set_environment(&mut self, key: &'static str, value: &str) {
        self.environment.push((key, value.to_owned()));
    }

    /// Process id; the daemon must be running.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("lbd runs").id()
    }

    /// SIGKILL, as an out-of-memory killer would.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// SIGTERM, and waits for the end; the data path stays. Fails unless it ends well in 10 s.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.signal(libc::SIGTERM);
        let mut process = self.process.take().context("lbd does not run")?;
        let mut status = None;
        eventually(Duration::from_secs(10), || {
            status = process.try_wait().ok().flatten();
            status.is_some()
        });
        let Some(status) = status else {
            let _ = process.kill();
            let _ = process.wait();
            bail!("lbd did not end within 10 s of SIGTERM");
        };
        ensure!(status.success(), "lbd ended with {status}");
        Ok(())
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: a signal to a child process that has not been waited for.
        unsafe { libc::kill(self.pid() as libc::pid_t, signal) };
    }

    /// Starts it again and waits until it is ready.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    pub fn write_config(&self, text: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.node.run_path("lbd/lbd.yaml"), text)?)
    }

    /// `lbctl` with these arguments, to its end.
    pub fn lbctl(&self, arguments: &[&str]) -> Output {
        let mut command = self.lbctl_command(arguments);
        command.output().expect("lbctl starts")
    }

    /// Like [`Self::lbctl`], returning what it prints; fails unless it exits with 0.
    pub fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.lbctl(arguments);
        ensure!(
            output.status.success(),
            "lbctl {}: {}: {}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    pub fn lbctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.node.command(&self.lbctl);
        command
            .args(["--socket", SOCKET])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// `lbctl get …`, understood.
    pub fn get<T: DeserializeOwned>(&self, what: &str) -> anyhow::Result<Vec<T>> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct List<T> {
            api_version: String,
            items: Vec<T>,
        }
        let text = self.ctl(&["get", what, "-o", "json"])?;
        let list: List<T> = serde_json::from_str(&text).with_context(|| text.clone())?;
        ensure!(
            list.api_version == "lb/v1",
            "apiVersion {}",
            list.api_version
        );
        Ok(list.items)
    }

    pub fn sources(&self) -> anyhow::Result<Vec<SourceItem>> {
        self.get("sources")
    }

    /// Waits until the only source of a service satisfies `condition`.
    pub fn wait_source(
        &self,
        service: &str,
        limit: Duration,
        condition: impl Fn(&SourceItem) -> bool,
    ) -> anyhow::Result<SourceItem> {
        let mut last = None;
        let met = eventually(limit, || {
            let items = self.sources().unwrap_or_default();
            last = items.into_iter().find(|s| s.service == service);
            last.as_ref().is_some_and(&condition)
        });
        ensure!(met, "after {limit:?}, the source of {service} is {last:?}");
        last.context("no source")
    }

    /// The value of a series on `/metrics`, by its name with labels.
    ///
    /// # Errors
    /// Also if there is no such series: what was renamed must not look like what never happened.
    pub fn metric(&self, series: &str) -> anyhow::Result<f64> {
        let (_, page) = self.http("/metrics")?;
        value_of(&page, series)?.with_context(|| format!("/metrics has no series {series}"))
    }

    /// Like [`Self::metric`]; 0 for a series that begins with what it counts. There must be others of
    /// its name.
    pub fn metric_or_zero(&self, series: &str) -> anyhow::Result<f64> {
        let name = series.split('{').next().unwrap_or_default();
        let (_, page) = self.http("/metrics")?;
        let is_known = page.contains(&format!("# TYPE {name} "));
        ensure!(is_known, "/metrics has no series of {name}");
        Ok(value_of(&page, series)?.unwrap_or(0.0))
    }

    /// Puts a file on the node in place of an older one at once, as well-behaved writers do. `path`
    /// is below `/run`.
    pub fn replace_file(&self, path: &str, text: &str) -> anyhow::Result<()> {
        replace_file(&self.node, path, text)
    }

    pub fn services(&self) -> anyhow::Result<Vec<ServiceItem>> {
        self.get("services")
    }

    pub fn backends(&self) -> anyhow::Result<Vec<BackendItem>> {
        self.get("backends")
    }

    /// Exit code 3, degraded, is an answer too.
    pub fn status(&self) -> anyhow::Result<StatusItem> {
        let text = String::from_utf8(self.lbctl(&["status", "-o", "json"]).stdout)?;
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// Waits until a backend, as `lbctl` shows it, satisfies `condition`.
    pub fn wait_backend(
        &self,
        service: &str,
        address: SocketAddr,
        limit: Duration,
        condition: impl Fn(&BackendItem) -> bool,
    ) -> anyhow::Result<()> {
        let mut last = None;
        let met = eventually(limit, || {
            let items = self.backends().unwrap_or_default();
            let mut items = items.into_iter();
            last = items.find(|b| b.service == service && b.address == address);
            last.as_ref().is_some_and(&condition)
        });
        ensure!(met, "after {limit:?}, {service}/{address} is {last:?}");
        Ok(())
    }

    /// Waits until every backend with a weight takes traffic.
    pub fn wait_all_healthy(&self) -> anyhow::Result<()> {
        let mut last = Vec::new();
        let met = eventually(READY, || {
            last = self.backends().unwrap_or_default();
            let mut weighted = last.iter().filter(|b| b.weight > 0);
            !last.is_empty() && weighted.all(|b| b.effective_weight > 0)
        });
        ensure!(met, "not all healthy after {READY:?}: {last:#?}");
        Ok(())
    }

    /// `GET path` of the admin address: status and body.
    pub fn http(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: lbd\r\nConnection: close\r\n\r\n");
        let answer = self.http_raw(request.as_bytes())?;
        let answer = String::from_utf8(answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split(' ').nth(1).context("no HTTP status")?.parse()?;
        Ok((status, body.to_owned()))
    }

    /// Sends bytes to the admin address and returns all that comes back.
    pub fn http_raw(&self, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
        self.node.run(|| {
            let mut stream = TcpStream::connect(HTTP)?;
            stream.set_read_timeout(Some(patience(Duration::from_secs(5))))?;
            stream.write_all(bytes)?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        })
    }

    /// The unix socket, as this process reaches it.
    pub fn socket_path(&self) -> PathBuf {
        self.node.run_path("lbd/lbd.sock")
    }

    /// All that lbd has logged since its first start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.node.run_path(LOG)).unwrap_or_default()
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        self.memory("VmRSS")
    }

    /// Most resident memory in bytes that it had since its start or the last [`Self::forget_peak`].
    pub fn peak_bytes(&self) -> anyhow::Result<u64> {
        self.memory("VmHWM")
    }

    /// Has [`Self::peak_bytes`] begin anew, at what is resident now (proc(5), `clear_refs`).
    pub fn forget_peak(&self) -> anyhow::Result<()> {
        let path = format!("/proc/{}/clear_refs", self.pid());
        fs::write(&path, "5").context(path)
    }

    fn memory(&self, field: &str) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let mut lines = status.lines();
        let value = lines.find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
        let kib = value.and_then(|value| value.split_whitespace().next());
        let kib = kib.with_context(|| format!("no {field}"))?;
        Ok(kib.parse::<u64>()? * 1024)
    }

    /// `lbd` with other arguments, to its end.
    pub fn lbd(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.node.command(&self.lbd);
        Ok(command.args(arguments).stdin(Stdio::null()).output()?)
    }
}

/// The value of a series on a page of metrics.
fn value_of(page: &str, series: &str) -> anyhow::Result<Option<f64>> {
    let value = page
        .lines()
        .find_map(|l| l.strip_prefix(series)?.strip_prefix(' '));
    Ok(value.map(str::parse).transpose()?)
}

/// Where each thread of a process waits, a paragraph each.
fn threads(process: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{process}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    let told = tasks.map(|task| {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let (name, state) = (read("comm"), read("stat"));
        let state = state
            .rsplit(')')
            .next()
            .and_then(|rest| rest.trim().chars().next());
        format!(
            "{} {}\n{}",
            name.trim_end(),
            state.unwrap_or('?'),
            read("stack")
        )
    });
    told.collect()
}

/// See [`Daemon::replace_file`].
pub fn replace_file(node: &Host, path: &str, text: &str) -> anyhow::Result<()> {
    let path = node.run_path(path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(&new, &path)?)
}

/// For [`Daemon::wait_backend`]: a source that comes in another's place shows what that had found, with
/// other labels, until it answers.
pub fn has_label(backend: &BackendItem, name: &str, value: &str) -> bool {
    backend.labels.get(name).is_some_and(|found| found == value)
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(80)..];
            eprintln!("--- last lines of lbd's log ---\n{}", tail.join("\n"));
        }
        // The node's namespaces take devices, programs and pins with them in any case.
        let _ = self.lbd(&["--config", CONFIG, "--cleanup"]);
    }
}
