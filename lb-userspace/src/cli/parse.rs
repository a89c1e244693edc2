//! Words of the command line that clap does not know.

use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, IntoDeserializer, value};

use crate::{
    config::{DEFAULT_WEIGHT, parse_address},
    model::{BackendSpec, HealthCheck, WeightOverride},
};

/// Highest relative weight.
const MAX_PERCENT: u16 = 1000;

/// A word of the config file; the error lists those there are.
pub(super) fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    T::deserialize(text.into_deserializer()).map_err(|error: value::Error| error.to_string())
}

/// `N` or `N%`.
pub(super) fn weight(text: &str) -> Result<WeightOverride, String> {
    let fault = || "expected 0 to 65535, or 0% to 1000%".to_owned();
    match text.strip_suffix('%') {
        Some(percent) => match percent.parse() {
            Ok(percent) if percent <= MAX_PERCENT => Ok(WeightOverride::Percent(percent)),
            _ => Err(fault()),
        },
        None => text
            .parse()
            .map(WeightOverride::Absolute)
            .map_err(|_| fault()),
    }
}

/// `ADDR:PORT` or `ADDR:PORT=WEIGHT`.
pub(super) fn backend(text: &str) -> Result<BackendSpec, String> {
    let (address, weight) = match text.rsplit_once('=') {
        Some((address, weight)) => {
            let weight = weight
                .parse()
                .map_err(|_| format!("weight `{weight}`: expected 0 to 65535"))?;
            (address, weight)
        }
        None => (text, DEFAULT_WEIGHT),
    };
    Ok(BackendSpec {
        address: parse_address(address)?,
        weight,
        max_connections: None,
        labels: BTreeMap::new(),
    })
}

/// `KEY=VALUE`.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE, e.g. version=v1".to_owned()),
    }
}

/// `none`, `tcp`, `http` or `http:/path`.
pub(super) fn health(text: &str) -> Result<HealthCheck, String> {
    let http = |path: &str| HealthCheck::Http {
        path: path.to_owned(),
        host: None,
        expect_status: vec![200],
    };
    match text.split_once(':') {
        None if text == "none" => Ok(HealthCheck::None),
        None if text == "tcp" => Ok(HealthCheck::Tcp),
        None if text == "http" => Ok(http("/")),
        Some(("http", path)) if path.starts_with('/') => Ok(http(path)),
        _ => Err("expected tcp, none, or http:/path".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Policy;

    #[test]
    fn weights() {
        assert_eq!(weight("0"), Ok(WeightOverride::Absolute(0)));
        assert_eq!(weight("65535"), Ok(WeightOverride::Absolute(65535)));
        assert_eq!(weight("1000%"), Ok(WeightOverride::Percent(1000)));
        for wrong in ["65536", "-1", "1001%", "%", "", "1.5", "ten"] {
            assert!(weight(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn backends_of_both_families() {
        let v4 = backend("10.0.0.1:80").unwrap();
        assert_eq!((v4.address.port(), v4.weight), (80, DEFAULT_WEIGHT));
        let v6 = backend("[2001:db8::1]:80=7").unwrap();
        assert_eq!((v6.address.is_ipv6(), v6.weight), (true, 7));
        assert!(backend("10.0.0.1").is_err());
        assert!(backend("10.0.0.1:80=x").unwrap_err().contains("weight"));
    }

    #[test]
    fn an_unknown_word_gets_the_list() {
        let error = word::<Policy>("maglef").unwrap_err();
        assert!(error.contains("`round-robin`"), "{error}");
    }

    #[test]
    fn health_checks() {
        assert_eq!(health("none"), Ok(HealthCheck::None));
        assert!(
            matches!(health("http:/a:b"), Ok(HealthCheck::Http { path, .. }) if path == "/a:b")
        );
        for wrong in ["http:", "http:x", "icmp", "tcp:80"] {
            assert!(health(wrong).is_err(), "{wrong}");
        }
    }
}
