//! Instances from a file, or a directory of files.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Configured, Failure, Feed, Settings, Source};

/// `file:` of a service's `discovery`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Config {
    /// A file, or a directory of files that end in `.yaml`, `.yml` or `.json`.
    pub path: PathBuf,
}

impl Configured for Config {
    type Source = File;

    fn target(&self) -> String {
        self.path.display().to_string()
    }

    fn usual() -> Settings {
        Settings {
            // Whoever writes `instances: []` means it.
            empty_hold: std::time::Duration::ZERO,
            resync: std::time::Duration::from_secs(30),
            ..Settings::default()
        }
    }

    fn source(&self, _service: &str) -> File {
        File(self.clone())
    }
}

pub struct File(Config);

impl Source for File {
    async fn session(&mut self, feed: &mut Feed) -> Result<(), Failure> {
        feed.resync().await;
        let Config { path } = &self.0;
        Err(Failure::new(
            super::Class::Missing,
            format!("cannot read {}", path.display()),
        ))
    }
}
