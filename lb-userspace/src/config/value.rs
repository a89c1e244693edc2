//! One value at a time: what a node must be, and the fault if it is something else.
//!
//! Every function reports the fault itself and then returns `None`.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use super::{
    address::parse_address,
    report::{Place, Report},
    suggest::{either, nearest, quoted},
    tree::{Data, Node},
};
use crate::model::duration_text;

/// A word the design names for a later release, and what to do until then.
pub(super) type Later = (&'static str, &'static str);

/// The entries of a mapping, all of them known.
pub(super) struct Fields<'t> {
    place: Place,
    values: HashMap<&'static str, &'t Node>,
}

impl<'t> Fields<'t> {
    /// Reports every key that is not among `keys`; a misspelt one counts as the one it resembles.
    /// A mapping left empty has no entries.
    pub(super) fn of(
        node: &'t Node,
        what: &str,
        keys: &[&'static str],
        later: &[Later],
        report: &mut Report,
    ) -> Option<Self> {
        let mut values = HashMap::new();
        match &*node.data {
            Data::Map(entries) => {
                let mut misspelt = Vec::new();
                for entry in entries {
                    if let Some(key) = keys.iter().find(|&&key| key == entry.key) {
                        values.insert(*key, &entry.value);
                        continue;
                    }
                    let place = format!(" in {what}");
                    let message = unknown("key", &entry.key, &place, keys, later);
                    report.fault(entry.place, message);
                    misspelt.extend(nearest(&entry.key, keys).map(|key| (key, &entry.value)));
                }
                for (key, value) in misspelt {
                    values.entry(key).or_insert(value);
                }
            }
            _ if node.is_null() => {}
            _ => {
                let expected = format!("a mapping with the keys {}", keys.join(", "));
                return mismatch(node, what, &expected, report);
            }
        }
        Some(Self {
            place: node.place,
            values,
        })
    }

    pub(super) fn get(&self, key: &str) -> Option<&'t Node> {
        self.values.get(key).copied()
    }

    pub(super) fn require(
        &self,
        key: &str,
        what: &str,
        example: &str,
        report: &mut Report,
    ) -> Option<&'t Node> {
        let found = self.get(key);
        if found.is_none() {
            let message = format!("{what} has no `{key}`; write e.g. `{key}: {example}`");
            report.fault(self.place, message);
        }
        found
    }
}

/// Text as written, whether YAML would take it for a number or not.
pub(super) fn text<'t>(
    node: &'t Node,
    key: &str,
    expected: &str,
    report: &mut Report,
) -> Option<&'t str> {
    match &*node.data {
        Data::Scalar { text, .. } if !node.is_null() => Some(text),
        _ => mismatch(node, key, expected, report),
    }
}

/// A whole number within `range`, unquoted.
pub(super) fn number(
    node: &Node,
    key: &str,
    range: std::ops::RangeInclusive<u32>,
    report: &mut Report,
) -> Option<u32> {
    let expected = format!("a whole number from {} to {}", range.start(), range.end());
    match &*node.data {
        Data::Scalar { text, plain: true } => {
            let decimal = text.bytes().all(|b| b.is_ascii_digit());
            let octal = text.len() > 1 && text.starts_with('0');
            match text.parse() {
                Ok(number) if decimal && !octal && range.contains(&number) => Some(number),
                _ => mismatch(node, key, &expected, report),
            }
        }
        Data::Scalar { text, plain: false } if text.parse::<u32>().is_ok() => {
            report.fault(
                node.place,
                format!("`{key}` must be {expected}, not text; remove the quotes"),
            );
            None
        }
        _ => mismatch(node, key, &expected, report),
    }
}

/// One of `words`. A misspelt word counts as the one it resembles, so that nothing is reported
/// that would not be a fault once it is corrected.
pub(super) fn choice<T: Copy>(
    node: &Node,
    key: &str,
    words: &[(&'static str, T)],
    later: &[Later],
    report: &mut Report,
) -> Option<T> {
    let names: Vec<&str> = words.iter().map(|&(name, _)| name).collect();
    let written = text(node, key, &either(&names), report)?;
    let value = |word| words.iter().find(|w| w.0 == word).map(|w| w.1);
    if let Some(exact) = value(written) {
        return Some(exact);
    }
    let message = unknown("value", written, &format!(" for `{key}`"), &names, later);
    report.fault(node.place, message);
    value(nearest(written, &names)?)
}

/// A duration with its unit.
pub(super) fn duration(node: &Node, key: &str, report: &mut Report) -> Option<Duration> {
    let written = text(node, key, "a duration such as 500ms or 5s", report)?;
    let fault = match duration_text::parse(written) {
        Ok(duration) => return Some(duration),
        Err(_) if !written.is_empty() && written.bytes().all(|b| b.is_ascii_digit()) => {
            format!("{} has no unit; write e.g. 5s", quoted(written))
        }
        Err(_) => format!(
            "{} is no duration; write e.g. 500ms, 5s, 10m",
            quoted(written)
        ),
    };
    report.fault(node.place, format!("`{key}`: {fault}"));
    None
}

pub(super) fn address(node: &Node, key: &str, report: &mut Report) -> Option<SocketAddr> {
    let written = text(node, key, "IP:PORT, e.g. \"192.0.2.10:80\"", report)?;
    match parse_address(written) {
        Ok(address) => Some(address),
        Err(fault) => {
            report.fault(node.place, format!("`{key}`: {fault}"));
            None
        }
    }
}

/// A single value or each of a list, with nothing for an empty value.
pub(super) fn one_or_many(node: &Node) -> &[Node] {
    match &*node.data {
        Data::List(nodes) => nodes,
        _ if node.is_null() => &[],
        _ => std::slice::from_ref(node),
    }
}

/// The elements of a list, with none for an empty value.
pub(super) fn list<'t>(
    node: &'t Node,
    key: &str,
    expected: &str,
    report: &mut Report,
) -> Option<&'t [Node]> {
    match &*node.data {
        Data::List(nodes) => Some(nodes),
        _ if node.is_null() => Some(&[]),
        _ => mismatch(node, key, expected, report),
    }
}

/// Says that `word` is not among `words`, and what was probably meant.
pub(super) fn unknown(
    kind: &str,
    word: &str,
    place: &str,
    words: &[&str],
    later: &[Later],
) -> String {
    let shown = quoted(word);
    if let Some((_, instead)) = later.iter().find(|(later, _)| *later == word) {
        return format!("{shown} is not supported by this version; {instead}");
    }
    let allowed = either(words);
    match nearest(word, words) {
        Some(near) => {
            format!("unknown {kind} {shown}{place}; did you mean `{near}`? (allowed: {allowed})")
        }
        None => format!("unknown {kind} {shown}{place}; allowed: {allowed}"),
    }
}

fn mismatch<T>(node: &Node, key: &str, expected: &str, report: &mut Report) -> Option<T> {
    let found = match &*node.data {
        _ if node.is_null() => "empty".to_owned(),
        Data::Scalar { text, .. } => quoted(text),
        Data::List(_) => "a list".to_owned(),
        Data::Map(_) => "a mapping".to_owned(),
    };
    let name = match key {
        "the file" => key.to_owned(),
        _ => format!("`{key}`"),
    };
    report.fault(
        node.place,
        format!("{name} must be {expected}, not {found}"),
    );
    None
}
