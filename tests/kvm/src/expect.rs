//! Expectations on a system call's result, with the case named in the failure.

use std::fmt::{Debug, Display};

use anyhow::{Context, bail, ensure};
use rustix::io::Errno;

/// The call succeeds.
pub fn success<T>(case: impl Display, result: Result<T, Errno>) -> anyhow::Result<T> {
    result.with_context(|| format!("{case} should succeed"))
}

/// The call fails, with exactly this error.
pub fn failure<T>(case: impl Display, expected: Errno, result: Result<T, Errno>) -> anyhow::Result<()> {
    match result {
        Ok(_) => bail!("{case} succeeded, expected: {expected}"),
        Err(error) => ensure!(error == expected, "{case} failed with: {error}, expected: {expected}"),
    }
    Ok(())
}

/// Two values are the same.
pub fn equal<T: PartialEq + Debug>(what: impl Display, found: T, expected: T) -> anyhow::Result<()> {
    ensure!(found == expected, "{what} is {found:?}, expected {expected:?}");
    Ok(())
}
