//! When a flow is over: pure decisions about entries of the flow tables.

use std::time::Duration;

use lb_common::abi::{Address, Flow, FlowKey, flow_state, protocol};

use crate::model::Timeouts;

/// The packet path's clock at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Now {
    /// Low 32 bits.
    pub(super) jiffies: u32,
    /// Jiffies per second, not 0.
    pub(super) hz: u32,
}

impl Now {
    /// Whole seconds since `last_seen`. A packet may have come after `self` was read; that counts
    /// as just now. The sign bit tells the two apart, so idle times over half the counter's range
    /// (24 days at 1000 Hz) read as none; scans come far more often.
    fn idle(self, last_seen: u32) -> u32 {
        let elapsed = self.jiffies.wrapping_sub(last_seen) as i32;
        elapsed.max(0) as u32 / self.hz
    }
}

/// What decides whether an entry is too old.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Age {
    now: Now,
    /// Seconds without packets after which a flow is over.
    established: u32,
    closing: u32,
    closed: u32,
    udp: u32,
}

impl Age {
    pub(super) fn new(now: Now, timeouts: &Timeouts) -> Self {
        let Timeouts {
            tcp_established,
            tcp_closing,
            tcp_closed,
            udp,
        } = *timeouts;
        let seconds = |time: Duration| time.as_secs().try_into().unwrap_or(u32::MAX);
        Self {
            now,
            established: seconds(tcp_established),
            closing: seconds(tcp_closing),
            closed: seconds(tcp_closed),
            udp: seconds(udp),
        }
    }

    fn timeout(&self, protocol: u8, state: u32) -> u32 {
        match protocol {
            protocol::TCP if flow_state::is_closed(state) => self.closed,
            protocol::TCP if flow_state::is_closing(state) => self.closing,
            protocol::TCP => self.established,
            _ => self.udp,
        }
    }
}

/// Whether this direction alone is idle; only then is the other direction worth a look.
pub(super) fn is_idle<A: Address>(age: &Age, protocol: u8, flow: &Flow<A>) -> bool {
    age.now.idle(flow.last_seen.get()) >= age.timeout(protocol, flow.state.get())
}

/// What to do with an idle entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Keep,
    /// The entry stands alone.
    Remove,
    /// Both directions.
    RemovePair,
}

/// Judges an entry, `opposite` being what stands under [`Flow::opposite`]. A connection is over
/// when its later packet is idle, and closed as far as either direction saw.
pub(super) fn judge<A: Address>(
    age: &Age,
    key: &FlowKey<A>,
    flow: &Flow<A>,
    opposite: Option<&Flow<A>>,
) -> Verdict {
    if !is_idle(age, key.protocol(), flow) {
        return Verdict::Keep;
    }
    // What stands there may belong to another connection by now.
    let pair = opposite.filter(|o| o.opposite(key.protocol()) == *key);
    let Some(other) = pair else {
        return Verdict::Remove;
    };
    let idle = |flow: &Flow<A>| age.now.idle(flow.last_seen.get());
    let idle = idle(flow).min(idle(other));
    let state = flow.state.get() | other.state.get();
    if idle >= age.timeout(key.protocol(), state) {
        Verdict::RemovePair
    } else {
        Verdict::Keep
    }
}

/// Whether the entry counts as a connection: each has one forward entry.
pub(super) fn is_connection(state: u32) -> bool {
    state & flow_state::REVERSE == 0
}

/// Whether the connection is answered and not over.
pub(super) fn is_active(state: u32) -> bool {
    state & flow_state::ESTABLISHED != 0 && !flow_state::is_closed(state)
}

/// For how many more flows UDP has room in a table of `capacity` entries, `udp` of which are its own,
/// two a flow. Half of the table is TCP's alone: the clients of UDP flows may be forged, and a
/// TCP connection that finds no room is refused, while a UDP flow goes on without a place.
pub(super) fn udp_room(capacity: u64, udp: u64) -> u64 {
    (capacity / 2).saturating_sub(udp) / 2
}

/// What each CPU may have of that room.
pub(super) fn udp_places(room: u64, cpus: usize) -> u32 {
    let places = room.checked_div(cpus as u64).unwrap_or(0);
    places.try_into().unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use lb_common::abi::{Be16, NextHop, V4, flow_state::*};

    use super::*;

    const HZ: u32 = 250;

    fn at(second: u32) -> Now {
        // Close to the counter's end, so that the tests wrap.
        Now {
            jiffies: u32::MAX
                .wrapping_add(second.wrapping_mul(HZ))
                .wrapping_sub(5),
            hz: HZ,
        }
    }

    fn age(second: u32) -> Age {
        Age::new(at(second), &Timeouts::default())
    }

    fn seen(second: u32) -> u32 {
        at(second).jiffies
    }

    fn key(protocol: u8) -> FlowKey<V4> {
        FlowKey::new(V4(1), Be16::new(1000), V4(2), Be16::new(80), protocol)
    }

    fn forward(second: u32, state: u32) -> Flow<V4> {
        entry(V4(1), 1000, V4(3), 8080, second, state)
    }

    fn reverse(second: u32, state: u32) -> Flow<V4> {
        entry(V4(2), 80, V4(1), 1000, second, state | REVERSE)
    }

    fn entry(src: V4, from: u16, dst: V4, to: u16, second: u32, state: u32) -> Flow<V4> {
        Flow {
            src,
            dst,
            src_port: Be16::new(from),
            dst_port: Be16::new(to),
            address_delta: 0,
            port_delta: 0,
            slot: 1,
            generation: 1,
            next_hop: Cell::new(NextHop::default()),
            last_seen: Cell::new(seen(second)),
            state: Cell::new(state | ESTABLISHED),
            created: seen(0),
            expected: Cell::new(0),
        }
    }

    #[test]
    fn timeouts_follow_protocol_and_state() {
        let tcp = |state| age(0).timeout(protocol::TCP, state | ESTABLISHED);
        assert_eq!(tcp(0), 7440);
        assert_eq!(tcp(CLIENT_FIN), 240);
        assert_eq!(tcp(BACKEND_FIN), 240);
        assert_eq!(tcp(CLIENT_FIN | BACKEND_FIN), 10);
        assert_eq!(tcp(RESET), 10);
        assert_eq!(age(0).timeout(protocol::UDP, ESTABLISHED), 120);
    }

    #[test]
    fn timeouts_are_those_configured() {
        let seconds = Duration::from_secs;
        let timeouts = Timeouts {
            tcp_established: seconds(40),
            tcp_closing: seconds(30),
            tcp_closed: seconds(20),
            udp: Duration::from_millis(1900),
        };
        let age = Age::new(at(0), &timeouts);
        assert_eq!(age.timeout(protocol::TCP, ESTABLISHED), 40);
        assert_eq!(age.timeout(protocol::TCP, ESTABLISHED | CLIENT_FIN), 30);
        assert_eq!(age.timeout(protocol::TCP, ESTABLISHED | RESET), 20);
        assert_eq!(age.timeout(protocol::UDP, ESTABLISHED), 1);
    }

    #[test]
    fn the_later_direction_decides() {
        let (f, r) = (forward(0, 0), reverse(60, 0));
        let judge_at = |s| judge(&age(s), &key(protocol::UDP), &f, Some(&r));
        assert_eq!(judge_at(119), Verdict::Keep);
        assert_eq!(judge_at(121), Verdict::Keep);
        assert_eq!(judge_at(179), Verdict::Keep);
        assert_eq!(judge_at(180), Verdict::RemovePair);
    }

    #[test]
    fn either_direction_judges_alike() {
        let (f, r) = (forward(0, 0), reverse(60, 0));
        let tcp = key(protocol::TCP);
        let reversed = f.opposite(protocol::TCP);
        assert_eq!(judge(&age(7499), &reversed, &r, Some(&f)), Verdict::Keep);
        assert_eq!(
            judge(&age(7500), &reversed, &r, Some(&f)),
            Verdict::RemovePair
        );
        assert_eq!(judge(&age(7500), &tcp, &f, Some(&r)), Verdict::RemovePair);
    }

    #[test]
    fn a_close_that_one_direction_saw_counts_for_both() {
        let (f, r) = (forward(0, RESET), reverse(0, 0));
        let tcp = key(protocol::TCP);
        assert_eq!(judge(&age(9), &tcp, &f, Some(&r)), Verdict::Keep);
        assert_eq!(judge(&age(10), &tcp, &f, Some(&r)), Verdict::RemovePair);
    }

    #[test]
    fn an_orphan_of_either_direction_goes() {
        let stranger = entry(V4(9), 9, V4(9), 9, 500, 0);
        let (f, r) = (forward(0, 0), reverse(0, 0));
        let udp = key(protocol::UDP);
        assert_eq!(judge(&age(120), &udp, &f, None), Verdict::Remove);
        assert_eq!(judge(&age(120), &udp, &f, Some(&stranger)), Verdict::Remove);
        let reversed = f.opposite(protocol::UDP);
        assert_eq!(judge(&age(119), &reversed, &r, None), Verdict::Keep);
        assert_eq!(judge(&age(120), &reversed, &r, None), Verdict::Remove);
    }

    /// With direct return nothing stands under `opposite`: the answers pass by.
    #[test]
    fn direct_return_ages_by_what_the_client_sends() {
        let key = key(protocol::TCP);
        let direct = |state| entry(V4(1), 1000, V4(2), 80, 0, state | TUNNEL);
        for (state, idle) in [(0, 7440), (CLIENT_FIN, 240), (RESET, 10)] {
            let flow = direct(state);
            assert_eq!(flow.opposite(protocol::TCP), key.reversed());
            assert_eq!(judge(&age(idle - 1), &key, &flow, None), Verdict::Keep);
            assert_eq!(judge(&age(idle), &key, &flow, None), Verdict::Remove);
            assert!(is_connection(flow.state.get()));
        }
        assert!(is_active(direct(CLIENT_FIN).state.get()));
    }

    #[test]
    fn a_packet_after_the_clock_was_read_is_no_age() {
        let f = forward(3, 0);
        assert!(!is_idle(&age(1), protocol::UDP, &f));
    }

    #[test]
    fn udp_has_half_of_a_table() {
        assert_eq!(udp_room(2000, 0), 500);
        assert_eq!(udp_room(2000, 600), 200);
        assert_eq!(udp_room(2000, 998), 1);
        for udp in [999, 1000, 1001, 2000, 3000] {
            assert_eq!(udp_room(2000, udp), 0, "{udp}");
        }
    }

    #[test]
    fn cpus_share_the_room_for_udp() {
        assert_eq!(udp_places(500, 1), 500);
        assert_eq!(udp_places(500, 3), 166);
        assert_eq!(udp_places(2, 3), 0);
        assert_eq!(udp_places(u64::MAX, 2), u32::MAX);
        // Not known.
        assert_eq!(udp_places(500, 0), 0);
    }

    #[test]
    fn connections_are_counted_once() {
        assert!(is_connection(ESTABLISHED) && !is_connection(ESTABLISHED | REVERSE));
        assert!(is_active(ESTABLISHED | CLIENT_FIN));
        assert!(!is_active(0) && !is_active(ESTABLISHED | RESET));
    }
}
