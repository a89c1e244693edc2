//! `lbd`: the life of the process, from its command line to its last signal.

mod logging;
mod service_manager;
mod signals;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use clap::{CommandFactory, Parser};
use tokio::{net::TcpListener, task::JoinSet};
use tracing::{error, info, warn};

use crate::{
    api::{server, socket},
    config::{self, Parsed},
    controller::{self, Handle},
    datapath::{
        kernel::{self, Kernel, Options},
        watch,
    },
    http::Limits,
    metrics,
    model::Config,
};
use logging::{DatapathLog, LogFormat};
use service_manager::ServiceManager;
use signals::{Signal, Signals};

/// Exit code of `--check` for a config with faults.
const FAULTY: u8 = 2;
const WORKERS: usize = 2;
/// For what has begun on threads that wait, once everything else has ended.
const LAST_WORK: Duration = Duration::from_secs(1);

/// Balances connections to service backends inside the kernel.
///
/// Stopping lbd leaves the data path running: connections go on, and the next lbd takes over.
/// SIGHUP reads the config file again.
#[derive(Parser)]
#[command(name = "lbd", version)]
struct Args {
    #[arg(long, value_name = "FILE", default_value = "/etc/lbd/lbd.yaml")]
    config: PathBuf,

    /// Check the config file, print all findings, and exit: 0 if it is valid, 2 if not
    #[arg(long)]
    check: bool,

    /// Detach and remove everything lbd made in the kernel, and exit
    #[arg(long, conflicts_with = "check")]
    cleanup: bool,

    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,

    /// error, warn, info, debug, trace, or a filter such as info,lb_userspace::health=debug
    #[arg(long, env = "RUST_LOG", value_name = "LEVEL", default_value = "info")]
    log_level: String,

    /// What the kernel programs log: off, error, warn, info, debug or trace. Costs speed
    #[arg(
        long,
        env = "LBD_DATAPATH_LOG",
        value_name = "LEVEL",
        default_value = "off"
    )]
    datapath_log: DatapathLog,
}

/// The command line's grammar.
pub fn command() -> clap::Command {
    Args::command()
}

/// Runs the command line.
pub fn run() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = logging::start(&args.log_level, args.log_format) {
        eprintln!("lbd: --log-level {}: {error}", args.log_level);
        return ExitCode::from(FAULTY);
    }
    if args.check {
        return check(&args.config);
    }
    keep_others_out();
    let end = match args.cleanup {
        true => cleanup(&args.config),
        false => start(&args.config, args.datapath_log),
    };
    match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(file: &Path) -> ExitCode {
    match load(file) {
        Ok(Parsed {
            config, warnings, ..
        }) => {
            for warning in warnings {
                let (line, column) = (warning.line, warning.column);
                let message = warning.message;
                eprintln!("{}:{line}:{column}: warning: {message}", file.display());
            }
            let services = config.services.len();
            eprintln!("{}: valid, services: {services}", file.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(FAULTY)
        }
    }
}

/// Works without a valid config file too, on the default paths: whoever removes lbd may have
/// removed its file first.
fn cleanup(file: &Path) -> anyhow::Result<()> {
    let config = match load(file) {
        Ok(parsed) => parsed.config,
        Err(error) => {
            warn!("cleaning up on the default paths: {error:#}");
            Config {
                node: Default::default(),
                admin: Default::default(),
                services: Vec::new(),
                discovery: Vec::new(),
            }
        }
    };
    for removed in kernel::cleanup(&config.node)? {
        println!("{removed}");
    }
    Ok(())
}

fn start(file: &Path, DatapathLog(log_level): DatapathLog) -> anyhow::Result<()> {
    share_memory();
    let Parsed {
        config, warnings, ..
    } = load(file)?;
    for warning in warnings {
        let (line, column) = (warning.line, warning.column);
        warn!("{}:{line}:{column}: {}", file.display(), warning.message);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let lived = runtime.block_on(live(config, file, Options { log_level }));
    // What asks a dead name server, or reads from a disk that hangs, ends with the process.
    runtime.shutdown_timeout(LAST_WORK);
    lived
}

/// Nobody else may write to files and directories that lbd makes, whatever umask it was started with:
/// who may write where the socket or the state is could put others in their place.
fn keep_others_out() {
    const WRITE: libc::mode_t = libc::S_IWGRP | libc::S_IWOTH;
    // SAFETY: no pointers, and there is no other thread yet that could make a file in between.
    unsafe {
        let given = libc::umask(WRITE);
        libc::umask(given | WRITE);
    }
}

/// Has all threads allocate from one arena. With one each, what the threads of a start or of a
/// request leave free is of no use to the others: 60 MiB resident instead of 37 with 20,000
/// backends.
fn share_memory() {
    // SAFETY: no pointers, and there is no other thread yet.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

async fn live(config: Config, file: &Path, options: Options) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    // What may be taken by somebody else is taken before the data path is touched.
    let admin = config.admin.clone();
    socket::require_free(&admin.socket)?;
    let http = TcpListener::bind(admin.http).await.with_context(|| {
        let address = admin.http;
        format!("cannot listen on {address}; free the port, or change admin.http")
    })?;
    let version = env!("CARGO_PKG_VERSION");
    info!(version, config = %file.display(), services = config.services.len(), "starting");

    let datapath = Arc::new(Kernel::start_with(&config.node, options)?);
    let controller = controller::start(config, Some(file.to_owned()), datapath)?;

    let (listener, socket_file) = socket::listen(&admin.socket)?;
    let mut servers = JoinSet::new();
    let limits = Limits::default();
    servers.spawn(server::serve(listener, controller.clone(), limits));
    let source = controller.clone();
    servers.spawn(async move {
        if let Err(error) = metrics::serve(http, source, limits).await {
            error!(%error, "metrics are not served");
        }
    });
    let source = controller.clone();
    servers.spawn(watch::watch(move || source.network_changed()));
    info!(socket = %admin.socket.display(), http = %admin.http, "serving");
    let manager = Arc::new(ServiceManager::new(controller.clone()));
    servers.spawn(manager.clone().follow());

    until_stopped(&mut signals, &manager).await;
    signals.exit_on_the_next();
    manager.stopping();
    drop(socket_file);
    servers.shutdown().await;
    controller.stop().await;
    info!("stopped; the data path goes on without lbd, `lbd --cleanup` removes it");
    Ok(())
}

async fn until_stopped(signals: &mut Signals, manager: &Arc<ServiceManager<Handle>>) {
    loop {
        match signals.next().await {
            Signal::Reload => {
                // The controller tells the result, as an event and in the log.
                tokio::spawn(manager.clone().reload());
            }
            Signal::Stop(name) => {
                info!(signal = name, "stopping");
                return;
            }
        }
    }
}

fn load(file: &Path) -> anyhow::Result<Parsed> {
    let text = fs::read_to_string(file).with_context(|| {
        let file = file.display();
        format!("cannot read the config file {file}; name another with --config FILE")
    })?;
    Ok(config::parse(&text, &file.display().to_string())?)
}
