//! What the docs must name, each on its page: maps, metrics, reasons and members of events.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens as _;
use syn::{
    Item,
    visit::{self, Visit},
};

use super::{
    Finding,
    tree::{Files, Tree},
};

/// Names of one kind and the page that must have each of them, as code.
struct Page {
    kind: &'static str,
    page: &'static str,
    names: Vec<String>,
}

/// One finding for each name that its page lacks, and for each counter of the programs that `/metrics` lacks.
pub(super) fn check(agent: &Tree, programs: &Tree, common: &Tree, docs: &Files) -> Result<Vec<Finding>> {
    let pages = [
        Page { kind: "map", page: "ARCHITECTURE.md", names: maps(programs) },
        Page { kind: "metric", page: "docs/operations.md", names: metrics(agent) },
        Page { kind: "reason", page: "docs/events.md", names: reasons(common) },
        Page { kind: "member of events", page: "docs/events.md", names: members(agent, &["events"], "Event") },
        Page {
            kind: "kind of event",
            page: "docs/events.md",
            names: variants(agent, &["events"], "Kind").iter().map(|name| snake(name)).collect(),
        },
    ];
    let mut found = Vec::new();
    for page in &pages {
        // A table that was moved or renamed must not pass for one without a gap.
        ensure!(!page.names.is_empty(), "no {} found in the sources: xtask/src/house/pages.rs looks in the wrong place", page.kind);
        let text = docs.text(Path::new(page.page)).with_context(|| format!("{}: not there", page.page))?;
        found.extend(missing(page, text));
    }
    let shown = tokens(agent, &["metrics"]);
    let counters = variants(common, &["abi"], "Counter");
    ensure!(!counters.is_empty(), "no counter found in the sources: xtask/src/house/pages.rs looks in the wrong place");
    found.extend(counters.iter().filter(|name| !names(&shown, name)).map(|name| Finding::of(format!("counter {name}: not in /metrics"))));
    Ok(found)
}

fn missing(page: &Page, text: &str) -> Vec<Finding> {
    let absent = page.names.iter().filter(|name| !text.contains(&format!("`{name}`")));
    absent.map(|name| Finding::of(format!("{} {name}: not in {}", page.kind, page.page))).collect()
}

/// Every `static` that has an attribute that makes it a map.
fn maps(programs: &Tree) -> Vec<String> {
    let items = programs.modules.iter().flat_map(|module| &module.items);
    let statics = items.filter_map(|item| if let Item::Static(item) = item { Some(item) } else { None });
    let is_map = |item: &&syn::ItemStatic| {
        item.attrs.iter().any(|attribute| {
            let text = attribute.to_token_stream().to_string();
            text.contains("btf_map") || text.contains("\".maps\"")
        })
    };
    statics.filter(is_map).map(|item| item.ident.to_string()).collect()
}

/// The first argument of every call that writes a metric, and every name of a table of kernel metrics.
fn metrics(agent: &Tree) -> Vec<String> {
    let mut calls = Calls(Vec::new());
    agent.modules.iter().flat_map(|module| &module.items).for_each(|item| calls.visit_item(item));
    let mut names = calls.0;
    names.sort();
    names.dedup();
    names
}

struct Calls(Vec<String>);

impl<'ast> Visit<'ast> for Calls {
    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        const WRITERS: [&str; 5] = ["counter", "counters", "gauge", "gauges", "info"];
        if WRITERS.iter().any(|writer| call.method == writer)
            && let Some(syn::Expr::Lit(first)) = call.args.first()
            && let syn::Lit::Str(name) = &first.lit
        {
            self.0.push(name.value());
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_lit_str(&mut self, text: &'ast syn::LitStr) {
        if text.value().starts_with("pp_kernel_") {
            self.0.push(text.value());
        }
    }
}

/// The names in the table of reasons.
fn reasons(common: &Tree) -> Vec<String> {
    let items = common.modules.iter().flat_map(|module| &module.items);
    let tables = items.filter_map(|item| match item {
        Item::Macro(item) if item.mac.path.is_ident("reasons") => Some(item.mac.tokens.clone()),
        _ => None,
    });
    // A line of it: `NoReceipt = 10, "no_receipt";`
    let mut names = Vec::new();
    for table in tables {
        let mut comma = false;
        for token in table {
            match token {
                TokenTree::Literal(name) if comma => names.push(name.to_string().trim_matches('"').to_owned()),
                TokenTree::Punct(punct) => comma = punct.as_char() == ',',
                _ => comma = false,
            }
        }
    }
    names
}

fn of_module<'a>(tree: &'a Tree, path: &'a [&str]) -> impl Iterator<Item = &'a Item> {
    tree.modules.iter().filter(move |module| module.path == path).flat_map(|module| &module.items)
}

fn members(tree: &Tree, path: &[&str], name: &str) -> Vec<String> {
    let fields = of_module(tree, path).filter_map(|item| match item {
        Item::Struct(item) if item.ident == name => Some(item.fields.iter()),
        _ => None,
    });
    fields.flatten().filter_map(|field| Some(field.ident.as_ref()?.to_string())).collect()
}

fn variants(tree: &Tree, path: &[&str], name: &str) -> Vec<String> {
    let variants = of_module(tree, path).filter_map(|item| match item {
        Item::Enum(item) if item.ident == name => Some(item.variants.iter()),
        _ => None,
    });
    variants.flatten().map(|variant| variant.ident.to_string()).collect()
}

fn tokens(tree: &Tree, path: &[&str]) -> TokenStream {
    of_module(tree, path).map(|item| item.to_token_stream()).collect()
}

fn names(stream: &TokenStream, name: &str) -> bool {
    stream.clone().into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == name,
        TokenTree::Group(group) => names(&group.stream(), name),
        _ => false,
    })
}

/// `SessionStart` as serde writes it: `session_start`.
fn snake(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.extend(c.to_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAMS: &str =
        "#[btf_map] static TASKS: u8 = 1; #[unsafe(link_section = \".maps\")] static SOCKS: u8 = 1; static PLAIN: u8 = 1;";
    const COMMON: &str = "pub enum Counter { Judged = 1, Blocked = 2 }";
    const REASONS: &str = "reasons! { /// Why.\n Receipt = 1, \"receipt\"; NoReceipt = 10, \"no_receipt\"; }";
    const EVENTS: &str = "pub enum Kind { SessionStart } pub struct Event { pub id: u64 }";
    const METRICS: &str = "const KERNEL: &[u8] = &[(Counter::Judged, \"pp_kernel_judged_total\", \"help\"), Counter::Blocked]; fn f() { text.gauge(\"pp_up\", \"help\", 1); }";

    fn tree(files: &[(&str, &str)]) -> Tree {
        Tree::parse(&Files::of(files), "src", &["lib.rs"]).expect("it parses")
    }

    fn found(architecture: &str, operations: &str, events: &str, metrics: &str) -> Result<Vec<String>> {
        let agent = tree(&[("src/lib.rs", "mod events; mod metrics;"), ("src/events.rs", EVENTS), ("src/metrics.rs", metrics)]);
        let programs = tree(&[("src/lib.rs", PROGRAMS)]);
        let common = tree(&[("src/lib.rs", "mod abi; mod decide;"), ("src/abi.rs", COMMON), ("src/decide.rs", REASONS)]);
        let docs = Files::of(&[("ARCHITECTURE.md", architecture), ("docs/operations.md", operations), ("docs/events.md", events)]);
        Ok(check(&agent, &programs, &common, &docs)?.into_iter().map(|finding| finding.key).collect())
    }

    #[test]
    fn whatever_a_page_lacks_is_found() {
        let (maps, metrics, events) =
            ("`TASKS` `SOCKS`", "`pp_kernel_judged_total` `pp_up`", "`receipt` `no_receipt` `id` `session_start`");
        assert_eq!(found(maps, metrics, events, METRICS).expect("judged"), [""; 0]);
        assert_eq!(found("`TASKS` SOCKS", metrics, events, METRICS).expect("judged"), ["map SOCKS: not in ARCHITECTURE.md"]);
        assert_eq!(found(maps, "`pp_kernel_judged_total`", events, METRICS).expect("judged"), ["metric pp_up: not in docs/operations.md"]);
        let reason = "`receipt` `id` `session_start`";
        assert_eq!(found(maps, metrics, reason, METRICS).expect("judged"), ["reason no_receipt: not in docs/events.md"]);
        let member = "`receipt` `no_receipt` `session_start`";
        assert_eq!(found(maps, metrics, member, METRICS).expect("judged"), ["member of events id: not in docs/events.md"]);
        let kind = "`receipt` `no_receipt` `id`";
        assert_eq!(found(maps, metrics, kind, METRICS).expect("judged"), ["kind of event session_start: not in docs/events.md"]);
    }

    #[test]
    fn a_counter_that_metrics_do_not_show_is_found() {
        let text = "const KERNEL: u8 = Counter::Judged; fn f() { text.gauge(\"pp_up\", \"help\", 1); }";
        let found = found("`TASKS` `SOCKS`", "`pp_up`", "`receipt` `no_receipt` `id` `session_start`", text).expect("judged");
        assert_eq!(found, ["counter Blocked: not in /metrics"]);
    }

    #[test]
    fn a_table_that_is_not_where_it_was_is_an_error() {
        assert!(found("", "", "", "fn f() {}").is_err());
    }
}
