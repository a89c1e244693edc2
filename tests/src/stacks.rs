//! What became of packets that are missing: the counters of the hosts' stacks, of the cables between
//! them, and of lbd.

use std::{
    fs::File,
    io::{self, Read, Seek},
};

use crate::{
    clients::{Failure, Protocol},
    host::Host,
    net::Network,
    world::World,
};

/// Of the thread, which is in the host; the process is not.
const PROC_NET: &str = "/proc/thread-self/net";

/// Datagrams for which a socket of a client or a backend had no room.
#[must_use]
pub fn overflown(world: &World) -> u64 {
    let of =
        |host: &Host| overflown4(&proc_net(host, "snmp")) + overflown6(&proc_net(host, "snmp6"));
    ends(&world.network).map(of).sum()
}

/// A counter of the stacks of client and backends (`/proc/net/snmp`), summed up.
///
/// # Panics
/// There is none of that name.
#[must_use]
pub fn counter(world: &World, protocol: &str, name: &str) -> u64 {
    let of = |host: &Host| in_snmp(&proc_net(host, "snmp"), protocol, name);
    ends(&world.network).map(of).sum()
}

fn overflown4(snmp: &str) -> u64 {
    in_snmp(snmp, "Udp:", "RcvbufErrors")
}

fn in_snmp(text: &str, protocol: &str, name: &str) -> u64 {
    let read = || -> Option<u64> {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol));
        let (names, values) = (lines.next()?, lines.next()?);
        let place = names.split_whitespace().position(|word| word == name)?;
        values.split_whitespace().nth(place)?.parse().ok()
    };
    read().unwrap_or_else(|| panic!("no counter {protocol} {name}"))
}

/// The same of IPv6 (`/proc/net/snmp6`).
fn overflown6(snmp6: &str) -> u64 {
    const NAME: &str = "Udp6RcvbufErrors";
    let mut lines = snmp6.lines().filter_map(|line| line.strip_prefix(NAME));
    let value = lines.next().unwrap_or_else(|| panic!("no counter {NAME}"));
    value.trim().parse().expect("a number")
}

/// Packets for which a device had no room (`/proc/net/dev`): the rings between the ends of a cable hold
/// 256. What programs drop is not among them.
#[must_use]
pub fn dropped_by_cables(world: &World) -> u64 {
    let hosts = ends(&world.network).chain([&world.network.node]);
    hosts.map(|host| dropped(&proc_net(host, "dev"))).sum()
}

fn dropped(dev: &str) -> u64 {
    let counters = dev.lines().filter_map(|line| line.split_once(':'));
    let dropped = counters.map(|(_, counters)| {
        let counters: Vec<u64> = counters
            .split_whitespace()
            .map(|n| n.parse().expect("a number"))
            .collect();
        // Received, sent.
        counters[3] + counters[11]
    });
    dropped.sum()
}

/// All that [`overflown`] and [`dropped_by_cables`] count.
#[must_use]
pub fn lost(world: &World) -> u64 {
    overflown(world) + dropped_by_cables(world)
}

/// Whether so many lost packets explain the failures of a burst: nobody sends a datagram again.
#[must_use]
pub fn explain(lost: u64, protocol: Protocol, failures: &[Failure]) -> bool {
    let is_lost = |failure: &Failure| protocol == Protocol::Udp && *failure == Failure::Timeout;
    failures.len() as u64 <= lost && failures.iter().all(is_lost)
}

/// As [`lost`], for whoever reads it often, or beside the world: the files stay open.
pub(crate) struct Losses(Vec<(File, Counted)>);

/// Of what such a file says, what counts here.
type Counted = fn(&str) -> u64;

impl Losses {
    pub(crate) fn open(network: &Network) -> io::Result<Self> {
        let mut files: Vec<(File, Counted)> = Vec::new();
        let mut add = |host: &Host, name: &str, count: Counted| -> io::Result<()> {
            let file = host.run(|| File::open(format!("{PROC_NET}/{name}")))?;
            files.push((file, count));
            Ok(())
        };
        for host in ends(network) {
            add(host, "snmp", overflown4)?;
            add(host, "snmp6", overflown6)?;
            add(host, "dev", dropped)?;
        }
        add(&network.node, "dev", dropped)?;
        Ok(Self(files))
    }

    pub(crate) fn read(&mut self) -> io::Result<u64> {
        let files = self.0.iter_mut();
        let counts = files.map(|(file, count)| -> io::Result<u64> {
            let mut text = String::new();
            file.rewind()?;
            file.read_to_string(&mut text)?;
            Ok(count(&text))
        });
        counts.sum()
    }
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
    let told = ends(&world.network).map(|host| {
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

fn ends(network: &Network) -> impl Iterator<Item = &Host> {
    network.backends.iter().chain([&network.client])
}

/// A file of the host's `/proc/net`.
///
/// # Panics
/// There is none of that name.
#[must_use]
pub fn proc_net(host: &Host, name: &str) -> String {
    let path = format!("{PROC_NET}/{name}");
    let text = host.run(|| std::fs::read_to_string(&path));
    text.unwrap_or_else(|error| panic!("{path}: {error}"))
}
