//! The daemon's unix socket: its two ends, and what goes through it.

pub mod client;
pub mod server;
pub mod socket;
pub mod types;
