//! The config parser never panics, and what it accepts survives being written and read again.
#![no_main]

use lb_userspace::config::{check, parse, render};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(parsed) = parse(text, "fuzz") else {
        return;
    };
    assert_eq!(check(&parsed.config), Vec::<String>::new());
    let rendered = render(&parsed.config);
    match parse(&rendered, "rendered") {
        Ok(again) => assert_eq!(again.config, parsed.config, "{rendered}"),
        Err(faults) => panic!("{faults}\n{rendered}"),
    }
});
