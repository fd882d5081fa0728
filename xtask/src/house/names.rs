//! The paths that a module writes: in `use` lines, in code, in macros and in the strings of attributes.

use std::path::PathBuf;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use quote::ToTokens as _;

use super::tree::Module;

/// Words that precede a path and do not belong to it: `use ::aya`.
const KEYWORDS: [&str; 10] = ["as", "dyn", "for", "impl", "in", "match", "mut", "return", "use", "where"];

/// A path as it is written in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    /// Its segments. The first is `crate` if it begins at the root; `super` and `self` are resolved.
    pub(super) segments: Vec<String>,
    pub(super) file: PathBuf,
    pub(super) line: usize,
    /// It is the name of a macro that is called.
    pub(super) called: bool,
}

/// Every path that a module writes, in order.
pub(super) fn written(module: &Module) -> Vec<Written> {
    let mut scan = Scan { module, found: Vec::new() };
    for item in &module.items {
        scan.stream(item.to_token_stream(), &[]);
    }
    scan.found
}

struct Scan<'a> {
    module: &'a Module,
    found: Vec<Written>,
}

impl Scan<'_> {
    /// Reads tokens. If they are the inside of the braces of a `use`, `before` is the path in front of the braces.
    fn stream(&mut self, stream: TokenStream, before: &[String]) {
        let tokens: Vec<TokenTree> = stream.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Ident(word) if KEYWORDS.iter().any(|keyword| word == keyword) => at += 1,
                TokenTree::Ident(_) => at = self.path(&tokens, at, before),
                TokenTree::Group(group) => {
                    self.stream(group.stream(), &[]);
                    at += 1;
                }
                TokenTree::Literal(literal) => {
                    self.string(&literal.to_string(), literal.span().start().line);
                    at += 1;
                }
                TokenTree::Punct(_) => at += 1,
            }
        }
    }

    /// Reads one path that begins at `at`. Returns where it ends.
    fn path(&mut self, tokens: &[TokenTree], mut at: usize, before: &[String]) -> usize {
        let line = tokens[at].span().start().line;
        let mut segments = before.to_vec();
        loop {
            match tokens.get(at) {
                // `{self, ...}` is the path before the braces.
                Some(TokenTree::Ident(name)) if name == "self" && !before.is_empty() => at += 1,
                Some(TokenTree::Ident(name)) => {
                    segments.push(name.to_string());
                    at += 1;
                }
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    self.braces(group, &segments);
                    return at + 1;
                }
                _ => break,
            }
            if !is(tokens, at, ':') || !is(tokens, at + 1, ':') {
                break;
            }
            at += 2;
        }
        let called = is(tokens, at, '!') && !is(tokens, at + 1, '=');
        self.note(segments, line, called);
        at
    }

    /// Reads the inside of the braces of a `use`.
    fn braces(&mut self, group: &Group, before: &[String]) {
        let mut part = TokenStream::new();
        for token in group.stream() {
            if matches!(&token, TokenTree::Punct(comma) if comma.as_char() == ',') {
                self.part(std::mem::take(&mut part), before);
            } else {
                part.extend([token]);
            }
        }
        self.part(part, before);
    }

    fn part(&mut self, part: TokenStream, before: &[String]) {
        let tokens: Vec<TokenTree> = part.into_iter().collect();
        match tokens.first() {
            // What follows is `as` and another name.
            Some(TokenTree::Ident(_)) => {
                let _end = self.path(&tokens, 0, before);
            }
            Some(token) => self.note(before.to_vec(), token.span().start().line, false),
            None => {}
        }
    }

    /// Reads a path in the string of an attribute, such as serde's `with = "crate::clock"`.
    fn string(&mut self, text: &str, line: usize) {
        if let Some(path) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'))
            && path.starts_with("crate::")
        {
            self.note(path.split("::").map(str::to_owned).collect(), line, false);
        }
    }

    fn note(&mut self, segments: Vec<String>, line: usize, called: bool) {
        let segments = resolved(&self.module.path, segments);
        self.found.push(Written { segments, file: self.module.file.clone(), line, called });
    }
}

/// The path from the root, for a module at `from`: `super` and `self` at its start are resolved.
fn resolved(from: &[String], segments: Vec<String>) -> Vec<String> {
    let mut base = match segments.first().map(String::as_str) {
        Some("self" | "super") => from.to_vec(),
        _ => return segments,
    };
    let mut rest = segments.into_iter().peekable();
    while let Some(word) = rest.next_if(|word| word == "self" || word == "super") {
        if word == "super" {
            let _last = base.pop();
        }
    }
    std::iter::once("crate".to_owned()).chain(base).chain(rest).collect()
}

fn is(tokens: &[TokenTree], at: usize, character: char) -> bool {
    matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == character)
}

#[cfg(test)]
mod tests {
    use super::super::tree::{Files, Tree};
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        let files = Files::of(&[("src/lib.rs", "mod a;"), ("src/a.rs", "mod b;"), ("src/a/b.rs", text)]);
        let tree = Tree::parse(&files, "src", &["lib.rs"]).expect("it parses");
        let module = tree.modules.iter().find(|module| module.path == ["a", "b"]).expect("there");
        written(module).into_iter().map(|written| written.segments.join("::")).filter(|path| path.contains("::")).collect()
    }

    #[test]
    fn paths_are_found_wherever_they_are_written() {
        assert_eq!(paths("use crate::x::{self, y, z::{Deep, *}};"), ["crate::x", "crate::x::y", "crate::x::z::Deep", "crate::x::z"]);
        assert_eq!(paths("fn f() { let _ = crate::x::f::<u8>(); }"), ["crate::x::f"]);
        assert_eq!(paths("fn f() { format!(\"{}\", crate::x::f()); }"), ["crate::x::f"]);
        assert_eq!(paths("use super::super::x::Y; use super::c; use self::d::E;"), ["crate::x::Y", "crate::a::c", "crate::a::b::d::E"]);
        assert_eq!(paths("#[serde(with = \"crate::x::time\")] struct S;"), ["crate::x::time"]);
        assert_eq!(paths("/// See [`crate::x::time`].\nstruct S;"), [""; 0]);
        assert_eq!(paths("use crate::{x as y, w};"), ["crate::x", "crate::w"]);
        assert_eq!(paths("fn f(y: &dyn crate::x::T) -> super::U { y.u() }"), ["crate::x::T", "crate::a::U"]);
    }
}
