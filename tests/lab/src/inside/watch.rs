//! Whether a guest is still the one that was booted.
//!
//! Umbra boots a guest anew that was reset, and whoever waits for the old one would wait in vain. A [`Watch`] reads umbra's
//! events: everything that waits for a guest asks it now and then.

use anyhow::{Error, Result, bail};

use super::events::{EventFile, Reset};

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
            Some(reset) => bail!(words(reset)),
        }
    }

    /// The same error, and before it what became of the guest, unless the error says that itself: that it was reset, or else
    /// that its kernel missed one of its processors (`stalled`), which a guest may recover from.
    pub fn explain(&self, error: Error, stalled: bool) -> Error {
        let reason = match self.0.reset() {
            Ok(Some(reset)) => words(reset),
            _ if stalled => "its guest's kernel missed one of its processors",
            _ => return error,
        };
        if format!("{error:#}").contains(reason) { error } else { error.context(reason) }
    }
}

fn words(reset: Reset) -> &'static str {
    match reset {
        Reset::TripleFault => "its guest crashed, and was booted anew",
        Reset::Asked => "its guest reset itself, and was booted anew",
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
    fn a_reset_is_noticed_and_told_once() {
        for (properties, said) in
            [(r#"{"cause": "triple-fault"}"#, "its guest crashed"), ("null", "its guest reset itself")]
        {
            let (_folder, watch) = watch(properties);
            let reason = watch.check().unwrap_err();
            assert!(reason.to_string().starts_with(said), "{reason:#}");
            let explained = format!("{:#}", watch.explain(anyhow!("no answer"), true));
            assert!(explained.starts_with(said) && explained.ends_with(": no answer"), "{explained}");
            assert_eq!(watch.explain(anyhow!("step: {reason}"), true).to_string(), format!("step: {reason}"));
        }
        let (folder, gone) = watch("null");
        drop(folder);
        gone.check().unwrap();
        assert_eq!(gone.explain(anyhow!("no answer"), false).to_string(), "no answer");
        let stalled = format!("{:#}", gone.explain(anyhow!("no answer"), true));
        assert!(stalled.ends_with("missed one of its processors: no answer"), "{stalled}");
    }
}
