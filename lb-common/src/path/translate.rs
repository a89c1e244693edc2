//! Sends a packet on by its flow's translation.

use super::family::Rewrite;
use super::parse::Packet;
use super::{Covered, Delta, Family, FamilyTables, Frame, Handover, Route, Verdict};
use crate::abi::{Config, Drop, Flow, NextHop};

/// How a packet leaves. Every field is always set: an enum's unused payload is an undefined
/// register to LLVM, and the verifier refuses what it then does with a pointer left in there.
#[derive(Clone, Copy)]
pub(super) struct Way {
    pub(super) to: To,
    /// Zeroed for [`To::Stack`]; only the device for [`To::Unresolved`].
    pub(super) hop: NextHop,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    Neighbour,
    Unresolved,
    Stack,
}

/// The flow's cached next hop if it is current, else the routing table's answer, which is cached
/// where it is good for more than one packet.
#[inline(always)]
pub(super) fn way<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &F,
    tables: &T,
    config: &Config,
    flow: &Flow<A>,
    protocol: u8,
) -> Result<Way, Drop> {
    let cached = flow.next_hop.get();
    if cached.epoch == config.epoch {
        return Ok(Way {
            to: To::Neighbour,
            hop: cached,
        });
    }
    match tables.route(frame.ingress(), flow, protocol) {
        Route::Neighbour(hop) => {
            let hop = NextHop {
                epoch: config.epoch,
                ..hop
            };
            flow.next_hop.set(hop);
            Ok(Way {
                to: To::Neighbour,
                hop,
            })
        }
        Route::Unresolved { ifindex } => Ok(Way {
            to: To::Unresolved,
            hop: NextHop {
                ifindex,
                ..NextHop::default()
            },
        }),
        Route::Stack => Ok(Way {
            to: To::Stack,
            hop: NextHop::default(),
        }),
        Route::Refused => Err(Drop::Unroutable),
    }
}

/// Rewrites the packet and says how it leaves.
#[inline(always)]
pub(super) fn send<A: Family, F: Frame>(
    frame: &mut F,
    packet: &Packet,
    flow: &Flow<A>,
    way: &Way,
) -> Result<Verdict, Drop> {
    let forwarded = way.to != To::Stack;
    rewrite(frame, packet, flow, forwarded).ok_or(Drop::FrameAccess)?;
    let hop = &way.hop;
    let ifindex = hop.ifindex;
    let how = match way.to {
        To::Stack => Handover::Stack,
        To::Unresolved => Handover::Resolve,
        To::Neighbour => {
            frame
                .store(0, &hop.macs, Covered::Neutral)
                .ok_or(Drop::FrameAccess)?;
            if ifindex == frame.ingress() {
                return Ok(Verdict::Transmit);
            }
            if hop.direct != 0 {
                return Ok(Verdict::Redirect { ifindex });
            }
            Handover::Output
        }
    };
    Ok(Verdict::Kernel { how, ifindex })
}

/// New addresses, ports and checksums; the kernel's stack decrements the TTL itself.
#[inline(always)]
fn rewrite<A: Family, F: Frame>(
    frame: &mut F,
    packet: &Packet,
    flow: &Flow<A>,
    forwarded: bool,
) -> Option<()> {
    let addresses = Delta(flow.address_delta);
    A::rewrite(
        frame,
        packet.network(),
        &Rewrite {
            src: flow.src,
            dst: flow.dst,
            protocol: packet.next_header,
            payload: packet.payload as usize,
            ttl: packet.ttl,
            forwarded,
            checksum: packet.header_checksum,
            delta: addresses,
        },
    )?;
    if packet.is_later_fragment() {
        return Some(());
    }
    frame.store(
        packet.transport(),
        &[flow.src_port, flow.dst_port],
        Covered::Neutral,
    )?;
    frame.repair_transport(
        packet.checksum_offset(),
        addresses,
        Delta(flow.port_delta),
        packet.is_udp(),
    )
}
