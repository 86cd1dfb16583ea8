//! Completions and manual pages, from the command line's own definition.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_mangen::roff::{Roff, roman};

/// Write completions for a shell to standard output.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  umbra completions bash > /etc/bash_completion.d/umbra")]
pub struct Completions {
    /// The shell.
    shell: clap_complete::Shell,
}

/// Write the manual pages to a folder: umbra.1, and one for each command.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  umbra manual /usr/local/share/man/man1")]
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

/// Help's paragraphs, each a line that ends with a colon and what belongs to it, as sections that are laid out as they stand.
fn sections(help: &str) -> Roff {
    let mut roff = Roff::new();
    for paragraph in help.split("\n\n") {
        let Some((heading, body)) = paragraph.split_once(":\n") else { continue };
        roff.control("SH", [heading.to_uppercase().as_str()]).control("nf", []);
        for line in body.lines() {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
    }
    roff
}

fn page(command: &Command, name: &str, folder: &Path) -> anyhow::Result<()> {
    let mut text = Vec::new();
    // What follows the options in help are sections here.
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    clap_mangen::Man::new(command.clone().after_help(None)).title(name.to_owned()).render(&mut text)?;
    sections(&help).to_writer(&mut text)?;
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
        for (name, words) in [
            ("umbra", &[".SH \"EXIT STATUS\"\n.nf\n  0  ", "UMBRA_LOG", "UMBRA_SOCKET"][..]),
            (
                "umbra-run",
                &[".SH \"EXIT STATUS\"\n.nf\n  0  the guest powered off", "\n  1  ", "\n  2  ", ".SH EXAMPLES"],
            ),
            ("umbra-check", &[".SH \"EXIT STATUS\"\n.nf\n  0  "]),
            ("umbra-ctl", &[".SH \"EXIT STATUS\"\n.nf\n  0  ", ".SH ENVIRONMENT\n.nf\n  UMBRA_SOCKET"]),
            ("umbra-ctl-info", &["\\fBUMBRA_SOCKET\\fR environment variable", ".SH \"GLOBAL OPTIONS\""]),
        ] {
            let text = std::fs::read_to_string(folder.join(format!("{name}.1"))).unwrap();
            for word in words {
                assert!(text.contains(word), "{word:?} is not in {name}: {text}");
            }
        }
        // A page is no folder.
        assert!(manual(&Manual { folder: folder.join("umbra.1") }).is_err());
    }
}
