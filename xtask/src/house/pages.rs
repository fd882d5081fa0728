//! What the docs must name, each on its page: metrics, and the members of events.
//!
//! Maps, codes and counters of the programs are not checked here: the test `pages` of `pp-common` compares their pages with its tables.
//! The members of events are read from the golden file, which the agent's tests compare with events of every kind.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value};
use syn::visit::{self, Visit};

use super::{
    Finding,
    tree::{Files, Tree},
};

/// The golden file of events; lines that begin with a brace are events.
pub(super) const GOLDEN: &str = "pp-agent/tests/golden/events.txt";

/// Names of one kind and the page that must have each of them, as code.
struct Page {
    kind: &'static str,
    page: &'static str,
    names: BTreeSet<String>,
}

/// One finding for each name that its page lacks.
pub(super) fn check(agent: &Tree, golden: &str, docs: &Files) -> Result<Vec<Finding>> {
    let events = events(golden)?;
    let members = events.iter().flat_map(Map::keys).cloned().collect();
    let values = |member: &str, of_receipts: bool| {
        let wanted = events.iter().filter(|event| event.get("kind").is_some_and(|kind| kind == "receipt") == of_receipts);
        wanted.filter_map(|event| Some(event.get(member)?.as_str()?.to_owned())).collect::<BTreeSet<_>>()
    };
    // The name for a code of another build. No build of these sources writes it.
    let unknown = BTreeSet::from(["unknown".to_owned()]);
    let kinds = &values("kind", false) | &values("kind", true);
    let pages = [
        Page { kind: "metric", page: "docs/operations.md", names: metrics(agent) },
        Page { kind: "member of events", page: "docs/events.md", names: members },
        Page { kind: "kind of event", page: "docs/events.md", names: kinds },
        Page { kind: "reason", page: "docs/events.md", names: &values("reason", false) - &unknown },
        // The page of receipts explains why receipts are refused. The page of events has the other reasons.
        Page { kind: "reason of a receipt's event", page: "docs/receipts.md", names: values("reason", true) },
    ];
    let mut found = Vec::new();
    for page in &pages {
        // A source that moved or was renamed must fail the check, not pass it.
        ensure!(!page.names.is_empty(), "no {} found: xtask/src/house/pages.rs looks in the wrong place", page.kind);
        let text = |page: &str| docs.text(Path::new(page)).with_context(|| format!("{page}: not there"));
        let events = if page.page == "docs/receipts.md" { text("docs/events.md")? } else { "" };
        found.extend(missing(page, &[text(page.page)?, events].concat()));
    }
    Ok(found)
}

/// The names that the page contains neither as `name` nor, with labels, as `name{...}`.
fn missing(page: &Page, text: &str) -> Vec<Finding> {
    let named = |name: &&String| text.contains(&format!("`{name}`")) || text.contains(&format!("`{name}{{"));
    let absent = page.names.iter().filter(|name| !named(name));
    absent.map(|name| Finding::of(format!("{} {name}: not in {}", page.kind, page.page))).collect()
}

fn events(golden: &str) -> Result<Vec<Map<String, Value>>> {
    let lines = golden.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).with_context(|| format!("{GOLDEN}: {line}"))).collect()
}

/// The first argument of every call that writes a metric, if it is a literal.
fn metrics(agent: &Tree) -> BTreeSet<String> {
    let mut calls = Calls(BTreeSet::new());
    agent.modules.iter().flat_map(|module| &module.items).for_each(|item| calls.visit_item(item));
    calls.0
}

struct Calls(BTreeSet<String>);

impl<'ast> Visit<'ast> for Calls {
    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        const WRITERS: [&str; 5] = ["counter", "counters", "gauge", "gauges", "info"];
        if WRITERS.iter().any(|writer| call.method == writer)
            && let Some(syn::Expr::Lit(first)) = call.args.first()
            && let syn::Lit::Str(name) = &first.lit
        {
            self.0.insert(name.value());
        }
        visit::visit_expr_method_call(self, call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = "{\"id\":3,\"kind\":\"receipt\",\"reason\":\"key_unknown\"}\n{\"id\":1,\"kind\":\"verdict\",\"reason\":\"no_receipt\"}\n  notice: verdict\n{\"id\":2,\"kind\":\"lost\"}\n";
    const RECEIPTS: &str = "`key_unknown`";
    const METRICS: &str = "fn f() { text.gauge(\"pp_up\", \"help\", 1); text.gauges(\"pp_gap\", \"help\"); }";

    fn found(operations: &str, events: &str, golden: &str, metrics: &str) -> Result<Vec<String>> {
        let files = Files::of(&[("src/lib.rs", "mod metrics;"), ("src/metrics.rs", metrics)]);
        let agent = Tree::parse(&files, "src", &["lib.rs"]).expect("it parses");
        let docs = Files::of(&[("docs/operations.md", operations), ("docs/events.md", events), ("docs/receipts.md", RECEIPTS)]);
        Ok(check(&agent, golden, &docs)?.into_iter().map(|finding| finding.key).collect())
    }

    #[test]
    fn whatever_a_page_lacks_is_found() {
        let (metrics, events) = ("`pp_up` `pp_gap{gap=\"...\"}`", "`id` `kind` `reason` `verdict` `lost` `receipt` `no_receipt`");
        let of = |metrics: &str, events: &str| found(metrics, events, GOLDEN, METRICS).expect("names are found");
        assert_eq!(of(metrics, events), [""; 0]);
        assert_eq!(of("`pp_up` pp_gap", events), ["metric pp_gap: not in docs/operations.md"]);
        assert_eq!(of(metrics, &events.replace("`id`", "id")), ["member of events id: not in docs/events.md"]);
        assert_eq!(of(metrics, &events.replace("`lost`", "")), ["kind of event lost: not in docs/events.md"]);
        assert_eq!(of(metrics, &events.replace("`no_receipt`", "")), ["reason no_receipt: not in docs/events.md"]);
    }

    #[test]
    fn sources_that_are_not_where_they_were_are_an_error() {
        assert!(found("", "", GOLDEN, "fn f() {}").is_err());
        assert!(found("", "", "", METRICS).is_err());
        assert!(found("", "", "{broken\n", METRICS).is_err());
    }
}
