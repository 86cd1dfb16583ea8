//! The frame of one test: run it, and report that it passed, failed or could not run here.

use libtest_mimic::{Completion, Failed, Trial};

use crate::requirement::Unavailable;

/// A test of this name. A body that returns [`Unavailable`] is reported as ignored, or as failed where nothing may be
/// missing: inside the lab, which sets `UMBRA_LAB=1`.
pub fn trial(name: &str, body: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || report(body(), in_lab()))
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
    fn other_errors_fail_everywhere() {
        assert!(report(Err(anyhow::anyhow!("wrong")), false).is_err());
        assert!(report(Err(anyhow::anyhow!("wrong")), true).is_err());
    }
}
