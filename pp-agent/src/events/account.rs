//! Finds the account that a command line names. The program may use another one: the kernel cannot see that, and the agent's own programs
//! need not name theirs.

/// Longest account name that is reported, in characters.
const MAX_ACCOUNT: usize = 128;
/// Within how many arguments to look for a tool, since it may follow `sudo`, `env` or `sshpass`.
const WRAPPERS: usize = 8;

/// How a tool is given an account.
struct Tool {
    /// Its basename.
    name: &'static str,
    /// Flags whose next argument is the account; `--flag=ACCOUNT` with two dashes.
    next: &'static [&'static str],
    /// What the account may be attached to (`-uroot`, `/u:root`).
    attached: &'static [&'static str],
    /// What ends the account if a password follows in the same argument.
    cut: &'static [char],
    /// Whether it accepts `ACCOUNT@HOST`.
    at_host: bool,
}

const fn tool(
    name: &'static str,
    next: &'static [&'static str],
    attached: &'static [&'static str],
    cut: &'static [char],
    at_host: bool,
) -> Tool {
    Tool { name, next, attached, cut, at_host }
}

/// From the tools' manual pages.
#[rustfmt::skip]
const TOOLS: &[Tool] = &[
    tool("curl", &["-u", "--user"], &["-u"], &[':'], false),
    tool("wget", &["--user", "--http-user", "--ftp-user"], &[], &[], false),
    tool("ssh", &["-l"], &["-l", "-oUser="], &[], true),
    tool("scp", &[], &["-oUser="], &[], true),
    tool("sftp", &[], &["-oUser="], &[], true),
    tool("rsync", &[], &[], &[], true),
    tool("telnet", &["-l", "--user"], &["-l"], &[], false),
    tool("ftp", &["-u"], &[], &[','], true),
    tool("lftp", &["-u", "--user"], &["-u"], &[','], false),
    tool("mysql", &["-u", "--user"], &["-u"], &[], false),
    tool("mysqldump", &["-u", "--user"], &["-u"], &[], false),
    tool("mariadb", &["-u", "--user"], &["-u"], &[], false),
    tool("psql", &["-U", "--username"], &["-U"], &[], false),
    tool("mongosh", &["-u", "--username"], &[], &[], false),
    tool("redis-cli", &["--user"], &[], &[], false),
    tool("smbclient", &["-U", "--user"], &["-U"], &['%'], false),
    tool("rpcclient", &["-U", "--user"], &["-U"], &['%'], false),
    tool("hydra", &["-l"], &["-l"], &[], false),
    tool("medusa", &["-u"], &["-u"], &[], false),
    tool("ncrack", &["--user"], &[], &[','], false),
    tool("nxc", &["-u"], &[], &[], false),
    tool("netexec", &["-u"], &[], &[], false),
    tool("crackmapexec", &["-u"], &[], &[], false),
    tool("xfreerdp", &["-u"], &["/u:"], &[], false),
    tool("rdesktop", &["-u"], &["-u"], &[], false),
    tool("evil-winrm", &["-u", "--user"], &[], &[], false),
];

/// The first account that an unmasked command line names and that is not `allowed`. It is looked for after the flags of known tools, and in
/// the URLs of any program. A password after it is cut off.
#[must_use]
pub(crate) fn beyond(argv: &[String], allowed: &[String]) -> Option<String> {
    named(argv).into_iter().find(|account| !allowed.contains(account))
}

fn named(argv: &[String]) -> Vec<String> {
    let found = argv.iter().take(WRAPPERS).enumerate().find_map(|(at, arg)| Some((at, known(arg)?)));
    let mut accounts = Vec::new();
    let mut follows = false;
    for (at, arg) in argv.iter().enumerate() {
        let tool = found.filter(|(start, _)| at > *start).map(|(_, tool)| tool);
        let account = match tool {
            Some(tool) if follows => Some(before(arg, tool.cut)),
            Some(tool) => by_flag(tool, arg).or_else(|| in_url(arg)).or_else(|| at_host(tool, arg)),
            None => in_url(arg),
        };
        follows = tool.is_some_and(|tool| !follows && tool.next.contains(&arg.as_str()));
        accounts.extend(account.filter(|account| is_account(account)).map(str::to_owned));
    }
    accounts
}

fn known(arg: &str) -> Option<&'static Tool> {
    let base = arg.rsplit('/').next().unwrap_or(arg);
    TOOLS.iter().find(|tool| tool.name == base)
}

fn is_account(text: &str) -> bool {
    !text.is_empty() && !text.starts_with('-') && !text.contains(char::is_whitespace) && text.chars().count() <= MAX_ACCOUNT
}

fn before<'a>(text: &'a str, cut: &[char]) -> &'a str {
    text.split(cut).next().unwrap_or(text)
}

fn by_flag<'a>(tool: &Tool, arg: &'a str) -> Option<&'a str> {
    if let Some((flag, value)) = arg.split_once('=')
        && flag.starts_with("--")
        && tool.next.contains(&flag)
    {
        return Some(before(value, tool.cut));
    }
    let value = tool.attached.iter().find_map(|flag| arg.strip_prefix(flag).filter(|value| !value.is_empty()));
    value.map(|value| before(value, tool.cut))
}

/// `scheme://ACCOUNT@host`, `scheme://ACCOUNT:SECRET@host`.
fn in_url(arg: &str) -> Option<&str> {
    let (_, rest) = arg.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let (login, _) = authority.rsplit_once('@')?;
    login.split(':').next()
}

/// `ACCOUNT@host`, `ACCOUNT@host:path`; no path that contains an `@`.
fn at_host<'a>(tool: &Tool, arg: &'a str) -> Option<&'a str> {
    let (account, host) = arg.rsplit_once('@').filter(|_| tool.at_host)?;
    (!account.contains(['/', ':', ' ']) && !host.is_empty() && !host.contains(' ')).then_some(account)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::mask::mask;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    fn beyond_historian(line: &str) -> Option<String> {
        beyond(&words(line), &["svc-historian".to_owned()])
    }

    #[test]
    fn account_of_a_known_flag_or_url_is_named() {
        for line in [
            "curl -u admin:s3cret https://10.30.4.9/",
            "curl -uadmin:s3cret https://10.30.4.9/",
            "curl --user=admin:s3cret https://10.30.4.9/",
            "curl https://admin:s3cret@10.30.4.9/login?next=a@b",
            "/usr/bin/ssh -p 22 -l admin 10.30.4.9",
            "ssh -ladmin 10.30.4.9",
            "ssh admin@10.30.4.9 uptime",
            "sudo env A=1 sshpass -p s3cret ssh admin@10.30.4.9",
            "scp file admin@10.30.4.9:/tmp/x",
            "smbclient -U admin%s3cret //10.30.4.9/c$",
            "lftp -u admin,s3cret 10.30.4.9",
            "mysql -uadmin -ps3cret",
            "xfreerdp /u:admin /p:s3cret /v:10.30.4.9",
            "python3 fetch.py opc.tcp://admin@10.30.4.9:4840",
        ] {
            assert_eq!(beyond_historian(line).as_deref(), Some("admin"), "{line}");
        }
    }

    #[test]
    fn allowed_account_is_not_reported_and_another_one_is() {
        assert_eq!(beyond_historian("ssh svc-historian@10.30.4.9"), None);
        assert_eq!(beyond_historian("curl -u svc-historian:pw http://10.30.4.9/ -u root:pw").as_deref(), Some("root"));
        assert_eq!(beyond(&words("ssh -l admin h"), &[]).as_deref(), Some("admin"));
    }

    #[test]
    fn same_flag_of_another_program_names_nobody() {
        for line in [
            "sort -u file",
            "ls -l /tmp",
            "python3 -u x.py",
            "git log --user admin",
            "cat a@b",
            "x://h y",
            "scp /tmp/a@b 10.30.4.9:/x",
            "curl -u",
            "ssh -l",
        ] {
            assert_eq!(beyond_historian(line), None, "{line}");
        }
    }

    #[test]
    fn no_secret_that_is_masked_in_the_arguments_is_reported() {
        for line in [
            "curl -u admin:s3cret h",
            "curl -u :s3cret h",
            "curl https://admin:s3cret@h/",
            "curl https://:s3cret@h/",
            "smbclient -U admin%s3cret h",
            "mysql -u -ps3cret",
            "sshpass -p s3cret ssh admin@h",
            "xfreerdp /u:a /p:s3cret",
            "lftp -u admin,s3cret h",
        ] {
            let found = beyond(&words(line), &[]).unwrap_or_default();
            assert!(!found.contains("s3cret"), "{line}: {found}");
        }
        assert_eq!(beyond(&["sh".into(), "-c".into(), "x://h -p s3cret a@b".into()], &[]), None);
        assert!(!mask(&words("lftp -u admin,s3cret h")).join(" ").contains("s3cret"));
    }
}
