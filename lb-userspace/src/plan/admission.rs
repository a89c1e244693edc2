//! Whom services let in, and how the kernel gets from one list of sources to another.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use lb_common::abi::{Admission, Rate, admission_flag};

use super::{Change, Input, services::Placed};
use crate::{
    datapath,
    model::{self, Prefix, Sources},
};

/// Of every service by id; those without are left out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Admissions {
    pub rules: BTreeMap<u32, Admission>,
    pub sources: BTreeMap<u32, Sources>,
}

pub(super) fn admissions(
    input: Input<'_>,
    placed: &[Placed<'_>],
    refused: &mut Vec<String>,
) -> Admissions {
    let mut admissions = Admissions::default();
    let mut left = [input.capacity.sources as usize; 2];
    for service in placed {
        let (id, desired) = (service.id, service.desired);
        let counter = datapath::counter(input.capacity.backends, id);
        let mut rules = rules(&desired.admission, counter);
        let mut sources = desired.sources.clone();
        let needed = by_family(&sources);
        if needed[0] > left[0] || needed[1] > left[1] {
            refused.push(format!(
                "service {}: no room for its {} source prefixes, the kernel maps hold {} per \
                 family; raise node.limits.sources",
                desired.name,
                sources.len(),
                input.capacity.sources
            ));
            // What it has stays; one that has nothing lets nobody in rather than everybody.
            let held = input.installed.admissions.sources.get(&id);
            sources = held.cloned().unwrap_or_default();
            rules.flags = match input.installed.admissions.rules.get(&id) {
                Some(installed) if !sources.is_empty() => installed.flags,
                _ => admission_flag::SOURCES | admission_flag::LISTED_ONLY,
            };
        }
        for (left, taken) in left.iter_mut().zip(by_family(&sources)) {
            *left = left.saturating_sub(taken);
        }
        if rules != Admission::default() {
            admissions.rules.insert(id, rules);
        }
        if !sources.is_empty() {
            admissions.sources.insert(id, sources);
        }
    }
    admissions
}

fn by_family(sources: &Sources) -> [usize; 2] {
    let v6 = sources.iter().filter(|(prefix, _)| prefix.is_v6()).count();
    [sources.len() - v6, v6]
}

fn rules(admission: &model::Admission, counter: u32) -> Admission {
    let model::Admission {
        allow_sources,
        deny_sources,
        max_connections,
        rate,
        source_rate,
        affinity,
    } = admission;
    let mut flags = 0;
    if !allow_sources.is_empty() {
        flags = admission_flag::SOURCES | admission_flag::LISTED_ONLY;
    } else if !deny_sources.is_empty() {
        flags = admission_flag::SOURCES;
    }
    let tokens = |rate: &Option<model::Rate>| {
        rate.map_or(Rate::default(), |rate| Rate {
            per_second: rate.connections_per_second,
            burst: rate.burst,
        })
    };
    Admission {
        flags,
        max_connections: max_connections.unwrap_or(0),
        // Only what has a limit is counted.
        counter: max_connections.map_or(0, |_| counter),
        affinity: affinity.map_or(0, |a| a.client_ip.as_secs() as u32),
        rate: tokens(rate),
        source_rate: tokens(source_rate),
    }
}

/// What leads from the installed rules and lists to others. At no moment is a client refused that
/// both let in, nor let in that both refuse: prefixes come in longest first, then the word on those
/// that no prefix covers, then the former prefixes go, shortest first. So the longest prefix that
/// covers a client is at any time that of the former list or that of the new one.
pub(super) fn changes(from: &Admissions, to: &Admissions) -> Vec<Change> {
    let none = Sources::default();
    let of = |lists: &BTreeMap<u32, Sources>, id| lists.get(&id).unwrap_or(&none).clone();
    let mut ids: Vec<_> = [from, to]
        .iter()
        .flat_map(|a| a.rules.keys().chain(a.sources.keys()))
        .copied()
        .collect();
    ids.sort_unstable();
    ids.dedup();
    let mut changes = Vec::new();
    for id in ids {
        let (added, removed) = differences(&of(&from.sources, id), &of(&to.sources, id));
        if !added.is_empty() {
            changes.push(Change::AddSources {
                service: id,
                sources: added.into(),
            });
        }
        let rules = to.rules.get(&id).copied().unwrap_or_default();
        if from.rules.get(&id).copied().unwrap_or_default() != rules {
            changes.push(Change::SetAdmission {
                service: id,
                admission: rules,
            });
        }
        if !removed.is_empty() {
            changes.push(Change::RemoveSources {
                service: id,
                prefixes: removed.into(),
            });
        }
    }
    changes
}

/// What is new or otherwise, longest first, and what goes, shortest first.
fn differences(from: &Sources, to: &Sources) -> (Vec<(Prefix, bool)>, Vec<Prefix>) {
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    if Arc::ptr_eq(from, to) {
        return (added, removed);
    }
    let (mut old, mut new) = (from.iter().peekable(), to.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        match order {
            Ordering::Less => removed.extend(old.next().map(|(prefix, _)| *prefix)),
            Ordering::Greater => added.extend(new.next()),
            Ordering::Equal => {
                let (old, new) = (old.next(), new.next());
                added.extend(new.filter(|_| old != new));
            }
        }
    }
    removed.reverse();
    (added, removed)
}

/// A list with some prefixes added or changed, and some removed.
pub fn edited(from: Option<&Sources>, added: &[(Prefix, bool)], removed: &[Prefix]) -> Sources {
    let mut list: BTreeMap<_, _> = from
        .into_iter()
        .flat_map(|list| list.iter().copied())
        .collect();
    list.extend(added.iter().copied());
    for prefix in removed {
        list.remove(prefix);
    }
    list.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    /// What the kernel says of a client: the longest prefix, else the flag.
    fn lets_in(admissions: &Admissions, client: u8) -> bool {
        let client = IpAddr::from([10, 0, 0, client]);
        let covers = |prefix: &Prefix| {
            Prefix::new(client, 32).is_ok() && {
                let IpAddr::V4(ip) = client else { return false };
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(prefix.length()))
                    .unwrap_or(0);
                IpAddr::from((ip.to_bits() & mask).to_be_bytes()) == prefix.address()
            }
        };
        let flags = admissions.rules.get(&1).map_or(0, |rules| rules.flags);
        if flags & admission_flag::SOURCES == 0 {
            return true;
        }
        let list = admissions.sources.get(&1).cloned().unwrap_or_default();
        // Longest first.
        match list.iter().find(|(prefix, _)| covers(prefix)) {
            Some((_, allowed)) => *allowed,
            None => flags & admission_flag::LISTED_ONLY == 0,
        }
    }

    fn apply(admissions: &mut Admissions, change: &Change) {
        let now = admissions.sources.get(&1);
        match change {
            Change::AddSources { sources, .. } => {
                let list = edited(now, sources, &[]);
                admissions.sources.insert(1, list);
            }
            Change::RemoveSources { prefixes, .. } => {
                let list = edited(now, &[], prefixes);
                admissions.sources.insert(1, list);
            }
            Change::SetAdmission { admission, .. } => {
                admissions.rules.insert(1, *admission);
            }
            other => panic!("{other:?}"),
        }
    }

    /// Each prefix of a change by itself, in its order: as the kernel takes them.
    fn singly(change: Change) -> Vec<Change> {
        match change {
            Change::AddSources { service, sources } => sources
                .iter()
                .map(|source| Change::AddSources {
                    service,
                    sources: [*source].into(),
                })
                .collect(),
            Change::RemoveSources { service, prefixes } => prefixes
                .iter()
                .map(|prefix| Change::RemoveSources {
                    service,
                    prefixes: [*prefix].into(),
                })
                .collect(),
            other => vec![other],
        }
    }

    prop_compose! {
        fn some()(
            list in prop::collection::btree_map(
                (any::<u8>(), 24..=32u8).prop_map(|(last, length)| {
                    let last = u32::from(last) & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                    Prefix::new(IpAddr::from([10, 0, 0, last as u8]), length).unwrap()
                }),
                any::<bool>(),
                0..8,
            ),
        ) -> Admissions {
            let pick = |wanted| -> model::Prefixes {
                list.iter().filter(|(_, is)| **is == wanted).map(|(p, _)| *p).collect()
            };
            let admission = model::Admission {
                allow_sources: pick(true),
                deny_sources: pick(false),
                ..Default::default()
            };
            Admissions {
                rules: [(1, rules(&admission, 9))].into(),
                sources: [(1, admission.sources())].into(),
            }
        }
    }

    proptest! {
        #[test]
        fn no_hole_opens_on_the_way(from in some(), to in some()) {
            let mut now = from.clone();
            for change in changes(&from, &to).into_iter().flat_map(singly) {
                apply(&mut now, &change);
                for client in 0..=255 {
                    let (before, after) = (lets_in(&from, client), lets_in(&to, client));
                    if before == after {
                        prop_assert_eq!(lets_in(&now, client), before, "{} {:?}", client, change);
                    }
                }
            }
            prop_assert_eq!(&now.rules, &to.rules);
            prop_assert_eq!(&now.sources[&1], &to.sources[&1]);
            prop_assert!(changes(&to, &to).is_empty());
        }
    }
}
