//! A named pipe through which other programs give an application's messages to `serve`.
//!
//! A message is a line, or what a program has written before it closes the pipe or pauses: few programs end JSON with a line
//! end. There is one pipe for all who write at the same time, so JSON values that follow each other without white space are
//! messages of their own. Whoever writes other texts at the same time as others must end them with line ends.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use serde::de::IgnoredAny;
use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

/// A writer that has written nothing for so long has said its message.
const PAUSE: Duration = Duration::from_millis(50);

/// How often it is seen to whether the pipe is still there, and tried again what has failed.
const LOOK: Duration = Duration::from_secs(5);

/// Its owner and its group may write.
const MODE: u32 = 0o660;

/// How much is read at once: as much as a pipe holds, unless somebody has made it larger.
const READ_SIZE: usize = 64 * 1024;

/// How much is still read at the end: as much as a pipe can hold. Somebody may write without end.
const LAST_READS: usize = (1 << 20) / READ_SIZE;

/// A pipe that is read from until the [end](Watch::end).
pub struct Watch {
    stop: PipeWriter,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Gives away what has been written, and removes the pipe if it is such as [`listen`] makes: another one was put there by
    /// somebody who wants it to stay. For a clean end: a process that never began may have found the pipe of another.
    pub fn end(mut self) {
        if self.stop.write_all(b"\n").is_ok() {
            let _ = self.thread.join();
        }
    }
}

/// Makes the pipe if it is missing, and has `give` send each message that is written to it, none longer than `longest`
/// bytes; it returns why one could not be sent. Its group and its folder say who may write to the pipe; an existing one stays
/// as it is.
///
/// # Errors
/// When there is no pipe there and none can be made.
pub fn listen(
    path: &Path,
    longest: u64,
    give: impl Fn(&str) -> Result<(), String> + Send + 'static,
) -> io::Result<Watch> {
    let fifo = Fifo::open(path)?;
    let (stopped, stop) = io::pipe()?;
    let longest = usize::try_from(longest).unwrap_or(usize::MAX);
    let reader = Reader { path: path.to_owned(), fifo, stopped, messages: Messages::new(longest), give };
    let thread = std::thread::Builder::new().spawn(move || reader.run())?;
    Ok(Watch { stop, thread })
}

/// The pipe, open.
struct Fifo {
    fd: OwnedFd,
    stat: Stat,
}

impl Fifo {
    fn open(path: &Path) -> io::Result<Self> {
        let mode = Mode::from_raw_mode(MODE);
        let is_new = match rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::Fifo {
            return Err(io::Error::other("there is a file that is no named pipe"));
        }
        if is_new {
            // The umask has taken some of it away. Not by the name, to which others may have given another file by now.
            rustix::fs::fchmod(&fd, mode)?;
        }
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Self { fd, stat })
    }

    fn is_at(&self, path: &Path) -> bool {
        rustix::fs::stat(path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (self.stat.st_dev, self.stat.st_ino))
    }

    /// Whether it is such as we make, now or before we were killed.
    fn is_ours(&self) -> bool {
        self.stat.st_uid == rustix::process::geteuid().as_raw() && self.stat.st_mode & 0o7777 == MODE
    }
}

struct Reader<G> {
    path: PathBuf,
    fifo: Fifo,
    /// Says that no more is to be read; at its end alone, nothing is to be done any more.
    stopped: PipeReader,
    messages: Messages,
    give: G,
}

impl<G: Fn(&str) -> Result<(), String>> Reader<G> {
    fn run(mut self) {
        loop {
            let limit = if self.messages.is_begun() { PAUSE } else { LOOK };
            let [fifo, stopped] = self.wait(limit);
            if stopped.contains(PollFlags::IN) {
                return self.finish();
            } else if !stopped.is_empty() {
                return;
            } else if fifo.contains(PollFlags::IN) {
                self.read();
            } else if !fifo.is_empty() {
                // Nobody has it open for writing any more, which is told until it is opened anew.
                self.end();
                self.open_anew();
            } else if self.messages.is_begun() {
                self.end();
            } else if !self.fifo.is_at(&self.path) {
                say!("uhst-relay: the named pipe was removed; it is made anew");
                self.open_anew();
            }
        }
    }

    /// Sleeps until something is written, the last writer goes, it is time to stop, or `limit` is over.
    fn wait(&self, limit: Duration) -> [PollFlags; 2] {
        let limit = Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        loop {
            let mut fds = [PollFd::new(&self.fifo.fd, PollFlags::IN), PollFd::new(&self.stopped, PollFlags::IN)];
            match poll(&mut fds, Some(&limit)) {
                Err(Errno::INTR) => {}
                _ => return fds.map(|fd| fd.revents()),
            }
        }
    }

    /// Reads once. False when there was nothing.
    fn read(&mut self) -> bool {
        let mut buffer = vec![0; READ_SIZE];
        let count = rustix::io::read(&self.fifo.fd, &mut buffer).unwrap_or(0);
        self.messages.add(&buffer[..count], |message| give(&self.give, message));
        count > 0
    }

    /// What was written so far is a message.
    fn end(&mut self) {
        self.messages.end(|message| give(&self.give, message));
    }

    /// Opens the pipe again, and makes it if it is missing. The old one stays open until then, so that whoever writes
    /// meanwhile finds a reader.
    fn open_anew(&mut self) {
        match Fifo::open(&self.path) {
            Ok(fifo) => self.fifo = fifo,
            Err(error) => {
                say!("uhst-relay: the named pipe cannot be opened, and is tried again: {error}");
                let limit = Timespec::try_from(LOOK).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
                let _ = poll(&mut [PollFd::new(&self.stopped, PollFlags::IN)], Some(&limit));
            }
        }
    }

    fn finish(mut self) {
        if self.fifo.is_ours() && self.fifo.is_at(&self.path) {
            // First, so that nobody writes after what is read now.
            let _ = std::fs::remove_file(&self.path);
        }
        let mut left = LAST_READS;
        while left > 0 && self.read() {
            left -= 1;
        }
        self.end();
    }
}

fn give(give: impl Fn(&str) -> Result<(), String>, message: Option<&[u8]>) {
    let given = match message.map(std::str::from_utf8) {
        Some(Ok(text)) => give(text),
        Some(Err(_)) => Err("it is not UTF-8".to_owned()),
        None => Err("it is longer than RELAY_BUS_MESSAGE".to_owned()),
    };
    if let Err(why) = given {
        say!("uhst-relay: a message of the named pipe is dropped: {why}");
    }
}

/// Puts messages together again.
struct Messages {
    longest: usize,
    begun: Vec<u8>,
    is_too_long: bool,
}

impl Messages {
    fn new(longest: usize) -> Self {
        Self { longest, begun: Vec::new(), is_too_long: false }
    }

    /// Whether there is something of a message whose end is not known.
    fn is_begun(&self) -> bool {
        self.is_too_long || !self.begun.is_empty()
    }

    /// Gives `take` each message that is whole now and not empty; `None` for one that is too long.
    fn add(&mut self, mut bytes: &[u8], mut take: impl FnMut(Option<&[u8]>)) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            self.keep(&bytes[..end]);
            bytes = &bytes[end + 1..];
            self.end(&mut take);
        }
        self.keep(bytes);
        // Where many write all the time, nobody ever pauses.
        let values = split(&self.begun);
        if let [whole @ .., begun] = &values[..]
            && is_composed(begun)
        {
            for value in whole {
                take(self.checked(value));
            }
            let left = begun.len();
            self.begun.drain(..self.begun.len() - left);
        }
        if self.begun.len() > self.longest {
            self.is_too_long = true;
            self.begun.clear();
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if !self.is_too_long {
            self.begun.extend_from_slice(bytes);
        }
    }

    /// Gives `take` what there is.
    fn end(&mut self, mut take: impl FnMut(Option<&[u8]>)) {
        let line = self.begun.strip_suffix(b"\r").unwrap_or(&self.begun);
        let values = split(line.trim_ascii());
        if self.is_too_long {
            take(None);
        } else if values.len() > 1 {
            for value in values {
                take(self.checked(value));
            }
        } else if !line.is_empty() {
            take(self.checked(line));
        }
        self.begun.clear();
        self.is_too_long = false;
    }

    fn checked<'a>(&self, message: &'a [u8]) -> Option<&'a [u8]> {
        Some(message).filter(|message| message.len() <= self.longest)
    }
}

/// The JSON values in a text that is nothing but JSON values without white space between them; the last one, an object or
/// array, may have been cut short. Otherwise the text.
fn split(text: &[u8]) -> Vec<&[u8]> {
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<IgnoredAny>();
    let (mut found, mut start) = (Vec::new(), 0);
    loop {
        let value = values.next();
        let rest = &text[start..];
        match value {
            _ if rest.first().is_some_and(u8::is_ascii_whitespace) => return vec![text],
            None => return found,
            Some(Ok(_)) => {
                found.push(&text[start..values.byte_offset()]);
                start = values.byte_offset();
            }
            Some(Err(error)) if error.is_eof() && is_composed(rest) => {
                found.push(rest);
                return found;
            }
            Some(Err(_)) => return vec![text],
        }
    }
}

/// Whether this begins as an object or an array does.
fn is_composed(json: &[u8]) -> bool {
    json.starts_with(b"{") || json.starts_with(b"[")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What becomes of a text that comes in pieces of this size, and of what is left of it when the writer pauses.
    fn messages(text: &[u8], size: usize, longest: usize) -> Vec<Option<String>> {
        let mut messages = Messages::new(longest);
        let mut found = Vec::new();
        let mut take = |message: Option<&[u8]>| found.push(message.map(|text| String::from_utf8_lossy(text).into()));
        for piece in text.chunks(size) {
            messages.add(piece, &mut take);
        }
        messages.end(&mut take);
        assert!(!messages.is_begun());
        found
    }

    #[test]
    fn messages_are_the_same_however_they_arrive() {
        let cases: [(&str, &[&str]); 15] = [
            ("one\r\n\ntwo\nhalf", &["one", "two", "half"]),
            (r#"{"a":1}"#, &[r#"{"a":1}"#]),
            (r#"{"a":1}{"b":"}{"}[2][]{}"#, &[r#"{"a":1}"#, r#"{"b":"}{"}"#, "[2]", "[]", "{}"]),
            ("{\"a\":1}{\"b\":2}\n{\"c\":3}", &[r#"{"a":1}"#, r#"{"b":2}"#, r#"{"c":3}"#]),
            ("{\"a\":1}{\"b\":2}\r\n", &[r#"{"a":1}"#, r#"{"b":2}"#]),
            (r#""a""b"{"c":1}5"d""#, &[r#""a""#, r#""b""#, r#"{"c":1}"#, "5", r#""d""#]),
            // Of two writers one has stopped half way.
            (r#"{"a":1}{"b":"#, &[r#"{"a":1}"#, r#"{"b":"#]),
            // Texts, even if they begin like JSON.
            ("12 apples", &["12 apples"]),
            ("[12] [x] started", &["[12] [x] started"]),
            ("[12]worker started", &["[12]worker started"]),
            ("1,2,3", &["1,2,3"]),
            (r#""he said ""hi""",2"#, &[r#""he said ""hi""",2"#]),
            (r#"{"a":1} {"b":2}"#, &[r#"{"a":1} {"b":2}"#]),
            (" {\"a\":1} ", &[" {\"a\":1} "]),
            ("\n\r\n", &[]),
        ];
        for (text, expected) in cases {
            for size in 1..=text.len() {
                let expected: Vec<_> = expected.iter().map(|text| Some((*text).to_owned())).collect();
                assert_eq!(messages(text.as_bytes(), size, 100), expected, "{text:?} in pieces of {size}");
            }
        }
        // What looks like JSON up to where it was cut cannot be known for text.
        assert_eq!(messages(b"{}{oops", 100, 100), [Some("{}{oops".to_owned())]);
    }

    #[test]
    fn what_is_too_long_takes_nothing_else_with_it() {
        let text = b"one\nmuch too long for this\nthree\n[1,2,3,4,5,6]\n[1][2][3][4][5][6]\n[1,2]{\"a\":\"long\"}[3]\nhalf of a line";
        for size in 1..=text.len() {
            let some = |text: &str| Some(text.to_owned());
            let mut expected = vec![some("one"), None, some("three"), None];
            expected.extend((1..=6).map(|n| some(&format!("[{n}]"))));
            let found = messages(text, size, 8);
            assert_eq!(found[..11], [expected, vec![some("[1,2]")]].concat(), "{size}");
            // What follows it directly is lost with it where it was not seen in one piece.
            assert!(found[11..] == [None, some("[3]"), None] || found[11..] == [None, None], "{size}: {found:?}");
        }
    }

    proptest! {
        #[test]
        fn values_of_many_writers_are_told_apart(
            values in proptest::collection::vec(r#"\{("[a-z\\{\\}\[\]]{0,6}":(\[[0-9]?\]|"\\\\\\""))?\}|\[([1-9],){0,3}0\]"#, 1..20),
            size in 1..50_usize,
        ) {
            prop_assume!(values.iter().all(|value| serde_json::from_str::<serde_json::Value>(value).is_ok()));
            let expected: Vec<_> = values.iter().cloned().map(Some).collect();
            prop_assert_eq!(messages(values.concat().as_bytes(), size, 100), expected);
        }

        #[test]
        fn nothing_is_lost_of_any_bytes(text in proptest::collection::vec(any::<u8>(), 0..80), size in 1..9_usize) {
            let mut messages = Messages::new(100);
            let mut found = Vec::new();
            let mut take = |message: Option<&[u8]>| found.extend_from_slice(message.unwrap());
            text.chunks(size).for_each(|piece| messages.add(piece, &mut take));
            messages.end(&mut take);
            let without_ends = |bytes: &[u8]| -> Vec<u8> {
                bytes.iter().copied().filter(|byte| !b"\r\n".contains(byte)).collect()
            };
            prop_assert_eq!(without_ends(&found), without_ends(&text));
        }
    }
}
