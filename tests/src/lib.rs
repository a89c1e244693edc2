//! What the tests, the benchmark and the demo share.

pub mod packets;
