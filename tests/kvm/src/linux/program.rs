//! Programs that were built for this machine, for the guest to run: with the libraries that they are linked to, and the
//! loader, at the same places.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

/// The libraries that a program needs, and the loader.
///
/// # Errors
/// A program that `ldd` makes nothing of.
pub fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).stdin(Stdio::null()).output().context("cannot run ldd")?;
    ensure!(
        output.status.success(),
        "ldd can't read {}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// The paths in what `ldd` prints: a line for each library, `name => path (address)` or `path (address)`. One without a
/// path is the kernel's.
fn parse(text: &str) -> Vec<PathBuf> {
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    text.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_what_ldd_says() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f00)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f01)\n";
        assert_eq!(parse(text), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from));
    }

    #[test]
    fn this_program_has_libraries_and_a_text_has_none() {
        let own = std::env::current_exe().unwrap();
        assert!(libraries(&own).unwrap().iter().any(|path| path.to_string_lossy().contains("libc.so")));
        assert!(libraries(Path::new("/etc/passwd")).is_err());
    }
}
