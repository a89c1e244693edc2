//! Examples of the documentation, so that tests run them as they stand.
//!
//! In a page an example is a fenced block behind a line that names it:
//!
//! ````text
//! <!-- example: minimal -->
//! ```yaml
//! services: …
//! ```
//! ````

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, ensure};
use lb_userspace::config;

use crate::{
    daemon::{BPFFS, HTTP, SOCKET, STATE},
    net::Network,
};

/// Where examples have their files, and where tests have them: below the node's own `/run`.
const FILES: (&str, &str) = ("/etc/lbd/", "/run/lbd/");

/// A page of `docs/`.
pub struct Page {
    name: String,
    examples: BTreeMap<String, String>,
}

impl Page {
    /// `name` is relative to `docs/`: `discovery/file.md`.
    pub fn read(name: &str) -> anyhow::Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../docs")
            .join(name);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut examples = BTreeMap::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let mark = line.strip_prefix("<!-- example: ");
            let Some(example) = mark.and_then(|rest| rest.strip_suffix(" -->")) else {
                continue;
            };
            let fence = lines.next().unwrap_or_default();
            ensure!(
                fence.starts_with("```"),
                "{name}: `{example}` has no block behind it"
            );
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            examples.insert(example.to_owned(), block.join("\n") + "\n");
        }
        Ok(Self {
            name: name.to_owned(),
            examples,
        })
    }

    /// An example as it stands, but for where its files are.
    pub fn example(&self, name: &str) -> anyhow::Result<String> {
        let text = self.examples.get(name);
        let text = text.with_context(|| format!("{} has no example `{name}`", self.name))?;
        Ok(text.replace(FILES.0, FILES.1))
    }

    /// A whole config file: an example that has `services:` alone, for a node of a test network.
    ///
    /// # Errors
    /// Also if `lbctl check` would find a fault in the example, or anything odd.
    pub fn config(&self, name: &str, network: &Network, xdp: &str) -> anyhow::Result<String> {
        let example = self.example(name)?;
        let parsed = config::parse(&example, &format!("{} `{name}`", self.name))?;
        ensure!(parsed.warnings.is_empty(), "{name}: {:?}", parsed.warnings);
        Ok(format!(
            "node:\n  interfaces: [{}]\n  xdp: \"{xdp}\"\n  state_dir: {STATE}\n  bpffs: {BPFFS}\n\
             admin: {{socket: {SOCKET}, http: \"{HTTP}\"}}\n{example}",
            network.node_devices().join(", ")
        ))
    }
}
