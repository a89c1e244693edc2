//! What an operator hears when a request cannot be carried out: what, where, and what to do.

use std::net::SocketAddr;

use super::merge::Merged;
use crate::{
    api::types::{Fault, FaultCode},
    model::BackendRef,
};

/// Names listed at most in one message.
const LISTED: usize = 10;

pub(super) fn invalid(message: impl Into<String>) -> Fault {
    fault(FaultCode::Invalid, message)
}

pub(super) fn conflict(message: impl Into<String>) -> Fault {
    fault(FaultCode::Conflict, message)
}

pub(super) fn refused(message: impl Into<String>) -> Fault {
    fault(FaultCode::Refused, message)
}

pub(super) fn failed(message: impl Into<String>) -> Fault {
    fault(FaultCode::Failed, message)
}

pub(super) fn no_service<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Fault {
    let known: Vec<&str> = known.collect();
    let nearest = nearest(name, &known);
    let hint = nearest.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
    let list = match &known[..] {
        [] => "there are no services".to_owned(),
        known => format!("services: {}", listed(known)),
    };
    fault(
        FaultCode::NotFound,
        format!("there is no service `{name}`{hint} ({list})"),
    )
}

pub(super) fn no_backend(backend: &BackendRef, service: &Merged) -> Fault {
    let addresses: Vec<SocketAddr> = service.spec.backends.iter().map(|b| b.address).collect();
    let name = &backend.service;
    let list = if addresses.is_empty() {
        format!("it has none; add one with `lbctl add backend {name} ADDR:PORT`")
    } else {
        format!("it has {}", listed(&addresses))
    };
    fault(
        FaultCode::NotFound,
        format!(
            "service `{name}` has no backend {}: {list}",
            backend.address
        ),
    )
}

fn fault(code: FaultCode, message: impl Into<String>) -> Fault {
    Fault {
        code,
        message: message.into(),
    }
}

fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

fn listed(items: &[impl ToString]) -> String {
    let mut words: Vec<String> = items.iter().take(LISTED).map(ToString::to_string).collect();
    if items.len() > LISTED {
        words.push(format!("and {} more", items.len() - LISTED));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::{
        merge::{Layer, Origin},
        testing::service,
    };

    #[test]
    fn names_the_nearest_service_and_lists_the_rest() {
        let message = |name| no_service(name, ["web", "dns"].into_iter()).message;
        assert_eq!(
            message("wbe"),
            "there is no service `wbe`; did you mean `web`? (services: web, dns)"
        );
        assert_eq!(
            message("database"),
            "there is no service `database` (services: web, dns)"
        );
        assert_eq!(
            no_service("web", std::iter::empty()).message,
            "there is no service `web` (there are no services)"
        );
    }

    #[test]
    fn lists_a_services_backends() {
        let service = |backends: &[&str]| Merged {
            spec: service("web", "192.0.2.1:80", backends),
            layer: Layer::File,
            sources: Vec::new(),
            origins: vec![Origin::Layer(Layer::File); backends.len()],
            left_out: Vec::new(),
        };
        let wanted = "web/10.0.0.9:80".parse().unwrap();
        assert_eq!(
            no_backend(&wanted, &service(&["10.0.0.1:80", "10.0.0.2:80"])).message,
            "service `web` has no backend 10.0.0.9:80: it has 10.0.0.1:80, 10.0.0.2:80"
        );
        let empty = no_backend(&wanted, &service(&[])).message;
        assert!(empty.ends_with("add one with `lbctl add backend web ADDR:PORT`"));
    }
}
