//! What must vary between runs and machines, replaced in a text that is compared with a golden file.
//!
//! Each rule is as narrow as it can be: a value is replaced only in the form and at the place that it has now. Ids are numbered in the
//! order of their appearance, so that it still shows where one is that of another.

use std::collections::HashMap;

use regex::{Captures, Regex};

/// What is replaced wherever it stands, and by what. The digits are written out: Unicode has others.
const RULES: &[(&str, &str)] = &[
    // RFC 3339 in UTC with milliseconds, the one form that this project writes.
    (r"\b20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z", "<time>"),
    // Process ids.
    (r#""pid":(\s?)[0-9]+"#, r#""pid":$1<pid>"#),
    (r"\bpid [0-9]+", "pid <pid>"),
    // Ids of events.
    (r#""(id|event)":(\s?)[0-9]+"#, r#""$1":$2<event>"#),
    (r"--from-event [0-9]+", "--from-event <event>"),
    (r"(?m)^<time> (?: {0,5}[0-9]+) ", "<time> <event> "),
    // What the kernel of this machine can do: backends, hooks and what the canary found. The unit tests have all of them.
    (r#""backend":(\s?)"(?:lsm|fmod_ret|cgroup)""#, r#""backend":$1"<backend>""#),
    (r#""hook":(\s?)"(?:connect|lsm_socket_connect|fmod_ret_socket_connect)""#, r#""hook":$1"<connect>""#),
    (r#""found":(\s?)"(?:[^"\\]|\\.)*"(,\s+"name":)"#, r#""found":$1"<found>"$2"#),
    (r#""gaps":(\s?)\[[^\]]*\]"#, r#""gaps":$1[<gaps>]"#),
    (r#""(posture|measured)":(\s?)"(?:enforcing|partial)""#, r#""$1":$2"<posture>""#),
    (r#""errno":(\s?)[0-9]+(,\s+)"refused":(\s?)(?:true|false)"#, r#""errno":$1<errno>$2"refused":$3<refused>"#),
    (r#""(watched|runs)":(\s?)[0-9]+"#, r#""$1":$2<number>"#),
    (r"(?m)^backend   (?:lsm|fmod_ret|cgroup)$", "backend   <backend>"),
    (r"(?m)^posture   (?:enforcing|partial)$", "posture   <posture>"),
    (r"(?m)^(?:gap       [a-z]+\n)+", "gap       <gaps>\n"),
    (r#"backend="(?:lsm|fmod_ret|cgroup)",posture="(?:enforcing|partial)""#, r#"backend="<backend>",posture="<posture>""#),
    // Where a process was started from. The cgroup is not known of a process that had ended when its event was made.
    (r#""cgroup":"/[^"]*","#, ""),
    (r#""parents":\[(?:\{"pid":<pid>,"executable":"[^"]*"\},?)*\]"#, r#""parents":[<parents>]"#),
    // Hashes and signatures.
    (r"\bsha256:[0-9a-f]{64}\b", "sha256:<hash>"),
    (r#""signed_payload_hash":(\s?)"[0-9a-f]{64}""#, r#""signed_payload_hash":$1"<hash>""#),
    (r#""(signature_b64|payload_bytes_b64|public_key_b64)":(\s?)"[0-9A-Za-z+/=]+""#, r#""$1":$2"<base64>""#),
];

/// What is numbered: revocations, receipts and sessions.
const NUMBERED: &[(&str, &str)] = &[
    (r"\bppa_rev_[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "revocation"),
    (r"\bppa_[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "receipt"),
    (r"\b[0-9a-f]{16}\b", "session"),
];

/// Replaces what varies.
pub struct Normal {
    literals: Vec<(String, String)>,
    rules: Vec<(Regex, &'static str)>,
    numbered: Vec<(Regex, &'static str)>,
}

impl Normal {
    /// Replaces these texts, such as paths, and what is known to vary. The longest of them is replaced first.
    ///
    /// # Panics
    /// A rule is not a regular expression.
    #[must_use]
    pub fn new(literals: &[(String, &str)]) -> Self {
        let mut literals: Vec<(String, String)> = literals.iter().map(|(text, name)| (text.clone(), format!("<{name}>"))).collect();
        literals.retain(|(text, _)| !text.is_empty());
        literals.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        let read = |(pattern, by): &(&str, &'static str)| (Regex::new(pattern).expect("a rule is a regular expression"), *by);
        Self { literals, rules: RULES.iter().map(read).collect(), numbered: NUMBERED.iter().map(read).collect() }
    }

    /// The text without what varies.
    #[must_use]
    pub fn apply(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (literal, by) in &self.literals {
            text = text.replace(literal, by);
        }
        for (pattern, by) in &self.rules {
            text = pattern.replace_all(&text, *by).into_owned();
        }
        for (pattern, name) in &self.numbered {
            let mut seen: HashMap<String, usize> = HashMap::new();
            let number = |found: &Captures<'_>| {
                let next = seen.len() + 1;
                format!("<{name} {}>", seen.entry(found[0].to_owned()).or_insert(next))
            };
            text = pattern.replace_all(&text, number).into_owned();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(text: &str) -> String {
        Normal::new(&[("/tmp/lab-77".to_owned(), "lab"), ("/tmp/lab-77/bin".to_owned(), "bin"), (String::new(), "nothing")]).apply(text)
    }

    #[test]
    fn what_varies_is_replaced() {
        for (text, wanted) in [
            ("at 2026-11-30T08:00:16.123Z.", "at <time>."),
            (r#"{"pid":77,"id":5,"event":6}"#, r#"{"pid":<pid>,"id":<event>,"event":<event>}"#),
            (r#"  "pid": 77"#, r#"  "pid": <pid>"#),
            ("agent codex session 0000000000000abc pid 77", "agent codex session <session 1> pid <pid>"),
            ("pp-agent receipt request --from-event 12", "pp-agent receipt request --from-event <event>"),
            ("/tmp/lab-77/bin/x /tmp/lab-77/y", "<bin>/x <lab>/y"),
            (r#""hook":"fmod_ret_socket_connect","backend":"lsm""#, r#""hook":"<connect>","backend":"<backend>""#),
            (r#""parents":[{"pid":7,"executable":"/bin/sh"},{"pid":1,"executable":""}]"#, r#""parents":[<parents>]"#),
            (r#"{"argv":["x"],"cgroup":"/user.slice","hook":"exec"}"#, r#"{"argv":["x"],"hook":"exec"}"#),
            (r#""signature_b64":"ab+/cd==""#, r#""signature_b64":"<base64>""#),
            ("2026-11-30T08:00:16.123Z     69 verdict block", "<time> <event> verdict block"),
            (
                "backend   lsm\nposture   partial\nmode      enforce\ngap       packet\ngap       vsock\nproblem   x\n",
                "backend   <backend>\nposture   <posture>\nmode      enforce\ngap       <gaps>\nproblem   x\n",
            ),
            (r#"{"found":"not \"here\"", "name":"lsm"}"#, r#"{"found":"<found>", "name":"lsm"}"#),
            ("\"gaps\": [\n  \"packet\"\n]", "\"gaps\": [<gaps>]"),
            ("\"errno\": 1,\n  \"refused\": true", "\"errno\": <errno>,\n  \"refused\": <refused>"),
            ("receipt ppa_rev_0199c0de-0000-7000-8000-000000000001", "receipt <revocation 1>"),
        ] {
            assert_eq!(normal(text), wanted);
        }
    }

    #[test]
    fn ids_are_numbered_in_the_order_of_their_appearance() {
        let ids = ["ppa_0199c0de-0000-7000-8000-000000000001", "ppa_0199c0de-0000-7000-8000-000000000002"];
        let text = format!("{} {} {} 00000000000000aa 00000000000000bb 00000000000000aa", ids[1], ids[0], ids[1]);
        assert_eq!(normal(&text), "<receipt 1> <receipt 2> <receipt 1> <session 1> <session 2> <session 1>");
    }

    #[test]
    fn another_form_of_what_varies_is_a_difference() {
        for text in [
            "2026-11-30T08:00:16Z",
            "2026-11-30 08:00:16.123",
            "2026-11-30T08:00:16.123+00:00",
            r#"{"pid":"77"}"#,
            r#"{"tgid":77}"#,
            r#"{"id":"5"}"#,
            r#""hook":"lsm_socket_sendmsg""#,
            r#""hook":"connect4""#,
            r#""backend":"none""#,
            "session abc",
            "session 0000000000000ABC",
            "ppa_x",
            r#""parents":["sh"]"#,
            r#""port":502"#,
            r#""generation":2"#,
            r#""posture":"degraded""#,
            "posture   observe",
            r#"{"found":"yes","good":true}"#,
            r#""refused":12"#,
        ] {
            assert_eq!(normal(text), text);
        }
    }
}
