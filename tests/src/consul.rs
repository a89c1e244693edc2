//! A real Consul.

use std::{
    fs::File,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};

use crate::{
    eventually,
    host::{Host, start},
};

const HTTP: &str = "127.0.0.1:8500";

/// `consul agent -dev` at 127.0.0.1:8500 of a host: a server that keeps everything in memory, so that
/// one that is restarted is empty. Killed when dropped.
pub struct Consul {
    host: Host,
    program: PathBuf,
    process: Option<Child>,
}

impl Consul {
    /// The program.
    ///
    /// # Errors
    /// Why there is none on this machine.
    pub fn program() -> Result<PathBuf, String> {
        if let Some(path) = std::env::var_os("LBT_CONSUL") {
            return Ok(path.into());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let installed = std::env::split_paths(&path).map(|directory| directory.join("consul"));
        let own = std::env::current_exe().unwrap_or_default();
        let unpacked = own
            .ancestors()
            .map(|directory| directory.join("tools/consul"));
        let mut programs = installed.chain(unpacked);
        programs.find(|path| path.is_file()).ok_or_else(|| {
            "no program `consul`: set-up unpacks Debian's to target/tools, or says why it cannot; \
             LBT_CONSUL names another"
                .to_owned()
        })
    }

    /// Starts it and waits until it leads itself.
    pub fn start(host: &Host) -> anyhow::Result<Self> {
        let mut consul = Self {
            host: host.clone(),
            program: Self::program().map_err(anyhow::Error::msg)?,
            process: None,
        };
        consul.restart()?;
        Ok(consul)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts it again, empty.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        ensure!(self.process.is_none(), "Consul runs already");
        let log = File::create(self.host.run_path("consul.log"))?;
        let mut command = self.host.command(&self.program);
        command
            .args(["agent", "-dev", "-node=n1", "-bind=127.0.0.1"])
            .args(["-hcl", "disable_update_check = true"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.process = Some(start(command).context("cannot start Consul")?);
        let mut last = String::new();
        let leads = eventually(Duration::from_secs(30), || {
            match self.call("GET", "/v1/catalog/node/n1", "") {
                Ok((200, body)) if body.contains("127.0.0.1") => true,
                other => {
                    last = format!("{other:?}");
                    false
                }
            }
        });
        let log = || std::fs::read_to_string(self.host.run_path("consul.log"));
        ensure!(leads, "Consul does not start: {last}; {:?}", log());
        Ok(())
    }

    /// `PUT path`, which must succeed.
    pub fn put(&self, path: &str, body: &str) -> anyhow::Result<()> {
        let (status, answer) = self.call("PUT", path, body)?;
        ensure!(status == 200, "PUT {path}: {status}: {answer}");
        Ok(())
    }

    /// Status and body.
    fn call(&self, method: &str, path: &str, body: &str) -> anyhow::Result<(u16, String)> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: consul\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = self.host.run(|| -> anyhow::Result<String> {
            let mut stream = TcpStream::connect(HTTP)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split(' ').nth(1).context("no HTTP status")?.parse()?;
        Ok((status, body.to_owned()))
    }
}

impl Drop for Consul {
    fn drop(&mut self) {
        self.kill();
    }
}
