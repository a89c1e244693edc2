//! Sends a packet on by its flow's translation.

use super::family::Rewrite;
use super::parse::Packet;
use super::{Covered, Delta, Family, FamilyTables, Frame, Handover, Route, Verdict};
use crate::abi::{Config, Drop, Flow, NextHop};

/// How a packet leaves. Every field is always set: an enum's unused payload is an undefined
/// register to LLVM, and the verifier refuses what it then does with a pointer left in there.
/// Aligned, because it may lie on the stack, and LLVM reads the MACs by words of eight bytes, which
/// the verifier wants aligned there.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct Way {
    /// Zeroed for [`To::Stack`]; only the device for [`To::Unresolved`].
    pub(super) hop: NextHop,
    pub(super) to: To,
}

impl Way {
    /// How a packet from device `ingress` leaves, once it is rewritten.
    #[inline(always)]
    pub(super) fn verdict(&self, ingress: u32) -> Verdict {
        let ifindex = self.hop.ifindex;
        let how = match self.to {
            To::Neighbour if ifindex == ingress => return Verdict::Transmit,
            To::Neighbour if self.hop.direct != 0 => return Verdict::Redirect { ifindex },
            To::Neighbour => Handover::Output,
            To::Unresolved => Handover::Resolve,
            To::Stack => Handover::Stack,
        };
        Verdict::Kernel { how, ifindex }
    }

    /// The path decrements the TTL; the kernel's stack does so itself.
    #[inline(always)]
    pub(super) fn forwards(&self) -> bool {
        self.to != To::Stack
    }
}

impl Way {
    pub(super) const STACK: Self = Self {
        to: To::Stack,
        hop: NextHop {
            ifindex: 0,
            epoch: 0,
            macs: [0; 3],
            direct: 0,
        },
    };
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    Neighbour,
    Unresolved,
    Stack,
}

/// How the packets of a flow leave: a departing one as the stack has chosen; else by the flow's
/// cached next hop if it is current; else as the routing table says, which is cached where it is
/// good for more than one packet.
#[inline(always)]
pub(super) fn way<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &F,
    tables: &T,
    config: &Config,
    flow: &Flow<A>,
    protocol: u8,
    departs: bool,
) -> Result<Way, Drop> {
    if departs {
        return Ok(Way::STACK);
    }
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
        Route::Stack => Ok(Way::STACK),
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
    rewrite(frame, packet, flow, way.forwards())
        .and_then(|()| link(frame, way))
        .ok_or(Drop::FrameAccess)?;
    Ok(way.verdict(frame.ingress()))
}

/// Writes the link's header of a packet that leaves by `way`.
#[inline(always)]
pub(super) fn link<F: Frame>(frame: &mut F, way: &Way) -> Option<()> {
    match way.to {
        To::Neighbour => frame.store(0, &way.hop.macs, Covered::Neutral),
        To::Unresolved | To::Stack => Some(()),
    }
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
