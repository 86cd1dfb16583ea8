//! What a nested host is told: its settings and the command, as shell scripts in a folder that only this run has.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{Job, Terminal};
use crate::quote::{is_variable_name, quote};

/// Variables that a command inside gets from this machine, when they are set.
const INHERITED: [&str; 11] =
    ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TERM", "COLORTERM", "NO_COLOR", "RUST_BACKTRACE", "RUST_LOG", "TZ"];

/// How a job's input and output are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Two streams.
    Separate,
    /// One stream, as both go to the same place outside: this keeps their order.
    Merged,
    /// A terminal of so many rows and columns.
    Terminal {
        /// Its height.
        rows: u16,
        /// Its width.
        columns: u16,
    },
}

/// The settings that the nested host's init reads.
pub fn settings(job: &Job, connection: Connection, live: &[PathBuf], mark: &str) -> Result<Vec<u8>> {
    ensure!(job.out.parent().is_some(), "the output folder cannot be /: name a folder for the job alone");
    let (terminal, rows, columns) = match connection {
        Connection::Separate => ("separate", 0, 0),
        Connection::Merged => ("merged", 0, 0),
        Connection::Terminal { rows, columns } => ("interactive", rows, columns),
    };
    let mut text = format!("terminal={terminal}\nrows={rows}\ncolumns={columns}\nmark={mark}\n").into_bytes();
    text.extend_from_slice(b"out=");
    text.extend(quote(job.out.as_os_str())?);
    text.extend_from_slice(b"\nset --");
    for folder in live {
        text.push(b' ');
        text.extend(quote(folder.as_os_str())?);
    }
    text.push(b'\n');
    Ok(text)
}

/// The script that becomes the job's command, in `folder`.
pub fn command(job: &Job, folder: &Path, environment: impl Fn(&str) -> Option<OsString>) -> Result<Vec<u8>> {
    ensure!(!job.argv.is_empty(), "there is no command to run");
    let mut text = Vec::new();
    let mut export = |name: &OsStr, value: &OsStr| -> Result<()> {
        ensure!(is_variable_name(name), "{name:?} is not a name that a shell's variable can have");
        text.extend_from_slice(b"export ");
        text.extend_from_slice(name.as_encoded_bytes());
        text.push(b'=');
        text.extend(quote(value)?);
        text.push(b'\n');
        Ok(())
    };
    for name in INHERITED {
        if let Some(value) = environment(name) {
            export(OsStr::new(name), &value)?;
        }
    }
    export(OsStr::new("UMBRA_LAB"), OsStr::new("1"))?;
    export(OsStr::new("UMBRA_LAB_OUT"), job.out.as_os_str())?;
    for (name, value) in &job.env {
        export(name, value)?;
    }
    text.extend_from_slice(b"cd ");
    text.extend(quote(folder.as_os_str())?);
    text.extend_from_slice(b" || exit 126\nexec");
    for word in &job.argv {
        text.push(b' ');
        text.extend(quote(word)?);
    }
    text.push(b'\n');
    Ok(text)
}

/// How a job of this kind is connected, given this process's own input and output.
pub fn connection(terminal: Terminal) -> Result<Connection> {
    match terminal {
        Terminal::Stream => {
            let (out, err) = (rustix::fs::fstat(std::io::stdout()), rustix::fs::fstat(std::io::stderr()));
            Ok(match (out, err) {
                (Ok(out), Ok(err)) if (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino) => Connection::Merged,
                _ => Connection::Separate,
            })
        }
        Terminal::Interactive => {
            let size = rustix::termios::tcgetwinsize(std::io::stdin())
                .context("standard input is not a terminal, which an interactive command needs")?;
            Ok(match (size.ws_row, size.ws_col) {
                (0, _) | (_, 0) => Connection::Terminal { rows: 24, columns: 80 },
                (rows, columns) => Connection::Terminal { rows, columns },
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::Duration;

    fn job(argv: &[&str]) -> Job {
        Job {
            argv: argv.iter().map(OsString::from).collect(),
            env: vec![("A".into(), "it's $HOME".into())],
            out: PathBuf::from("/tmp/out folder's"),
            time_limit: Duration::from_secs(1),
            terminal: Terminal::Stream,
        }
    }

    fn run(script: &[u8], rest: &str) -> std::process::Output {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script");
        std::fs::write(&path, [script, rest.as_bytes()].concat()).unwrap();
        Command::new("sh").arg(path).output().unwrap()
    }

    #[test]
    fn the_command_arrives_word_by_word() {
        let job = job(&["printf", "%s|", "a b", "", "$(id)", "'"]);
        let script = command(&job, Path::new("/"), |name| std::env::var_os(name)).unwrap();
        let output = run(&script, "");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "a b||$(id)|'|");
    }

    #[test]
    fn the_environment_arrives_and_nothing_unasked() {
        let job = job(&["sh", "-c", "printf '%s|%s|%s|' \"$A\" \"$UMBRA_LAB_OUT\" \"$UMBRA_LAB\"; pwd"]);
        let script = command(&job, Path::new("/usr"), |name| (name == "PATH").then(|| "/usr/bin:/bin".into())).unwrap();
        assert!(!String::from_utf8_lossy(&script).contains("RUST_LOG"));
        let output = run(&script, "");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "it's $HOME|/tmp/out folder's|1|/usr\n");
    }

    #[test]
    fn a_missing_program_or_folder_has_the_shell_s_status() {
        let script = command(&job(&["/nonexistent/program"]), Path::new("/"), |_| None).unwrap();
        assert_eq!(run(&script, "").status.code(), Some(127));
        let script = command(&job(&["true"]), Path::new("/nonexistent"), |_| None).unwrap();
        assert_eq!(run(&script, "").status.code(), Some(126));
    }

    #[test]
    fn what_cannot_be_passed_is_refused() {
        assert!(command(&job(&[]), Path::new("/"), |_| None).is_err());
        assert!(command(&job(&["a\0b"]), Path::new("/"), |_| None).is_err());
        let mut bad = job(&["true"]);
        bad.env.push(("A=B".into(), "c".into()));
        assert!(command(&bad, Path::new("/"), |_| None).is_err());
        bad = job(&["true"]);
        bad.out = PathBuf::from("/");
        assert!(settings(&bad, Connection::Merged, &[], "m").is_err());
    }

    #[test]
    fn the_settings_are_a_shell_s() {
        let live = [PathBuf::from("/a b"), PathBuf::from("/it's")];
        let text = settings(&job(&["true"]), Connection::Terminal { rows: 50, columns: 132 }, &live, "abc").unwrap();
        let output = run(&text, "printf '%s|' \"$terminal\" $rows $columns \"$mark\" \"$out\" \"$#\" \"$1\" \"$2\"");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "interactive|50|132|abc|/tmp/out folder's|2|/a b|/it's|");
    }
}
