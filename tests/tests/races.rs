//! The first packet of a connection comes in on two CPUs at the same time: one backend and one source
//! port win, for both.
//!
//! ```text
//!   CPU 0 ── packet ──┐
//!                     ├── one connection ── one backend
//!   CPU 1 ── packet ──┘
//! ```

use lb_tests::{
    note,
    packets::{
        Runner as _,
        build::{Packet, SYN},
        kernel::{Hook, Kernel},
        world::{Addresses, FROM_CLIENT, port, slot},
    },
};

const ROUNDS: u16 = 10_000;
const IPV4: Addresses = Addresses { v6: false };

/// A connection's first packet, each time of another client port.
fn firsts(port: u16, udp: bool) -> Vec<Vec<u8>> {
    let (from, to) = (FROM_CLIENT, IPV4.vip(port));
    let packet = |client| match udp {
        true => Packet::udp(from, IPV4.client(client), to),
        false => Packet::tcp(from, IPV4.client(client), to, SYN),
    };
    (1024..1024 + ROUNDS)
        .map(|client| packet(client).bytes())
        .collect()
}

fn one_wins(hook: Hook) {
    let mut kernel = Kernel::new(hook).expect("the programs load");
    for (what, port, udp, slots) in [
        (
            "round-robin, TCP",
            port::ROUND_ROBIN,
            false,
            &[slot::ROUND_A, slot::ROUND_B][..],
        ),
        ("source port, TCP", port::SNAT, false, &[slot::SNAT]),
        ("source port, UDP", port::DNS_SNAT, true, &[slot::DNS_SNAT]),
    ] {
        kernel.reset();
        kernel
            .set_snat_ports(20_000, 40_000)
            .expect("a pool of ports");
        let counted = |kernel: &mut Kernel| -> u64 {
            let connections = slots
                .iter()
                .map(|slot| kernel.counters(*slot).expect("counters").connections);
            connections.sum()
        };
        let before = counted(&mut kernel);
        let done = kernel
            .run_at_once(&firsts(port, udp))
            .expect("the programs run");
        let differ = done.iter().filter(|[a, b]| a != b).count();
        let connections = counted(&mut kernel) - before;
        let handshakes = kernel.handshakes().expect("the kernel's map");
        note(format!(
            "{hook:?}, {what}: {ROUNDS} connections, {differ} of them with two ways, {connections} \
             counted, {handshakes} entries"
        ));
        assert_eq!(differ, 0, "{what}: of {ROUNDS}");
        assert_eq!(connections, u64::from(ROUNDS), "{what}");
        assert_eq!(handshakes, 2 * usize::from(ROUNDS), "{what}");
    }
}

#[test]
fn xdp_one_of_two_first_packets_wins() {
    one_wins(Hook::Xdp);
}

#[test]
fn tc_one_of_two_first_packets_wins() {
    one_wins(Hook::Tc);
}
