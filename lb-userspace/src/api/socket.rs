//! The socket file: whose it is, who may use it, and when an old one may be replaced.

use std::{
    fs::{self, Permissions},
    io::{self, ErrorKind},
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use tokio::net::{UnixListener, UnixSocket};
use tracing::warn;

/// Group that may use the socket besides its owner, where the system has it.
const GROUP: &str = "lbd";
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Fails if a live daemon has the path. Asked before the data path is touched, so that a second
/// daemon stops before it does harm.
pub fn require_free(path: &Path) -> anyhow::Result<()> {
    if answers(path) {
        bail!(
            "another lbd answers on {}; stop it first, or give this one its own admin.socket",
            path.display()
        );
    }
    Ok(())
}

/// Listens, mode 0660, and creates the parent directory. A file that a former daemon left is
/// replaced in one step.
pub fn listen(path: &Path) -> anyhow::Result<(UnixListener, SocketFile)> {
    require_free(path)?;
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => bail!(
            "{} exists and is no socket; remove it, or change admin.socket",
            path.display()
        ),
        _ => {}
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let listener = bind(path, Path::new(&fresh)).with_context(|| {
        let path = path.display();
        format!("cannot listen on {path}; run lbd as root, or change admin.socket")
    })?;
    Ok((listener, SocketFile(path.to_owned())))
}

fn bind(path: &Path, fresh: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let listener = reserve(fresh)?.listen(BACKLOG)?;
    fs::rename(fresh, path)?;
    Ok(listener)
}

/// A socket at `fresh` with its mode and group. It gets them before it listens: until then nobody can
/// connect, whatever mode the umask left it.
fn reserve(fresh: &Path) -> io::Result<UnixSocket> {
    if let Err(error) = fs::remove_file(fresh)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error);
    }
    let socket = UnixSocket::new_stream()?;
    socket.bind(fresh)?;
    fs::set_permissions(fresh, Permissions::from_mode(0o660))?;
    give_to_group(fresh);
    Ok(socket)
}

/// The file of a socket that is listened on; removed when dropped. To be dropped before the
/// listener: until then the path is taken, afterwards it may be another daemon's.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            warn!(path = %self.0.display(), %error, "cannot remove the socket");
        }
    }
}

/// Whether a live daemon listens on the path.
pub fn answers(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
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
        let (listener, file) = listen(&path).unwrap();
        let second = listen(&path).err().unwrap().to_string();
        assert!(second.contains("another lbd answers"), "{second}");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);

        std::mem::forget(file);
        drop(listener);
        assert!(path.exists(), "a closed listener leaves its file");
        let (_listener, file) = listen(&path).unwrap();
        assert!(answers(&path));
        drop(file);
        assert!(!path.exists(), "an orderly end removes it");
    }

    #[tokio::test]
    async fn nobody_connects_before_the_socket_has_its_mode() {
        let directory = crate::testing::Directory::new("reserved-socket");
        let path = directory.path().join("lbd.sock.new");
        let socket = reserve(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let refused = UnixStream::connect(&path).map(drop).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let _listener = socket.listen(BACKLOG).unwrap();
        assert!(answers(&path));
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let directory = crate::testing::Directory::new("no-socket");
        let path = directory.path().join("lbd.sock");
        fs::write(&path, "precious").unwrap();
        let error = listen(&path).err().unwrap().to_string();
        assert!(error.contains("is no socket"), "{error}");
        assert!(path.exists());
    }
}
