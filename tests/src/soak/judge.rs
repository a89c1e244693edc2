//! Which fault a failed connection is owed to, by place, time and kind; pure.

use std::time::{Duration, Instant};

use super::{
    plan::{Fault, Trouble},
    traffic::{Failed, How, PATIENCE},
};
use crate::clients::{Failure, Protocol};

/// By the probes of [`crate::daemon::QUICK_HEALTH`] a backend is out after an interval and three
/// timeouts, 0.93 s with the jitter; three times that, as the machine does other things too.
pub(super) const EVICTED_WITHIN: Duration = Duration::from_millis(2800);

/// Two intervals and what connecting takes, in the same measure.
const BACK_WITHIN: Duration = Duration::from_millis(2800);

/// What was on its way when a fault ended: neighbours are asked for again, segments sent again.
const AFTERMATH: Duration = Duration::from_millis(1500);

/// A fault as it happened.
#[derive(Clone, Debug)]
pub(super) struct Happened {
    pub(super) fault: Fault,
    pub(super) began: Instant,
    /// `None` while it lasts.
    pub(super) ended: Option<Instant>,
}

/// Everything that failures are judged by.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    pub(super) faults: Vec<Happened>,
    /// When the daemon was away: from its end until it was ready again.
    pub(super) headless: Vec<(Instant, Instant)>,
    /// When the machine had no time for the clients, nor, as one must suppose, for anybody else.
    pub(super) stalls: Vec<(Instant, Instant)>,
    /// When hosts and cables lost packets.
    pub(super) overruns: Vec<(Instant, Instant)>,
    /// Services whose connections are reset when their backend is down.
    pub(super) resets_when_down: Vec<&'static str>,
}

/// What a failure is owed to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Cause {
    /// The fault of this index.
    Fault(usize),
    /// Somebody waited in vain while the machine did something else, or had no room.
    Machine,
}

impl History {
    /// The latest fault that explains the failure, or what else does.
    pub(super) fn explain(&self, failed: &Failed) -> Option<Cause> {
        let mut faults = self.faults.iter();
        if let Some(fault) = faults.rposition(|fault| self.explains(fault, failed)) {
            return Some(Cause::Fault(fault));
        }
        let is_during = |(from, to): &(Instant, Instant)| overlap(*from, Some(*to), failed);
        let is_stalled = self.stalls.iter().any(is_during);
        let mut overruns = self.overruns.iter();
        let is_full = overruns.any(|time| is_during(time) && !self.is_cut(*time));
        // Nobody sends a datagram again.
        let is_lost = is_full && failed.target.protocol == Protocol::Udp;
        let waited = failed.how == How::Failed(Failure::Timeout);
        (waited && (is_stalled || is_lost)).then_some(Cause::Machine)
    }

    /// Whether a cable was cut then, which loses packets for other reasons than want of room.
    fn is_cut(&self, (from, to): (Instant, Instant)) -> bool {
        self.faults.iter().any(|happened| {
            let cuts = matches!(
                happened.fault,
                Fault::Link | Fault::Server(_, Trouble::CutOff)
            );
            cuts && happened.began <= to && happened.ended.is_none_or(|ended| from <= ended)
        })
    }

    /// Drains that were to end while there was no daemon, since `gone`, ended when it had been told.
    pub(super) fn told_late(&mut self, gone: Instant, told: Instant) {
        for happened in &mut self.faults {
            let is_drain = matches!(happened.fault, Fault::Drained(..));
            if is_drain && happened.ended.is_some_and(|ended| ended >= gone) {
                happened.ended = Some(told);
            }
        }
    }

    fn explains(&self, happened: &Happened, failed: &Failed) -> bool {
        let resets = self.resets_when_down.contains(&failed.target.service);
        let at = |place| failed.backend == Some(place);
        match happened.fault {
            Fault::Server(place, trouble) => {
                at(place)
                    && (may_bring_about(trouble, failed, resets) || outlasts(happened, failed))
                    && (self.met(happened, failed, trouble.is_noticed())
                        || is_forgotten(happened, failed))
            }
            Fault::Drained(place, Some(deadline)) => {
                let closed = happened.began + Duration::from_millis(deadline);
                at(place)
                    && failed.ended >= closed
                    && is_end(failed)
                    && self.met(happened, failed, false)
            }
            Fault::Link => {
                let kind = may_bring_about(Trouble::CutOff, failed, resets)
                    || failed.how == How::Failed(Failure::Refused);
                // Backends stay out until probes find them; packets go through before that.
                let waited = failed.how == How::Failed(Failure::Timeout);
                let ended = happened.ended.map(|ended| match waited {
                    true => ended + AFTERMATH,
                    false => self.served(ended, BACK_WITHIN),
                });
                kind && overlap(happened.began, ended, failed)
            }
            // Its TCP connections go on.
            Fault::Removed(place) => {
                at(place) && failed.how == How::Moved && self.met(happened, failed, false)
            }
            // Nobody is to notice these.
            Fault::Drained(_, None)
            | Fault::Weights(_)
            | Fault::Policy(_)
            | Fault::RegistryBroken
            | Fault::RegistryGone
            | Fault::DaemonKilled
            | Fault::DaemonStopped => false,
        }
    }

    /// Whether the fault was there while all was not well. If lbd is to notice it, no connection
    /// begins there any more once it has.
    fn met(&self, happened: &Happened, failed: &Failed, is_noticed: bool) -> bool {
        let ended = happened.ended.map(|ended| ended + AFTERMATH);
        let evicted = self.served(happened.began, EVICTED_WITHIN);
        let too_late = is_noticed && !failed.was_answered && failed.began > evicted;
        overlap(happened.began, ended, failed) && !too_late
    }

    /// When the daemon has been at work for so long without a break.
    fn served(&self, since: Instant, long: Duration) -> Instant {
        let mut since = since;
        let mut away: Vec<_> = self.headless.iter().chain(&self.stalls).collect();
        away.sort();
        for (gone, back) in away {
            if *back > since && *gone < since + long {
                since = *back;
            }
        }
        since + long
    }
}

impl Trouble {
    /// Whether probes fail.
    fn is_noticed(self) -> bool {
        match self {
            Self::Killed | Self::CutOff => true,
            // The host goes on to accept for a process that does not run.
            Self::Paused | Self::Slow | Self::Resets => false,
        }
    }
}

fn overlap(began: Instant, ended: Option<Instant>, failed: &Failed) -> bool {
    failed.ended >= began && ended.is_none_or(|ended| failed.heard <= ended)
}

/// A host asks for a neighbour three times, a second apart, and in the end throws away what waits for
/// the answer (`neigh_invalidate`, net/core/neighbour.c): also what came when the cable was back, and
/// lbd knew of that.
fn is_forgotten(happened: &Happened, failed: &Failed) -> bool {
    matches!(happened.fault, Fault::Server(_, Trouble::CutOff))
        && happened
            .ended
            .is_some_and(|ended| (ended..=ended + AFTERMATH).contains(&failed.began))
}

/// On a busy machine a pause may last longer than was planned, and than a client waits.
fn outlasts(happened: &Happened, failed: &Failed) -> bool {
    let lasted = happened.ended.map(|ended| ended - happened.began);
    failed.how == How::Failed(Failure::Timeout)
        && matches!(happened.fault, Fault::Server(_, Trouble::Paused))
        && lasted.is_none_or(|lasted| lasted + AFTERMATH > PATIENCE)
}

/// How lbd ends the connections of a backend that may keep none.
fn is_end(failed: &Failed) -> bool {
    match &failed.how {
        How::Moved => true,
        How::Failed(failure) => {
            failed.target.protocol != Protocol::Udp && *failure == Failure::Reset
        }
    }
}

fn may_bring_about(trouble: Trouble, failed: &Failed, resets_when_down: bool) -> bool {
    let failure = match &failed.how {
        // A probe may hear of a reset as well.
        How::Moved => return true,
        How::Failed(failure) => failure,
    };
    let is_udp = failed.target.protocol == Protocol::Udp;
    if resets_when_down && !is_udp && *failure == Failure::Reset {
        return true;
    }
    match trouble {
        Trouble::Killed => match failure {
            Failure::Refused => true,
            Failure::Reset | Failure::Closed => !is_udp,
            Failure::Timeout => is_udp,
            _ => false,
        },
        // Shorter than a TCP client's patience, longer than a datagram's. Who is slow may find a busy
        // machine whenever it may run.
        Trouble::Paused | Trouble::Slow => is_udp && *failure == Failure::Timeout,
        Trouble::CutOff => matches!(failure, Failure::Timeout | Failure::Unreachable),
        Trouble::Resets => {
            !is_udp && matches!(failure, Failure::Refused | Failure::Reset | Failure::Closed)
        }
    }
}

const _: () = assert!(PATIENCE.as_millis() > 8_000);

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::{
        super::traffic::{Kind, Target},
        *,
    };

    fn ms(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    struct Case {
        start: Instant,
        history: History,
    }

    impl Case {
        /// One fault from 10 s to 14 s.
        fn of(fault: Fault) -> Self {
            let start = Instant::now();
            let happened = Happened {
                fault,
                began: ms(start, 10_000),
                ended: Some(ms(start, 14_000)),
            };
            Self {
                start,
                history: History {
                    faults: vec![happened],
                    headless: Vec::new(),
                    stalls: Vec::new(),
                    overruns: Vec::new(),
                    resets_when_down: vec!["resets"],
                },
            }
        }

        fn failed(&self, place: Option<usize>, times: [u64; 3], failure: Failure) -> Failed {
            let [began, heard, ended] = times.map(|time| ms(self.start, time));
            let any: SocketAddr = "192.0.2.1:1".parse().expect("an address");
            Failed {
                kind: Kind::Short,
                target: Target {
                    service: "keeps",
                    protocol: Protocol::Tcp,
                    address: any,
                },
                source: any,
                backend: place,
                was_answered: heard > began,
                began,
                heard,
                ended,
                how: How::Failed(failure),
            }
        }

        fn explains(&self, failed: &Failed) -> bool {
            self.history.explain(failed).is_some()
        }
    }

    #[test]
    fn a_killed_server_explains_what_was_there_then() {
        let case = Case::of(Fault::Server(2, Trouble::Killed));
        let open = case.failed(Some(2), [9_000, 9_900, 10_010], Failure::Reset);
        assert!(case.explains(&open));
        let elsewhere = case.failed(Some(3), [9_000, 9_900, 10_010], Failure::Reset);
        assert!(!case.explains(&elsewhere), "place");
        let nowhere = case.failed(None, [9_000, 9_900, 10_010], Failure::Reset);
        assert!(!case.explains(&nowhere), "no place");
        let before = case.failed(Some(2), [9_000, 9_900, 9_950], Failure::Reset);
        assert!(!case.explains(&before), "before");
        let after = case.failed(Some(2), [17_000, 17_900, 18_000], Failure::Reset);
        assert!(!case.explains(&after), "after");
        let wrong = Failure::Wrong("x".to_owned());
        let wrong = case.failed(Some(2), [9_000, 9_900, 10_010], wrong);
        assert!(!case.explains(&wrong), "kind");
    }

    #[test]
    fn nobody_is_sent_to_a_dead_server_for_long() {
        let mut case = Case::of(Fault::Server(2, Trouble::Killed));
        let soon = case.failed(Some(2), [11_000, 11_000, 11_001], Failure::Refused);
        assert!(case.explains(&soon));
        let late = case.failed(Some(2), [13_500, 13_500, 13_501], Failure::Refused);
        assert!(!case.explains(&late), "lbd had time to notice");
        let away = (ms(case.start, 9_000), ms(case.start, 12_000));
        case.history.headless.push(away);
        assert!(case.explains(&late), "there was no lbd to notice");
    }

    #[test]
    fn neighbours_are_lost_for_longer_than_the_cable() {
        let mut case = Case::of(Fault::Server(2, Trouble::CutOff));
        let during = case.failed(Some(2), [13_900, 13_900, 16_900], Failure::Timeout);
        assert!(!case.explains(&during), "lbd had time to notice");
        let behind = case.failed(Some(2), [14_600, 14_600, 17_600], Failure::Timeout);
        assert!(case.explains(&behind));
        let late = case.failed(Some(2), [15_600, 15_600, 18_600], Failure::Timeout);
        assert!(!case.explains(&late), "after");
        case.history.faults[0].fault = Fault::Server(2, Trouble::Killed);
        assert!(
            !case.explains(&behind),
            "nobody asks for a neighbour that is there"
        );
    }

    #[test]
    fn packets_pass_a_mended_link_before_backends_are_back() {
        let case = Case::of(Fault::Link);
        let times = [15_600, 15_600, 15_700];
        assert!(case.explains(&case.failed(None, times, Failure::Refused)));
        assert!(!case.explains(&case.failed(None, times, Failure::Timeout)));
        let late = [17_000, 17_000, 17_100];
        assert!(!case.explains(&case.failed(None, late, Failure::Refused)));
        let before = [15_300, 15_300, 18_300];
        assert!(case.explains(&case.failed(None, before, Failure::Timeout)));
    }

    #[test]
    fn ends_that_were_asked_for_are_explained() {
        let mut case = Case::of(Fault::Server(2, Trouble::Paused));
        let mut reset = case.failed(Some(2), [9_000, 9_900, 11_000], Failure::Reset);
        assert!(!case.explains(&reset));
        reset.target.service = "resets";
        assert!(case.explains(&reset));
        case.history.faults[0].fault = Fault::Drained(2, Some(1000));
        assert!(case.explains(&reset));
        case.history.faults[0].fault = Fault::Drained(2, Some(1001));
        assert!(!case.explains(&reset), "before the deadline");
        case.history.faults[0].fault = Fault::Drained(2, None);
        assert!(!case.explains(&reset), "without a deadline");
    }

    #[test]
    fn a_drain_lasts_until_lbd_is_told() {
        let mut case = Case::of(Fault::Drained(2, Some(1000)));
        let late = case.failed(Some(2), [9_000, 18_000, 18_100], Failure::Reset);
        assert!(!case.explains(&late));
        let (gone, told) = (ms(case.start, 13_000), ms(case.start, 18_000));
        case.history.told_late(gone, told);
        assert!(case.explains(&late));
    }

    #[test]
    fn a_pause_longer_than_patience_explains_waiting() {
        let mut case = Case::of(Fault::Server(2, Trouble::Paused));
        let waited = case.failed(Some(2), [9_000, 9_900, 19_000], Failure::Timeout);
        assert!(!case.explains(&waited), "it was over in time");
        case.history.faults[0].ended = Some(ms(case.start, 19_000));
        assert!(case.explains(&waited));
    }

    #[test]
    fn a_busy_machine_explains_waiting_and_nothing_else() {
        let mut case = Case::of(Fault::DaemonKilled);
        let stall = (ms(case.start, 10_000), ms(case.start, 11_000));
        case.history.stalls.push(stall);
        let times = [9_000, 9_900, 12_000];
        let waited = case.failed(Some(2), times, Failure::Timeout);
        assert_eq!(case.history.explain(&waited), Some(Cause::Machine));
        assert!(!case.explains(&case.failed(Some(2), times, Failure::Reset)));
        let later = [11_500, 11_900, 14_000];
        assert!(!case.explains(&case.failed(Some(2), later, Failure::Timeout)));
    }

    #[test]
    fn a_full_cable_explains_a_datagram_and_nothing_else() {
        let mut case = Case::of(Fault::DaemonKilled);
        let full = (ms(case.start, 10_000), ms(case.start, 10_250));
        case.history.overruns.push(full);
        let times = [9_000, 9_900, 12_900];
        let mut waited = case.failed(Some(2), times, Failure::Timeout);
        assert!(!case.explains(&waited), "TCP sends again");
        waited.target.protocol = Protocol::Udp;
        assert_eq!(case.history.explain(&waited), Some(Cause::Machine));
        waited.how = How::Failed(Failure::Refused);
        assert!(!case.explains(&waited), "somebody answered");
        let mut later = case.failed(Some(2), [10_300, 10_300, 13_300], Failure::Timeout);
        later.target.protocol = Protocol::Udp;
        assert!(!case.explains(&later));
        waited.how = How::Failed(Failure::Timeout);
        case.history.faults[0].fault = Fault::Server(3, Trouble::CutOff);
        assert!(!case.explains(&waited), "the cable was cut");
    }

    #[test]
    fn a_slow_server_explains_datagrams_and_nothing_else() {
        let case = Case::of(Fault::Server(2, Trouble::Slow));
        let mut waited = case.failed(Some(2), [10_500, 10_500, 13_500], Failure::Timeout);
        assert!(!case.explains(&waited), "TCP has the patience");
        waited.target.protocol = Protocol::Udp;
        assert!(case.explains(&waited));
        waited.backend = Some(3);
        assert!(!case.explains(&waited), "place");
    }

    #[test]
    fn the_daemons_death_explains_nothing() {
        let case = Case::of(Fault::DaemonKilled);
        let failed = case.failed(Some(2), [9_000, 9_900, 11_000], Failure::Timeout);
        assert!(!case.explains(&failed));
    }
}
