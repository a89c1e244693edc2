//! Each request to what answers it: reads from a view, changes by the controller's task.

use super::{
    Handle,
    changes::{self, Change},
    directories::Directories,
    faults, reads,
    world::Layers,
};
use crate::{
    api::types::{Deadline, Fault, Request, Response},
    utc,
};

pub(super) async fn answer(handle: &Handle, request: Request) -> Result<Response, Fault> {
    match request {
        Request::GetServices => handle.read(|v, d| reads::services(v, d)).await,
        Request::GetBackends { service } => {
            handle
                .read(move |v, d| reads::backends(v, d, service.as_deref()))
                .await
        }
        Request::GetSources { service } => {
            handle
                .read(move |v, _| reads::sources(v, service.as_deref()))
                .await
        }
        Request::GetOverrides => handle.read(|v, _| reads::overrides(v)).await,
        Request::GetEvents { since } => handle.read(move |v, _| reads::events(v, since)).await,
        Request::DescribeService { name } => {
            handle.read(move |v, d| reads::service(v, d, &name)).await
        }
        Request::DescribeBackend { backend } => {
            handle
                .read(move |v, d| reads::backend(v, d, &backend))
                .await
        }
        Request::Status => handle.read(|v, d| Ok(Response::Status(v.status(d)))).await,
        Request::Diff { text } => handle.read(move |v, _| reads::diff(v, &text)).await,
        Request::Apply {
            text,
            dry_run: true,
        } => {
            handle.directories.check(&reads::applied(&text)?)?;
            handle.read(move |v, _| reads::dry_run(v, &text)).await
        }
        Request::Export => handle.read(|v, _| reads::export(v)).await,
        Request::Reload => handle.reload().await,
        request @ (Request::AddService { .. }
        | Request::RemoveService { .. }
        | Request::AddBackend { .. }
        | Request::RemoveBackend { .. }
        | Request::SetWeight { .. }
        | Request::SetMode { .. }
        | Request::Unset { .. }
        | Request::Apply { dry_run: false, .. }) => {
            let decide = decision(request, &handle.directories, utc::now_ms)?;
            handle.change(decide).await
        }
    }
}

/// What a request makes of the layers in force.
pub type Decision = Box<dyn FnOnce(&Layers) -> Result<Change, Fault> + Send>;

/// What `request` is to change, `now_ms` milliseconds after 1970 began. It may name files in
/// `directories` only.
///
/// # Errors
/// If it cannot be carried out whatever the layers are, or changes none.
pub fn decision(
    request: Request,
    directories: &Directories,
    now_ms: fn() -> u64,
) -> Result<Decision, Fault> {
    Ok(match request {
        Request::AddService { service } => {
            directories.check(std::slice::from_ref(&service))?;
            Box::new(move |layers| changes::add_service(layers, service))
        }
        Request::RemoveService { name } => {
            Box::new(move |layers| changes::remove_service(layers, &name))
        }
        Request::AddBackend { service, backend } => {
            Box::new(move |layers| changes::add_backend(layers, &service, backend))
        }
        Request::RemoveBackend { backend } => {
            Box::new(move |layers| changes::remove_backend(layers, &backend))
        }
        Request::SetWeight { backend, weight } => {
            Box::new(move |layers| changes::set_weight(layers, &backend, weight))
        }
        Request::SetMode {
            backend,
            mode,
            deadline,
        } => {
            let in_ms = |Deadline(time)| time.as_millis().try_into().unwrap_or(u64::MAX);
            // By the clock by which the task judges it.
            let until = move || deadline.map(|time| now_ms().saturating_add(in_ms(time)));
            Box::new(move |layers| changes::set_mode(layers, &backend, mode, until()))
        }
        Request::Unset { backend, what } => {
            Box::new(move |layers| changes::unset(layers, &backend, what))
        }
        Request::Apply {
            text,
            dry_run: false,
        } => {
            let services = reads::applied(&text)?;
            directories.check(&services)?;
            Box::new(move |layers| changes::apply(layers, services))
        }
        Request::GetServices
        | Request::GetBackends { .. }
        | Request::GetSources { .. }
        | Request::GetOverrides
        | Request::GetEvents { .. }
        | Request::DescribeService { .. }
        | Request::DescribeBackend { .. }
        | Request::Status
        | Request::Diff { .. }
        | Request::Apply { dry_run: true, .. }
        | Request::Export
        | Request::Reload => return Err(faults::invalid("the request changes no layer")),
    })
}
