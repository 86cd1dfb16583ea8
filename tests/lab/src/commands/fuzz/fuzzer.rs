//! Runs a target's program, which is libFuzzer, and reads what it says.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::Family;
use crate::progress::Progress;

/// How long one input may take, in seconds.
const INPUT_LIMIT: u64 = 20;
/// How often the program is looked after.
const TICK: Duration = Duration::from_millis(100);
/// How many of the program's last lines are kept, and how much of an input is shown.
const KEPT_LINES: usize = 60;
const SHOWN_INPUT: u64 = 4096;

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every input passed.
    NothingFound,
    /// An input failed.
    Found,
    /// The target did not run to its end.
    NotRun,
}

/// One target, ready to run.
#[derive(Debug)]
pub struct Fuzzer {
    /// Its program.
    pub program: PathBuf,
    /// Its name.
    pub target: String,
    /// The folder with the seeds, the crashes and the corpus of all targets.
    pub folder: PathBuf,
    /// Whether to show all that it says.
    pub verbose: bool,
}

/// What the program has said.
#[derive(Debug, Default)]
struct Said {
    lines: VecDeque<String>,
    inputs: u64,
    failed: Option<PathBuf>,
}

impl Fuzzer {
    /// Runs for so many seconds.
    pub fn run(&self, seconds: u64) -> Result<Outcome> {
        let [corpus, seeds, crashes] =
            ["corpus", "seeds", "crashes"].map(|kind| self.folder.join(kind).join(&self.target));
        for folder in [&corpus, &crashes] {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let mut command = self.command();
        command.arg(format!("-artifact_prefix={}/", crashes.display()));
        command.args([
            format!("-max_total_time={seconds}"),
            format!("-timeout={INPUT_LIMIT}"),
            // Slow inputs would be kept beside those that fail.
            format!("-report_slow_units={INPUT_LIMIT}"),
            "-print_final_stats=1".to_owned(),
        ]);
        // The first folder gets what is new.
        command.arg(&corpus).args([&seeds, &crashes].into_iter().filter(|folder| folder.is_dir()));
        let (status, said) = self.watch(&mut command, &format!("fuzzing {}", self.target), seconds)?;
        if status.success() {
            println!("lab: nothing found in {} inputs", said.inputs);
            return Ok(Outcome::NothingFound);
        }
        let Some(input) = &said.failed else { bail!("{} {}", self.target, self.ended(status, &said)) };
        self.report(input, &said);
        Ok(Outcome::Found)
    }

    /// Runs one input.
    pub fn replay(&self, input: &Path) -> Result<Outcome> {
        let mut command = self.command();
        command.arg(format!("-timeout={INPUT_LIMIT}")).arg(input);
        let (status, said) = self.watch(&mut command, &format!("running {}", input.display()), 0)?;
        if status.success() {
            println!("lab: {} passes", input.display());
            return Ok(Outcome::NothingFound);
        }
        self.report(input, &said);
        Ok(Outcome::Found)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // An input that fails leaves nothing else behind than itself.
        command.current_dir(&self.folder).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Runs the program to its end, with progress for so many seconds.
    fn watch(&self, command: &mut Command, label: &str, seconds: u64) -> Result<(ExitStatus, Said)> {
        let started = Instant::now();
        let said = Mutex::new(Said::default());
        let name = &self.target;
        let mut family = Family::start(command.stderr(Stdio::piped()), Vec::new())
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let output = family.child().stderr.take().context("the fuzz target has no output")?;
        let mut progress = Progress::start(label, seconds);
        let status = std::thread::scope(|scope| {
            let reader = scope.spawn(|| self.listen(output, &said));
            let status = loop {
                if let Some(status) = family.try_wait().with_context(|| format!("cannot wait for {name}"))? {
                    break status;
                }
                progress.update(started.elapsed().as_secs());
                std::thread::sleep(TICK);
            };
            match reader.join() {
                Ok(read) => read.with_context(|| format!("cannot read what {name} says"))?,
                Err(_) => bail!("reading what {name} says panicked"),
            }
            Ok(status)
        })?;
        progress.finish(if status.success() { "done" } else { "an input failed" });
        Ok((status, said.into_inner().unwrap_or_else(PoisonError::into_inner)))
    }

    fn listen(&self, output: impl Read, said: &Mutex<Said>) -> std::io::Result<()> {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line)? > 0 {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if self.verbose {
                eprintln!("{text}");
            }
            said.lock().unwrap_or_else(PoisonError::into_inner).add(text);
            line.clear();
        }
        Ok(())
    }

    /// Says how an input fails and how to run it again.
    fn report(&self, input: &Path, said: &Said) {
        if !self.verbose {
            said.lines.iter().for_each(|line| eprintln!("{line}"));
        }
        if let Some(text) = self.describe(input) {
            println!("\nlab: the input is\n{text}");
        }
        println!("\nlab: this input fails: {}", input.display());
        println!("lab: to run it again: cargo lab fuzz {} --replay '{}'", self.target, input.display());
    }

    /// The input as the target reads it.
    fn describe(&self, input: &Path) -> Option<String> {
        let file = tempfile::NamedTempFile::with_prefix("umbra-lab-input-").ok()?;
        let mut command = self.command();
        command.env("RUST_LIBFUZZER_DEBUG_PATH", file.path()).arg(input).stderr(Stdio::null());
        Family::start(&mut command, Vec::new()).ok()?.wait().ok()?;
        let mut text = Vec::new();
        File::open(file.path()).ok()?.take(SHOWN_INPUT).read_to_end(&mut text).ok()?;
        let cut = if text.len() as u64 == SHOWN_INPUT { " ..." } else { "" };
        let text = String::from_utf8_lossy(&text).trim_end().to_owned();
        (!text.is_empty()).then(|| text + cut)
    }

    fn ended(&self, status: ExitStatus, said: &Said) -> String {
        let lines: Vec<&str> = said.lines.iter().map(String::as_str).collect();
        format!("ended without having named an input ({status}); the last it said:\n{}", lines.join("\n"))
    }
}

impl Said {
    fn add(&mut self, line: String) {
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.failed = Some(path.into());
        }
        if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
            self.inputs = count.trim().parse().unwrap_or_default();
        }
        // Its own progress says nothing about a failure.
        if !line.starts_with('#') && !line.is_empty() {
            self.lines.push_back(line);
        }
        if self.lines.len() > KEPT_LINES {
            self.lines.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// A "libFuzzer" that does what the script says, in a folder of its own.
    fn fuzzer(script: &str) -> (TempDir, Fuzzer) {
        let folder = tempfile::tempdir().unwrap();
        let [source, program] = ["source", "program"].map(|name| folder.path().join(name));
        fs::write(&source, format!("#!/bin/sh\n{script}")).unwrap();
        // Copied by another process: a program that this one has open for writing can't be run, and what other threads
        // start may keep it open.
        assert!(Command::new("install").args(["-m", "755"]).args([&source, &program]).status().unwrap().success());
        let fuzzer =
            Fuzzer { program, target: "some_target".into(), folder: folder.path().to_path_buf(), verbose: false };
        (folder, fuzzer)
    }

    #[test]
    fn a_run_gets_the_corpus_first_then_the_seeds_and_the_crashes() {
        let (folder, fuzzer) = fuzzer("echo \"$@\" >arguments; echo stat::number_of_executed_units: 77 >&2");
        fs::create_dir_all(folder.path().join("seeds/some_target")).unwrap();
        assert_eq!(fuzzer.run(5).unwrap(), Outcome::NothingFound);
        let arguments = fs::read_to_string(folder.path().join("arguments")).unwrap();
        let root = folder.path().display();
        assert!(arguments.contains("-max_total_time=5 "), "{arguments}");
        assert!(arguments.contains(&format!("-artifact_prefix={root}/crashes/some_target/ ")), "{arguments}");
        let folders = format!("{root}/corpus/some_target {root}/seeds/some_target {root}/crashes/some_target");
        assert!(arguments.trim_end().ends_with(&folders), "{arguments}");
    }

    #[test]
    fn an_input_that_fails_is_found() {
        let script =
            "echo \"artifact_prefix='x/'; Test unit written to $PWD/crashes/some_target/crash-1\" >&2; exit 77";
        let (_folder, fuzzer) = fuzzer(script);
        assert_eq!(fuzzer.run(5).unwrap(), Outcome::Found);
    }

    #[test]
    fn a_target_that_dies_without_an_input_is_an_error() {
        let (_folder, fuzzer) = fuzzer("echo no memory >&2; kill -9 $$");
        let error = fuzzer.run(5).unwrap_err().to_string();
        assert!(error.contains("signal: 9") && error.ends_with("no memory"), "{error}");
    }

    #[test]
    fn one_input_is_run_again() {
        let (folder, fuzzer) = fuzzer("for input; do :; done; grep -q good \"$input\"");
        for (text, outcome) in [("good", Outcome::NothingFound), ("bad", Outcome::Found)] {
            let input = folder.path().join(text);
            fs::write(&input, text).unwrap();
            assert_eq!(fuzzer.replay(&input).unwrap(), outcome);
        }
    }

    #[test]
    fn an_input_is_shown_as_the_target_reads_it_but_not_without_end() {
        let (folder, fuzzer) = fuzzer("head -c $(cat \"$1\") /dev/zero | tr '\\0' x >\"$RUST_LIBFUZZER_DEBUG_PATH\"");
        let input = folder.path().join("input");
        for (size, shown) in [("0", None), ("3", Some("xxx".to_owned())), ("9999", Some("x".repeat(4096) + " ..."))] {
            fs::write(&input, size).unwrap();
            assert_eq!(fuzzer.describe(&input), shown);
        }
    }

    #[test]
    fn only_the_last_lines_are_kept_and_none_of_its_progress() {
        let mut said = Said::default();
        for number in 0..200 {
            said.add(format!("line {number}"));
            said.add(format!("#{number} pulse"));
        }
        assert_eq!(said.lines.len(), KEPT_LINES);
        assert_eq!(said.lines.back().map(String::as_str), Some("line 199"));
    }
}
