//! `umbra ctl memory watch`: the map in the terminal, drawn anew as it changes.
//!
//! On a terminal it draws on a screen of its own, in colours, until q, Ctrl-D or a signal (Ctrl-C is one); the terminal is then
//! as it was. That holds while umbra does not answer, too.
//! Elsewhere it writes one map after another, without colours, until it is interrupted or has written as many as asked for.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{self, LocalModes, OptionalActions, SpecialCodeIndex, Termios};
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use umbra_api::client::ClientError;
use umbra_api::picture::{Cell, Raster, size};
use umbra_api::types::MemoryRun;

use super::{Session, write_out};

/// Bounds of a row, in cells.
const COLUMNS: std::ops::RangeInclusive<usize> = 16..=96;
/// Room for addresses and sizes beside a row.
const BESIDE: usize = 30;

#[derive(clap::Args)]
pub struct Args {
    /// Seconds between looks.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    interval: f64,
    /// End after so many maps.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    if (0.05..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("choose from 0.05 to 3600 seconds".into()) }
}

/// How long umbra may take before keys are looked at again.
const PATIENCE: Duration = Duration::from_millis(500);

/// The terminal, which is as it was once this is dropped.
struct Screen {
    before: Termios,
    /// Has something to read once a signal asks for the end.
    signals: UnixStream,
    handlers: Vec<SigId>,
}

impl Screen {
    /// Takes the terminal, if input and output are one.
    fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || !io::stdout().is_terminal() {
            return Ok(None);
        }
        let before = termios::tcgetattr(&stdin)?;
        let (signals, sender) = UnixStream::pair()?;
        let mut screen = Self { before, signals, handlers: Vec::new() };
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            screen.handlers.push(signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?);
        }
        let mut raw = screen.before.clone();
        raw.make_raw();
        // Ctrl-C is a signal; those keys that would leave the terminal as it is here are none.
        raw.local_modes |= LocalModes::ISIG;
        raw.special_codes[SpecialCodeIndex::VSUSP] = 0;
        raw.special_codes[SpecialCodeIndex::VQUIT] = 0;
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        // Another screen, without a cursor.
        let _ = write_out(b"\x1b[?1049h\x1b[?25l");
        Ok(Some(screen))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write_out(b"\x1b[?25h\x1b[?1049l");
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
        for handler in self.handlers.drain(..) {
            signal_hook::low_level::unregister(handler);
        }
    }
}

pub(super) fn watch(session: &Session, args: &Args) -> anyhow::Result<()> {
    let mut runs = session.runs(None, None, None)?;
    let screen = Screen::enter().context("cannot use the terminal")?;
    let client = if screen.is_some() { session.client.patient(PATIENCE) } else { session.client.clone() };
    let session = Session { client, json: session.json };
    let interval = Duration::from_secs_f64(args.interval);
    let (mut left, mut late) = (args.count, false);
    loop {
        let columns = match &screen {
            Some(_) => usize::from(termios::tcgetwinsize(io::stdout()).map_or(80, |size| size.ws_col)),
            None => 80,
        };
        let rows = match &screen {
            Some(_) => usize::from(termios::tcgetwinsize(io::stdout()).map_or(24, |size| size.ws_row)),
            None => 24,
        };
        let map =
            draw(&runs, columns.saturating_sub(BESIDE).clamp(*COLUMNS.start(), *COLUMNS.end()), rows, screen.is_some());
        let text = match &screen {
            Some(_) => {
                let late = if late { "umbra does not answer" } else { "" };
                format!("\x1b[H\x1b[J{}{late}", map.replace('\n', "\r\n"))
            }
            None => map,
        };
        write_out(text.as_bytes())?;
        left = left.map(|left| left.saturating_sub(u64::from(!late)));
        if left == Some(0) || wait(screen.as_ref(), interval)? {
            return Ok(());
        }
        match session.runs(None, None, None) {
            Ok(now) => (runs, late) = (now, false),
            Err(error) if is_timeout(&error) => late = true,
            Err(error) => return Err(error),
        }
    }
}

fn is_timeout(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ClientError>().is_some_and(ClientError::is_timeout)
}

/// Waits; whether it is to end.
fn wait(screen: Option<&Screen>, interval: Duration) -> io::Result<bool> {
    let Some(screen) = screen else {
        std::thread::sleep(interval);
        return Ok(false);
    };
    let stdin = io::stdin();
    let mut ready = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(&screen.signals, PollFlags::IN)];
    let limit = Timespec::try_from(interval).map_err(io::Error::other)?;
    match poll(&mut ready, Some(&limit)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(false),
        Ok(_) if !ready[1].revents().is_empty() => return Ok(true),
        Ok(_) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut keys = [0; 16];
    let count = rustix::io::read(&stdin, &mut keys)?;
    let keys = keys.get(..count).unwrap_or_default();
    // Ctrl-D comes as itself in raw mode.
    Ok(count == 0 || keys.iter().any(|key| matches!(key, b'q' | b'Q' | 4)))
}

/// The map, at most so many columns of cells and about so many rows.
fn draw(runs: &[MemoryRun], columns: usize, rows: usize, colours: bool) -> String {
    let ranges = runs.iter().map(|run| (run.gpa, run.gpa.saturating_add(run.size)));
    // Title, legend, and a line for each hole.
    let cells = columns * rows.saturating_sub(8).clamp(4, 40);
    let mut raster = Raster::new(ranges, cells as u64);
    runs.iter().for_each(|run| raster.add(run));
    let total = raster.total;
    let mut text = format!(
        "Guest memory: {}   private {}   shared {}   converting {}\n\n",
        size(total.bytes()),
        size(total.private),
        size(total.shared),
        size(total.converting)
    );
    let mut before: Option<u64> = None;
    for region in &raster.regions {
        if let Some(end) = before {
            let _ = writeln!(text, "{:>12}   no RAM: {}", "", size(region.start.saturating_sub(end)));
        }
        before = Some(region.end);
        for (row, cells) in region.cells.chunks(columns).enumerate() {
            let gpa = region.start + (row * columns) as u64 * raster.cell_bytes;
            let line: String = cells.iter().map(|cell| symbol(cell, colours)).collect();
            let end = region.end.min(gpa + cells.len() as u64 * raster.cell_bytes);
            let _ = writeln!(text, "{:>14} {line} {}", format!("{gpa:#x}"), size(end));
        }
    }
    let legend =
        [('#', PRIVATE, "private"), ('.', SHARED, "shared"), ('+', MIXED, "both"), ('~', CONVERTING, "converting")];
    let legend = legend.map(|(symbol, colour, name)| format!("{} {name}", paint(symbol, colour, colours)));
    let _ = writeln!(text, "\n{}   one cell is {}; q ends", legend.join("   "), size(raster.cell_bytes));
    text
}

/// Colours of 256, near those of the picture.
const PRIVATE: u8 = 25;
const SHARED: u8 = 214;
const MIXED: u8 = 109;
const CONVERTING: u8 = 175;

fn symbol(cell: &Cell, colours: bool) -> String {
    match (cell.private, cell.shared, cell.converting) {
        (_, _, 1..) => paint('~', CONVERTING, colours),
        (_, 0, _) => paint('#', PRIVATE, colours),
        (0, _, _) => paint('.', SHARED, colours),
        _ => paint('+', MIXED, colours),
    }
}

fn paint(symbol: char, colour: u8, colours: bool) -> String {
    if colours { format!("\x1b[38;5;{colour}m{symbol}\x1b[0m") } else { symbol.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_api::types::State;

    #[test]
    fn the_map_is_bounded_and_plain_without_a_terminal() {
        let run = |gpa, size, state| MemoryRun { gpa, size, state, tag: None, window: false };
        let runs = [
            run(0, 1 << 20, State::Shared),
            run(1 << 20, (3 << 30) - (1 << 20), State::Private),
            run(4 << 30, 1 << 30, State::Converting),
        ];
        let text = draw(&runs, 32, 24, false);
        assert!(!text.contains('\x1b'));
        assert!(text.lines().count() < 32 && text.lines().all(|line| line.len() <= 90), "{text}");
        for part in ["no RAM: 1 GiB", "private 3.0 GiB", "shared 1 MiB", "0x100000000", "+###", "~~~"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(draw(&runs, 32, 24, true).contains("\x1b[38;5;"));
        assert!(seconds("0").is_err() && seconds("x").is_err() && seconds("0.5").is_ok());
    }
}
