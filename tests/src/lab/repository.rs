//! A repository with submodules, on the machine that the lab's git servers serve.

use std::net::IpAddr;
use std::process::Command;

use anyhow::Result;

use super::Lab;
use super::servers::succeed;

/// `$1`: the folder, `$2`: the repository's name, `$3`: what URLs begin with, `$4`: how many submodules.
const MAKE: &str = r#"
cd "$1"
work=$(mktemp -d)
for number in $(seq "$4"); do
    git init -q -b main "$work/part-$number"
    echo "part $number of $2" > "$work/part-$number/README"
    git -C "$work/part-$number" add README
    git -C "$work/part-$number" commit -q -m "a part"
    git clone -q --bare "$work/part-$number" "$2-part-$number.git"
    parts="${parts:-} part-$number"
done
git init -q -b main "$work/whole"
for part in $parts; do
    git config -f "$work/whole/.gitmodules" "submodule.$part.path" "$part"
    git config -f "$work/whole/.gitmodules" "submodule.$part.url" "$3/$2-$part.git"
    git -C "$work/whole" update-index --add --cacheinfo "160000,$(git -C "$work/$part" rev-parse HEAD),$part"
done
git -C "$work/whole" add .gitmodules
git -C "$work/whole" commit -q -m "the whole"
git clone -q --bare "$work/whole" "$2.git"
rm -r "$work"
"#;

impl Lab {
    /// Makes a repository with so many submodules, each with a commit of its own, and returns its SSH URL at a git server with this address.
    ///
    /// # Errors
    /// git complained.
    pub fn repository_with_submodules(&self, name: &str, server: IpAddr, submodules: u32) -> Result<String> {
        let folder = self.directory().join("git");
        let base = format!("ssh://root@{server}{}", folder.display());
        let mut git = Command::new("/bin/bash");
        git.args(["-euc", MAKE, "bash"]).arg(&folder).args([name, base.as_str(), submodules.to_string().as_str()]);
        // The machine's own configuration may want signatures, hooks or another protocol.
        git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        for (who, mail) in [("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL"), ("GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")] {
            git.env(who, "lab").env(mail, "lab@example.invalid");
        }
        succeed(&mut git)?;
        Ok(format!("{base}/{name}.git"))
    }
}
