use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, anyhow, bail};

use super::{
    State,
    file::{self, Unreadable, VERSION},
    lock::Lock,
};

const CURRENT: &str = "state.json";
/// The same once more, written behind it.
const COPY: &str = "state.json.bak";
const BROKEN: &str = "state.json.broken-";

/// A state directory, held by this process.
#[derive(Debug)]
pub struct Store {
    files: Arc<Files>,
}

/// A state on its way to disk.
#[derive(Debug)]
pub struct Saving(io::Result<mpsc::Receiver<anyhow::Result<()>>>);

impl Saving {
    /// Once this returns without error the state survives a crash of the machine. `None` if that is not
    /// known when the time is over.
    ///
    /// # Errors
    /// The former state is then in place, as far as the disk can be written.
    pub fn wait(&self, at_most: Duration) -> Option<anyhow::Result<()>> {
        let result = match &self.0 {
            Ok(result) => result,
            Err(error) => {
                return Some(Err(anyhow!(
                    "cannot start a thread to save the state: {error}"
                )));
            }
        };
        match result.recv_timeout(at_most) {
            Ok(saved) => Some(saved),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                Some(Err(anyhow!("the thread that saves the state died")))
            }
        }
    }
}

#[derive(Debug)]
struct Files {
    directory: PathBuf,
    /// What was wrong when it was opened, and still is.
    faults: Arc<Mutex<Vec<String>>>,
    /// Has what was renamed in a directory survive a crash of the machine.
    sync: fn(&Path) -> io::Result<()>,
    _lock: Lock,
}

impl Store {
    /// Opens `directory`, creating it if need be, and reads the state in it. A damaged file is
    /// put aside and its copy used; [`Store::problems`] then says so, and if nothing can be written.
    ///
    /// # Errors
    /// If another daemon holds the directory, the state was written by a later version of lbd,
    /// or the directory cannot be read.
    pub fn open(directory: &Path) -> anyhow::Result<(Self, State)> {
        fs::create_dir_all(directory).with_context(|| {
            format!("cannot create the state directory {}", directory.display())
        })?;
        let files = Files {
            directory: directory.to_owned(),
            faults: Arc::default(),
            sync: sync_directory,
            _lock: Lock::take(directory)?,
        };
        let state = files.read()?;
        let files = Arc::new(files);
        Ok((Self { files }, state))
    }

    /// Begins to replace the state on disk, which may take a disk's time. One at a time: whoever
    /// begins another must have waited for this one.
    pub fn begin_save(&self, state: State) -> Saving {
        let files = self.files.clone();
        let (done, result) = mpsc::channel();
        let thread = thread::Builder::new().name("save-state".to_owned());
        let save = move || {
            let saved = files.save(&state);
            // The directory is held until nobody writes to it.
            drop(files);
            // Whoever asked may have gone.
            let _ = done.send(saved);
        };
        Saving(thread.spawn(save).map(|_| result))
    }

    /// What finds out, once called, which damaged state files were put aside and that nobody took away
    /// yet, and what else was wrong when the directory was opened, one sentence each. It may take a
    /// disk's time, and does not hold the directory.
    pub fn look_for_problems(&self) -> impl FnOnce() -> Vec<String> + Send + use<> {
        let directory = self.files.directory.clone();
        let faults = self.files.faults.clone();
        move || problems(&directory, &faults)
    }
}

fn problems(directory: &Path, faults: &Mutex<Vec<String>>) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return vec![format!(
            "the state directory {} cannot be read",
            directory.display()
        )];
    };
    let mut broken: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(BROKEN))
        .map(|entry| entry.path())
        .collect();
    broken.sort();
    broken
        .iter()
        .map(|path| {
            format!(
                "a damaged state file was put aside as {}; compare with `lbctl get overrides` and \
                 `lbctl export`, then remove the file",
                path.display()
            )
        })
        .chain(
            faults
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        )
        .collect()
}

impl Files {
    fn save(&self, state: &State) -> anyhow::Result<()> {
        let text = file::encode(state)?;
        let path = self.path(CURRENT);
        let former = fs::read(&path).ok();
        self.replace(CURRENT, text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        if let Err(error) = (self.sync)(&self.directory) {
            // Whoever asked hears that nothing was changed, so the next daemon may not find it either.
            let put_back = match former {
                Some(former) => self.replace(CURRENT, &former),
                None => fs::remove_file(&path),
            };
            if let Err(error) = put_back {
                tracing::error!(
                    "{} holds a change that was refused, and it cannot be put back: {error}",
                    path.display()
                );
            }
            return Err(error).with_context(|| format!("cannot write {}", path.display()));
        }
        // The state is safe by now, if not twice.
        let copied = self.replace(COPY, text.as_bytes());
        if let Err(error) = copied.and_then(|()| (self.sync)(&self.directory)) {
            tracing::warn!("cannot write {}: {error:#}", self.path(COPY).display());
        }
        Ok(())
    }

    fn note(&self, fault: String) {
        tracing::error!("{fault}");
        let faults = self.faults.lock();
        faults.unwrap_or_else(PoisonError::into_inner).push(fault);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn read(&self) -> anyhow::Result<State> {
        if let Some(state) = self.read_or_put_aside(CURRENT)? {
            return Ok(state);
        }
        let Some(state) = self.read_or_put_aside(COPY)? else {
            return Ok(State::default());
        };
        tracing::warn!("{} is in use", self.path(COPY).display());
        if let Err(error) = self.save(&state) {
            self.note(format!("what lbctl changes cannot be kept: {error:#}"));
        }
        Ok(state)
    }

    /// `None` if there is no such file, or a damaged one, which is then renamed.
    fn read_or_put_aside(&self, name: &str) -> anyhow::Result<Option<State>> {
        let path = self.path(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        match file::decode(&String::from_utf8_lossy(&bytes)) {
            Ok(state) => Ok(Some(state)),
            Err(Unreadable::Newer(version)) => bail!(
                "{} has version {version}, this lbd knows {VERSION}: it was written by a later \
                 lbd; run that one, or move the file and its copy {COPY} away to begin without \
                 overrides and services added by lbctl",
                path.display()
            ),
            Err(Unreadable::Damaged(why)) => {
                let (shown, aside) = (path.display(), self.unused_broken_path());
                match fs::rename(&path, &aside) {
                    Ok(()) => {
                        tracing::error!("{shown} is damaged: {why}; kept as {}", aside.display());
                    }
                    Err(error) => self.note(format!(
                        "{shown} is damaged ({why}) and cannot be put aside: {error}"
                    )),
                }
                Ok(None)
            }
        }
    }

    fn unused_broken_path(&self) -> PathBuf {
        let mut number = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        loop {
            let path = self.path(&format!("{BROKEN}{number}"));
            if !path.exists() {
                return path;
            }
            number += 1;
        }
    }

    fn replace(&self, name: &str, text: &[u8]) -> io::Result<()> {
        let new = self.path(&format!("{name}.new"));
        let mut file = File::create(&new)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&new, self.path(name))
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Mode, Override},
        testing::Directory,
    };

    fn save(store: &Store, state: State) {
        store
            .begin_save(state)
            .wait(Duration::MAX)
            .unwrap()
            .unwrap();
    }

    fn drained(address: &str) -> State {
        State {
            overrides: [(
                format!("web/{address}").parse().unwrap(),
                Override {
                    mode: Some(Mode::Drain),
                    ..Override::default()
                },
            )]
            .into(),
            ..State::default()
        }
    }

    #[test]
    fn keeps_the_last_state_twice() {
        let directory = Directory::new("keeps");
        let (first, second) = (drained("10.0.0.1:80"), drained("10.0.0.2:80"));
        {
            let (store, state) = Store::open(directory.path()).unwrap();
            assert_eq!(state, State::default());
            save(&store, first.clone());
            save(&store, second.clone());
        }
        let (store, state) = Store::open(directory.path()).unwrap();
        assert_eq!(state, second);
        assert_eq!(store.look_for_problems()(), Vec::<String>::new());
        let copy = fs::read_to_string(directory.path().join(COPY)).unwrap();
        assert_eq!(file::decode(&copy), Ok(second));
    }

    #[test]
    fn a_truncated_file_loses_nothing_and_is_kept_aside() {
        let directory = Directory::new("truncated");
        let (first, second) = (drained("10.0.0.1:80"), drained("10.0.0.2:80"));
        let current = directory.path().join(CURRENT);
        {
            let (store, _) = Store::open(directory.path()).unwrap();
            save(&store, first.clone());
            save(&store, second.clone());
        }
        let text = fs::read_to_string(&current).unwrap();
        fs::write(&current, &text[..text.len() / 2]).unwrap();
        for _ in 0..2 {
            let (store, state) = Store::open(directory.path()).unwrap();
            assert_eq!(state, second);
            assert_eq!(
                store.look_for_problems()().len(),
                1,
                "shown until somebody acts"
            );
        }
        let aside = fs::read_dir(directory.path())
            .unwrap()
            .flatten()
            .find(|e| e.file_name().to_string_lossy().starts_with(BROKEN))
            .unwrap();
        let kept = fs::read_to_string(aside.path()).unwrap();
        assert_eq!(kept, text[..text.len() / 2]);
    }

    #[test]
    fn two_damaged_files_are_both_kept() {
        let directory = Directory::new("both");
        fs::create_dir_all(directory.path()).unwrap();
        fs::write(directory.path().join(CURRENT), "").unwrap();
        fs::write(directory.path().join(COPY), [0xff, 0]).unwrap();
        let (store, state) = Store::open(directory.path()).unwrap();
        assert_eq!(state, State::default());
        assert_eq!(store.look_for_problems()().len(), 2);
    }

    #[test]
    fn a_later_version_is_refused_and_left_alone() {
        let directory = Directory::new("later");
        fs::create_dir_all(directory.path()).unwrap();
        let text = "{\"version\": 99}";
        fs::write(directory.path().join(CURRENT), text).unwrap();
        let message = Store::open(directory.path()).unwrap_err().to_string();
        assert!(message.contains("version 99"), "{message}");
        assert_eq!(
            fs::read_to_string(directory.path().join(CURRENT)).unwrap(),
            text
        );
    }

    #[test]
    fn a_leftover_of_a_killed_write_does_no_harm() {
        let directory = Directory::new("leftover");
        let state = drained("10.0.0.1:80");
        {
            let (store, _) = Store::open(directory.path()).unwrap();
            save(&store, State::default());
            fs::write(directory.path().join("state.json.new"), "{\"ver").unwrap();
            fs::write(directory.path().join("state.json.bak.new"), "").unwrap();
            save(&store, state.clone());
        }
        assert_eq!(Store::open(directory.path()).unwrap().1, state);
    }

    #[test]
    fn what_is_refused_does_not_come_back() {
        let directory = Directory::new("refused");
        let first = drained("10.0.0.1:80");
        for kept in [State::default(), first.clone()] {
            let (mut store, state) = Store::open(directory.path()).unwrap();
            assert_eq!(state, kept);
            let files = Arc::get_mut(&mut store.files).unwrap();
            files.sync = |_| Err(io::Error::other("the disk is ill"));
            let saving = store.begin_save(drained("10.0.0.2:80"));
            let refused = saving.wait(Duration::MAX).unwrap().unwrap_err();
            let refused = format!("{refused:#}");
            assert!(refused.contains("the disk is ill"), "{refused}");
            drop(store);
            let (store, state) = Store::open(directory.path()).unwrap();
            assert_eq!(state, kept);
            save(&store, first.clone());
        }
    }

    #[test]
    fn a_second_daemon_is_refused_until_the_first_is_gone() {
        let directory = Directory::new("lock");
        let first = Store::open(directory.path()).unwrap();
        let message = Store::open(directory.path()).unwrap_err().to_string();
        assert!(message.contains("another lbd"), "{message}");
        assert!(
            message.contains(&std::process::id().to_string()),
            "{message}"
        );
        drop(first);
        Store::open(directory.path()).unwrap();
    }
}
