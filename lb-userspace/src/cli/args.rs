//! The command line's grammar.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::{output::Format, parse};
use crate::{
    api::types::UnsetWhat,
    config::{self, parse_address},
    model::{
        BackendRef, BackendSpec, Forwarding, HealthCheck, NoBackend, OnBackendDown, Policy, Prefix,
        Protocol, Snat, WeightOverride, duration_text,
    },
};

/// Looks at and steers the load balancer of this node.
///
/// Exit codes: 0 ok, 1 differs, 2 usage, 3 degraded, 4 daemon unreachable, 5 not found,
/// 6 conflict, 7 refused by a guard, 8 timeout.
#[derive(Parser)]
#[command(name = "lbctl", version)]
pub(super) struct Cli {
    /// The daemon's socket
    #[arg(
        long,
        global = true,
        env = "LBCTL_SOCKET",
        value_name = "PATH",
        default_value = "/run/lbd/lbd.sock"
    )]
    pub(super) socket: PathBuf,

    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Subcommand)]
pub(super) enum Verb {
    /// List services, backends, sources, overrides or events
    Get(Get),
    /// Show everything about one service or backend
    #[command(subcommand)]
    Describe(Describe),
    /// Add a service or a backend
    #[command(subcommand)]
    Add(Add),
    /// Remove a service or a backend that was added with lbctl
    #[command(subcommand, visible_alias = "rm")]
    Remove(Remove),
    /// Override a backend's weight
    #[command(subcommand)]
    Set(Set),
    /// Give a backend no new connections; existing ones continue
    Drain(DrainArgs),
    /// Give a backend traffic whatever its health checks say
    Ready(ModeArgs),
    /// Drain a backend and stop probing it
    Maint(ModeArgs),
    /// Take overrides of a backend back
    Unset(Unset),
    /// Check a config file without a daemon; exit code 2 if it has faults
    Check {
        /// `-` for stdin
        file: PathBuf,
    },
    /// Show what a reload would change if this were the daemon's config file; exit code 1 if anything
    Diff {
        /// `-` for stdin
        file: PathBuf,
    },
    /// Add or replace services beside those of the daemon's config file, all or none
    Apply {
        /// `-` for stdin
        file: PathBuf,
        /// Only show what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Print the configuration in force as a config file
    Export,
    /// Read the daemon's config file again, all or nothing
    Reload,
    /// Show how the daemon is; exit code 3 if it is not well
    Status(Status),
    /// Print a completion script
    Completion { shell: clap_complete::Shell },
    /// Write man pages and completion scripts of lbctl and lbd, for whoever makes a package
    #[command(hide = true)]
    Documents { directory: PathBuf },
}

#[derive(Args)]
pub(super) struct Get {
    pub(super) what: What,
    /// Of services: this one; of backends and sources: those of this service
    pub(super) name: Option<String>,
    #[arg(short, long, value_enum, default_value = "table")]
    pub(super) output: Format,
    /// Go on, and print what changes
    #[arg(short, long)]
    pub(super) watch: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum What {
    #[value(aliases = ["service", "svc"])]
    Services,
    #[value(aliases = ["backend", "be"])]
    Backends,
    #[value(aliases = ["source", "src"])]
    Sources,
    #[value(aliases = ["override", "ov"])]
    Overrides,
    #[value(aliases = ["event", "ev"])]
    Events,
}

#[derive(Subcommand)]
pub(super) enum Describe {
    /// Show a service: its rules, backends, sources and events
    #[command(visible_alias = "svc")]
    Service {
        name: String,
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Show a backend: who decided its state, its probes, counters and events
    #[command(visible_alias = "be")]
    Backend {
        #[arg(value_name = "SERVICE/ADDR:PORT")]
        backend: BackendRef,
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
}

#[derive(Subcommand)]
pub(super) enum Add {
    /// Add a service beside those of the config file
    #[command(visible_alias = "svc")]
    Service(Box<AddService>),
    /// Add a backend, also to a service of the config file
    #[command(visible_alias = "be")]
    Backend {
        service: String,
        #[arg(value_name = "ADDR:PORT", value_parser = parse_address)]
        address: SocketAddr,
        /// 0 to 65535; 0 means no new connections
        #[arg(long, value_name = "N", default_value_t = config::DEFAULT_WEIGHT)]
        weight: u16,
        /// May be given more than once
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse::label)]
        labels: Vec<(String, String)>,
    },
}

#[derive(Args)]
pub(super) struct AddService {
    /// 1 to 63 characters a-z, 0-9 and -
    pub(super) name: String,
    /// May be given more than once
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_address, required = true)]
    pub(super) listen: Vec<SocketAddr>,
    /// tcp or udp
    #[arg(long, value_parser = parse::word::<Protocol>, default_value_t)]
    pub(super) protocol: Protocol,
    /// nat, dsr-l2 or dsr-ipip
    #[arg(long, value_parser = parse::word::<Forwarding>, default_value_t)]
    pub(super) forwarding: Forwarding,
    /// maglev, round-robin or random
    #[arg(long, value_parser = parse::word::<Policy>, default_value_t)]
    pub(super) policy: Policy,
    /// auto, always or never
    #[arg(long, value_parser = parse::word::<Snat>, default_value_t)]
    pub(super) snat: Snat,
    /// Where packets in a tunnel come from; one of each family [default: the node's address]
    #[arg(long, value_name = "PREFIX")]
    pub(super) tunnel_source: Vec<Prefix>,
    /// What clients get while no backend takes connections: reject or drop
    #[arg(long, value_parser = parse::word::<NoBackend>, default_value_t)]
    pub(super) no_backend: NoBackend,
    /// What becomes of TCP connections whose backend fails: keep or reset
    #[arg(long, value_parser = parse::word::<OnBackendDown>, default_value_t)]
    pub(super) on_backend_down: OnBackendDown,
    #[command(flatten)]
    pub(super) health: HealthArgs,
    /// May be given more than once
    #[arg(long = "backend", value_name = "ADDR:PORT[=WEIGHT]", value_parser = parse::backend)]
    pub(super) backends: Vec<BackendSpec>,
}

#[derive(Args)]
pub(super) struct HealthArgs {
    /// tcp, none, or http:/path [default: tcp, for UDP services none]
    #[arg(long, value_name = "CHECK", value_parser = parse::health)]
    pub(super) health: Option<HealthCheck>,
    /// Port to probe, if not the backend's own
    #[arg(long, value_name = "PORT")]
    pub(super) health_port: Option<u16>,
    /// Expected HTTP status [default: 200]; may be given more than once
    #[arg(long, value_name = "STATUS")]
    pub(super) health_status: Vec<u16>,
    /// Time between probes [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = duration_text::parse)]
    pub(super) health_interval: Option<Duration>,
    /// [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = duration_text::parse)]
    pub(super) health_timeout: Option<Duration>,
    /// Successes in a row until healthy [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) health_rise: Option<u32>,
    /// Failures in a row until unhealthy [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) health_fall: Option<u32>,
}

#[derive(Subcommand)]
pub(super) enum Remove {
    /// Remove a service that was added with lbctl
    #[command(visible_alias = "svc")]
    Service { name: String },
    /// Remove a backend that was added with lbctl
    #[command(visible_alias = "be")]
    Backend {
        #[arg(value_name = "SERVICE/ADDR:PORT")]
        backend: BackendRef,
    },
}

#[derive(Subcommand)]
pub(super) enum Set {
    /// Override a backend's weight, absolutely or in percent of the configured one
    Weight {
        #[arg(value_name = "SERVICE/ADDR:PORT")]
        backend: BackendRef,
        /// 0 to 65535, or 0% to 1000% of the configured weight
        #[arg(value_name = "N|N%", value_parser = parse::weight)]
        weight: WeightOverride,
    },
}

#[derive(Args)]
pub(super) struct DrainArgs {
    #[arg(value_name = "SERVICE/ADDR:PORT")]
    pub(super) backend: BackendRef,
    /// Wait until no connection is open; exit code 8 if some are after --timeout, else after 5m
    #[arg(long)]
    pub(super) wait: bool,
    /// Reset the connections that are left after this time [default: never]
    #[arg(long, value_name = "TIME", value_parser = duration_text::parse)]
    pub(super) timeout: Option<Duration>,
}

#[derive(Args)]
pub(super) struct ModeArgs {
    #[arg(value_name = "SERVICE/ADDR:PORT")]
    pub(super) backend: BackendRef,
    /// Wait until it is done: no open connections (maint), healthy (ready)
    #[arg(long)]
    pub(super) wait: bool,
    /// Longest wait, after which the exit code is 8; implies --wait [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = duration_text::parse)]
    pub(super) timeout: Option<Duration>,
}

#[derive(Args)]
pub(super) struct Unset {
    /// weight, mode or all
    #[arg(value_parser = parse::word::<UnsetWhat>)]
    pub(super) what: UnsetWhat,
    #[arg(value_name = "SERVICE/ADDR:PORT")]
    pub(super) backend: BackendRef,
}

#[derive(Args)]
pub(super) struct Status {
    #[arg(short, long, value_enum, default_value = "table")]
    pub(super) output: Format,
    /// Wait up to this long for the daemon to be well; exit code 8 if it is not even ready by then
    #[arg(long, value_name = "TIME", value_parser = duration_text::parse)]
    pub(super) wait: Option<Duration>,
}
