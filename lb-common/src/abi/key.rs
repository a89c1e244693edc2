use super::address::{Address, Be16};

/// IP protocol numbers this data path knows. Flows are of TCP or UDP.
pub mod protocol {
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    /// Not balanced, but answered for services: see [`super::ServiceKey::echo`].
    pub const ICMP: u8 = 1;
    pub const ICMPV6: u8 = 58;
}

/// Key of the flow tables: the five-tuple of a packet as it arrives.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey<A> {
    pub src: A,
    pub dst: A,
    pub src_port: Be16,
    pub dst_port: Be16,
    /// One of [`protocol`]. A whole word, which the path writes at once.
    pub protocol: u32,
}

impl<A: Address> FlowKey<A> {
    #[inline(always)]
    pub const fn new(src: A, src_port: Be16, dst: A, dst_port: Be16, protocol: u8) -> Self {
        Self {
            src,
            dst,
            src_port,
            dst_port,
            protocol: protocol as u32,
        }
    }

    /// One of [`protocol`].
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        self.protocol as u8
    }

    /// The key of the packets that answer those of this key.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self::new(
            self.dst,
            self.dst_port,
            self.src,
            self.src_port,
            self.protocol(),
        )
    }
}

/// Key of the service tables: where a service listens.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ServiceKey<A> {
    pub address: A,
    pub port: Be16,
    pub protocol: u8,
    pub pad: u8,
}

impl<A: Address> ServiceKey<A> {
    /// Key of the entry that says that `address` is some service's, so that its echo requests are
    /// answered; `icmp` is the family's ICMP. No TCP or UDP service has a key like this.
    #[inline(always)]
    pub const fn echo(address: A, icmp: u8) -> Self {
        Self::new(address, Be16::new(0), icmp)
    }

    #[inline(always)]
    pub const fn new(address: A, port: Be16, protocol: u8) -> Self {
        Self {
            address,
            port,
            protocol,
            pad: 0,
        }
    }
}
