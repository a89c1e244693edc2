//! What became of packets that are missing: the counters of the hosts' stacks, of the cables between
//! them, and of lbd.

use crate::{host::Host, world::World};

/// Datagrams for which a socket of a client or a backend had no room.
#[must_use]
pub fn overflown(world: &World) -> u64 {
    counter(world, "Udp:", "RcvbufErrors") + counter6(world, "Udp6RcvbufErrors")
}

/// A counter of the stacks of client and backends (`/proc/net/snmp`), summed up.
///
/// # Panics
/// There is none of that name.
#[must_use]
pub fn counter(world: &World, protocol: &str, name: &str) -> u64 {
    let read = |host: &Host| -> Option<u64> {
        let text = proc_net(host, "snmp");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol));
        let (names, values) = (lines.next()?, lines.next()?);
        let place = names.split_whitespace().position(|word| word == name)?;
        values.split_whitespace().nth(place)?.parse().ok()
    };
    let read = |host| read(host).unwrap_or_else(|| panic!("no counter {protocol} {name}"));
    ends(world).map(read).sum()
}

/// The same of IPv6 (`/proc/net/snmp6`).
fn counter6(world: &World, name: &str) -> u64 {
    let read = |host: &Host| -> u64 {
        let text = proc_net(host, "snmp6");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
        let value = lines.next().unwrap_or_else(|| panic!("no counter {name}"));
        value.trim().parse().expect("a number")
    };
    ends(world).map(read).sum()
}

/// Packets for which a device had no room (`/proc/net/dev`): the rings between the ends of a cable hold
/// 256. What programs drop is not among them.
#[must_use]
pub fn dropped_by_cables(world: &World) -> u64 {
    let of = |host: &Host| -> u64 {
        let text = proc_net(host, "dev");
        let counters = text.lines().filter_map(|line| line.split_once(':'));
        let dropped = counters.map(|(_, counters)| {
            let counters: Vec<u64> = counters
                .split_whitespace()
                .map(|n| n.parse().expect("a number"))
                .collect();
            // Received, sent.
            counters[3] + counters[11]
        });
        dropped.sum()
    };
    ends(world).chain([&world.network.node]).map(of).sum()
}

/// What lbd dropped, and what the node's own stack did with packets that lbd left to it.
///
/// # Panics
/// lbd does not answer.
#[must_use]
pub fn of_the_node(world: &World) -> String {
    let (_, metrics) = world.daemon.http("/metrics").expect("lbd answers");
    let drops = metrics
        .lines()
        .filter(|line| line.starts_with("lbd_drops_total") && !line.ends_with(" 0"));
    let text = proc_net(&world.network.node, "snmp");
    let mut told: Vec<_> = drops.map(str::to_owned).collect();
    let of_interest = ["Ip:", "Udp:"];
    let lines = text.lines();
    told.extend(
        lines
            .filter(|line| of_interest.iter().any(|name| line.starts_with(name)))
            .map(str::to_owned),
    );
    let text = proc_net(&world.network.node, "snmp6");
    let fields = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let told6 = text.lines().map(fields).filter(|line| {
        let counts = !line.ends_with(" 0") && !line.contains("Octets");
        counts && ["Ip6", "Udp6"].iter().any(|name| line.starts_with(name))
    });
    told.extend(told6);
    told.join(" | ")
}

/// What client and backends count of connections that went wrong, each that is not 0.
#[must_use]
pub fn of_the_ends(world: &World) -> String {
    let told = ends(world).map(|host| {
        let text = proc_net(host, "snmp") + &proc_net(host, "netstat");
        let lines: Vec<_> = text.lines().collect();
        let counters = lines.as_chunks::<2>().0.iter().flat_map(|pair| {
            let names = pair[0].split_whitespace();
            names.zip(pair[1].split_whitespace())
        });
        let wrong = counters.filter(|(name, value)| {
            const WRONG: [&str; 9] = [
                "Reset", "Rsts", "Abort", "Overflow", "Drop", "Timeouts", "Cookies", "Fail", "Rst",
            ];
            *value != "0" && WRONG.iter().any(|part| name.contains(part))
        });
        wrong
            .map(|(name, value)| format!("{name} {value}"))
            .collect::<Vec<_>>()
            .join(", ")
    });
    told.collect::<Vec<_>>().join(" | ")
}

fn ends(world: &World) -> impl Iterator<Item = &Host> {
    let network = &world.network;
    network.backends.iter().chain([&network.client])
}

/// Of the thread, which is in the host; the process is not.
fn proc_net(host: &Host, name: &str) -> String {
    let path = format!("/proc/thread-self/net/{name}");
    let text = host.run(|| std::fs::read_to_string(&path));
    text.unwrap_or_else(|error| panic!("{path}: {error}"))
}
