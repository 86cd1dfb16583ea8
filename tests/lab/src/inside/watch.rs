//! Whether a guest is still the one that was booted.
//!
//! Umbra boots a guest anew that was reset, and whoever waits for the old one would wait in vain. A [`Watch`] reads umbra's
//! events: everything that waits for a guest asks it now and then.

use anyhow::{Error, Result, bail};

use super::events::{EventFile, Reset};
use crate::second_chance::Flaw;

/// Knows of resets.
#[derive(Clone, Debug)]
pub struct Watch(EventFile);

impl Watch {
    /// By these events.
    pub fn new(events: EventFile) -> Self {
        Self(events)
    }

    /// An error if the guest was reset.
    pub fn check(&self) -> Result<()> {
        match self.0.reset()? {
            None => Ok(()),
            Some(Reset::TripleFault) => bail!("its guest crashed, and was booted anew"),
            Some(Reset::Asked) => bail!("its guest reset itself, and was booted anew"),
        }
    }

    /// The same error, with [`Flaw::GuestCrashed`] in its chain if the guest has crashed, whatever became of that.
    pub fn explain(&self, error: Error) -> Error {
        match self.0.reset() {
            Ok(Some(Reset::TripleFault)) => error.context(Flaw::GuestCrashed),
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn watch(properties: &str) -> (tempfile::TempDir, Watch) {
        let folder = tempfile::tempdir().unwrap();
        let events = EventFile::create(folder.path().join("events")).unwrap();
        let event = format!(r#"{{"source": "vm", "event": "rebooting", "properties": {properties}}}"#);
        std::fs::write(events.path(), event).unwrap();
        (folder, Watch::new(events))
    }

    #[test]
    fn a_reset_is_noticed_and_only_a_crash_explains_a_failure() {
        let (_folder, crashed) = watch(r#"{"cause": "triple-fault"}"#);
        assert!(crashed.check().unwrap_err().to_string().contains("crashed"));
        assert!(crashed.explain(anyhow!("no answer")).is::<Flaw>());
        let (_folder, asked) = watch("null");
        assert!(asked.check().unwrap_err().to_string().contains("reset itself"));
        assert!(!asked.explain(anyhow!("no answer")).is::<Flaw>());
        let (folder, gone) = watch("null");
        drop(folder);
        gone.check().unwrap();
    }
}
