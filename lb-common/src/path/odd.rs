//! Fragments, and packets with IPv6 extension headers: everything that must be read further than
//! [`super::fast`] does before its ports are known.

use super::family::{FRAGMENT_BITS, FRAGMENT_OFFSET, MORE_FRAGMENTS};
use super::parse::{self, Packet};
use super::wire::{Tcp, Udp, extension, tcp};
use super::{Family, FamilyTables, Frame, Step, Tables, Verdict};
use crate::abi::{
    Be16, Config, Drop, FRAGMENT_SECONDS, FlowKey, FragmentKey, Fragmented, HeldKey, ServiceKey,
    protocol,
};

/// Extension headers of a packet that are read, and their bytes together. Packets with more are left
/// to the kernel.
const EXTENSIONS: usize = 8;
pub(super) const EXTENSION_BYTES: usize = 256;

/// A header that [`extension`] could read.
const IS_READ: u64 = 1 << 8;

/// Whether [`odd`] has to look at the packet.
#[inline(always)]
pub fn is_odd<A: Family, F: Frame>(frame: &F, network: usize) -> bool {
    A::read(frame, network)
        .is_some_and(|header| header.fragment != 0 || A::is_extension(header.protocol))
}

/// Whether what was seen at `seen` may still concern the fragments of the same datagram.
#[inline(always)]
pub fn is_recent(config: &Config, now: u32, seen: u32) -> bool {
    now.wrapping_sub(seen) < FRAGMENT_SECONDS * config.hz
}

/// Finds the transport header behind IPv4 options or IPv6 extension headers, and leaves what it
/// learnt in [`Work`](super::Work).
///
/// # Errors
/// None; what it does not understand is left to the kernel.
#[inline(always)]
pub fn odd<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &mut F,
    tables: &T,
    network: usize,
) -> Result<Step, Drop> {
    const PASS: Result<Step, Drop> = Ok(Step::Done(Verdict::Pass));
    frame.reach(network + A::HEADERS + size_of::<Tcp>());
    let Some(work) = tables.work() else {
        return PASS;
    };
    let Some(header) = A::read(frame, network) else {
        return PASS;
    };
    if !parse::holds(frame, network + header.total_length) {
        return PASS;
    }
    let Some(payload) = header.total_length.checked_sub(A::HEADER) else {
        return PASS;
    };
    work.packet = Packet {
        network: network as u16,
        transport: 0,
        payload: payload as u16,
        header_checksum: header.checksum,
        protocol: header.protocol,
        ttl: header.ttl,
        flags: tcp::ACK,
        next_header: header.protocol,
        marks: 0,
    };
    // The kernel answers "time exceeded"; tagged frames are balanced on their VLAN device.
    if header.ttl <= 1 || work.packet.is_tagged() || parse::is_to_group(frame) != Some(false) {
        return PASS;
    }
    let mut kind = header.protocol;
    let mut offset = network + header.length;
    let mut fragment = header.fragment as u32;
    let mut id = header.id as u32;
    let mut is_fragmented = false;
    for place in 0..EXTENSIONS {
        if !A::is_extension(kind) {
            break;
        }
        let is_fragment = kind == extension::FRAGMENT;
        let found = frame.extension(offset, kind);
        // Hop-by-hop options stand first or not at all (RFC 8200 4.1).
        if found & IS_READ == 0
            || (kind == extension::HOP_BY_HOP && place != 0)
            || (is_fragment && is_fragmented)
        {
            return PASS;
        }
        kind = found as u8;
        if is_fragment {
            is_fragmented = true;
            fragment = (found >> 16) as u32 & FRAGMENT_BITS as u32;
            id = (found >> 32) as u32;
            offset += 8;
            if fragment & FRAGMENT_OFFSET as u32 != 0 {
                break;
            }
        } else {
            offset += (found >> 16) as u32 as usize;
        }
    }
    let is_later = fragment & FRAGMENT_OFFSET as u32 != 0;
    let is_known = kind == protocol::TCP || kind == protocol::UDP;
    if offset - network > A::HEADERS || !(is_known || (is_later && A::is_extension(kind))) {
        return PASS;
    }
    work.packet.protocol = kind;
    work.packet.transport = offset as u16;
    work.fragment = fragment;
    work.key = FlowKey::new(header.src, Be16(0), header.dst, Be16(0), kind);
    work.held = HeldKey {
        datagram: FragmentKey {
            src: header.src,
            dst: header.dst,
            id,
            protocol: if A::IS_V6 { 0 } else { kind as u32 },
        },
        piece: 0,
    };
    Ok(Step::Segment)
}

/// Reads the extension header of number `kind` at `offset`: the number of the next header in the
/// lowest byte, above [`IS_READ`], and from bit 16 on the header's length in bytes; of a fragment
/// header instead its fragment field as IPv4 has it, and from bit 32 on the identification.
#[inline(always)]
pub fn extension<F: Frame>(frame: &F, offset: usize, kind: u8) -> u64 {
    let Some(words) = frame.load::<[u32; 2]>(offset) else {
        return 0;
    };
    let first = u32::from_be(words[0]);
    let next = (first >> 24) as u64 | IS_READ;
    match kind {
        extension::FRAGMENT => {
            // Offset, two reserved bits, more fragments (RFC 8200 4.5).
            let bits = (first & 0xffff) as u16;
            let field = bits >> 3 | if bits & 1 != 0 { MORE_FRAGMENTS } else { 0 };
            next | (field as u64) << 16 | (words[1] as u64) << 32
        }
        // With segments left it is on its way to another host (RFC 8200 4.4).
        extension::ROUTING if first & 0xff != 0 => 0,
        _ => next | (((first >> 16 & 0xff) as u64 + 1) * 8) << 16,
    }
}

/// Reads the ports of a packet that [`odd`] left in [`Work`](super::Work); those of later fragments
/// are what the first one said.
///
/// # Errors
/// The reason why the packet is dropped; the caller counts it.
#[inline(always)]
pub fn segment<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &mut F,
    tables: &T,
) -> Result<Step, Drop> {
    const PASS: Result<Step, Drop> = Ok(Step::Done(Verdict::Pass));
    let (Some(work), Some(config)) = (tables.work(), tables.config()) else {
        return PASS;
    };
    let packet = work.packet;
    let now = tables.now();
    let protocol = packet.protocol;
    // Of a packet that ends before its own headers do.
    let length = packet.transport_length::<A>();
    if length > packet.payload as usize {
        return PASS;
    }
    if work.fragment & FRAGMENT_OFFSET as u32 != 0 {
        work.packet.transport = 0;
        let Some(first) = tables.fragmented(&work.held.datagram) else {
            return Ok(early(tables, &work.key));
        };
        if !is_recent(config, now, first.seen) {
            return Ok(early(tables, &work.key));
        }
        // What overlaps the TCP header may change it (RFC 3128).
        let offset = (work.fragment & FRAGMENT_OFFSET as u32) as usize * 8;
        if first.protocol == protocol::TCP as u32 && offset < size_of::<Tcp>() {
            return Err(Drop::TinyFragment);
        }
        work.key.src_port = first.src_port;
        work.key.dst_port = first.dst_port;
        work.key.protocol = first.protocol;
        work.packet.protocol = first.protocol as u8;
        return Ok(Step::Slow);
    }
    let is_first = work.fragment != 0;
    let header = if packet.is_udp() {
        size_of::<Udp>()
    } else {
        size_of::<Tcp>()
    };
    if is_first && length < header {
        return match is_vip(tables, &work.key) {
            true => Err(Drop::TinyFragment),
            false => PASS,
        };
    }
    let Some(ports) = frame.load::<[Be16; 2]>(packet.transport()) else {
        return PASS;
    };
    work.key.src_port = ports[0];
    work.key.dst_port = ports[1];
    let is_wanted = parse::is_wanted(tables, protocol, ports);
    let flags = match is_wanted {
        true => parse::segment::<A, F>(frame, protocol, packet.transport(), length, is_first),
        false => None,
    };
    let goes_on = match flags {
        Some(flags) => {
            work.packet.flags = flags;
            Ok(Step::Slow)
        }
        None => PASS,
    };
    // Whatever goes to a VIP, also what no service wants: the later fragments, which do not say so
    // themselves, wait for this.
    let is_noted =
        is_first && (is_vip(tables, &work.key) || is_wanted && is_known(tables, &work.key));
    if !is_noted {
        return goes_on;
    }
    tables.insert_fragmented(
        &work.held.datagram,
        &Fragmented {
            src_port: work.key.src_port,
            dst_port: work.key.dst_port,
            protocol: protocol as u32,
            seen: now,
            reserved: 0,
        },
    );
    // After the entry: whoever puts a fragment aside looks for the entry once more behind that.
    let waits = tables
        .held(&work.held)
        .is_some_and(|held| is_recent(config, now, held.seen));
    if waits {
        return Ok(Step::Release);
    }
    goes_on
}

/// Whether packets of this tuple are of a connection.
#[inline(always)]
fn is_known<A: Family, T: FamilyTables<A>>(tables: &T, key: &FlowKey<A>) -> bool {
    tables.flow(key).is_some()
        || tables.handshake(key).is_some()
        || tables.recalls() && tables.recall(key)
}

/// What becomes of a later fragment whose datagram's first is not known.
#[inline(always)]
fn early<A: Family, T: FamilyTables<A>>(tables: &T, key: &FlowKey<A>) -> Step {
    let is_ours = key.protocol == protocol::TCP as u32 || key.protocol == protocol::UDP as u32;
    if is_ours && is_vip(tables, key) {
        Step::Hold
    } else {
        Step::Done(Verdict::Pass)
    }
}

/// Whether a packet goes to an address on which any service listens: that stands among the services
/// under port 0 and the family's ICMP.
#[inline(always)]
fn is_vip<A: Family, T: FamilyTables<A>>(tables: &T, key: &FlowKey<A>) -> bool {
    let address = ServiceKey::new(key.dst, Be16(0), A::ICMP);
    tables.service(&address).is_some()
}

/// Whether fragment number `piece` of the datagram in [`Work`](super::Work) may be put aside there;
/// it is noted in [`Work::held`](super::Work::held). Behind a subprogram, for the verifier walks
/// every round of a loop.
#[inline(always)]
pub fn piece_is_free<A: Family, T: FamilyTables<A>>(tables: &T, piece: u32) -> bool {
    let (Some(work), Some(config)) = (tables.work(), tables.config()) else {
        return false;
    };
    work.held.piece = piece;
    match tables.held(&work.held) {
        Some(held) => !is_recent(config, Tables::now(tables), held.seen),
        None => true,
    }
}
