//! Completions and manual pages, from the command line's own definition.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Command, CommandFactory};

/// Write completions for a shell to standard output.
#[derive(clap::Args)]
#[command(after_help = "Example: umbra completions bash > /etc/bash_completion.d/umbra")]
pub struct Completions {
    /// The shell.
    shell: clap_complete::Shell,
}

/// Write the manual pages to a folder: umbra.1, and one for each command.
#[derive(clap::Args)]
#[command(after_help = "Example: umbra manual /usr/local/share/man/man1")]
pub struct Manual {
    /// The folder. It is made if need be.
    folder: PathBuf,
}

pub fn completions(args: &Completions) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "umbra", &mut text);
    std::io::stdout().write_all(&text).context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

pub fn manual(args: &Manual) -> anyhow::Result<ExitCode> {
    let mut command = crate::Cli::command();
    command.build();
    let folder = &args.folder;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    page(&command, "umbra", &args.folder)?;
    Ok(ExitCode::SUCCESS)
}

fn page(command: &Command, name: &str, folder: &Path) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name.to_owned()).render(&mut text)?;
    let path = folder.join(format!("{name}.1"));
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    let commands = command.get_subcommands().filter(|command| command.get_name() != "help");
    for command in commands {
        page(command, &format!("{name}-{}", command.get_name()), folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_page_for_each_command() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("man/man1");
        manual(&Manual { folder: folder.clone() }).unwrap();
        for name in ["umbra", "umbra-run", "umbra-ctl", "umbra-ctl-memory-map"] {
            let text = std::fs::read_to_string(folder.join(format!("{name}.1"))).unwrap();
            assert!(text.contains(".SH NAME"), "{name}");
        }
        // A page is no folder.
        assert!(manual(&Manual { folder: folder.join("umbra.1") }).is_err());
    }
}
