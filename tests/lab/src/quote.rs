//! Quoting for the shell of the nested host, on bytes, as paths and arguments need not be UTF-8.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use anyhow::{Result, ensure};

/// `word` as one word of a POSIX shell, whatever bytes it has. A zero byte can't be passed to any program.
pub fn quote(word: &OsStr) -> Result<Vec<u8>> {
    let bytes = word.as_bytes();
    ensure!(!bytes.contains(&0), "{word:?} has a zero byte, which no argument, name or path can have");
    let mut quoted = Vec::with_capacity(bytes.len() + 2);
    quoted.push(b'\'');
    for &byte in bytes {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            _ => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    Ok(quoted)
}

/// Whether a shell can have a variable of this name.
pub fn is_variable_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && !bytes[0].is_ascii_digit()
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_reads_back_every_byte() {
        let all: Vec<u8> = (1..=255).collect();
        let words = [&b""[..], b"plain", b"it's", b"'", b"$(reboot) `x` \\ \"!\n\n", b"-n", b"*", &all];
        for word in words {
            let mut script = b"printf %s ".to_vec();
            script.extend(quote(OsStr::from_bytes(word)).unwrap());
            let output = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&script)).output().unwrap();
            assert_eq!(output.stdout, word, "{:?}", OsStr::from_bytes(word));
        }
    }

    #[test]
    fn a_zero_byte_is_refused() {
        let message = quote(OsStr::from_bytes(b"a\0b")).unwrap_err().to_string();
        assert!(message.contains("zero byte"), "{message}");
    }

    #[test]
    fn names_of_variables_are_told_from_others() {
        for good in ["PATH", "_", "a1"] {
            assert!(is_variable_name(OsStr::new(good)), "{good}");
        }
        for bad in ["", "1a", "A-B", "A B", "A=B", "BASH_FUNC_x%%"] {
            assert!(!is_variable_name(OsStr::new(bad)), "{bad}");
        }
    }
}
