//! A second chance for what the flaw of emulated processors may have spoiled.
//!
//! Once in some hundreds of machines a guest crashes, one of its processors goes silent, or the whole nested host ends, for no
//! reason of its own (docs/lab.md).
//! [`second_chance`] does again, once, what failed with a [`Flaw`], and says so. What is umbra's fault fails again.

use std::fmt::{Display, Formatter};

use anyhow::Result;

/// What an error's chain has in it then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// A guest shut down by a triple fault.
    GuestCrashed,
    /// A guest's kernel misses one of its processors.
    ProcessorSilent,
    /// The nested host ended before what ran in it did.
    HostLost,
}

impl Display for Flaw {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::GuestCrashed => "the guest crashed (triple fault)",
            Self::ProcessorSilent => "a processor of the guest went silent",
            Self::HostLost => "the nested host ended before the command did",
        })
    }
}

/// Does it, and once more if it fails with a [`Flaw`].
pub fn second_chance<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    attempt().or_else(|error| {
        if !error.is::<Flaw>() {
            return Err(error);
        }
        eprintln!(
            "lab: {error:#}\nlab: a flaw of emulated processors can do that (docs/lab.md): once more, from the start"
        );
        attempt()
    })
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn only_what_has_a_flaw_gets_a_second_chance_and_only_one() {
        let count = |attempt: fn(u32) -> Result<()>| {
            let mut attempts = 0;
            let result = second_chance(|| {
                attempts += 1;
                attempt(attempts)
            });
            (attempts, result.is_ok())
        };
        assert_eq!(count(|_| Ok(())), (1, true));
        assert_eq!(count(|_| Err(anyhow!("no answer"))), (1, false));
        assert_eq!(count(|_| Err(anyhow!("no answer").context(Flaw::GuestCrashed).context("step"))), (2, false));
        assert_eq!(count(|attempt| if attempt == 1 { Err(anyhow!(Flaw::HostLost)) } else { Ok(()) }), (2, true));
    }
}
