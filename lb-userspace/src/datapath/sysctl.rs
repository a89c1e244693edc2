//! Settings of the node that the data path needs, and how they were before.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use anyhow::Result;
use tracing::warn;

use super::undo::Undo;

/// Names another place of `/proc/sys`: in a container it is read-only, and nothing may be mounted there.
const ROOT_VARIABLE: &str = "LBD_PROC_SYS";
const ROOT: &str = "/proc/sys";

/// Lets packets that come in at `device` be sent on, and says what it changed.
///
/// `bpf_fib_lookup` answers `FWD_DISABLED` unless the input device forwards, for IPv4 and IPv6
/// alike (Linux 5.10 to 6.18, `bpf_ipv4_fib_lookup`, `bpf_ipv6_fib_lookup` in net/core/filter.c).
/// What the programs leave to the kernel, IPv4 forwards by the same setting; IPv6 looks at
/// `conf.all.forwarding`, which would turn every device into a router's, or since Linux 6.17 at the
/// device's `force_forwarding`.
///
/// A router ignores router advertisements unless `accept_ra` is 2 (Documentation/networking/
/// ip-sysctl.rst), so the node would lose the default route it learnt: that comes first.
pub(super) fn let_forward(device: &str, undo: &mut Undo) -> Result<Vec<String>> {
    let mut changed = Vec::new();
    let v4 = format!("net/ipv4/conf/{device}/forwarding");
    let v6 = format!("net/ipv6/conf/{device}");
    let forwarding = format!("{v6}/forwarding");
    ensure(&v4, "1", undo, &mut changed)?;
    // A node without IPv6 has none of these.
    if read(&forwarding).is_some_and(|now| now == "0") {
        let accept_ra = format!("{v6}/accept_ra");
        if read(&accept_ra).is_some_and(|now| now == "1") {
            ensure(&accept_ra, "2", undo, &mut changed)?;
        }
        ensure(&forwarding, "1", undo, &mut changed)?;
    }
    let all = read("net/ipv6/conf/all/forwarding").is_none_or(|now| now != "0");
    let force = format!("{v6}/force_forwarding");
    if !all && read(&force).is_some() {
        ensure(&force, "1", undo, &mut changed)?;
    }
    Ok(changed)
}

/// Puts back what [`let_forward`] changed, where it still stands, and says so.
pub(super) fn restore(undo: &Undo) -> Vec<String> {
    let mut done = Vec::new();
    // Last changed first: `accept_ra` again after `forwarding`.
    for (path, was) in undo.sysctls().rev() {
        match read(path) {
            Some(now) if now == was.set && now != was.before => match write(path, &was.before) {
                Ok(()) => done.push(format!("set {} back to {}", dotted(path), was.before)),
                Err(error) => warn!(
                    "cannot set {} back to {}: {error}",
                    dotted(path),
                    was.before
                ),
            },
            _ => {}
        }
    }
    done
}

fn ensure(path: &str, value: &str, undo: &mut Undo, changed: &mut Vec<String>) -> Result<()> {
    let Some(before) = read(path) else {
        return Ok(());
    };
    if before == value {
        return Ok(());
    }
    undo.remember_sysctl(path, &before, value)?;
    match write(path, value) {
        Ok(()) => changed.push(format!("set {} to {value}, it was {before}", dotted(path))),
        // A container may see /proc/sys read-only while the node is set up by other means.
        Err(error) => warn!(
            "cannot set {} to {value}: {error}; packets that need it take the kernel's way or \
             are lost, set it yourself",
            dotted(path)
        ),
    }
    Ok(())
}

fn read(path: &str) -> Option<String> {
    let text = fs::read_to_string(root().join(path)).ok()?;
    Some(text.trim().to_owned())
}

fn write(path: &str, value: &str) -> io::Result<()> {
    fs::write(root().join(path), value)
}

fn root() -> PathBuf {
    env::var_os(ROOT_VARIABLE).map_or_else(|| Path::new(ROOT).to_owned(), PathBuf::from)
}

/// As sysctl(8) writes it, a device's own dots becoming slashes.
fn dotted(path: &str) -> String {
    path.chars()
        .map(|c| match c {
            '/' => '.',
            '.' => '/',
            other => other,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::testing::{TempDir, ip_commands, isolated};

    #[test]
    fn changes_are_undone() {
        isolated(|_| {
            ip_commands("link add one type veth peer name far");
            let state = TempDir::new();
            // As a fresh node has it, whatever this machine's defaults are.
            let settings = [
                "net/ipv4/conf/one/forwarding",
                "net/ipv6/conf/one/forwarding",
            ];
            for path in settings {
                write(path, "0").unwrap();
            }
            write("net/ipv6/conf/one/accept_ra", "1").unwrap();

            let mut undo = Undo::open(&state.0).unwrap();
            let changed = let_forward("one", &mut undo).unwrap();
            assert!(changed.len() >= 3, "{changed:?}");
            assert_eq!(
                changed[0],
                "set net.ipv4.conf.one.forwarding to 1, it was 0"
            );
            assert!(settings.iter().all(|p| read(p).unwrap() == "1"));
            assert_eq!(read("net/ipv6/conf/one/accept_ra").unwrap(), "2");
            assert!(let_forward("one", &mut undo).unwrap().is_empty());

            let undo = Undo::open(&state.0).unwrap();
            assert_eq!(restore(&undo).len(), changed.len());
            assert!(settings.iter().all(|p| read(p).unwrap() == "0"));
            assert_eq!(read("net/ipv6/conf/one/accept_ra").unwrap(), "1");
            assert!(restore(&undo).is_empty());
        });
    }

    #[test]
    fn names_are_those_of_sysctl() {
        assert_eq!(
            dotted("net/ipv4/conf/eth0.7/forwarding"),
            "net.ipv4.conf.eth0/7.forwarding"
        );
    }
}
