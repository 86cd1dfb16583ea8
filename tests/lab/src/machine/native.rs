//! Runs jobs on this machine's own KVM.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvm_ioctls::Kvm;

use super::{Job, TIMED_OUT, Terminal, report_time_limit};
use crate::process::{Family, start_in_foreground};

/// `KVM_CAP_VM_TYPES` and the bit of `KVM_X86_SW_PROTECTED_VM` in its answer.
const KVM_CAP_VM_TYPES: u64 = 235;
const SW_PROTECTED_VM: i32 = 1 << 1;

/// Fails unless this machine is an AMD host whose KVM offers software-protected VMs.
pub fn check() -> Result<()> {
    let processor = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    ensure!(
        is_amd(&processor),
        "its processor is not an AMD one, whose KVM the software isolation is made for; without --native the lab emulates one"
    );
    let kvm =
        Kvm::new().context("cannot open /dev/kvm: load kvm_amd, and join the group kvm if permission is denied")?;
    let types = kvm.check_extension_raw(KVM_CAP_VM_TYPES);
    ensure!(
        types > 0 && types & SW_PROTECTED_VM != 0,
        "its KVM does not offer KVM_X86_SW_PROTECTED_VM (KVM_CAP_VM_TYPES answers {types:#x}): that takes Linux 6.8 or \
         later, built with CONFIG_KVM_SW_PROTECTED_VM, with nested paging (kvm_amd.npt=1)"
    );
    Ok(())
}

fn is_amd(cpuinfo: &str) -> bool {
    let vendor = cpuinfo.lines().find_map(|line| line.strip_prefix("vendor_id"));
    vendor.is_some_and(|vendor| vendor.trim_start_matches([' ', '\t', ':']).trim() == "AuthenticAMD")
}

/// Runs a job here, with this process's whole environment.
pub fn run(job: &Job) -> Result<i32> {
    let (program, arguments) = job.argv.split_first().context("there is no command to run")?;
    let mut command = Command::new(program);
    command.args(arguments).envs(job.env.iter().cloned()).env("UMBRA_LAB_OUT", &job.out);
    let context = || format!("cannot run {}", program.display());
    let deadline = Instant::now() + job.time_limit;
    let wait = |try_wait: &mut dyn FnMut() -> std::io::Result<Option<ExitStatus>>| -> Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = try_wait().with_context(context)? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                report_time_limit(job.time_limit);
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let status = match job.terminal {
        Terminal::Stream => {
            let mut family = Family::start(command.stdin(Stdio::null()), Vec::new()).with_context(context)?;
            wait(&mut || family.try_wait())?
        }
        Terminal::Interactive => {
            // It stays in the foreground, or its terminal would stop it.
            let mut child = start_in_foreground(&mut command).with_context(context)?;
            let status = wait(&mut || child.try_wait())?;
            if status.is_none() {
                child.kill().and_then(|()| child.wait()).with_context(context)?;
            }
            status
        }
    };
    Ok(status.map_or(TIMED_OUT, |status| status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vendor_is_read() {
        assert!(is_amd("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\n"));
        assert!(!is_amd("processor\t: 0\nvendor_id\t: GenuineIntel\n"));
        assert!(!is_amd(""));
    }

    fn job(script: &str) -> Job {
        Job {
            argv: ["sh", "-c", script].map(Into::into).to_vec(),
            env: vec![("STATUS".into(), "7".into())],
            out: std::env::temp_dir(),
            time_limit: Duration::from_secs(60),
            terminal: Terminal::Stream,
        }
    }

    #[test]
    fn statuses_are_those_of_a_shell() {
        assert_eq!(run(&job("exit $STATUS")).unwrap(), 7);
        assert_eq!(run(&job("kill -9 $$")).unwrap(), 137);
        assert_eq!(run(&Job { time_limit: Duration::from_millis(50), ..job("sleep 60") }).unwrap(), TIMED_OUT);
    }

    #[test]
    fn what_a_job_leaves_behind_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join("left");
        let script = format!("(sleep 1; touch {}) & exit 3", left.display());
        assert_eq!(run(&job(&script)).unwrap(), 3);
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!left.exists());
    }
}
