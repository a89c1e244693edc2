//! A Debian machine of its own: a clean root directory with systemd as first process, in namespaces
//! instead of a virtual machine. Gone when dropped, or when this process ends by whatever means.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, bail, ensure};

use crate::{eventually, host::start};

const BOOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/machine.sh");
const BOOTED: Duration = Duration::from_secs(60);

pub struct Machine {
    root: PathBuf,
    /// `unshare`, which kills what it started when it dies.
    outside: Child,
    /// systemd, as this machine numbers it.
    first: u32,
}

/// The archive that set-up made of a clean Debian with systemd and apt, or why there is none.
pub fn archive() -> anyhow::Result<PathBuf> {
    let path = target().join("tools/debian.tar");
    ensure!(
        path.exists(),
        "no clean Debian in {}; `make setup` makes one, or says why it cannot",
        path.display()
    );
    Ok(path)
}

/// Where cargo leaves what it builds.
pub fn target() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    std::env::var_os("CARGO_TARGET_DIR").map_or(own, PathBuf::from)
}

impl Machine {
    /// Unpacks the archive and boots it.
    pub fn boot(archive: &Path) -> anyhow::Result<Self> {
        let root = unpack(archive)?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup"])
            .args(["--fork", "--kill-child", "sh", BOOT])
            .arg(&root)
            .stdin(Stdio::null())
            .stdout(fs::File::create(root.with_extension("log"))?)
            .stderr(
                fs::File::options()
                    .append(true)
                    .open(root.with_extension("log"))?,
            );
        // SAFETY: only a system call between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let outside = start(command).context("cannot run unshare (package util-linux)")?;
        let mut machine = Self {
            root,
            outside,
            first: 0,
        };
        let booted = eventually(BOOTED, || {
            machine.first = machine.child().unwrap_or_default();
            machine.first != 0 && machine.run("systemctl is-active basic.target").is_ok()
        });
        if !booted {
            bail!("not booted after {BOOTED:?}: {}", machine.log());
        }
        Ok(machine)
    }

    /// A shell's command line inside, as root, with what it needs of an environment.
    pub fn command(&self, line: &str) -> Command {
        self.entered(&["-a"], "sh", &["-c", line])
    }

    /// `ip` of the machine that runs the tests, on the devices of this one.
    pub fn ip(&self, arguments: &str) -> anyhow::Result<()> {
        let arguments: Vec<_> = arguments.split(' ').collect();
        let output = self.entered(&["-n"], "ip", &arguments).output()?;
        ensure!(
            output.status.success(),
            "ip {arguments:?}: {}",
            said(&output)
        );
        Ok(())
    }

    /// Runs a command line to its end and returns what it printed; fails unless it exits with 0.
    pub fn run(&self, line: &str) -> anyhow::Result<String> {
        let output = self.output(line)?;
        ensure!(
            output.status.success(),
            "`{line}`: {}{}",
            output.status,
            said(&output)
        );
        Ok(String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned())
    }

    pub fn output(&self, line: &str) -> anyhow::Result<Output> {
        let mut command = self.command(line);
        Ok(command.stdin(Stdio::null()).output()?)
    }

    /// A property of a unit, as `systemctl show` says it.
    pub fn property(&self, unit: &str, name: &str) -> anyhow::Result<String> {
        self.run(&format!("systemctl show --property {name} --value {unit}"))
    }

    /// Where this process finds a file of the machine's root directory; what is mounted there is
    /// not seen.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name.trim_start_matches('/'))
    }

    fn entered(&self, namespaces: &[&str], program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.first.to_string()])
            .args(namespaces)
            .args([program])
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C.UTF-8");
        command
    }

    fn child(&self) -> Option<u32> {
        let id = self.outside.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.root.with_extension("log")).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() && self.first != 0 {
            let journal = self.run("journalctl --no-pager --lines 60");
            eprintln!("--- journal ---\n{}", journal.unwrap_or_default());
        }
        let _ = self.outside.kill();
        let _ = self.outside.wait();
        let _ = fs::remove_file(self.root.with_extension("log"));
        // The last process of the namespaces may still be on its way out.
        let gone = eventually(Duration::from_secs(10), || {
            fs::remove_dir_all(&self.root).is_ok()
        });
        if !gone {
            eprintln!("cannot remove {}", self.root.display());
        }
    }
}

fn unpack(archive: &Path) -> anyhow::Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("lbd-machine-{}-{number}", std::process::id());
    let root = std::env::temp_dir().join(name);
    fs::create_dir(&root)?;
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(archive).arg("-C").arg(&root);
    let output = tar.output().context("cannot run tar")?;
    ensure!(
        output.status.success(),
        "{}: {}",
        archive.display(),
        said(&output)
    );
    Ok(root)
}

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).into_owned()
}
