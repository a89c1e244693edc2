//! The packet path's decisions: parse → flow → select → translate.
//!
//! Generic over [`Frame`] (where a packet lives) and [`Tables`] (what the path reads and writes),
//! and over the address family, so that XDP, TC and the tests' byte slice run the same code.
//! A hook calls [`network`], then [`fast`], and only where that says so [`slow`], [`recall`],
//! [`admit`], [`allocate`], [`open`], [`encapsulate`], [`answer`] and [`icmp`], which find the packet in
//! [`Work`]: the parts share neither registers nor stack, which keeps the verifier's work and the established packet's
//! cost small.

mod active;
mod admit;
mod allocate;
mod checksum;
mod depart;
mod echo;
mod encapsulate;
mod family;
mod fast;
mod icmp;
mod odd;
mod open;
mod parse;
mod recall;
mod reject;
mod select;
mod slow;
mod translate;
pub mod wire;

use core::cell::Cell;

use crate::abi::{
    Active, Address, Admission, Affinity, AffinityKey, Backend, Be16, Bucket, Config, Drop, Flow,
    FlowKey, FragmentKey, Fragmented, Held, HeldKey, NextHop, Pod, RateKey, Service, ServiceKey,
    SourceKey,
};

pub use active::count_active;
pub use admit::admit;
pub use allocate::{Attempt, Candidate, allocate, take_source};
pub use checksum::{Delta, Sum, sum};
pub use depart::depart;
pub use encapsulate::encapsulate;
pub use family::Family;
pub(crate) use family::{Ipv4Tail, Ipv6Middle, Ipv6Tail};
pub use fast::fast;
pub use icmp::icmp;
pub use odd::{extension, is_odd, is_recent, odd, piece_is_free, segment};
pub use open::open;
pub use parse::{Network, Packet, network};
pub use recall::{Recalled, bring, recall};
pub use reject::answer;
pub use select::draw;
pub use slow::{forget, has_place, is_whole, slow};

/// What becomes of a packet, if it is not dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not ours: untouched to the kernel.
    Pass,
    /// Out of the device it came in by.
    Transmit,
    /// Out of another device.
    Redirect { ifindex: u32 },
    /// Translated, but the kernel must send it.
    Kernel { how: Handover, ifindex: u32 },
}

/// How the kernel is to send a translated packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handover {
    /// Through its own stack: the address is local, or the route is no plain neighbour. No device.
    Stack,
    /// Out of the device, whose neighbour has to be resolved.
    Resolve,
    /// Out of the device; the Ethernet header is complete.
    Output,
}

/// How far a part of the path got with a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Done(Verdict),
    /// A fragment or a packet with extension headers: [`odd`].
    Odd,
    /// Behind [`odd`]: [`segment`].
    Segment,
    /// A later fragment that came before its datagram's first, which stands in [`Work::held`]: to
    /// be put aside where the hook can do so, else left to the kernel.
    Hold,
    /// A first fragment for which others wait: those go on behind it, as if all came again.
    Release,
    /// The packet needs [`slow`]; it was not touched.
    Slow,
    /// The packet is of no known flow, but tables are being replaced: [`recall`].
    Recall,
    /// The packet is of no known flow: [`admit`].
    Admit,
    /// A backend was drawn for the packet, whose answers need an entry: [`allocate`].
    Allocate,
    /// The packet begins a connection: [`open`].
    Open,
    /// The packet goes into a tunnel by [`encapsulate`].
    Encapsulate,
    /// The sender is to be told by [`answer`] that its packet goes nowhere.
    Answer,
    /// An ICMP error or an echo request, which [`icmp`] looks at; it was not touched.
    Icmp,
}

/// What the routing table says about a destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// A plain neighbour; the next hop's epoch is left to the path.
    Neighbour,
    /// Device and link of the next hop are known, its MAC is not.
    Unresolved,
    /// Not for a plain neighbour: local, tunnel, forwarding off.
    Stack,
    /// Unreachable, prohibit or blackhole.
    Refused,
}

/// A question to the routing table.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Query {
    /// 1 for IPv6.
    pub v6: u32,
    /// Of the packet's IP header.
    pub protocol: u32,
    /// Source and destination; 0 in a tunnel.
    pub ports: [Be16; 2],
    /// Address words ([`Address::to_words`]).
    pub src: [u32; 4],
    pub dst: [u32; 4],
}

/// Whether a store changes the sum of the bytes that a hardware checksum over the packet covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Covered {
    /// It does not, or a checksum stored with it makes up for it (IPv4 header), or the bytes lie
    /// outside (Ethernet).
    Neutral,
    /// It does, and nothing inside the packet makes up for it (IPv6 header).
    Changed,
}

/// A packet, from its Ethernet header on. Offsets are in bytes. `None` means out of bounds.
pub trait Frame {
    /// Bytes in the frame, headers included; of a frame in several buffers, those in the first.
    fn length(&self) -> usize;

    /// Bytes in all the frame's buffers.
    fn whole_length(&self) -> usize {
        self.length()
    }

    /// Index of the device the packet came in by.
    fn ingress(&self) -> u32;

    /// Makes the first `bytes` of the packet readable, as far as it has so many.
    fn reach(&mut self, bytes: usize);

    /// [`extension`], which see: apart, so that the verifier walks it once and not for each header.
    fn extension(&self, offset: usize, kind: u8) -> u64;

    /// [`sum`], which see: apart for the same reason.
    fn sum(&self, offset: usize, bytes: usize) -> u64;

    fn load<T: Pod>(&self, offset: usize) -> Option<T>;

    fn store<T: Pod>(&mut self, offset: usize, value: &T, covered: Covered) -> Option<()>;

    /// Repairs the TCP, UDP or ICMP checksum field at `offset`: `addresses` moves the pseudo-header,
    /// `ports` the segment's own bytes. A UDP checksum of 0 over IPv4 stays 0.
    fn repair_transport(
        &mut self,
        offset: usize,
        addresses: Delta,
        ports: Delta,
        udp: bool,
    ) -> Option<()>;

    /// Whether the TCP or UDP checksum field at `offset` holds the pseudo-header's sum only, because
    /// who sends the packet is to sum up the rest (`CHECKSUM_PARTIAL` of a socket buffer).
    fn is_checksum_left(&mut self, offset: usize) -> Option<bool>;

    /// Makes the first `length` bytes accessible, or as many as there are.
    fn pull(&mut self, length: usize) -> Option<()>;

    /// Bytes of transport payload that each packet will have into which the device splits this
    /// frame; 0 if it is one packet.
    fn segment(&self) -> u32;

    /// Makes room of `by` bytes between the Ethernet and the IP header, for another IP header,
    /// one of IPv6 if `v6`. What the Ethernet header holds afterwards is undefined.
    fn wrap(&mut self, by: usize, v6: bool) -> Option<()>;

    /// Makes room of `by` bytes in front of the packet; offsets count from the new beginning.
    fn grow_head(&mut self, by: usize) -> Option<()>;

    /// Cuts or extends the packet to `length` bytes.
    fn set_length(&mut self, length: usize) -> Option<()>;
}

/// An entry could not be inserted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InsertError {
    Exists,
    Full,
}

/// What the path reads and writes beside the packet. References stay good for one packet.
pub trait Tables {
    /// A selection table. It stays whole while it is held, even if another takes its place.
    type Table;

    fn config(&self) -> Option<&Config>;

    /// Jiffies, low 32 bits.
    fn now(&self) -> u32;

    /// Whether flows may stand in former tables.
    fn recalls(&self) -> bool;

    fn random(&self) -> u32;

    /// One word of the port bitmaps, 0 if the index is out of range.
    fn port_word(&self, index: u32) -> u64;

    fn backend(&self, slot: u32) -> Option<&Backend>;

    fn table(&self, table: u32) -> Option<&Self::Table>;

    /// Word of a selection table; [`crate::abi::TABLE_HEADER`] says what word 0 is.
    fn table_entry(&self, table: &Self::Table, index: u32) -> Option<u32>;

    /// [`draw`], which see.
    fn draw(&self, table: u32, service: u32, place: u32) -> Result<u32, Drop>;

    /// Whom the service of this number lets in.
    fn admission(&self, service: u32) -> Option<&Admission>;

    /// The service's bucket of new connections.
    fn rate(&self, service: u32) -> Option<&Bucket>;

    /// A client's bucket; a full one where it has none yet.
    fn source_rate(&self, key: &RateKey, full: &Bucket) -> Option<&Bucket>;

    /// Adds one to a bucket's word, so that no other CPU's addition is lost.
    fn take_token(&self, bucket: &Bucket);

    /// Element of `ACTIVE`.
    fn active(&self, index: u32) -> Option<&Active>;

    /// Element of `COUNTED`, 0 if the index is out of range.
    fn counted(&self, index: u32) -> u32;

    /// Adds one to a count of `ACTIVE`, so that no other CPU's addition is lost.
    fn add(&self, count: &Cell<u32>);

    /// [`count_active`], which see.
    fn count_active(&self, slot: u32, generation: u32, before: u32, after: u32);

    /// Jiffies of the last packet that found no room in the family's table of established flows; 0 if
    /// none ever did.
    fn last_full(&self, v6: bool) -> Option<&Cell<u32>>;

    /// This CPU's round-robin cursor of a service, raised by one after it is read.
    fn cursor(&self, service: u32) -> u32;

    /// Adds one packet of `bytes` to the slot's counters.
    fn count_packet(&self, slot: u32, reverse: bool, bytes: u64);

    fn count_connection(&self, slot: u32, milestone: Milestone);

    fn count_drop(&self, reason: Drop);

    /// Takes one of `limit` that this CPU has of `budget` in `period`: a second, unless the budget
    /// says otherwise.
    fn take(&self, budget: Budget, period: u32, limit: u32) -> bool;

    /// The way of a packet that came in by device `ingress`. Leaves the next hop in `hop`, zeroes
    /// if there is none.
    fn route(&self, ingress: u32, query: &Query, hop: &mut NextHop) -> Route;
}

/// What the parts behind [`fast`] work on and hand on. Too much for a BPF stack of 512 bytes when
/// addresses are IPv6.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct Work<A> {
    /// Tuple of the packet.
    pub key: FlowKey<A>,
    /// Tuple of the packets that answer it.
    pub opposite: FlowKey<A>,
    /// Tuple of another connection that is in the way.
    pub other: FlowKey<A>,
    /// An entry to be inserted.
    pub flow: Flow<A>,
    pub packet: Packet,
    /// Offset of the IP header of an ICMP message, of which nothing else stands here.
    pub network: u32,
    /// Where this fragment belongs, as bits of IPv4's fragment field; 0 for a whole packet.
    pub fragment: u32,
    /// The datagram of a fragment, and the place among those that wait.
    pub held: HeldKey<A>,
    /// What [`answer`] is to tell: 0 that nobody is there, else that the packet exceeds this MTU.
    pub mtu: u32,
    /// Of the drawn backend.
    pub slot: u32,
    /// How packets get to it, see [`crate::abi::forwarding`].
    pub forwarding: u32,
    /// Whether the connection is entered: 0 or 1.
    pub is_kept: u32,
    /// For [`encapsulate`]: how the outer packet leaves.
    pub to: u32,
    pub hop: NextHop,
    pub query: Query,
}

/// What the path counts of a connection's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Milestone {
    Begun,
    Established,
    Refused,
}

/// What a CPU does no more than so many times in a period.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Budget {
    /// Answers in the name of others.
    Answers = 0,
    /// Entries for SYNs that need none.
    Entries = 1,
    /// Places in the flow tables for UDP flows, in the time between two counts of them:
    /// [`Config::udp_places`].
    UdpPlaces = 2,
}

impl Budget {
    /// Elements of the `BUDGETS` array.
    pub const COUNT: u32 = 3;
}

/// The tables of one address family.
pub trait FamilyTables<A: Address>: Tables {
    fn service(&self, key: &ServiceKey<A>) -> Option<&Service>;

    fn flow(&self, key: &FlowKey<A>) -> Option<&Flow<A>>;
    /// Leaves an entry of the same key as it is.
    fn insert_flow(&self, key: &FlowKey<A>, flow: &Flow<A>) -> Result<(), InsertError>;
    fn remove_flow(&self, key: &FlowKey<A>);

    fn handshake(&self, key: &FlowKey<A>) -> Option<&Flow<A>>;
    fn insert_handshake(
        &self,
        key: &FlowKey<A>,
        flow: &Flow<A>,
        overwrite: bool,
    ) -> Result<(), InsertError>;
    /// Whether it was there.
    fn remove_handshake(&self, key: &FlowKey<A>) -> bool;

    /// Moves the entry of `key`, and that of the other direction, from former tables; see [`bring`].
    /// False if there is none.
    fn recall(&self, key: &FlowKey<A>) -> bool;

    /// Memory for [`FamilyTables::recall`] and [`FamilyTables::is_whole`] off the stack.
    #[expect(
        clippy::mut_from_ref,
        reason = "per-CPU memory, lent to one borrower at a time"
    )]
    fn recalled(&self) -> Option<&mut Recalled<A>>;

    /// Reads the entry of `key` in the former table of flows, as one of today's layout.
    fn former_flow(&self, key: &FlowKey<A>, flow: &mut Flow<A>) -> bool;
    fn remove_former_flow(&self, key: &FlowKey<A>);

    /// Reads that in the former table of handshakes.
    fn former_handshake(&self, key: &FlowKey<A>, flow: &mut Flow<A>) -> bool;
    fn remove_former_handshake(&self, key: &FlowKey<A>);

    /// Value of the longest prefix that covers the client in `key`.
    fn listed(&self, key: &SourceKey<A>) -> Option<u32>;

    fn affinity(&self, key: &AffinityKey<A>) -> Option<&Affinity>;
    fn set_affinity(&self, key: &AffinityKey<A>, affinity: &Affinity);

    /// What the first fragment of a datagram told.
    fn fragmented(&self, key: &FragmentKey<A>) -> Option<&Fragmented>;
    /// Overwrites an entry of the same key. The least recently used give way.
    fn insert_fragmented(&self, key: &FragmentKey<A>, value: &Fragmented);

    /// A fragment that waits.
    fn held(&self, key: &HeldKey<A>) -> Option<&Held>;

    /// [`is_whole`], which see.
    fn is_whole(&self, key: &FlowKey<A>) -> bool;

    /// [`has_place`], which see.
    fn has_place(&self, protocol: u8) -> bool;

    /// [`forget`], which see.
    fn forget(&self);

    /// [`take_source`], which see.
    fn take_source(&self, candidate: Candidate) -> Attempt;

    /// One of the node addresses that SNAT takes, from 0.
    fn source(&self, number: u32) -> Option<A>;

    /// Whether a socket of the node's own would get packets of this tuple.
    fn has_socket(&self, key: &FlowKey<A>) -> bool;

    /// Memory off the stack, the same for all parts of the path that a packet takes. Whoever asks
    /// is done with what was lent before; [`FamilyTables::take_source`] asks.
    #[expect(
        clippy::mut_from_ref,
        reason = "per-CPU memory, lent to one part of the path at a time"
    )]
    fn work(&self) -> Option<&mut Work<A>>;
}

/// Fast path, then slow path where needed: what a hook does, for callers without a verifier. What a
/// hook could put aside is left to the kernel.
pub fn process<F, T>(frame: &mut F, tables: &T) -> Result<Verdict, Drop>
where
    F: Frame,
    T: FamilyTables<crate::abi::V4> + FamilyTables<crate::abi::V6>,
{
    walk(frame, tables).map(verdict)
}

/// As [`process`], up to where a hook could put the packet aside: that is [`Step::Hold`] and
/// [`Step::Release`], everything else [`Step::Done`].
pub fn walk<F, T>(frame: &mut F, tables: &T) -> Result<Step, Drop>
where
    F: Frame,
    T: FamilyTables<crate::abi::V4> + FamilyTables<crate::abi::V6>,
{
    match network(frame) {
        Network::Ipv4(offset) => {
            let step = fast::<crate::abi::V4, F, T>(frame, tables, offset)?;
            family::<crate::abi::V4, F, T>(frame, tables, offset, step)
        }
        Network::Ipv6(offset) => {
            let step = fast::<crate::abi::V6, F, T>(frame, tables, offset)?;
            family::<crate::abi::V6, F, T>(frame, tables, offset, step)
        }
        Network::Foreign => Ok(Step::Done(Verdict::Pass)),
    }
}

/// As [`process`], for a packet that leaves the node by way of its stack.
pub fn process_departing<F, T>(frame: &mut F, tables: &T) -> Result<Verdict, Drop>
where
    F: Frame,
    T: FamilyTables<crate::abi::V4> + FamilyTables<crate::abi::V6>,
{
    let step = match network(frame) {
        Network::Ipv4(offset) => {
            let step = depart::<crate::abi::V4, F, T>(frame, tables, offset);
            family::<crate::abi::V4, F, T>(frame, tables, offset, step)
        }
        Network::Ipv6(offset) => {
            let step = depart::<crate::abi::V6, F, T>(frame, tables, offset);
            family::<crate::abi::V6, F, T>(frame, tables, offset, step)
        }
        Network::Foreign => Ok(Step::Done(Verdict::Pass)),
    };
    step.map(verdict)
}

/// What is not put aside is left to the kernel.
fn verdict(step: Step) -> Verdict {
    match step {
        Step::Done(verdict) => verdict,
        _ => Verdict::Pass,
    }
}

fn family<A: Family, F: Frame, T: FamilyTables<A>>(
    frame: &mut F,
    tables: &T,
    offset: usize,
    mut step: Step,
) -> Result<Step, Drop> {
    if step == Step::Icmp {
        step = icmp::<A, F, T>(frame, tables)?;
    }
    if step == Step::Odd {
        step = odd::<A, F, T>(frame, tables, offset)?;
    }
    if step == Step::Segment {
        step = segment::<A, F, T>(frame, tables)?;
    }
    if step == Step::Slow {
        step = slow::<A, F, T>(frame, tables)?;
        if step == Step::Slow {
            step = slow::<A, F, T>(frame, tables)?;
        }
    }
    if step == Step::Recall {
        step = recall::<A, T>(tables);
        if step == Step::Slow {
            step = slow::<A, F, T>(frame, tables)?;
        }
    }
    if step == Step::Admit {
        step = admit::<A, T>(tables)?;
    }
    if step == Step::Allocate {
        step = allocate::<A, T>(tables)?;
    }
    if step == Step::Open {
        step = open::<A, F, T>(frame, tables)?;
    }
    if step == Step::Slow {
        step = slow::<A, F, T>(frame, tables)?;
    }
    let verdict = match step {
        Step::Done(verdict) => verdict,
        Step::Hold | Step::Release => return Ok(step),
        Step::Odd
        | Step::Segment
        | Step::Slow
        | Step::Recall
        | Step::Admit
        | Step::Allocate
        | Step::Open
        | Step::Icmp => Verdict::Pass,
        Step::Encapsulate => encapsulate::<A, F, T>(frame, tables)?,
        Step::Answer => answer::<A, F, T>(frame, tables)?,
    };
    Ok(Step::Done(verdict))
}
