use super::*;
use crate::matcher::{Step, tests::agree};
use pp_common::abi::EXEC_PATH_LEN;
use pp_common::tools::{TOOL_ARGV_LEN, rule_of};
use proptest::prelude::*;
use std::sync::LazyLock;

static TABLES: LazyLock<ToolTables> = LazyLock::new(|| compile(&[], false).unwrap());

impl ToolTables {
    /// The code that these tables find for a program with this path and argument vector. It is the same walk as in the kernel.
    fn code(&self, path: &[u8], argv: &[&[u8]]) -> u16 {
        let args: Vec<u8> = argv.iter().flat_map(|arg| arg.iter().copied().chain([0])).collect();
        let cut = args.len() > TOOL_ARGV_LEN - 1;
        let path = path.iter().copied().take(EXEC_PATH_LEN - 1).chain([0]);
        let input = path.chain(args.into_iter().take(TOOL_ARGV_LEN - 1)).chain([0]);
        match self.table.follow(input) {
            Step::Go(state) => {
                let end = self.table.ends[usize::from(state)];
                if cut { end.cut } else { end.whole }
            }
            Step::Accept(_) | Step::Dead => 0,
        }
    }

    /// The rule of a code.
    fn rule(&self, code: u16) -> Option<&ToolRule> {
        self.rules.get(rule_of(code)?)
    }
}

/// The words of a shell line: single and double quotes hold words together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut any) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => (quote, any) = (Some(c), true),
            (None, ' ') => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            (_, c) => word.push(c),
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}

/// The code of a command line whose first word is the path as well.
fn code_in(tables: &ToolTables, line: &str) -> u16 {
    let words = words(line);
    let argv: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    let path = if words[0].contains('/') { words[0].clone() } else { format!("/usr/bin/{}", words[0]) };
    tables.code(path.as_bytes(), &argv)
}

fn found(line: &str) -> Option<(&'static str, Option<&'static str>, bool)> {
    let code = code_in(&TABLES, line);
    let rule = TABLES.rule(code)?;
    Some((&rule.tool, rule.shape.as_deref(), code & TOOL_REFUSE != 0))
}

fn refused(line: &str, tool: &str) {
    match found(line) {
        Some((found, Some(_), true)) if found == tool => {}
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn shipped_table_leaves_room_for_policy() {
    // Half is left for what policy allows.
    let states = TABLES.table.rows.len();
    assert!(states <= TOOL_STATES / 2, "{states} states");
    assert_eq!(states, TABLES.table.ends.len());
}

#[test]
fn names_with_a_matching_shape_are_refused() {
    for (tool, line) in [
        ("hydra", "hydra -L users.txt -P pass.txt 10.30.4.9 ssh"),
        ("hydra", "hydra -l admin -P /usr/share/wordlists/rockyou.txt -t 4 ssh://10.30.4.9"),
        ("hydra", "hydra -C defaults.txt 10.30.4.9 http-get /"),
        ("hydra", "hydra -l '' -p x -s 8443 10.30.4.9 https-form-post '/login:password=^PASS^:F=401'"),
        ("hydra", "hydra -l admin -e nsr ftp://10.0.0.1"),
        ("hydra", "hydra -l root -x 4:6:aA1 ssh://10.0.0.1"),
        ("hydra", "hydra -M targets.txt -l root -p root telnet"),
        ("medusa", "medusa -h 10.0.0.1 -u admin -P pass.txt -M ssh"),
        ("medusa", "medusa -H hosts.txt -U users.txt -p x -M ftp"),
        ("ncrack", "ncrack -U users.txt -P pass.txt 10.0.0.1:22"),
        ("ncrack", "ncrack --user admin --pass a,b,c ssh://10.0.0.1"),
        ("patator", "patator ssh_login host=10.0.0.1 user=FILE0 0=u.txt password=FILE1 1=p.txt"),
        ("patator", "http_fuzz url=https://10.30.4.9/login method=POST body=password=FILE0 0=p.txt"),
        ("crowbar", "crowbar -b rdp -s 10.0.0.0/24 -u admin -C p.txt"),
        ("netexec", "nxc smb 10.0.0.0/24 -u users.txt -p pass.txt --continue-on-success"),
        ("netexec", "crackmapexec winrm 10.0.0.5 -u admin -p Passw0rd"),
        ("kerbrute", "kerbrute passwordspray -d corp.local users.txt Winter2026"),
        ("brutespray", "brutespray -f scan.gnmap -t 5"),
        ("metasploit", "msfconsole -q -x 'use auxiliary/scanner/scada/modbusdetect; run'"),
        ("isf", "python3 isf.py -m creds/plc_bruteforce"),
        ("nmap", "nmap -sn 10.20.0.0/16"),
        ("nmap", "nmap -sT 10.20.4.1-254"),
        ("nmap", "nmap 10.20.*.7"),
        ("nmap", "nmap -iL hosts.txt"),
        ("nmap", "nmap -p 502,102 10.20.4.7"),
        ("nmap", "nmap -p1-600,44818 10.20.4.7"),
        ("nmap", "nmap -Pn --script modbus-discover 10.20.4.7"),
        ("nmap", "nmap --script=http-brute,ssh-auth-methods 10.20.4.7"),
        ("nmap", "nmap fd00:20::/64 -6"),
        ("masscan", "masscan 10.0.0.0/8 -p80 --rate 10000"),
        ("zmap", "zmap -p 502 10.0.0.0/16"),
        ("rustscan", "rustscan -a 10.20.4.7"),
        ("naabu", "naabu -host 10.20.4.7 -top-ports 100"),
    ] {
        refused(line, tool);
    }
}

#[test]
fn other_forms_of_the_same_program_are_the_same() {
    for line in [
        "/opt/tools/hydra -L u -P p ssh://h",
        "./hydra -L u -P p ssh://h",
        "/lib64/ld-linux-x86-64.so.2 /usr/bin/hydra -L u -P p ssh://h",
        "/lib64/ld-linux-x86-64.so.2 --library-path /tmp/lib --inhibit-cache /usr/bin/hydra -L u -P p ssh://h",
        "/lib/ld-musl-x86_64.so.1 /usr/bin/hydra -L u -P p ssh://h",
    ] {
        refused(line, "hydra");
    }
    for line in [
        "python3 /opt/patator.py ssh_login user=FILE0 0=u",
        "python3.13 -u -W ignore /opt/patator.py ssh_login user=FILE0 0=u",
        "python3 -m patator ssh_login user=FILE0 0=u",
        "/root/.venv/bin/python -Im patator ssh_login user=FILE0 0=u",
        "python3 -Bmpatator ssh_login user=FILE0 0=u",
        "pypy3 -- patator ssh_login user=FILE0 0=u",
    ] {
        refused(line, "patator");
    }
    // The path is a link or a memory file, the program still calls itself by its name.
    assert!(TABLES.code(b"/proc/self/fd/5", &[b"hydra", b"-L", b"u"]) & TOOL_REFUSE != 0);
    assert!(TABLES.code(b"/tmp/x", &[b"/usr/bin/hydra", b"-L", b"u"]) & TOOL_REFUSE != 0);
}

#[test]
fn renamed_program_is_not_seen_and_that_is_known() {
    assert_eq!(TABLES.code(b"/tmp/innocent", &[b"innocent", b"-L", b"u", b"-P", b"p"]), 0);
    assert_eq!(found("python3 spray.py --targets 10.0.0.0/8"), None);
}

#[test]
fn names_alone_are_reported() {
    for (tool, line) in [("nmap", "nmap -sV 127.0.0.1"), ("hydra", "xhydra"), ("masscan", "masscan --version"), ("patator", "patator")] {
        assert_eq!(found(line), Some((tool, None, false)), "{line}");
    }
    // A name that another program also has is not reported alone.
    assert_eq!(found("crowbar machines list"), None);
    assert_eq!(found("hydra --help"), None);
    assert_eq!(found("medusa -d"), None);
    assert_eq!(found("ssh_login --help"), None);
}

#[test]
fn ot_clients_are_nobodys_business_here() {
    for line in [
        "mbpoll -m tcp -a 1 -r 1 -c 10 10.20.4.7",
        "python3 -m pymodbus.repl",
        "modbus read 10.20.4.7 400001 4",
        "uals -u opc.tcp://h:4840",
    ] {
        assert_eq!(found(line), None, "{line}");
    }
}

#[test]
fn arguments_beyond_what_can_be_read_count_as_a_match() {
    let padding = "x".repeat(1_000);
    let pad = padding.as_bytes();
    let argv: [&[u8]; 5] = [b"hydra", b"-w", pad, b"-L", b"users"];
    assert!(TABLES.code(b"/usr/bin/hydra", &argv) & TOOL_REFUSE != 0);
    let argv: [&[u8]; 6] = [b"hydra", pad, pad, pad, b"-L", b"users"];
    let code = TABLES.code(b"/usr/bin/hydra", &argv);
    assert!(code & TOOL_REFUSE != 0);
    assert_eq!(TABLES.rule(code).unwrap().shape.as_deref(), Some("more arguments than can be read"));
    assert_eq!(TABLES.code(b"/usr/bin/cc", &[b"cc", pad, pad, pad]), 0);
}

#[test]
fn line_of_policy_allows_a_command_line_and_nothing_wider() {
    let tables = compile(&["nmap ** localhost".into(), "nmap ** 127.0.0.1".into()], false).unwrap();
    for line in ["nmap localhost", "nmap -p 502 localhost", "nmap -sV --script http-brute 127.0.0.1"] {
        assert_eq!(code_in(&tables, line), 0, "{line}");
    }
    for line in ["nmap -p 502 10.20.4.7", "nmap --script http-brute localhost.evil", "nmap 127.0.0.1 10.20.0.0/16", "hydra -L u localhost"]
    {
        assert!(code_in(&tables, line) & TOOL_REFUSE != 0, "{line}");
    }
    let whole = compile(&["masscan".into()], false).unwrap();
    assert_eq!(code_in(&whole, "masscan 10.0.0.0/8 -p80"), 0);
    assert!(code_in(&whole, "zmap -p 502 10.0.0.0/16") & TOOL_REFUSE != 0);
}

#[test]
fn bad_line_of_allow_is_named() {
    for (line, part) in [("nmapp ** localhost", "did you mean nmap?"), ("", "empty"), ("nmap x**", "whole arguments")] {
        let error = check_allow(line).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn observing_host_refuses_no_program() {
    let tables = compile(&[], true).unwrap();
    let code = code_in(&tables, "hydra -L u -P p ssh://h");
    assert!(code & TOOL_OBSERVE != 0 && code & TOOL_REFUSE == 0);
    assert!(tables.table.ends.iter().all(|end| (end.whole | end.cut) & TOOL_REFUSE == 0));
}

/// Words that get deep into the shipped rules, and some that do not.
fn word() -> impl Strategy<Value = String> {
    let programs = ["/usr/bin/hydra", "nmap", "python3", "/lib64/ld-linux-x86-64.so.2", "patator.py", "medusa", "bash", "env"];
    let options = ["-L", "-m", "-W", "--", "--library-path", "ssh_login", "-Pn", "-iL", "--script", "-p", "-c", ""];
    let values = ["host=FILE0", "patator", "http-brute", "10.20.0.0/16", "10.20.4.7", "localhost", "1-100", "users.txt"];
    let known = prop::sample::select([programs.as_slice(), &options, &values].concat()).prop_map(str::to_owned);
    prop_oneof![6 => known, 1 => "[-a-c/*.0-9]{0,6}"]
}

proptest! {
    #[test]
    fn table_does_what_the_walk_does(words in prop::collection::vec(word(), 1..7)) {
        const ALLOW: [&str; 2] = ["nmap ** localhost", "hydra -L * ** 10.20.4.?"];
        static BOTH: LazyLock<(ToolTables, std::sync::Mutex<Machine>)> = LazyLock::new(|| {
            let allow = ALLOW.map(str::to_owned);
            let tools = shipped().unwrap();
            let walked = rules(&tools, &allow).unwrap().1;
            (compile(&allow, false).unwrap(), Machine::new(&tools, walked, TOOL_REFUSE).unwrap().into())
        });
        let mut input = words[0].clone() + "\0" + &words.join("\0") + "\0\0";
        for length in [input.len(), input.len() - 1] {
            input.truncate(length);
            agree(&mut *BOTH.1.lock().unwrap(), &BOTH.0.table, input.as_bytes());
        }
    }
}

#[test]
fn ordinary_command_lines_are_neither_refused_nor_reported() {
    let corpus = include_str!("../../tests/fixtures/ordinary-commands.txt");
    let lines: Vec<&str> = corpus.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert!(lines.len() >= 500, "{} lines", lines.len());
    let wrong: Vec<_> = lines.iter().filter_map(|line| found(line).map(|found| format!("{line}: {found:?}"))).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let distinct: std::collections::HashSet<_> = lines.iter().collect();
    assert_eq!(distinct.len(), lines.len());
}
