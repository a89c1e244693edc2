//! Each request to what answers it: reads from a view, changes by the controller's task.

use super::{Handle, changes, reads};
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

        Request::AddService { service } => {
            handle.directories.check(std::slice::from_ref(&service))?;
            handle
                .change(move |layers| changes::add_service(layers, service))
                .await
        }
        Request::RemoveService { name } => {
            handle
                .change(move |layers| changes::remove_service(layers, &name))
                .await
        }
        Request::AddBackend { service, backend } => {
            handle
                .change(move |layers| changes::add_backend(layers, &service, backend))
                .await
        }
        Request::RemoveBackend { backend } => {
            handle
                .change(move |layers| changes::remove_backend(layers, &backend))
                .await
        }
        Request::SetWeight { backend, weight } => {
            handle
                .change(move |layers| changes::set_weight(layers, &backend, weight))
                .await
        }
        Request::SetMode {
            backend,
            mode,
            deadline,
        } => {
            let in_ms = |Deadline(time)| time.as_millis().try_into().unwrap_or(u64::MAX);
            // By the clock by which the task judges it.
            let until = move || deadline.map(|time| utc::now_ms().saturating_add(in_ms(time)));
            handle
                .change(move |layers| changes::set_mode(layers, &backend, mode, until()))
                .await
        }
        Request::Unset { backend, what } => {
            handle
                .change(move |layers| changes::unset(layers, &backend, what))
                .await
        }
        Request::Apply {
            text,
            dry_run: false,
        } => {
            let services = reads::applied(&text)?;
            handle.directories.check(&services)?;
            handle
                .change(move |layers| changes::apply(layers, services))
                .await
        }
        Request::Reload => handle.reload().await,
    }
}
