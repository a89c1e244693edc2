//! The standard world's devices, routes and neighbours.

use std::{net::IpAddr, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::packets::world::{self, Addresses, Mac};

/// Makes the standard world's network in a new namespace of the calling thread, which is also
/// pinned to one CPU, so that per-CPU state is one. Returns the two devices.
pub(super) fn build_namespace(cpu: usize) -> Result<(u32, u32)> {
    // SAFETY: plain system calls on the calling thread.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        ensure!(
            libc::sched_setaffinity(0, size_of_val(&set), &set) == 0,
            "pinning to CPU {cpu}"
        );
        if libc::unshare(libc::CLONE_NEWNET) != 0 {
            return Err(std::io::Error::last_os_error()).context("unshare: run this as root");
        }
    }
    let client_side = colons(world::CLIENT_SIDE_MAC);
    let backend_side = colons(world::BACKEND_SIDE_MAC);
    ip("link set lo up")?;
    ip(&format!(
        "link add c0 address {client_side} type veth peer name c1"
    ))?;
    ip(&format!(
        "link add b0 address {backend_side} type veth peer name b1"
    ))?;
    for name in ["all", "default", "c0", "b0"] {
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/forwarding"), "1")?;
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/forwarding"), "1")?;
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0")?;
    }
    for name in ["c0", "c1", "b0", "b1"] {
        ip(&format!("link set {name} up"))?;
    }
    for v6 in [false, true] {
        build_family(Addresses { v6 })?;
    }
    let index = |name: &std::ffi::CStr| {
        // SAFETY: a terminated string.
        unsafe { libc::if_nametoindex(name.as_ptr()) }
    };
    Ok((index(c"c0"), index(c"b0")))
}

/// Addresses, routes and neighbours of one family.
fn build_family(a: Addresses) -> Result<()> {
    let narrow = world::NARROW_MTU;
    let shown = |(network, length): (IpAddr, u32)| format!("{network}/{length}");
    let at_once = if a.v6 { "nodad" } else { "" };
    for (own, network, device) in [
        (a.node_to_clients(0), a.clients(), "c0"),
        (a.node(0), a.backends(), "b0"),
        (a.second_node(0), a.backends(), "b0"),
    ] {
        let (own, length) = (own.ip(), network.1);
        ip(&format!("addr add {own}/{length} dev {device} {at_once}"))?;
    }
    let narrow_clients = shown(a.narrow_clients());
    ip(&format!(
        "route add {narrow_clients} dev c0 mtu lock {narrow}"
    ))?;
    ip(&format!("route add blackhole {}", shown(a.black_holes())))?;
    let (router, [routed, narrow_route]) = (a.backend(1, 0).ip(), a.routes().map(shown));
    ip(&format!("route add {routed} via {router} dev b0"))?;
    ip(&format!(
        "route add {narrow_route} via {router} dev b0 mtu lock {narrow}"
    ))?;
    for client in [a.client(0), a.neighbour_of_clients(0), a.narrow_client(0)] {
        let to = colons(world::CLIENT_MAC);
        ip(&format!(
            "neigh replace {} lladdr {to} dev c0 nud permanent",
            client.ip()
        ))?;
    }
    for last in 1..64 {
        let to = colons(world::BACKEND_MAC);
        let backend = a.backend(last, 0).ip();
        ip(&format!(
            "neigh replace {backend} lladdr {to} dev b0 nud permanent"
        ))?;
    }
    Ok(())
}

fn colons(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .context("ip")?;
    ensure!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
