use core::array::from_fn;

use super::address::Address;

/// Values of [`Service::policy`]: how a new connection draws from the service's table.
pub mod policy {
    /// At the hash of the five-tuple.
    pub const MAGLEV: u8 = 0;
    /// At a per-CPU cursor.
    pub const ROUND_ROBIN: u8 = 1;
    /// At a random place.
    pub const RANDOM: u8 = 2;
}

/// Values of [`Service::forwarding`]: how a new connection's packets reach its backend.
pub mod forwarding {
    /// Addresses and ports are translated, in both directions.
    pub const NAT: u8 = 0;
    /// Direct server return: as they are, to the backend's Ethernet address.
    pub const DSR_L2: u8 = 1;
    /// Direct server return: inside an IP header (RFC 2003, RFC 2473).
    pub const DSR_IPIP: u8 = 2;
}

/// Values of [`Service::no_backend`]: what a client hears when no backend is eligible.
pub mod no_backend {
    /// TCP reset, ICMP port unreachable.
    pub const REJECT: u8 = 0;
    pub const DROP: u8 = 1;
}

/// Value of the `SERVICES4`/`SERVICES6` maps. Writer: the daemon.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Service {
    /// Number of the service; equal for all its listens. Index into `CURSORS`.
    pub id: u32,
    /// Index into `TABLES`: `2 × id` for IPv4 backends, `2 × id + 1` for IPv6 ones.
    pub table: u32,
    pub policy: u8,
    pub forwarding: u8,
    pub no_backend: u8,
    pub pad: u8,
    pub reserved: [u32; 5],
}

/// In a selection table (inner map of `TABLES`) word 0 holds M, the number of entries; words 1..=M
/// hold backend slots; the last word of the last element is for the table's [id](TABLE_IDS).
pub const TABLE_HEADER: u32 = 1;

/// Words per element of a selection table, a power of two: word `w` is in element
/// `w / TABLE_LANES`, lane `w % TABLE_LANES`. The kernel takes about as long to write an element of
/// 256 bytes as one of 4, and a table has thousands of words. Lanes between the slots and the id hold
/// [`NO_SLOT`].
pub const TABLE_LANES: u32 = 64;

/// Element of a selection table.
pub type TableChunk = [u32; TABLE_LANES as usize];

/// Tables of which `lbd_tables` tells the id at a time.
///
/// Each table holds the id that the kernel gave its map, for a program to tell which one stands where:
/// before Linux 6.8 a process that looks into `TABLES` waits until no program uses what it found, some
/// 20 ms each time (`bpf_map_copy_value`, kernel/bpf/syscall.c).
pub const TABLE_IDS: u32 = 64;

/// Elements of a selection table of so many entries.
#[inline(always)]
pub const fn table_elements(entries: u32) -> u32 {
    (TABLE_HEADER + entries) / TABLE_LANES + 1
}

/// The elements of a selection table of these backend slots, in a map of this id.
pub fn table_chunks(slots: &[u32], id: u32) -> impl ExactSizeIterator<Item = TableChunk> {
    let elements = table_elements(slots.len() as u32);
    let last = (elements * TABLE_LANES - 1) as usize;
    let word = move |number: usize| match number.checked_sub(TABLE_HEADER as usize) {
        None => slots.len() as u32,
        Some(_) if number == last => id,
        Some(entry) => slots.get(entry).copied().unwrap_or(NO_SLOT),
    };
    let lanes = TABLE_LANES as usize;
    (0..elements as usize).map(move |chunk| from_fn(|lane| word(chunk * lanes + lane)))
}

/// No slot: what an unused table entry holds.
pub const NO_SLOT: u32 = u32::MAX;

/// Values of [`Backend::state`].
pub mod backend_state {
    /// The slot is free.
    pub const FREE: u32 = 0;
    /// Takes new connections.
    pub const ACTIVE: u32 = 1;
    /// Existing connections go on, no new ones.
    pub const DRAINING: u32 = 2;
    /// Failed: no new connections; UDP flows move away, TCP ones go on until they end, or end now
    /// where [`super::backend_flag::RESET_WHEN_DOWN`] says so.
    pub const DOWN: u32 = 3;
    /// Its time to drain is over: UDP flows move away, TCP ones end.
    pub const CLOSED: u32 = 4;
}

/// Bits of [`Backend::flags`].
pub mod backend_flag {
    /// New connections get [`super::Backend::source`] as source address.
    pub const SNAT: u32 = 1 << 0;
    /// TCP connections end when the backend is [`super::backend_state::DOWN`].
    pub const RESET_WHEN_DOWN: u32 = 1 << 1;
    /// [`super::Backend::source`] is where packets in a tunnel come from, and good for nothing else.
    pub const TUNNEL: u32 = 1 << 2;
}

/// Value of the `BACKENDS` array, by slot. A slot is one (service, backend) pair. Writer: the daemon.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backend {
    /// Raised when the slot goes to another backend; flows of the former one then end.
    pub generation: u32,
    /// One of [`backend_state`].
    pub state: u32,
    /// Address words, see [`Address::from_words`].
    pub address: [u32; 4],
    /// Node address that connections to this backend come from, with [`backend_flag::SNAT`] or if
    /// they are its own. Packets in a tunnel to it come from there too, with
    /// [`backend_flag::TUNNEL`] only those. 0 if there is none.
    pub source: [u32; 4],
    /// Port in network byte order.
    pub port: u16,
    /// 4 or 6.
    pub family: u8,
    pub protocol: u8,
    /// [`Service::id`] this slot belongs to.
    pub service: u32,
    /// Bits of [`backend_flag`].
    pub flags: u32,
    /// Bits of the source's last word, as it stands in a packet, that a tunnel fills with the
    /// flow's hash.
    pub spread: u32,
    /// Open connections beyond which it takes no new ones, 0 for no limit.
    pub max_connections: u32,
    pub reserved: [u32; 1],
}

impl Backend {
    /// Whether a flow that was drawn for this backend may not go on, though the slot is still its.
    /// UDP looks for another backend, TCP ends.
    #[inline(always)]
    pub const fn ends_flows(&self, is_udp: bool) -> bool {
        let resets = self.flags & backend_flag::RESET_WHEN_DOWN != 0;
        match self.state {
            backend_state::DOWN => is_udp | resets,
            backend_state::CLOSED => true,
            _ => false,
        }
    }

    #[inline(always)]
    pub fn address<A: Address>(&self) -> A {
        A::from_words(&self.address)
    }

    /// Whether [`Backend::source`] is known; that of a backend without SNAT serves connections of the
    /// backend to itself.
    #[inline(always)]
    pub const fn has_source(&self) -> bool {
        let [a, b, c, d] = self.source;
        self.flags & backend_flag::TUNNEL == 0 && a | b | c | d != 0
    }

    #[inline(always)]
    pub fn source<A: Address>(&self) -> A {
        A::from_words(&self.source)
    }
}

/// Value of the per-CPU array `COUNTERS`, by slot. Writer: the packet path.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BackendCounters {
    /// Packets and frame bytes from clients.
    pub packets_in: u64,
    pub bytes_in: u64,
    /// Packets and frame bytes from the backend.
    pub packets_out: u64,
    pub bytes_out: u64,
    /// Connections begun: a SYN or a first datagram translated.
    pub connections: u64,
    /// Connections the backend answered.
    pub established: u64,
    /// Connections the backend refused (RST before any other answer).
    pub refused: u64,
    pub reserved: u64,
}

#[cfg(test)]
mod tests {
    extern crate alloc;

    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn chunks_hold_the_length_the_slots_and_at_their_end_the_id() {
        for entries in [0u32, 1, 61, 62, 63, 64, 126, 127, 128, 8191] {
            let slots: Vec<u32> = (100..100 + entries).collect();
            let words: Vec<u32> = table_chunks(&slots, 7).flatten().collect();
            assert_eq!(words.len() as u32, table_elements(entries) * TABLE_LANES);
            let (used, unused) = words.split_at(slots.len() + 1);
            assert_eq!((used[0], &used[1..]), (entries, &slots[..]));
            assert!((1..=TABLE_LANES as usize).contains(&unused.len()));
            let (id, unused) = unused.split_last().unwrap();
            assert_eq!(*id, 7);
            assert!(unused.iter().all(|word| *word == NO_SLOT));
        }
    }
}
