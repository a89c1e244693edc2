//! ZooKeeper, the real one, as a process on a host, and somebody who registers there.

use std::{
    fs::{self, File},
    future::Future,
    net::{Shutdown, TcpStream},
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio::runtime::{Builder, Runtime};
use zookeeper_client::{Acls, Client, CreateMode, Error};

use crate::{
    eventually,
    host::{Host, start},
};

/// Where it listens, on the host's loopback.
pub const ADDRESS: &str = "127.0.0.1:2181";
/// Of Debian's package; its manifest names what it needs.
const JAR: &str = "/usr/share/java/zookeeper.jar";
/// A Java virtual machine may take its time on a busy machine.
const READY: Duration = Duration::from_secs(120);
/// Of a registrar that is to stay: its client gives up after two fifths of it without an answer.
const SESSION: Duration = Duration::from_secs(20);

/// A server. Killed when dropped.
pub struct Zookeeper {
    host: Host,
    process: Option<Child>,
}

impl Zookeeper {
    pub fn start(host: &Host) -> anyhow::Result<Self> {
        let mut server = Self {
            host: host.clone(),
            process: None,
        };
        fs::create_dir_all(host.run_path("zookeeper/data"))?;
        // Sessions of 0.4 s, which tests see expire, up to a minute.
        let config = "tickTime=200\ndataDir=/run/zookeeper/data\nclientPort=2181\n\
                      clientPortAddress=127.0.0.1\nadmin.enableServer=false\nmaxClientCnxns=0\n\
                      maxSessionTimeout=60000\n4lw.commands.whitelist=ruok\n";
        fs::write(host.run_path("zookeeper/zoo.cfg"), config)?;
        server.restart()?;
        Ok(server)
    }

    /// With the data that it had.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        ensure!(
            fs::exists(JAR)?,
            "there is no {JAR} (package zookeeper; `make setup` installs it)"
        );
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let mut command = self.host.command("java");
        command
            .args(["-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .args(["-Dznode.container.checkIntervalMs=500", "-cp", JAR])
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg("/run/zookeeper/zoo.cfg")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let what = "cannot start java (zookeeper depends on one; `make setup` installs it)";
        self.process = Some(start(command).context(what)?);
        let ready = eventually(READY, || self.answers());
        let log = || fs::read_to_string(self.log_path()).unwrap_or_default();
        ensure!(ready, "ZooKeeper does not answer; its log:\n{}", log());
        Ok(())
    }

    /// As a server that knows nothing.
    pub fn restart_empty(&mut self) -> anyhow::Result<()> {
        let data = self.host.run_path("zookeeper/data");
        fs::remove_dir_all(&data)?;
        fs::create_dir_all(&data)?;
        self.restart()
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// It hangs: connections stay, and nothing answers. `false` ends that.
    pub fn hang(&self, hangs: bool) {
        let signal = if hangs { libc::SIGSTOP } else { libc::SIGCONT };
        let process = self.process.as_ref().expect("ZooKeeper runs");
        // SAFETY: a signal to a child process that has not been waited for.
        unsafe { libc::kill(process.id() as libc::pid_t, signal) };
    }

    fn answers(&self) -> bool {
        use std::io::{Read, Write};
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(ADDRESS)?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(b"ruok")?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = self.host.run(ask);
        let is_well = answer.is_ok_and(|answer| answer == "imok");
        if !is_well {
            std::thread::sleep(Duration::from_millis(200));
        }
        is_well
    }

    fn log_path(&self) -> PathBuf {
        self.host.run_path("zookeeper/log")
    }
}

impl Drop for Zookeeper {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// A client with a session of its own, which its ephemeral nodes live in.
pub struct Registrar {
    /// Dropped first: the session ends.
    client: Client,
    runtime: Runtime,
}

impl Registrar {
    /// `digest` is `USER:PASSWORD`.
    pub fn new(host: &Host, digest: Option<&str>) -> anyhow::Result<Self> {
        Self::connect(host, digest, SESSION)
    }

    /// One whose session expires when nothing is heard of it for so long.
    pub fn with_session(host: &Host, session: Duration) -> anyhow::Result<Self> {
        Self::connect(host, None, session)
    }

    fn connect(host: &Host, digest: Option<&str>, session: Duration) -> anyhow::Result<Self> {
        let inside = host.clone();
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .on_thread_start(move || inside.enter())
            .enable_all()
            .build()?;
        let mut connector = Client::connector().with_session_timeout(session);
        if let Some(digest) = digest {
            connector = connector.with_auth("digest", digest.as_bytes());
        }
        // A server that has just begun may be slow.
        let mut last = None;
        let connected = eventually(READY, || {
            // On the runtime's own thread, which is the one inside the host.
            let connect = runtime.spawn(connector.clone().connect(ADDRESS));
            last = Some(runtime.block_on(connect));
            matches!(last, Some(Ok(Ok(_))))
        });
        let last = last.context("not tried")?;
        ensure!(connected, "no session with ZooKeeper: {last:?}");
        let client = last??;
        Ok(Self { client, runtime })
    }

    fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> anyhow::Result<T> {
        Ok(self.runtime.block_on(self.runtime.spawn(work))??)
    }

    /// A node with its parents, which are containers as Curator's are. `acls` are the node's own.
    pub fn create(
        &self,
        path: &str,
        data: &str,
        mode: CreateMode,
        acls: Acls<'static>,
    ) -> anyhow::Result<()> {
        let (client, path, data) = (self.client.clone(), path.to_owned(), data.to_owned());
        self.run(async move {
            let containers = CreateMode::Container.with_acls(Acls::anyone_all());
            let parents = path.match_indices('/').skip(1);
            for (at, _) in parents {
                match client.create(&path[..at], b"", &containers).await {
                    Ok(_) | Err(Error::NodeExists) => {}
                    Err(error) => return Err(error),
                }
            }
            let options = mode.with_acls(acls);
            client.create(&path, data.as_bytes(), &options).await?;
            Ok(())
        })
    }

    /// An ephemeral node that anybody may read: what a service registers.
    pub fn register(&self, path: &str, data: &str) -> anyhow::Result<()> {
        self.create(path, data, CreateMode::Ephemeral, Acls::anyone_all())
    }

    pub fn set(&self, path: &str, data: &str) -> anyhow::Result<()> {
        let (client, path, data) = (self.client.clone(), path.to_owned(), data.to_owned());
        self.run(async move { client.set_data(&path, data.as_bytes(), None).await })?;
        Ok(())
    }

    pub fn delete(&self, path: &str) -> anyhow::Result<()> {
        let (client, path) = (self.client.clone(), path.to_owned());
        self.run(async move { client.delete(&path, None).await })
    }

    pub fn exists(&self, path: &str) -> anyhow::Result<bool> {
        let (client, path) = (self.client.clone(), path.to_owned());
        Ok(self
            .run(async move { client.check_stat(&path).await })?
            .is_some())
    }

    /// Its process hangs: the session expires, and its nodes with it.
    pub fn hang(self, how_long: Duration) -> Self {
        // The only thread of the runtime does nothing else meanwhile, heartbeats neither.
        let sleep = self
            .runtime
            .spawn(async move { std::thread::sleep(how_long) });
        let _ = self.runtime.block_on(sleep);
        self
    }
}
