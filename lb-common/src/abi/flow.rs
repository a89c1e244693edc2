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
    /// The reset was the backend's. Only beside [`RESET`].
    pub const BACKEND_RESET: u32 = 1 << 7;
    /// Packets keep addresses and ports, and go to the backend's own Ethernet address. Written
    /// when the flow begins, as [`TUNNEL`]; the service may be forwarded otherwise by now.
    pub const L2: u32 = 1 << 8;
    /// Packets go to the backend inside an IP header of the node's.
    pub const TUNNEL: u32 = 1 << 9;
    /// The backend answers the client itself: there is no entry of the other direction.
    pub const DIRECT: u32 = L2 | TUNNEL;

    /// Nothing more is to come: both sides closed, or one reset.
    #[inline(always)]
    pub const fn is_closed(state: u32) -> bool {
        const FINS: u32 = CLIENT_FIN | BACKEND_FIN;
        state & RESET != 0 || state & FINS == FINS
    }

    /// At least one side began to close.
    #[inline(always)]
    pub const fn is_closing(state: u32) -> bool {
        state & ENDS != 0
    }

    /// Any side's end.
    pub const ENDS: u32 = CLIENT_FIN | BACKEND_FIN | RESET;
    /// The backend's end.
    pub const BACKEND_ENDS: u32 = BACKEND_FIN | BACKEND_RESET;
}

/// [`NextHop::link`], and the values of the `DEVICES` map.
pub mod link {
    /// Bytes of the largest packet, IP header included; this value where it is not known.
    pub const MTU: u32 = 0xffff;
    /// XDP may redirect straight into the device; else the kernel must transmit.
    pub const REDIRECT: u32 = 1 << 31;
    /// The neighbour is a router, not the destination. Only of a next hop.
    pub const GATEWAY: u32 = 1 << 30;

    /// The word for a device.
    pub const fn new(mtu: u32, redirect: bool) -> u32 {
        let mtu = if mtu == 0 || mtu > MTU { MTU } else { mtu };
        mtu | if redirect { REDIRECT } else { 0 }
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
    /// Bits of [`link`]. A tunnel's overhead is off the MTU already.
    pub link: u32,
}

impl NextHop {
    /// Bytes of the largest packet that may be sent on, IP header included.
    #[inline(always)]
    pub const fn mtu(&self) -> u32 {
        self.link & link::MTU
    }

    #[inline(always)]
    pub const fn is_direct(&self) -> bool {
        self.link & link::REDIRECT != 0
    }

    #[inline(always)]
    pub const fn is_gateway(&self) -> bool {
        self.link & link::GATEWAY != 0
    }

    /// Makes this the way of packets that are to grow by `overhead` bytes.
    #[inline(always)]
    pub const fn narrow(&mut self, overhead: u32) {
        let mtu = self.mtu();
        if mtu != link::MTU {
            self.link = (self.link & !link::MTU) | mtu.saturating_sub(overhead);
        }
    }
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
