//! The frame of one test: run it, and report that it passed, failed or could not run here.

use libtest_mimic::{Completion, Failed, Trial};

use crate::requirement::Unavailable;

/// The guest's processor shut down (a triple fault), or went on for ever, where nothing that the guest did explains it.
///
/// On the nested host that happened once in some hundreds of guests: right after a guest was entered, a walk of page tables
/// that it had used all along found an entry absent. QEMU's emulation is suspected; the cause has not been found
/// (docs/lab.md). Linux on several processors now and then meets a breakpoint of its own code patching that is there no more:
/// QEMU before 8.1 can run a stale translation.
#[derive(Debug, thiserror::Error)]
#[error("the guest's processor shut down or went silent")]
pub struct ProcessorFailure;

/// A test of this name. A body that returns [`Unavailable`] is reported as ignored, or as failed where nothing may be
/// missing: inside the lab, which sets `UMBRA_LAB=1`. There the processors are emulated, so a body that returns
/// [`ProcessorFailure`] is run once more, and says so.
pub fn trial(name: &str, body: impl Fn() -> anyhow::Result<()> + Send + 'static) -> Trial {
    let test = name.to_owned();
    Trial::ignorable_test(name, move || {
        let mut result = body();
        if let Err(error) = &result
            && error.is::<ProcessorFailure>()
            && in_lab()
        {
            println!("{test}: {error:#}: the emulated processor's flaw (docs/lab.md)? Running it once more");
            result = body();
        }
        report(result, in_lab())
    })
}

fn in_lab() -> bool {
    std::env::var_os("UMBRA_LAB").is_some_and(|value| value == "1")
}

fn report(result: anyhow::Result<()>, in_lab: bool) -> Result<Completion, Failed> {
    match result {
        Ok(()) => Ok(Completion::Completed),
        Err(error) if error.is::<Unavailable>() && !in_lab => Ok(Completion::ignored_with(error)),
        Err(error) => Err(format!("{error:#}").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::Capability;

    fn missing() -> anyhow::Result<()> {
        Err(Unavailable::Missing(Capability::GuestMemfd).into())
    }

    #[test]
    fn what_the_host_lacks_is_ignored_with_the_reason() {
        let Ok(Completion::Ignored { reason }) = report(missing(), false) else {
            panic!("not ignored");
        };
        assert_eq!(reason.as_deref(), Some("this host lacks KVM_CAP_GUEST_MEMFD"));
    }

    #[test]
    fn in_the_lab_nothing_may_be_missing() {
        assert!(report(missing(), true).is_err());
    }

    #[test]
    fn a_failed_processor_is_known_under_what_is_said_of_it() {
        let error = anyhow::anyhow!("noise").context(ProcessorFailure).context("step 7");
        assert!(error.is::<ProcessorFailure>());
        // What is run once more and ends so again is a failure like any other.
        assert!(report(Err(error), true).is_err());
    }

    #[test]
    fn other_errors_fail_everywhere() {
        assert!(report(Err(anyhow::anyhow!("wrong")), false).is_err());
        assert!(report(Err(anyhow::anyhow!("wrong")), true).is_err());
    }
}
