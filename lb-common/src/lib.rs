//! What the kernel programs and the daemon agree on, and every decision of the packet path.
//!
//! [`abi`] holds the bytes that live in maps, [`path`] the decisions. Nothing here reads a clock,
//! allocates, or touches a packet except through the [`path::Frame`] trait, so the same code runs
//! in XDP, in TC and on a byte slice in a test.
#![no_std]
#![deny(unsafe_code)]

pub mod abi;
pub mod hash;
pub mod path;
