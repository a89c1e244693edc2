//! What tests of several modules share.

use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

/// An empty directory of its own, removed at the end of the test.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new(name: &str) -> Self {
        Self::below(&std::env::temp_dir(), name)
    }

    /// One whose files are on no disk where that can be had, for tests that write a lot.
    pub(crate) fn in_memory(name: &str) -> Self {
        let shared_memory = Path::new("/dev/shm");
        match shared_memory.is_dir() {
            true => Self::below(shared_memory, name),
            false => Self::new(name),
        }
    }

    fn below(parent: &Path, name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!(
            "lbd-{name}-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = parent.join(unique);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Somebody may still be saving into it.
        for _ in 0..100 {
            match std::fs::remove_dir_all(&self.0) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    thread::sleep(Duration::from_millis(10));
                }
                _ => break,
            }
        }
    }
}
