//! What the lab promises about commands inside the nested host, tried through the program itself.
//!
//! Each test starts a nested host of its own, which takes some seconds. They are skipped, and say so, where the nested
//! host's kernel is not built yet.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rustix::process::{Pid, Signal, kill_process};

const LAB: &str = env!("CARGO_BIN_EXE_lab");

const NOT_READY: &str = "the nested host is not ready; `cargo lab build` makes it so";

type Outcome = Result<(), Failed>;
type Test = (&'static str, fn() -> Outcome);

fn main() {
    let mut arguments = Arguments::from_args();
    // A nested host takes both processors of a small machine, and 6 GiB.
    arguments.test_threads.get_or_insert(1);
    let tests: [Test; 17] = [
        ("exit_status_is_the_commands", exit_status_is_the_commands),
        ("streams_arrive_whole_and_apart", streams_arrive_whole_and_apart),
        ("words_environment_and_folder_arrive", words_environment_and_folder_arrive),
        ("private_memory_is_offered", private_memory_is_offered),
        ("programs_stay_away_from_processor_0", programs_stay_away_from_processor_0),
        ("machine_s_files_cannot_be_changed", machine_s_files_cannot_be_changed),
        ("output_folder_is_kept", output_folder_is_kept),
        ("live_folder_follows_changes", live_folder_follows_changes),
        ("time_limit_ends_the_command", time_limit_ends_the_command),
        ("process_left_behind_delays_nothing", process_left_behind_delays_nothing),
        ("closed_output_ends_the_command", closed_output_ends_the_command),
        ("signals_end_qemu", signals_end_qemu),
        ("qemu_dies_with_the_lab", qemu_dies_with_the_lab),
        ("death_of_qemu_is_an_error", death_of_qemu_is_an_error),
        ("panic_is_an_error", panic_is_an_error),
        ("terminal_is_the_users", terminal_is_the_users),
        ("script_comes_from_standard_input", script_comes_from_standard_input),
    ];
    let trial = |(name, test): Test| {
        Trial::ignorable_test(name, move || {
            if is_ready() { test().map(|()| Completion::Completed) } else { Ok(Completion::ignored_with(NOT_READY)) }
        })
    };
    let trials = tests.into_iter().map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit();
}

/// Whether a nested host can start without building anything.
fn is_ready() -> bool {
    static READY: OnceLock<bool> = OnceLock::new();
    *READY.get_or_init(|| {
        Command::new(LAB).args(["build", "--check"]).output().is_ok_and(|output| output.status.success())
    })
}

/// `lab sh` with an output folder of its own and a limit that no test reaches.
fn sh(out: &Path, command: &[&str]) -> Command {
    let mut lab = Command::new(LAB);
    lab.args(["sh", "--time-limit=120", "--out"]).arg(out).arg("--").args(command);
    lab.stdin(Stdio::null());
    lab
}

fn run(command: &[&str]) -> Result<Output, Failed> {
    let out = tempfile::tempdir()?;
    Ok(sh(out.path(), command).output()?)
}

fn check(condition: bool, what: &str, output: &Output) -> Outcome {
    if condition {
        return Ok(());
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(4000)]).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    Err(format!("{what}\n{}\nstdout:\n{stdout}\nstderr:\n{stderr}", output.status).into())
}

fn exit_status_is_the_commands() -> Outcome {
    for (command, status) in
        [(&["sh", "-c", "exit 42"][..], 42), (&["sh", "-c", "kill -9 $$"], 137), (&["no-such"], 127)]
    {
        let output = run(command)?;
        check(output.status.code() == Some(status), &format!("{command:?} should end with {status}"), &output)?;
    }
    Ok(())
}

fn streams_arrive_whole_and_apart() -> Outcome {
    // 20 MB, and a last line without a line break.
    let output = run(&["sh", "-c", "seq 1 2500000; printf '%s\\n%s' warning last >&2"])?;
    let expected: String = (1..=2_500_000).map(|number| format!("{number}\n")).collect();
    check(output.status.success(), "the command should succeed", &output)?;
    check(output.stdout == expected.as_bytes(), "standard output should be whole", &output)?;
    check(output.stderr == b"warning\nlast", "standard error should be apart", &output)
}

fn words_environment_and_folder_arrive() -> Outcome {
    let out = tempfile::Builder::new().prefix("a, b'").tempdir()?;
    let command =
        ["sh", "-c", "printf '%s|' \"$@\" \"$UMBRA_LAB\" \"$TZ\" \"$UMBRA_LAB_OUT\"; pwd", "sh", "a b", "", "$x'\""];
    let output = sh(out.path(), &command).env("TZ", "a zone").current_dir("/usr/lib").output()?;
    let folder = out.path().canonicalize()?;
    let expected = format!("a b||$x'\"|1|a zone|{}|/usr/lib\n", folder.display());
    check(output.stdout == expected.as_bytes(), &expected, &output)
}

fn private_memory_is_offered() -> Outcome {
    let output = run(&["sh", "-c", "test -r /dev/kvm -a -w /dev/kvm && zcat /proc/config.gz"])?;
    let config = String::from_utf8_lossy(&output.stdout).into_owned();
    check(config.contains("CONFIG_KVM_SW_PROTECTED_VM=y") && config.contains("CONFIG_KVM_AMD=y"), "KVM", &output)
}

fn programs_stay_away_from_processor_0() -> Outcome {
    let output = run(&["sh", "-c", "nproc; grep Cpus_allowed_list /proc/self/status"])?;
    check(output.stdout == b"2\nCpus_allowed_list:\t1-2\n", "processors 1 and 2", &output)
}

fn machine_s_files_cannot_be_changed() -> Outcome {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("file");
    fs::write(&file, "before")?;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = format!(
        "echo after >{0} && echo new >{0}.new && cat {0} && rm -r {1} && echo gone && \
         ! touch {2}/written-inside && ! mount -o remount,rw /lower",
        file.display(),
        folder.path().display(),
        workspace.display()
    );
    let output = run(&["sh", "-c", &script])?;
    check(output.status.success() && output.stdout == b"after\ngone\n", "inside, the change should be seen", &output)?;
    check(fs::read_to_string(&file)? == "before", "outside, it should not", &output)?;
    check(fs::read_dir(folder.path())?.count() == 1, "outside, there should be no new file", &output)?;
    check(!workspace.join("written-inside").exists(), "the checkout should not change", &output)
}

fn output_folder_is_kept() -> Outcome {
    let out = tempfile::tempdir()?;
    fs::write(out.path().join("input"), "hello")?;
    let script =
        "cd $UMBRA_LAB_OUT && mkdir sub && cat input >sub/output && head -c 3000000 /dev/zero >zeros && rm input";
    let output = sh(out.path(), &["sh", "-c", script]).output()?;
    check(output.status.success(), "the command should succeed", &output)?;
    check(fs::read_to_string(out.path().join("sub/output"))? == "hello", "what was written should be kept", &output)?;
    check(fs::metadata(out.path().join("zeros"))?.len() == 3_000_000, "all of it", &output)?;
    check(!out.path().join("input").exists(), "what was removed should be gone", &output)
}

/// A program that is built again outside runs in its new form inside.
fn live_folder_follows_changes() -> Outcome {
    let out = tempfile::tempdir()?;
    // Cargo's own folder for a test's files lies in its target folder.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let program = folder.path().join("program");
    let install = |text: &str| -> std::io::Result<()> {
        let next = folder.path().join("next");
        fs::copy("/bin/sh", &next)?;
        // What a linker does: a new file in the place of the old one, with another content.
        fs::OpenOptions::new().append(true).open(&next)?.write_all(text.as_bytes())?;
        fs::rename(&next, &program)
    };
    install("first")?;
    let script = format!(
        "cd $UMBRA_LAB_OUT; p={0}; $p -c 'echo runs'; tail -c 5 $p; echo; touch ready; \
         while [ ! -e go ]; do sleep 0.1; done; $p -c 'echo runs'; tail -c 6 $p",
        program.display()
    );
    let lab = sh(out.path(), &["sh", "-c", &script]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    wait_until("the command inside is ready", || out.path().join("ready").exists())?;
    install("second")?;
    fs::write(out.path().join("go"), "")?;
    let output = lab.wait_with_output()?;
    check(output.stdout == b"runs\nfirst\nruns\nsecond", "the second run should be of the new program", &output)
}

fn time_limit_ends_the_command() -> Outcome {
    let out = tempfile::tempdir()?;
    // Long enough for a busy machine to start one, and far shorter than what it runs.
    let started = Instant::now();
    let output = Command::new(LAB)
        .args(["sh", "--time-limit=25", "--out"])
        .arg(out.path())
        .args(["--", "sh", "-c", "echo started; sleep 600"])
        .stdin(Stdio::null())
        .output()?;
    let elapsed = started.elapsed();
    check(output.status.code() == Some(124), "the status should be timeout's", &output)?;
    check(output.stdout == b"started\n", "what was printed before should arrive", &output)?;
    check(String::from_utf8_lossy(&output.stderr).contains("time limit of 25 s"), "it should say so", &output)?;
    check(elapsed < Duration::from_secs(300), &format!("it should take 25 s, not {elapsed:?}"), &output)
}

fn process_left_behind_delays_nothing() -> Outcome {
    let started = Instant::now();
    let output = run(&["sh", "-c", "sleep 600 & setsid sleep 600 & echo done"])?;
    check(output.status.success() && output.stdout == b"done\n", "the command should succeed", &output)?;
    check(started.elapsed() < Duration::from_secs(300), "the lab should not wait for the rest", &output)
}

fn closed_output_ends_the_command() -> Outcome {
    let out = tempfile::tempdir()?;
    let mut lab = sh(out.path(), &["yes"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdout = lab.stdout.take().ok_or("no output")?;
    stdout.read_exact(&mut [0; 10])?;
    drop(stdout);
    let output = lab.wait_with_output()?;
    check(output.status.code() == Some(141), "the status should be that of SIGPIPE", &output)
}

fn signals_end_qemu() -> Outcome {
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let out = tempfile::tempdir()?;
        let (mut lab, qemu, folder) = start_and_find_qemu(out.path())?;
        kill_process(Pid::from_child(&lab), signal)?;
        let ended = lab.wait()?;
        if ended.code() != Some(status) {
            return Err(format!("{signal:?} should end the lab with {status}: {ended}").into());
        }
        wait_until("QEMU is gone", || !is_running(qemu))?;
        if folder.exists() {
            return Err(format!("{} should be removed", folder.display()).into());
        }
    }
    Ok(())
}

fn qemu_dies_with_the_lab() -> Outcome {
    let out = tempfile::tempdir()?;
    let (mut lab, qemu, folder) = start_and_find_qemu(out.path())?;
    lab.kill()?;
    let ended = lab.wait()?;
    let result = wait_until("QEMU is gone", || !is_running(qemu));
    fs::remove_dir_all(folder)?; // SIGKILL leaves no chance to do so
    if ended.signal() != Some(9) {
        return Err(format!("the lab should be killed: {ended}").into());
    }
    result
}

fn death_of_qemu_is_an_error() -> Outcome {
    let out = tempfile::tempdir()?;
    let (lab, qemu, folder) = start_and_find_qemu(out.path())?;
    kill_process(Pid::from_raw(qemu).ok_or("no process")?, Signal::KILL)?;
    let output = lab.wait_with_output()?;
    check(output.status.code() == Some(1), "the lab should fail", &output)?;
    check(String::from_utf8_lossy(&output.stderr).contains("ended before the command did"), "and say why", &output)?;
    check(!folder.exists(), "its folder should be removed", &output)
}

fn panic_is_an_error() -> Outcome {
    let output = run(&["sh", "-c", "echo before; sleep 0.2; echo c >/proc/sysrq-trigger; sleep 600"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    check(output.status.code() == Some(1), "the lab should fail", &output)?;
    check(output.stdout == b"before\n", "what was printed before should arrive", &output)?;
    check(said.contains("ended before the command did") && said.contains("Kernel panic"), "and show why", &output)
}

fn terminal_is_the_users() -> Outcome {
    let out = tempfile::tempdir()?;
    // script(1) runs it on a terminal of its own.
    let lab = format!("{LAB} sh --time-limit=120 --out {} -t -- sh -c 'tty; stty size; exit 6'", out.path().display());
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &format!("stty rows 33 cols 77; {lab}"), "/dev/null"])
        .stdin(Stdio::null())
        .output()?;
    check(output.status.code() == Some(6), "the status should be the command's", &output)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    check(said.contains("/dev/hvc0") && said.contains("33 77"), "there should be a terminal of that size", &output)
}

fn script_comes_from_standard_input() -> Outcome {
    let out = tempfile::tempdir()?;
    let mut lab = Command::new(LAB)
        .args(["sh", "--time-limit=120", "--out"])
        .arg(out.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    lab.stdin.take().ok_or("no input")?.write_all(b"hostname\nread nothing || echo no input\nexit 9\n")?;
    let output = lab.wait_with_output()?;
    check(output.stdout == b"nested-host\nno input\n", "the script should run, without input", &output)?;
    check(output.status.code() == Some(9), "the status should be the script's", &output)
}

/// Starts a command that runs for long, and waits until it does. Returns also QEMU's process and the run's folder.
fn start_and_find_qemu(out: &Path) -> Result<(Child, i32, PathBuf), Failed> {
    let script = "touch $UMBRA_LAB_OUT/ready; sleep 600";
    let lab = sh(out, &["sh", "-c", script]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    wait_until("the command inside runs", || out.join("ready").exists())?;
    let children = format!("/proc/{0}/task/{0}/children", lab.id());
    let children = fs::read_to_string(children)?;
    let qemu: i32 = children.trim().parse()?;
    let line = fs::read(format!("/proc/{qemu}/cmdline"))?;
    let console = line
        .split(|byte| *byte == 0)
        .find_map(|argument| std::str::from_utf8(argument).ok()?.strip_prefix("file:"))
        .ok_or("QEMU has no console")?;
    let folder = Path::new(console).parent().ok_or("the console is in no folder")?.to_path_buf();
    Ok((lab, qemu, folder))
}

fn is_running(process: i32) -> bool {
    // A zombie that nobody has reaped yet does not run.
    fs::read_to_string(format!("/proc/{process}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X'])))
}

fn wait_until(what: &str, condition: impl Fn() -> bool) -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        if Instant::now() > deadline {
            return Err(format!("after a minute, it is not so that {what}").into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
