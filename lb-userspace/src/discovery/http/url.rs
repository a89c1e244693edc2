//! Where an HTTP server is.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// `http://HOST[:PORT][/PATH]` or `https://…`, without credentials, query or fragment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BaseUrl {
    pub is_tls: bool,
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
    /// What every request's path begins with; empty, or begins with `/` and does not end with one.
    pub path: String,
}

impl BaseUrl {
    /// As the Host header has it.
    pub fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match (self.is_tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

impl From<BaseUrl> for String {
    fn from(url: BaseUrl) -> Self {
        url.to_string()
    }
}

impl TryFrom<String> for BaseUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for BaseUrl {
    type Err = String;

    /// Errors are in words and never repeat the text, which may hold a password.
    fn from_str(text: &str) -> Result<Self, String> {
        let (is_tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return Err("must begin with http:// or https://".to_owned()),
        };
        if rest.contains(['?', '#']) {
            return Err("must have neither query nor fragment".to_owned());
        }
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return Err("must hold no credentials; they have keys of their own".to_owned());
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or("has a [ without a ]")?;
                let is_address = host.parse::<std::net::Ipv6Addr>().is_ok();
                if !is_address || !(rest.is_empty() || rest.starts_with(':')) {
                    return Err("has no IPv6 address between [ and ]".to_owned());
                }
                (host, rest.strip_prefix(':'))
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let host_char = |b: u8| b.is_ascii_alphanumeric() || b".-_:".contains(&b);
        if host.is_empty() || host.len() > 253 || !host.bytes().all(host_char) {
            return Err("names no host; write e.g. http://10.0.0.5:8500".to_owned());
        }
        let port = match port.map(str::parse) {
            Some(Ok(port)) if port > 0 => port,
            Some(_) => return Err("has no port from 1 to 65535".to_owned()),
            None if is_tls => 443,
            None => 80,
        };
        if !path.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("has a path with spaces or non-ASCII; escape them as %XX".to_owned());
        }
        Ok(Self {
            is_tls,
            host: host.to_owned(),
            port,
            path: path.trim_end_matches('/').to_owned(),
        })
    }
}

/// A text as one segment of a path or as a value in a query (RFC 3986, section 2.1).
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_meaning_is_escaped() {
        assert_eq!(escaped("web-1_a.b~c"), "web-1_a.b~c");
        assert_eq!(escaped("a b/c?d&e=é%"), "a%20b%2Fc%3Fd%26e%3D%C3%A9%25");
    }

    #[test]
    fn urls_are_read_and_written() {
        for (text, shown) in [
            ("http://10.0.0.5:8500", "http://10.0.0.5:8500"),
            ("http://consul/", "http://consul"),
            (
                "https://eureka.example:443/eureka/v2/",
                "https://eureka.example/eureka/v2",
            ),
            (
                "http://[2001:db8::1]:8761/eureka",
                "http://[2001:db8::1]:8761/eureka",
            ),
            ("https://[::1]", "https://[::1]"),
        ] {
            let url: BaseUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(shown.parse(), Ok(url));
        }
        for text in [
            "",
            "consul:8500",
            "ftp://consul",
            "http://",
            "http://:80",
            "http://a:0",
            "http://a:99999",
            "http://a b",
            "http://a/b c",
            "http://a?x",
            "http://user:hunter2@a",
            "http://[::1",
            "http://[consul]",
            "http://[::1]x",
        ] {
            let fault = text.parse::<BaseUrl>().unwrap_err();
            assert!(!fault.contains("hunter2"), "{fault}");
        }
    }
}
