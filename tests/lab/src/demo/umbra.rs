//! Builds the `umbra` program from this checkout.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::options::Options;
use crate::process::start_in_foreground;
use crate::workspace;

/// The part of cargo's messages that matters here.
#[derive(Debug, Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

/// Builds `umbra` with optimisation and returns where it is.
pub fn build(options: &Options) -> Result<PathBuf> {
    let mut command = workspace::cargo();
    command.args(["build", "--release", "--package", "umbra", "--message-format=json-render-diagnostics"]);
    if !options.verbose {
        command.arg("--quiet");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    eprintln!("lab: building umbra ...");
    let output = start_in_foreground(&mut command)
        .and_then(|child| child.wait_with_output())
        .context("cannot run cargo to build umbra")?;
    ensure!(output.status.success(), "cannot build umbra: cargo failed ({})", output.status);
    executable(&String::from_utf8_lossy(&output.stdout)).context("cargo did not say where it put the umbra program")
}

/// Finds the program in cargo's messages, of which each is a line.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| message.target.as_ref().is_some_and(|target| target.name == "umbra"))
        .find_map(|message| message.executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_is_found_in_cargos_messages() {
        let messages = r#"
{"reason":"compiler-artifact","target":{"name":"anyhow","kind":["lib"]},"executable":null}
{"reason":"compiler-artifact","target":{"name":"other","kind":["bin"]},"executable":"/t/release/other"}
{"reason":"compiler-artifact","target":{"name":"umbra","kind":["lib"]},"executable":null}
{"reason":"compiler-artifact","target":{"name":"umbra","kind":["bin"]},"executable":"/t/release/umbra"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages), Some(PathBuf::from("/t/release/umbra")));
        assert_eq!(executable(""), None);
    }
}
