//! Real servers on the backends: one process each, `lbt-agent`, that can be killed for real.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use anyhow::Context;

use crate::host::{Host, start};

/// TCP port of the HTTP server: `GET /` answers with the agent's name, `GET /healthz` with 200,
/// `POST /upload` with SHA-256 and length of the body, `GET /download/SEED/LENGTH` with
/// [`crate::bulk::Stream`].
pub const HTTP_PORT: u16 = 8080;

/// TCP and UDP port of the echo server: a line or datagram `text` is answered by
/// `NAME PEER text`, PEER being the address the agent saw it come from.
pub const ECHO_PORT: u16 = 7000;

/// Ports from [`ECHO_PORT`] up at which the echo server listens: with SNAT, one backend address has
/// only as many connections as there are source ports.
pub const ECHO_PORTS: u16 = 3;

/// The server process of one backend. Killed when dropped.
pub struct Agent {
    host: Host,
    process: Child,
}

impl Agent {
    /// Starts the agent and waits until it listens.
    pub fn start(host: &Host) -> anyhow::Result<Self> {
        Ok(Self {
            host: host.clone(),
            process: spawn(host)?,
        })
    }

    /// SIGKILL: the host is still there and refuses connections.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// SIGSTOP: the host takes connections, and nobody answers. SIGCONT ends that.
    pub fn pause(&self, paused: bool) {
        self.signal(if paused { libc::SIGSTOP } else { libc::SIGCONT });
    }

    /// Has it reset every connection that comes or speaks, instead of serving it.
    pub fn reset_connections(&self, resets: bool) {
        self.signal(if resets { libc::SIGUSR1 } else { libc::SIGUSR2 });
    }

    /// Process id; another one after [`Self::restart`].
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: a signal to a child process that has not been waited for.
        unsafe { libc::kill(self.pid() as libc::pid_t, signal) };
    }

    /// Starts it again after [`Self::kill`].
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill();
        self.process = spawn(&self.host)?;
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts an agent on every host.
pub fn start_all(hosts: &[Host]) -> anyhow::Result<Vec<Agent>> {
    hosts.iter().map(Agent::start).collect()
}

fn spawn(host: &Host) -> anyhow::Result<Child> {
    let mut command = host.command(crate::program("lbt-agent", "LBT_AGENT")?);
    command
        .arg(host.name())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut process = start(command).context("cannot start lbt-agent")?;
    let mut line = String::new();
    BufReader::new(process.stdout.take().expect("piped")).read_line(&mut line)?;
    anyhow::ensure!(
        line == "ready\n",
        "lbt-agent on {} did not start",
        host.name()
    );
    Ok(process)
}
