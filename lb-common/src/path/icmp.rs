//! ICMP: errors about balanced connections, and echo requests to service addresses.

use core::mem::offset_of;

use super::echo;
use super::family::{Header, Rewrite};
use super::parse::{self, Packet};
use super::translate::{self, To};
use super::wire::{Ethernet, Icmp, Tcp, Udp, tcp};
use super::{Covered, Delta, Family, FamilyTables, Frame, Step, Sum, Verdict, Work};
use crate::abi::{Address, Be16, Drop, Flow, FlowKey, backend_state, flow_state, protocol};

/// Bytes of the quoted transport header that every error has (RFC 792, RFC 1812 4.3.2.3).
const QUOTED: usize = 8;

/// Bytes up to the end of what may be written: Ethernet, an IP header with options, ICMP, a quoted
/// IP header with options, and the quoted checksum of TCP.
const HEADERS: usize = 14 + 60 + size_of::<Icmp>() + 60 + size_of::<Tcp>();

/// Bit of [`Work::network`](super::Work::network): the message leaves the node by way of its stack.
const DEPARTS: u32 = 1 << 31;

/// An ICMP message whole in its frame.
#[derive(Clone, Copy)]
pub(super) struct Message<A> {
    /// Offset of the IP header, and what stands there.
    pub(super) network: usize,
    pub(super) header: Header<A>,
    departs: bool,
}

impl<A> Message<A> {
    /// Where the message begins.
    #[inline(always)]
    pub(super) fn offset(&self) -> usize {
        self.network + self.header.length
    }

    /// Bytes from there to its end.
    #[inline(always)]
    pub(super) fn length(&self) -> usize {
        self.header.total_length.saturating_sub(self.header.length)
    }
}

/// Whether a packet that is neither TCP nor UDP is one for [`icmp`]: an error or an echo request.
/// All others pass with no more said, neighbour discovery above all.
#[inline(always)]
pub(super) fn is_wanted<A: Family, F: Frame>(
    frame: &F,
    network: usize,
    header: &Header<A>,
) -> bool {
    if header.protocol != A::ICMP {
        return false;
    }
    let kind = frame.load::<u8>(network + header.length);
    kind.is_some_and(|kind| kind == A::ECHO.0 || A::is_error(kind))
}

/// Leaves the place of an ICMP error that leaves the node, of a backend on it perhaps, to [`icmp`].
#[inline(always)]
pub(super) fn depart<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &F,
    tables: &T,
    network: usize,
    header: &Header<A>,
) -> Step {
    const PASS: Step = Step::Done(Verdict::Pass);
    if header.fragment != 0 || header.protocol != A::ICMP {
        return PASS;
    }
    let kind = frame.load::<u8>(network + header.length);
    let (Some(work), Some(true)) = (tables.work(), kind.map(A::is_error)) else {
        return PASS;
    };
    work.network = network as u32 | DEPARTS;
    Step::Icmp
}

/// Answers an echo request to a service, or passes an ICMP error about a balanced connection on to
/// whom it concerns; [`super::fast`] left its place in [`Work`](super::Work). Everything else passes
/// untouched.
///
/// # Errors
/// The reason why the packet is dropped; the caller counts it.
#[inline(always)]
pub fn icmp<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &mut F,
    tables: &T,
) -> Result<Step, Drop> {
    const PASS: Result<Step, Drop> = Ok(Step::Done(Verdict::Pass));
    let Some(message) = message(frame, tables) else {
        return PASS;
    };
    match frame.load::<[u8; 2]>(message.offset()) {
        Some([kind, 0]) if kind == A::ECHO.0 && !message.departs => {
            echo::reply(frame, tables, &message).map(Step::Done)
        }
        Some([kind, _]) if A::is_error(kind) => error(frame, tables, &message),
        _ => PASS,
    }
}

/// The message in an untagged frame for one host.
#[inline(always)]
fn message<A: Family, F: Frame, T: FamilyTables<A>>(frame: &F, tables: &T) -> Option<Message<A>> {
    let place = tables.work()?.network;
    let network = place as usize & parse::OFFSETS as usize;
    // Tagged frames are answered on their VLAN device.
    if network != size_of::<Ethernet>() || parse::is_to_group(frame)? {
        return None;
    }
    let header = A::read(frame, network)?;
    let message = Message {
        network,
        header,
        departs: place & DEPARTS != 0,
    };
    let is_whole = network + header.total_length <= frame.length();
    (is_whole && message.length() >= size_of::<Icmp>()).then_some(message)
}

/// The packet that an ICMP error is about.
#[derive(Clone, Copy)]
struct Quote {
    /// Offsets of its IP header and of its transport header.
    network: usize,
    transport: usize,
    /// Offset of its TCP or UDP checksum, 0 if the quote ends before that.
    checksum: usize,
    protocol: u8,
}

/// Translates an ICMP error as the packets of the flow that answer the quoted packet, header and
/// quote: to its receiver it is about what it sent itself. It changes nothing of the flow, because
/// anybody can forge one.
#[inline(always)]
fn error<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &mut F,
    tables: &T,
    message: &Message<A>,
) -> Result<Step, Drop> {
    const PASS: Result<Step, Drop> = Ok(Step::Done(Verdict::Pass));
    // Nobody is told of an error's end; that is the kernel's business too.
    if message.header.ttl <= 1 || frame.pull(HEADERS).is_none() {
        return PASS;
    }
    let Some(quote) = quote(frame, tables, message) else {
        return PASS;
    };
    let (Some(work), Some(config)) = (tables.work(), tables.config()) else {
        return PASS;
    };
    let key = &work.opposite;
    if tables.recalls() && tables.flow(key).is_none() {
        tables.recall(key);
    }
    let found = match tables.flow(key) {
        Some(flow) => Some(flow),
        None => tables.handshake(key),
    };
    let Some(flow) = found.filter(|flow| is_alive(tables, flow)) else {
        return PASS;
    };
    let room = (&mut work.query, &mut work.hop);
    let to = translate::way(frame, tables, config, key, flow, message.departs, room)?;
    if flow.state.get() & flow_state::DIRECT != 0 {
        // What the node says of a backend's own packets is not for that backend.
        if message.departs {
            return PASS;
        }
        return direct(frame, work, message, flow, to);
    }
    // To the client the error comes from the service, as the answers do. To the backend it comes
    // from the router that sent it, if the backend knows the client's real address.
    let is_hidden = flow.state.get() & flow_state::REVERSE != 0 || differ(flow.src, key.src);
    let header = &message.header;
    let src = if is_hidden { flow.src } else { header.src };
    let sum = |src: A, dst: A| Sum::default().address(src).address(dst);
    let header = Rewrite {
        src,
        dst: flow.dst,
        protocol: A::ICMP,
        payload: message.length(),
        ttl: header.ttl,
        forwarded: to.forwards(),
        checksum: header.checksum,
        delta: sum(header.src, header.dst).difference(sum(src, flow.dst)),
    };
    write(frame, message, flow, &quote, &header)
        .and_then(|()| translate::link(frame, to, &work.hop))
        .ok_or(Drop::FrameAccess)?;
    Ok(Step::Done(translate::leave(frame, to, &work.hop)))
}

/// Sends an error about the answer of a backend that answers itself the way of the flow's packets,
/// as it is.
#[inline(always)]
fn direct<A: Family, F: Frame>(
    frame: &mut F,
    work: &mut Work<A>,
    message: &Message<A>,
    flow: &Flow<A>,
    to: To,
) -> Result<Step, Drop> {
    let header = &message.header;
    let packet = Packet {
        network: message.network as u16,
        transport: message.offset() as u16,
        payload: (header.total_length - A::HEADER) as u16,
        header_checksum: header.checksum,
        protocol: header.protocol,
        ttl: header.ttl,
        // Neither begins nor ends anything.
        flags: tcp::ACK,
        next_header: header.protocol,
        marks: 0,
    };
    // Nobody is told of an error's end (RFC 1122 section 3.2.2).
    // The stack knows the MTU of its way. No branch: it would double what the verifier walks behind it.
    let mtu = work.hop.mtu() | (to as u32 / To::Stack as u32).wrapping_neg();
    if translate::exceeds::<A, F>(frame, &packet, mtu) {
        return Err(Drop::TooBig);
    }
    if flow.state.get() & flow_state::TUNNEL != 0 {
        work.key = work.opposite;
        work.packet = packet;
        return Ok(translate::tunnel(work, flow.slot, to));
    }
    A::age(frame, message.network, header.ttl, header.checksum)
        .and_then(|()| translate::link(frame, to, &work.hop))
        .ok_or(Drop::FrameAccess)?;
    Ok(Step::Done(translate::leave(frame, to, &work.hop)))
}

/// Finds the quoted packet, if it may be of a balanced connection and the error goes to who sent
/// it. Leaves the tuple that answers it in [`Work::opposite`](super::Work::opposite).
#[inline(always)]
fn quote<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &F,
    tables: &T,
    message: &Message<A>,
) -> Option<Quote> {
    let network = message.offset() + size_of::<Icmp>();
    let header = A::read_quoted(frame, network)?;
    if header.protocol != protocol::TCP && header.protocol != protocol::UDP {
        return None;
    }
    let before = size_of::<Icmp>() + header.length;
    let quoted = message.length().checked_sub(before)?;
    if quoted < QUOTED || header.src != message.header.dst {
        return None;
    }
    let transport = network + header.length;
    let [src_port, dst_port] = frame.load::<[Be16; 2]>(transport)?;
    // Of an answer to the quoted packet these are the ports the other way round.
    if !parse::is_wanted(tables, header.protocol, [dst_port, src_port]) {
        return None;
    }
    tables.work()?.opposite =
        FlowKey::new(header.dst, dst_port, header.src, src_port, header.protocol);
    let checksum = match header.protocol {
        protocol::UDP => offset_of!(Udp, checksum),
        _ => offset_of!(Tcp, checksum),
    };
    let has_checksum = quoted >= checksum + size_of::<u16>();
    Some(Quote {
        network,
        transport,
        checksum: if has_checksum {
            transport + checksum
        } else {
            0
        },
        protocol: header.protocol,
    })
}

/// In one branch: each would double what the verifier walks behind it.
#[inline(always)]
fn differ<A: Address>(a: A, b: A) -> bool {
    let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.to_words(), b.to_words());
    (a0 ^ b0) | (a1 ^ b1) | (a2 ^ b2) | (a3 ^ b3) != 0
}

/// Whether the flow's slot is still its backend's.
#[inline(always)]
fn is_alive<A: Family, T: FamilyTables<A>>(tables: &T, flow: &Flow<A>) -> bool {
    tables.backend(flow.slot).is_some_and(|backend| {
        backend.generation == flow.generation && backend.state != backend_state::FREE
    })
}

/// Writes both headers, the quoted ports, and all checksums.
#[inline(always)]
fn write<A: Family, F: Frame>(
    frame: &mut F,
    message: &Message<A>,
    flow: &Flow<A>,
    quote: &Quote,
    header: &Rewrite<A>,
) -> Option<()> {
    // The quoted packet answers those of the flow: the same words, in other places.
    let (addresses, ports) = (Delta(flow.address_delta), Delta(flow.port_delta));
    let quoted = A::rewrite_quoted(frame, quote.network, flow.dst, flow.src, addresses)?;
    let sides = [flow.dst_port, flow.src_port];
    frame.store(quote.transport, &sides, Covered::Neutral)?;
    let mut body = quoted.and(ports);
    if quote.checksum != 0 {
        let found = frame.load::<u16>(quote.checksum)?;
        let is_udp = quote.protocol == protocol::UDP;
        if !is_udp || found != 0 {
            let moved = addresses.and(ports);
            let repaired = match moved.apply(found) {
                0 if is_udp => 0xffff,
                repaired => repaired,
            };
            frame.store(quote.checksum, &repaired, Covered::Neutral)?;
            body = body.and(moved.inverse());
        }
    }
    A::rewrite(frame, message.network, header)?;
    frame.repair_transport(
        message.offset() + offset_of!(Icmp, checksum),
        A::icmp_delta(header.delta),
        body,
        false,
    )
}
