//! Who has which address.

use std::net::{IpAddr, SocketAddr};

/// Addresses by family.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub v6: bool,
}

impl Addresses {
    fn pick(self, v4: &str, v6: &str) -> IpAddr {
        let text = if self.v6 { v6 } else { v4 };
        text.parse()
            .unwrap_or_else(|_| panic!("{text} is an address"))
    }

    pub fn client(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick("198.51.100.7", "2001:db8:c::7"), port)
    }

    pub fn vip(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick("192.0.2.10", "2001:db8:1::10"), port)
    }

    /// An address of the node that is no VIP.
    pub fn node(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick("10.1.0.254", "2001:db8:b::fe"), port)
    }

    /// Another one.
    pub fn second_node(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick("10.1.0.253", "2001:db8:b::fd"), port)
    }

    pub fn backend(self, last: u8, port: u16) -> SocketAddr {
        let text = if self.v6 {
            format!("2001:db8:b::{last:x}")
        } else {
            format!("10.1.0.{last}")
        };
        SocketAddr::new(
            text.parse()
                .unwrap_or_else(|_| panic!("{text} is an address")),
            port,
        )
    }

    pub fn neighbour_of_clients(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick("198.51.100.77", "2001:db8:c::77"), port)
    }

    /// Behind a router on the backends' side.
    pub fn routed(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick("10.2.0.1", "2001:db8:2::1"), port)
    }

    /// The same, behind a way of [`NARROW_MTU`].
    pub fn narrow(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick("10.3.0.1", "2001:db8:3::1"), port)
    }

    /// The prefixes of both.
    pub fn routes(self) -> [(IpAddr, u32); 2] {
        [
            self.prefix(("10.2.0.0", 16), ("2001:db8:2::", 48)),
            self.prefix(("10.3.0.0", 16), ("2001:db8:3::", 48)),
        ]
    }

    /// The clients' network.
    pub fn clients(self) -> (IpAddr, u32) {
        self.prefix(("198.51.100.0", 24), ("2001:db8:c::", 64))
    }

    /// Those behind a way of [`NARROW_MTU`].
    pub fn narrow_clients(self) -> (IpAddr, u32) {
        self.prefix(("198.51.100.128", 25), ("2001:db8:c:0:1::", 80))
    }

    /// The backends' network.
    pub fn backends(self) -> (IpAddr, u32) {
        self.prefix(("10.1.0.0", 24), ("2001:db8:b::", 64))
    }

    pub fn black_holes(self) -> (IpAddr, u32) {
        self.prefix(("10.9.0.0", 16), ("2001:db8:9::", 48))
    }

    fn prefix(self, v4: (&str, u32), v6: (&str, u32)) -> (IpAddr, u32) {
        let length = if self.v6 { v6.1 } else { v4.1 };
        (self.pick(v4.0, v6.0), length)
    }

    /// The node's address on the clients' side.
    pub fn node_to_clients(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick("198.51.100.254", "2001:db8:c::fe"), port)
    }

    /// Addresses of the two networks that are no single host's: broadcast, or any router.
    pub fn groups(self) -> [IpAddr; 2] {
        [
            self.pick("198.51.100.255", "2001:db8:c::"),
            self.pick("10.1.0.255", "2001:db8:b::"),
        ]
    }

    /// A client behind a way of [`NARROW_MTU`].
    pub fn narrow_client(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick("198.51.100.200", "2001:db8:c:0:1::7"), port)
    }

    /// The client whose address ends with this number, from 1 to 255.
    pub fn client_number(self, last: u8, port: u16) -> SocketAddr {
        let (v4, v6) = (
            format!("198.51.100.{last}"),
            format!("2001:db8:c::{last:x}"),
        );
        SocketAddr::new(self.pick(&v4, &v6), port)
    }

    /// A client of another network.
    pub fn stranger(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick("203.0.113.7", "2001:db8:d::7"), port)
    }

    pub fn black_hole(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pick("10.9.0.1", "2001:db8:9::1"), port)
    }
}
