//! What the slow path logs, for `lbd`'s reader of the map `AYA_LOGS`. Level 0, the default of the
//! daemon, makes every call dead code that the verifier removes before it walks it.

use aya_log_ebpf::{
    info,
    macro_support::{Level, level_enabled},
};
use lb_common::abi::Drop;

/// Added to the number of a [`Drop`]: no action of the kernel's, but a packet to drop after
/// [`log_event`] told of it.
pub(crate) const DROPPED: u32 = 0x20000;

/// Event of [`log_event`]: the client is to get a reset or an ICMP error. No [`Drop`] has it.
pub(crate) const ANSWERED: u32 = 0;

/// Whether anything is to be logged.
#[inline(always)]
pub(crate) fn is_on() -> bool {
    level_enabled(Level::Info)
}

/// Logs [`ANSWERED`] or the number of a [`Drop`]. Called by the programs themselves: on top of a
/// part of the path its stack would be too much for the kernel's 512 bytes.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn log_event(event: u32) -> u32 {
    const fn is(event: u32, reason: Drop) -> bool {
        event == reason as u32
    }
    // Texts must be literals, so this cannot be a `match` over `Drop` that gives one.
    match event {
        ANSWERED => info!((), "answered in the service's name"),
        e if is(e, Drop::NoBackend) => info!((), "dropped: no_backend"),
        e if is(e, Drop::RejectLimited) => info!((), "dropped: reject_limited"),
        e if is(e, Drop::FlowTableFull) => info!((), "dropped: flow_table_full"),
        e if is(e, Drop::SourcePortsExhausted) => info!((), "dropped: source_ports_exhausted"),
        e if is(e, Drop::ResetWithoutFlow) => info!((), "dropped: reset_without_flow"),
        e if is(e, Drop::BackendRemoved) => info!((), "dropped: backend_removed"),
        e if is(e, Drop::Unroutable) => info!((), "dropped: unroutable"),
        e if is(e, Drop::FrameAccess) => info!((), "dropped: frame_access"),
        e if is(e, Drop::HandshakeTableFull) => info!((), "dropped: handshake_table_full"),
        e if is(e, Drop::TooBig) => info!((), "dropped: too_big"),
        e if is(e, Drop::NotNeighbour) => info!((), "dropped: not_neighbour"),
        e if is(e, Drop::BackendDown) => info!((), "dropped: backend_down"),
        e if is(e, Drop::InvalidFlags) => info!((), "dropped: invalid_flags"),
        e if is(e, Drop::TinyFragment) => info!((), "dropped: tiny_fragment"),
        e if is(e, Drop::FragmentUnknown) => info!((), "dropped: fragment_unknown"),
        e if is(e, Drop::SourceDenied) => info!((), "dropped: source_denied"),
        e if is(e, Drop::RateLimited) => info!((), "dropped: rate_limited"),
        e if is(e, Drop::SourceRateLimited) => info!((), "dropped: source_rate_limited"),
        e if is(e, Drop::ConnectionLimit) => info!((), "dropped: connection_limit"),
        other => info!((), "dropped: reason {}", other),
    }
    0
}

/// Logs an event, and keeps the call itself away from programs that do not log.
#[inline(always)]
pub(crate) fn event(event: u32) {
    if is_on() {
        log_event(event);
    }
}
