//! `discovery: {eureka: …}`.

use std::time::Duration;

use serde_yaml_ng::{Mapping, Value};

use super::{
    super::{
        render::put,
        value::{choice, duration, one_or_many},
    },
    Fields, Form, Node, Report, SourceRemarks, http, render_secret, secret,
};
use crate::{
    config::value::text,
    discovery::eureka::{Config, Fetch, Login, Port, word},
    model::duration_text,
};

const INTERVAL: Duration = Duration::from_secs(10);
const WEIGHT_KEY: &str = "weight";

impl Form for Config {
    const KEYS: &'static [&'static str] = &[
        "urls",
        "app",
        "user",
        "password",
        "tls",
        "fetch",
        "port",
        "interval",
        "weight_key",
    ];

    fn decode(fields: &Fields<'_>, report: &mut Report) -> Option<Self> {
        let what = "the eureka source";
        let urls = fields.require("urls", what, "\"http://10.0.0.5:8761/eureka\"", report);
        let urls = urls.and_then(|value| {
            let read = one_or_many(value).iter();
            let read: Vec<_> = read.map(|url| http::url(url, "urls", report)).collect();
            read.into_iter().collect()
        });
        let app = fields
            .require("app", what, "web", report)
            .and_then(|value| line(value, "app", report));
        let mut key = |key: &str| line(fields.get(key)?, key, report);
        let (user, weight_key) = (key("user"), key("weight_key"));
        let password = fields.get("password");
        let password = password.map(|value| (value, secret(value, "password", report)));
        let login = match (user, password) {
            (Some(user), Some((_, Some(password)))) => Some(Login { user, password }),
            (None, Some((value, Some(_)))) => {
                report.fault(value.place, "`password` stands without `user`");
                None
            }
            (Some(_), None) => {
                fields.require("password", what, "{file: /etc/lbd/eureka-password}", report);
                None
            }
            _ => None,
        };
        Some(Self {
            login,
            tls: http::tls(fields, report),
            fetch: fields
                .get("fetch")
                .and_then(|value| choice(value, "fetch", &Fetch::ALL, &[], report))
                .unwrap_or_default(),
            port: fields
                .get("port")
                .and_then(|value| choice(value, "port", &Port::ALL, &[], report))
                .unwrap_or_default(),
            interval: fields
                .get("interval")
                .and_then(|value| duration(value, "interval", report))
                .unwrap_or(INTERVAL),
            weight_key: weight_key.unwrap_or_else(|| WEIGHT_KEY.to_owned()),
            app: app?,
            urls: urls?,
        })
    }

    fn check(&self, remarks: &mut SourceRemarks<'_>) {
        let Self {
            urls,
            app,
            login,
            tls,
            fetch: _,
            port: _,
            interval,
            weight_key,
        } = self;
        if urls.is_empty() {
            remarks.fault("urls", "must name a server");
        }
        for (n, url) in urls.iter().enumerate() {
            if urls[..n].contains(url) {
                remarks.fault("urls", format!("names {url} twice"));
            }
            http::check_plain(url, login.is_some(), "password", remarks);
        }
        let user = login.as_ref().map(|login| ("user", &login.user));
        let words = [("app", app), ("weight_key", weight_key)];
        for (key, word) in words.into_iter().chain(user) {
            if word.is_empty() || word.contains(char::is_control) {
                remarks.fault(key, "must not be empty, and stand on one line");
            }
        }
        if login.as_ref().is_some_and(|login| login.user.contains(':')) {
            remarks.fault(
                "user",
                "must have no colon: basic authentication cannot say it",
            );
        }
        http::check_tls(tls, remarks);
        if !(Duration::from_secs(1)..=Duration::from_secs(600)).contains(interval) {
            remarks.fault("interval", "must be from 1s to 10m");
        } else if interval.subsec_nanos() % 1_000_000 != 0 {
            remarks.fault("interval", "must be whole milliseconds");
        }
    }

    fn render(&self, map: &mut Mapping) {
        let Self {
            urls,
            app,
            login,
            tls,
            fetch,
            port,
            interval,
            weight_key,
        } = self;
        let urls: Vec<Value> = urls.iter().map(|url| url.to_string().into()).collect();
        match <[Value; 1]>::try_from(urls) {
            Ok([one]) => put(map, "urls", one),
            Err(many) => put(map, "urls", many),
        }
        put(map, "app", app.clone());
        if let Some(Login { user, password }) = login {
            put(map, "user", user.clone());
            put(map, "password", render_secret(password));
        }
        http::render_tls(tls, map);
        if *fetch != Fetch::default() {
            put(map, "fetch", word(&Fetch::ALL, fetch));
        }
        if *port != Port::default() {
            put(map, "port", word(&Port::ALL, port));
        }
        if *interval != INTERVAL {
            put(map, "interval", duration_text::format(*interval));
        }
        if weight_key != WEIGHT_KEY {
            put(map, "weight_key", weight_key.clone());
        }
    }
}

fn line(value: &Node, key: &str, report: &mut Report) -> Option<String> {
    text(value, key, "a text", report).map(str::to_owned)
}
