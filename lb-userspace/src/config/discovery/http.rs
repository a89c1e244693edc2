//! The keys that sources have in common that speak HTTP or TLS.

use std::path::PathBuf;

use serde_yaml_ng::Mapping;

use super::{
    super::{
        check::node::path_fault,
        render::{put, put_unless_empty},
        suggest::quoted,
        value::text,
    },
    Fields, Node, Report, SourceRemarks,
};
use crate::discovery::http::{BaseUrl, Tls};

/// `http://HOST[:PORT][/PATH]` or `https://…`.
pub(super) fn url(value: &Node, key: &str, report: &mut Report) -> Option<BaseUrl> {
    let written = text(value, key, "a URL such as http://10.0.0.5:8500", report)?;
    written
        .parse()
        .map_err(|fault: String| report.fault(value.place, format!("`{key}` {fault}")))
        .ok()
}

/// `tls: {ca_file, cert_file, key_file, server_name}`; nothing for a source without.
pub(super) fn tls(fields: &Fields<'_>, report: &mut Report) -> Tls {
    let keys = ["ca_file", "cert_file", "key_file", "server_name"];
    let Some(fields) = fields
        .get("tls")
        .and_then(|value| Fields::of(value, "tls", &keys, &[], report))
    else {
        return Tls::default();
    };
    let mut path = |key: &str| -> Option<PathBuf> {
        let value = fields.get(key)?;
        Some(text(value, key, "an absolute path", report)?.into())
    };
    Tls {
        ca_file: path("ca_file"),
        cert_file: path("cert_file"),
        key_file: path("key_file"),
        server_name: fields
            .get("server_name")
            .and_then(|value| text(value, "server_name", "a host name", report))
            .map(str::to_owned),
    }
}

pub(super) fn check_tls(tls: &Tls, remarks: &mut SourceRemarks<'_>) {
    let Tls {
        ca_file,
        cert_file,
        key_file,
        server_name,
    } = tls;
    for (key, path) in [
        ("ca_file", ca_file),
        ("cert_file", cert_file),
        ("key_file", key_file),
    ] {
        if let Some(fault) = path.as_ref().and_then(|path| path_fault(path)) {
            remarks.fault("tls", format!("`{key}`: {fault}"));
        }
    }
    if cert_file.is_some() != key_file.is_some() {
        remarks.fault(
            "tls",
            "has one of `cert_file` and `key_file`; they go together",
        );
    }
    if let Some(name) = server_name
        && rustls::pki_types::ServerName::try_from(name.as_str()).is_err()
    {
        let message = format!("`server_name` {} is no host name", quoted(name));
        remarks.fault("tls", message);
    }
}

/// Warns of a secret, the value of `key`, that would cross a network for everybody to read.
pub(super) fn check_plain(
    url: &BaseUrl,
    has_secret: bool,
    key: &'static str,
    remarks: &mut SourceRemarks<'_>,
) {
    let address = url.host.parse::<std::net::IpAddr>();
    let is_local = url.host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    if has_secret && !url.is_tls && !is_local {
        remarks.warn(key, format!("goes to {url} unencrypted; use https"));
    }
}

/// The way back of [`tls`].
pub(super) fn render_tls(tls: &Tls, map: &mut Mapping) {
    let Tls {
        ca_file,
        cert_file,
        key_file,
        server_name,
    } = tls;
    let mut own = Mapping::new();
    for (key, path) in [
        ("ca_file", ca_file),
        ("cert_file", cert_file),
        ("key_file", key_file),
    ] {
        if let Some(path) = path {
            put(&mut own, key, path.to_string_lossy().into_owned());
        }
    }
    if let Some(name) = server_name {
        put(&mut own, "server_name", name.clone());
    }
    put_unless_empty(map, "tls", own);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tree;

    #[test]
    fn tls_is_read_and_written() {
        let text = "tls:\n  ca_file: /ca.pem\n  cert_file: /c.pem\n  key_file: /c.key\n  \
                    server_name: registry.example\n";
        let mut report = Report::default();
        let node = tree::load(text, &mut report).unwrap();
        let fields = Fields::of(&node, "consul", &["tls"], &[], &mut report).unwrap();
        let read = tls(&fields, &mut report);
        assert_eq!(read.server_name.as_deref(), Some("registry.example"));
        assert!(report.is_clean());
        let mut map = Mapping::new();
        render_tls(&read, &mut map);
        assert_eq!(serde_yaml_ng::to_string(&map).unwrap(), text);
    }

    #[test]
    fn a_url_with_a_password_is_refused_and_not_repeated() {
        let mut report = Report::default();
        let node = tree::load("http://lbd:hunter2@10.0.0.5:8500", &mut report).unwrap();
        assert_eq!(url(&node, "url", &mut report), None);
        let faults = report.finish().unwrap_err();
        assert!(
            faults[0]
                .message
                .starts_with("`url` must hold no credentials")
        );
        assert!(!faults[0].message.contains("hunter2"));
    }
}
