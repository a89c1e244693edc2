//! Passwords and tokens: named in the config, read from elsewhere when they are used.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Class, Failure};

/// Longest secret, in bytes.
const MAX_SECRET: u64 = 64 << 10;

/// Where a secret is. The config, `export`, `describe` and the state directory hold this and never
/// what is there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Secret {
    /// A file that holds it alone, less white space at its end. Read anew each time, so that it may
    /// be exchanged while lbd runs.
    File(PathBuf),
    /// A variable of lbd's environment.
    Env(String),
}

/// What was there. Displays as nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Revealed(String);

impl Revealed {
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Revealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Secret {
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Env(_) => None,
        }
    }

    /// # Errors
    /// In words that name the place and not what is there.
    pub fn read(&self) -> Result<Revealed, Failure> {
        let fault = |what: String| Failure::new(Class::Config, what);
        let text = match self {
            Self::Env(name) => std::env::var(name)
                .map_err(|_| fault(format!("lbd's environment has no variable {name}")))?,
            Self::File(path) => {
                let shown = path.display();
                let unreadable = |error| fault(format!("cannot read the secret {shown}: {error}"));
                let length = std::fs::metadata(path).map_err(unreadable)?.len();
                if length > MAX_SECRET {
                    return Err(fault(format!("the secret {shown} is longer than 64 KiB")));
                }
                std::fs::read_to_string(path).map_err(unreadable)?
            }
        };
        let text = text.trim_end();
        if text.is_empty() || text.contains(char::is_control) {
            return Err(fault(format!(
                "the secret {self} is empty or of more than one line"
            )));
        }
        Ok(Revealed(text.to_owned()))
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Directory;

    #[test]
    fn a_file_without_its_newline_and_never_shown() {
        let directory = Directory::new("secret");
        let path = directory.path().join("token");
        std::fs::write(&path, "hunter2\n").unwrap();
        let secret = Secret::File(path.clone()).read().unwrap();
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(format!("{secret:?}"), "(secret)");
        for text in ["", "\n", "two\nlines"] {
            std::fs::write(&path, text).unwrap();
            let failure = Secret::File(path.clone()).read().unwrap_err();
            assert!(!failure.message.contains("lines\n"), "{failure:?}");
            assert_eq!(failure.class, Class::Config);
        }
        let missing = Secret::File(path.join("no")).read().unwrap_err();
        assert!(missing.message.contains("cannot read"), "{missing:?}");
        let missing = Secret::Env("LBD_NO_SUCH_VARIABLE".into()).read();
        assert!(missing.unwrap_err().message.contains("LBD_NO_SUCH"));
    }
}
