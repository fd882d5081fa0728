//! Hides the secrets that follow known password flags of known tools, before an argument vector is stored or shown.

/// What replaces a secret.
pub(crate) const MASK: &str = "******";

/// How a tool is given a password.
struct Tool {
    /// Its basename.
    name: &'static str,
    /// Flags whose next argument is the secret.
    next: &'static [&'static str],
    /// Short flags that take their value attached (`mysql -pSECRET`).
    attached: &'static [&'static str],
}

/// From the tools' manual pages.
const TOOLS: &[Tool] = &[
    Tool {
        name: "curl",
        next: &["-u", "--user", "-U", "--proxy-user", "--oauth2-bearer", "--pass", "--proxy-pass"],
        attached: &["-u", "-U"],
    },
    Tool { name: "wget", next: &["--password", "--http-password", "--ftp-password", "--proxy-password"], attached: &[] },
    Tool { name: "sshpass", next: &["-p"], attached: &["-p"] },
    Tool { name: "lftp", next: &["-u", "--user"], attached: &["-u"] },
    Tool { name: "ftp", next: &["-u"], attached: &[] },
    Tool { name: "mysql", next: &["--password"], attached: &["-p"] },
    Tool { name: "mysqldump", next: &["--password"], attached: &["-p"] },
    Tool { name: "mariadb", next: &["--password"], attached: &["-p"] },
    Tool { name: "mongosh", next: &["-p", "--password"], attached: &[] },
    Tool { name: "redis-cli", next: &["-a", "--pass"], attached: &[] },
    Tool { name: "smbclient", next: &["-U", "--user", "--password"], attached: &["-U"] },
    Tool { name: "rpcclient", next: &["-U", "--user", "--password"], attached: &["-U"] },
    Tool { name: "ldapsearch", next: &["-w"], attached: &["-w"] },
    Tool { name: "hydra", next: &["-p"], attached: &[] },
    Tool { name: "medusa", next: &["-p"], attached: &[] },
    Tool { name: "ncrack", next: &["--pass"], attached: &[] },
    Tool { name: "nxc", next: &["-p", "-H"], attached: &[] },
    Tool { name: "netexec", next: &["-p", "-H"], attached: &[] },
    Tool { name: "crackmapexec", next: &["-p", "-H"], attached: &[] },
    Tool { name: "xfreerdp", next: &[], attached: &["/p:"] },
    Tool { name: "evil-winrm", next: &["-p", "--password", "-H", "--hash"], attached: &[] },
    Tool { name: "openssl", next: &["-passin", "-passout", "-k", "-pass"], attached: &[] },
    Tool { name: "docker", next: &["-p", "--password"], attached: &[] },
    Tool { name: "podman", next: &["-p", "--password"], attached: &[] },
    Tool { name: "vncviewer", next: &["-passwd"], attached: &[] },
];

/// The argument vector with each known secret replaced by [`MASK`]. In URLs of any tool, the password of the user part
/// (`scheme://user:SECRET@host`) is replaced.
#[must_use]
pub(crate) fn mask(argv: &[String]) -> Vec<String> {
    let tool = argv.iter().take(3).find_map(|arg| known(arg));
    let mut masked = Vec::with_capacity(argv.len());
    let mut secret_follows = false;
    for arg in argv {
        if secret_follows {
            masked.push(MASK.to_owned());
            secret_follows = false;
            continue;
        }
        let Some(tool) = tool else {
            masked.push(mask_url(arg));
            continue;
        };
        secret_follows = tool.next.contains(&arg.as_str());
        masked.push(match secret_in(tool, arg) {
            Some(flag) => format!("{flag}{MASK}"),
            None => mask_url(arg),
        });
    }
    masked
}

fn known(arg: &str) -> Option<&'static Tool> {
    let base = arg.rsplit('/').next().unwrap_or(arg);
    TOOLS.iter().find(|tool| tool.name == base)
}

/// The part of `arg` before an attached secret.
fn secret_in<'a>(tool: &Tool, arg: &'a str) -> Option<&'a str> {
    if let Some((flag, _)) = arg.split_once('=')
        && flag.starts_with("--")
        && tool.next.contains(&flag)
    {
        return Some(&arg[..=flag.len()]);
    }
    tool.attached.iter().find(|flag| arg.len() > flag.len() && arg.starts_with(**flag)).map(|flag| &arg[..flag.len()])
}

fn mask_url(arg: &str) -> String {
    let Some((scheme, rest)) = arg.split_once("://") else { return arg.to_owned() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let Some((login, _)) = authority.rsplit_once('@') else { return arg.to_owned() };
    let Some((user, _)) = login.split_once(':') else { return arg.to_owned() };
    format!("{scheme}://{user}:{MASK}{}", &rest[login.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(line: &str) -> String {
        let argv: Vec<String> = line.split(' ').map(str::to_owned).collect();
        mask(&argv).join(" ")
    }

    #[test]
    fn secret_after_a_known_flag_is_hidden() {
        assert_eq!(masked("curl -u admin:admin http://h/"), "curl -u ****** http://h/");
        assert_eq!(masked("/usr/bin/sshpass -p s3cret ssh h"), "/usr/bin/sshpass -p ****** ssh h");
        assert_eq!(masked("mysql -ps3cret db"), "mysql -p****** db");
        assert_eq!(masked("mysql --password=s3cret"), "mysql --password=******");
        assert_eq!(masked("sudo hydra -l admin -p x h"), "sudo hydra -l admin -p ****** h");
    }

    #[test]
    fn password_in_a_url_is_hidden_for_every_tool() {
        assert_eq!(masked("git clone https://me:tok@h/r"), "git clone https://me:******@h/r");
        assert_eq!(masked("git clone https://me@h/r"), "git clone https://me@h/r");
    }

    #[test]
    fn same_flag_of_another_tool_stays() {
        assert_eq!(masked("nmap -p 502 10.0.0.1"), "nmap -p 502 10.0.0.1");
        assert_eq!(masked("mkdir -p a/b"), "mkdir -p a/b");
    }

    #[test]
    fn flag_at_the_end_hides_nothing_and_does_not_panic() {
        assert_eq!(masked("curl -u"), "curl -u");
    }
}
