//! The image's root directory, as a pod has it: read-only, with the DaemonSet's capabilities alone.
//!
//! ```text
//!   client ──── node ─────────────────────────── b1
//!               │ chroot target/image/ARCH      └ b2
//!               │   lbd: CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON
//!               └ /proc/sys read-only, /host/proc/sys/net
//! ```

use std::{
    collections::BTreeSet,
    env,
    ffi::CString,
    fs, io,
    net::SocketAddr,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use lb_tests::{
    clients::{Protocol, burst},
    daemon::{Config, STATE, Service},
    eventually,
    host::{Host, start},
    machine::target,
    net::{Family, Network, Topology},
    note,
    servers::{HTTP_PORT, start_all},
};

const PATIENCE: Duration = Duration::from_secs(30);
/// Numbers of the capabilities that the DaemonSet adds.
const CAPABILITIES: [libc::c_int; 3] = [12, 38, 39];
const LAST_CAPABILITY: libc::c_int = 63;

/// What the pod's volumes are, from the node's own directories; nothing else can be written to.
const MOUNTS: &str = "
set -e
root=$1
mkdir -p /run/config /run/state
mount --bind \"$root\" \"$root\"
mount --bind /run/config \"$root/etc/lbd\"
mount --bind /run/state \"$root/var/lib/lbd\"
mount --bind /run/lbd \"$root/run/lbd\"
mount --bind /sys \"$root/sys\"
mount -o remount,bind,ro \"$root/sys\"
mount --bind /sys/fs/bpf \"$root/sys/fs/bpf\"
mount --rbind /proc \"$root/proc\"
mount --bind /proc/sys \"$root/proc/sys\"
mount -o remount,bind,ro \"$root/proc/sys\"
mount --bind /proc/sys/net \"$root/host/proc/sys/net\"
mount -o remount,bind,ro \"$root\"
";

/// The directory, or `None` if nobody made it.
fn image() -> Option<PathBuf> {
    let root = target().join("image").join(env::consts::ARCH);
    match fs::canonicalize(&root) {
        Ok(root) => Some(root),
        Err(_) => {
            note("NOT TESTED, the image: `cargo xtask test-image` makes its root and tests it");
            None
        }
    }
}

/// A command in the image, confined as the pod is.
fn confined(node: &Host, root: &Path, program: &str) -> anyhow::Result<Command> {
    let root = CString::new(root.as_os_str().as_bytes())?;
    let mut command = node.command(program);
    let confine = move || {
        let kept = |capability| CAPABILITIES.contains(&capability);
        // SAFETY: system calls on a string that outlives them.
        unsafe {
            check(libc::chroot(root.as_ptr()))?;
            check(libc::chdir(c"/".as_ptr()))?;
            for capability in (0..=LAST_CAPABILITY).filter(|c| !kept(*c)) {
                // Numbers beyond the kernel's last one are refused.
                libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
            }
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        }
    };
    // SAFETY: between fork and exec only system calls are made.
    unsafe { command.pre_exec(confine) };
    command
        .env_clear()
        .env("LBD_PROC_SYS", "/host/proc/sys")
        .env("NODE_NAME", "node");
    Ok(command)
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

struct Pod {
    process: Child,
    log: PathBuf,
}

impl Pod {
    fn start(node: &Host, root: &Path) -> anyhow::Result<Self> {
        let log = node.run_path("pod.log");
        let file = fs::File::options().create(true).append(true).open(&log)?;
        let mut command = confined(node, root, "/usr/sbin/lbd")?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        Ok(Self {
            process: start(command)?,
            log,
        })
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn stop(mut self) -> anyhow::Result<()> {
        // SAFETY: a signal to a child that nobody waited for yet.
        unsafe { libc::kill(self.process.id() as i32, libc::SIGTERM) };
        let status = self.process.wait()?;
        ensure!(status.success(), "{status}: {}", self.log());
        Ok(())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn lbctl(node: &Host, root: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = confined(node, root, "/usr/bin/lbctl")?;
    let output = command.args(arguments).output()?;
    let said = String::from_utf8([output.stdout, output.stderr].concat())?;
    ensure!(output.status.success(), "lbctl {arguments:?}: {said}");
    Ok(said)
}

#[test]
fn the_image_has_just_what_it_needs() -> anyhow::Result<()> {
    let Some(root) = image() else {
        return Ok(());
    };
    let found = Command::new("find")
        .arg(&root)
        .args(["-type", "f", "-printf", "%P %m\\n"])
        .output()?;
    let found = String::from_utf8(found.stdout)?;
    let files: BTreeSet<_> = found.lines().collect();
    let wanted = [
        "etc/ssl/certs/ca-certificates.crt 644",
        "usr/bin/lbctl 755",
        "usr/sbin/lbd 755",
    ];
    assert_eq!(files, wanted.into());
    for file in files {
        let name = file.split(' ').next().unwrap_or_default();
        let size = fs::metadata(root.join(name))?.len();
        note(format!("/{name}: {} KiB", size / 1024));
    }
    Ok(())
}

#[test]
fn the_image_serves_with_the_pod_s_rights_alone() -> anyhow::Result<()> {
    let Some(root) = image() else {
        return Ok(());
    };
    let network = Network::new(Topology {
        backends: 2,
        ..Topology::default()
    })?;
    let _agents = start_all(&network.backends)?;
    let node = &network.node;
    let service = Service::new("web", Protocol::Http)
        .listen(&network, 0, HTTP_PORT)
        .backends(&network, HTTP_PORT, &[1, 1]);
    let targets = Family::BOTH.map(|family| service.address(family));
    let config = Config::new(&network, "native").service(service).render();
    node.execute(
        "sh",
        &["-c", MOUNTS, "sh", root.to_str().context("a path")?],
    )?;
    let config = config.replace(STATE, "/var/lib/lbd");
    fs::write(node.run_path("config/lbd.yaml"), config)?;
    // What only a writable /proc/sys/net can repair.
    node.sysctl(&[("ipv4/conf/client/forwarding", "0")])?;

    let pod = Pod::start(node, &root)?;
    is_confined(&pod)?;
    serves(&network, &root, &pod, &targets, 20_000)?;
    assert!(
        pod.log()
            .contains("set net.ipv4.conf.client.forwarding to 1"),
        "{}",
        pod.log()
    );
    pod.stop()?;

    // The next pod takes over, with the same rights.
    let pod = Pod::start(node, &root)?;
    serves(&network, &root, &pod, &targets, 30_000)?;
    assert!(
        pod.log().contains("replaced the program at xdp"),
        "{}",
        pod.log()
    );
    let log = pod.log();
    for bad in [" WARN ", " ERROR "] {
        // A probe that is late on a busy machine has nothing to do with rights.
        let mut lines = log.lines().filter(|l| !l.contains("BackendUnhealthy"));
        assert!(!lines.any(|line| line.contains(bad)), "{log}");
    }
    pod.stop()?;

    let mut command = confined(node, &root, "/usr/sbin/lbd")?;
    let cleaned = command.arg("--cleanup").output()?;
    ensure!(cleaned.status.success(), "{cleaned:?}");
    node.execute("test", &["!", "-e", "/sys/fs/bpf/lbd"])?;
    Ok(())
}

/// No capability but those three is left, and none can be had.
fn is_confined(pod: &Pod) -> anyhow::Result<()> {
    let wanted = CAPABILITIES.iter().fold(0u64, |set, n| set | 1 << n);
    let file = format!("/proc/{}/status", pod.process.id());
    let mut last = String::new();
    let met = eventually(PATIENCE, || {
        last = fs::read_to_string(&file).unwrap_or_default();
        let has = |set: &str| last.contains(&format!("{set}:\t{wanted:016x}\n"));
        // The program's own, not those of the process that becomes it.
        last.starts_with("Name:\tlbd\n") && has("CapPrm") && has("CapEff") && has("CapBnd")
    });
    ensure!(met, "{last}{}", pod.log());
    ensure!(last.contains("NoNewPrivs:\t1"), "{last}");
    Ok(())
}

/// lbctl of the image finds it well, and clients are served over both families by both backends.
fn serves(
    network: &Network,
    root: &Path,
    pod: &Pod,
    targets: &[SocketAddr],
    first_port: u16,
) -> anyhow::Result<()> {
    let mut last = String::new();
    let well = eventually(PATIENCE, || {
        let status = lbctl(&network.node, root, &["status"]);
        last = status.unwrap_or_else(|error| error.to_string());
        last.contains("4 of 4 healthy")
    });
    ensure!(well, "{last}{}", pod.log());
    ensure!(last.contains("xdp native"), "{last}");
    for (target, family) in targets.iter().zip(Family::BOTH) {
        let sources = network.client_addresses(family);
        let burst = burst(
            &network.client,
            &sources,
            first_port,
            200,
            Protocol::Http,
            *target,
        );
        ensure!(burst.failures.is_empty(), "{:?}", burst.failures);
        ensure!(burst.by_backend.len() == 2, "{:?}", burst.by_backend);
    }
    Ok(())
}
