/// Why a packet to a service was dropped. Numbers are for ever: retire, never reuse.
///
/// Index into the per-CPU array `DROPS`; the metric's label is the variant's name in snake case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Drop {
    /// No eligible backend. Counted for `reject` as well, where the client gets an answer.
    NoBackend = 1,
    /// The client was to be answered, and the rate limit for answers was reached. Counted besides
    /// the reason for the answer.
    RejectLimited = 2,
    /// A connection was answered, and the table of established flows had no room for it.
    FlowTableFull = 3,
    /// No free source port towards the drawn backend.
    SourcePortsExhausted = 4,
    /// A TCP reset of a connection nobody knows.
    ResetWithoutFlow = 5,
    /// The backend of this TCP connection was removed.
    BackendRemoved = 6,
    /// The route to the next hop refuses (unreachable, prohibit, blackhole).
    Unroutable = 7,
    /// The hook could not read or write the packet where it had to; no room for the answer.
    FrameAccess = 8,
    /// The map of handshakes refused the entry.
    HandshakeTableFull = 9,
    /// The packet is larger than its way, tunnel included. Counted for packets whose sender is
    /// told the MTU as well.
    TooBig = 10,
    /// With `dsr-l2`: the backend is behind a router, or the node itself.
    NotNeighbour = 11,
    /// A SYN was sent on to a backend that answers directly without an entry being made for it,
    /// because more came than there is room for. No loss: the next packet draws the same backend.
    EntrySkipped = 12,
    /// The backend of this TCP connection is down, and its service has such connections end; or its
    /// time to drain is over.
    BackendDown = 40,
    /// A TCP segment with flags that no host accepts: SYN with FIN or RST, or none of SYN, ACK and
    /// RST (RFC 9293 3.10.7).
    InvalidFlags = 30,
    /// A fragment that splits or overwrites the transport header (RFC 1858, RFC 3128).
    TinyFragment = 31,
    /// A later fragment whose datagram's flow is gone, or which came before the first and could
    /// not be put aside: too long, or too many.
    FragmentUnknown = 32,
    /// A later fragment came before the first, and was put aside until that comes. Lost only if it
    /// is not counted as `FragmentResumed` too.
    FragmentHeld = 33,
    /// A fragment that was put aside went on, because its datagram's first came. No loss.
    FragmentResumed = 34,
    /// The service's source lists do not let this client in.
    SourceDenied = 41,
    /// More new connections a second than the service takes.
    RateLimited = 42,
    /// The same of one client.
    SourceRateLimited = 43,
    /// The service, or each of its backends, has as many connections as it may. Counted for
    /// `reject` as well, where the client gets an answer.
    ConnectionLimit = 44,
}

impl Drop {
    /// Every reason, by number.
    pub const ALL: [Self; 22] = [
        Self::NoBackend,
        Self::RejectLimited,
        Self::FlowTableFull,
        Self::SourcePortsExhausted,
        Self::ResetWithoutFlow,
        Self::BackendRemoved,
        Self::Unroutable,
        Self::FrameAccess,
        Self::HandshakeTableFull,
        Self::TooBig,
        Self::NotNeighbour,
        Self::EntrySkipped,
        Self::BackendDown,
        Self::InvalidFlags,
        Self::TinyFragment,
        Self::FragmentUnknown,
        Self::FragmentHeld,
        Self::FragmentResumed,
        Self::SourceDenied,
        Self::RateLimited,
        Self::SourceRateLimited,
        Self::ConnectionLimit,
    ];

    /// Elements of the `DROPS` array; leaves room for later reasons without a new layout.
    pub const SLOTS: u32 = 64;

    /// Label of the metric.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoBackend => "no_backend",
            Self::RejectLimited => "reject_limited",
            Self::FlowTableFull => "flow_table_full",
            Self::SourcePortsExhausted => "source_ports_exhausted",
            Self::ResetWithoutFlow => "reset_without_flow",
            Self::BackendRemoved => "backend_removed",
            Self::Unroutable => "unroutable",
            Self::FrameAccess => "frame_access",
            Self::HandshakeTableFull => "handshake_table_full",
            Self::TooBig => "too_big",
            Self::NotNeighbour => "not_neighbour",
            Self::EntrySkipped => "entry_skipped",
            Self::BackendDown => "backend_down",
            Self::InvalidFlags => "invalid_flags",
            Self::TinyFragment => "tiny_fragment",
            Self::FragmentUnknown => "fragment_unknown",
            Self::FragmentHeld => "fragment_held",
            Self::FragmentResumed => "fragment_resumed",
            Self::SourceDenied => "source_denied",
            Self::RateLimited => "rate_limited",
            Self::SourceRateLimited => "source_rate_limited",
            Self::ConnectionLimit => "connection_limit",
        }
    }
}
