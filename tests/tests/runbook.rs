//! What docs/ tells operators to type: every `lbctl` command and every metric, on a live daemon.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, ensure};
use lb_tests::{
    clients::Protocol,
    daemon::{CONFIG, Config, Service},
    net::{Family, Network, Topology},
    servers::HTTP_PORT,
    world::World,
};

const PAGES: [&str; 3] = ["install.md", "upgrade.md", "runbook.md"];
/// Degraded is an answer too: some of the commands take backends out.
const FINE: [i32; 2] = [0, 3];

/// The commands of a page that begin with `lbctl`: lines of blocks, and code in the text.
fn commands(page: &str) -> BTreeSet<String> {
    let code = page.split('`').skip(1).step_by(2).map(str::to_owned);
    let blocks = page.lines().filter_map(|line| line.strip_prefix("    "));
    let lines = blocks.flat_map(|line| line.split(';')).map(|line| {
        let line = line.split(" #").next().unwrap_or_default();
        line.split(" > ").next().unwrap_or_default().to_owned()
    });
    let all = code.chain(lines).map(|text| text.trim().to_owned());
    all.filter(|text| text.starts_with("lbctl ")).collect()
}

fn metrics(page: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c == '_';
    page.split(|c| !is_part(c))
        .filter(|word| word.starts_with("lbd_") && !word.ends_with('_'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn commands_and_metrics_of_the_pages_exist() -> anyhow::Result<()> {
    let world = World::new(Topology::default(), |network: &Network| {
        let service = Service::new("web", Protocol::Http)
            .listen(network, 0, HTTP_PORT)
            .backends(network, HTTP_PORT, &[1, 1]);
        Config::new(network, "off").service(service)
    })?;
    let backend = format!("web/{}:{HTTP_PORT}", world.network.backend(1, Family::V4));
    let exported = world.daemon.ctl(&["export"])?;
    world.daemon.replace_file("before.yaml", &exported)?;
    let (_, known) = world.daemon.http("/metrics")?;

    let mut ran = 0;
    for name in PAGES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../docs")
            .join(name);
        let page = std::fs::read_to_string(path)?;
        for command in commands(&page) {
            let line = command
                .replace("web/10.0.0.12:8080", &backend)
                .replace("SERVICE/ADDR:PORT", &backend)
                .replace("NAME", "web")
                .replace("/etc/lbd/lbd.yaml", CONFIG)
                .replace("before.yaml", "/run/before.yaml");
            let arguments: Vec<_> = line.split(' ').skip(1).filter(|a| !a.is_empty()).collect();
            let output = world.daemon.lbctl(&arguments);
            let code = output.status.code().context("killed")?;
            ensure!(
                FINE.contains(&code),
                "{name}: `{command}` exits with {code}: {output:?}"
            );
            ran += 1;
        }
        for metric in metrics(&page) {
            ensure!(
                known.contains(&format!("# TYPE {metric} ")),
                "{name}: no metric {metric}"
            );
        }
    }
    ensure!(ran > 20, "{ran} commands found");
    Ok(())
}
