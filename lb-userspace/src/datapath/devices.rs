//! The node's network devices, and which of them the data path serves.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use lb_common::abi::link;

use super::{
    netlink::{Message, Socket, attribute, number, put_attribute, text},
    sys,
};
use crate::model::Interfaces;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Device {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) mtu: u32,
    loopback: bool,
    ethernet: bool,
    /// Kind of a virtual device (`veth`, `vlan`, `bridge`…), `None` for hardware.
    kind: Option<String>,
    /// Of a VLAN device the device that it stands on, of a veth device its other end.
    other: Option<u32>,
    /// The kernel's number, in this network namespace, of the one where `other` is, if it is elsewhere.
    elsewhere: Option<u32>,
    pub(super) xdp: Option<Running>,
    /// VLAN devices stand on it.
    carries_vlans: bool,
}

impl Device {
    fn is(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind)
    }

    /// Why generic XDP is not good for it, if it is not: it would be shown packets with half a checksum,
    /// which it cannot tell from others, and would send on with a wrong one.
    pub(super) fn against_generic(&self) -> Option<&'static str> {
        /// These get their packets from other devices. Generic XDP switches off on its own device only
        /// what merges segments (`netif_elide_gro`, include/linux/netdevice.h).
        const STACKED: [&str; 15] = [
            "bond",
            "bridge",
            "dsa",
            "erspan",
            "geneve",
            "gretap",
            "ip6erspan",
            "ip6gretap",
            "ipvlan",
            "macsec",
            "macvlan",
            "macvtap",
            "team",
            "vlan",
            "vxlan",
        ];
        /// Drivers whose other end is a kernel that leaves sums to whoever sends the packet on
        /// (`CHECKSUM_PARTIAL`): of a virtual machine's neighbours, or of the node itself.
        const UNSUMMED: [&str; 5] = ["netkit", "tun", "veth", "vif", "virtio_net"];
        if STACKED.iter().any(|kind| self.is(kind)) {
            return Some("generic XDP is shown what the devices below have merged");
        }
        self.is_driven_by(&UNSUMMED)
            .then_some("generic XDP is shown packets whose checksums are still to be computed")
    }

    /// As [`Self::against_generic`], of native XDP. veth and virtio have sums computed while they have it.
    fn against_native(&self) -> Option<&'static str> {
        /// `tun_build_skb` (drivers/net/tun.c) and `xennet_get_responses` (drivers/net/xen-netfront.c) run
        /// programs whatever is still to be computed. The latter's driver takes a program that it never
        /// runs, too, where the other end leaves no room for it (`xennet_xdp_set`).
        const UNSUMMED: [&str; 2] = ["tun", "vif"];
        self.is_driven_by(&UNSUMMED)
            .then_some("native XDP is shown packets whose checksums are still to be computed")
    }

    fn is_driven_by(&self, drivers: &[&str]) -> bool {
        let driver = sys::ethtool_driver(&self.name);
        let names = [self.kind.as_deref(), driver.as_deref()];
        names
            .into_iter()
            .flatten()
            .any(|name| drivers.contains(&name))
    }
}

/// The XDP program a device runs, whoever attached it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Running {
    pub(super) native: bool,
    pub(super) program: u32,
}

/// All devices of this network namespace.
pub(super) fn list() -> Result<Vec<Device>> {
    // struct ifinfomsg
    let answer = Socket::open(libc::NETLINK_ROUTE)
        .and_then(|s| s.request(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; 16]))
        .context("asking the kernel for its network devices")?;
    let mut devices: Vec<_> = answer.iter().filter_map(device).collect();
    let vlans = devices
        .iter()
        .filter(|d| d.is("vlan") && d.elsewhere.is_none());
    let under: BTreeSet<_> = vlans.filter_map(|vlan| vlan.other).collect();
    for device in &mut devices {
        device.carries_vlans = under.contains(&device.index);
    }
    Ok(devices)
}

/// Why a device is better served without native or generic XDP, if it is.
pub(super) fn against_xdp(device: &Device, native: bool) -> Option<&'static str> {
    if native && device.is("veth") && !is_met_by_xdp(device) {
        // `veth_xdp_flush` in the kernel's drivers/net/veth.c.
        return Some("a veth device loses what XDP sends back unless its other end has XDP too");
    }
    let against = match native {
        true => device.against_native(),
        false => device.against_generic(),
    };
    if against.is_some() {
        return against;
    }
    // A veth device hands over what its other end did not write out, whatever it is told itself.
    let hides_tags = device.carries_vlans && (device.is("veth") || takes_tags_off(device));
    hides_tags.then_some("its VLANs' tags are taken off before XDP: `ethtool -K DEV rxvlan off`")
}

/// Whether the other end of a veth device has native XDP; where the kernel does not say it counts as
/// having none.
fn is_met_by_xdp(veth: &Device) -> bool {
    let Some(index) = veth.other else {
        return false;
    };
    // struct ifinfomsg
    let mut body = [0, index, 0, 0].map(u32::to_ne_bytes).concat();
    if let Some(namespace) = veth.elsewhere {
        let namespace = namespace.to_ne_bytes();
        put_attribute(&mut body, libc::IFLA_TARGET_NETNSID, &namespace);
    }
    let answer = Socket::open(libc::NETLINK_ROUTE)
        .and_then(|socket| socket.request(libc::RTM_GETLINK, 0, &body))
        .unwrap_or_default();
    let other = answer.iter().find_map(device);
    other.is_some_and(|other| other.xdp.is_some_and(|xdp| xdp.native))
}

/// Whether the driver puts VLAN tags beside frames. One that does not say counts as doing so: then TC
/// sees to it, which finds the tags in either place.
fn takes_tags_off(device: &Device) -> bool {
    sys::ethtool_flags(&device.name).is_none_or(|flags| flags & sys::ETH_FLAG_RXVLAN != 0)
}

/// Numbers of the devices that carry a default route.
pub(super) fn with_default_route() -> Result<BTreeSet<u32>> {
    // struct rtmsg
    let answer = Socket::open(libc::NETLINK_ROUTE)
        .and_then(|s| s.request(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &[0; 12]))
        .context("asking the kernel for its routes")?;
    Ok(answer.iter().flat_map(default_route).collect())
}

/// The devices to serve, and the configured names that do not exist.
///
/// `auto` is every device that is up and carries a default route, IPv4 or IPv6; on a node without
/// default route every Ethernet device that is up and either hardware or veth (a bridge, bond or
/// VLAN is served where the packets enter it). Loopback never. What is served already, by number
/// in `serving`, stays so: a route that vanishes for a moment must not cost traffic.
pub(super) fn select<'a>(
    interfaces: &Interfaces,
    devices: &'a [Device],
    default_route: &BTreeSet<u32>,
    serving: &BTreeSet<u32>,
) -> (Vec<&'a Device>, Vec<String>) {
    match interfaces {
        Interfaces::Named(names) => {
            let by_name: BTreeMap<_, _> = devices.iter().map(|d| (d.name.as_str(), d)).collect();
            let found = names
                .iter()
                .filter_map(|n| by_name.get(n.as_str()).copied());
            let missing = names.iter().filter(|n| !by_name.contains_key(n.as_str()));
            (found.collect(), missing.cloned().collect())
        }
        Interfaces::Auto(_) => {
            let up = || devices.iter().filter(|d| d.up && !d.loopback);
            let is_uplink = |d: &&Device| default_route.contains(&d.index);
            let is_port = |d: &&Device| d.ethernet && (d.kind.is_none() || d.is("veth"));
            let mut chosen: Vec<_> = devices
                .iter()
                .filter(|d| serving.contains(&d.index))
                .collect();
            chosen.extend(up().filter(|d| is_uplink(d) && !serving.contains(&d.index)));
            if chosen.is_empty() {
                chosen = up().filter(is_port).collect();
            }
            (chosen, Vec::new())
        }
    }
}

/// What the packet path is told of every device ([`link`]), by number; `direct` are those that XDP
/// may redirect into.
pub(super) fn words(devices: &[Device], direct: &BTreeSet<u32>) -> BTreeMap<u32, u32> {
    let up = devices.iter().filter(|d| d.up);
    up.map(|d| (d.index, link::new(d.mtu, direct.contains(&d.index))))
        .collect()
}

/// Numbers of the devices that XDP may redirect straight into. `targets` is what the kernel told
/// ([`redirect_targets`]); generic XDP, which transmits as the kernel does, can use any device.
pub(super) fn direct(
    devices: &[Device],
    targets: Option<BTreeSet<u32>>,
    any_native: bool,
) -> BTreeSet<u32> {
    if any_native {
        return targets.unwrap_or_default();
    }
    let usable = devices.iter().filter(|d| d.up && !d.loopback);
    usable.map(|d| d.index).collect()
}

/// Fails unless all configured devices exist and there is at least one.
pub(super) fn require(chosen: &[&Device], missing: &[String], devices: &[Device]) -> Result<()> {
    let names = || {
        let names: Vec<_> = devices.iter().map(|d| d.name.as_str()).collect();
        names.join(", ")
    };
    if !missing.is_empty() {
        bail!(
            "node.interfaces: there is no device {}; this node has {}",
            missing.join(", "),
            names()
        );
    }
    if chosen.is_empty() {
        bail!(
            "node.interfaces: auto finds no device that is up; name the devices, this node has {}",
            names()
        );
    }
    Ok(())
}

/// Numbers of the devices whose driver transmits what XDP redirects to them, as the kernel's
/// `netdev` family tells it; `None` where the kernel does not (before Linux 6.3).
pub(super) fn redirect_targets() -> Option<BTreeSet<u32>> {
    // Numbers of include/uapi/linux/netdev.h.
    const CMD_DEV_GET: u8 = 1;
    const A_IFINDEX: u16 = 1;
    const A_XDP_FEATURES: u16 = 3;
    const XDP_ACT_NDO_XMIT: u64 = 1 << 2;
    const XDP_ACT_NDO_XMIT_SG: u64 = 1 << 6;
    // Frames in several buffers are lost where the driver transmits none (`__xdp_enqueue`,
    // kernel/bpf/devmap.c), and there is no telling which come.
    let needed = match sys::program::has_xdp_frags() {
        true => XDP_ACT_NDO_XMIT | XDP_ACT_NDO_XMIT_SG,
        false => XDP_ACT_NDO_XMIT,
    };

    let socket = Socket::open(libc::NETLINK_GENERIC).ok()?;
    let family = netdev_family(&socket)?;
    let answer = socket
        .request(family, libc::NLM_F_DUMP, &[CMD_DEV_GET, 1, 0, 0])
        .ok()?;
    let targets = answer.iter().filter_map(|message| {
        let tail = message.body.get(4..)?;
        let index = number::<u32>(attribute(tail, A_IFINDEX)?, 0)?;
        let features = number::<u64>(attribute(tail, A_XDP_FEATURES)?, 0)?;
        (features & needed == needed).then_some(index)
    });
    Some(targets.collect())
}

fn netdev_family(socket: &Socket) -> Option<u16> {
    const ATTR_FAMILY_ID: u16 = 1;
    const ATTR_FAMILY_NAME: u16 = 2;
    let mut body = vec![libc::CTRL_CMD_GETFAMILY as u8, 1, 0, 0];
    put_attribute(&mut body, ATTR_FAMILY_NAME, b"netdev\0");
    let answer = socket.request(libc::GENL_ID_CTRL as u16, 0, &body).ok()?;
    let tail = answer.first()?.body.get(4..)?;
    number(attribute(tail, ATTR_FAMILY_ID)?, 0)
}

fn device(message: &Message) -> Option<Device> {
    let body = &message.body;
    let flags = number::<u32>(body, 8)?;
    let tail = body.get(16..)?;
    let kind = attribute(tail, libc::IFLA_LINKINFO)
        .and_then(|info| attribute(info, libc::IFLA_INFO_KIND))
        .map(text);
    let word = |kind| attribute(tail, kind).and_then(|value| number(value, 0));
    Some(Device {
        index: number(body, 4)?,
        name: text(attribute(tail, libc::IFLA_IFNAME)?),
        up: flags & libc::IFF_UP as u32 != 0,
        mtu: word(libc::IFLA_MTU).unwrap_or_default(),
        loopback: flags & libc::IFF_LOOPBACK as u32 != 0,
        ethernet: number::<u16>(body, 2)? == libc::ARPHRD_ETHER,
        kind,
        other: word(libc::IFLA_LINK),
        elsewhere: word(libc::IFLA_LINK_NETNSID),
        xdp: attribute(tail, libc::IFLA_XDP).and_then(running),
        carries_vlans: false,
    })
}

fn running(xdp: &[u8]) -> Option<Running> {
    const ATTACHED: u16 = 2;
    const PROG_ID: u16 = 4;
    const GENERIC: u8 = 2;
    let mode = *attribute(xdp, ATTACHED)?.first()?;
    (mode != 0).then(|| Running {
        native: mode != GENERIC,
        program: attribute(xdp, PROG_ID)
            .and_then(|id| number(id, 0))
            .unwrap_or_default(),
    })
}

/// Output devices of a route of prefix length 0 in any table but `local`.
fn default_route(message: &Message) -> Vec<u32> {
    let body = &message.body;
    let (Some(prefix), Some(table), Some(kind), Some(tail)) =
        (body.get(1), body.get(4), body.get(7), body.get(12..))
    else {
        return Vec::new();
    };
    if *prefix != 0 || *table == libc::RT_TABLE_LOCAL || *kind != libc::RTN_UNICAST {
        return Vec::new();
    }
    let single = attribute(tail, libc::RTA_OIF).and_then(|index| number(index, 0));
    let many = attribute(tail, libc::RTA_MULTIPATH).map(next_hops);
    single
        .into_iter()
        .chain(many.into_iter().flatten())
        .collect()
}

/// Devices in an array of `struct rtnexthop`.
fn next_hops(mut bytes: &[u8]) -> Vec<u32> {
    let mut found = Vec::new();
    while let (Some(length), Some(index)) = (number::<u16>(bytes, 0), number(bytes, 4)) {
        found.push(index);
        if length < 8 {
            break;
        }
        let length = usize::from(length).next_multiple_of(4);
        bytes = bytes.get(length..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        datapath::testing::{ip_commands, isolated},
        model::AutoWord,
    };

    fn some(index: u32, name: &str, kind: Option<&str>, up: bool) -> Device {
        Device {
            index,
            name: name.to_owned(),
            up,
            mtu: 1500,
            loopback: name == "lo",
            ethernet: true,
            kind: kind.map(str::to_owned),
            other: None,
            elsewhere: None,
            xdp: None,
            carries_vlans: false,
        }
    }

    fn node() -> Vec<Device> {
        vec![
            some(1, "lo", None, true),
            some(2, "eth0", None, true),
            some(3, "eth1", None, false),
            some(4, "veth0", Some("veth"), true),
            some(5, "br0", Some("bridge"), true),
        ]
    }

    fn names(chosen: &[&Device]) -> Vec<String> {
        chosen.iter().map(|d| d.name.clone()).collect()
    }

    #[test]
    fn auto_prefers_the_default_route() {
        let auto = Interfaces::Auto(AutoWord::Auto);
        let (devices, none) = (node(), BTreeSet::new());
        let (chosen, _) = select(&auto, &devices, &[3, 5].into(), &none);
        assert_eq!(names(&chosen), ["br0"]);
        let (chosen, _) = select(&auto, &devices, &none, &none);
        assert_eq!(names(&chosen), ["eth0", "veth0"]);
    }

    #[test]
    fn auto_keeps_what_it_serves() {
        let auto = Interfaces::Auto(AutoWord::Auto);
        let devices = node();
        let again = |default: &[u32], serving: &[u32]| {
            let set = |numbers: &[u32]| numbers.iter().copied().collect();
            names(&select(&auto, &devices, &set(default), &set(serving)).0)
        };
        assert_eq!(again(&[], &[5]), ["br0"]);
        assert_eq!(again(&[2], &[5]), ["br0", "eth0"]);
        assert_eq!(again(&[2], &[9]), ["eth0"]);
    }

    #[test]
    fn generic_xdp_redirects_anywhere_native_where_the_driver_can() {
        let devices = node();
        assert_eq!(direct(&devices, Some([4].into()), true), [4].into());
        assert_eq!(direct(&devices, None, true), BTreeSet::new());
        assert_eq!(direct(&devices, Some([4].into()), false), [2, 4, 5].into());
    }

    #[test]
    fn a_missing_device_is_named_with_those_that_exist() {
        let devices = node();
        let named = Interfaces::Named(vec!["eth0".into(), "eth9".into()]);
        let (chosen, missing) = select(&named, &devices, &BTreeSet::new(), &BTreeSet::new());
        assert_eq!(names(&chosen), ["eth0"]);
        let error = require(&chosen, &missing, &devices)
            .unwrap_err()
            .to_string();
        assert!(error.contains("no device eth9"), "{error}");
        assert!(error.contains("lo, eth0, eth1"), "{error}");
    }

    #[test]
    fn default_routes_are_found() {
        isolated(|_| {
            ip_commands(
                "link add west type veth peer name east
                 link set west up
                 link set east up
                 addr add 10.0.0.1/24 dev west
                 addr add 10.1.0.1/24 dev east",
            );
            let index = |name| {
                list()
                    .unwrap()
                    .into_iter()
                    .find(|d| d.name == name)
                    .unwrap()
                    .index
            };
            assert_eq!(with_default_route().unwrap(), BTreeSet::new());
            ip_commands("route add default via 10.0.0.2");
            assert_eq!(with_default_route().unwrap(), [index("west")].into());
            ip_commands(
                "route del default
                 route add default nexthop via 10.0.0.2 nexthop via 10.1.0.2",
            );
            assert_eq!(
                with_default_route().unwrap(),
                [index("west"), index("east")].into()
            );
            ip_commands("route del default\n-6 route add default dev east");
            assert_eq!(with_default_route().unwrap(), [index("east")].into());
        });
    }
}
