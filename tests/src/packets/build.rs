//! Builds packets field by field, with checksums summed afresh, so that expected packets do not
//! depend on the path's incremental arithmetic.

use std::net::{IpAddr, SocketAddr};

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// A packet to be. Fields that are `None` are computed.
#[derive(Clone, Debug)]
pub struct Packet {
    pub macs: ([u8; 6], [u8; 6]),
    /// VLAN tags, outermost first: (ethertype, tag).
    pub tags: Vec<(u16, u16)>,
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub ttl: u8,
    pub tos: u8,
    pub id: u16,
    /// IPv4 flags and fragment offset.
    pub fragment: u16,
    /// IPv4 options, a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers: number, and bytes, a multiple of 8, whose first is filled in.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub transport: Transport,
    pub payload: Vec<u8>,
    /// Bytes behind the packet (Ethernet padding).
    pub trailer: Vec<u8>,
    pub total_length: Option<u16>,
}

#[derive(Clone, Debug)]
pub enum Transport {
    Tcp {
        flags: u8,
        sequence: u32,
        acknowledgement: u32,
        options: Vec<u8>,
    },
    /// `checksum: false` sends 0.
    Udp { checksum: bool, length: Option<u16> },
    /// ICMP or ICMPv6: type, code, rest of header.
    Icmp(u8, u8, u32),
    /// Protocol number and nothing of ours behind it.
    Other(u8),
}

/// An IPv6 fragment header for what belongs at byte `start`.
pub fn fragment_header(id: u32, start: u16, more: bool) -> (u8, Vec<u8>) {
    let mut bytes = vec![0, 0];
    bytes.extend((start | u16::from(more)).to_be_bytes());
    bytes.extend(id.to_be_bytes());
    (44, bytes)
}

/// Sum of big-endian 16-bit words, odd byte padded.
fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

fn checksum(total: u32) -> u16 {
    let mut total = total;
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl Packet {
    pub fn tcp(macs: ([u8; 6], [u8; 6]), src: SocketAddr, dst: SocketAddr, flags: u8) -> Self {
        Self {
            macs,
            tags: Vec::new(),
            src,
            dst,
            ttl: 64,
            tos: 0,
            id: 0x1234,
            fragment: 0x4000,
            options: Vec::new(),
            extensions: Vec::new(),
            transport: Transport::Tcp {
                flags,
                sequence: 0x0102_0304,
                acknowledgement: 0x0102_0305,
                options: Vec::new(),
            },
            payload: Vec::new(),
            trailer: Vec::new(),
            total_length: None,
        }
    }

    pub fn udp(macs: ([u8; 6], [u8; 6]), src: SocketAddr, dst: SocketAddr) -> Self {
        Self {
            transport: Transport::Udp {
                checksum: true,
                length: None,
            },
            payload: b"question".to_vec(),
            ..Self::tcp(macs, src, dst, 0)
        }
    }

    /// This packet after a translation: other ends, one hop further, other MACs.
    pub fn moved(&self, macs: ([u8; 6], [u8; 6]), src: SocketAddr, dst: SocketAddr) -> Self {
        Self {
            macs,
            src,
            dst,
            ttl: self.ttl - 1,
            ..self.clone()
        }
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.macs.0);
        bytes.extend(self.macs.1);
        for (ethertype, tag) in &self.tags {
            bytes.extend(ethertype.to_be_bytes());
            bytes.extend(tag.to_be_bytes());
        }
        let segment = self.segment();
        match self.src.ip() {
            IpAddr::V4(_) => {
                bytes.extend(0x0800_u16.to_be_bytes());
                bytes.extend(self.ipv4_header(segment.len()));
            }
            IpAddr::V6(_) => {
                bytes.extend(0x86dd_u16.to_be_bytes());
                bytes.extend(self.ipv6_header(segment.len()));
            }
        }
        bytes.extend(segment);
        bytes.extend(&self.trailer);
        bytes
    }

    /// Bytes of the IP header with options or extension headers.
    pub fn header_length(&self) -> usize {
        match self.src.ip() {
            IpAddr::V4(_) => 20 + self.options.len(),
            IpAddr::V6(_) => 40 + self.extensions.iter().map(|e| e.1.len()).sum::<usize>(),
        }
    }

    /// This packet in fragments of so many bytes each, a multiple of 8, and one with the rest.
    pub fn fragments(&self, id: u32, sizes: &[usize]) -> Vec<Self> {
        let segment = self.segment();
        let mut sizes = sizes.to_vec();
        sizes.push(segment.len() - sizes.iter().sum::<usize>());
        let mut start = 0;
        let mut fragments = Vec::new();
        for size in sizes {
            let more = start + size < segment.len();
            let mut fragment = self.clone();
            fragment.transport = Transport::Other(self.protocol());
            fragment.payload = segment[start..start + size].to_vec();
            fragment.id = id as u16;
            fragment.fragment = u16::from(more) << 13 | (start / 8) as u16;
            if self.src.is_ipv6() {
                fragment
                    .extensions
                    .push(fragment_header(id, start as u16, more));
            }
            fragments.push(fragment);
            start += size;
        }
        fragments
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => 6,
            Transport::Udp { .. } => 17,
            Transport::Icmp(..) => {
                if self.src.is_ipv6() {
                    58
                } else {
                    1
                }
            }
            Transport::Other(protocol) => protocol,
        }
    }

    fn ipv4_header(&self, payload: usize) -> Vec<u8> {
        let length = 20 + self.options.len();
        let total = self.total_length.unwrap_or((length + payload) as u16);
        let mut header = vec![0x40 | (length / 4) as u8, self.tos];
        header.extend(total.to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, self.protocol(), 0, 0]);
        header.extend(octets(self.src.ip()));
        header.extend(octets(self.dst.ip()));
        header.extend(&self.options);
        let value = checksum(sum(&header));
        header[10..12].copy_from_slice(&value.to_be_bytes());
        header
    }

    fn ipv6_header(&self, payload: usize) -> Vec<u8> {
        let extended = self.header_length() - 40 + payload;
        let length = self.total_length.unwrap_or(extended as u16);
        let numbers: Vec<u8> = self.extensions.iter().map(|e| e.0).collect();
        let mut next = numbers.into_iter().chain([self.protocol()]);
        let mut header = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
        header.extend(length.to_be_bytes());
        header.extend([next.next().unwrap_or(0), self.ttl]);
        header.extend(octets(self.src.ip()));
        header.extend(octets(self.dst.ip()));
        for (_, bytes) in &self.extensions {
            header.extend(next.next());
            header.extend(&bytes[1..]);
        }
        header
    }

    /// Transport header and payload, checksum included.
    fn segment(&self) -> Vec<u8> {
        let mut segment = Vec::new();
        let field = match &self.transport {
            Transport::Tcp {
                flags,
                sequence,
                acknowledgement,
                options,
            } => {
                segment.extend(self.src.port().to_be_bytes());
                segment.extend(self.dst.port().to_be_bytes());
                segment.extend(sequence.to_be_bytes());
                segment.extend(acknowledgement.to_be_bytes());
                segment.extend([(((20 + options.len()) / 4) << 4) as u8, *flags]);
                segment.extend(if *flags & RST != 0 {
                    [0; 2]
                } else {
                    [0xfa, 0xf0]
                });
                segment.extend([0; 4]);
                segment.extend(options);
                Some(16)
            }
            Transport::Udp { checksum, length } => {
                let real = (8 + self.payload.len()) as u16;
                segment.extend(self.src.port().to_be_bytes());
                segment.extend(self.dst.port().to_be_bytes());
                segment.extend(length.unwrap_or(real).to_be_bytes());
                segment.extend([0; 2]);
                checksum.then_some(6)
            }
            Transport::Icmp(kind, code, rest) => {
                segment.extend([*kind, *code, 0, 0]);
                segment.extend(rest.to_be_bytes());
                Some(2)
            }
            Transport::Other(_) => None,
        };
        segment.extend(&self.payload);
        if let Some(field) = field {
            let value = match checksum(self.pseudo(segment.len()) + sum(&segment)) {
                0 if matches!(self.transport, Transport::Udp { .. }) => 0xffff,
                value => value,
            };
            segment[field..field + 2].copy_from_slice(&value.to_be_bytes());
        }
        segment
    }

    fn pseudo(&self, length: usize) -> u32 {
        if matches!(self.transport, Transport::Icmp(..)) && self.src.is_ipv4() {
            return 0;
        }
        sum(&octets(self.src.ip()))
            + sum(&octets(self.dst.ip()))
            + u32::from(self.protocol())
            + length as u32
    }
}
