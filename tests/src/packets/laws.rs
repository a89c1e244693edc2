//! What holds of every packet that the path lets go, whatever came in: known without knowing what the
//! path did before. What it leaves to the kernel it leaves untouched; what it sends on differs in no
//! byte but those of its translation, and is as right or wrong as it came; it goes to a backend of the
//! service that it was for, or comes from the service that its backend is of; a tunnel adds a header
//! and nothing else; an answer goes to who sent the packet, and is right.

mod ends;
mod parse;

use std::net::IpAddr;

use lb_common::abi::protocol;

use self::parse::{Parsed, folded};
use super::{Action, Outcome, Side, build::RST, hex, world};

type Law = Result<(), String>;

const ETHERNET: usize = 14;

/// TTL of packets that the path makes itself.
const FRESH_TTL: u8 = 64;

/// Says which law `outcome` breaks for the packet `sent`.
///
/// # Errors
/// If it breaks one, with both packets.
pub fn check(side: Side, sent: &[u8], outcome: &Outcome) -> Law {
    let left = outcome.packet.as_slice();
    let law = match outcome.action {
        Action::Drop if outcome.counted.is_empty() => Err("dropped for no reason".to_owned()),
        Action::Drop => Ok(()),
        Action::Pass if left == sent => Ok(()),
        action => changed(side, action, sent, left),
    };
    law.map_err(|fault| {
        format!(
            "{side:?}, {:?} counting {:?}: {fault}\n  {}\nbecame\n  {}",
            outcome.action,
            outcome.counted,
            hex(sent),
            hex(left)
        )
    })
}

fn changed(side: Side, action: Action, sent: &[u8], left: &[u8]) -> Law {
    let before = Parsed::new(sent).ok_or("no packet for the path, yet it was touched")?;
    let after = Parsed::new(left).ok_or("what leaves is no packet")?;
    hold(
        before.ttl() > 1 || side == Side::Node || before.is_echo(),
        || "the end of its TTL is the kernel's to tell".to_owned(),
    )?;
    hold(sent[0] & 1 == 0, || "it was to a group of hosts".to_owned())?;
    if matches!(after.protocol, 4 | 41) {
        return tunnelled(action, &before, &after);
    }
    let is_turned = action == Action::Transmit
        && before.is_v6 == after.is_v6
        && (after.src(), after.dst()) == (before.dst(), before.src());
    if !is_turned {
        return translated(action, &before, &after);
    }
    match answered(&before, &after) {
        // Whoever sends to itself by way of a service sees no difference.
        Err(_) if before.src() == before.dst() => translated(action, &before, &after),
        law => law,
    }
}

fn hold(holds: bool, fault: impl FnOnce() -> String) -> Law {
    if holds { Ok(()) } else { Err(fault()) }
}

/// A packet inside another: as it was but for its TTL.
fn tunnelled(action: Action, before: &Parsed, after: &Parsed) -> Law {
    let by = if after.is_v6 { 40 } else { 20 };
    let inner = if before.is_v6 { 41 } else { 4 };
    let lengths = (after.bytes.len(), after.total);
    hold(
        lengths == (before.bytes.len() + by, before.total + by),
        || format!("a tunnel adds {by} bytes, and there are {lengths:?}"),
    )?;
    hold(after.class() == before.class(), || {
        "another class of service".to_owned()
    })?;
    hold(after.header == by && after.protocol == inner, || {
        "another outer header".to_owned()
    })?;
    hold(after.ttl() == FRESH_TTL && after.is_header_right(), || {
        "the outer header's TTL or checksum".to_owned()
    })?;
    macs(action, before, after)?;
    let inside = [&before.bytes[..ETHERNET], &after.bytes[ETHERNET + by..]].concat();
    let inside = Parsed::new(&inside).ok_or("no packet inside")?;
    only(before, &inside, &[before.ttl_place(), before.sum_place()])?;
    hold(inside.ttl() == before.ttl() - 1, || {
        "the inner TTL".to_owned()
    })?;
    sums(before.header_sum(), inside.header_sum(), "the inner header")?;
    ends::tunnelled(before, after)
}

/// An answer in the name of whom the packet was to.
fn answered(before: &Parsed, after: &Parsed) -> Law {
    let swapped = [&before.bytes[6..12], &before.bytes[..6]].concat();
    hold(after.bytes[..12] == swapped, || {
        "not to whom it came from".to_owned()
    })?;
    hold(after.ttl() == FRESH_TTL, || "the answer's TTL".to_owned())?;
    if before.is_echo() {
        let kind = before.transport();
        only(
            before,
            after,
            &[
                0..12,
                before.ttl_place(),
                before.sum_place(),
                before.addresses(),
                kind..kind + 1,
                kind + 2..kind + 4,
            ],
        )?;
        let kinds = (after.bytes[kind], before.is_v6);
        hold(matches!(kinds, (0, false) | (129, true)), || {
            "no reply".to_owned()
        })?;
        hold(ends::is_vip(before.dst()), || {
            "no service is there".to_owned()
        })?;
        sums(before.header_sum(), after.header_sum(), "the header")?;
        return sums(before.segment_sum(), after.segment_sum(), "the reply");
    }
    hold(ends::concerns(before), || {
        "the packet was for no service".to_owned()
    })?;
    let rest = after.bytes.len() - ETHERNET;
    hold(after.total == rest && after.is_header_right(), || {
        "the answer's length or header checksum".to_owned()
    })?;
    hold(folded(after.segment_sum()) == 0, || {
        "the answer's checksum".to_owned()
    })?;
    let class_and_label = &after.bytes[ETHERNET..ETHERNET + 4];
    hold(!after.is_v6 || class_and_label == [0x60, 0, 0, 0], || {
        "an answer with a traffic class or a flow label".to_owned()
    })?;
    let transport = after.transport();
    if after.protocol == protocol::TCP {
        let (flags, asked) = (after.bytes[transport + 13], before.tcp_flags());
        hold(
            flags & RST != 0 && asked.is_some_and(|f| f & RST == 0),
            || "a reset answers what is none, and nothing else does".to_owned(),
        )?;
        let ports = (before.ports(), after.ports().map(|(src, dst)| (dst, src)));
        return hold(ports.0 == ports.1 && rest == after.header + 20, || {
            "a reset of another connection".to_owned()
        });
    }
    let kind = [after.bytes[transport], after.bytes[transport + 1]];
    let kinds = if after.is_v6 {
        [[1, 4], [2, 0]]
    } else {
        [[3, 3], [3, 4]]
    };
    let is_icmp = after.protocol == if after.is_v6 { 58 } else { 1 };
    hold(is_icmp && kinds.contains(&kind), || {
        "another answer".to_owned()
    })?;
    let quote = &after.bytes[transport + 8..];
    hold(
        quote.len() >= before.header + 8 && before.bytes[ETHERNET..].starts_with(quote),
        || "the quote is not what came".to_owned(),
    )
}

/// A packet of a connection, or an error about one, on its way.
fn translated(action: Action, before: &Parsed, after: &Parsed) -> Law {
    hold(before.is_v6 == after.is_v6, || "another family".to_owned())?;
    let is_forwarded = action != Action::Pass;
    let aged = before.ttl().wrapping_sub(u8::from(is_forwarded));
    hold(after.ttl() == aged, || {
        format!("a TTL of {} and not {aged}", after.ttl())
    })?;
    macs(action, before, after)?;
    let mut places = vec![
        0..12,
        before.ttl_place(),
        before.sum_place(),
        before.addresses(),
    ];
    let is_segment = matches!(before.protocol, protocol::TCP | protocol::UDP);
    if before.is_later_fragment {
        only(before, after, &places)?;
        sums(before.header_sum(), after.header_sum(), "the header")?;
        return ends::translated(before, after);
    }
    let transport = before.transport();
    if is_segment {
        places.extend([transport..transport + 4, before.check_place()]);
        only(before, after, &places)?;
        sums(before.header_sum(), after.header_sum(), "the header")?;
        segment(before, after)?;
        return ends::translated(before, after);
    }
    let quoted = before
        .quoted()
        .ok_or("neither a segment nor an error about one")?;
    places.push(transport + 2..transport + 4);
    places.extend([quoted.sum_place(), quoted.addresses()]);
    places.push(quoted.transport()..quoted.transport() + 4);
    places.push(quoted.check_place());
    only(before, after, &places)?;
    sums(before.header_sum(), after.header_sum(), "the header")?;
    sums(before.segment_sum(), after.segment_sum(), "the error")?;
    let now = after.quoted().ok_or("the quote is none any more")?;
    sums(quoted.header_sum(), now.header_sum(), "the quoted header")?;
    if quoted.check_place().end <= quoted.bytes.len() {
        segment(&quoted, &now)?;
    }
    hold(now.src() == after.dst(), || {
        "its receiver did not send what it is about".to_owned()
    })
}

/// A TCP or UDP checksum is as right as it was; one of UDP that is not there does not come to be.
fn segment(before: &Parsed, after: &Parsed) -> Law {
    let [was, is] = [before, after].map(|packet| &packet.bytes[packet.check_place()]);
    if before.protocol == protocol::UDP && (was == [0, 0] || is == [0, 0]) {
        return hold(was == is, || "a UDP checksum comes or goes".to_owned());
    }
    sums(before.segment_sum(), after.segment_sum(), "the segment")
}

fn sums(before: u32, after: u32, of: &str) -> Law {
    let [before, after] = [before, after].map(folded);
    hold(before == after, || {
        format!("{of}: its checksum is not as right as it was ({before:#06x}, {after:#06x})")
    })
}

/// Whom the frame goes to.
fn macs(action: Action, before: &Parsed, after: &Parsed) -> Law {
    let macs = &after.bytes[..12];
    let is_right = match action {
        Action::Pass | Action::Resolve | Action::Drop => macs == &before.bytes[..12],
        Action::Transmit | Action::Redirect | Action::Send => {
            let known = [world::TO_CLIENT, world::TO_BACKEND];
            known.iter().any(|(dst, src)| macs == [*dst, *src].concat())
        }
    };
    hold(is_right, || format!("MACs {}", hex(macs)))
}

/// The packets differ in these places only.
fn only(before: &Parsed, after: &Parsed, places: &[std::ops::Range<usize>]) -> Law {
    let lengths = (before.bytes.len(), after.bytes.len());
    hold(lengths.0 == lengths.1, || {
        format!("{} bytes became {}", lengths.0, lengths.1)
    })?;
    let is_free = |at: &usize| places.iter().any(|place| place.contains(at));
    let mut places = 0..lengths.0;
    match places.find(|at| before.bytes[*at] != after.bytes[*at] && !is_free(at)) {
        None => Ok(()),
        Some(at) => Err(format!("byte {at} is no part of a translation")),
    }
}

/// An address of four or sixteen bytes.
fn address(bytes: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(bytes) {
        Ok(four) => four.into(),
        Err(_) => <[u8; 16]>::try_from(bytes)
            .expect("one or the other")
            .into(),
    }
}
