//! Which backend a connection was given to that never heard from it: as the kernel's flow tables say.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use aya::maps::{Array, HashMap, Map, MapData};
use lb_common::abi::{
    ABI_VERSION, Address, Backend, Be16, Flow, FlowKey, Pod, V4, V6, as_bytes, backend_state,
    from_bytes, protocol,
};

use crate::{
    clients::Protocol,
    daemon::BPFFS,
    net::{Family, Network},
};

const KEY4: usize = size_of::<FlowKey<V4>>();
const KEY6: usize = size_of::<FlowKey<V6>>();
const FLOW4: usize = size_of::<Flow<V4>>();
const FLOW6: usize = size_of::<Flow<V6>>();

/// The flow tables of a node, held open: they outlive the daemon.
pub(super) struct Places {
    v4: Vec<HashMap<MapData, [u8; KEY4], [u8; FLOW4]>>,
    v6: Vec<HashMap<MapData, [u8; KEY6], [u8; FLOW6]>>,
    backends: Array<MapData, [u8; size_of::<Backend>()]>,
    /// Addresses of backend 1 first.
    addresses: Vec<[IpAddr; 2]>,
}

impl Places {
    pub(super) fn open(network: &Network) -> anyhow::Result<Self> {
        let numbers = 1..=network.backends.len();
        let addresses = numbers.map(|i| Family::BOTH.map(|family| network.backend(i, family)));
        let addresses = addresses.collect();
        network.node.run(|| {
            Ok(Self {
                v4: vec![
                    HashMap::try_from(Map::HashMap(map("FLOWS4")?))?,
                    HashMap::try_from(Map::LruHashMap(map("HANDSHAKES4")?))?,
                ],
                v6: vec![
                    HashMap::try_from(Map::HashMap(map("FLOWS6")?))?,
                    HashMap::try_from(Map::LruHashMap(map("HANDSHAKES6")?))?,
                ],
                backends: Array::try_from(Map::Array(map("BACKENDS")?))?,
                addresses,
            })
        })
    }

    /// Number of the backend, from 1; `None` if there is no such flow.
    pub(super) fn of(
        &self,
        protocol: Protocol,
        client: SocketAddr,
        target: SocketAddr,
    ) -> Option<usize> {
        let number = match protocol {
            Protocol::Udp => protocol::UDP,
            Protocol::Tcp | Protocol::Http => protocol::TCP,
        };
        let (from, to) = (Be16::new(client.port()), Be16::new(target.port()));
        let slot = match (client.ip(), target.ip()) {
            (IpAddr::V4(client), IpAddr::V4(target)) => {
                let key = FlowKey::new(V4::from(client), from, target.into(), to, number);
                slot::<V4, KEY4, FLOW4>(&self.v4, &key)?
            }
            (IpAddr::V6(client), IpAddr::V6(target)) => {
                let key = FlowKey::new(V6::from(client), from, target.into(), to, number);
                slot::<V6, KEY6, FLOW6>(&self.v6, &key)?
            }
            _ => return None,
        };
        self.backend(slot)
    }

    fn backend(&self, slot: u32) -> Option<usize> {
        let backend: Backend = from_bytes(&self.backends.get(&slot, 0).ok()?)?;
        let address = match backend.family {
            _ if backend.state == backend_state::FREE => return None,
            4 => V4::from_words(&backend.address).ip(),
            _ => V6::from_words(&backend.address).ip(),
        };
        let place = self.addresses.iter().position(|a| a.contains(&address))?;
        Some(place + 1)
    }
}

fn map(name: &str) -> anyhow::Result<MapData> {
    let path = format!("{BPFFS}/lbd/{ABI_VERSION}/{name}");
    MapData::from_pin(&path).context(path)
}

/// Of the first of these tables that has the key.
fn slot<A, const K: usize, const V: usize>(
    tables: &[HashMap<MapData, [u8; K], [u8; V]>],
    key: &FlowKey<A>,
) -> Option<u32>
where
    A: Address,
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let key: [u8; K] = as_bytes(key).try_into().ok()?;
    let found = tables.iter().find_map(|table| table.get(&key, 0).ok())?;
    Some(from_bytes::<Flow<A>>(&found)?.slot)
}
