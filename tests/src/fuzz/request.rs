//! No bytes on the socket make the daemon's request parser panic, and what it accepts is understood
//! the same when sent again. What requests change, one after another (a line each), stays a
//! configuration that lbd could be started with, names no file that is none of lbd's, and is read from the
//! disk as it was written.

use std::{path::Path, sync::Arc};

use lb_userspace::{
    api::{server, types::Request},
    config,
    controller::{Directories, Layers, configuration, decision},
    json,
    state::{State, file},
};

/// Of the config file, and of the state.
const DIRECTORIES: [&str; 2] = ["/etc/lbd", "/var/lib/lbd"];

/// What the config file says.
const FILE: &str = r#"
services:
  - name: web
    listen: "192.0.2.10:80"
    backends:
      - {address: "10.1.0.11:8080", weight: 100}
      - {address: "10.1.0.12:8080", weight: 50, labels: {version: v1}}
"#;

/// Milliseconds since 1970.
const NOW: u64 = 1_700_000_000_000;

pub fn run(bytes: &[u8]) -> bool {
    let file = config::parse(FILE, "file").expect("a config").config;
    let directories = Directories::new(
        Some(&Path::new(DIRECTORIES[0]).join("lbd.yaml")),
        Path::new(DIRECTORIES[1]),
    );
    let mut layers = Layers {
        file: Arc::new(file),
        state: State::default(),
        found: Arc::default(),
    };
    let mut understood = false;
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some(request) = parse(line) else {
            continue;
        };
        understood = true;
        let change = decision(request, &directories, || NOW).and_then(|decide| decide(&layers));
        match change {
            Ok(change) => {
                assert!(!change.message.is_empty());
                layers = change.layers;
                is_sound(&layers);
            }
            Err(fault) => assert!(!fault.message.is_empty()),
        }
    }
    understood
}

fn parse(line: &[u8]) -> Option<Request> {
    if let Ok(value) = serde_json::from_slice(line) {
        assert!(count(&value) <= json::values(line));
    }
    match server::parse(line) {
        Ok(request) => {
            let text = serde_json::to_vec(&request).expect("a request can be written");
            assert_eq!(server::parse(&text).as_ref(), Ok(&request));
            Some(request)
        }
        Err(message) => {
            assert!(!message.is_empty());
            None
        }
    }
}

/// Values in a JSON text.
fn count(value: &serde_json::Value) -> usize {
    let inside: usize = match value {
        serde_json::Value::Array(items) => items.iter().map(count).sum(),
        serde_json::Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    };
    inside + 1
}

fn is_sound(layers: &Layers) {
    let config = configuration(layers);
    assert_eq!(config::check(&config), Vec::<String>::new());
    let text = config::render(&config);
    match config::parse(&text, "exported") {
        Ok(parsed) => assert_eq!(parsed.config, config, "{text}"),
        Err(faults) => panic!("{faults}\n{text}"),
    }
    for spec in layers
        .state
        .services
        .iter()
        .flat_map(|service| &service.discovery)
    {
        for file in spec.kind.files() {
            assert!(
                DIRECTORIES.iter().any(|own| file.starts_with(own)),
                "{file:?}"
            );
            assert!(!file.to_string_lossy().contains(".."), "{file:?}");
        }
    }
    let written = file::encode(&layers.state).expect("a state can be written");
    assert_eq!(file::decode(&written).as_ref(), Ok(&layers.state));
}
