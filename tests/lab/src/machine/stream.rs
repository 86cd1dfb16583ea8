//! Passes on what a nested host writes, up to a mark that ends the stream.
//!
//! The mark tells the lab that nothing is on its way any more, which the end of a command does not: its last output may
//! still be in a buffer of the nested host or of QEMU.

use std::io::{self, Read, Write};

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With the mark.
    Marked,
    /// Without it: the writer is gone.
    Closed,
}

/// A stream that is passed on from one mark to the next.
#[derive(Debug)]
pub struct Passage<'a, R, W> {
    from: R,
    to: W,
    mark: &'a [u8],
    /// What was read and may not be passed on yet.
    pending: Vec<u8>,
}

impl<'a, R: Read, W: Write> Passage<'a, R, W> {
    /// From `from` to `to`.
    pub fn new(from: R, to: W, mark: &'a [u8]) -> Self {
        Self { from, to, mark, pending: Vec::new() }
    }

    /// Passes on everything before the next mark, and holds back nothing that can't be the beginning of one.
    pub fn pass_on(&mut self) -> io::Result<End> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            if let Some(at) = find(&self.pending, self.mark) {
                self.give(at)?;
                self.pending.drain(..self.mark.len());
                return Ok(End::Marked);
            }
            self.give(self.pending.len() - beginning(&self.pending, self.mark))?;
            let length = match self.from.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
                Err(error) => return Err(error),
            };
            if length == 0 {
                self.give(self.pending.len())?;
                return Ok(End::Closed);
            }
            self.pending.extend_from_slice(&buffer[..length]);
        }
    }

    fn give(&mut self, length: usize) -> io::Result<()> {
        if length > 0 {
            self.to.write_all(&self.pending[..length])?;
            self.to.flush()?;
            self.pending.drain(..length);
        }
        Ok(())
    }
}

fn find(text: &[u8], mark: &[u8]) -> Option<usize> {
    text.windows(mark.len()).position(|window| window == mark)
}

/// The length of the longest end of `text` that the mark begins with.
fn beginning(text: &[u8], mark: &[u8]) -> usize {
    let most = text.len().min(mark.len().saturating_sub(1));
    (1..=most).rev().find(|&length| text.ends_with(&mark[..length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads in the given pieces.
    struct Pieces(Vec<&'static [u8]>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0);
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    fn pass(pieces: &[&'static [u8]]) -> (Vec<u8>, End) {
        let mut output = Vec::new();
        let end = Passage::new(Pieces(pieces.to_vec()), &mut output, b"##end").pass_on().unwrap();
        (output, end)
    }

    #[test]
    fn everything_before_the_mark_passes() {
        assert_eq!(pass(&[b"hello\n##end"]), (b"hello\n".to_vec(), End::Marked));
        assert_eq!(pass(&[b"##end"]), (Vec::new(), End::Marked));
        assert_eq!(pass(&[b"a", b"b#", b"#e", b"nd", b"lost"]), (b"ab".to_vec(), End::Marked));
    }

    #[test]
    fn what_only_looks_like_the_mark_passes() {
        assert_eq!(pass(&[b"#", b"##en", b"!", b"###end"]), (b"###en!#".to_vec(), End::Marked));
    }

    #[test]
    fn a_stream_without_mark_passes_whole() {
        assert_eq!(pass(&[b"abc##en"]), (b"abc##en".to_vec(), End::Closed));
        assert_eq!(pass(&[]), (Vec::new(), End::Closed));
    }

    #[test]
    fn a_stream_goes_on_after_a_mark() {
        let mut output = Vec::new();
        let mut passage =
            Passage::new(Pieces(vec![b"one##endtwo##e", b"nd", b"##end", b"rest"]), &mut output, b"##end");
        let ends: Vec<End> = (0..4).map(|_| passage.pass_on().unwrap()).collect();
        assert_eq!(ends, [End::Marked, End::Marked, End::Marked, End::Closed]);
        assert_eq!(output, b"onetworest");
    }

    #[test]
    fn nothing_is_held_back_needlessly() {
        assert_eq!(beginning(b"prompt $ ", b"##end"), 0);
        assert_eq!(beginning(b"abc#", b"##end"), 1);
        assert_eq!(beginning(b"###", b"##end"), 2);
        assert_eq!(beginning(b"##en", b"##end"), 4);
    }

    #[test]
    fn a_closed_output_is_an_error() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = Passage::new(Pieces(vec![b"x"]), Gone, b"##end").pass_on().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
