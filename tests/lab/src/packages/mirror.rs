//! Which server and release of Debian apt is set to, for who needs a whole system and not a package.

use anyhow::{Result, ensure};

use super::apt::find_or_refresh;
use super::run;
use crate::options::Options;

/// Releases of Debian that the lab has been tried with.
const SUITES: [&str; 2] = ["bookworm", "trixie"];
/// What debootstrap can fetch from.
const SCHEMES: [&str; 3] = ["http://", "https://", "file:/"];
/// What apt is asked: fields that hold no spaces come first.
const FORMAT: &str = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)";

/// A server of Debian's packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Its address.
    pub server: String,
    /// The release.
    pub suite: String,
}

/// The first server in apt's sources that has a release of Debian which the lab knows.
pub fn debian_mirror(options: &Options) -> Result<Mirror> {
    find_or_refresh(options, &format!("Debian itself ({})", SUITES.join(" or ")), known_debian_mirror)
}

/// The same, as far as apt's lists tell it now.
pub(super) fn known_debian_mirror() -> Result<Option<Mirror>> {
    let output = run("apt-get", ["indextargets", "--format", FORMAT, "Created-By: Packages"])?;
    ensure!(output.status.success(), "apt-get does not tell its sources");
    Ok(choose(&String::from_utf8_lossy(&output.stdout)))
}

/// Picks from apt's list of package indices.
fn choose(targets: &str) -> Option<Mirror> {
    targets.lines().find_map(|line| {
        let mut fields = line.splitn(4, ' ');
        let (server, suite, component, origin) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let fits = origin == "Debian"
            && component == "main"
            && SUITES.contains(&suite)
            && SCHEMES.iter().any(|scheme| server.starts_with(scheme));
        fits.then(|| Mirror { server: server.to_owned(), suite: suite.to_owned() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_itself_is_chosen_and_no_updates_or_others() {
        let targets = "\
https://packages.test/node nodistro main . nodistro
http://mirror.test/debian bookworm-updates main Debian
http://mirror.test/security bookworm-security main Debian
http://mirror.test/debian bookworm contrib Debian
mirror+file:/etc/mirrors bookworm main Debian
http://mirror.test/debian bookworm main Debian
http://other.test/debian trixie main Debian
";
        let expected = Mirror { server: "http://mirror.test/debian".into(), suite: "bookworm".into() };
        assert_eq!(choose(targets), Some(expected));
    }

    #[test]
    fn without_debian_there_is_no_choice() {
        assert_eq!(choose(""), None);
        assert_eq!(choose("http://mirror.test/ubuntu noble main Ubuntu\nnonsense\n"), None);
    }
}
