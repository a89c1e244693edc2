//! A private network namespace and BPF file system for one test, gone with its thread.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

/// Runs `test` on a thread with its own network and mount namespace, an empty BPF file system
/// mounted at the directory it gets. Without the rights for that the test is left out, loudly.
pub(crate) fn isolated(test: impl FnOnce(&Path) + Send) {
    // SAFETY: no arguments.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("left out: needs root for a network namespace");
        return;
    }
    let directory = TempDir::new();
    let path = directory.0.as_path();
    let run = || {
        // SAFETY: no pointers; namespaces of this thread only.
        let done = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
        assert_eq!(done, 0, "unshare: {}", std::io::Error::last_os_error());
        sh("mount --make-rprivate /");
        sh(&format!("mount -t bpf lbd-test {}", path.display()));
        test(path);
    };
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(run).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs one `ip` command per line.
pub(crate) fn ip_commands(lines: &str) {
    for line in lines.lines().map(str::trim).filter(|l| !l.is_empty()) {
        sh(&format!("ip {line}"));
    }
}

/// Runs a shell command, which must succeed, and returns its output.
pub(crate) fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An empty directory, removed when dropped.
pub(crate) struct TempDir(pub(crate) PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("lbk-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
