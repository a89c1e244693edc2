//! The daemon's unix socket and HTTP port.

pub mod types;
