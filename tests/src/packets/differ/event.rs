//! What happens in a sequence.

use std::{fmt, net::IpAddr};

use lb_common::path::Budget;

use super::super::{Runner as _, Side, slice::Slice};

/// Bytes to be read: each event prints as one line, which says all there is to it.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Event {
    Packet {
        side: Side,
        bytes: Vec<u8>,
        /// At TC, with a hardware checksum over the packet.
        summed: bool,
    },
    /// A slot's state and generation change.
    Backend {
        slot: u32,
        state: u32,
        generation: u32,
    },
    /// Routes changed.
    Epoch,
    /// More than a second passes, see [`super::clock`].
    Second,
    /// The table of handshakes loses the entry of this key, as under a flood.
    Evict {
        v6: bool,
        key: Vec<u8>,
    },
    Budget(Budget, u32),
    /// SNAT takes these addresses of the node, one of each family at most.
    Sources(Vec<IpAddr>),
}

impl Event {
    /// Has an event that is neither a packet nor time happen to the byte slice.
    pub(super) fn happen(&self, slice: &mut Slice) {
        match self {
            Self::Packet { .. } | Self::Second => {}
            Self::Backend {
                slot,
                state,
                generation,
            } => slice.set_backend(*slot, *state, *generation),
            Self::Epoch => slice.next_epoch(),
            Self::Evict { v6, key } => {
                slice.forget_handshake(*v6, key);
            }
            Self::Budget(budget, per_second) => slice.set_budget(*budget, *per_second),
            Self::Sources(sources) => slice.set_sources(sources),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packet {
                side,
                bytes,
                summed,
            } => {
                let summed = if *summed { " summed" } else { "" };
                write!(f, "{side:?}{summed} {}", super::super::hex(bytes))
            }
            Self::Evict { v6, key } => {
                let family = if *v6 { 6 } else { 4 };
                write!(f, "Evict{family} {}", super::super::hex(key))
            }
            other => write!(f, "{other:?}"),
        }
    }
}
