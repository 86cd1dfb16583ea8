//! Where the source of the nested host's kernel comes from: Debian's package, or a file that the user has.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cache::{Cache, sha256};
use crate::options::Options;
use crate::packages::{self, Candidate};
use crate::progress::Progress;

/// Debian's package. The tarball in it has the same name.
const PACKAGE: &str = "linux-source-6.12";
/// Names a tarball to be used instead.
const VARIABLE: &str = "UMBRA_LAB_KERNEL_SOURCE";

/// A source of Linux 6.12.
#[derive(Clone, Debug)]
pub enum Source {
    /// Debian's package of it.
    Package(Candidate),
    /// A tarball of the user's.
    File {
        /// Where it is.
        path: PathBuf,
        /// Its SHA-256.
        sum: String,
    },
}

impl Source {
    /// The file that the environment names, else Debian's package.
    pub fn choose(options: &Options, cache: &Cache) -> Result<Self> {
        match named_file() {
            Some(path) => Self::file(path),
            None => packages::candidate(options, cache, PACKAGE).map(Self::Package).with_context(|| {
                format!("no source for the nested host's kernel ({VARIABLE} can name a linux-6.12.*.tar.xz)")
            }),
        }
    }

    /// The same without asking apt: of the package, the version that was last chosen.
    pub fn last(cache: &Cache) -> Result<Option<Self>> {
        match named_file() {
            Some(path) => Self::file(path).map(Some),
            None => Ok(packages::last_candidate(cache, PACKAGE).map(Self::Package)),
        }
    }

    fn file(path: PathBuf) -> Result<Self> {
        let content =
            fs::read(&path).with_context(|| format!("cannot read {}, which {VARIABLE} names", path.display()))?;
        ensure!(!content.is_empty(), "{}, which {VARIABLE} names, is empty", path.display());
        Ok(Self::File { sum: sha256(&content), path })
    }

    /// What tells it from every other source.
    pub fn identity(&self) -> &str {
        match self {
            Self::Package(package) => &package.version,
            Self::File { sum, .. } => sum,
        }
    }

    /// Its tarball, which is put into `folder` if it has to be downloaded, and what it is then.
    pub fn fetch(&self, options: &Options, cache: &Cache, folder: &Path) -> Result<(Self, PathBuf)> {
        match self {
            Self::File { path, .. } => Ok((self.clone(), path.clone())),
            Self::Package(package) => {
                let (package, archive) = packages::download(options, cache, package, folder)?;
                let progress = Progress::start(format!("unpacking the package {PACKAGE}"), 0);
                packages::unpack(&archive, folder, &[])?;
                fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
                progress.finish("done");
                Ok((Self::Package(package), folder.join(format!("usr/src/{PACKAGE}.tar.xz"))))
            }
        }
    }
}

fn named_file() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Package(package) => write!(formatter, "{} {}", package.name, package.version),
            Self::File { path, .. } => write!(formatter, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("linux-6.12.1.tar.xz");
        fs::write(&path, "one").unwrap();
        let first = Source::file(path.clone()).unwrap();
        assert_eq!(first.to_string(), path.display().to_string());
        fs::write(&path, "two").unwrap();
        assert_ne!(first.identity(), Source::file(path).unwrap().identity());
    }

    #[test]
    fn a_file_that_is_missing_or_empty_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("linux.tar.xz");
        assert!(Source::file(path.clone()).unwrap_err().to_string().contains(VARIABLE));
        fs::write(&path, "").unwrap();
        assert!(Source::file(path).unwrap_err().to_string().contains("is empty"));
    }
}
