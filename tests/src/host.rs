//! Hosts: network namespaces with their own mounts, and processes and threads in them.

use std::{
    fs::File,
    io::{self, Write},
    net::IpAddr,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, LazyLock, mpsc},
    thread,
};

use anyhow::{Context, bail};

/// One host of a test network: a network namespace, and a mount namespace in which `/run`, `/sys`
/// and `/sys/fs/bpf` are the host's own.
///
/// Neither has a name, only descriptors in this process, so the kernel removes them with the last
/// process that uses them: nothing can be left behind, not even after SIGKILL. Child processes die
/// with this process for the same reason. Cheap to clone.
#[derive(Clone)]
pub struct Host(Arc<Inner>);

struct Inner {
    name: String,
    net: OwnedFd,
    mounts: OwnedFd,
    /// The host's `/run`, reachable from outside its mount namespace.
    run: OwnedFd,
}

impl Host {
    /// A host with nothing but a loopback device.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let descriptors = thread::spawn(unshare)
            .join()
            .expect("the thread does not panic");
        let (net, mounts, run) =
            descriptors.with_context(|| format!("cannot make host {name} (root is needed)"))?;
        let host = Self(Arc::new(Inner {
            name: name.to_owned(),
            net,
            mounts,
            run,
        }));
        // Addresses are usable at once, and nobody speaks unasked.
        host.sysctl(&[
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/router_solicitations", "0"),
        ])?;
        host.ip("link set lo up")?;
        Ok(host)
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Runs `work` on a thread inside the host and returns what it returns.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter();
                work()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a thread inside the host.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let host = self.clone();
        thread::spawn(move || {
            host.enter();
            work()
        })
    }

    /// Moves the calling thread into the host, for good.
    pub(crate) fn enter(&self) {
        // SAFETY: unshare only detaches this thread's working directory and root from the others'.
        let detached = unsafe { libc::unshare(libc::CLONE_FS) };
        assert_eq!(detached, 0, "unshare: {}", io::Error::last_os_error());
        set_namespace(self.0.net.as_raw_fd(), libc::CLONE_NEWNET).expect("enter network namespace");
        set_namespace(self.0.mounts.as_raw_fd(), libc::CLONE_NEWNS).expect("enter mounts");
    }

    /// A command that will run inside the host, with `/` as its working directory. Start it by
    /// [`start`] if it is to outlive the calling thread.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let host = self.clone();
        let parent = std::process::id();
        let mut command = Command::new(program);
        let enter = move || {
            set_namespace(host.0.net.as_raw_fd(), libc::CLONE_NEWNET)?;
            set_namespace(host.0.mounts.as_raw_fd(), libc::CLONE_NEWNS)?;
            // SAFETY: plain system calls.
            unsafe {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // The parent may have died before the line above took effect.
                if libc::getppid() as u32 != parent {
                    libc::_exit(1);
                }
            }
            Ok(())
        };
        // SAFETY: between fork and exec only system calls are made; nothing allocates or locks.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a command to its end; an error shows its output.
    pub fn execute(&self, program: &str, arguments: &[&str]) -> anyhow::Result<Output> {
        let output = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {program}"))?;
        if !output.status.success() {
            bail!(
                "{program} {} on {}: {}: {}{}",
                arguments.join(" "),
                self.name(),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
            );
        }
        Ok(output)
    }

    /// Runs lines of `ip` commands (without the word `ip`) in one batch.
    pub fn ip(&self, lines: &str) -> anyhow::Result<()> {
        let mut child = self
            .command("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run ip (package iproute2)")?;
        let mut input = child.stdin.take().expect("piped");
        input.write_all(lines.as_bytes())?;
        drop(input);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "ip on {}: {}\n{lines}",
                self.name(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// Sets sysctls, by their path under `/proc/sys/net`.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        self.run(|| {
            for (key, value) in settings {
                std::fs::write(Path::new("/proc/sys/net").join(key), value)
                    .with_context(|| format!("sysctl {key}={value} on {}", self.name()))?;
            }
            Ok(())
        })
    }

    /// Where this process finds the file that the host knows as `/run/<path>`.
    pub fn run_path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.run.as_raw_fd())).join(path)
    }

    /// The hardware address of a device.
    pub fn mac(&self, device: &str) -> anyhow::Result<[u8; 6]> {
        let text =
            self.run(|| std::fs::read_to_string(format!("/sys/class/net/{device}/address")))?;
        let mut mac = [0; 6];
        for (byte, digits) in mac.iter_mut().zip(text.trim().split(':')) {
            *byte = u8::from_str_radix(digits, 16)?;
        }
        Ok(mac)
    }

    /// Adds an address to a device, usable at once.
    pub fn add_address(&self, device: &str, address: IpAddr, prefix: u8) -> anyhow::Result<()> {
        let nodad = if address.is_ipv6() { " nodad" } else { "" };
        self.ip(&format!("addr add {address}/{prefix} dev {device}{nodad}"))
    }

    /// How another process of this machine opens the host's network namespace.
    fn net_path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.net.as_raw_fd())
    }
}

/// Connects two hosts by a veth pair, both ends up.
///
/// Checksums are computed by the sending host: packets that XDP sends on never meet a device that
/// would complete them. GRO makes a veth accept frames that XDP redirects to its peer.
pub fn cable(a: &Host, a_device: &str, b: &Host, b_device: &str) -> anyhow::Result<()> {
    let b_net = b.net_path();
    a.ip(&format!(
        "link add name {a_device} type veth peer name {b_device} netns {b_net}"
    ))?;
    for (host, device) in [(a, a_device), (b, b_device)] {
        host.execute("ethtool", &["-K", device, "tx", "off", "gro", "on"])?;
        host.ip(&format!("link set dev {device} up"))?;
    }
    Ok(())
}

/// Starts a process that lives until it ends, is killed, or this process ends.
///
/// A process dies with the thread that started it (`PR_SET_PDEATHSIG`), so one thread that never
/// ends starts them all.
pub fn start(command: Command) -> io::Result<Child> {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    static STARTER: LazyLock<mpsc::Sender<Job>> = LazyLock::new(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in jobs {
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, child) = mpsc::channel();
    STARTER.send((command, answer)).expect("starter lives");
    child.recv().expect("starter answers")
}

/// Makes the calling thread's namespaces new ones, and returns what holds them.
fn unshare() -> anyhow::Result<(OwnedFd, OwnedFd, OwnedFd)> {
    // SAFETY: affects this thread only, which ends after this.
    if unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error()).context("unshare");
    }
    mount(None, "/", libc::MS_REC | libc::MS_PRIVATE)?;
    mount(Some("tmpfs"), "/run", 0)?;
    // A sysfs shows the devices of the namespace it was mounted in.
    mount(Some("sysfs"), "/sys", 0)?;
    mount(Some("bpf"), "/sys/fs/bpf", 0)?;
    std::fs::create_dir("/run/lbd")?;
    Ok((
        File::open("/proc/thread-self/ns/net")?.into(),
        File::open("/proc/thread-self/ns/mnt")?.into(),
        File::open("/run")?.into(),
    ))
}

fn mount(kind: Option<&str>, target: &str, flags: libc::c_ulong) -> anyhow::Result<()> {
    let kind_text = std::ffi::CString::new(kind.unwrap_or("none"))?;
    let target_text = std::ffi::CString::new(target)?;
    // SAFETY: all strings are NUL-terminated and outlive the call.
    let result = unsafe {
        libc::mount(
            kind_text.as_ptr(),
            target_text.as_ptr(),
            kind_text.as_ptr(),
            flags,
            std::ptr::null(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("mount {target}"));
    }
    Ok(())
}

fn set_namespace(descriptor: RawFd, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: a system call on a descriptor that the caller holds open.
    if unsafe { libc::setns(descriptor, kind) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
