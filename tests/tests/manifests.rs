//! deploy/kubernetes and deploy/helm: what they render is what an API server takes, and the same.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, bail, ensure};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Container, Namespace, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding, RoleBinding},
};
use lb_tests::{docs::Page, machine::target, note};
use lb_userspace::config;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

type Objects = BTreeMap<(String, String), Value>;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The documents of a YAML text, by kind and name.
fn objects(text: &str) -> anyhow::Result<Objects> {
    let mut objects = Objects::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value: Value = serde::Deserialize::deserialize(document)?;
        if value.is_null() {
            continue;
        }
        let kind = value["kind"].as_str().context("no kind")?;
        let name = value["metadata"]["name"].as_str().context("no name")?;
        let key = (kind.to_owned(), name.to_owned());
        let twice = format!("{name} twice");
        ensure!(objects.insert(key, value).is_none(), twice);
    }
    Ok(objects)
}

/// Fails unless an object is one of its kind's schema, with no field that the API does not know: what
/// the typed form says again must be what was said.
fn validate(object: &Value) -> anyhow::Result<()> {
    match (object["apiVersion"].as_str(), object["kind"].as_str()) {
        (Some("v1"), Some("Namespace")) => typed::<Namespace>(object),
        (Some("v1"), Some("ServiceAccount")) => typed::<ServiceAccount>(object),
        (Some("v1"), Some("ConfigMap")) => typed::<ConfigMap>(object),
        (Some("apps/v1"), Some("DaemonSet")) => typed::<DaemonSet>(object),
        (Some("rbac.authorization.k8s.io/v1"), Some("ClusterRole")) => typed::<ClusterRole>(object),
        (Some("rbac.authorization.k8s.io/v1"), Some("RoleBinding")) => typed::<RoleBinding>(object),
        (Some("rbac.authorization.k8s.io/v1"), Some("ClusterRoleBinding")) => {
            typed::<ClusterRoleBinding>(object)
        }
        other => bail!("no schema for {other:?}"),
    }
}

fn typed<T: DeserializeOwned + Serialize>(object: &Value) -> anyhow::Result<()> {
    let understood: T = serde_json::from_value(object.clone())?;
    let said_again = serde_json::to_value(understood)?;
    let mut differences = Vec::new();
    compare("", object, &said_again, &mut differences);
    ensure!(differences.is_empty(), "not of the schema: {differences:?}");
    Ok(())
}

fn compare(place: &str, written: &Value, understood: &Value, differences: &mut Vec<String>) {
    match (written, understood) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                let (a, b) = (&written[key], &understood[key]);
                compare(&format!("{place}.{key}"), a, b, differences);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (n, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{place}[{n}]"), a, b, differences);
            }
        }
        (a, b) if a != b => differences.push(format!("{place}: {a} became {b}")),
        _ => {}
    }
}

/// All documents of the base that are no kustomization of it.
fn base() -> anyhow::Result<Objects> {
    let directory = deploy().join("kubernetes");
    let text = std::fs::read_to_string(directory.join("kustomization.yaml"))?;
    let kustomization: Value = serde_yaml_ng::from_str(&text)?;
    let mut all = Objects::new();
    for name in kustomization["resources"]
        .as_array()
        .context("no resources")?
    {
        let name = name.as_str().context("a name")?;
        all.extend(objects(&std::fs::read_to_string(directory.join(name))?)?);
    }
    Ok(all)
}

fn container(objects: &Objects) -> anyhow::Result<Container> {
    let key = ("DaemonSet".to_owned(), "lbd".to_owned());
    let set: DaemonSet = serde_json::from_value(objects[&key].clone())?;
    let pod = set
        .spec
        .and_then(|spec| spec.template.spec)
        .context("no pod")?;
    pod.containers.into_iter().next().context("no container")
}

/// A tool of `make setup`, run to its end; `None` if set-up could not get it.
fn tool(name: &str, arguments: &[&str]) -> Option<Output> {
    let path = target().join("tools").join(name);
    if !path.exists() {
        note(format!(
            "NOT TESTED with {name}: `make setup` did not get it, and says why"
        ));
        return None;
    }
    let mut command = Command::new(path);
    Some(
        command
            .args(arguments)
            .current_dir(deploy())
            .output()
            .expect("starts"),
    )
}

fn rendered(output: Output) -> anyhow::Result<Objects> {
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    objects(&String::from_utf8(output.stdout)?)
}

#[test]
fn the_base_is_of_the_api_s_schema() -> anyhow::Result<()> {
    let base = base()?;
    assert_eq!(base.len(), 5, "{:?}", base.keys());
    for ((kind, name), object) in &base {
        validate(object).with_context(|| format!("{kind} {name}"))?;
    }
    for name in ["rolebinding.yaml", "rbac-cluster.yaml", "cleanup.yaml"] {
        beside(name)?.values().try_for_each(validate)?;
    }
    Ok(())
}

/// The documents of a file that is no part of the base.
fn beside(name: &str) -> anyhow::Result<Objects> {
    let path = deploy().join("kubernetes").join(name);
    objects(&std::fs::read_to_string(path)?)
}

/// It has to reach all that the daemon's pod could change, on the same nodes and by the same rights.
#[test]
fn the_cleanup_s_pod_is_the_daemon_s() -> anyhow::Result<()> {
    let pod = |objects: &Objects, name: &str| {
        let set = &objects[&("DaemonSet".to_owned(), name.to_owned())];
        set["spec"]["template"]["spec"].clone()
    };
    let mut daemon = pod(&base()?, "lbd");
    let cleanup = pod(&beside("cleanup.yaml")?, "lbd-cleanup");
    for part in ["hostNetwork", "nodeSelector", "tolerations"] {
        assert_eq!(cleanup[part], daemon[part], "{part}");
    }
    // Whoever removes lbd may have removed its config first.
    daemon["volumes"][0]["configMap"]["optional"] = true.into();
    assert_eq!(cleanup["volumes"], daemon["volumes"]);
    let (lbd, init) = (&daemon["containers"][0], &cleanup["initContainers"][0]);
    for part in ["image", "securityContext", "volumeMounts"] {
        assert_eq!(init[part], lbd[part], "{part}");
    }
    assert_eq!(init["args"], serde_json::json!(["--cleanup"]));
    let of_daemon = lbd["env"].as_array().context("no env")?;
    for variable in init["env"].as_array().context("no env")? {
        assert!(of_daemon.contains(variable), "{variable}");
    }
    assert_eq!(init["env"][0]["name"], "LBD_PROC_SYS");
    assert_eq!(cleanup["containers"][0]["image"], lbd["image"]);
    Ok(())
}

#[test]
fn what_is_no_field_or_of_another_type_is_refused() {
    let base = base().unwrap();
    let set = &base[&("DaemonSet".to_owned(), "lbd".to_owned())];
    let broken = |place: &str, value: Value| {
        let mut object = set.clone();
        *object.pointer_mut(place).expect("is there") = value;
        validate(&object)
    };
    validate(set).unwrap();
    let pod = "/spec/template/spec";
    let security = "/spec/template/spec/containers/0/securityContext";
    let odd = serde_json::json!({"privileged": false, "capabilites": {"drop": ["ALL"]}});
    let refused = broken(security, odd).unwrap_err().to_string();
    assert!(refused.contains("capabilites"), "{refused}");
    assert!(broken(&format!("{pod}/hostNetwork"), "yes".into()).is_err());
    assert!(broken(&format!("{pod}/terminationGracePeriodSeconds"), "30".into()).is_err());
}

#[test]
fn the_pod_has_what_the_unit_has_and_no_more() -> anyhow::Result<()> {
    let container = container(&base()?)?;
    let security = container.security_context.context("no security context")?;
    assert_eq!(security.privileged, Some(false));
    assert_eq!(security.allow_privilege_escalation, Some(false));
    let capabilities = security.capabilities.context("no capabilities")?;
    assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]));
    let unit = std::fs::read_to_string(deploy().join("systemd/lbd.service"))?;
    let line = unit
        .lines()
        .find_map(|l| l.strip_prefix("CapabilityBoundingSet="));
    let of_unit: Vec<_> = line.context("no bounding set")?.split(' ').collect();
    let of_pod: Vec<_> = capabilities
        .add
        .iter()
        .flatten()
        .map(|c| format!("CAP_{c}"))
        .collect();
    assert_eq!(of_pod, of_unit);
    Ok(())
}

#[test]
fn probes_ask_where_the_config_has_lbd_listen() -> anyhow::Result<()> {
    let base = base()?;
    let map = &base[&("ConfigMap".to_owned(), "lbd".to_owned())];
    let text = map["data"]["lbd.yaml"].as_str().context("no lbd.yaml")?;
    let admin = config::parse(text, "lbd.yaml")?.config.admin;
    let container = container(&base)?;
    let probes = [
        (container.startup_probe, "/healthz"),
        (container.readiness_probe, "/readyz"),
        (container.liveness_probe, "/healthz"),
    ];
    for (probe, path) in probes {
        let get = probe.and_then(|probe| probe.http_get).context("no probe")?;
        let asked = format!(
            "{}:{}",
            get.host.unwrap_or_default(),
            serde_json::to_value(&get.port)?
        );
        assert_eq!(
            (asked, get.path.as_deref()),
            (admin.http.to_string(), Some(path))
        );
    }
    let mounted: Vec<_> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|m| &*m.mount_path)
        .collect();
    let socket = admin
        .socket
        .parent()
        .and_then(Path::to_str)
        .context("a directory")?;
    for directory in [socket, "/sys/fs/bpf", "/var/lib/lbd", "/etc/lbd"] {
        assert!(mounted.contains(&directory), "{directory}: {mounted:?}");
    }
    Ok(())
}

#[test]
fn the_chart_renders_what_the_base_does() -> anyhow::Result<()> {
    let kustomized = match tool("kubectl", &["kustomize", "kubernetes"]) {
        Some(output) => rendered(output)?,
        None => base()?,
    };
    assert_eq!(kustomized, base()?);
    let Some(output) = tool(
        "helm",
        &["template", "lbd", "helm/lbd", "--namespace", "lbd"],
    ) else {
        return Ok(());
    };
    let mut chart = rendered(output)?;
    // `helm install --create-namespace` makes it.
    let namespace = ("Namespace".to_owned(), "lbd".to_owned());
    chart.insert(namespace.clone(), kustomized[&namespace].clone());
    assert_eq!(chart, kustomized);
    Ok(())
}

#[test]
fn the_kustomization_of_the_documentation_sets_image_and_config() -> anyhow::Result<()> {
    // Within the sources: a kustomization names others by relative paths only.
    let name = format!("../target/kustomization-{}", std::process::id());
    let directory = deploy().join(name);
    std::fs::create_dir_all(&directory)?;
    let example = Page::read("install.md")?
        .example("kustomization")?
        .replace("SOURCES", "../..");
    std::fs::write(directory.join("kustomization.yaml"), example)?;
    std::fs::write(directory.join("lbd.yaml"), "services: []\n")?;
    let path = directory.canonicalize()?;
    let output = tool("kubectl", &["kustomize", path.to_str().context("a name")?]);
    std::fs::remove_dir_all(&directory)?;
    let Some(output) = output else {
        return Ok(());
    };
    let objects = rendered(output)?;
    assert_eq!(
        objects.keys().collect::<Vec<_>>(),
        base()?.keys().collect::<Vec<_>>()
    );
    let image = container(&objects)?.image;
    assert_eq!(image.as_deref(), Some("REGISTRY/lbd:VERSION"));
    let map = &objects[&("ConfigMap".to_owned(), "lbd".to_owned())];
    assert_eq!(
        map["data"],
        serde_json::json!({"lbd.yaml": "services: []\n"})
    );
    Ok(())
}

#[test]
fn values_of_the_chart_reach_the_objects() -> anyhow::Result<()> {
    let values = "image.repository=example/lbd,image.tag=v7,imagePullSecrets={pull},adminPort=1234,\
                  discoveryNamespaces={shop},extraCapabilities={SYS_RESOURCE},\
                  restartOnConfigChange=true,hostPaths.bpffs=/bpf,\
                  extraEnv[0].name=A,extraEnv[0].value=b,\
                  extraVolumes[0].name=tls,extraVolumes[0].secret.secretName=tls,\
                  extraVolumeMounts[0].name=tls,extraVolumeMounts[0].mountPath=/tls";
    let arguments = [
        "template",
        "lbd",
        "helm/lbd",
        "--namespace",
        "edge",
        "--set",
        values,
    ];
    let Some(output) = tool("helm", &arguments) else {
        return Ok(());
    };
    let objects = rendered(output)?;
    objects.values().try_for_each(validate)?;
    let text = serde_json::to_string(&objects.values().collect::<Vec<_>>())?;
    for part in [
        "\"image\":\"example/lbd:v7\"",
        "\"imagePullSecrets\":[{\"name\":\"pull\"}]",
        "\"port\":1234",
        "\"SYS_RESOURCE\"",
        "\"lbd/config\":",
        "\"path\":\"/bpf\"",
        "\"secretName\":\"tls\"",
        "\"mountPath\":\"/tls\"",
        "{\"name\":\"A\",\"value\":\"b\"}",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let binding = &objects[&("RoleBinding".to_owned(), "lbd-discovery".to_owned())];
    assert_eq!(binding["metadata"]["namespace"], "shop");
    assert_eq!(binding["subjects"][0]["namespace"], "edge");
    let in_all = ("ClusterRoleBinding".to_owned(), "lbd-discovery".to_owned());
    assert!(!objects.contains_key(&in_all));

    let arguments = [
        "template",
        "lbd",
        "helm/lbd",
        "--namespace",
        "lbd",
        "--set",
        "discoveryAllNamespaces=true",
    ];
    let objects = rendered(tool("helm", &arguments).context("helm was there")?)?;
    assert_eq!(objects[&in_all], beside("rbac-cluster.yaml")?[&in_all]);

    let odd = [
        "template",
        "lbd",
        "helm/lbd",
        "--set",
        "image.pullpolicy=Always",
    ];
    let refused = tool("helm", &odd).context("helm was there")?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && words.contains("pullpolicy"),
        "{words}"
    );
    Ok(())
}

#[test]
fn every_value_is_documented_and_in_the_schema() -> anyhow::Result<()> {
    let chart = deploy().join("helm/lbd");
    let read = |name: &str| std::fs::read_to_string(chart.join(name));
    let values: Value = serde_yaml_ng::from_str(&read("values.yaml")?)?;
    let schema: Value = serde_json::from_str(&read("values.schema.json")?)?;
    let readme = read("README.md")?;
    let mut in_schema: Vec<_> = schema["properties"]
        .as_object()
        .context("none")?
        .keys()
        .collect();
    // Helm's own.
    in_schema.retain(|key| *key != "global");
    let mut in_values: Vec<_> = values.as_object().context("none")?.keys().collect();
    in_schema.sort();
    in_values.sort();
    assert_eq!(in_schema, in_values);
    for key in in_values {
        assert!(
            readme.contains(&format!("`{key}")),
            "{key} is not in the table"
        );
    }
    let version = env!("CARGO_PKG_VERSION");
    for (file, line) in [
        ("Chart.yaml", format!("appVersion: {version}\n")),
        ("Chart.yaml", format!("\nversion: {version}\n")),
        (
            "../../kubernetes/daemonset.yaml",
            format!("image: lbd:{version}\n"),
        ),
    ] {
        assert!(read(file)?.contains(&line), "{file} has no {line}");
    }
    Ok(())
}
