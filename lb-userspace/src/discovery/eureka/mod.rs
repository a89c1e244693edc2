//! Instances of a Eureka application.
//!
//! The requests are those of <https://github.com/Netflix/eureka/wiki/Eureka-REST-operations>.

pub mod registry;
#[cfg(test)]
mod tests;

use std::{path::Path, time::Duration};

use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use self::registry::{AppEnvelope, Envelope, Reading, Registry};
use super::{
    Class, Configured, Failure, Feed, Secret, Settings, Source,
    http::{Answer, Auth, BaseUrl, Client, Request, Tls, escaped},
    jittered,
};
use crate::model::duration_text;

/// Time for one answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where Eureka is on a server whose URL has no path: Spring's, Netflix's.
const BASES: [&str; 2] = ["/eureka", "/eureka/v2"];

/// `eureka:` of a service's `discovery`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Servers that hold the same, asked in turn until one answers.
    pub urls: Vec<BaseUrl>,
    /// The application's name; case does not matter.
    pub app: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub login: Option<Login>,
    #[serde(skip_serializing_if = "Tls::is_default", default)]
    pub tls: Tls,
    pub fetch: Fetch,
    pub port: Port,
    /// Time between two questions.
    #[serde(with = "duration_text")]
    pub interval: Duration,
    /// Key of the metadata that has the weight.
    pub weight_key: String,
}

/// For basic authentication.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Login {
    pub user: String,
    pub password: Secret,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fetch {
    /// The one application, each time.
    #[default]
    App,
    /// All applications once, and then what changed.
    Delta,
}

impl Fetch {
    pub const ALL: [(&'static str, Self); 2] = [("app", Self::App), ("delta", Self::Delta)];
}

/// Which of an instance's two ports is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Port {
    /// The plain one, or else the secure one.
    #[default]
    Any,
    Plain,
    Secure,
}

impl Port {
    pub const ALL: [(&'static str, Self); 3] = [
        ("any", Self::Any),
        ("plain", Self::Plain),
        ("secure", Self::Secure),
    ];
}

/// The word of a value in a table of words.
pub(crate) fn word<T: PartialEq>(words: &[(&'static str, T)], value: &T) -> &'static str {
    let found = words.iter().find(|(_, one)| one == value);
    found.map_or("", |(word, _)| word)
}

impl Configured for Config {
    type Source = Eureka;

    fn target(&self) -> String {
        let servers: Vec<_> = self.urls.iter().map(BaseUrl::authority).collect();
        format!("{}@{}", self.app.to_uppercase(), servers.join(","))
    }

    fn files(&self) -> Vec<&Path> {
        let password = self.login.as_ref().and_then(|login| login.password.file());
        self.tls.files().chain(password).collect()
    }

    fn usual() -> Settings {
        Settings {
            // A server that was restarted hears of an instance with its next heartbeat, and
            // answers before that.
            removal_hold: Duration::from_secs(30),
            ..Settings::default()
        }
    }

    fn source(&self, _service: &str) -> Eureka {
        let auth = self.login.clone().map_or(Auth::None, |login| Auth::Basic {
            user: login.user,
            password: login.password,
        });
        let client = |url: BaseUrl| Client::new(url, self.tls.clone(), auth.clone());
        let server = |url: &BaseUrl| match url.path.is_empty() {
            false => vec![client(url.clone())],
            true => {
                let based = |base: &&str| BaseUrl {
                    path: (*base).to_owned(),
                    ..url.clone()
                };
                BASES.iter().map(based).map(client).collect()
            }
        };
        Eureka {
            servers: self.urls.iter().map(server).collect(),
            current: 0,
            app: self.app.to_uppercase(),
            fetch: self.fetch,
            reading: Reading {
                port: self.port,
                weight_key: self.weight_key.clone(),
            },
            interval: self.interval,
            known: None,
            has_delta: true,
        }
    }
}

pub struct Eureka {
    /// Of each server the clients of all its possible bases.
    servers: Vec<Vec<Client>>,
    /// The one that answered last.
    current: usize,
    app: String,
    fetch: Fetch,
    reading: Reading,
    interval: Duration,
    /// What the current server said, with its client.
    known: Option<(Client, Registry)>,
    /// It tells deltas, as far as is known.
    has_delta: bool,
}

impl Source for Eureka {
    async fn session(&mut self, feed: &mut Feed) -> Result<(), Failure> {
        // Deltas tell of the last minutes only.
        self.forget();
        // Stands still while deltas come: they do not replace the full fetch.
        let mut clock = feed.clone();
        loop {
            let is_full = self.update().await?;
            if let Some((_, registry)) = &self.known {
                feed.snapshot(registry.snapshot(&self.reading));
            }
            if is_full {
                clock = feed.clone();
            }
            tokio::select! {
                () = sleep(jittered(self.interval)) => {}
                () = clock.resync() => self.forget(),
            }
        }
    }
}

impl Eureka {
    /// The next answer is a full one.
    fn forget(&mut self) {
        self.known = None;
        self.has_delta = true;
    }

    /// Brings what is known up to date; whether by a full fetch.
    async fn update(&mut self) -> Result<bool, Failure> {
        if self.fetch == Fetch::Delta && self.has_delta && self.delta().await {
            return Ok(false);
        }
        let count = self.servers.len();
        let mut last = None;
        for turn in 0..count {
            let server = (self.current + turn) % count;
            match self.full(server).await {
                Ok(known) => {
                    if server != self.current {
                        self.has_delta = true;
                    }
                    self.current = server;
                    self.known = Some(known);
                    return Ok(true);
                }
                Err(failure) => last = Some(failure),
            }
        }
        let failure =
            last.unwrap_or_else(|| Failure::new(Class::Config, "there is no server to be asked"));
        Err(match count {
            1 => failure,
            _ => failure.context(format!("none of {count} servers answers; the last")),
        })
    }

    /// Applies what changed, of the server whose answer is known; false if everything has to be
    /// fetched.
    async fn delta(&mut self) -> bool {
        let Some((client, registry)) = &mut self.known else {
            return false;
        };
        let Ok(answer) = ask(client, "/apps/delta").await else {
            return false;
        };
        // A server whose deltas are disabled refuses to tell them. Full fetches need no more
        // rights: if it is the credentials, they fail.
        if matches!(
            answer.status,
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED
        ) {
            self.has_delta = false;
            return false;
        }
        let delta = answer
            .success()
            .and_then(|answer| answer.json::<Envelope>());
        delta.is_ok_and(|delta| registry.apply(delta))
    }

    /// All that a server says.
    async fn full(&self, server: usize) -> Result<(Client, Registry), Failure> {
        let mut last = None;
        for client in self.servers.get(server).into_iter().flatten() {
            match self.full_at(client).await {
                Ok(registry) => return Ok((client.clone(), registry)),
                // Eureka may be elsewhere on this server.
                Err(failure) if failure.class == Class::Missing => {
                    last.get_or_insert(failure);
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(last.unwrap_or_else(|| Failure::new(Class::Config, "the server has no URL")))
    }

    async fn full_at(&self, client: &Client) -> Result<Registry, Failure> {
        if self.fetch == Fetch::App {
            let path = format!("/apps/{}", escaped(&self.app));
            let answer = ask(client, &path).await?;
            if answer.status != StatusCode::NOT_FOUND {
                let app: AppEnvelope = answer.success()?.json()?;
                return Registry::of_app(&self.app, app).map_err(|what| malformed(client, what));
            }
            // There is no such application, or no Eureka: the list of all tells.
        }
        let answer = ask(client, "/apps").await?.success()?;
        Registry::of_all(&self.app, answer.json()?).map_err(|what| malformed(client, what))
    }
}

fn malformed(client: &Client, what: String) -> Failure {
    Failure::new(Class::Malformed, format!("{}: {what}", client.url()))
}

async fn ask(client: &Client, path: &str) -> Result<Answer, Failure> {
    client.fetch(Request::get(path, PATIENCE)).await
}
