//! Columns of text, as wide as their widest cell, with the last one open.

use std::io::{self, Write};

const GAP: usize = 3;

/// Widths of columns. They only grow, so that rows printed later stand under earlier ones.
pub(super) struct Columns(Vec<usize>);

impl Columns {
    pub(super) fn new(header: &[&str]) -> Self {
        Self(header.iter().map(|name| name.len()).collect())
    }

    pub(super) fn fit(&mut self, cells: &[String]) {
        for (width, cell) in self.0.iter_mut().zip(cells) {
            *width = (*width).max(shown(cell).chars().count());
        }
    }

    pub(super) fn print(
        &self,
        cells: impl IntoIterator<Item = impl AsRef<str>>,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let mut line = String::new();
        for (cell, &width) in cells.into_iter().zip(&self.0) {
            let cell = shown(cell.as_ref());
            line.push_str(&format!("{cell:<0$}", width + GAP));
        }
        writeln!(out, "{}", line.trim_end())
    }
}

/// A table at once, each line behind `indent`.
pub(super) fn print(
    header: &[&str],
    rows: &[Vec<String>],
    indent: &str,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut columns = Columns::new(header);
    for row in rows {
        columns.fit(row);
    }
    out.write_all(indent.as_bytes())?;
    columns.print(header, out)?;
    for row in rows {
        out.write_all(indent.as_bytes())?;
        columns.print(row, out)?;
    }
    Ok(())
}

/// A cell as it may reach a terminal: never empty, and no control characters.
fn shown(cell: &str) -> String {
    match cell {
        "" => "-".to_owned(),
        _ => visible(cell),
    }
}

/// Text from elsewhere with its control characters escaped; a terminal would obey them.
pub(super) fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => visible.extend(c.escape_default()),
            false => visible.push(c),
        }
    }
    visible
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fit_and_nothing_trails() {
        let rows = [
            vec!["web".to_owned(), String::new(), "a\x1b[2J".to_owned()],
            vec!["a-long-name".to_owned(), "1".to_owned(), String::new()],
        ];
        let mut out = Vec::new();
        print(&["NAME", "N", "REASON"], &rows, "  ", &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "  NAME          N   REASON\n  \
               web           -   a\\u{1b}[2J\n  \
               a-long-name   1   -\n"
        );
    }
}
