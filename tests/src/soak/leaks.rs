//! What belongs to a node's lbd in the kernel, and what the process holds.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Output},
    time::Duration,
};

use anyhow::Context;
use serde_json::Value;

use crate::{
    daemon::{BPFFS, Daemon},
    eventually,
    net::Network,
};

/// What a node's lbd has that may not become more.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Count {
    pub maps: usize,
    pub programs: usize,
    pub links: usize,
    pub pins: usize,
    /// Entries of the kernel's tables of services.
    pub services: usize,
    pub descriptors: usize,
    pub threads: usize,
}

/// The numbers that the kernel gave to objects of one kind, which it never gives again.
type Ids = BTreeSet<u64>;

/// Objects of this node's lbd, by number; others may run on the same machine.
#[derive(Clone, Default)]
pub(super) struct Objects {
    maps: Ids,
    programs: Ids,
    links: Ids,
}

impl Objects {
    /// All that is pinned on the node, attached there, or open in the daemon, and what that refers to.
    pub(super) fn of(daemon: &Daemon, network: &Network) -> anyhow::Result<Self> {
        let open = |field: &str| open_in(daemon.pid(), field);
        let mut programs = open("prog_id:");
        let mut maps = open("map_id:");
        let mut links = open("link_id:");
        programs.extend(attached(network)?);
        links.extend(pinned(network, "link")?);
        maps.extend(pinned(network, "map")?);
        programs.extend(pinned(network, "prog")?);
        let listed = list(
            Command::new("bpftool")
                .args(["prog", "show", "-j"])
                .output(),
        )?;
        for program in listed.iter().filter(|one| programs.contains(&id(one))) {
            let used = program["map_ids"].as_array().into_iter().flatten();
            maps.extend(used.filter_map(Value::as_u64));
        }
        Ok(Self {
            maps,
            programs,
            links,
        })
    }

    pub(super) fn add(&mut self, other: Self) {
        self.maps.extend(other.maps);
        self.programs.extend(other.programs);
        self.links.extend(other.links);
    }

    /// Those that the kernel still has, in words; nothing if all go within `limit`.
    pub(super) fn left(&self, limit: Duration) -> Vec<String> {
        let mut left = Vec::new();
        eventually(limit, || {
            left.clear();
            for (kind, ids) in [
                ("map", &self.maps),
                ("prog", &self.programs),
                ("link", &self.links),
            ] {
                let listed = Command::new("bpftool").args([kind, "show", "-j"]).output();
                let listed = list(listed).unwrap_or_default();
                let ours = listed.iter().filter(|one| ids.contains(&id(one)));
                left.extend(ours.map(|one| format!("{kind} {} {}", id(one), one["name"])));
            }
            left.is_empty()
        });
        left
    }
}

impl Count {
    /// # Errors
    /// The daemon or bpftool does not answer.
    pub fn of(daemon: &Daemon, network: &Network) -> anyhow::Result<Self> {
        let entries = |what: &str| {
            let path = format!("/proc/{}/{what}", daemon.pid());
            fs::read_dir(path).map_or(0, Iterator::count)
        };
        let objects = Objects::of(daemon, network)?;
        let pins = network.node.execute("find", &[BPFFS, "-type", "f"])?;
        let mut services = 0;
        for map in ["SERVICES4", "SERVICES6"] {
            services += map_entries(daemon, map)?;
        }
        Ok(Self {
            services,
            maps: objects.maps.len(),
            programs: objects.programs.len(),
            links: objects.links.len(),
            pins: String::from_utf8_lossy(&pins.stdout).lines().count(),
            descriptors: entries("fd"),
            threads: entries("task"),
        })
    }

    /// What is more than it was, in words.
    pub(super) fn beyond(&self, before: &Self) -> Vec<String> {
        // A probe and a request may be under way, and a thread that waits for work.
        const UNDER_WAY: usize = 4;
        [
            ("maps", self.maps, before.maps),
            ("programs", self.programs, before.programs),
            ("links", self.links, before.links),
            ("pins", self.pins, before.pins),
            ("entries of services", self.services, before.services),
            (
                "file descriptors",
                self.descriptors,
                before.descriptors + UNDER_WAY,
            ),
            ("threads", self.threads, before.threads + UNDER_WAY),
        ]
        .into_iter()
        .filter(|(_, after, before)| after > before)
        .map(|(what, after, before)| format!("{after} {what}, {before} expected at most"))
        .collect()
    }
}

/// Entries of a map, as lbd counted them last; it begins with its first look at the maps.
///
/// Of `HANDSHAKES`, `FRAGMENTS` and `HELD` the number says nothing: what is over stays there until it is
/// pushed out. Source ports of SNAT have no map: they are taken by the flows that have them.
pub(super) fn map_entries(daemon: &Daemon, map: &str) -> anyhow::Result<usize> {
    let series = format!("lbd_map_entries{{map=\"{map}\"}}");
    let mut entries = daemon.metric(&series);
    eventually(Duration::from_secs(20), || {
        if entries.is_err() {
            entries = daemon.metric(&series);
        }
        entries.is_ok()
    });
    Ok(entries? as usize)
}

/// Numbers in this field of the process's descriptors.
fn open_in(process: u32, field: &str) -> Ids {
    let entries = fs::read_dir(format!("/proc/{process}/fdinfo"));
    let texts = entries.into_iter().flatten().flatten();
    let texts = texts.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let number = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        line?.trim().parse().ok()
    };
    texts.filter_map(number).collect()
}

fn pinned(network: &Network, kind: &str) -> anyhow::Result<Ids> {
    let listed = network.node.execute("bpftool", &["-f", "-j", kind, "show"]);
    let listed = list(listed.map_err(std::io::Error::other))?;
    let is_pinned = |one: &&Value| {
        one["pinned"]
            .as_array()
            .is_some_and(|pins| !pins.is_empty())
    };
    Ok(listed.iter().filter(is_pinned).map(id).collect())
}

/// Programs at the node's devices.
fn attached(network: &Network) -> anyhow::Result<Ids> {
    let output = network.node.execute("bpftool", &["-j", "net", "show"])?;
    let shown: Value = serde_json::from_slice(&output.stdout).context("bpftool net")?;
    let mut ids = Ids::new();
    collect(&shown, &mut ids);
    Ok(ids)
}

/// Numbers of programs anywhere in what bpftool says.
fn collect(value: &Value, ids: &mut Ids) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| collect(value, ids)),
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_u64() {
                    Some(number) if name == "id" || name == "prog_id" => {
                        ids.insert(number);
                    }
                    _ => collect(value, ids),
                }
            }
        }
        _ => {}
    }
}

fn list(output: std::io::Result<Output>) -> anyhow::Result<Vec<Value>> {
    let output = output.context("bpftool does not run")?;
    // An object that went meanwhile is an error among the others.
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).with_context(|| format!("bpftool: {text:.200}"))
}

fn id(object: &Value) -> u64 {
    object["id"].as_u64().unwrap_or_default()
}
