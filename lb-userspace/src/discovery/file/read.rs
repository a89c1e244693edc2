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

/// Attempts to read a file that does not change meanwhile, and the pause between two.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);

/// Endings of the files of a directory that are read.
pub(super) const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// Tells contents apart without reading them.
pub(super) type Signature = Vec<(PathBuf, Stamp)>;

/// Device, inode, size, and times of last changes of contents and of anything, in seconds and
/// nanoseconds.
type Stamp = [i64; 7];

#[derive(Debug)]
pub(super) struct Reading {
    pub(super) instances: Vec<Instance>,
    pub(super) signature: Signature,
}

/// All there is at `path`, each file as of one moment.
pub(super) fn read(path: &Path) -> Result<Reading, Failure> {
    let files = signature(path)?;
    let is_one = matches!(&files[..], [(file, _)] if file == path);
    let mut instances = Vec::new();
    let mut read = Vec::with_capacity(files.len());
    for (file, _) in files {
        let (text, stamp) = text(&file)?;
        let found = parse(&text, &file)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        instances.extend(found.into_iter().map(|instance| match is_one {
            true => instance,
            false => Instance {
                id: format!("{name}:{}", instance.id),
                ..instance
            },
        }));
        read.push((file, stamp));
    }
    Ok(Reading {
        instances,
        signature: read,
    })
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

fn stamp(metadata: &Metadata) -> Stamp {
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

fn parse(text: &str, file: &Path) -> Result<Vec<Instance>, Failure> {
    let shown = file.display();
    parse_instances(text, &shown.to_string()).map_err(|faults| {
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

/// A file's text that nobody wrote to while it was read.
fn text(file: &Path) -> Result<(String, Stamp), Failure> {
    let shown = file.display();
    let malformed = |what: String| Failure::new(Class::Malformed, what);
    for _ in 0..TRIES {
        let (bytes, before, after) = bytes(file)?;
        // That another file takes its place changes its ctime, and not what was read.
        let contents = |stamp: Stamp| [stamp[2], stamp[3], stamp[4]];
        if contents(before) != contents(after) {
            thread::sleep(PAUSE);
            continue;
        }
        return match String::from_utf8(bytes) {
            Ok(text) => Ok((text, after)),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                Err(malformed(format!(
                    "{shown}: byte {at} is no UTF-8; is this a text file?"
                )))
            }
        };
    }
    Err(malformed(format!(
        "{shown} changes while it is read; write to another file and rename it"
    )))
}

/// All of a file, and its stamps before and after it was read.
fn bytes(file: &Path) -> Result<(Vec<u8>, Stamp, Stamp), Failure> {
    let shown = file.display();
    let malformed = |what: String| Failure::new(Class::Malformed, what);
    let read = || -> io::Result<Result<_, Failure>> {
        // A pipe must not hold up who opens it.
        let mut opened = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(file)?;
        let before = opened.metadata()?;
        if !before.is_file() {
            return Ok(Err(malformed(format!("{shown} is no regular file"))));
        }
        let mut bytes = Vec::new();
        (&mut opened).take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Ok(Err(malformed(format!("{shown} is larger than 16 MiB"))));
        }
        Ok(Ok((bytes, stamp(&before), stamp(&opened.metadata()?))))
    };
    read().unwrap_or_else(|error| Err(unreadable(file, &error)))
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
