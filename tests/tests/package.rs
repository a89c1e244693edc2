//! The Debian package on a clean machine under systemd: installed, used, upgraded, removed.
//!
//! ```text
//!   ┌ machine: its own root directory, systemd, network ┐
//!   │  apt · systemd ── lbd.service ── eth0 ════ far    │
//!   └───────────────────────────────────────────────────┘
//! ```

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use lb_tests::{
    eventually,
    machine::{self, Machine},
    note,
};

const PATIENCE: Duration = Duration::from_secs(30);
/// The version that the first one is upgraded to.
const LATER: &str = "99.0";

const CONFIG: &str = "\
node: {interfaces: [eth0], xdp: native}
services:
  - name: web
    listen: \"192.0.2.10:80\"
    health: none
    backends:
      - {address: \"10.1.0.11:8080\"}
";

/// CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF.
const CAPABILITIES: u64 = 1 << 12 | 1 << 38 | 1 << 39;

/// Files that dpkg, apt and systemd write as they work, whatever is installed.
const WRITTEN_BY_OTHERS: [&str; 8] = [
    "/var/lib/dpkg/",
    "/var/lib/apt/",
    "/var/backups/",
    "/var/cache/",
    "/var/log/",
    "/var/lib/systemd/",
    "/etc/gshadow-",
    "/etc/group-",
];

fn package(version: &str) -> anyhow::Result<PathBuf> {
    let made = machine::target();
    let mut names = fs::read_dir(&made)?.flatten().map(|entry| entry.path());
    let begin = format!("lbd_{version}_");
    names
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&begin) && name.ends_with(".deb")
        })
        .with_context(|| {
            format!(
                "no {begin}*.deb in {}; `cargo xtask test` makes it",
                made.display()
            )
        })
}

/// The package under another version: what it has is the same.
fn repackaged(from: &Path, version: &str, directory: &Path) -> anyhow::Result<PathBuf> {
    let (tree, file) = (directory.join("tree"), directory.join("later.deb"));
    let raw = Command::new("dpkg-deb")
        .arg("-R")
        .arg(from)
        .arg(&tree)
        .status()?;
    ensure!(raw.success(), "dpkg-deb -R: {raw}");
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control)?;
    let lines = text
        .lines()
        .map(|line| match line.starts_with("Version: ") {
            true => format!("Version: {version}\n"),
            false => format!("{line}\n"),
        });
    fs::write(&control, lines.collect::<String>())?;
    let built = Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Znone", "-b"])
        .args([&tree, &file])
        .output()?;
    ensure!(built.status.success(), "dpkg-deb -b: {built:?}");
    fs::remove_dir_all(&tree)?;
    Ok(file)
}

/// Everything of the root directory, with its owner and rights.
fn inventory(machine: &Machine) -> anyhow::Result<BTreeSet<String>> {
    let found = machine.run(
        "find / -xdev -not -path '/srv*' -not -type d -printf '%p %u:%g %m\\n' \
         -o -xdev -type d -empty -not -path '/srv*' -printf '%p/ %u:%g %m\\n'",
    )?;
    let others = |line: &&str| {
        WRITTEN_BY_OTHERS
            .iter()
            .any(|other| line.starts_with(other))
    };
    let lines = found.lines().filter(|line| !others(line));
    Ok(lines.map(str::to_owned).collect())
}

/// The kernel's side: what lbd has pinned, by name.
fn pins(machine: &Machine) -> anyhow::Result<BTreeSet<String>> {
    let found = machine.run("find /sys/fs/bpf -path '*/lbd/*' -not -type d")?;
    Ok(found.lines().map(str::to_owned).collect())
}

/// Those that outlive a daemon: programs are loaded anew by each.
fn lasting_pins(machine: &Machine) -> anyhow::Result<BTreeSet<String>> {
    let mut pins = pins(machine)?;
    pins.retain(|pin| !pin.contains("/lbd/programs/"));
    Ok(pins)
}

fn install(machine: &Machine, package: &Path, name: &str) -> anyhow::Result<String> {
    fs::copy(package, machine.path(&format!("srv/{name}")))?;
    machine.run(&format!(
        "apt-get install -y --no-install-recommends /srv/{name} 2>&1"
    ))
}

fn has_status(machine: &Machine, wanted: &str) -> anyhow::Result<()> {
    let mut last = String::new();
    let met = eventually(PATIENCE, || {
        last = machine.property("lbd", "StatusText").unwrap_or_default();
        last.contains(wanted)
    });
    ensure!(met, "the status stays {last:?}, not {wanted:?}");
    Ok(())
}

#[test]
fn the_package_lives_and_leaves_nothing_behind() -> anyhow::Result<()> {
    let archive = match machine::archive() {
        Ok(archive) => archive,
        Err(why) => {
            note(format!(
                "NOT TESTED, the Debian package under systemd: {why:#}"
            ));
            return Ok(());
        }
    };
    let first = package(env!("CARGO_PKG_VERSION"))?;
    let machine = Machine::boot(&archive)?;
    machine.ip("link add eth0 type veth peer name far")?;
    machine.ip("link set eth0 up")?;
    machine.ip("link set far up")?;
    machine.ip("addr add 10.1.0.1/24 dev eth0")?;
    // A panic, so that the machine shows its journal.
    live(&machine, &first).unwrap();
    Ok(())
}

fn live(machine: &Machine, first: &Path) -> anyhow::Result<()> {
    let before = inventory(machine)?;
    note(
        machine
            .run("systemctl --version")?
            .lines()
            .next()
            .unwrap_or_default(),
    );

    install(machine, first, "lbd.deb")?;
    runs_as_installed(machine)?;
    is_confined(machine)?;
    serves_what_is_configured(machine)?;
    reloads(machine)?;
    is_restarted_when_it_hangs(machine)?;
    later_version(machine, first)?;

    machine.run("apt-get remove -y lbd 2>&1")?;
    assert_eq!(pins(machine)?, BTreeSet::new());
    assert_eq!(forwarding(machine)?, "0", "set back");
    assert!(
        machine.path("etc/lbd/lbd.yaml").exists(),
        "kept until purged"
    );
    machine.run("apt-get purge -y lbd 2>&1")?;
    let after = inventory(machine)?;
    let left: Vec<_> = after.symmetric_difference(&before).collect();
    assert!(left.is_empty(), "left behind or taken away: {left:#?}");
    assert!(machine.run("getent group lbd").is_err());
    Ok(())
}

/// Enabled, started, ready; serves nothing and touches no device.
fn runs_as_installed(machine: &Machine) -> anyhow::Result<()> {
    assert_eq!(machine.run("systemctl is-enabled lbd")?, "enabled");
    assert_eq!(machine.property("lbd", "ActiveState")?, "active");
    has_status(machine, "services: 0")?;
    let checked = machine.output("lbd --check")?;
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    let status = machine.run("lbctl status -o json")?;
    assert!(status.contains("\"lo\""), "{status}");
    assert_eq!(forwarding(machine)?, "0", "eth0 is nobody's business yet");
    assert_eq!(
        machine.run("stat -c '%U:%G %a' /run/lbd/lbd.sock")?,
        "root:lbd 660"
    );
    assert_eq!(
        machine.run("stat -c '%U:%G %a' /var/lib/lbd")?,
        "root:root 700"
    );
    for page in [
        "man8/lbd.8",
        "man1/lbctl.1",
        "man1/lbctl-drain.1",
        "man5/lbd.yaml.5",
    ] {
        machine.run(&format!("test -s /usr/share/man/{page}.gz"))?;
    }
    pages_lead_to_pages(machine)?;
    let complained = machine.output("systemd-analyze verify --man=no lbd.service")?;
    // systemd before 253 has the other line of it.
    let words = String::from_utf8_lossy(&complained.stderr).into_owned();
    let mut faults = words.lines();
    let known = "Failed to parse service type, ignoring: notify-reload";
    let fault = faults.find(|line| !line.ends_with(known));
    assert!(complained.status.success() && fault.is_none(), "{words}");
    // Where 10 is a service that may do everything.
    let score = "systemd-analyze security --no-pager --threshold=30 lbd.service";
    let said = machine.run(score)?;
    note(said.lines().last().unwrap_or_default());
    Ok(())
}

/// Whatever a page of the package refers to is in the package, but for what is the repository's alone.
fn pages_lead_to_pages(machine: &Machine) -> anyhow::Result<()> {
    const REPOSITORY: [&str; 3] = ["deploy/", "ARCHITECTURE.md", "CONTRIBUTING.md"];
    let pages = machine.run("find /usr/share/doc/lbd -name '*.md'")?;
    let mut links = 0;
    for page in pages.lines() {
        let text = fs::read_to_string(machine.path(page.trim_start_matches('/')))?;
        let targets = text.split("](").skip(1).filter_map(|rest| {
            let target = rest.split([')', '#']).next()?;
            let is_page = !target.is_empty() && !target.contains("://");
            is_page.then_some(target)
        });
        for target in targets {
            let name = target.trim_start_matches("../");
            if REPOSITORY.iter().any(|part| name.starts_with(part)) {
                continue;
            }
            let directory = page.rsplit_once('/').context("a directory")?.0;
            machine
                .run(&format!("test -s {directory}/{target}"))
                .with_context(|| format!("{page} refers to {target}"))?;
            links += 1;
        }
    }
    ensure!(links > 20, "{links} links found in {pages}");
    Ok(())
}

/// What systemd made of the unit: just these capabilities, and nothing more to be had.
fn is_confined(machine: &Machine) -> anyhow::Result<()> {
    let pid = machine.property("lbd", "MainPID")?;
    let status = machine.run(&format!("cat /proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
        assert_eq!(u64::from_str_radix(&field(set), 16)?, CAPABILITIES, "{set}");
    }
    // Its root may own them, and it may not write them.
    let mounts = machine.run(&format!("cat /proc/{pid}/mountinfo"))?;
    let is_read_only = |path: &str| {
        let of = |line: &&str| line.split(' ').nth(4) == Some(path);
        let last = mounts.lines().rfind(of);
        last.is_some_and(|line| line.split(' ').nth(5).is_some_and(|o| o.starts_with("ro")))
    };
    let places = ["/", "/proc/sys", "/proc/sys/net", "/sys/fs/bpf"];
    assert_eq!(
        places.map(is_read_only),
        [true, true, false, false],
        "{mounts}"
    );
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    Ok(())
}

fn serves_what_is_configured(machine: &Machine) -> anyhow::Result<()> {
    fs::write(machine.path("etc/lbd/lbd.yaml"), CONFIG)?;
    machine.run("systemctl restart lbd")?;
    has_status(machine, "services: 1, healthy backends: 1 of 1")?;
    let status = machine.run("lbctl status -o json")?;
    assert!(status.contains("xdp native"), "{status}");
    assert_eq!(forwarding(machine)?, "1", "the unit lets it write there");
    Ok(())
}

fn forwarding(machine: &Machine) -> anyhow::Result<String> {
    machine.run("cat /proc/sys/net/ipv4/conf/eth0/forwarding")
}

fn reloads(machine: &Machine) -> anyhow::Result<()> {
    let kind = machine.property("lbd", "Type")?;
    note(format!("systemd takes lbd.service as Type={kind}"));
    let reloaded = || -> anyhow::Result<usize> {
        let events = machine.run("lbctl get events")?;
        Ok(events
            .lines()
            .filter(|line| line.contains("Reload"))
            .count())
    };
    let more = CONFIG.replace("name: web", "name: shop");
    fs::write(machine.path("etc/lbd/lbd.yaml"), more)?;
    machine.run("systemctl reload lbd")?;
    assert!(eventually(PATIENCE, || reloaded().is_ok_and(|n| n > 0)));
    assert!(machine.run("lbctl get services")?.contains("shop"));
    assert_eq!(reloaded()?, 1, "one signal, one reload");

    fs::write(machine.path("etc/lbd/lbd.yaml"), "services: 5\n")?;
    machine.run("systemctl reload lbd")?;
    has_status(machine, "last reload failed: ")
        .or_else(|_| has_status(machine, "reload failed: "))?;
    assert_eq!(machine.property("lbd", "ActiveState")?, "active");
    assert!(machine.run("lbctl get services")?.contains("shop"));
    fs::write(machine.path("etc/lbd/lbd.yaml"), CONFIG)?;
    machine.run("systemctl reload lbd")?;
    has_status(machine, "services: 1, healthy backends: 1 of 1")
}

/// A controller that waits for its disk for ever (here: a pipe nobody reads) trips the watchdog.
fn is_restarted_when_it_hangs(machine: &Machine) -> anyhow::Result<()> {
    let directory = machine.path("run-time");
    ensure!(!directory.exists(), "a fresh machine");
    machine.run(
        "mkdir -p /run/systemd/system/lbd.service.d && printf '[Service]\\nWatchdogSec=2\\n' \
         >/run/systemd/system/lbd.service.d/quick.conf && systemctl daemon-reload && \
         systemctl restart lbd",
    )?;
    has_status(machine, "healthy backends: 1 of 1")?;
    let pinned = lasting_pins(machine)?;
    machine.run("mkfifo /var/lib/lbd/state.json.new")?;
    let mut request = machine
        .command("lbctl add service extra --listen 192.0.2.99:81")
        .spawn()?;
    let restarted = eventually(PATIENCE, || {
        machine.property("lbd", "NRestarts").is_ok_and(|n| n != "0")
    });
    assert!(restarted, "the watchdog bites");
    request.wait()?;
    assert_eq!(lasting_pins(machine)?, pinned, "the data path went on");
    machine.run(
        "rm -f /var/lib/lbd/state.json.new; rm -r /run/systemd/system/lbd.service.d; \
         systemctl daemon-reload; systemctl restart lbd",
    )?;
    has_status(machine, "healthy backends: 1 of 1")
}

/// An upgrade restarts the daemon and takes nothing out of the kernel; what the administrator
/// wrote, and what an operator said, stay.
fn later_version(machine: &Machine, first: &Path) -> anyhow::Result<()> {
    machine.run("lbctl set weight web/10.1.0.11:8080 7")?;
    let (pinned, pid) = (lasting_pins(machine)?, machine.property("lbd", "MainPID")?);
    let maps = "stat -c '%i' /sys/fs/bpf/lbd/*/FLOWS4";
    let flows = machine.run(maps)?;
    let later = repackaged(first, LATER, &machine.path("srv"))?;
    install(machine, &later, "lbd-later.deb")?;
    assert!(machine.run("dpkg-query -W lbd")?.ends_with(LATER));
    assert_ne!(machine.property("lbd", "MainPID")?, pid, "restarted");
    has_status(machine, "healthy backends: 1 of 1")?;
    assert_eq!(
        (lasting_pins(machine)?, machine.run(maps)?),
        (pinned, flows),
        "the same maps"
    );
    assert_eq!(
        fs::read_to_string(machine.path("etc/lbd/lbd.yaml"))?,
        CONFIG
    );
    assert!(
        machine
            .run("lbctl describe backend web/10.1.0.11:8080")?
            .contains("override: weight 7")
    );
    Ok(())
}
