use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{ErrorKind, Read, Seek, Write},
    path::Path,
};

use anyhow::{Context, bail};

/// Holds a state directory for this process until dropped. The kernel lets go of it when the
/// process dies, however it dies.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Lock {
    pub(super) fn take(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join("lock");
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        // A disk that takes no file keeps nobody away from what is on it: the directory can be locked.
        let opened = opened.or_else(|error| match error.kind() {
            ErrorKind::ReadOnlyFilesystem | ErrorKind::StorageFull => File::open(directory),
            _ => Err(error),
        });
        let mut file = opened.with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                bail!(
                    "another lbd (process {}) uses the state directory {}; stop it first, or set \
                     another node.state_dir and node.bpffs for this one",
                    holder.trim(),
                    directory.display()
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        // The process id only serves the message above.
        let _ = file.set_len(0);
        let _ = file.rewind();
        let _ = writeln!(file, "{}", std::process::id());
        Ok(Self { file })
    }
}

impl Drop for Lock {
    /// Closing is not enough while a child that was just forked has the file as well.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}
