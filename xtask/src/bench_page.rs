//! Writes results of the bench as pages below `docs/performance/`. `docs/performance.md` explains the columns.

use anyhow::Result;

use crate::{coverage, docs, paths, paths::Paths};

/// Writes the page of a run around the table that `pp-bench --markdown` printed.
pub(crate) fn write(paths: &Paths, table: &str, control: bool) -> Result<()> {
    let date = coverage::say(paths, "date", &["-u", "+%F"])?;
    let commit = coverage::say(paths, "git", &["rev-parse", "--short=12", "HEAD"])?;
    let (name, page) = if control {
        let head = format!("`{commit}`, {date}.");
        ("answers", page("How soon an operator is answered, measured", "#how-soon-an-operator-is-answered", &head, table))
    } else {
        let head = format!("Kernel {}, `{commit}`, {date}.", coverage::say(paths, "uname", &["-r"])?);
        ("hooks", page("What the hooks cost, measured", "", &head, table))
    };
    paths::write_if_changed(&paths.root.join(format!("docs/performance/{name}.md")), &page).map(|_| ())
}

fn page(title: &str, anchor: &str, head: &str, table: &str) -> String {
    let written = format!("{}cargo xtask bench --page -->", docs::WRITTEN);
    let explained = format!("[Performance](../performance.md{anchor}) says what is measured and how.");
    format!("# {title}\n\n{explained}\n\n{written}\n\n{head}\n\n{table}\n{}\n", docs::WRITTEN_END)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_their_heads_and_tables_between_the_marks() {
        let root = Paths::find().expect("the workspace").root;
        for (name, title, anchor) in [
            ("hooks", "What the hooks cost, measured", ""),
            ("answers", "How soon an operator is answered, measured", "#how-soon-an-operator-is-answered"),
        ] {
            let text = paths::read(&root.join(format!("docs/performance/{name}.md"))).expect("a page");
            let (_, body) = text.split_once("--page -->\n\n").expect("its mark");
            let (head, table) = body.split_once("\n\n").expect("its table");
            let table = table.strip_suffix(&format!("\n{}\n", docs::WRITTEN_END)).expect("its end");
            assert_eq!(page(title, anchor, head, table), text);
        }
    }
}
