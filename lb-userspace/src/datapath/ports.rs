//! Which source ports SNAT may take without meeting the node's own connections.

use std::{fs, ops::RangeInclusive};

use tracing::warn;

const LOCAL_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// First port that no well-known service listens on.
const LOWEST: u16 = 1024;
/// With fewer ports towards a backend than this, sharing with the node is the lesser evil.
const ENOUGH: u16 = 4096;
/// The dynamic ports (RFC 6335).
const DYNAMIC: RangeInclusive<u16> = 49152..=65535;

/// First port and number of ports: the largest range outside the one the node's own outgoing
/// connections draw from. The kernel applies that range, whatever its name, to IPv6 as well.
pub(super) fn snat() -> (u16, u16) {
    let text = fs::read_to_string(LOCAL_RANGE).unwrap_or_default();
    let range = match parse(&text) {
        Some(local) => outside(local),
        None => DYNAMIC,
    };
    let count = range.end() - range.start() + 1;
    if count >= ENOUGH {
        return (*range.start(), count);
    }
    warn!(
        "{LOCAL_RANGE} leaves only {count} ports for SNAT; sharing {}–{} with the node's own \
         connections, narrow that range to avoid it",
        DYNAMIC.start(),
        DYNAMIC.end()
    );
    (*DYNAMIC.start(), DYNAMIC.end() - DYNAMIC.start() + 1)
}

fn parse(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let (low, high) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (low <= high).then_some(low..=high)
}

/// The larger of what lies below and above; one port at least.
fn outside(local: RangeInclusive<u16>) -> RangeInclusive<u16> {
    let below = LOWEST..=local.start().saturating_sub(1).max(LOWEST);
    let above = local.end().saturating_add(1)..=u16::MAX;
    if below.len() >= above.len() {
        below
    } else {
        above
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_side_is_taken() {
        assert_eq!(outside(32768..=60999), 1024..=32767);
        assert_eq!(outside(1024..=20000), 20001..=65535);
        assert_eq!(outside(1024..=65535).len(), 1);
        assert_eq!(parse("32768\t60999\n"), Some(32768..=60999));
        assert_eq!(parse(""), None);
    }
}
