//! What must hold before anything is loaded, and the lock that keeps a second daemon away.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};

/// The directory of everything lbd pins, locked as long as this lives.
///
/// The lock is on the directory itself: it guards just what two daemons would fight over, works
/// through every mount of the same file system, and ends with the process.
#[derive(Debug)]
pub(super) struct PinRoot {
    pub(super) path: PathBuf,
    lock: File,
}

impl PinRoot {
    /// Creates `<bpffs>/lbd` if need be, and locks it.
    pub(super) fn claim(bpffs: &Path) -> Result<Self> {
        let path = pin_root(bpffs);
        create_directory(&path)?;
        Self::lock(path)
    }

    /// Locks `<bpffs>/lbd`, `None` if there is none.
    pub(super) fn claim_existing(bpffs: &Path) -> Result<Option<Self>> {
        let path = pin_root(bpffs);
        match path.try_exists() {
            Ok(true) => Self::lock(path).map(Some),
            _ => Ok(None),
        }
    }

    /// The versions of lbd that have maps here.
    pub(super) fn versions(&self) -> Result<Vec<u32>> {
        let entries = fs::read_dir(&self.path);
        let entries = entries.with_context(|| format!("reading {}", self.path.display()))?;
        let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        Ok(entries.filter_map(Result::ok).filter_map(number).collect())
    }

    fn lock(path: PathBuf) -> Result<Self> {
        let open = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(&path);
        let lock = open.with_context(|| format!("opening {}", path.display()))?;
        // SAFETY: no pointers.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::WouldBlock {
                bail!(
                    "another lbd is running with {}; stop it first",
                    path.display()
                );
            }
            return Err(error).context(format!("locking {}", path.display()));
        }
        Ok(Self { path, lock })
    }
}

impl Drop for PinRoot {
    /// Closing alone does not unlock while a child that is just being started holds a copy of the
    /// descriptor.
    fn drop(&mut self) {
        // SAFETY: no pointers.
        unsafe { libc::flock(self.lock.as_raw_fd(), libc::LOCK_UN) };
    }
}

/// Fails unless the process may load programs and change devices.
pub(super) fn require_privileges() -> Result<()> {
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_ADMIN: u64 = 1 << 21;
    // Without it the verifier refuses what the programs compute with addresses.
    const PERFMON: u64 = 1 << 38;
    const BPF: u64 = 1 << 39;
    let status = fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .context("/proc/self/status tells no capabilities")?;
    let has = |all: u64| effective & all == all;
    if has(NET_ADMIN) && (has(SYS_ADMIN) || has(BPF | PERFMON)) {
        return Ok(());
    }
    bail!(
        "lbd may not load programs: run it as root, or with the capabilities CAP_BPF, \
         CAP_NET_ADMIN and CAP_PERFMON"
    )
}

/// Fails unless `bpffs` is a BPF file system.
pub(super) fn require_bpffs(bpffs: &Path) -> Result<()> {
    let name = bpffs.display();
    let path = std::ffi::CString::new(bpffs.as_os_str().as_encoded_bytes())?;
    // SAFETY: an all-zero `statfs` is valid.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends in a zero, and `found` is a `statfs`.
    if unsafe { libc::statfs(path.as_ptr(), &mut found) } != 0 {
        let error = io::Error::last_os_error();
        bail!("node.bpffs: {name}: {error}; `mkdir -p {name} && mount -t bpf bpf {name}` makes it");
    }
    // Signed with one C library, unsigned with another.
    if found.f_type as u64 != libc::BPF_FS_MAGIC as u64 {
        bail!(
            "node.bpffs: {name} is no BPF file system; mount one: `mount -t bpf bpf {name}` \
             (in Kubernetes: mount the host's /sys/fs/bpf into the pod)"
        );
    }
    Ok(())
}

/// Creates a directory that only root may enter.
pub(super) fn create_directory(path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("creating {}", path.display()))
}

/// Creates `node.state_dir`.
pub(super) fn create_state_directory(path: &Path) -> Result<()> {
    create_directory(path).map_err(|error| {
        anyhow!(
            "node.state_dir: {error:#}; name a place where lbd may make it (systemd's unit lets it \
             do so below /var/lib/lbd only, unless a drop-in says `ReadWritePaths=` of another)"
        )
    })
}

fn pin_root(bpffs: &Path) -> PathBuf {
    bpffs.join("lbd")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::testing::{TempDir, isolated};

    #[test]
    fn a_second_daemon_is_refused() {
        isolated(|bpffs| {
            assert!(PinRoot::claim_existing(bpffs).unwrap().is_none());
            let first = PinRoot::claim(bpffs).unwrap();
            let refusal = PinRoot::claim(bpffs).unwrap_err().to_string();
            assert!(refusal.contains("another lbd is running"), "{refusal}");
            drop(first);
            assert!(PinRoot::claim_existing(bpffs).unwrap().is_some());
        });
    }

    #[test]
    fn a_state_directory_that_cannot_be_is_refused_with_the_remedy() {
        let place = TempDir::new();
        create_state_directory(&place.0.join("state/of/lbd")).unwrap();
        let file = place.0.join("file");
        fs::write(&file, "").unwrap();
        let refusal = create_state_directory(&file.join("lbd")).unwrap_err();
        let refusal = format!("{refusal:#}");
        let parts = ["node.state_dir: creating ", "file/lbd: ", "ReadWritePaths="];
        assert!(parts.iter().all(|part| refusal.contains(part)), "{refusal}");
    }

    #[test]
    fn a_plain_directory_is_refused_with_the_remedy() {
        let plain = TempDir::new();
        let refusal = require_bpffs(&plain.0).unwrap_err().to_string();
        assert!(refusal.contains("mount -t bpf bpf"), "{refusal}");
        isolated(|bpffs| require_bpffs(bpffs).unwrap());
    }
}
