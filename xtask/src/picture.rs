//! `picture`: draws the README's pictures and its table from the output of the demo.
//!
//! `pp-demo --record` writes the commands of two terminals, their output and the result of each stage. This module adds only colour.

use std::{fmt::Write as _, fs};

use anstyle_svg::Term;
use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::{docs, paths, paths::Paths, sh, wrappers};

/// The width of the drawn terminal, in characters.
const COLUMNS: usize = 104;
/// The comment before the README's table.
const TABLE: &str = "<!-- written by cargo xtask picture -->";

/// The file that `pp-demo --record` writes.
#[derive(Debug, Deserialize)]
struct Record {
    pictures: Vec<Picture>,
    stages: Vec<Stage>,
    backend: String,
    kernel: String,
}

/// One picture: commands and their output, in order.
#[derive(Debug, Deserialize)]
struct Picture {
    name: String,
    commands: Vec<Command>,
}

#[derive(Debug, Deserialize)]
struct Command {
    /// The prompt of the terminal.
    prompt: String,
    typed: String,
    printed: String,
}

#[derive(Debug, Deserialize)]
struct Stage {
    stage: String,
    seen: String,
}

/// Runs the demo, or uses the record of its last run, and writes the pictures and the table. Returns the demo's exit code.
pub(crate) fn run(paths: &Paths, recorded: bool) -> Result<u8> {
    let file = paths.cache.join("picture.json");
    if !recorded {
        fs::create_dir_all(&paths.cache)?;
        let code = wrappers::demo(paths, &["--record".to_owned(), file.display().to_string()])?;
        if code != 0 {
            return Ok(code);
        }
    }
    let record: Record =
        serde_json::from_str(&paths::read(&file)?).with_context(|| format!("{}: not what the demo records", file.display()))?;
    let folder = paths.root.join("docs/pictures");
    fs::create_dir_all(&folder)?;
    for picture in &record.pictures {
        let drawn = folder.join(format!("{}.svg", picture.name));
        paths::write_if_changed(&drawn, &svg(picture))?;
        sh::say(drawn.display().to_string());
    }
    let readme = paths.root.join("README.md");
    let text = with_table(&paths::read(&readme)?, &table(&record)).with_context(|| format!("{}: has no {TABLE}", readme.display()))?;
    paths::write_if_changed(&readme, &text)?;
    Ok(0)
}

fn svg(picture: &Picture) -> String {
    Term::new().min_width_px(860).render_svg(&terminal(picture))
}

/// The text of the terminal. The prompt is coloured, the commands are bold and the output is unchanged.
fn terminal(picture: &Picture) -> String {
    let mut text = String::new();
    for (index, Command { prompt, typed, printed }) in picture.commands.iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        let colour = if prompt.starts_with("agent") { "93" } else { "96" };
        let line = wrapped(&format!("{prompt}$ {typed}"));
        let (_, typed) = line.split_at(prompt.len() + 2);
        text.push_str(&format!("\u{1b}[{colour}m{prompt}$\u{1b}[0m \u{1b}[1m{typed}\u{1b}[0m\n"));
        for line in printed.trim_end().lines() {
            text.push_str(&wrapped(line));
            text.push('\n');
        }
    }
    text.truncate(text.trim_end().len());
    text
}

/// A line as a terminal shows it: tabs are expanded, and it is broken after [`COLUMNS`] characters.
fn wrapped(line: &str) -> String {
    let mut characters: Vec<char> = Vec::new();
    for character in line.chars() {
        if character == '\t' {
            characters.resize((characters.len() / 8 + 1) * 8, ' ');
        } else {
            characters.push(character);
        }
    }
    characters.chunks(COLUMNS).map(|chunk| chunk.iter().collect::<String>()).collect::<Vec<_>>().join("\n")
}

fn table(record: &Record) -> String {
    let mut text = "| | stage | what came of it |\n| --: | --- | --- |\n".to_owned();
    for (index, Stage { stage, seen }) in record.stages.iter().enumerate() {
        // Writing to a string cannot fail.
        let _row = writeln!(text, "| {} | {stage} | {seen} |", index + 1);
    }
    let _row =
        write!(text, "\nKernel {}, backend `{}`. All addresses are the lab's own, all data is invented.\n", record.kernel, record.backend);
    text
}

/// The page with its table replaced.
fn with_table(page: &str, table: &str) -> Option<String> {
    let (before, rest) = page.split_once(TABLE)?;
    let (_, after) = rest.split_once(docs::WRITTEN_END)?;
    Some(format!("{before}{TABLE}\n\n{table}\n{}{after}", docs::WRITTEN_END))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picture_shows_every_character_that_was_printed() {
        let printed = format!("refused {}\nsecond\tline\n", "x".repeat(150));
        let command = Command { prompt: "agent".into(), typed: "mbpoll 10.20.4.7".into(), printed };
        let picture = Picture { name: "refusal".into(), commands: vec![command] };
        let shown = terminal(&picture);
        assert!(shown.contains("mbpoll 10.20.4.7") && shown.ends_with("\nsecond  line"), "{shown}");
        assert_eq!(shown.matches('x').count(), 150);
        assert!(shown.lines().skip(1).all(|line| line.chars().count() <= COLUMNS), "{shown}");
        assert!(svg(&picture).contains("second"));
    }

    #[test]
    fn table_takes_the_place_of_the_one_before() {
        let page = format!("# Top\n\n{TABLE}\nold\n<!-- end -->\nbelow\n");
        let text = with_table(&page, "new\n").expect("the place");
        assert_eq!(text, format!("# Top\n\n{TABLE}\n\nnew\n\n<!-- end -->\nbelow\n"));
        assert_eq!(with_table("nothing", "new"), None);
    }
}
