//! Answers in the VIP's name: TCP reset, ICMP port unreachable.

use super::parse::Packet;
use super::wire::{self, Icmp, Macs, Tcp, tcp};
use super::{Covered, Family, FamilyTables, Frame, Sum, Verdict};
use crate::abi::{Be16, Drop, FlowKey, protocol};

/// Bytes of the transport header that an ICMP error quotes (RFC 792 asks for 8).
const QUOTED: usize = 8;

/// Tells the client that its packet, which is in [`Work`](super::Work), goes nowhere, within the
/// rate limit.
///
/// # Errors
/// The reason why there is no answer.
#[inline(always)]
pub fn answer<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &mut F,
    tables: &T,
) -> Result<Verdict, Drop> {
    let (Some(work), Some(config)) = (tables.work(), tables.config()) else {
        return Ok(Verdict::Pass);
    };
    let packet = work.packet;
    // Never answer a reset (RFC 9293 3.10.7.1).
    if packet.has(tcp::RST) {
        return Err(Drop::ResetWithoutFlow);
    }
    let second = tables.now().checked_div(config.hz).unwrap_or(0);
    if !tables.take_reject(second, config.rejects_per_second) {
        return Err(Drop::RejectLimited);
    }
    let key = work.key.reversed();
    let written = match packet.protocol {
        protocol::TCP => reset(frame, &packet, &key),
        _ => unreachable(frame, &packet, &key),
    };
    written.map(|()| Verdict::Transmit).ok_or(Drop::FrameAccess)
}

/// Turns the segment into its reset, in place.
#[inline(always)]
fn reset<A: Family, F: Frame>(frame: &mut F, packet: &Packet, key: &FlowKey<A>) -> Option<()> {
    let segment = frame.load::<Tcp>(packet.transport())?;
    let (sequence, acknowledgement, flags) = if segment.flags & tcp::ACK != 0 {
        (segment.acknowledgement, 0, tcp::RST)
    } else {
        let header = (segment.data_offset >> 4) as usize * 4;
        let data = (packet.transport_length::<A>()).wrapping_sub(header) as u32;
        let length = data + packet.has(tcp::SYN) as u32 + packet.has(tcp::FIN) as u32;
        let end = u32::from_be(segment.sequence).wrapping_add(length);
        (0, end.to_be(), tcp::RST | tcp::ACK)
    };
    let mut answer = Tcp {
        src_port: key.src_port,
        dst_port: key.dst_port,
        sequence,
        acknowledgement,
        data_offset: ((size_of::<Tcp>() / 4) << 4) as u8,
        flags,
        window: Be16(0),
        checksum: 0,
        urgent: Be16(0),
    };
    let transport = packet.network() + A::HEADER;
    let is_left = frame.is_checksum_left(packet.checksum_offset())?;
    // The sum would be written where the segment began behind its IP options.
    if is_left && packet.transport() != transport {
        return None;
    }
    let pseudo = Sum::default()
        .address(key.src)
        .address(key.dst)
        .port(Be16::new(protocol::TCP as u16))
        .port(Be16::new(size_of::<Tcp>() as u16));
    let whole = pseudo
        .port(key.src_port)
        .port(key.dst_port)
        .double(sequence)
        .double(acknowledgement)
        .port(Be16::new(u16::from_be_bytes([answer.data_offset, flags])))
        .header();
    answer.checksum = if is_left { pseudo.begun() } else { whole };
    frame.set_length(transport + size_of::<Tcp>())?;
    turn_back(frame, 0)?;
    A::write(
        frame,
        packet.network(),
        key.src,
        key.dst,
        protocol::TCP,
        size_of::<Tcp>(),
    )?;
    frame.store(transport, &answer, Covered::Changed)
}

/// Puts an ICMP error in front of the packet and cuts the packet behind what is quoted.
#[inline(always)]
fn unreachable<A: Family, F: Frame>(
    frame: &mut F,
    packet: &Packet,
    key: &FlowKey<A>,
) -> Option<()> {
    let room = A::HEADER + size_of::<Icmp>();
    let quoted = packet.transport() - packet.network() + QUOTED;
    let (src, dst) = (key.src, key.dst);
    let is_left = frame.is_checksum_left(packet.checksum_offset())?;
    // Cut first: before Linux 5.11 a packet may not grow beyond its device's MTU.
    frame.set_length(packet.network() + quoted)?;
    frame.grow_head(room)?;
    // The old Ethernet header stands behind the room; copy it to the new beginning.
    turn_back(frame, room)?;
    let icmp = packet.network() + A::HEADER;
    let quote = packet.network() + room;
    let (kind, code) = A::PORT_UNREACHABLE;
    let mut sum = A::icmp_pseudo(src, dst, size_of::<Icmp>() + quoted)
        .port(Be16::new(u16::from_be_bytes([kind, code])));
    // The longest IP header, with all that `odd` lets pass, and the quoted 8 bytes.
    for word in 0..(A::HEADERS + QUOTED) / 4 {
        if word * 4 >= quoted {
            break;
        }
        sum = sum.double(frame.load::<u32>(quote + word * 4)?);
    }
    if is_left {
        // What the quoted checksum will be once the quoted bytes are summed up.
        let [src_port, dst_port, length, found] =
            frame.load::<[u16; 4]>(quote + quoted - QUOTED)?;
        let quoted = Sum::default().word(src_port).word(dst_port);
        let filled = match quoted.word(length).word(found).header() {
            0 => 0xffff,
            filled => filled,
        };
        sum = sum.word(filled).word(!found);
    }
    A::write(
        frame,
        packet.network(),
        src,
        dst,
        A::ICMP,
        size_of::<Icmp>() + quoted,
    )?;
    let header = Icmp {
        kind,
        code,
        checksum: sum.header(),
        rest: 0,
    };
    frame.store(icmp, &header, Covered::Changed)
}

/// Writes the Ethernet header found at `from` to the frame's beginning, towards its sender.
/// The path answers untagged frames only.
#[inline(always)]
pub(super) fn turn_back<F: Frame>(frame: &mut F, from: usize) -> Option<()> {
    let macs = frame.load::<Macs>(from)?;
    let ethertype = frame.load::<u16>(from + size_of::<Macs>())?;
    frame.store(0, &wire::exchanged(macs), Covered::Neutral)?;
    frame.store(size_of::<Macs>(), &ethertype, Covered::Neutral)
}
