use super::address::Be16;

/// Names a fragmented datagram: what its fragments have in common as they arrive (RFC 791 3.2,
/// RFC 8200 4.5).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FragmentKey<A> {
    pub src: A,
    pub dst: A,
    /// Identification, as it stands in the packet.
    pub id: u32,
    /// 0 for IPv6, whose later fragments need not tell what is behind other headers.
    pub protocol: u32,
}

/// What the first fragment of a datagram tells about the others. Value of `FRAGMENTS4/6`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragmented {
    pub src_port: Be16,
    pub dst_port: Be16,
    /// One of [`super::protocol`].
    pub protocol: u32,
    /// Jiffies when the first fragment came, low 32 bits.
    pub seen: u32,
    pub reserved: u32,
}

/// Names one of the fragments that wait for their datagram's first. Key of `HELD4/6`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HeldKey<A> {
    pub datagram: FragmentKey<A>,
    /// 0..[`HELD_PIECES`], in order of arrival.
    pub piece: u32,
}

/// Fragments of one datagram that wait at most: enough for 12 KB over links with an MTU of 1,500.
pub const HELD_PIECES: u32 = 8;

/// Longest frame that waits, Ethernet header included.
pub const HELD_BYTES: usize = 2048;

/// A fragment that waits for its datagram's first. Value of `HELD4/6`.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct Held {
    /// Bytes of the frame.
    pub length: u32,
    /// Jiffies when it came, low 32 bits.
    pub seen: u32,
    pub frame: [u8; HELD_BYTES],
}

/// Seconds that a datagram's fragments may lie apart (RFC 791 3.2: 15 seconds for reassembly).
/// Longer, and an identification that is used again would find the former datagram's ports.
pub const FRAGMENT_SECONDS: u32 = 15;
