//! `discovery: {zookeeper: …}`.

use std::time::Duration;

use serde_yaml_ng::Mapping;

use super::{
    super::{render::put, suggest::quoted},
    Fields, Form, Report, SourceRemarks, duration, one_or_many, render_secret, secret,
};
use crate::{
    config::value::{choice, text},
    discovery::zookeeper::Config,
    model::duration_text,
};

const SESSION_TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(60);

impl Form for Config {
    const KEYS: &'static [&'static str] = &[
        "servers",
        "chroot",
        "path",
        "user",
        "password",
        "ssl_port",
        "session_timeout",
    ];

    fn decode(fields: &Fields<'_>, report: &mut Report) -> Option<Self> {
        let example = "[\"10.0.0.5:2181\"]";
        let servers = fields.require("servers", "the zookeeper source", example, report);
        let path = fields.require("path", "the zookeeper source", "/services/web", report);
        let mut list = Vec::new();
        for node in one_or_many(servers?) {
            list.push(text(node, "servers", "HOST:PORT", report)?.to_owned());
        }
        let path = text(path?, "path", "an absolute path", report)?.to_owned();
        let chroot = match fields.get("chroot") {
            Some(value) => Some(text(value, "chroot", "an absolute path", report)?.to_owned()),
            None => None,
        };
        let user = match fields.get("user") {
            Some(value) => Some(text(value, "user", "a user's name", report)?.to_owned()),
            None => None,
        };
        let password = match fields.get("password") {
            Some(value) => Some(secret(value, "password", report)?),
            None => None,
        };
        let ssl_port = match fields.get("ssl_port") {
            Some(value) => {
                let words = [("true", true), ("false", false)];
                choice(value, "ssl_port", &words, &[], report)?
            }
            None => false,
        };
        let session_timeout = match fields.get("session_timeout") {
            Some(value) => duration(value, "session_timeout", report)?,
            None => Self::SESSION_TIMEOUT,
        };
        Some(Self {
            servers: list,
            chroot,
            path,
            user,
            password,
            ssl_port,
            session_timeout,
        })
    }

    fn check(&self, remarks: &mut SourceRemarks<'_>) {
        if self.servers.is_empty() {
            remarks.fault("servers", "must name at least one HOST:PORT");
        }
        for (index, server) in self.servers.iter().enumerate() {
            if !is_server(server) {
                let message = format!("{} is no HOST:PORT", quoted(server));
                remarks.fault("servers", message);
            } else if self.servers[..index].contains(server) {
                remarks.fault("servers", format!("lists {server} twice"));
            }
        }
        for (key, path) in [("path", Some(&self.path)), ("chroot", self.chroot.as_ref())] {
            if let Some(fault) = path.and_then(|path| path_fault(path)) {
                remarks.fault(key, fault);
            }
        }
        match (&self.user, &self.password) {
            (Some(user), Some(_)) if user.is_empty() || user.contains(':') => {
                remarks.fault("user", "must not be empty and must have no colon");
            }
            (Some(_), None) => remarks.fault("user", "needs a `password`"),
            (None, Some(_)) => remarks.fault("password", "needs a `user`"),
            _ => {}
        }
        if !SESSION_TIMEOUTS.contains(&self.session_timeout) {
            remarks.fault("session_timeout", "must be from 1s to 1m");
        } else if !self
            .session_timeout
            .subsec_nanos()
            .is_multiple_of(1_000_000)
        {
            remarks.fault("session_timeout", "must be whole milliseconds");
        }
    }

    fn render(&self, map: &mut Mapping) {
        let Self {
            servers,
            chroot,
            path,
            user,
            password,
            ssl_port,
            session_timeout,
        } = self;
        put(map, "servers", servers.clone());
        if let Some(chroot) = chroot {
            put(map, "chroot", chroot.clone());
        }
        put(map, "path", path.clone());
        if let Some(user) = user {
            put(map, "user", user.clone());
        }
        if let Some(password) = password {
            put(map, "password", render_secret(password));
        }
        if *ssl_port {
            put(map, "ssl_port", true);
        }
        if *session_timeout != Self::SESSION_TIMEOUT {
            put(
                map,
                "session_timeout",
                duration_text::format(*session_timeout),
            );
        }
    }
}

fn is_server(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let is_host = match bare {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let fits = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
            !host.is_empty() && host.len() <= 253 && host.bytes().all(fits)
        }
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// What ZooKeeper does not take for a path.
fn path_fault(path: &str) -> Option<&'static str> {
    let Some(rest) = path.strip_prefix('/') else {
        return Some("must be an absolute path such as /services/web");
    };
    if rest.is_empty() {
        return Some("must not be / itself");
    }
    if path.len() > 512 || path.contains(char::is_control) {
        return Some("must have at most 512 bytes and no control characters");
    }
    let odd = rest.split('/').any(|part| matches!(part, "" | "." | ".."));
    odd.then_some("must have no empty part, `.`, `..`, nor / at its end")
}
