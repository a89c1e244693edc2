//! Whatever stands in resolv.conf, what is made of it are servers and names that can be asked.
//!
//! The first line is the name that is looked for, the others are the file.

use std::collections::HashSet;

use lb_userspace::discovery::dns::{
    candidates,
    resolv::{MAX_NDOTS, parse},
};

pub fn run(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let (name, file) = text.split_once('\n').unwrap_or((&text, ""));
    let resolv = parse(file);
    assert!(resolv.ndots <= MAX_NDOTS);
    assert!(resolv.servers.iter().all(|server| server.port() == 53));
    let Ok(names) = candidates(name, &resolv) else {
        return false;
    };
    assert!(!names.is_empty() && names.len() <= 1 + resolv.search.len());
    for name in &names {
        // RFC 1035 section 2.3.4: what is longer is no question.
        assert!(name.is_fqdn() && name.len() <= 255, "{name}");
    }
    if name.ends_with('.') {
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), 1);
    }
    !resolv.servers.is_empty()
}
