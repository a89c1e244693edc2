//! lbd.yaml(5), out of the README's section on the configuration: one text, two forms.

const SECTION: &str = "## Configuration";

/// The page in man(7)'s macros, or `None` if the README has no such section.
pub fn page(readme: &str, version: &str) -> Option<String> {
    let (_, section) = readme.split_once(&format!("\n{SECTION}\n"))?;
    let section = section.split("\n## ").next()?;
    let mut page = format!(
        ".TH lbd.yaml 5 \"\" \"lbd {version}\" \"\"\n.SH NAME\nlbd.yaml \\- configuration of lbd\n\
         .SH DESCRIPTION\n"
    );
    for block in section.split("\n\n").map(str::trim) {
        match block.starts_with('|') {
            true => page += &table(block),
            false => page += &format!(".PP\n{}\n", words(block)),
        }
    }
    page += ".SH SEE ALSO\n.BR lbd (8),\n.BR lbctl (1)\n";
    Some(page)
}

/// Rows of key, default and values become tagged paragraphs.
fn table(block: &str) -> String {
    // Heading and rule first.
    let rows = block.lines().skip(2).map(cells);
    rows.map(|cells| match &cells[..] {
        [key, default, values] => format!(
            ".TP\n{}\n{}. Default: {}.\n",
            words(key),
            words(values),
            words(default)
        ),
        cells => format!(".PP\n{}\n", words(&cells.join(" "))),
    })
    .collect()
}

fn cells(row: &str) -> Vec<String> {
    let bar = '\u{1}';
    let row = row.replace("\\|", &bar.to_string());
    let row = row.trim().trim_start_matches('|').trim_end_matches('|');
    let cells = row.split('|').map(|cell| cell.trim().replace(bar, "|"));
    cells.collect()
}

/// Words of Markdown for troff: code in bold, links as their text.
fn words(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut escaped = String::new();
    for (n, part) in without_links(&text).split('`').enumerate() {
        let part = part.replace('\\', "\\e").replace('-', "\\-");
        match n % 2 {
            0 => escaped += &part.replace("**", ""),
            _ => escaped += &format!("\\fB{part}\\fR"),
        }
    }
    // A line that begins so would be a macro.
    match escaped.starts_with(['.', '\'']) {
        true => format!("\\&{escaped}"),
        false => escaped,
    }
}

fn without_links(text: &str) -> String {
    let mut rest = text;
    let mut plain = String::new();
    while let Some((before, after)) = rest.split_once('[') {
        plain += before;
        match after.split_once("](") {
            Some((name, behind)) if !name.contains('[') && behind.contains(')') => {
                plain += name;
                rest = behind.split_once(')').map_or("", |(_, rest)| rest);
            }
            _ => {
                plain.push('[');
                rest = after;
            }
        }
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_becomes_a_page() {
        let readme = "# x\n\n## Configuration\n\nYAML, `a-b`, see [docs](docs/x.md).\n\n\
                      | key | default | values |\n|---|---|---|\n\
                      | `s[].n` | 1 | `a\\|b`; **all** |\n\n## Next\n\nno\n";
        let page = page(readme, "1.2").unwrap();
        let wanted = ".PP\nYAML, \\fBa\\-b\\fR, see docs.\n\
                      .TP\n\\fBs[].n\\fR\n\\fBa|b\\fR; all. Default: 1.\n.SH SEE";
        assert!(page.contains(wanted), "{page}");
        assert!(!page.contains("no\n"), "{page}");
        assert!(super::page("# x\n", "1.2").is_none());
    }

    #[test]
    fn the_readme_has_the_section() {
        let readme = std::fs::read_to_string(crate::root().join("README.md")).unwrap();
        let page = page(&readme, "0").unwrap();
        for key in [
            "node.interfaces",
            "admin.http",
            "services[].listen",
            "health.fall",
        ] {
            assert!(page.contains(&format!(".TP\n\\fB{key}\\fR\n")), "{key}");
        }
    }
}
