use core::cell::Cell;

use super::address::{Address, Be16};
use super::key::FlowKey;

/// Bits of [`Flow::state`].
pub mod flow_state {
    /// The entry translates the backend's packets to the client, not the client's to the backend.
    pub const REVERSE: u32 = 1 << 0;
    /// The client is no stranger, i.e. the entry lives in the `FLOWS` tables.
    pub const ESTABLISHED: u32 = 1 << 1;
    /// A FIN from the client was seen. Kept equal in both directions' entries.
    pub const CLIENT_FIN: u32 = 1 << 2;
    /// A FIN from the backend was seen.
    pub const BACKEND_FIN: u32 = 1 << 3;
    /// A RST from either side was the last that was seen.
    pub const RESET: u32 = 1 << 4;
    /// The backend answered. Kept equal in both directions' entries.
    pub const ANSWERED: u32 = 1 << 5;
    /// The connection did not begin here: its first packet was no SYN.
    pub const MIDDLE: u32 = 1 << 6;

    /// Nothing more is to come: both sides closed, or one reset.
    #[inline(always)]
    pub const fn is_closed(state: u32) -> bool {
        const FINS: u32 = CLIENT_FIN | BACKEND_FIN;
        state & RESET != 0 || state & FINS == FINS
    }

    /// At least one side began to close.
    #[inline(always)]
    pub const fn is_closing(state: u32) -> bool {
        state & (RESET | CLIENT_FIN | BACKEND_FIN) != 0
    }
}

/// Where a flow's packets go next, good while `epoch` equals [`super::Config::epoch`].
///
/// `epoch` 0 is never current, so a zeroed next hop is "not resolved".
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NextHop {
    pub ifindex: u32,
    pub epoch: u32,
    /// Destination and source MAC, the first 12 bytes of the frame. Words, because the verifier
    /// wants aligned accesses where copies of this pass over the stack.
    pub macs: [u32; 3],
    /// 1 if XDP may redirect straight into the device, 0 if the kernel must transmit.
    pub direct: u32,
}

/// One direction of a connection: key tuple → this tuple. Both directions are alike.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct Flow<A> {
    pub src: A,
    pub dst: A,
    pub src_port: Be16,
    pub dst_port: Be16,
    /// What the new addresses add to a one's-complement checksum, folded (RFC 1624).
    pub address_delta: u16,
    /// What the new ports add, likewise.
    pub port_delta: u16,
    /// Index into the backend array.
    pub slot: u32,
    /// Must equal [`super::Backend::generation`], else the slot was given to another backend.
    pub generation: u32,
    pub next_hop: Cell<NextHop>,
    /// Jiffies of the last packet, low 32 bits.
    pub last_seen: Cell<u32>,
    /// Bits of [`flow_state`].
    pub state: Cell<u32>,
    /// Jiffies of the first packet, low 32 bits.
    pub created: u32,
    /// In a handshake that was answered: the acknowledgement number, in host byte order, by which
    /// the client shows that it got the answer.
    pub expected: Cell<u32>,
}

impl<A: Address> Flow<A> {
    /// Key under which the other direction of this connection stands.
    #[inline(always)]
    pub const fn opposite(&self, protocol: u8) -> FlowKey<A> {
        FlowKey::new(self.dst, self.dst_port, self.src, self.src_port, protocol)
    }
}
