//! Ports of the world's services.

pub const WEB: u16 = 80;
pub const SNAT: u16 = 443;
pub const EMPTY_REJECT: u16 = 81;
pub const EMPTY_DROP: u16 = 82;
pub const DOWN: u16 = 83;
pub const DRAINING: u16 = 84;
pub const FOREIGN_SLOT: u16 = 85;
pub const UNRESOLVED: u16 = 86;
pub const BLACK_HOLE: u16 = 87;
pub const LOCAL: u16 = 88;
pub const HAIRPIN: u16 = 89;
pub const ROUND_ROBIN: u16 = 90;
pub const MAGLEV: u16 = 91;
pub const NO_TABLE: u16 = 92;
/// Half its table is down.
pub const HALF: u16 = 93;
/// The same backend as [`WEB`].
pub const WEB_AGAIN: u16 = 94;
/// Its backend's connections end when it is down.
pub const RESETTING: u16 = 95;
/// Lists of sources: whoever is not on one is refused.
pub const ALLOWED: u16 = 110;
/// The same lists: whoever is on none is let in.
pub const DENIED: u16 = 111;
/// One new connection a second.
pub const RATE: u16 = 112;
/// The same for each client.
pub const SOURCE_RATE: u16 = 113;
/// One connection at a time.
pub const LIMIT: u16 = 114;
pub const LIMIT_DROP: u16 = 115;
/// The first of two backends takes one connection at a time.
pub const BACKEND_LIMIT: u16 = 116;
/// Its only backend takes one connection at a time.
pub const BACKEND_FULL: u16 = 117;
/// Clients keep one of two backends for a second.
pub const AFFINITY: u16 = 118;
pub const AFFINITY_MAGLEV: u16 = 119;
/// UDP: as the one above, and one connection at a time.
pub const DNS_AFFINITY: u16 = 59;
pub const DNS_RATE: u16 = 60;
pub const DNS: u16 = 53;
pub const DNS_SNAT: u16 = 54;
pub const DNS_EMPTY: u16 = 55;
pub const DNS_DROP: u16 = 56;
pub const DNS_DOWN: u16 = 57;
pub const DNS_TWO: u16 = 58;
pub const DNS_L2: u16 = 61;
pub const DNS_TUNNEL: u16 = 62;
/// TCP through NAT to a backend behind a narrow way.
pub const NARROW: u16 = 100;
pub const L2: u16 = 101;
pub const TUNNEL: u16 = 102;
/// A tunnel of IPv6, whatever the client.
pub const CROSSED: u16 = 103;
/// A tunnel from addresses that are spread.
pub const SPREAD: u16 = 104;
pub const L2_ROUTED: u16 = 105;
pub const L2_LOCAL: u16 = 106;
pub const L2_UNRESOLVED: u16 = 107;
pub const TUNNEL_UNRESOLVED: u16 = 108;
pub const TUNNEL_NARROW: u16 = 109;
pub const L2_TWO: u16 = 120;
pub const NARROW_SNAT: u16 = 121;
pub const TUNNEL_BLACK_HOLE: u16 = 122;
/// Draws at random.
pub const RANDOM: u16 = 123;
/// One new connection a second, three at once.
pub const BURST: u16 = 124;
/// Its backend is a client of its own.
pub const ITSELF: u16 = 125;
/// A tunnel that ends on the node.
pub const TUNNEL_LOCAL: u16 = 126;
/// Direct return, one new connection a second.
pub const L2_RATE: u16 = 127;
/// Direct return, one connection at a time.
pub const L2_LIMIT: u16 = 128;
