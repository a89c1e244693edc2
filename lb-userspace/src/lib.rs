//! Everything `lbd` and `lbctl` do, as a library; the binaries only call into it.

pub mod api;
pub mod cli;
pub mod config;
pub mod controller;
pub mod daemon;
pub mod datapath;
pub mod discovery;
pub mod health;
pub mod http;
pub mod json;
pub mod metrics;
pub mod model;
pub mod plan;
pub mod reconcile;
pub mod select;
pub mod state;
pub mod utc;

#[cfg(test)]
mod testing;
