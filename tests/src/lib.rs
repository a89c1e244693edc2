//! What the tests, the benchmark and the demo share: packet cases ([`packets`]), and the harness of
//! the network tests: hosts and cables ([`net`]), servers behind the load balancer ([`servers`]),
//! clients in front of it ([`clients`]), the daemon ([`daemon`]) or a source alone ([`source`]), and registries it asks
//! ([`registry`], [`names`], [`dnsmasq`], and [`cluster`], the API server of Kubernetes; [`tls`] goes
//! in front of them).
//!
//! Everything a network test builds hangs on file descriptors and child processes of the test process.
//! When it ends, by whatever means, the kernel takes it all away.

pub mod bulk;
pub mod capture;
pub mod certificates;
pub mod clients;
pub mod cluster;
pub mod consul;
pub mod daemon;
pub mod direct;
pub mod discovered;
pub mod dnsmasq;
pub mod docs;
pub mod etcd;
pub mod eureka;
pub mod frames;
pub mod fuzz;
pub mod host;
pub mod hostile;
pub mod machine;
pub mod names;
pub mod net;
pub mod packets;
pub mod registry;
pub mod servers;
pub mod soak;
pub mod sockets;
pub mod source;
pub mod stacks;
pub mod tls;
pub mod veth;
pub mod world;
pub mod zookeeper;

use std::{
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

/// Writes a line of a test's findings past libtest's capture, so that a green run shows them too.
pub fn note(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "    {line}");
}

/// A time limit, on a machine as fast as `LBD_TEST_PATIENCE` says: `8` for one that may take eight times
/// as long. How long something takes is no test's matter; that it happens is.
pub fn patience(limit: Duration) -> Duration {
    limit * slowness()
}

/// As much of something a second as a machine can do that is as fast as [`patience`] supposes.
pub fn less(amount: u32) -> u32 {
    (amount / slowness()).max(1)
}

fn slowness() -> u32 {
    let factor = std::env::var("LBD_TEST_PATIENCE").ok();
    factor.and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

/// Waits until `condition` holds, looking every 10 ms; false if it does not within `limit`, for which
/// [`patience`] is had.
pub fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience(limit);
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A program of this workspace: the one the environment variable names, else the one built beside
/// the running executable.
fn program(name: &str, variable: &str) -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            anyhow::anyhow!(
                "no `{name}` beside {}; run `make build`, or say where it is in {variable}",
                own.display()
            )
        })
}
