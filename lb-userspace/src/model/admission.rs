//! Whom a service lets in.

use std::{cmp::Reverse, fmt, net::IpAddr, ops::Deref, str::FromStr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

/// An IP prefix; ordered so that longer ones come first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Prefix {
    /// Bits behind the length are zero.
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// # Errors
    /// The length is more than the address has, or bits behind it are set; the words say what is
    /// meant instead.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, String> {
        let all = width(address);
        if length > all {
            return Err(format!(
                "{address}/{length}: the length is a number from 0 to {all}"
            ));
        }
        let prefix = Self {
            address: cut(address, length),
            length,
        };
        if prefix.address != address {
            return Err(format!(
                "{address}/{length} has bits set behind its length; write {prefix}, or \
                 {address}/{all} for the one address"
            ));
        }
        Ok(prefix)
    }

    /// The prefix of this length that an address is in; `None` if it has fewer bits.
    pub fn around(address: IpAddr, length: u8) -> Option<Self> {
        (length <= width(address)).then(|| Self {
            address: cut(address, length),
            length,
        })
    }

    pub fn covers(self, address: IpAddr) -> bool {
        Self::around(address, self.length) == Some(self)
    }

    pub const fn address(self) -> IpAddr {
        self.address
    }

    pub const fn length(self) -> u8 {
        self.length
    }

    pub const fn is_v6(self) -> bool {
        super::is_v6(self.address)
    }

    /// Bits of an address of this family.
    pub const fn width(self) -> u8 {
        width(self.address)
    }
}

impl Ord for Prefix {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |prefix: &Self| (Reverse(prefix.length), prefix.address);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Prefix {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = String;

    /// `10.0.0.0/8`, `2001:db8::/32`; an address alone is a prefix of its whole length.
    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || format!("`{text}` is no prefix; write e.g. 10.0.0.0/8 or 2001:db8::/32");
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| fault())?;
        match length {
            None => Self::new(address, width(address)),
            Some(length) if length.bytes().all(|b| b.is_ascii_digit()) => {
                Self::new(address, length.parse().map_err(|_| fault())?)
            }
            Some(_) => Err(fault()),
        }
    }
}

impl Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

const fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn cut(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4((ip.to_bits() & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::V6((ip.to_bits() & mask).into())
        }
    }
}

/// A list of prefixes that is cheap to copy: it may have tens of thousands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prefixes(Arc<[Prefix]>);

impl Default for Prefixes {
    fn default() -> Self {
        Self(Arc::new([]))
    }
}

impl FromIterator<Prefix> for Prefixes {
    fn from_iter<I: IntoIterator<Item = Prefix>>(prefixes: I) -> Self {
        Self(prefixes.into_iter().collect())
    }
}

impl Deref for Prefixes {
    type Target = [Prefix];

    fn deref(&self) -> &[Prefix] {
        &self.0
    }
}

impl Prefixes {
    fn is_none(&self) -> bool {
        self.is_empty()
    }
}

impl Serialize for Prefixes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Prefixes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::<Prefix>::deserialize(deserializer)?
            .into_iter()
            .collect())
    }
}

/// New connections over time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rate {
    /// At least 1.
    pub connections_per_second: u32,
    /// As many may come at once, at least 1.
    pub burst: u32,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            connections_per_second,
            burst,
        } = self;
        write!(f, "{connections_per_second} a second, burst {burst}")
    }
}

/// How long a client keeps its backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Affinity {
    /// From its last new connection; whole seconds.
    #[serde(with = "super::duration_text")]
    pub client_ip: Duration,
}

/// Whom a service lets in; everybody by default.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Admission {
    /// If there are any, all others are refused.
    #[serde(skip_serializing_if = "Prefixes::is_none", default)]
    pub allow_sources: Prefixes,
    /// The longest prefix of both lists that covers a client decides.
    #[serde(skip_serializing_if = "Prefixes::is_none", default)]
    pub deny_sources: Prefixes,
    /// Open connections of the service.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_connections: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rate: Option<Rate>,
    /// Of each client: an IPv4 address, an IPv6 /64.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source_rate: Option<Rate>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub affinity: Option<Affinity>,
}

/// Both source lists, each prefix once with whether it lets in; in the order of [`Prefix`].
pub type Sources = Arc<[(Prefix, bool)]>;

impl Admission {
    pub fn sources(&self) -> Sources {
        let allowed = self.allow_sources.iter().map(|prefix| (*prefix, true));
        let denied = self.deny_sources.iter().map(|prefix| (*prefix, false));
        let mut sources: Vec<_> = allowed.chain(denied).collect();
        sources.sort_unstable();
        sources.dedup_by_key(|(prefix, _)| *prefix);
        sources.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_as_people_write_them() {
        for text in [
            "10.0.0.0/8",
            "0.0.0.0/0",
            "::/0",
            "2001:db8::/33",
            "1.2.3.4/32",
        ] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        assert_eq!("::1".parse::<Prefix>().unwrap().to_string(), "::1/128");
        for (text, fault) in [
            (
                "10.0.0.1/8",
                "write 10.0.0.0/8, or 10.0.0.1/32 for the one address",
            ),
            ("2001:db8::1/64", "write 2001:db8::/64"),
            ("10.0.0.0/33", "from 0 to 32"),
            ("10.0.0.0/", "is no prefix"),
            ("10.0.0.0/+8", "is no prefix"),
            ("10.0.0/8", "is no prefix"),
        ] {
            let error = text.parse::<Prefix>().unwrap_err();
            assert!(error.contains(fault), "{text}: {error}");
        }
    }

    #[test]
    fn a_prefix_covers_addresses_of_its_family() {
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        for (text, address, covered) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("::/0", "10.0.0.1", false),
        ] {
            let is = prefix(text).covers(address.parse().unwrap());
            assert_eq!(is, covered, "{text} {address}");
        }
        let around = Prefix::around("10.1.2.3".parse().unwrap(), 16);
        assert_eq!(around, Some(prefix("10.1.0.0/16")));
        assert_eq!(Prefix::around("10.1.2.3".parse().unwrap(), 33), None);
    }

    #[test]
    fn longer_prefixes_come_first() {
        let list = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect();
        let admission = Admission {
            allow_sources: list(&["10.0.0.0/8", "10.1.1.1"]),
            deny_sources: list(&["10.1.0.0/16", "2001:db8::/32"]),
            ..Admission::default()
        };
        let sources = admission.sources();
        let lengths: Vec<_> = sources.iter().map(|(p, is)| (p.length(), *is)).collect();
        assert_eq!(lengths, [(32, true), (32, false), (16, false), (8, true)]);
    }
}
