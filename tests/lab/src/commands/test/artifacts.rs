//! Reads which programs cargo built, from its JSON messages.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A program that cargo built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// The target's name.
    pub name: String,
    /// The program's file.
    pub path: PathBuf,
    /// The folder of its package.
    pub package: PathBuf,
    /// Whether it runs tests.
    pub is_test: bool,
}

/// The program that a message tells of, if it tells of one.
pub fn executable(line: &[u8]) -> Option<Artifact> {
    let message: Value = serde_json::from_slice(line).ok()?;
    if message["reason"] != "compiler-artifact" {
        return None;
    }
    Some(Artifact {
        name: message["target"]["name"].as_str()?.to_owned(),
        path: PathBuf::from(message["executable"].as_str()?),
        package: Path::new(message["manifest_path"].as_str()?).parent()?.to_path_buf(),
        is_test: message["profile"]["test"].as_bool()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_is_found() {
        let line = br#"{"reason":"compiler-artifact","manifest_path":"/w/tests/kvm/Cargo.toml",
            "target":{"kind":["test"],"name":"facts"},"profile":{"test":true},"executable":"/w/target/debug/deps/facts-1"}"#;
        let expected = Artifact {
            name: "facts".into(),
            path: "/w/target/debug/deps/facts-1".into(),
            package: "/w/tests/kvm".into(),
            is_test: true,
        };
        assert_eq!(executable(line), Some(expected));
    }

    #[test]
    fn libraries_and_other_messages_are_none() {
        let library = br#"{"reason":"compiler-artifact","manifest_path":"/w/vmm/Cargo.toml",
            "target":{"name":"vmm"},"profile":{"test":false},"executable":null}"#;
        for line in [&library[..], br#"{"reason":"build-finished","success":true}"#, b"", b"not JSON", b"[1]"] {
            assert_eq!(executable(line), None);
        }
    }
}
