use core::cell::Cell;

use super::address::Address;

/// Bits of [`Admission::flags`].
pub mod admission_flag {
    /// Clients' addresses are looked up in the `SOURCE_LISTS` tries.
    pub const SOURCES: u32 = 1 << 0;
    /// A client that no prefix covers is refused.
    pub const LISTED_ONLY: u32 = 1 << 1;
}

/// A token bucket: it fills by `per_second` tokens a second and holds `burst` at most.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rate {
    /// 0 is no limit.
    pub per_second: u32,
    pub burst: u32,
}

/// Value of the `ADMISSION` array, by [`super::Service::id`]: whom a service lets in. It is not in
/// [`super::Service`], of which there is one for each listen: one write changes it for all of them.
/// Zeros admit everybody. Writer: the daemon.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Admission {
    /// Bits of [`admission_flag`].
    pub flags: u32,
    /// Open connections of the whole service, 0 for no limit.
    pub max_connections: u32,
    /// Element of `ACTIVE` and `COUNTED` where the service's connections are counted.
    pub counter: u32,
    /// Seconds from a client's last new connection until it may get another backend, 0 for no
    /// affinity.
    pub affinity: u32,
    /// New connections.
    pub rate: Rate,
    /// New connections of one client: an IPv4 address, an IPv6 /64.
    pub source_rate: Rate,
}

/// Key of the `SOURCE_LISTS4`/`SOURCE_LISTS6` tries, as `struct bpf_lpm_trie_key` lays it out.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourceKey<A> {
    /// Leading bits that count: [`SOURCE_SERVICE_BITS`], and those of the address.
    pub bits: u32,
    /// [`super::Service::id`].
    pub service: u32,
    pub address: A,
}

/// Bits of a [`SourceKey`] in front of the address.
pub const SOURCE_SERVICE_BITS: u32 = 32;

impl<A: Address> SourceKey<A> {
    /// The prefix of `length` bits at `address`.
    #[inline(always)]
    pub const fn new(service: u32, address: A, length: u32) -> Self {
        Self {
            bits: SOURCE_SERVICE_BITS + length,
            service,
            address,
        }
    }

    /// What is looked up for a client.
    #[inline(always)]
    pub const fn client(service: u32, address: A) -> Self {
        Self::new(service, address, 8 * size_of::<A>() as u32)
    }
}

/// Values of the `SOURCE_LISTS` tries; the longest prefix that covers a client decides.
pub mod source {
    pub const DENIED: u32 = 0;
    pub const ALLOWED: u32 = 1;
}

/// Key of `SOURCE_RATES`: who fills a bucket of a service.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RateKey {
    pub service: u32,
    /// 4 or 6.
    pub family: u32,
    /// The IPv4 address, or the first 64 bits of the IPv6 one: whoever has one address of such a
    /// network usually has them all.
    pub address: [u32; 2],
}

impl RateKey {
    #[inline(always)]
    pub fn new<A: Address>(service: u32, address: A) -> Self {
        let [a, b, ..] = address.to_words();
        Self {
            service,
            family: if A::IS_V6 { 6 } else { 4 },
            address: [a, b],
        }
    }
}

/// State of a token bucket: value of `RATES`, by service, and of `SOURCE_RATES`.
///
/// One word, so that it is replaced whole: the high half holds the jiffies at which the bucket was
/// full, the low half the tokens taken since. Zero is a bucket never used.
#[repr(transparent)]
#[derive(Clone, Debug, Default)]
pub struct Bucket(pub Cell<u64>);

impl Bucket {
    #[inline(always)]
    pub const fn word(full_at: u32, taken: u32) -> u64 {
        (full_at as u64) << 32 | taken as u64
    }
}

/// Key of `AFFINITY4`/`AFFINITY6`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AffinityKey<A> {
    // First, where a copy over the stack is aligned.
    pub client: A,
    pub service: u32,
}

/// The backend that a client keeps.
#[repr(C)]
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Affinity {
    pub slot: u32,
    /// Of the backend, which must still be the slot's.
    pub generation: u32,
    /// Jiffies of the client's last new connection, low 32 bits.
    pub last: Cell<u32>,
    pub reserved: u32,
}

/// Established connections of a backend or of a service, counted up only: value of `ACTIVE`. How
/// many are open is `opened - closed`, and what the daemon adds in `COUNTED`. Writer: the packet
/// path.
#[repr(C)]
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Active {
    pub opened: Cell<u32>,
    pub closed: Cell<u32>,
}

impl Active {
    /// Open connections; `counted` is the element's in `COUNTED`.
    #[inline(always)]
    pub fn open(&self, counted: u32) -> u32 {
        let open = counted
            .wrapping_add(self.opened.get())
            .wrapping_sub(self.closed.get());
        // Less than none: the counts are a moment apart.
        if open as i32 > 0 { open } else { 0 }
    }
}
