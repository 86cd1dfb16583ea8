//! The steps of a demonstration against programs that only act as umbra does.

use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;

/// What every acting umbra begins with: `$events` is the event monitor's file, `$seed` the seed.
const BEGINNING: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
        --event-monitor) events=${2#path=} ;;
        --cmdline) seed=${2##*umbra.seed=} ;;
    esac
    shift
done
stats() {
    printf '{"timestamp":{"secs":1,"nanos":2},"source":"memory","event":"stats","properties":{"ram_bytes":%d,
        "private_bytes":90,"shared_bytes":10,"conversions_explicit":5,"conversions_implicit":6,
        "conversions_failed":0}}\n\n' "$1" >>"$events"
}
trap 'stats 100' USR1
say() { printf '%s\r\n' "$1"; }
printf '{"timestamp":{"secs":0,"nanos":2},"source":"vm","event":"booted","properties":null}\n\n' >>"$events"
stats 1 # not what was asked for
"#;

/// An umbra that does all it should.
const WHOLE: &str = r#"
say "kernel messages"
sleep 0.2
say "umbra-demo: init"
say "umbra-demo: canary fills 1048576 bytes"
printf 'guest:/# '
# `read` ends when the signal arrives.
until read -r typed; do :; done
[ "$typed" = exit ] || exit 9
say "umbra-demo: shell has ended"
echo farewell >&2
exit 0
"#;

fn plan(directory: &TempDir, script: &str) -> Plan {
    let umbra = directory.path().join("umbra");
    std::fs::write(&umbra, format!("{BEGINNING}{script}")).unwrap();
    std::fs::set_permissions(&umbra, std::fs::Permissions::from_mode(0o755)).unwrap();
    Plan {
        umbra,
        kernel: "/kernel".into(),
        initramfs: "/initramfs".into(),
        memory: "512M".to_owned(),
        folder: directory.path().to_owned(),
        show_console: false,
    }
}

/// The limit of a step that is to be reached.
const SHORT: Duration = Duration::from_secs(1);

fn limits() -> Limits {
    let long = Duration::from_secs(60);
    Limits { boot: long, canary: long, statistics: long, search: long, power_off: long }
}

/// The real search is tested where it lives.
fn searcher(script: &str) -> Searcher {
    Searcher(["sh", "-c", script, "search"].map(OsString::from).to_vec())
}

const FOUND: &str = r#"[ "$1" = --pid ] && kill -0 "$2" && [ "$3" = --seed ] && [ ${#4} = 32 ] || exit 1
    echo '{"canary_hits":7,"seed_hits":1,"bytes":50,"mappings":1,"files":0,"refused_files":[],"places":[],
    "unread":[],"streams":[]}'"#;

fn demonstrate(script: &str, search: &str, limits: Limits) -> Result<VmFigures> {
    let directory = tempfile::tempdir().unwrap();
    plan(&directory, script).demonstrate(Isolation::Software, &limits, &searcher(search))
}

fn failure(script: &str, search: &str, limits: Limits) -> String {
    format!("{:#}", demonstrate(script, search, limits).unwrap_err())
}

#[test]
fn figures_come_from_the_guest_the_events_and_the_search() {
    let figures = demonstrate(WHOLE, FOUND, limits()).unwrap();
    assert_eq!((figures.memory.ram_bytes, figures.memory.conversions_implicit), (100, 6));
    assert!((200..60_000).contains(&figures.time_to_init_ms), "{figures:?}");
    assert!(figures.vmm_rss_bytes > 10_000, "{figures:?}");
    assert_eq!(figures.search.canary_hits, 7);
}

#[test]
fn command_line_is_as_agreed() {
    let directory = tempfile::tempdir().unwrap();
    let plan = plan(&directory, "");
    let words = |isolation| {
        let command = plan.command(isolation, "5eed");
        command.get_args().map(|word| word.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let software = [
        "run",
        "--kernel",
        "/kernel",
        "--initramfs",
        "/initramfs",
        "--cmdline",
        "console=ttyS0 quiet panic=-1 umbra.seed=5eed",
        "--memory",
        "size=512M,unmappable=on",
        "--cpus",
        "boot=1",
        "--serial",
        "tty",
        "--platform",
        "isolation=software",
    ];
    assert_eq!(words(Isolation::Software), software);
    let none = words(Isolation::None);
    assert_eq!(none[8], "size=512M,unmappable=off");
    assert_eq!(none[14], "isolation=none");
}

#[test]
fn guest_that_does_not_boot_is_shown() {
    let error =
        failure("say 'Kernel panic'; echo 'a warning' >&2; sleep 60", FOUND, Limits { boot: SHORT, ..limits() });
    assert!(
        error.starts_with("with isolation=software: the guest did not say \"umbra-demo: init\" within 1 s"),
        "{error}"
    );
    assert!(error.contains("console ---\nKernel panic\n") && error.contains("error ---\na warning\n"), "{error}");
}

#[test]
fn a_guest_that_is_reset_is_not_waited_for_and_a_crash_is_told() {
    let reset = |properties: &str| {
        let event = format!(r#"{{"source":"vm","event":"rebooting","properties":{properties}}}"#);
        demonstrate(&format!("echo '{event}' >>\"$events\"; sleep 60"), FOUND, limits()).unwrap_err()
    };
    let crash = reset(r#"{"cause":"triple-fault"}"#).to_string();
    assert!(crash.starts_with("with isolation=software: its guest crashed"), "{crash}");
    let asked = reset("null").to_string();
    assert!(asked.starts_with("with isolation=software: its guest reset itself"), "{asked}");
    let stall = "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:";
    let stalled = failure(&format!("say '{stall}'; sleep 60"), FOUND, Limits { boot: SHORT, ..limits() });
    assert!(stalled.starts_with("its guest's kernel missed one of its processors: with isolation"), "{stalled}");
}

#[test]
fn umbra_that_fails_is_shown() {
    let error = failure("echo 'umbra: no /dev/kvm' >&2; exit 1", FOUND, limits());
    assert!(
        error.contains("umbra ended (exit status: 1) before") && error.contains("\numbra: no /dev/kvm\n"),
        "{error}"
    );
}

#[test]
fn each_step_can_fail() {
    let all = limits();
    let statistics = Limits { statistics: SHORT, ..all };
    let power_off = Limits { power_off: SHORT, ..all };
    let cases = [
        ("1048576", "1048", all, "said \"umbra-demo: canary fills 1048 bytes\" instead"),
        ("kernel messages\"", "\"; trap '' USR1", statistics, "umbra gave no statistics within 1 s"),
        ("kernel messages\"", "\"; trap - USR1", all, "when it was asked for statistics"),
        ("until", "while :; do sleep 0.05; done; until", power_off, "shell did not do as it was told"),
        ("exit 0", "exit 3", all, "umbra ended with exit status: 3 when the guest powered off"),
        ("exit 0", "sleep 60", power_off, "umbra did not end within 1 s"),
    ];
    for (part, other, limits, expected) in cases {
        let error = failure(&WHOLE.replace(part, other), FOUND, limits);
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn search_that_fails_is_a_failure() {
    assert!(failure(WHOLE, "exit 1", limits()).contains("the search failed (exit status: 1)"));
    assert!(failure(WHOLE, "echo", limits()).contains("cannot read the findings"));
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { search: Duration::from_millis(300), ..limits() };
    let error = plan(&directory, WHOLE).demonstrate(Isolation::None, &limits, &searcher("sleep 60")).unwrap_err();
    assert!(error.to_string().contains("the search took longer than 0 s"), "{error}");
}

#[test]
fn nothing_is_left_running() {
    let directory = tempfile::tempdir().unwrap();
    let left = directory.path().join("left");
    let script = format!("sleep 60 & echo $! >'{}'; say 'umbra-demo: nonsense'; wait", left.display());
    plan(&directory, &script).demonstrate(Isolation::Software, &limits(), &searcher(FOUND)).unwrap_err();
    let pid = std::fs::read_to_string(left).unwrap();
    // It has been killed, and dies in its own time as it is nobody's child here.
    let gone = || {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        state.map_or(true, |state| state.contains(") Z "))
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while !gone() {
        assert!(Instant::now() < deadline, "process {pid} is still there");
        std::thread::sleep(POLL);
    }
}

#[test]
fn missing_program_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let plan = Plan { umbra: "/nonexistent/umbra".into(), ..plan(&directory, "") };
    let error = plan.demonstrate(Isolation::None, &limits(), &searcher(FOUND)).unwrap_err();
    assert!(format!("{error:#}").starts_with("cannot start /nonexistent/umbra"), "{error:#}");
}
