//! A crate as the checks see it: its modules, found through their `mod` lines, without the code of tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result};
use quote::ToTokens as _;
use syn::{
    Attribute, ImplItem, Item, Meta, Stmt,
    visit_mut::{self, VisitMut},
};

/// Texts of files, by their path from the workspace's root.
#[derive(Debug, Default)]
pub(super) struct Files(BTreeMap<PathBuf, String>);

impl Files {
    /// Every file in the folders whose name ends in `end`.
    ///
    /// # Errors
    ///
    /// A folder or file cannot be read.
    pub(super) fn read(root: &Path, folders: &[&str], end: &str) -> Result<Self> {
        let mut files = Self::default();
        for folder in folders {
            files.add(root, &root.join(folder), end)?;
        }
        Ok(files)
    }

    fn add(&mut self, root: &Path, folder: &Path, end: &str) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                self.add(root, &path, end)?;
            } else if path.extension().is_some_and(|extension| extension == end) {
                let text = crate::paths::read(&path)?;
                self.0.insert(path.strip_prefix(root)?.to_path_buf(), text);
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        Self(files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect())
    }

    /// The text of one file.
    pub(super) fn text(&self, path: &Path) -> Option<&str> {
        self.0.get(path).map(String::as_str)
    }

    /// Every path and text.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.0.iter().map(|(path, text)| (path.as_path(), text.as_str()))
    }
}

/// One module, inline ones too.
pub(super) struct Module {
    /// Names from the crate's root; empty for the root itself.
    pub(super) path: Vec<String>,
    /// The file that contains it.
    pub(super) file: PathBuf,
    /// Its own items, without inline modules.
    pub(super) items: Vec<Item>,
}

impl Module {
    /// The folder of `src` that it belongs to; none for the root.
    pub(super) fn folder(&self) -> Option<&str> {
        self.path.first().map(String::as_str)
    }
}

/// The modules of one crate.
#[derive(Default)]
pub(super) struct Tree {
    /// Without the code of tests.
    pub(super) modules: Vec<Module>,
    /// Files of the crate that no `mod` line leads to.
    pub(super) unreached: Vec<PathBuf>,
}

/// A file still to be read.
struct Next {
    file: PathBuf,
    path: Vec<String>,
    /// The folder of its modules' files.
    children: PathBuf,
    /// Whether only tests compile it.
    tests: bool,
}

impl Tree {
    /// Follows the `mod` lines from the crate's roots (`lib.rs`, `main.rs`) in `src`.
    ///
    /// # Errors
    ///
    /// A file is missing or does not parse.
    pub(super) fn parse(files: &Files, src: &str, roots: &[&str]) -> Result<Self> {
        let src = Path::new(src);
        let root = |name: &&str| Next { file: src.join(name), path: Vec::new(), children: src.to_path_buf(), tests: false };
        let mut next: Vec<Next> = roots.iter().map(root).collect();
        let mut tree = Self::default();
        let mut reached = BTreeSet::new();
        while let Some(this) = next.pop() {
            let text = files.text(&this.file).with_context(|| format!("{}: not there", this.file.display()))?;
            let parsed = syn::parse_file(text).with_context(|| format!("{}: not parsed", this.file.display()))?;
            reached.insert(this.file.clone());
            let tests = this.tests || only_tests(&parsed.attrs);
            let place = Place { files, file: &this.file, children: &this.children, tests };
            place.take(parsed.items, this.path, &mut tree, &mut next)?;
        }
        tree.modules.sort_by(|one, other| (&one.file, &one.path).cmp(&(&other.file, &other.path)));
        tree.unreached = files
            .iter()
            .map(|(path, _)| path)
            .filter(|path| path.starts_with(src) && !reached.contains(*path))
            .map(Path::to_path_buf)
            .collect();
        Ok(tree)
    }
}

/// Where items stand.
struct Place<'a> {
    files: &'a Files,
    file: &'a Path,
    children: &'a Path,
    tests: bool,
}

impl Place<'_> {
    fn take(&self, items: Vec<Item>, path: Vec<String>, tree: &mut Tree, next: &mut Vec<Next>) -> Result<()> {
        let mut own = Vec::new();
        for item in items {
            let Item::Mod(module) = item else {
                own.push(item);
                continue;
            };
            let name = module.ident.to_string();
            let tests = self.tests || only_tests(&module.attrs);
            let inner: Vec<String> = path.iter().cloned().chain([name.clone()]).collect();
            match module.content {
                Some((_, items)) => {
                    let children = self.children.join(&name);
                    Place { children: &children, tests, ..*self }.take(items, inner, tree, next)?;
                }
                None => next.push(self.file_of(&module.attrs, &name, inner, tests)),
            }
        }
        if !self.tests {
            let mut strip = Strip;
            own.retain(|item| !only_tests(attributes(item)));
            own.iter_mut().for_each(|item| strip.visit_item_mut(item));
            tree.modules.push(Module { path, file: self.file.to_path_buf(), items: own });
        }
        Ok(())
    }

    fn file_of(&self, attributes: &[Attribute], name: &str, path: Vec<String>, tests: bool) -> Next {
        let (beside, within) = (self.children.join(format!("{name}.rs")), self.children.join(name).join("mod.rs"));
        let folder = self.file.parent().unwrap_or(Path::new(""));
        let file = match named(attributes) {
            Some(named) => plain(&folder.join(named)),
            None if self.files.text(&within).is_some() => within,
            None => beside,
        };
        Next { file, path, children: self.children.join(name), tests }
    }
}

/// The path without `..`.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        if part == Component::ParentDir {
            plain.pop();
        } else {
            plain.push(part);
        }
        plain
    })
}

/// The file that `#[path = "..."]` names.
fn named(attributes: &[Attribute]) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.path().is_ident("path"))?;
    let Meta::NameValue(pair) = &attribute.meta else { return None };
    let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = &pair.value else { return None };
    Some(text.value())
}

/// True for `#[cfg(test)]` and `#[cfg(all(test, ...))]`, and for a test itself.
fn only_tests(attributes: &[Attribute]) -> bool {
    let demands = |meta: &Meta| {
        let text = meta.to_token_stream().to_string().replace(' ', "");
        text == "cfg(test)" || text.starts_with("cfg(all(test,") || text == "test"
    };
    attributes.iter().any(|attribute| demands(&attribute.meta))
}

/// The attributes of an item.
pub(super) fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Removes code of tests below the level of items.
struct Strip;

impl VisitMut for Strip {
    fn visit_item_impl_mut(&mut self, item: &mut syn::ItemImpl) {
        item.items.retain(|item| match item {
            ImplItem::Const(item) => !only_tests(&item.attrs),
            ImplItem::Fn(item) => !only_tests(&item.attrs),
            _ => true,
        });
        visit_mut::visit_item_impl_mut(self, item);
    }

    fn visit_block_mut(&mut self, block: &mut syn::Block) {
        block.stmts.retain(|statement| match statement {
            Stmt::Item(item) => !only_tests(attributes(item)),
            Stmt::Local(local) => !only_tests(&local.attrs),
            _ => true,
        });
        visit_mut::visit_block_mut(self, block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_where_their_lines_lead_and_what_is_for_tests_is_left_out() {
        let files = Files::of(&[
            ("a/src/lib.rs", "mod one; mod two; #[path = \"../far/odd.rs\"] mod odd; #[cfg(test)] mod only;"),
            ("a/src/one.rs", "mod inner; fn kept() {} #[cfg(test)] fn gone() {} #[cfg(test)] mod tests { fn gone() {} }"),
            ("a/src/one/inner.rs", "mod written { pub fn here() {} }"),
            ("a/src/two/mod.rs", "mod deep;"),
            ("a/src/two/deep.rs", ""),
            ("a/far/odd.rs", ""),
            ("a/src/only.rs", "mod below;"),
            ("a/src/only/below.rs", ""),
            ("a/src/lost.rs", ""),
        ]);
        let tree = Tree::parse(&files, "a/src", &["lib.rs"]).expect("it parses");
        let mut paths: Vec<String> = tree.modules.iter().map(|module| module.path.join("::")).collect();
        paths.sort();
        assert_eq!(paths, ["", "odd", "one", "one::inner", "one::inner::written", "two", "two::deep"]);
        let one = tree.modules.iter().find(|module| module.path == ["one"]).expect("there");
        assert_eq!(one.items.len(), 1);
        assert_eq!(tree.unreached, [PathBuf::from("a/src/lost.rs")]);
    }

    #[test]
    fn a_module_without_its_file_is_an_error() {
        let files = Files::of(&[("a/src/lib.rs", "mod nowhere;")]);
        assert!(Tree::parse(&files, "a/src", &["lib.rs"]).is_err());
    }
}
