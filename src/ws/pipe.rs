//! A named pipe through which other programs give an application's messages to `serve`, a line each.

use crate::config::Settings;
use crate::gateway::{Woken, wait_for};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::Duration;

/// Makes the pipe if it is missing, and gives each line that is written to it to the channel without a name, for as long
/// as this process runs. Who may write to it is for its group and its folder to say; an existing pipe stays as it is.
///
/// # Errors
/// When there is no pipe there and none can be made.
pub fn listen(path: &Path, settings: Settings) -> io::Result<()> {
    match rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o660), 0) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    if !std::fs::metadata(path)?.file_type().is_fifo() {
        return Err(io::Error::other("there is a file that is no named pipe"));
    }
    // For writing too, so that it does not end when a writer closes it.
    let fifo = rustix::fs::open(path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    std::thread::Builder::new().spawn(move || {
        let longest = usize::try_from(settings.bus_message).unwrap_or(usize::MAX);
        let mut lines = Lines { longest, begun: Vec::new(), is_too_long: false };
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(&fifo, &mut buffer) {
                Ok(count) => lines.add(&buffer[..count], |line| give(&settings, line)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut fds = vec![PollFd::new(&fifo, PollFlags::IN)];
                    if wait_for(&mut fds, Duration::from_secs(60)) == Woken::Stopped {
                        return;
                    }
                }
                Err(error) => {
                    say!("uhst-relay: the named pipe cannot be read any more: {error}");
                    return;
                }
            }
        }
    })?;
    Ok(())
}

fn give(settings: &Settings, line: Option<&[u8]>) {
    let given = match line.map(std::str::from_utf8) {
        Some(Ok(text)) => crate::protocol::ws::notify(settings, "", text),
        Some(Err(_)) => Err("it is not UTF-8".to_owned()),
        None => Err("it is longer than RELAY_BUS_MESSAGE".to_owned()),
    };
    if let Err(why) = given {
        say!("uhst-relay: a line of the named pipe is dropped: {why}");
    }
}

/// Puts lines together again.
struct Lines {
    longest: usize,
    begun: Vec<u8>,
    is_too_long: bool,
}

impl Lines {
    /// Gives `take` each line that is whole now and not empty; `None` for one that is too long.
    fn add(&mut self, mut bytes: &[u8], mut take: impl FnMut(Option<&[u8]>)) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            self.keep(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = self.begun.strip_suffix(b"\r").unwrap_or(&self.begun);
            if self.is_too_long {
                take(None);
            } else if !line.is_empty() {
                take(Some(line));
            }
            self.begun.clear();
            self.is_too_long = false;
        }
        self.keep(bytes);
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.begun.len() + bytes.len() > self.longest {
            self.is_too_long = true;
            self.begun.clear();
        } else {
            self.begun.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_same_however_they_arrive() {
        let text = b"one\r\n\ntwo\nmuch too long for this\nthree\nhalf";
        for size in 1..text.len() {
            let mut lines = Lines { longest: 8, begun: Vec::new(), is_too_long: false };
            let mut found = Vec::new();
            for piece in text.chunks(size) {
                lines.add(piece, |line| found.push(line.map(<[u8]>::to_vec)));
            }
            let expected = [Some(b"one".to_vec()), Some(b"two".to_vec()), None, Some(b"three".to_vec())];
            assert_eq!(found, expected, "{size}");
        }
    }
}
