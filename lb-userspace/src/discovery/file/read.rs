//! Reading a file of instances, or all of a directory's. Blocks.

use std::{
    fs::{self, File, Metadata},
    io::{self, ErrorKind, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::{
    config::parse_instances,
    discovery::{Class, Failure, Instance},
};

/// Largest file read, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// Attempts to read files that do not change meanwhile, and the pause between two.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);

/// Endings of the files of a directory that are read.
pub(super) const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// Tells contents apart without reading them: of each file path, device, inode, size and times of
/// last changes.
pub(super) type Signature = Vec<(PathBuf, [i64; 7])>;

#[derive(Debug)]
pub(super) struct Reading {
    pub(super) instances: Vec<Instance>,
    pub(super) signature: Signature,
}

/// All there is at `path`, as of one moment.
pub(super) fn read(path: &Path) -> Result<Reading, Failure> {
    let mut before = signature(path)?;
    for _ in 0..TRIES {
        let read = read_all(path, &before);
        let after = signature(path)?;
        if after == before {
            return read.map(|instances| Reading {
                instances,
                signature: after,
            });
        }
        before = after;
        thread::sleep(PAUSE);
    }
    Err(Failure::new(
        Class::Malformed,
        format!(
            "{} changes while it is read; write to another file and rename it",
            path.display()
        ),
    ))
}

/// The files at `path`, looked at from outside.
pub(super) fn signature(path: &Path) -> Result<Signature, Failure> {
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if !metadata.is_dir() {
        return Ok(vec![(path.to_owned(), stamp(&metadata))]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| unreadable(path, &error))? {
        let file = entry.map_err(|error| unreadable(path, &error))?.path();
        if !is_read(&file) {
            continue;
        }
        let metadata = fs::metadata(&file).map_err(|error| unreadable(&file, &error))?;
        if !metadata.is_dir() {
            files.push((file, stamp(&metadata)));
        }
    }
    if files.is_empty() {
        return Err(Failure::new(
            Class::Missing,
            format!(
                "no file in {} ends in .yaml, .yml or .json; to say that there are no instances \
                 write a file with `instances: []`",
                path.display()
            ),
        ));
    }
    files.sort();
    Ok(files)
}

/// Whether a file of a directory is one of instances, by its name.
pub(super) fn is_read(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let ending = file.extension().unwrap_or_default().to_string_lossy();
    !name.starts_with('.') && ENDINGS.contains(&&*ending)
}

fn stamp(metadata: &Metadata) -> [i64; 7] {
    [
        metadata.dev() as i64,
        metadata.ino() as i64,
        metadata.size() as i64,
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ]
}

fn read_all(path: &Path, files: &Signature) -> Result<Vec<Instance>, Failure> {
    if let [(file, _)] = &files[..]
        && file == path
    {
        return read_one(file);
    }
    let mut all = Vec::new();
    for (file, _) in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        for instance in read_one(file)? {
            all.push(Instance {
                id: format!("{name}:{}", instance.id),
                ..instance
            });
        }
    }
    Ok(all)
}

fn read_one(file: &Path) -> Result<Vec<Instance>, Failure> {
    let shown = file.display();
    let text = text(file)?;
    parse_instances(&text, &shown.to_string()).map_err(|faults| {
        let first = faults.findings.first();
        let first = first.map_or_else(String::new, |f| {
            format!("{shown}:{}:{}: {}", f.line, f.column, f.message)
        });
        let more = match faults.findings.len() {
            0 | 1 => String::new(),
            n => format!(" (and {} more)", n - 1),
        };
        Failure::new(Class::Malformed, first + &more)
    })
}

fn text(file: &Path) -> Result<String, Failure> {
    let shown = file.display();
    let malformed = |what: String| Failure::new(Class::Malformed, what);
    let open = || -> io::Result<(File, Metadata)> {
        // A pipe must not hold up who opens it.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(file)?;
        let metadata = file.metadata()?;
        Ok((file, metadata))
    };
    let (opened, metadata) = open().map_err(|error| unreadable(file, &error))?;
    if !metadata.is_file() {
        return Err(malformed(format!("{shown} is no regular file")));
    }
    let mut bytes = Vec::new();
    opened
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(file, &error))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(malformed(format!("{shown} is larger than 16 MiB")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        malformed(format!(
            "{shown}: byte {at} is no UTF-8; is this a text file?"
        ))
    })
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let shown = path.display();
    match error.kind() {
        ErrorKind::NotFound => Failure::new(Class::Missing, format!("there is no {shown}")),
        ErrorKind::PermissionDenied => {
            Failure::new(Class::Denied, format!("no permission to read {shown}"))
        }
        _ => Failure::new(Class::Unreachable, format!("cannot read {shown}: {error}")),
    }
}
