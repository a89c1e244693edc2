//! `discovery: {etcd: …}`.

use serde_yaml_ng::Mapping;

use super::{
    super::render::put,
    Fields, Form, Report, SourceRemarks,
    http::{check_tls, render_tls, tls, url},
    one_or_many, render_secret, secret,
};
use crate::{
    config::value::text,
    discovery::{etcd::Config, http::BaseUrl},
};

/// Longest prefix, in bytes.
const MAX_PREFIX: usize = 512;

impl Form for Config {
    const KEYS: &'static [&'static str] = &["endpoints", "prefix", "user", "password", "tls"];

    fn decode(fields: &Fields<'_>, report: &mut Report) -> Option<Self> {
        let example = "[\"http://10.0.0.5:2379\"]";
        let endpoints = fields.require("endpoints", "the etcd source", example, report);
        let prefix = fields.require("prefix", "the etcd source", "services/web/", report);
        let mut urls = Vec::new();
        for node in one_or_many(endpoints?) {
            urls.push(url(node, "endpoints", report)?);
        }
        let user = fields.get("user");
        let password = fields.get("password");
        Some(Self {
            endpoints: urls,
            prefix: text(prefix?, "prefix", "what keys begin with", report)?.to_owned(),
            user: match user {
                Some(value) => Some(text(value, "user", "a user's name", report)?.to_owned()),
                None => None,
            },
            password: match password {
                Some(value) => Some(secret(value, "password", report)?),
                None => None,
            },
            tls: tls(fields, report),
        })
    }

    fn check(&self, remarks: &mut SourceRemarks<'_>) {
        if self.endpoints.is_empty() {
            remarks.fault("endpoints", "must name at least one URL");
        }
        if self.endpoints.iter().any(|url| !url.path.is_empty()) {
            remarks.fault("endpoints", "must be URLs without a path");
        }
        for (index, url) in self.endpoints.iter().enumerate() {
            if self.endpoints[..index].contains(url) {
                remarks.fault("endpoints", format!("lists {url} twice"));
            }
        }
        if !self.tls.is_default() && !self.endpoints.iter().any(|url| url.is_tls) {
            remarks.fault("tls", "needs endpoints that begin with https://");
        }
        if self.prefix.is_empty()
            || self.prefix.len() > MAX_PREFIX
            || self.prefix.contains(char::is_control)
        {
            let message = format!("must have 1 to {MAX_PREFIX} bytes and no control characters");
            remarks.fault("prefix", message);
        } else if !self.prefix.ends_with('/') {
            remarks.warn(
                "prefix",
                "does not end with /: keys of services whose names begin alike would count, too",
            );
        }
        match (&self.user, &self.password) {
            (Some(user), Some(_)) if user.is_empty() => {
                remarks.fault("user", "must not be empty");
            }
            (Some(_), None) => remarks.fault("user", "needs a `password`"),
            (None, Some(_)) => remarks.fault("password", "needs a `user`"),
            _ => {}
        }
        check_tls(&self.tls, remarks);
    }

    fn render(&self, map: &mut Mapping) {
        let Self {
            endpoints,
            prefix,
            user,
            password,
            tls,
        } = self;
        let urls: Vec<_> = endpoints.iter().map(BaseUrl::to_string).collect();
        put(map, "endpoints", urls);
        put(map, "prefix", prefix.clone());
        if let Some(user) = user {
            put(map, "user", user.clone());
        }
        if let Some(password) = password {
            put(map, "password", render_secret(password));
        }
        render_tls(tls, map);
    }
}
