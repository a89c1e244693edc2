//! What a registry says, as it may stand in a log or on a screen. Pure.

/// The text on one line, whatever is in it, with no more than `most` characters of it.
pub(crate) fn one_line(text: impl Into<String>, most: usize) -> String {
    let text = text.into();
    // More bytes than characters, so most texts are known to be short at a glance.
    let is_short = text.len() <= most || text.chars().nth(most).is_none();
    if is_short && !text.contains(is_odd) {
        return text;
    }
    let mut line = String::with_capacity(text.len().min(2 * most));
    for c in text.chars().take(most) {
        match is_odd(c) {
            true => line.extend(c.escape_unicode()),
            false => line.push(c),
        }
    }
    if !is_short {
        line.push('…');
    }
    line
}

/// What ends a line, moves a cursor, or has the rest of the line read the other way.
fn is_odd(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_on_its_line_and_has_an_end() {
        for (text, line) in [
            ("`web`: \"größer\" \\n", "`web`: \"größer\" \\n"),
            ("x\n<0>lbd: forged", "x\\u{a}<0>lbd: forged"),
            ("\u{1b}[2J\r\u{202e}", "\\u{1b}[2J\\u{d}\\u{202e}"),
            ("ääääääääääääääääääää", "ääääääääääääääääääää"),
            ("0123456789012345678901", "01234567890123456789…"),
        ] {
            assert_eq!(one_line(text, 20), line);
        }
        assert_eq!(one_line("ä".repeat(21), 20), "ä".repeat(20) + "…");
        assert_eq!(one_line("\n".repeat(1 << 20), 2), "\\u{a}\\u{a}…");
    }
}
