//! Folders that change while a nested host runs: the checkout and cargo's target folder.
//!
//! The nested host's root is an overlay, which caches what it has looked up: a program that was built again outside would
//! be run as a mixture of old and new. These folders are laid over it straight from the 9p share, which follows changes.
//! They can't be written inside.

use std::path::{Path, PathBuf};

/// The folders that there are, outer ones first.
pub fn folders() -> Vec<PathBuf> {
    let program = std::env::current_exe().ok();
    let candidates = [
        Some(crate::workspace::root()),
        std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from),
        program.as_deref().and_then(target_folder).map(Path::to_path_buf),
    ];
    let folders = candidates.into_iter().flatten().filter_map(|folder| folder.canonicalize().ok());
    outermost(folders.filter(|folder| folder.is_dir() && folder.parent().is_some()).collect())
}

/// Cargo marks its target folder as a cache.
fn target_folder(program: &Path) -> Option<&Path> {
    program.ancestors().skip(1).find(|folder| folder.join("CACHEDIR.TAG").is_file())
}

/// Without duplicates and without folders that lie in another.
fn outermost(mut folders: Vec<PathBuf>) -> Vec<PathBuf> {
    folders.sort();
    let mut kept: Vec<PathBuf> = Vec::new();
    for folder in folders {
        if !kept.iter().any(|outer| folder.starts_with(outer)) {
            kept.push(folder);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_another_is_not_needed() {
        let folders =
            ["/w/umbra/target", "/w/umbra", "/tmp/target", "/w/umbra", "/w/umbra2"].map(PathBuf::from).to_vec();
        assert_eq!(outermost(folders), ["/tmp/target", "/w/umbra", "/w/umbra2"].map(PathBuf::from));
    }

    #[test]
    fn the_checkout_is_among_them() {
        let root = crate::workspace::root().canonicalize().unwrap();
        assert!(folders().iter().any(|folder| root.starts_with(folder)), "{:?}", folders());
    }
}
