/// Value of the one-element `CONFIG` array: what the packet path must know of the node.
/// Writer: the daemon.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// Raised on any route, neighbour, address or link change; cached next hops of another epoch
    /// are looked up anew. Never 0.
    pub epoch: u32,
    /// Jiffies per second.
    pub hz: u32,
    /// RST and ICMP answers per second and CPU.
    pub rejects_per_second: u32,
    /// SNAT ports: the first, and how many. Host byte order.
    pub snat_first: u16,
    pub snat_count: u16,
    /// Node addresses in `SOURCES` that SNAT may take, IPv4 and IPv6; 0: the backend's own
    /// [`super::Backend::source`].
    pub sources: [u32; 2],
    /// Entries for SYNs that need none, per second and CPU; see `path::admit`.
    pub entries_per_second: u32,
    /// UDP flows that each CPU may give a place in the flow tables from when this word was written
    /// until it is another one, times [`UDP_PLACE`]. The rest numbers the words, so that one that
    /// gives as many as the one before gives them anew.
    pub udp_places: u32,
}

/// One place in [`Config::udp_places`].
pub const UDP_PLACE: u32 = 1 << 8;

impl Config {
    /// Gives each CPU so many places for UDP flows, whatever it took before.
    pub fn give_udp_places(&mut self, places: u32) {
        let number = self.udp_places.wrapping_add(1) % UDP_PLACE;
        self.udp_places = places.min(u32::MAX / UDP_PLACE) * UDP_PLACE + number;
    }
}

/// Most node addresses of one family that SNAT takes.
pub const MAX_SOURCES: u32 = 16;

/// Elements of the `SOURCES` array: address words of IPv4, then of IPv6.
pub const SOURCE_SLOTS: u32 = 2 * MAX_SOURCES;

/// Element of `SOURCES` that holds the `number`th address, from 0.
#[inline(always)]
pub const fn source_slot(is_v6: bool, number: u32) -> u32 {
    is_v6 as u32 * MAX_SOURCES + number % MAX_SOURCES
}

/// Kinds of port bitmaps in the `PORTS` array.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum PortKind {
    /// Destination ports of TCP services.
    ServiceTcp = 0,
    ServiceUdp = 1,
    /// Source ports of TCP backends, i.e. of replies.
    BackendTcp = 2,
    BackendUdp = 3,
}

/// Elements (64-bit words) of the `PORTS` array.
pub const PORT_WORDS: u32 = 4 * 1024;

/// Element of `PORTS` and the bit in it that say whether `port` (host byte order) is in use.
#[inline(always)]
pub const fn port_bit(kind: PortKind, port: u16) -> (u32, u64) {
    (kind as u32 * 1024 + (port >> 6) as u32, 1 << (port & 63))
}
