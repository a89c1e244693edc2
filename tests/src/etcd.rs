//! etcd, the real one, as a process on a host: started, killed, hung, emptied.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};

use crate::{
    eventually,
    host::{Host, start},
};

/// Longest time until a member answers.
const READY: Duration = Duration::from_secs(60);

/// A member of a cluster. Killed when dropped.
pub struct Etcd {
    host: Host,
    name: String,
    /// Where clients reach it: `http://127.0.0.1:2379`.
    url: String,
    arguments: Vec<String>,
    /// What etcdctl needs to be let in.
    access: Vec<String>,
    process: Option<Child>,
}

impl Etcd {
    /// A cluster of one, whose data is in the host's `/run`. `more` are options of etcd, `access` of
    /// etcdctl.
    pub fn start(host: &Host, url: &str, more: &[&str], access: &[&str]) -> anyhow::Result<Self> {
        let mut etcd = Self::prepare(host, "one", url, &[("one", "http://127.0.0.1:2380")], more);
        etcd.access = access.iter().map(ToString::to_string).collect();
        etcd.launch()?;
        etcd.wait_ready()?;
        Ok(etcd)
    }

    /// The member `name` of the cluster `peers` (name and URL), not started yet.
    pub fn prepare(
        host: &Host,
        name: &str,
        url: &str,
        peers: &[(&str, &str)],
        more: &[&str],
    ) -> Self {
        let all: Vec<_> = peers.iter().map(|(n, url)| format!("{n}={url}")).collect();
        let own = peers.iter().find(|(n, _)| *n == name);
        let own = own.map_or("", |(_, url)| url);
        let pairs = [
            ("--name", name),
            ("--data-dir", &*format!("/run/etcd-{name}")),
            ("--listen-client-urls", url),
            ("--advertise-client-urls", url),
            ("--listen-peer-urls", own),
            ("--initial-advertise-peer-urls", own),
            ("--initial-cluster", &all.join(",")),
        ];
        let mut arguments: Vec<String> = pairs
            .iter()
            .flat_map(|(key, value)| [(*key).to_owned(), (*value).to_owned()])
            .collect();
        arguments.extend(more.iter().map(ToString::to_string));
        Self {
            host: host.clone(),
            name: name.to_owned(),
            url: url.to_owned(),
            arguments,
            access: Vec::new(),
            process: None,
        }
    }

    /// Starts the process, and waits for nothing.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let mut command = self.host.command("etcd");
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let what = "cannot start etcd (package etcd-server; `make setup` installs it)";
        self.process = Some(start(command).context(what)?);
        Ok(())
    }

    pub fn wait_ready(&self) -> anyhow::Result<()> {
        let ready = eventually(READY, || {
            self.try_ctl(&["get", "ready"])
                .is_ok_and(|output| output.status.success())
        });
        let log = || fs::read_to_string(self.log_path()).unwrap_or_default();
        ensure!(ready, "etcd does not answer; its log:\n{}", log());
        Ok(())
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// With the data that it had.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// As a cluster that knows nothing.
    pub fn restart_empty(&mut self) -> anyhow::Result<()> {
        fs::remove_dir_all(self.data())?;
        self.restart()
    }

    /// Its data, reachable by this process; a copy of it, made while it does not run, is a backup.
    pub fn data(&self) -> PathBuf {
        self.host.run_path(&format!("etcd-{}", self.name))
    }

    /// It hangs: connections stay, and nothing answers. `false` ends that.
    pub fn hang(&self, hangs: bool) {
        let signal = if hangs { libc::SIGSTOP } else { libc::SIGCONT };
        let process = self.process.as_ref().expect("etcd runs");
        // SAFETY: a signal to a child process that has not been waited for.
        unsafe { libc::kill(process.id() as libc::pid_t, signal) };
    }

    /// `etcdctl` with these arguments; returns what it prints, and fails unless it exits with 0.
    pub fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.try_ctl(arguments)?;
        ensure!(
            output.status.success(),
            "etcdctl {}: {}{}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    pub fn put(&self, key: &str, value: &str) -> anyhow::Result<()> {
        self.ctl(&["put", key, "--", value]).map(drop)
    }

    pub fn delete(&self, key: &str) -> anyhow::Result<()> {
        self.ctl(&["del", key]).map(drop)
    }

    /// The cluster's revision.
    pub fn revision(&self) -> anyhow::Result<i64> {
        let text = self.ctl(&["get", "nothing", "-w", "json"])?;
        let answer: serde_json::Value = serde_json::from_str(&text)?;
        let revision = answer["header"]["revision"].as_i64();
        revision.with_context(|| text.clone())
    }

    fn try_ctl(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.host.command("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url])
            .args(&self.access)
            .args(arguments)
            .stdin(Stdio::null());
        let what = "cannot run etcdctl (package etcd-client; `make setup` installs it)";
        command.output().context(what)
    }

    fn log_path(&self) -> PathBuf {
        self.host.run_path(&format!("etcd-{}.log", self.name))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.log_path()).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(15)..];
            eprintln!("--- last lines of etcd's log ---\n{}", tail.join("\n"));
        }
    }
}
