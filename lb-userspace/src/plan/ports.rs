use lb_common::abi::{Backend, Be16, PORT_WORDS, PortKind, backend_state, port_bit, protocol};

use super::Input;
use crate::{datapath::Listen, model::Protocol};

/// The port bitmaps' words: ports of all listens, and of all backends that may have flows.
///
/// The bit of a listen that is gone stays while any backend of its protocol has flows, because the
/// packets of connections begun through it are recognised by it. A bit too many costs such packets
/// a lookup and nothing else.
pub(super) fn words(
    input: Input<'_>,
    listens: impl Iterator<Item = Listen>,
    backends: &[(u32, Backend)],
) -> Vec<u64> {
    let mut words = vec![0; PORT_WORDS as usize];
    for listen in listens {
        let kind = match listen.protocol {
            Protocol::Tcp => PortKind::ServiceTcp,
            Protocol::Udp => PortKind::ServiceUdp,
        };
        set(&mut words, kind, listen.address.port());
    }
    let in_use = |b: &&Backend| b.state != backend_state::FREE;
    for backend in backends.iter().map(|(_, b)| b).filter(in_use) {
        let kind = match backend.protocol {
            protocol::UDP => PortKind::BackendUdp,
            _ => PortKind::BackendTcp,
        };
        set(&mut words, kind, Be16(backend.port).get());
    }
    for (kind, number) in [
        (PortKind::ServiceTcp, protocol::TCP),
        (PortKind::ServiceUdp, protocol::UDP),
    ] {
        let first = port_bit(kind, 0).0 as usize;
        let range = first..=port_bit(kind, u16::MAX).0 as usize;
        let Some(installed) = input.installed.ports.get(range.clone()) else {
            continue;
        };
        let words = &mut words[range];
        let is_stale = installed
            .iter()
            .zip(&*words)
            .any(|(is, wanted)| is & !wanted != 0);
        if is_stale && has_flows(input, backends, number) {
            words
                .iter_mut()
                .zip(installed)
                .for_each(|(word, is)| *word |= is);
        }
    }
    words
}

fn set(words: &mut [u64], kind: PortKind, port: u16) {
    let (index, bit) = port_bit(kind, port);
    words[index as usize] |= bit;
}

/// True before the first scan, as long as there is a backend.
fn has_flows(input: Input<'_>, backends: &[(u32, Backend)], protocol: u8) -> bool {
    let mut slots = backends
        .iter()
        .filter(|(_, b)| b.protocol == protocol && b.state != backend_state::FREE);
    match input.present {
        Some(present) => slots.any(|(slot, _)| present.get(slot).is_some_and(|n| *n > 0)),
        None => slots.next().is_some(),
    }
}
