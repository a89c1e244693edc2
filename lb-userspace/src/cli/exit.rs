use std::io::{self, ErrorKind};

use crate::api::{
    client::CallError,
    types::{Fault, FaultCode},
};

/// Exit codes; part of the contract with scripts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Exit {
    Ok = 0,
    /// `diff` found differences.
    Differs = 1,
    /// The command line, or a file it names, is wrong.
    Usage = 2,
    /// The daemon is not well, or could not carry a request out.
    Degraded = 3,
    Unreachable = 4,
    NotFound = 5,
    Conflict = 6,
    Refused = 7,
    Timeout = 8,
}

/// Why lbctl stops; the message goes to stderr.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { exit, message }
    }

    /// The daemon answered something else than was asked.
    pub(super) fn unexpected() -> Self {
        Self::new(
            Exit::Degraded,
            "the daemon's answer is none to this request; are lbctl and lbd of one version?",
        )
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Unreachable(message) => Self::new(Exit::Unreachable, message),
            CallError::Fault(Fault { code, message }) => {
                let exit = match code {
                    FaultCode::Invalid => Exit::Usage,
                    FaultCode::NotFound => Exit::NotFound,
                    FaultCode::Conflict => Exit::Conflict,
                    FaultCode::Refused => Exit::Refused,
                    FaultCode::Failed => Exit::Degraded,
                };
                Self::new(exit, message)
            }
        }
    }
}

impl From<io::Error> for Failure {
    /// A reader that closed the pipe has seen enough: no failure, and nothing to say.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Self::new(Exit::Ok, ""),
            _ => Self::new(Exit::Degraded, format!("cannot write: {error}")),
        }
    }
}
