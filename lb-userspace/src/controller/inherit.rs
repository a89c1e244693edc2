//! What a former daemon knew of the backends, read from what it left in the kernel. Pure.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use lb_common::abi::{V4, V6, backend_state, protocol};

use super::{
    effective,
    merge::{self, Origin},
    world::Layers,
};
use crate::{
    datapath::Listen,
    discovery::InstanceState,
    model::{BackendRef, Mode, Protocol, ServiceSpec},
    plan::Installed,
};

/// Verdicts under which every backend keeps the state it has in the kernel.
///
/// `DRAINING` and `CLOSED` have three causes: the operator or a weight of 0 (then it was healthy, or will soon
/// be found out), or no verdict yet (then there is none to inherit). Backends that the kernel
/// does not hold are new.
pub(super) fn verdicts(installed: &Installed, layers: &Layers) -> HashMap<BackendRef, bool> {
    let states = states(installed);
    let mut out = HashMap::new();
    for service in merge::merge(layers).services {
        let merge::Merged { spec, origins, .. } = service;
        let Some(id) = id(installed, &spec) else {
            continue;
        };
        for (backend, origin) in spec.backends.iter().zip(origins) {
            let reference = BackendRef {
                service: spec.name.clone(),
                address: backend.address,
            };
            let said = layers.state.overrides.get(&reference);
            let registry = match origin {
                Origin::Found { state, .. } => state,
                Origin::Layer(_) => InstanceState::Up,
            };
            let withheld = said
                .is_some_and(|said| matches!(said.mode, Some(Mode::Drain | Mode::Maintenance)))
                || registry == InstanceState::Drain
                || effective::weight(backend.weight, said.and_then(|s| s.weight)) == 0;
            let key = (id, backend.address, spec.protocol);
            match states.get(&key).copied() {
                Some(backend_state::ACTIVE) => out.insert(reference, true),
                // Not for what probes found.
                Some(backend_state::DOWN) if registry == InstanceState::Down => None,
                Some(backend_state::DOWN) => out.insert(reference, false),
                Some(backend_state::DRAINING | backend_state::CLOSED) if withheld => {
                    out.insert(reference, true)
                }
                _ => None,
            };
        }
    }
    out
}

/// The number of a service in the kernel.
pub(super) fn id(installed: &Installed, spec: &ServiceSpec) -> Option<u32> {
    spec.listen.iter().find_map(|&address| {
        let listen = Listen {
            address,
            protocol: spec.protocol,
        };
        Some(installed.services.get(&listen)?.id)
    })
}

type Key = (u32, SocketAddr, Protocol);

fn states(installed: &Installed) -> HashMap<Key, u32> {
    installed
        .backends
        .values()
        .filter_map(|backend| {
            let ip: IpAddr = match backend.family {
                4 => backend.address::<V4>().ip(),
                6 => backend.address::<V6>().ip(),
                _ => return None,
            };
            let protocol = match backend.protocol {
                protocol::TCP => Protocol::Tcp,
                protocol::UDP => Protocol::Udp,
                _ => return None,
            };
            let address = SocketAddr::new(ip, u16::from_be(backend.port));
            Some(((backend.service, address, protocol), backend.state))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use lb_common::abi::{Address, Backend, Service};

    use super::*;
    use crate::{
        controller::testing::{config, service},
        model::{Override, WeightOverride},
        state::State,
    };

    fn slot(host: u8, state: u32) -> Backend {
        Backend {
            state,
            address: V4::from(Ipv4Addr::new(10, 0, 0, host)).to_words(),
            port: 80u16.to_be(),
            family: 4,
            protocol: protocol::TCP,
            service: 7,
            ..Backend::default()
        }
    }

    #[test]
    fn verdicts_keep_every_state() {
        use backend_state::{ACTIVE, DOWN, DRAINING};
        let mut installed = Installed::default();
        let listen = Listen {
            address: "192.0.2.1:80".parse().unwrap(),
            protocol: Protocol::Tcp,
        };
        installed.services.insert(
            listen,
            Service {
                id: 7,
                ..Service::default()
            },
        );
        for (number, (host, state)) in [
            (1, ACTIVE),
            (2, DOWN),
            (3, DRAINING),
            (4, DRAINING),
            (5, DRAINING),
            (6, DRAINING),
        ]
        .into_iter()
        .enumerate()
        {
            installed.backends.insert(number as u32, slot(host, state));
        }
        let mut web = service(
            "web",
            "192.0.2.1:80",
            &[
                "10.0.0.1:80",
                "10.0.0.2:80",
                "10.0.0.3:80",
                "10.0.0.4:80",
                "10.0.0.5:80",
            ],
        );
        web.backends
            .push(crate::controller::testing::backend("10.0.0.6:80", 0));
        web.backends
            .push(crate::controller::testing::backend("10.0.0.7:80", 1));
        let reference = |host| {
            format!("web/10.0.0.{host}:80")
                .parse::<BackendRef>()
                .unwrap()
        };
        let layers = Layers {
            file: config([web]).into(),
            state: State {
                overrides: [
                    (
                        reference(4),
                        Override {
                            mode: Some(Mode::Drain),
                            ..Override::default()
                        },
                    ),
                    (
                        reference(5),
                        Override {
                            weight: Some(WeightOverride::Percent(0)),
                            ..Override::default()
                        },
                    ),
                ]
                .into(),
                ..State::default()
            },
            found: Default::default(),
        };
        let want = [(1, true), (2, false), (4, true), (5, true), (6, true)];
        let want: HashMap<_, _> = want.map(|(host, up)| (reference(host), up)).into();
        assert_eq!(verdicts(&installed, &layers), want);
    }

    #[test]
    fn slots_of_another_service_are_not_ours() {
        let mut installed = Installed::default();
        installed.backends.insert(0, slot(1, backend_state::ACTIVE));
        let layers = Layers {
            file: config([service("web", "192.0.2.1:80", &["10.0.0.1:80"])]).into(),
            state: State::default(),
            found: Default::default(),
        };
        assert_eq!(verdicts(&installed, &layers), HashMap::new());
    }
}
