//! Public items of the agent that nothing uses.
//!
//! rustc does not report these: a `pub` item of a library may have users elsewhere. Here all users are known: the agent itself and the
//! suite in `tests`. An item is found if its name occurs only in its definition, in `use` lines and in tests of the same crate. This proves
//! that it can be removed. The reverse does not hold: an item that shares its name with a used one is not found. Nor are fields and
//! variants, which serde may fill.

use std::collections::BTreeMap;

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens as _;
use syn::{
    ImplItem, Item, Visibility,
    visit::{self, Visit},
    visit_mut::{self, VisitMut},
};

use super::{
    Finding,
    tree::{Module, Tree},
};

/// One finding for each public item of `agent` that neither it nor the other crates use.
pub(super) fn check(agent: &Tree, others: &[Tree]) -> Vec<Finding> {
    let mut names = Names::default();
    for module in agent.modules.iter().chain(others.iter().flat_map(|tree| &tree.modules)) {
        names.count(module);
    }
    let mut found = Vec::new();
    for module in &agent.modules {
        let mut public = Public { found: Vec::new() };
        module.items.iter().for_each(|item| public.visit_item(item));
        for (name, kind, line) in public.found {
            let used = names.used.get(&name).copied().unwrap_or(0);
            // A trait is used through its methods. Their callers name it only in `use` lines.
            let imported = if kind == "trait" { names.imported.get(&name).copied().unwrap_or(0) } else { 0 };
            if used + imported <= names.defined.get(&name).copied().unwrap_or(0) {
                let path: Vec<&str> = module.path.iter().map(String::as_str).chain([name.as_str()]).collect();
                let key = format!("unused {kind}: {}", path.join("::"));
                found.push(Finding { key, places: vec![format!("{}:{line}", module.file.display())] });
            }
        }
    }
    found
}

/// How often each name occurs in code.
#[derive(Default)]
struct Names {
    /// Anywhere but in `use` lines.
    used: BTreeMap<String, usize>,
    /// In `use` lines.
    imported: BTreeMap<String, usize>,
    /// Where something of that name is defined, or has its `impl`.
    defined: BTreeMap<String, usize>,
}

impl Names {
    fn count(&mut self, module: &Module) {
        let mut items = module.items.clone();
        let mut uses = Uses { imported: &mut self.imported, renamed: &mut self.used };
        items.iter_mut().for_each(|item| uses.visit_item_mut(item));
        for item in &items {
            tally(item.to_token_stream(), &mut self.used);
            Definitions(&mut self.defined).visit_item(item);
        }
    }
}

fn add(names: &mut BTreeMap<String, usize>, name: &str) {
    *names.entry(name.to_owned()).or_default() += 1;
}

/// Counts every name in these tokens, in the strings of attributes and in the braces of format strings. A name in a doc comment is no use.
fn tally(stream: TokenStream, names: &mut BTreeMap<String, usize>) {
    let mut after_hash = false;
    for token in stream {
        match token {
            TokenTree::Ident(name) => add(names, &name.to_string()),
            TokenTree::Group(group) => {
                let mut inner = group.stream().into_iter();
                let is_doc = after_hash && matches!(inner.next(), Some(TokenTree::Ident(name)) if name == "doc");
                if after_hash && !is_doc {
                    strings(group.stream(), names);
                }
                if !is_doc {
                    tally(group.stream(), names);
                }
            }
            TokenTree::Literal(literal) => {
                for part in literal.to_string().split('{').skip(1) {
                    add(names, &word(part));
                }
            }
            TokenTree::Punct(punct) => {
                after_hash = punct.as_char() == '#' || (after_hash && punct.as_char() == '!');
                continue;
            }
        }
        after_hash = false;
    }
}

/// Counts every word of every string.
fn strings(stream: TokenStream, names: &mut BTreeMap<String, usize>) {
    for token in stream {
        match token {
            TokenTree::Group(group) => strings(group.stream(), names),
            TokenTree::Literal(literal) => {
                for word in literal.to_string().split(|c: char| !c.is_alphanumeric() && c != '_') {
                    add(names, word);
                }
            }
            _ => {}
        }
    }
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Removes `use` lines. A renamed import counts as used under its new name.
struct Uses<'a> {
    imported: &'a mut BTreeMap<String, usize>,
    renamed: &'a mut BTreeMap<String, usize>,
}

impl VisitMut for Uses<'_> {
    fn visit_item_mut(&mut self, item: &mut Item) {
        if let Item::Use(line) = item {
            let mut renames = Renames(self.renamed);
            renames.visit_item_use(line);
            tally(line.to_token_stream(), self.imported);
            *item = Item::Verbatim(TokenStream::new());
        } else {
            visit_mut::visit_item_mut(self, item);
        }
    }
}

struct Renames<'a>(&'a mut BTreeMap<String, usize>);

impl<'ast> Visit<'ast> for Renames<'_> {
    fn visit_use_rename(&mut self, rename: &'ast syn::UseRename) {
        add(self.0, &rename.ident.to_string());
    }
}

/// Every name that is defined, and the type of every `impl`.
struct Definitions<'a>(&'a mut BTreeMap<String, usize>);

impl Definitions<'_> {
    fn item(&mut self, item: &Item) {
        let name = match item {
            Item::Const(item) => &item.ident,
            Item::Enum(item) => &item.ident,
            Item::Fn(item) => &item.sig.ident,
            Item::Mod(item) => &item.ident,
            Item::Static(item) => &item.ident,
            Item::Struct(item) => &item.ident,
            Item::Trait(item) => &item.ident,
            Item::Type(item) => &item.ident,
            Item::Impl(item) => {
                if let syn::Type::Path(path) = &*item.self_ty
                    && let Some(last) = path.path.segments.last()
                {
                    add(self.0, &last.ident.to_string());
                }
                return;
            }
            _ => return,
        };
        add(self.0, &name.to_string());
    }
}

impl<'ast> Visit<'ast> for Definitions<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        self.item(item);
        visit::visit_item(self, item);
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        match item {
            ImplItem::Fn(item) => add(self.0, &item.sig.ident.to_string()),
            ImplItem::Const(item) => add(self.0, &item.ident.to_string()),
            _ => {}
        }
        visit::visit_impl_item(self, item);
    }
}

/// Public items: name, kind, line.
struct Public {
    found: Vec<(String, &'static str, usize)>,
}

impl Public {
    fn note(&mut self, visibility: &Visibility, name: &syn::Ident, kind: &'static str) {
        if matches!(visibility, Visibility::Public(_)) {
            self.found.push((name.to_string(), kind, name.span().start().line));
        }
    }
}

impl<'ast> Visit<'ast> for Public {
    fn visit_item(&mut self, item: &'ast Item) {
        match item {
            Item::Const(item) => self.note(&item.vis, &item.ident, "const"),
            Item::Enum(item) => self.note(&item.vis, &item.ident, "enum"),
            Item::Fn(item) => self.note(&item.vis, &item.sig.ident, "fn"),
            Item::Static(item) => self.note(&item.vis, &item.ident, "static"),
            Item::Struct(item) => self.note(&item.vis, &item.ident, "struct"),
            Item::Trait(item) => self.note(&item.vis, &item.ident, "trait"),
            Item::Type(item) => self.note(&item.vis, &item.ident, "type"),
            _ => {}
        }
        visit::visit_item(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if item.trait_.is_none() {
            for item in &item.items {
                match item {
                    ImplItem::Fn(item) => self.note(&item.vis, &item.sig.ident, "fn"),
                    ImplItem::Const(item) => self.note(&item.vis, &item.ident, "const"),
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::Files;
    use super::*;

    fn found(agent: &str, suite: &str) -> Vec<String> {
        let tree = |text: &str| {
            let files = Files::of(&[("src/lib.rs", "pub mod a;"), ("src/a.rs", text)]);
            Tree::parse(&files, "src", &["lib.rs"]).expect("it parses")
        };
        check(&tree(agent), &[tree(suite)]).into_iter().map(|finding| finding.key).collect()
    }

    #[test]
    fn what_nobody_names_is_found() {
        assert_eq!(found("pub fn lone() {}", ""), ["unused fn: a::lone"]);
        assert_eq!(found("pub struct Lone; impl Lone { pub fn of() {} }", ""), ["unused struct: a::Lone", "unused fn: a::of"]);
        assert_eq!(found("/// [`LONE`]\npub const LONE: u8 = 1;", "use pp::a::LONE;"), ["unused const: a::LONE"]);
        assert_eq!(found("pub fn lone() {} #[cfg(test)] mod tests { fn t() { super::lone(); } }", ""), ["unused fn: a::lone"]);
    }

    #[test]
    fn what_somebody_names_is_not() {
        assert_eq!(found("pub fn used() {} fn f() { used(); }", ""), [""; 0]);
        assert_eq!(found("pub fn used() {}", "fn f() { pp::a::used(); }"), [""; 0]);
        assert_eq!(found("pub const USED: u8 = 1; fn f() -> String { format!(\"{USED}\") }", ""), [""; 0]);
        assert_eq!(found("pub fn used() {} #[serde(default = \"crate::a::used\")] struct S;", ""), [""; 0]);
        assert_eq!(found("pub fn used() {}", "use pp::a::used as other; fn f() { other(); }"), [""; 0]);
        assert_eq!(found("pub trait Used { fn f(); }", "use pp::a::Used; fn g() { X::f(); }"), [""; 0]);
        assert_eq!(found("fn private() {} pub(crate) fn within() {}", ""), [""; 0]);
    }
}
