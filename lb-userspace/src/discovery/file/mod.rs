//! Instances from a file, or a directory of files.

mod read;
mod shared;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{task::spawn_blocking, time::sleep};

use self::{
    read::{Reading, Signature},
    watch::Watch,
};
use super::{Class, Configured, Failure, Feed, Settings, Source};

/// Time between looks at a file of which the kernel tells nothing: inotify does not see what other
/// hosts do to a network file system.
const POLL: Duration = Duration::from_secs(2);
/// Longest wait for a writer to close its file, counted from its last write.
const WRITER: Duration = Duration::from_secs(1);

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

    fn files(&self) -> Vec<&Path> {
        vec![&self.path]
    }

    fn usual() -> Settings {
        Settings {
            // Whoever writes `instances: []` means it.
            empty_hold: Duration::ZERO,
            resync: Duration::from_secs(30),
            ..Settings::default()
        }
    }

    fn source(&self, _service: &str) -> File {
        File::new(self.path.clone())
    }
}

pub struct File {
    path: PathBuf,
    poll: Duration,
    /// Longest wait for a writer to close its file, counted from its last write.
    writer: Duration,
    /// Whether inotify is asked at all.
    watches: bool,
    last: Last,
}

/// What was found last.
enum Last {
    Nothing,
    Read(Signature),
    Failed(Failure),
}

impl File {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            poll: POLL,
            writer: WRITER,
            watches: true,
            last: Last::Nothing,
        }
    }

    /// Reads all there is and reports it. A failure that lasts is reported again if `again`.
    async fn read(&mut self, feed: &mut Feed, again: bool) {
        let path = self.path.clone();
        let read = spawn_blocking(move || read::read(&path)).await;
        let read = read
            .unwrap_or_else(|_| Err(Failure::new(Class::Internal, "reading the file panicked")));
        match read {
            Ok(Reading {
                instances,
                signature,
            }) => {
                self.last = Last::Read(signature);
                feed.snapshot(instances);
            }
            Err(failure) => {
                let is_known = matches!(&self.last, Last::Failed(known) if *known == failure);
                if again || !is_known {
                    feed.failure(failure.clone());
                }
                self.last = Last::Failed(failure);
            }
        }
    }

    /// Whether what a look from outside shows differs from what was read.
    async fn differs(&self) -> bool {
        let Last::Read(known) = &self.last else {
            return true;
        };
        let path = self.path.clone();
        let now = spawn_blocking(move || read::signature(&path)).await;
        !matches!(now, Ok(Ok(now)) if now == *known)
    }
}

impl Source for File {
    async fn session(&mut self, feed: &mut Feed) -> Result<(), Failure> {
        // Watched first, so that no change falls in between.
        let mut watch = match self.watches {
            true => Watch::begin(&self.path, self.writer).await,
            false => None,
        };
        self.read(feed, true).await;
        loop {
            tokio::select! {
                () = watch::changed(&mut watch) => self.read(feed, false).await,
                () = feed.resync() => self.read(feed, true).await,
                () = sleep(self.poll) => {
                    if self.differs().await {
                        self.read(feed, false).await;
                    }
                }
            }
            if let Some(former) = watch.take() {
                watch = former.follow().await;
            }
        }
    }
}
