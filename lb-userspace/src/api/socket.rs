//! The socket file: whose it is, who may use it, and when an old one may be replaced.

use std::{
    fs::{self, File, Permissions, TryLockError},
    io::ErrorKind,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use tokio::net::UnixListener;
use tracing::warn;

/// Group that may use the socket besides its owner, where the system has it.
const GROUP: &str = "lbd";

/// The right to be the daemon at this path, held for the daemon's life.
///
/// Taken before the data path is touched, so that a second daemon stops before it does harm.
pub struct Claim {
    path: PathBuf,
    /// Locked; the kernel unlocks it however the daemon ends.
    _lock: File,
}

impl Claim {
    /// Creates the parent directory. Fails if a live daemon has the path.
    pub fn take(path: &Path) -> anyhow::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot create {} for the socket", directory.display()))?;
        }
        let lock_path = beside(path, "lock");
        let lock = File::create(&lock_path)
            .with_context(|| format!("cannot create {}", lock_path.display()))?;
        let taken = match lock.try_lock() {
            Ok(()) => answers(path),
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", lock_path.display()));
            }
        };
        if taken {
            bail!(
                "another lbd answers on {}; stop it first, or give this one its own admin.socket",
                path.display()
            );
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Listens, mode 0660. A file that a former daemon left is replaced in one step.
    pub fn listen(&self) -> anyhow::Result<UnixListener> {
        match fs::symlink_metadata(&self.path) {
            Ok(found) if !is_socket(&found) => bail!(
                "{} exists and is no socket; remove it, or change admin.socket",
                self.path.display()
            ),
            _ => {}
        }
        let fresh = beside(&self.path, "new");
        let bind = || -> std::io::Result<UnixListener> {
            if let Err(error) = fs::remove_file(&fresh)
                && error.kind() != ErrorKind::NotFound
            {
                return Err(error);
            }
            let listener = UnixListener::bind(&fresh)?;
            fs::set_permissions(&fresh, Permissions::from_mode(0o660))?;
            give_to_group(&fresh);
            fs::rename(&fresh, &self.path)?;
            Ok(listener)
        };
        bind().with_context(|| format!("cannot listen on {}", self.path.display()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !fs::symlink_metadata(&self.path).is_ok_and(|found| is_socket(&found)) {
            return;
        }
        // The lock file stays: removing it would let two daemons lock two files of one name.
        if let Err(error) = fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// Whether a live daemon listens on the path.
pub fn answers(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

fn is_socket(metadata: &fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type())
}

fn give_to_group(path: &Path) {
    let Some(group) = fs::read_to_string("/etc/group")
        .ok()
        .and_then(|groups| group_id(&groups, GROUP))
    else {
        return;
    };
    if let Err(error) = std::os::unix::fs::chown(path, None, Some(group)) {
        warn!(path = %path.display(), %error, "cannot give the socket to the group {GROUP}");
    }
}

/// Looks a group up in the text of `/etc/group` (group(5)).
fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let groups = "root:x:0:\nlbd-old:x:7:\nlbd:x:990:alice,bob\n";
        assert_eq!(group_id(groups, "lbd"), Some(990));
        assert_eq!(group_id(groups, "alice"), None);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = crate::testing::Directory::new("socket");
        let path = directory.path().join("sub/lbd.sock");
        let claim = Claim::take(&path).unwrap();
        drop(claim.listen().unwrap());
        assert!(path.exists(), "a closed listener leaves its file");

        let second = Claim::take(&path).err().unwrap().to_string();
        assert!(second.contains("another lbd answers"), "{second}");

        let listener = claim.listen().unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert!(UnixStream::connect(&path).is_ok());
        drop((claim, listener));
        assert!(!path.exists(), "an orderly end removes it");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let directory = crate::testing::Directory::new("no-socket");
        let path = directory.path().join("lbd.sock");
        fs::write(&path, "precious").unwrap();
        let error = Claim::take(&path).unwrap().listen().unwrap_err();
        assert!(path.exists());
        assert!(error.to_string().contains("is no socket"), "{error}");
    }

    #[tokio::test]
    async fn a_server_without_our_lock_counts_as_live() {
        let directory = crate::testing::Directory::new("foreign");
        let path = directory.path().join("lbd.sock");
        let _foreign = UnixListener::bind(&path).unwrap();
        assert!(Claim::take(&path).is_err());
    }
}
