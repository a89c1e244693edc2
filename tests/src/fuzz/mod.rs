//! What each fuzz target does with an input. `tests/fuzz/` hands them to libFuzzer; a short run of each,
//! on inputs that are kept and random changes of these, is `tests/tests/fuzz_short.rs`.

pub mod config;
pub mod consul;
pub mod dns;
pub mod etcd;
pub mod eureka;
pub mod http;
pub mod instances;
pub mod kubernetes;
pub mod mutate;
pub mod packet;
pub mod relay;
pub mod request;
pub mod resolv;
pub mod state;
pub mod zookeeper;

use std::{future::Future, sync::LazyLock};

use tokio::runtime::{Builder, Runtime};

/// One target.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    /// Whether the input, or some of it, was understood: one of which nothing is shows little. Panics
    /// where something is wrong.
    pub run: fn(&[u8]) -> bool,
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        /// All there are.
        pub const TARGETS: &[Target] = &[$(Target { name: stringify!($name), run: $name::run }),*];
    };
}

targets![
    config, consul, dns, etcd, eureka, http, instances, kubernetes, packet, relay, request, resolv,
    state, zookeeper,
];

/// As much of it as is text.
fn text(bytes: &[u8]) -> &str {
    match str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
    }
}

/// Runs what is asynchronous to its end, on this thread.
fn wait<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
            let mut builder = Builder::new_current_thread();
            builder.enable_time().build().expect("a runtime of one thread")
        });
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}
