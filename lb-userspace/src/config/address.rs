//! `IP:PORT`, and what is wrong with everything else.

use std::net::{IpAddr, SocketAddr};

use super::suggest::quoted;

/// Parses `IP:PORT` or `[IPv6]:PORT`; the error says how to write what was meant.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let shown = quoted(text);
    if let Ok(ip) = text.parse::<IpAddr>() {
        let example = SocketAddr::new(ip, 80);
        return Err(format!("{shown} has no port; write e.g. \"{example}\""));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(format!(
            "{shown} is no address; write IP:PORT, e.g. \"192.0.2.10:80\""
        ));
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let fault = match bare.unwrap_or(host).parse::<IpAddr>() {
        Ok(_) if port.parse::<u16>().is_err() => {
            format!("{shown}: the port must be a number from 1 to 65535")
        }
        Ok(IpAddr::V6(ip)) => format!("{shown}: an IPv6 address needs brackets: \"[{ip}]:{port}\""),
        Ok(IpAddr::V4(ip)) => {
            format!("{shown}: an IPv4 address takes no brackets: \"{ip}:{port}\"")
        }
        Err(_) if is_hostname(host) => format!(
            "{shown}: {} is a name; write the IP address it stands for",
            quoted(host)
        ),
        Err(_) => {
            format!("{shown} is no address; write e.g. \"192.0.2.10:80\" or \"[2001:db8::1]:80\"")
        }
    };
    Err(fault)
}

fn is_hostname(text: &str) -> bool {
    text.contains(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}
