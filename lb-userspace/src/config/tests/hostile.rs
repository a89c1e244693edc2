//! Text that is meant to hurt.

use proptest::prelude::*;

use super::{faults, service_with};
use crate::config::parse;

#[test]
fn nesting_is_bounded() {
    let block: String = (0..2000)
        .map(|depth| format!("{}a:\n", " ".repeat(depth)))
        .collect();
    for text in [
        block,
        "- ".repeat(100_000),
        "{a: ".repeat(100),
        "[".repeat(100),
    ] {
        assert!(faults(&text)[0].contains("nested deeper than 32 levels"));
    }
    // The scanner looks ahead for the end of a flow and has a limit of its own.
    for text in ["[".repeat(100_000), "{a: ".repeat(100_000)] {
        let limits = ["nested deeper than 32 levels", "recursion limit"];
        let fault = &faults(&text)[0];
        assert!(limits.iter().any(|limit| fault.contains(limit)), "{fault}");
    }
}

#[test]
fn an_alias_bomb_is_defused() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..20 {
        let below = vec![format!("*a{}", level - 1); 10].join(", ");
        text += &format!("a{level}: &a{level} [{below}]\n");
    }
    assert!(faults(&text)[0].contains("more than 2000000 values"));
}

/// Time that grows with the square of the length would be minutes here.
#[test]
fn long_lines_and_large_files_are_bounded() {
    let long = "x".repeat(10 << 20);
    for text in [
        long.clone(),
        format!("{long}: 1"),
        format!("services: [{{name: {long}, listen: \"{long}\"}}]"),
        "-\n".repeat(1 << 20),
        "a: {}\n".repeat(1 << 18),
        format!("services: [{}]", "{},".repeat(1 << 18)),
    ] {
        let faults = faults(&text);
        assert!(faults.len() <= 1000 && faults.iter().all(|fault| fault.len() < 1000));
    }
    let too_long = " ".repeat((16 << 20) + 1);
    assert_eq!(faults(&too_long), ["1:1: the file is larger than 16 MiB"]);
}

#[test]
fn numbers_out_of_any_range_are_faults() {
    for number in [
        "99999999999999999999999999",
        "-1",
        "1e9",
        "0x10",
        ".inf",
        "1_000",
        "+1",
    ] {
        let line = format!("backends: [{{address: 10.0.0.1:80, weight: {number}}}]");
        assert!(faults(&service_with(&line))[0].contains("`weight` must be a whole number"));
        let line = format!("health: {{interval: {number}s}}");
        assert_eq!(faults(&service_with(&line)).len(), 1, "{line}");
    }
}

const SEED: &str = include_str!("../../../../tests/fuzz/seeds/config/full.yaml");

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in any::<String>()) {
        let _ = parse(&text, "f");
    }

    #[test]
    fn text_of_yaml_characters_never_panics(text in "[-a:{}\\[\\]&*!|>'\"%@`#?, \n\t\r~0.]{0,80}") {
        let _ = parse(&text, "f");
    }

    #[test]
    fn a_mutated_config_never_panics(
        edits in prop::collection::vec(
            (any::<prop::sample::Index>(), 0usize..12, "[-a:{}\\[\\]&*!|'\"\n ~0]{0,3}"),
            1..6,
        )
    ) {
        let mut text: Vec<char> = SEED.chars().collect();
        for (at, remove, insert) in edits {
            let at = at.index(text.len());
            let end = (at + remove).min(text.len());
            text.splice(at..end, insert.chars());
        }
        let _ = parse(&text.into_iter().collect::<String>(), "f");
    }
}
