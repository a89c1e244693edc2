//! A real DNS server: dnsmasq, authoritative for `example.internal`.

use std::{
    fmt::Write as _,
    fs,
    net::{SocketAddr, TcpStream},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};

use crate::{
    eventually,
    host::{Host, start},
};

/// Time for which its answers hold, also negative ones, in seconds.
pub const TTL: u32 = 1;

const DIRECTORY: &str = "dns";

/// What it knows.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// Address and name.
    pub hosts: Vec<(String, String)>,
    /// `NAME,TARGET,PORT,PRIORITY,WEIGHT`; a name alone for a service that is decidedly not offered.
    pub services: Vec<String>,
}

impl Records {
    #[must_use]
    pub fn host(mut self, name: &str, address: impl ToString) -> Self {
        self.hosts.push((address.to_string(), name.to_owned()));
        self
    }

    #[must_use]
    pub fn service(mut self, line: impl Into<String>) -> Self {
        self.services.push(line.into());
        self
    }
}

/// The server's process, at 127.0.0.1:53 of a host. Killed when dropped.
pub struct Dnsmasq {
    host: Host,
    process: Option<Child>,
}

impl Dnsmasq {
    /// Starts it and waits until it listens.
    pub fn start(host: &Host, records: &Records) -> anyhow::Result<Self> {
        let mut server = Self {
            host: host.clone(),
            process: None,
        };
        server.restart(records)?;
        Ok(server)
    }

    /// SIGKILL: from now on nobody listens there.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts it anew with these records.
    pub fn restart(&mut self, records: &Records) -> anyhow::Result<()> {
        self.kill();
        let path = self.host.run_path(DIRECTORY);
        fs::create_dir_all(&path)?;
        let mut config = format!(
            "keep-in-foreground\nlog-facility=-\nno-resolv\nno-hosts\npid-file\nuser=root\n\
             listen-address=127.0.0.1\nbind-interfaces\naddn-hosts=/run/{DIRECTORY}/hosts\n\
             auth-server=ns.example.internal,127.0.0.1\nauth-zone=example.internal\n\
             auth-ttl={TTL}\n"
        );
        for line in &records.services {
            let _ = writeln!(config, "srv-host={line}");
        }
        fs::write(path.join("dnsmasq.conf"), config)?;
        self.write_hosts(records)?;
        let mut command = self.host.command("dnsmasq");
        command
            .args(["-C", &format!("/run/{DIRECTORY}/dnsmasq.conf")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(path.join("log"))?);
        let process = start(command);
        self.process =
            Some(process.context("cannot start dnsmasq (package dnsmasq-base; `make setup`)")?);
        let address = SocketAddr::from(([127, 0, 0, 1], 53));
        let listens = eventually(Duration::from_secs(15), || {
            self.host.run(|| TcpStream::connect(address).is_ok())
        });
        let log = || fs::read_to_string(path.join("log")).unwrap_or_default();
        ensure!(listens, "dnsmasq does not listen: {}", log());
        Ok(())
    }

    /// Other addresses, while it runs. Services need [`Self::restart`].
    pub fn set_hosts(&self, records: &Records) -> anyhow::Result<()> {
        self.write_hosts(records)?;
        self.signal(libc::SIGHUP);
        Ok(())
    }

    /// It is there and says nothing, or goes on.
    pub fn hang(&self, hangs: bool) {
        self.signal(if hangs { libc::SIGSTOP } else { libc::SIGCONT });
    }

    fn write_hosts(&self, records: &Records) -> anyhow::Result<()> {
        let lines = records
            .hosts
            .iter()
            .map(|(ip, name)| format!("{ip} {name}\n"));
        let path = self.host.run_path(DIRECTORY);
        Ok(fs::write(path.join("hosts"), lines.collect::<String>())?)
    }

    fn signal(&self, signal: libc::c_int) {
        if let Some(process) = &self.process {
            // SAFETY: a signal to a child process that has not been waited for.
            unsafe { libc::kill(process.id() as libc::pid_t, signal) };
        }
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Makes 127.0.0.1 the host's resolver: its `/etc/resolv.conf`, which no other host sees.
pub fn use_local_resolver(host: &Host, more: &str) -> anyhow::Result<()> {
    let text = format!("nameserver 127.0.0.1\n{more}");
    fs::write(host.run_path("resolv.conf"), text)?;
    host.execute("mount", &["--bind", "/run/resolv.conf", "/etc/resolv.conf"])
        .context("a resolv.conf of the host's own")?;
    Ok(())
}
