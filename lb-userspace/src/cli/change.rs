//! Verbs that change something.

use std::{io::Write, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    Daemon,
    args::{Add, AddService, DrainArgs, HealthArgs, ModeArgs, Remove, Set, Unset},
    exit::{Exit, Failure},
};
use crate::{
    api::types::{BackendItem, Request, Response},
    config,
    model::{
        BackendRef, BackendSpec, BackendState, Health, HealthCheck, Mode, Protocol, ServiceSpec,
        duration_text,
    },
};

const POLL: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(300);
/// Polls in a row that must show an idle backend: a connection begun in the moment of the change
/// may not be counted yet in the first.
const IDLE_POLLS: u32 = 2;

pub(super) async fn add(daemon: &Daemon, add: Add, out: &mut dyn Write) -> Result<Exit, Failure> {
    let request = match add {
        Add::Service(service) => Request::AddService {
            service: service_spec(*service)?,
        },
        Add::Backend {
            service,
            address,
            weight,
            labels,
        } => Request::AddBackend {
            service,
            backend: BackendSpec {
                address,
                weight,
                max_connections: None,
                labels: labels.into_iter().collect(),
            },
        },
    };
    daemon.done(request, out).await
}

pub(super) async fn remove(
    daemon: &Daemon,
    remove: Remove,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let request = match remove {
        Remove::Service { name } => Request::RemoveService { name },
        Remove::Backend { backend } => Request::RemoveBackend { backend },
    };
    daemon.done(request, out).await
}

pub(super) async fn set(daemon: &Daemon, set: Set, out: &mut dyn Write) -> Result<Exit, Failure> {
    let Set::Weight { backend, weight } = set;
    daemon
        .done(Request::SetWeight { backend, weight }, out)
        .await
}

pub(super) async fn unset(
    daemon: &Daemon,
    unset: Unset,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let Unset { what, backend } = unset;
    daemon.done(Request::Unset { backend, what }, out).await
}

pub(super) async fn drain(
    daemon: &Daemon,
    args: DrainArgs,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let DrainArgs {
        backend,
        wait,
        timeout,
    } = args;
    let request = Request::SetMode {
        backend: backend.clone(),
        mode: Mode::Drain,
        deadline: timeout.map(Into::into),
    };
    daemon.done(request, out).await?;
    if wait {
        out.flush()?;
        let patience = timeout.unwrap_or(PATIENCE);
        until(daemon, backend, idle, IDLE_POLLS, patience).await?;
    }
    Ok(Exit::Ok)
}

pub(super) async fn maintenance(
    daemon: &Daemon,
    args: ModeArgs,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    set_mode(daemon, args, Mode::Maintenance, idle, out).await
}

pub(super) async fn ready(
    daemon: &Daemon,
    args: ModeArgs,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let healthy = |item: &BackendItem| item.state == BackendState::Healthy;
    set_mode(daemon, args, Mode::Ready, healthy, out).await
}

fn idle(item: &BackendItem) -> bool {
    item.effective_weight == 0 && item.active_connections == 0
}

async fn set_mode(
    daemon: &Daemon,
    args: ModeArgs,
    mode: Mode,
    reached: fn(&BackendItem) -> bool,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let ModeArgs {
        backend,
        wait,
        timeout,
    } = args;
    let request = Request::SetMode {
        backend: backend.clone(),
        mode,
        deadline: None,
    };
    daemon.done(request, out).await?;
    if wait || timeout.is_some() {
        out.flush()?;
        let polls = if mode == Mode::Ready { 1 } else { IDLE_POLLS };
        until(daemon, backend, reached, polls, timeout.unwrap_or(PATIENCE)).await?;
    }
    Ok(Exit::Ok)
}

async fn until(
    daemon: &Daemon,
    backend: BackendRef,
    reached: fn(&BackendItem) -> bool,
    polls: u32,
    patience: Duration,
) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut in_row = 0;
    loop {
        let request = Request::DescribeBackend {
            backend: backend.clone(),
        };
        let Response::Backend { item, .. } = daemon.call(request).await? else {
            return Err(Failure::unexpected());
        };
        in_row = if reached(&item) { in_row + 1 } else { 0 };
        if in_row >= polls {
            return Ok(());
        }
        let left = patience.saturating_sub(begin.elapsed());
        if left.is_zero() {
            let message = format!(
                "{backend} is {} with {} active connections after {}; what was set stays set",
                item.state,
                item.active_connections,
                duration_text::format(patience)
            );
            return Err(Failure::new(Exit::Timeout, message));
        }
        sleep(POLL.min(left)).await;
    }
}

fn service_spec(args: AddService) -> Result<ServiceSpec, Failure> {
    let AddService {
        name,
        listen,
        protocol,
        forwarding,
        policy,
        snat,
        tunnel_source,
        no_backend,
        on_backend_down,
        health,
        backends,
    } = args;
    Ok(ServiceSpec {
        name,
        listen,
        protocol,
        forwarding,
        snat,
        tunnel_source,
        policy,
        no_backend,
        on_backend_down,
        admission: Default::default(),
        health: health_spec(health, protocol)?,
        backends,
        discovery: Vec::new(),
    })
}

fn health_spec(args: HealthArgs, protocol: Protocol) -> Result<Health, Failure> {
    let default = config::default_health(protocol);
    let mut check = args.health.unwrap_or(default.check);
    match &mut check {
        HealthCheck::Http { expect_status, .. } if !args.health_status.is_empty() => {
            *expect_status = args.health_status;
        }
        HealthCheck::None | HealthCheck::Tcp if !args.health_status.is_empty() => {
            let message = "--health-status goes with --health http:/path only";
            return Err(Failure::new(Exit::Usage, message));
        }
        _ => {}
    }
    let interval = args.health_interval.unwrap_or(default.interval);
    Ok(Health {
        check,
        port: args.health_port,
        interval,
        fast_interval: default.fast_interval.min(interval),
        timeout: args.health_timeout.unwrap_or(default.timeout.min(interval)),
        rise: args.health_rise.unwrap_or(default.rise),
        fall: args.health_fall.unwrap_or(default.fall),
    })
}
