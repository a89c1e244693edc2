//! Which files a request may have the daemon read: root reads for whoever may use the socket.

use std::path::{Component, Path, PathBuf};

use super::faults;
use crate::{api::types::Fault, model::ServiceSpec};

/// The directories of the daemon: that of its config file, and the state directory.
#[derive(Clone, Debug)]
pub struct Directories(Vec<PathBuf>);

impl Directories {
    pub fn new(config_file: Option<&Path>, state_dir: &Path) -> Self {
        let beside = config_file.and_then(Path::parent);
        let absolute = |path: &Path| std::path::absolute(path).ok();
        Self(
            [beside, Some(state_dir)]
                .into_iter()
                .flatten()
                .filter_map(absolute)
                .collect(),
        )
    }

    /// # Errors
    /// A source of one of the services, which come from a request, names a file elsewhere. That it was
    /// read could be told from answers, and a secret would be sent to a server that the request names.
    pub(super) fn check(&self, services: &[ServiceSpec]) -> Result<(), Fault> {
        for service in services {
            let files = service.discovery.iter().flat_map(|spec| spec.kind.files());
            if let Some(file) = files.into_iter().find(|file| !self.holds(file)) {
                let places: Vec<_> = self.0.iter().map(|p| p.display().to_string()).collect();
                return Err(faults::refused(format!(
                    "service `{}`: {} is no file of lbd's, and a request must name no other: put it \
                     below {}, or the service into the config file",
                    service.name,
                    file.display(),
                    places.join(" or ")
                )));
            }
        }
        Ok(())
    }

    /// By the path alone. Links that stand in these directories are followed when the file is read: root
    /// alone can make one there (a mounted ConfigMap is made of them), so where one leads is root's word,
    /// and no request's.
    fn holds(&self, file: &Path) -> bool {
        let is_plain = |part: Component<'_>| !matches!(part, Component::ParentDir);
        file.components().all(is_plain) && self.0.iter().any(|place| file.starts_with(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn service(discovery: &str) -> ServiceSpec {
        let text =
            format!("services: [{{name: web, listen: 192.0.2.1:80, discovery: {discovery}}}]");
        let parsed = config::parse(&text, "f").unwrap_or_else(|e| panic!("{discovery}: {e}"));
        parsed.config.services[0].clone()
    }

    #[test]
    fn files_of_others_are_not_read_for_a_request() {
        let directories =
            Directories::new(Some("/etc/lbd/lbd.yaml".as_ref()), "/var/lib/lbd".as_ref());
        let url = "url: \"https://a.example\"";
        let consul = format!("{url}, service: web");
        for good in [
            "{file: {path: /etc/lbd/web.yaml}}",
            "{file: {path: /var/lib/lbd/x/web.yaml}}",
            "{dns: {name: web.example, port: 80}}",
            &format!("{{consul: {{{consul}, token: {{file: /etc/lbd/token}}}}}}"),
        ] {
            directories
                .check(&[service(good)])
                .unwrap_or_else(|e| panic!("{good}: {e:?}"));
        }
        for bad in [
            "{file: {path: /etc/shadow}}",
            "{file: {path: /etc/lbdx}}",
            &format!("{{consul: {{{consul}, token: {{file: /root/token}}}}}}"),
            &format!("{{consul: {{{consul}, tls: {{ca_file: /root/ca}}}}}}"),
            "{eureka: {urls: [\"http://a.example\"], app: web, user: a, password: {file: /root/p}}}",
            "{etcd: {endpoints: [\"http://a.example:2379\"], prefix: /a, user: a, \
             password: {file: /root/p}}}",
            "{zookeeper: {servers: [\"a.example:2181\"], path: /a, user: a, \
             password: {file: /root/p}}}",
            "{kubernetes: {kubeconfig: /root/config, namespace: a, service: b}}",
            "{kubernetes: {server: \"https://a.example\", token: {file: /root/t}, namespace: a, \
             service: b}}",
        ] {
            let refused = directories.check(&[service(bad)]).expect_err(bad);
            assert!(
                refused.message.contains("/etc/lbd or /var/lib/lbd"),
                "{refused:?}"
            );
        }
        assert!(!directories.holds("/etc/lbd/../shadow".as_ref()));
    }
}
