//! Answers echo requests to service addresses, in place.

use core::mem::offset_of;

use super::family::{DEFAULT_TTL, Header, Rewrite};
use super::icmp::Message;
use super::wire::Icmp;
use super::{Covered, Delta, Family, FamilyTables, Frame, Sum, Verdict, reject};
use crate::abi::{Be16, Drop, ServiceKey};

/// Sends a request back as its reply, if it is for the address of a service, whether or not that
/// has a backend. Everything but types, addresses and TTL stays as it is: the reply is as long as
/// the request, and a wrong checksum stays wrong.
///
/// Left to the kernel: IPv4 options, which an answer would have to reverse or record (RFC 1122
/// 3.2.2.6), and whoever is no single other host.
#[inline(always)]
pub(super) fn reply<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &mut F,
    tables: &T,
    message: &Message<A>,
) -> Result<Verdict, Drop> {
    let Header { src, dst, .. } = message.header;
    if message.header.length != A::HEADER || !src.is_unicast() || src == dst {
        return Ok(Verdict::Pass);
    }
    if tables.service(&ServiceKey::echo(dst, A::ICMP)).is_none() {
        return Ok(Verdict::Pass);
    }
    let turned = turn(frame, message);
    turned.map(|()| Verdict::Transmit).ok_or(Drop::FrameAccess)
}

#[inline(always)]
fn turn<A: Family, F: Frame>(frame: &mut F, message: &Message<A>) -> Option<()> {
    let word = |high, low| Sum::default().port(Be16::new(u16::from_be_bytes([high, low])));
    let (request, reply) = A::ECHO;
    let header = &message.header;
    reject::turn_back(frame, 0)?;
    A::rewrite(
        frame,
        message.network,
        &Rewrite {
            src: header.dst,
            dst: header.src,
            protocol: A::ICMP,
            payload: message.length(),
            ttl: DEFAULT_TTL,
            forwarded: false,
            checksum: header.checksum,
            delta: word(header.ttl, A::ICMP).difference(word(DEFAULT_TTL, A::ICMP)),
        },
    )?;
    frame.store(message.offset(), &reply, Covered::Neutral)?;
    let checksum = message.offset() + offset_of!(Icmp, checksum);
    // The pseudo-header's addresses change places, which moves no sum.
    let kind = word(request, 0).difference(word(reply, 0));
    frame.repair_transport(checksum, Delta::NONE, kind, false)?;
    // Of the two zeros of one's complement only 0xffff is right where all other words are zero, as
    // those of an empty reply may be without a pseudo-header; where they are not, both are.
    if !A::IS_V6 && frame.load::<u16>(checksum)? == 0 {
        frame.store(checksum, &0xffff_u16, Covered::Neutral)?;
    }
    Some(())
}
