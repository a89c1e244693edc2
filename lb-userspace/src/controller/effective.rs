//! What becomes of one backend: f(configured, override, observed). Pure.

use std::net::IpAddr;

use super::merge::Origin;
use crate::{
    datapath::Route,
    discovery::InstanceState,
    health::Verdict,
    model::{
        BackendSpec, BackendState, Forwarding, Health, HealthCheck, Mode, Override, Prefix,
        ServiceSpec, Snat, WeightOverride, is_v6,
    },
    plan::{Admit, DesiredBackend, Tunnel},
    utc,
};

/// How connections get to a backend and back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Via {
    /// The client's address is kept, but for connections of the backend to itself, which come from
    /// this address of the node, if there is one.
    Client(Option<IpAddr>),
    /// The source becomes this address of the node.
    Node(IpAddr),
    /// In a tunnel.
    Tunnel(Tunnel),
    /// The backend would have to be a neighbour of the node's, and is not.
    Router,
    /// The node has no route to the backend.
    Nowhere,
}

/// How a service's backend at `address` is reached; `route` is `None` if it is not known.
pub(super) fn via(spec: &ServiceSpec, address: IpAddr, route: Option<Route>) -> Via {
    let source = route.and_then(|route| route.source);
    match spec.forwarding {
        Forwarding::Nat => translated(spec.snat, route),
        Forwarding::DsrL2 if route.is_some_and(|r| r.is_neighbour) => Via::Client(None),
        Forwarding::DsrL2 if source.is_some() => Via::Router,
        Forwarding::DsrL2 => Via::Nowhere,
        Forwarding::DsrIpip => source.map_or(Via::Nowhere, |source| {
            Via::Tunnel(tunnel(&spec.tunnel_source, address, source))
        }),
    }
}

/// A tunnel to `backend` from a prefix of its family, else from the node's own address `source`.
fn tunnel(prefixes: &[Prefix], backend: IpAddr, source: IpAddr) -> Tunnel {
    let family = |prefix: &&Prefix| prefix.is_v6() == is_v6(backend);
    match prefixes.iter().find(family) {
        Some(prefix) => Tunnel {
            source: prefix.address(),
            spread: prefix.width() - prefix.length(),
        },
        None => Tunnel { source, spread: 0 },
    }
}

fn translated(snat: Snat, route: Option<Route>) -> Via {
    let source = route.and_then(|route| route.source);
    match (snat, route, source) {
        (Snat::Never, _, _) => Via::Client(None),
        (Snat::Auto, Some(route), _) if route.returns_here => Via::Client(source),
        (Snat::Auto | Snat::Always, _, Some(source)) => Via::Node(source),
        (Snat::Auto | Snat::Always, _, None) => Via::Nowhere,
    }
}

/// All that is known about one backend, in the three layers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub spec: &'a BackendSpec,
    pub health: &'a Health,
    pub said: &'a Override,
    pub verdict: &'a Verdict,
    pub via: Via,
    /// The deadline of its drain has passed.
    pub overdue: bool,
    pub origin: Origin,
}

impl Facts<'_> {
    /// What the registry says of it; of one that is configured, that it is up.
    fn registry(&self) -> InstanceState {
        match self.origin {
            Origin::Layer(_) => InstanceState::Up,
            Origin::Found { state, .. } => state,
        }
    }
}

/// The sum of the three layers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Effective {
    pub state: BackendState,
    pub admit: Admit,
    /// As people see it: 0 while the backend takes no new connections.
    pub weight: u32,
    /// Why, the decisive reason first.
    pub reasons: Vec<String>,
}

pub(super) fn effective(facts: Facts<'_>) -> Effective {
    let weight = weight(facts.spec.weight, facts.said.weight);
    let (state, admit) = standing(facts);
    let admit = match admit {
        Admit::Active if weight == 0 => Admit::Draining,
        other => other,
    };
    Effective {
        state,
        admit,
        weight: if admit == Admit::Active { weight } else { 0 },
        reasons: reasons(facts, weight),
    }
}

pub(super) fn desired(facts: Facts<'_>) -> DesiredBackend {
    DesiredBackend {
        address: facts.spec.address,
        // Also of one that takes no connections: the size of a table must not follow failures.
        weight: weight(facts.spec.weight, facts.said.weight),
        admit: effective(facts).admit,
        source: match facts.via {
            Via::Node(source) => Some(source),
            Via::Client(source) => source,
            Via::Tunnel(_) | Via::Router | Via::Nowhere => None,
        },
        tunnel: match facts.via {
            Via::Tunnel(tunnel) => Some(tunnel),
            Via::Client(_) | Via::Node(_) | Via::Router | Via::Nowhere => None,
        },
        snat: matches!(facts.via, Via::Node(_)),
        max_connections: facts.spec.max_connections.unwrap_or(0),
    }
}

/// The verdict that counts: a service without a check trusts its backends.
pub(super) fn healthy(health: &Health, verdict: &Verdict) -> Option<bool> {
    match health.check {
        HealthCheck::None => Some(true),
        HealthCheck::Tcp | HealthCheck::Http { .. } => verdict.healthy,
    }
}

/// Configured weight with the override on top.
pub(super) fn weight(configured: u16, said: Option<WeightOverride>) -> u32 {
    match said {
        None => configured.into(),
        Some(WeightOverride::Absolute(weight)) => weight.into(),
        Some(WeightOverride::Percent(percent)) => {
            let rounded = (u32::from(configured) * u32::from(percent) + 50) / 100;
            let least = u32::from(percent > 0 && configured > 0);
            rounded.max(least)
        }
    }
}

fn standing(facts: Facts<'_>) -> (BackendState, Admit) {
    let healthy = healthy(facts.health, facts.verdict);
    let reachable = !matches!(facts.via, Via::Nowhere | Via::Router);
    match (facts.said.mode, reachable, healthy) {
        (Some(Mode::Maintenance), _, _) => (BackendState::Maintenance, Admit::Draining),
        (Some(Mode::Drain), ..) if facts.overdue => (BackendState::Draining, Admit::Closed),
        // Connections of a draining backend go on, unless it is dead: UDP flows then move away.
        (Some(Mode::Drain), true, Some(true) | None) => (BackendState::Draining, Admit::Draining),
        (Some(Mode::Drain), _, _) => (BackendState::Draining, Admit::Down),
        (_, false, _) => (BackendState::Unhealthy, Admit::Down),
        (Some(Mode::Ready), true, _) => (BackendState::Healthy, Admit::Active),
        (None, true, healthy) => match (facts.registry(), healthy) {
            (InstanceState::Down, _) => (BackendState::Unhealthy, Admit::Down),
            (InstanceState::Drain, Some(true) | None) => (BackendState::Draining, Admit::Draining),
            (InstanceState::Drain, Some(false)) => (BackendState::Draining, Admit::Down),
            (InstanceState::Up, Some(true)) => (BackendState::Healthy, Admit::Active),
            (InstanceState::Up, Some(false)) => (BackendState::Unhealthy, Admit::Down),
            (InstanceState::Up, None) => (BackendState::Unknown, Admit::Draining),
        },
    }
}

fn reasons(facts: Facts<'_>, weight: u32) -> Vec<String> {
    let mut reasons = Vec::with_capacity(3);
    match facts.said.mode {
        Some(Mode::Drain) => reasons.push(match facts.said.deadline_ms {
            None => "override: drain".to_owned(),
            Some(at) if facts.overdue => format!("override: drain, over since {}", utc::text(at)),
            Some(at) => format!("override: drain until {}", utc::text(at)),
        }),
        Some(Mode::Maintenance) => reasons.push("override: maintenance".to_owned()),
        Some(Mode::Ready) => reasons.push("override: ready".to_owned()),
        None => {}
    }
    if let Origin::Found { kind, state } = facts.origin
        && state != InstanceState::Up
    {
        reasons.push(format!("{kind}: {}", state.name()));
    }
    if facts.via == Via::Nowhere {
        reasons.push(format!("no route to {}", facts.spec.address.ip()));
    }
    if facts.via == Via::Router {
        let ip = facts.spec.address.ip();
        reasons.push(format!(
            "dsr-l2 needs a direct neighbour, which {ip} is not"
        ));
    }
    let probed = facts.said.mode != Some(Mode::Maintenance);
    reasons.push(if probed {
        format!("health: {}", health_words(facts.health, facts.verdict))
    } else {
        "health: not probed during maintenance".to_owned()
    });
    match facts.said.weight {
        Some(WeightOverride::Absolute(_)) => reasons.push(format!("override: weight {weight}")),
        Some(WeightOverride::Percent(percent)) => reasons.push(format!(
            "override: weight {percent}% of {}",
            facts.spec.weight
        )),
        None => {}
    }
    if weight == 0 {
        reasons.push("weight 0".to_owned());
    }
    reasons
}

fn health_words(health: &Health, verdict: &Verdict) -> String {
    let Verdict {
        healthy,
        successes_in_row: successes,
        failures_in_row: failures,
        ref last_result,
        last_probe: _,
    } = *verdict;
    if health.check == HealthCheck::None {
        return "not checked".to_owned();
    }
    let Some(last) = last_result else {
        return match healthy {
            None => "not probed yet".to_owned(),
            Some(true) => "healthy before, not probed again yet".to_owned(),
            Some(false) => "unhealthy before, not probed again yet".to_owned(),
        };
    };
    match healthy {
        Some(true) if failures == 0 => last.clone(),
        Some(false) if successes > 0 => format!("{last} ({successes} of {})", health.rise),
        _ => format!("{last} ({} of {})", failures.min(health.fall), health.fall),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::controller::merge::Layer;

    fn spec(weight: u16) -> BackendSpec {
        BackendSpec {
            address: "10.1.0.11:8080".parse().unwrap(),
            weight,
            max_connections: None,
            labels: Default::default(),
        }
    }

    fn verdict(healthy: Option<bool>, successes: u32, failures: u32, last: &str) -> Verdict {
        Verdict {
            healthy,
            successes_in_row: successes,
            failures_in_row: failures,
            last_result: (!last.is_empty()).then(|| last.to_owned()),
            last_probe: None,
        }
    }

    fn mode(mode: Mode) -> Override {
        Override {
            mode: Some(mode),
            ..Override::default()
        }
    }

    fn sum(said: Override, verdict: Verdict, via: Via, weight: u16) -> Effective {
        effective(Facts {
            spec: &spec(weight),
            health: &Health::default(),
            said: &said,
            verdict: &verdict,
            via,
            overdue: false,
            origin: Origin::Layer(Layer::File),
        })
    }

    #[test]
    fn a_drain_ends_at_its_deadline_whatever_the_probes_say() {
        for healthy in [None, Some(true), Some(false)] {
            let said = Override {
                deadline_ms: Some(1_735_689_599_000),
                ..mode(Mode::Drain)
            };
            let verdict = verdict(healthy, 0, 0, "");
            let spec = spec(100);
            let mut facts = Facts {
                spec: &spec,
                health: &Health::default(),
                said: &said,
                verdict: &verdict,
                via: Via::Client(None),
                overdue: false,
                origin: Origin::Layer(Layer::File),
            };
            let before = effective(facts);
            assert_ne!(before.admit, Admit::Closed);
            assert_eq!(
                before.reasons[0],
                "override: drain until 2024-12-31T23:59:59Z"
            );
            facts.overdue = true;
            let after = effective(facts);
            assert_eq!((after.admit, after.weight), (Admit::Closed, 0));
            assert_eq!(after.state, BackendState::Draining);
            assert!(
                after.reasons[0].contains("over since"),
                "{:?}",
                after.reasons
            );
        }
    }

    #[test]
    fn states_admission_and_reasons() {
        use BackendState as S;
        let none = Override::default;
        let up = || verdict(Some(true), 4, 0, "connected");
        let shaky = || verdict(Some(true), 0, 1, "timeout");
        let down = || verdict(Some(false), 0, 7, "connection refused");
        let rising = || verdict(Some(false), 1, 0, "connected");
        let fresh = || verdict(None, 0, 0, "");
        let percent = |percent| Override {
            weight: Some(WeightOverride::Percent(percent)),
            ..Override::default()
        };
        type Case = (
            Override,
            Verdict,
            Via,
            S,
            Admit,
            u32,
            &'static [&'static str],
        );
        let cases: &[Case] = &[
            (
                none(),
                up(),
                Via::Client(None),
                S::Healthy,
                Admit::Active,
                100,
                &["health: connected"],
            ),
            (
                none(),
                shaky(),
                Via::Client(None),
                S::Healthy,
                Admit::Active,
                100,
                &["health: timeout (1 of 3)"],
            ),
            (
                none(),
                down(),
                Via::Client(None),
                S::Unhealthy,
                Admit::Down,
                0,
                &["health: connection refused (3 of 3)"],
            ),
            (
                none(),
                rising(),
                Via::Client(None),
                S::Unhealthy,
                Admit::Down,
                0,
                &["health: connected (1 of 2)"],
            ),
            (
                none(),
                fresh(),
                Via::Client(None),
                S::Unknown,
                Admit::Draining,
                0,
                &["health: not probed yet"],
            ),
            (
                none(),
                up(),
                Via::Nowhere,
                S::Unhealthy,
                Admit::Down,
                0,
                &["no route to 10.1.0.11", "health: connected"],
            ),
            (
                mode(Mode::Drain),
                up(),
                Via::Client(None),
                S::Draining,
                Admit::Draining,
                0,
                &["override: drain", "health: connected"],
            ),
            (
                mode(Mode::Drain),
                down(),
                Via::Client(None),
                S::Draining,
                Admit::Down,
                0,
                &["override: drain", "health: connection refused (3 of 3)"],
            ),
            (
                mode(Mode::Maintenance),
                down(),
                Via::Client(None),
                S::Maintenance,
                Admit::Draining,
                0,
                &[
                    "override: maintenance",
                    "health: not probed during maintenance",
                ],
            ),
            (
                mode(Mode::Ready),
                down(),
                Via::Client(None),
                S::Healthy,
                Admit::Active,
                100,
                &["override: ready", "health: connection refused (3 of 3)"],
            ),
            (
                percent(50),
                up(),
                Via::Client(None),
                S::Healthy,
                Admit::Active,
                50,
                &["health: connected", "override: weight 50% of 100"],
            ),
            (
                percent(0),
                up(),
                Via::Client(None),
                S::Healthy,
                Admit::Draining,
                0,
                &[
                    "health: connected",
                    "override: weight 0% of 100",
                    "weight 0",
                ],
            ),
        ];
        for (said, verdict, via, state, admit, weight, reasons) in cases {
            let want = Effective {
                state: *state,
                admit: *admit,
                weight: *weight,
                reasons: reasons.iter().map(|&r| r.to_owned()).collect(),
            };
            let got = sum(said.clone(), verdict.clone(), *via, 100);
            assert_eq!(got, want, "{said:?} {verdict:?} {via:?}");
        }
    }

    #[test]
    fn what_the_registry_says_counts_unless_lbctl_says_otherwise() {
        use BackendState as S;
        use InstanceState::{Down, Drain, Up};
        let none = Override::default;
        let ready = || mode(Mode::Ready);
        for (state, said, healthy, want) in [
            (Up, none(), Some(true), (S::Healthy, Admit::Active)),
            (Drain, none(), Some(true), (S::Draining, Admit::Draining)),
            (Drain, none(), None, (S::Draining, Admit::Draining)),
            (Drain, none(), Some(false), (S::Draining, Admit::Down)),
            (Down, none(), Some(true), (S::Unhealthy, Admit::Down)),
            (Drain, ready(), Some(true), (S::Healthy, Admit::Active)),
            (Down, ready(), None, (S::Healthy, Admit::Active)),
            (
                Up,
                mode(Mode::Drain),
                Some(true),
                (S::Draining, Admit::Draining),
            ),
            (
                Down,
                mode(Mode::Maintenance),
                None,
                (S::Maintenance, Admit::Draining),
            ),
        ] {
            let got = effective(Facts {
                spec: &spec(100),
                health: &Health::default(),
                said: &said,
                verdict: &verdict(healthy, 0, 0, ""),
                via: Via::Client(None),
                overdue: false,
                origin: Origin::Found {
                    kind: "consul",
                    state,
                },
            });
            assert_eq!((got.state, got.admit), want, "{state:?} {said:?}");
            let told = format!("consul: {}", state.name());
            assert_eq!(
                got.reasons.contains(&told),
                state != Up,
                "{:?}",
                got.reasons
            );
        }
    }

    #[test]
    fn source_address_by_mode_and_route() {
        let node: IpAddr = "10.0.0.1".parse().unwrap();
        let far = Route {
            source: Some(node),
            returns_here: false,
            is_neighbour: false,
        };
        let near = Route {
            returns_here: true,
            ..far
        };
        let lost = Route {
            source: None,
            returns_here: false,
            is_neighbour: false,
        };
        for (snat, route, want) in [
            (Snat::Auto, Some(far), Via::Node(node)),
            (Snat::Auto, Some(near), Via::Client(near.source)),
            (Snat::Auto, Some(lost), Via::Nowhere),
            (Snat::Auto, None, Via::Nowhere),
            (Snat::Always, Some(near), Via::Node(node)),
            (Snat::Always, Some(lost), Via::Nowhere),
            (Snat::Never, Some(far), Via::Client(None)),
            (Snat::Never, None, Via::Client(None)),
        ] {
            assert_eq!(translated(snat, route), want, "{snat:?} {route:?}");
        }
    }

    #[test]
    fn direct_return_by_route() {
        let (backend, node): (IpAddr, IpAddr) =
            ("10.1.0.11".parse().unwrap(), "10.0.0.1".parse().unwrap());
        let router = Route {
            source: Some(node),
            returns_here: false,
            is_neighbour: false,
        };
        let neighbour = Route {
            is_neighbour: true,
            ..router
        };
        let service = |forwarding| ServiceSpec {
            forwarding,
            tunnel_source: vec!["fd00::/64".parse().unwrap()],
            ..crate::controller::testing::service("web", "192.0.2.1:80", &[])
        };
        let l2 = service(Forwarding::DsrL2);
        assert_eq!(via(&l2, backend, Some(neighbour)), Via::Client(None));
        assert_eq!(via(&l2, backend, Some(router)), Via::Router);
        assert_eq!(via(&l2, backend, None), Via::Nowhere);
        let mut ipip = service(Forwarding::DsrIpip);
        let own = Tunnel {
            source: node,
            spread: 0,
        };
        assert_eq!(via(&ipip, backend, Some(router)), Via::Tunnel(own));
        ipip.tunnel_source.push("172.16.0.0/16".parse().unwrap());
        let spread = Tunnel {
            source: "172.16.0.0".parse().unwrap(),
            spread: 16,
        };
        assert_eq!(via(&ipip, backend, Some(router)), Via::Tunnel(spread));
        assert_eq!(via(&ipip, backend, None), Via::Nowhere);
    }

    proptest! {
        #[test]
        fn percent_is_rounded_and_never_lost(configured: u16, percent in 0u16..=1000) {
            let got = weight(configured, Some(WeightOverride::Percent(percent)));
            let exact = f64::from(configured) * f64::from(percent) / 100.0;
            prop_assert!((f64::from(got) - exact).abs() <= 0.5 || got == 1);
            prop_assert_eq!(got == 0, configured == 0 || percent == 0);
        }

        #[test]
        fn weight_goes_with_active_only(
            configured: u16,
            healthy: Option<bool>,
            mode in prop::option::of(prop::sample::select(vec![
                Mode::Drain, Mode::Maintenance, Mode::Ready,
            ])),
        ) {
            let said = Override {
                mode,
                ..Override::default()
            };
            let got = sum(said, verdict(healthy, 0, 0, ""), Via::Client(None), configured);
            prop_assert_eq!(got.weight > 0, got.admit == Admit::Active);
            prop_assert!(!got.reasons.is_empty());
        }
    }
}
