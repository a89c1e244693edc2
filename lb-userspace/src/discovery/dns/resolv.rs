//! `/etc/resolv.conf` (resolv.conf(5)), as far as it concerns whom to ask for which names.

use std::net::{IpAddr, SocketAddr};

/// What the file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolv {
    pub servers: Vec<SocketAddr>,
    pub search: Vec<String>,
    pub ndots: u8,
}

/// Dots from which on a name is first asked as it stands.
pub const NDOTS: u8 = 1;

/// Most that resolvers take, and so does lbd.
pub const MAX_NDOTS: u8 = 15;

/// Lines that are not understood are passed over, as every resolver does.
pub fn parse(text: &str) -> Resolv {
    let mut resolv = Resolv {
        servers: Vec::new(),
        search: Vec::new(),
        ndots: NDOTS,
    };
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => {
                let server = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                resolv
                    .servers
                    .extend(server.map(|ip| SocketAddr::from((ip, 53))));
            }
            // Of several of these the last counts.
            Some("search" | "domain") => resolv.search = words.map(str::to_owned).collect(),
            Some("options") => {
                let ndots = words.filter_map(|word| word.strip_prefix("ndots:"));
                let mut ndots = ndots.filter_map(|number| number.parse::<u32>().ok());
                let ndots = ndots.next_back();
                if let Some(ndots) = ndots {
                    resolv.ndots = u8::try_from(ndots).unwrap_or(MAX_NDOTS).min(MAX_NDOTS);
                }
            }
            _ => {}
        }
    }
    resolv
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_search_and_ndots_are_read() {
        let text = "# resolver\ndomain old.example\nnameserver 10.0.0.53\nnameserver\t2001:db8::53\n\
                    nameserver fe80::1%eth0\nsearch  a.example b.example\n\
                    options edns0 ndots:5 timeout:1\n;end\n";
        let resolv = parse(text);
        let servers: Vec<_> = resolv.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.53:53", "[2001:db8::53]:53"]);
        assert_eq!(resolv.search, ["a.example", "b.example"]);
        assert_eq!(resolv.ndots, 5);
        assert_eq!(parse("options ndots:999").ndots, 15);
        assert_eq!(parse("").ndots, 1);
    }
}
