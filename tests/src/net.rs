//! The test network: a client, a node that balances, and backends, for IPv4 and IPv6.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use crate::{
    host::{Host, cable},
    veth::pass_everything,
};

/// Client source addresses: enough that 20,000 connections do not exhaust the ports of one.
pub const CLIENT_ADDRESSES: u8 = 8;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// How the hosts are connected. Addresses are the same in every layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Layout {
    /// Every backend behind a device of the node: packets go from device to device.
    #[default]
    Direct,
    /// All backends on one switched segment, behind one device of the node.
    Switched,
    /// Client and backends on one switched segment; the node has one device, and sends packets
    /// back where they came from.
    OneArm,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Topology {
    /// At most 250.
    pub backends: usize,
    pub layout: Layout,
    /// Service addresses are addresses of the client's own segment, which the node holds, rather
    /// than addresses routed to the node.
    pub vip_on_link: bool,
}

impl Default for Topology {
    fn default() -> Self {
        Self {
            backends: 3,
            layout: Layout::Direct,
            vip_on_link: false,
        }
    }
}

/// A network with real hosts, gone when dropped.
///
/// ```text
///   Direct                                               ┌─────────────────────┐
///                                          ┌─ b1 ── eth0 │ backend 1           │
///                                          │ 10.1.1.1    │ 10.1.1.2  fd00:1:1::2
///   ┌─────────────────┐          ┌─────────┴───┐         └─────────────────────┘
///   │ client          │          │    node     │         ┌─────────────────────┐
///   │ 10.0.0.2 – .9   ├─ eth0 ───┤ client      ├─ b2 ─── │ backend 2           │
///   │ fd00:c::2 – ::9 │          │ 10.0.0.1    │10.1.2.1 │ 10.1.2.2  fd00:1:2::2
///   └─────────────────┘          │ fd00:c::1   │         └─────────────────────┘
///                                └─────────┬───┘                   …
///   Switched                               └─ lan (10.1.0.1/16) ── switch ── backends
///   OneArm        client, node (device lan, all its addresses) and backends on one switch
/// ```
///
/// The node routes between its devices. The backends' default route is through the node, and the
/// client's route to the service addresses 192.0.2.0/24 and 2001:db8::/32.
pub struct Network {
    pub client: Host,
    pub node: Host,
    /// Backend 1 is element 0.
    pub backends: Vec<Host>,
    switch: Option<Host>,
    topology: Topology,
    /// XDP programs at the far ends of the node's cables.
    far_ends: Vec<OwnedFd>,
}

impl Network {
    pub fn new(topology: Topology) -> anyhow::Result<Self> {
        let backends = (1..=topology.backends)
            .map(|i| Host::new(&format!("b{i}")))
            .collect::<anyhow::Result<_>>()?;
        let mut network = Self {
            client: Host::new("client")?,
            node: Host::new("node")?,
            backends,
            switch: None,
            topology,
            far_ends: Vec::new(),
        };
        network.plug()?;
        network.configure_node()?;
        network.configure_client()?;
        for i in 1..=topology.backends {
            network.configure_backend(i)?;
        }
        Ok(network)
    }

    /// Names of the node's devices.
    pub fn node_devices(&self) -> Vec<String> {
        match self.topology.layout {
            Layout::Direct => std::iter::once("client".to_owned())
                .chain((1..=self.backends.len()).map(|i| format!("b{i}")))
                .collect(),
            Layout::Switched => vec!["client".to_owned(), "lan".to_owned()],
            Layout::OneArm => vec!["lan".to_owned()],
        }
    }

    /// Address of backend `i`, from 1.
    pub fn backend(&self, i: usize, family: Family) -> IpAddr {
        backend_address(i, family)
    }

    /// The `n`th service address, from 0.
    pub fn vip(&self, n: u8, family: Family) -> IpAddr {
        let host = 100 + n;
        match (family, self.topology.vip_on_link) {
            (Family::V4, false) => Ipv4Addr::new(192, 0, 2, host).into(),
            (Family::V6, false) => v6([0x2001, 0xdb8], host.into()),
            (Family::V4, true) => Ipv4Addr::new(10, 0, 0, host).into(),
            (Family::V6, true) => v6([0xfd00, 0xc], host.into()),
        }
    }

    /// Source addresses of the client.
    pub fn client_addresses(&self, family: Family) -> Vec<IpAddr> {
        (0..CLIENT_ADDRESSES)
            .map(|n| client_address(n, family))
            .collect()
    }

    /// Address of the node on the client's segment.
    pub fn node_address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, 0, 0, 1).into(),
            Family::V6 => v6([0xfd00, 0xc], 1),
        }
    }

    /// Makes backend `i` vanish without a word to anybody: its port of the switch goes down, which
    /// neither the node nor the backend is told. `false` brings it back.
    pub fn cut_off(&self, i: usize, cut: bool) -> anyhow::Result<()> {
        let switch = self.switch.as_ref().expect("a layout with a switch");
        let state = if cut { "down" } else { "up" };
        switch.ip(&format!("link set dev p{i} {state}"))
    }

    /// Takes the cable to backend `i`, from 1, away on a direct layout, and everything that hung on it.
    pub fn unplug(&self, i: usize) -> anyhow::Result<()> {
        self.node.ip(&format!("link del dev b{i}"))
    }

    /// Puts another in its place: the devices have the names and addresses of the former.
    pub fn replug(&mut self, i: usize) -> anyhow::Result<()> {
        let backend = &self.backends[i - 1];
        cable(&self.node, &format!("b{i}"), backend, "eth0")?;
        self.far_ends.push(pass_everything(backend, "eth0")?);
        self.node.ip(&node_addresses(i))?;
        self.configure_backend(i)
    }

    /// Takes the carrier from the node's cable to the switch. `false` brings it back.
    pub fn unplug_node(&self, unplugged: bool) -> anyhow::Result<()> {
        let switch = self.switch.as_ref().expect("a layout with a switch");
        let state = if unplugged { "down" } else { "up" };
        switch.ip(&format!("link set dev node {state}"))
    }

    fn plug(&mut self) -> anyhow::Result<()> {
        if self.topology.layout != Layout::OneArm {
            cable(&self.client, "eth0", &self.node, "client")?;
            self.far_ends.push(pass_everything(&self.client, "eth0")?);
        }
        if self.topology.layout != Layout::Direct {
            return self.plug_switch();
        }
        for (i, backend) in (1..).zip(&self.backends) {
            cable(&self.node, &format!("b{i}"), backend, "eth0")?;
            self.far_ends.push(pass_everything(backend, "eth0")?);
        }
        Ok(())
    }

    fn plug_switch(&mut self) -> anyhow::Result<()> {
        let switch = Host::new("switch")?;
        switch.sysctl(&[("ipv6/conf/default/disable_ipv6", "1")])?;
        switch.ip("link add name bridge type bridge mcast_snooping 0\nlink set dev bridge up")?;
        let mut ports = vec![("node".to_owned(), &self.node, "lan")];
        for (i, backend) in (1..).zip(&self.backends) {
            ports.push((format!("p{i}"), backend, "eth0"));
        }
        if self.topology.layout == Layout::OneArm {
            ports.push(("client".to_owned(), &self.client, "eth0"));
        }
        for (port, host, device) in ports {
            cable(&switch, &port, host, device)?;
            switch.ip(&format!("link set dev {port} master bridge"))?;
        }
        self.far_ends.push(pass_everything(&switch, "node")?);
        self.switch = Some(switch);
        Ok(())
    }

    fn configure_node(&self) -> anyhow::Result<()> {
        self.node.sysctl(&[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
        ])?;
        let (client, lan) = match self.topology.layout {
            Layout::Direct => ("client", None),
            Layout::Switched => ("client", Some("lan")),
            Layout::OneArm => ("lan", Some("lan")),
        };
        if client == "lan" {
            self.node.sysctl(&[("ipv4/conf/lan/send_redirects", "0")])?;
        }
        let mut lines = format!(
            "addr add 10.0.0.1/24 dev {client}\naddr add fd00:c::1/64 dev {client} nodad\n"
        );
        match lan {
            Some(lan) => {
                lines += &format!(
                    "addr add 10.1.0.1/16 dev {lan}\naddr add fd00:1::1/32 dev {lan} nodad\n"
                )
            }
            None => {
                for i in 1..=self.backends.len() {
                    lines += &node_addresses(i);
                }
            }
        }
        if self.topology.vip_on_link {
            for n in 0..8 {
                for family in Family::BOTH {
                    let (vip, nodad) = (self.vip(n, family), nodad(family));
                    lines += &format!("addr add {vip} dev {client}{nodad}\n");
                }
            }
        }
        self.node.ip(&lines)
    }

    fn configure_client(&self) -> anyhow::Result<()> {
        let mut lines = String::new();
        for family in Family::BOTH {
            let (prefix, nodad) = (if family == Family::V4 { 24 } else { 64 }, nodad(family));
            for address in self.client_addresses(family) {
                lines += &format!("addr add {address}/{prefix} dev eth0{nodad}\n");
            }
        }
        lines += "route add 0.0.0.0/0 via 10.0.0.1\nroute add ::/0 via fd00:c::1\n";
        self.client.ip(&lines)
    }

    fn configure_backend(&self, i: usize) -> anyhow::Result<()> {
        let (v4_prefix, v6_prefix, v4_router, v6_router) = match self.topology.layout {
            Layout::Direct => (24, 64, format!("10.1.{i}.1"), format!("fd00:1:{i:x}::1")),
            _ => (16, 32, "10.1.0.1".to_owned(), "fd00:1::1".to_owned()),
        };
        let (v4, v6) = (self.backend(i, Family::V4), self.backend(i, Family::V6));
        self.backends[i - 1].ip(&format!(
            "addr add {v4}/{v4_prefix} dev eth0\n\
             addr add {v6}/{v6_prefix} dev eth0 nodad\n\
             route add 0.0.0.0/0 via {v4_router}\n\
             route add ::/0 via {v6_router}\n"
        ))
    }
}

/// The node's addresses on the cable to backend `i` of a direct layout.
fn node_addresses(i: usize) -> String {
    format!("addr add 10.1.{i}.1/24 dev b{i}\naddr add fd00:1:{i:x}::1/64 dev b{i} nodad\n")
}

/// Address of backend `i` in every network, from 1.
pub fn backend_address(i: usize, family: Family) -> IpAddr {
    let i = u8::try_from(i).expect("at most 250 backends");
    match family {
        Family::V4 => Ipv4Addr::new(10, 1, i, 2).into(),
        Family::V6 => v6([0xfd00, 1, i.into()], 2),
    }
}

/// Family of an address.
pub fn family(address: &SocketAddr) -> Family {
    if address.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    }
}

fn client_address(n: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 0, 0, 2 + n).into(),
        Family::V6 => v6([0xfd00, 0xc], 2 + u16::from(n)),
    }
}

fn v6<const N: usize>(prefix: [u16; N], host: u16) -> IpAddr {
    let mut segments = [0; 8];
    segments[..N].copy_from_slice(&prefix);
    segments[7] = host;
    Ipv6Addr::from(segments).into()
}

fn nodad(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => " nodad",
    }
}
