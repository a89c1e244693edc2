//! The daemon's front door and the command line, over real sockets and with the built binaries.

mod common;
mod hostile;
mod lbctl;
mod lbd;
mod metrics;
mod whole;
