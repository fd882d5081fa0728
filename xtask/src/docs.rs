//! `docs`: checks the pages for dead links and for sentences of more than 25 words.
//!
//! It checks prose, headings and lists. Code, tables and generated parts do not count.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use unicode_segmentation::UnicodeSegmentation as _;

use crate::paths::{self, Paths};

/// The longest allowed sentence, in words.
const LONGEST: usize = 25;
/// Pages that may have longer sentences. The check fails for a page that no longer needs to be here.
const UNFINISHED: &[&str] = &[];
/// Folders with pages, besides the top.
const PAGES: &[&str] = &["docs"];
/// Folders whose files name pages.
const SOURCES: &[&str] = &["dist", "pp-agent", "pp-common", "pp-ebpf", "tests", "xtask"];
/// A comment that begins with this opens a generated part. [`WRITTEN_END`] closes it.
pub(crate) const WRITTEN: &str = "<!-- written by ";
/// The end of a generated part.
pub(crate) const WRITTEN_END: &str = "<!-- end -->";

/// Prints the number of words of every page and all complaints. True if there are none.
#[expect(clippy::print_stdout, reason = "the words and complaints are this command's result")]
pub(crate) fn run(paths: &Paths) -> Result<bool> {
    let pages = Page::all(&paths.root)?;
    let mut total = 0;
    for page in &pages {
        total += page.words();
        println!("{:6} words, longest sentence {:3}  {}", page.words(), page.longest(), page.name);
    }
    println!("{total:6} words");
    let complaints = complaints(&paths.root, &pages)?;
    complaints.iter().for_each(|complaint| println!("{complaint}"));
    Ok(complaints.is_empty())
}

/// What is wrong with the pages and with the sources that name them.
fn complaints(root: &Path, pages: &[Page]) -> Result<Vec<String>> {
    let anchors: BTreeMap<&str, &BTreeSet<String>> = pages.iter().map(|page| (page.name.as_str(), &page.anchors)).collect();
    let mut complaints = Vec::new();
    for page in pages {
        complaints.extend(page.links.iter().filter_map(|link| dead(root, page, link, &anchors)));
        let long: Vec<&String> = page.sentences.iter().filter(|sentence| words(sentence) > LONGEST).collect();
        if !UNFINISHED.contains(&page.name.as_str()) {
            complaints.extend(long.iter().map(|sentence| format!("{}: {} words: {sentence}", page.name, words(sentence))));
        } else if long.is_empty() {
            complaints.push(format!("{}: no long sentence is left; take it out of UNFINISHED in xtask/src/docs.rs", page.name));
        }
    }
    let gone = UNFINISHED.iter().filter(|name| !anchors.contains_key(*name));
    complaints.extend(gone.map(|name| format!("{name}: gone; take it out of UNFINISHED in xtask/src/docs.rs")));
    for folder in SOURCES {
        for file in below(&root.join(folder))? {
            if matches!(file.extension().and_then(|ending| ending.to_str()), Some("rs" | "toml" | "service" | "sh")) {
                let text = paths::read(&file)?;
                let missing = named_pages(&text).filter(|name| !root.join(name).is_file());
                complaints.extend(missing.map(|name| format!("{}: names {name}, which is not there", file.display())));
            }
        }
    }
    Ok(complaints)
}

/// Why a link of a page is dead, if it is.
fn dead(root: &Path, page: &Page, link: &str, anchors: &BTreeMap<&str, &BTreeSet<String>>) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
    let target = if file.is_empty() { page.name.clone() } else { joined(&page.name, file) };
    if !file.is_empty() && !root.join(&target).exists() {
        return Some(format!("{}: link to {link}: no such file", page.name));
    }
    let known = anchors.get(target.as_str())?;
    let anchor = anchor.filter(|anchor| !known.contains(*anchor))?;
    Some(format!("{}: link to {link}: no heading of {target} is called #{anchor}", page.name))
}

/// The path of a relative link from the root.
fn joined(page: &str, link: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The pages below `docs/` that a source file names.
fn named_pages(text: &str) -> impl Iterator<Item = String> + '_ {
    text.match_indices("docs/").filter_map(|(at, _)| {
        let before = text[..at].chars().next_back();
        let name: String = text[at..].chars().take_while(|it| it.is_ascii_alphanumeric() || "-_./".contains(*it)).collect();
        let name = name.trim_end_matches('.').to_owned();
        (name.ends_with(".md") && !before.is_some_and(|it| it.is_alphanumeric() || "/.-".contains(it))).then_some(name)
    })
}

/// The number of words of a sentence. A word has at least one letter or digit.
fn words(sentence: &str) -> usize {
    sentence.split_whitespace().filter(|word| word.contains(char::is_alphanumeric)).count()
}

/// One page as the checks see it.
#[derive(Debug, Default)]
struct Page {
    /// Its path from the root.
    name: String,
    sentences: Vec<String>,
    anchors: BTreeSet<String>,
    links: Vec<String>,
}

impl Page {
    fn all(root: &Path) -> Result<Vec<Self>> {
        let mut files: Vec<PathBuf> = fs::read_dir(root)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        for folder in PAGES {
            files.extend(below(&root.join(folder))?);
        }
        files.retain(|file| file.extension().is_some_and(|ending| ending == "md"));
        files.sort();
        files
            .iter()
            .map(|file| {
                let name = file.strip_prefix(root).context("a page outside the root")?.display().to_string();
                Ok(Self::of(name, &paths::read(file)?))
            })
            .collect()
    }

    fn of(name: String, text: &str) -> Self {
        let mut page = Self { name, ..Self::default() };
        let mut block = String::new();
        let mut heading = None;
        // Whether the text is in a code block, a table or a generated part.
        let (mut code, mut table, mut written) = (false, false, false);
        for event in Parser::new_ext(text, Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH) {
            match event {
                Event::Html(html) if html.trim_start().starts_with(WRITTEN) => written = true,
                Event::Html(html) if html.trim_start().starts_with(WRITTEN_END) => written = false,
                Event::Start(Tag::CodeBlock(_)) => code = true,
                Event::End(TagEnd::CodeBlock) => code = false,
                Event::Start(Tag::Table(_)) => table = true,
                Event::End(TagEnd::Table) => {
                    table = false;
                    block.clear();
                }
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => page.links.push(dest_url.to_string()),
                Event::Start(Tag::Heading { .. }) => {
                    page.sentence(&mut block);
                    heading = Some(String::new());
                }
                Event::End(TagEnd::Heading(_)) => {
                    let title = heading.take().unwrap_or_default();
                    let anchor = page.anchor(&title);
                    page.anchors.insert(anchor);
                    page.sentence(&mut block);
                }
                // An item of a list, a paragraph and a quotation each end the text before.
                Event::Start(Tag::Item | Tag::Paragraph | Tag::BlockQuote(_))
                | Event::End(TagEnd::Item | TagEnd::Paragraph | TagEnd::BlockQuote(_))
                | Event::HardBreak
                    if !table =>
                {
                    page.sentence(&mut block);
                }
                Event::Text(text) if !code => {
                    heading.iter_mut().for_each(|title| title.push_str(&text));
                    if !table && !written {
                        // Upper case, so that it can begin a sentence.
                        block.push_str(&text.replace("pp-agent", "Pp-agent"));
                    }
                }
                Event::Code(text) => {
                    heading.iter_mut().for_each(|title| title.push_str(&text));
                    page.links.extend(page.page_of(&text));
                    if !table && !written {
                        // A command counts as one word and can begin a sentence.
                        block.push_str("Code");
                    }
                }
                Event::SoftBreak if !code && !table && !written => block.push(' '),
                _ => {}
            }
        }
        page.sentence(&mut block);
        page
    }

    /// The link to a page that is named as code instead of linked.
    fn page_of(&self, code: &str) -> Option<String> {
        let named = code.ends_with(".md") && code.chars().all(|it| it.is_ascii_alphanumeric() || "-_./".contains(it));
        // Files of agents and the user's own projects; not pages of this one.
        let foreign = ["AGENTS.md", "CLAUDE.md", "GEMINI.md"].contains(&code);
        let up = "../".repeat(self.name.matches('/').count());
        (named && !foreign).then(|| if code.starts_with("docs/") { format!("{up}{code}") } else { code.to_owned() })
    }

    /// Ends a block of prose.
    fn sentence(&mut self, block: &mut String) {
        let said = block.unicode_sentences().map(str::trim).filter(|sentence| words(sentence) > 0);
        self.sentences.extend(said.map(str::to_owned));
        block.clear();
    }

    /// The anchor that GitHub gives a heading.
    fn anchor(&self, title: &str) -> String {
        let plain: String = title.to_lowercase().chars().filter(|it| it.is_alphanumeric() || " -_".contains(*it)).collect();
        let anchor = plain.trim().replace(' ', "-");
        let numbered = (1..).map(|number| format!("{anchor}-{number}"));
        std::iter::once(anchor.clone()).chain(numbered).find(|anchor| !self.anchors.contains(anchor)).unwrap_or(anchor)
    }

    fn words(&self) -> usize {
        self.sentences.iter().map(|sentence| words(sentence)).sum()
    }

    fn longest(&self) -> usize {
        self.sentences.iter().map(|sentence| words(sentence)).max().unwrap_or(0)
    }
}

/// Every file below a folder.
fn below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(below(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_short_sentences_and_links_that_lead_somewhere() {
        let root = Paths::find().expect("the workspace").root;
        let complaints = complaints(&root, &Page::all(&root).expect("the pages")).expect("the sources");
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    }

    #[test]
    fn sentences_are_those_of_prose_alone() {
        let text = "# Two words\n\nOne `pp-agent run --agent x` sentence.\nAnother, 10.20.4.7 in\nit. `run` begins a third.\n\n| a table | is not |\n| --- | --- |\n| read at all. | No |\n\n```sh\nnor code\n```\n\n- an item\n- and one more\n\n<!-- written by x -->\nNot counted.\n<!-- end -->\n";
        let page = Page::of("x.md".into(), text);
        let expected = ["Two words", "One Code sentence.", "Another, 10.20.4.7 in it.", "Code begins a third.", "an item", "and one more"];
        assert_eq!(page.sentences, expected);
        assert_eq!((page.words(), page.longest()), (18, 4));
    }

    #[test]
    fn links_are_found_dead_in_text_code_and_anchors() {
        let root = Paths::find().expect("the workspace").root;
        let here = ["docs", "x.md"].join("/");
        let text = "# One `two`, three!\n## Same\n## Same\n[a](#one-two-three) [b](#same-1) [c](../README.md) [d](https://x.y)\n";
        let page = Page::of(here.clone(), text);
        let anchors = BTreeMap::from([(here.as_str(), &page.anchors)]);
        let found = |page: &Page| page.links.iter().filter_map(|link| dead(&root, page, link, &anchors)).count();
        assert_eq!(found(&page), 0, "{page:?}");
        let text = "# One\n[a](#two) [b](y.md) `docs/GONE` `docs/agents.md` `gone.md`\n".replace("GONE", "gone.md");
        assert_eq!(found(&Page::of(here.clone(), &text)), 4);
    }

    #[test]
    fn sources_name_pages() {
        let text = "see `D/a.md`, D/b-c/d.md. Not x/D/e.md nor D/f.json".replace('D', "docs");
        let expected = ["D/a.md", "D/b-c/d.md"].map(|name| name.replace('D', "docs"));
        assert_eq!(named_pages(&text).collect::<Vec<_>>(), expected);
    }
}
