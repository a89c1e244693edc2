//! Words of messages: quoting what a file says, and the nearest word to a misspelt one.

use std::fmt::Write as _;

/// Longest part of a value shown in a message, in characters.
const SHOWN: usize = 60;

/// A value between backquotes, on one line and shortened.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("`");
    for c in text.chars().take(SHOWN) {
        if c.is_control() {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
    if text.chars().nth(SHOWN).is_some() {
        out.push('…');
    }
    out.push('`');
    out
}

/// The word among `words` that `text` most likely meant; case, `_` and `-` count as equal.
pub(super) fn nearest<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    let length = text.chars().take(SHOWN + 1).count();
    if length > SHOWN {
        return None;
    }
    let plain = |word: &str| word.to_lowercase().replace('_', "-");
    let text = plain(text);
    words
        .iter()
        .map(|&word| (strsim::damerau_levenshtein(&text, &plain(word)), word))
        .min_by_key(|&(distance, _)| distance)
        .filter(|&(distance, word)| distance <= (word.len().min(length) / 3).max(1))
        .filter(|&(distance, _)| distance < length)
        .map(|(_, word)| word)
}

/// `a, b or c`.
pub(super) fn either(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [word] => (*word).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found_or_none() {
        let words = ["round-robin", "random", "maglev"];
        let near = |text| nearest(text, &words);
        assert_eq!(near("Round_Robin"), Some("round-robin"));
        assert_eq!(near("mglev"), Some("maglev"));
        assert_eq!(near("randon"), Some("random"));
        assert_eq!(near("rr"), None);
        assert_eq!(near(""), None);
        assert_eq!(near(&"r".repeat(1 << 20)), None);
    }

    #[test]
    fn quoted_text_stays_on_one_short_line() {
        assert_eq!(quoted("a\nb\0"), "`a\\nb\\u{0}`");
        assert_eq!(quoted(&"ä".repeat(99)), format!("`{}…`", "ä".repeat(60)));
    }

    #[test]
    fn alternatives_read_as_a_sentence() {
        assert_eq!(either(&["a", "b", "c"]), "a, b or c");
        assert_eq!(either(&["a"]), "a");
    }
}
