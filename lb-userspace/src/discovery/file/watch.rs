//! Hearing of changes by inotify.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{
    Event, EventKind,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind},
};
use tokio::{
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use super::{
    read::is_read,
    shared::{self, Identity, Subscription},
};

/// Changes come in groups: this long after the last one, all are handled as one.
const QUIET: Duration = Duration::from_millis(50);
/// Longest wait from the first change on, while somebody writes, and while nobody does.
const LONGEST: Duration = Duration::from_secs(5);
const LONGEST_CLOSED: Duration = Duration::from_millis(250);

/// Watches the directories in which `path`, what it points to, and its files are.
pub(super) struct Watch {
    path: PathBuf,
    /// Longest wait for a writer to close its file, counted from its last write.
    writer: Duration,
    /// What it led to when it was last followed.
    led_to: Option<PathBuf>,
    /// It was a directory then.
    is_directory: bool,
    subscription: Subscription,
    events: mpsc::UnboundedReceiver<Event>,
}

/// Waits for a change, and until it is over; for ever without a watch.
pub(super) async fn changed(watch: &mut Option<Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

impl Watch {
    /// Watches what `path` leads to. `None`, and a line in the log, if the kernel has no more watches to
    /// give.
    pub(super) async fn begin(path: &Path, writer: Duration) -> Option<Self> {
        let path = path.to_owned();
        aside(move || {
            let (sender, events) = mpsc::unbounded_channel();
            let subscription = shared::subscribe(sender).inspect_err(|error| {
                tracing::warn!(
                    path = %path.display(),
                    "cannot watch, looks every two seconds instead: {error} (see fs.inotify in sysctl)"
                );
            });
            let mut watch = Self {
                path,
                writer,
                led_to: None,
                is_directory: false,
                subscription: subscription.ok()?,
                events,
            };
            watch.look();
            Some(watch)
        })
        .await
    }

    /// Watches what `path` leads to now. What is not there is not watched; whoever polls will find it.
    pub(super) async fn follow(mut self) -> Option<Self> {
        aside(move || {
            self.look();
            Some(self)
        })
        .await
    }

    fn look(&mut self) {
        self.led_to = fs::canonicalize(&self.path).ok();
        self.is_directory = self.path.is_dir();
        self.subscription.set(directories(&self.path));
    }

    async fn changed(&mut self) {
        let mut begun = None;
        let mut open: HashSet<PathBuf> = HashSet::new();
        loop {
            let event = match begun {
                None => self.events.recv().await,
                Some(begun) => {
                    let (quiet, longest) = match open.is_empty() {
                        true => (QUIET, LONGEST_CLOSED),
                        false => (self.writer, LONGEST),
                    };
                    let end = (Instant::now() + quiet).min(begun + longest);
                    match timeout_at(end, self.events.recv()).await {
                        Ok(event) => event,
                        Err(_) => return,
                    }
                }
            };
            let Some(event) = event else {
                return std::future::pending().await;
            };
            if self.note(event, &mut open) {
                begun.get_or_insert_with(Instant::now);
            }
        }
    }

    /// Whether the event matters, with the files that are being written in `open`.
    fn note(&self, event: Event, open: &mut HashSet<PathBuf>) -> bool {
        if event.need_rescan() {
            return true;
        }
        let paths: Vec<PathBuf> = event
            .paths
            .into_iter()
            .filter(|path| self.matters(path))
            .collect();
        if paths.is_empty() {
            return false;
        }
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                paths.iter().for_each(|path| _ = open.remove(path));
                true
            }
            EventKind::Access(_) => false,
            EventKind::Create(CreateKind::File) | EventKind::Modify(ModifyKind::Data(_)) => {
                open.extend(paths);
                true
            }
            EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_) => {
                paths.iter().for_each(|path| _ = open.remove(path));
                true
            }
            _ => true,
        }
    }

    /// Others write to these directories as well.
    pub(super) fn matters(&self, path: &Path) -> bool {
        // Of a mounted ConfigMap, `..data` is exchanged.
        let is_link = |name: &OsStr| name.as_encoded_bytes().starts_with(b"..");
        let name = path.file_name();
        path == self.path
            || name == self.path.file_name()
            || name.is_some_and(is_link)
            || (is_read(path) && self.is_directory)
            || self.led_to.as_deref() == Some(path)
    }
}

/// Where a file system that hangs holds up nobody else.
async fn aside(work: impl FnOnce() -> Option<Watch> + Send + 'static) -> Option<Watch> {
    spawn_blocking(work).await.ok().flatten()
}

/// The directories whose changes may change what is at `path`.
pub(super) fn directories(path: &Path) -> HashMap<PathBuf, Identity> {
    let mut found = HashMap::new();
    let mut add = |directory: &Path| {
        if let Ok(metadata) = fs::metadata(directory)
            && metadata.is_dir()
        {
            let made = metadata.created().ok();
            let identity = (metadata.dev(), metadata.ino(), made);
            found.insert(directory.to_owned(), identity);
        }
    };
    let real = fs::canonicalize(path);
    for path in [Some(path), real.as_deref().ok()].into_iter().flatten() {
        add(path);
        if let Some(parent) = path.parent() {
            add(parent);
        }
    }
    found
}
