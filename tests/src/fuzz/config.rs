//! The config parser never panics, and what it accepts survives being written and read again.

use lb_userspace::config::{check, parse, render};

pub fn run(bytes: &[u8]) -> bool {
    let Ok(parsed) = parse(super::text(bytes), "fuzz") else {
        return false;
    };
    assert_eq!(check(&parsed.config), Vec::<String>::new());
    let rendered = render(&parsed.config);
    match parse(&rendered, "rendered") {
        Ok(again) => assert_eq!(again.config, parsed.config, "{rendered}"),
        Err(faults) => panic!("{faults}\n{rendered}"),
    }
    true
}
