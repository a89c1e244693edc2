//! Answers in the name of who was to get the packet: TCP reset, ICMP port unreachable, and that
//! the packet is too big.

use super::family::Fresh;
use super::parse::Packet;
use super::wire::{self, Icmp, Macs, Tcp, Udp, tcp};
use super::{Budget, Covered, Family, FamilyTables, Frame, Sum, Verdict};
use crate::abi::{Be16, Drop, FlowKey, protocol};

/// Tells the sender that its packet, which is in [`Work`](super::Work), goes nowhere, or does not
/// fit its way, within the rate limit.
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
    let mtu = work.mtu;
    // Nor a later fragment, which has no header to answer (RFC 1122 section 3.2.2).
    if packet.is_later_fragment() {
        return Err(Drop::FragmentUnknown);
    }
    // Never answer a reset (RFC 9293 3.10.7.1).
    if mtu == 0 && packet.has(tcp::RST) {
        return Err(Drop::ResetWithoutFlow);
    }
    let second = tables.now().checked_div(config.hz).unwrap_or(0);
    if !tables.take(Budget::Answers, second, config.rejects_per_second) {
        return Err(Drop::RejectLimited);
    }
    let key = work.key.reversed();
    let written = match packet.protocol {
        protocol::TCP if mtu == 0 => reset(frame, &packet, &key),
        _ => error(frame, &packet, &key, mtu),
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
    let header = Fresh {
        src: key.src,
        dst: key.dst,
        protocol: protocol::TCP,
        class: 0,
        label: 0,
        payload: size_of::<Tcp>(),
    };
    A::write(frame, packet.network(), &header)?;
    frame.store(transport, &answer, Covered::Changed)
}

/// Puts an ICMP error in front of the packet and cuts the packet behind what is quoted: "packet too
/// big" for `mtu`, or "port unreachable" if that is 0.
#[inline(always)]
fn error<A: Family, F: Frame>(
    frame: &mut F,
    packet: &Packet,
    key: &FlowKey<A>,
    mtu: u32,
) -> Option<()> {
    let room = A::HEADER + size_of::<Icmp>();
    // RFC 792 asks for 8 bytes of the transport header. All of a plain TCP header, because a
    // checksum left to who sends the packet would otherwise be written behind the packet's end.
    let transport = if packet.is_udp() {
        size_of::<Udp>()
    } else {
        size_of::<Tcp>()
    };
    let headers = packet.transport() - packet.network();
    let quoted = headers + transport;
    let (src, dst) = (key.src, key.dst);
    let is_left = frame.is_checksum_left(packet.checksum_offset())?;
    // Cut first: before Linux 5.11 a packet may not grow beyond its device's MTU.
    frame.set_length(packet.network() + quoted)?;
    frame.grow_head(room)?;
    // The old Ethernet header stands behind the room; copy it to the new beginning.
    turn_back(frame, room)?;
    let icmp = packet.network() + A::HEADER;
    let quote = packet.network() + room;
    let ((kind, code), rest) = if mtu == 0 {
        (A::PORT_UNREACHABLE, 0)
    } else {
        (A::TOO_BIG, A::too_big(mtu))
    };
    let mut sum = A::icmp_pseudo(src, dst, size_of::<Icmp>() + quoted)
        .port(Be16::new(u16::from_be_bytes([kind, code])))
        .double(rest);
    let segment = Sum::read(frame, quote + headers, transport)?;
    sum = sum.and(Sum::read(frame, quote, headers)?).and(segment);
    if is_left {
        // What the quoted checksum will be once the quoted bytes are summed up.
        let found = frame.load::<u16>(packet.checksum_offset() + room)?;
        let filled = match segment.header() {
            0 => 0xffff,
            filled => filled,
        };
        sum = sum.word(filled).word(!found);
    }
    let header = Fresh {
        src,
        dst,
        protocol: A::ICMP,
        class: 0,
        label: 0,
        payload: size_of::<Icmp>() + quoted,
    };
    A::write(frame, packet.network(), &header)?;
    let header = Icmp {
        kind,
        code,
        checksum: sum.header(),
        rest,
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
