//! A handler in any language: a program that is started for one connection, and speaks JSON lines.
//!
//! It reads events, one a line, from its standard input, and writes what it wants done to its standard output:
//!
//! ```text
//! {"accept":true}                             the answer to authenticate
//! {"accept":true,"protocol":"chat"}           the same, and which of the offered subprotocols is to be spoken
//! {"send":"text"}  {"send_binary":"BASE64"}   to its own client
//! {"broadcast":VALUE}                         to all others on the channel: a string is text, see the frames module
//! {"close":{"code":4000,"reason":"…"}}        both may be missing: 1000, and none
//! {"log":"a line"}
//! ```
//!
//! The program never makes the relay wait: what it does not read is kept, up to a limit, and what it does not write is not
//! waited for. It ends when its input ends; if it does not, it is killed, with all that it has started.

use super::{Action, Event};
use crate::config::Settings;
use crate::wake::{self, Ready, Wake};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::{Access, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::fmt;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take to answer `authenticate`, and how long it may leave its input unread.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long a program may live on after the last event.
const GRACE: Duration = Duration::from_secs(2);

/// How much is read from a program at once.
const READ_SIZE: usize = 16 * 1024;

/// Why a program's connection is closed with 1011.
#[derive(Debug)]
pub enum Fault {
    /// It could not be started.
    NotStarted(io::Error),
    /// It has ended, or closed its output.
    Died,
    /// It does not answer `authenticate`.
    Silent,
    /// It does not read its input.
    Deaf,
    /// It wants something that is no action. The reason, without the line: that may hold what is nobody's business.
    Nonsense(String),
    /// It sends more than its client takes, or than its share of the channel or of the log.
    Floods,
    /// A method of a Rust handler has panicked.
    Panicked,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted(error) => write!(f, "the handler cannot be started: {error} (RELAY_WS_HANDLER)"),
            Self::Died => f.write_str("the handler has ended before its connection"),
            Self::Silent => write!(f, "the handler has not answered authenticate for {} s", PATIENCE.as_secs()),
            Self::Deaf => write!(f, "the handler has not read its input for {} s", PATIENCE.as_secs()),
            Self::Nonsense(why) => write!(f, "the handler has asked for something that is no action: {why}"),
            Self::Floods => f.write_str("the handler says more than can be taken"),
            Self::Panicked => f.write_str("the handler has panicked"),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line<'a> {
    Accept(bool),
    Send(String),
    SendBinary(String),
    #[serde(borrow)]
    Broadcast(&'a RawValue),
    Close(Close),
    Log(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    accept: bool,
    protocol: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Close {
    #[serde(default = "normal")]
    code: u16,
    #[serde(default)]
    reason: String,
}

fn normal() -> u16 {
    1000
}

/// Reads one line of a program's output.
fn action(line: &[u8]) -> Result<Action, Fault> {
    let nonsense = |why: &dyn fmt::Display| Fault::Nonsense(why.to_string());
    let line = match serde_json::from_slice(line) {
        Ok(line) => line,
        // The only one with two fields, and there is one a connection.
        Err(error) => {
            let answer: Answer = serde_json::from_slice(line).map_err(|_| nonsense(&error))?;
            return Ok(Action::Accept(answer.accept, answer.protocol));
        }
    };
    Ok(match line {
        Line::Accept(is_accepted) => Action::Accept(is_accepted, None),
        Line::Send(text) => Action::Send(text),
        Line::SendBinary(text) => Action::SendBinary(BASE64.decode(text).map_err(|error| nonsense(&error))?),
        Line::Broadcast(value) => {
            let size = value.get().len();
            let value = crate::json::compact(value.get().as_bytes()).ok().flatten();
            Action::Broadcast(value.unwrap_or_else(|| "null".to_owned()), size)
        }
        Line::Close(Close { code, reason }) => Action::Close(code, reason),
        Line::Log(line) => Action::Log(line),
    })
}

/// Where programs are found if nothing else is said.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Looks whether the program of `RELAY_WS_HANDLER` is there and may be run, so that whoever starts a server learns it before the
/// first connection does.
///
/// # Errors
/// A sentence that names the program.
pub fn look_for(settings: &Settings) -> Result<(), String> {
    let Some(program) = settings.ws_handler.first().filter(|name| *name != "echo" && !super::has_own_handler()) else {
        return Ok(());
    };
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let places: Vec<PathBuf> = if program.contains('/') {
        vec![PathBuf::from(program)]
    } else {
        std::env::split_paths(&path).map(|folder| folder.join(program)).collect()
    };
    let there: Vec<_> = places.iter().filter(|place| place.is_file()).collect();
    let may_run = |place: &&PathBuf| rustix::fs::access(place.as_path(), Access::EXEC_OK).is_ok();
    if there.iter().any(may_run) {
        Ok(())
    } else if let Some(place) = there.first() {
        Err(format!("RELAY_WS_HANDLER: {} may not be run: chmod 755 lets it", place.display()))
    } else {
        Err(format!("RELAY_WS_HANDLER: there is no program {program}"))
    }
}

/// A running program.
pub(crate) struct Program {
    child: Child,
    input: Option<ChildStdin>,
    output: Option<ChildStdout>,
    /// Events that it has not read; since when it reads nothing.
    unread: Vec<u8>,
    written: usize,
    deaf_since: Option<Instant>,
    /// The beginning of a line.
    begun: Vec<u8>,
    longest_line: usize,
}

impl Program {
    pub fn start(settings: &Settings, environment: &[(&'static str, String)]) -> Result<Self, Fault> {
        let not_a_program = || Fault::NotStarted(io::ErrorKind::NotFound.into());
        let (program, arguments) = settings.ws_handler.split_first().ok_or_else(not_a_program)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()))
            .envs(environment.iter().map(|(name, value)| (*name, value)))
            // So that it can be killed with all that it starts.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().map_err(Fault::NotStarted)?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let longest_line = usize::try_from(settings.max_body).unwrap_or(usize::MAX).saturating_mul(2).max(64 * 1024);
        let program = Self {
            child,
            input,
            output,
            unread: Vec::new(),
            written: 0,
            deaf_since: None,
            begun: Vec::new(),
            longest_line,
        };
        let fds = [program.input.as_ref().map(ChildStdin::as_fd), program.output.as_ref().map(ChildStdout::as_fd)];
        for fd in fds.into_iter().flatten() {
            let flags = fcntl_getfl(fd).map_err(|error| Fault::NotStarted(error.into()))?;
            fcntl_setfl(fd, flags | OFlags::NONBLOCK).map_err(|error| Fault::NotStarted(error.into()))?;
        }
        Ok(program)
    }

    /// What becomes readable when it wants something done.
    pub fn output(&self) -> Option<BorrowedFd<'_>> {
        self.output.as_ref().map(ChildStdout::as_fd)
    }

    /// What becomes writable when it has read something; `None` where nothing waits for that.
    pub fn input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().filter(|_| self.unread() > 0).map(ChildStdin::as_fd)
    }

    /// How many bytes of events it has not read.
    pub fn unread(&self) -> usize {
        self.unread.len() - self.written
    }

    /// When it will have been deaf for too long.
    pub fn deaf_at(&self) -> Option<Instant> {
        self.deaf_since.map(|since| since + PATIENCE)
    }

    /// Tells an event, as soon as it reads.
    pub fn tell(&mut self, event: &Event<'_>) {
        // Writing to memory does not fail, and every event can be written as JSON.
        if serde_json::to_writer(&mut self.unread, event).is_ok() {
            self.unread.push(b'\n');
        }
        self.write();
    }

    /// Writes what it takes. One that has closed its input is told nothing; its output says when it has ended.
    pub fn write(&mut self) {
        while let Some(input) = &self.input
            && self.written < self.unread.len()
        {
            match rustix::io::write(input, &self.unread[self.written..]) {
                Ok(count) => {
                    self.written += count;
                    self.deaf_since = None;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.deaf_since.get_or_insert_with(Instant::now);
                    if self.written > READ_SIZE && self.written >= self.unread.len() / 2 {
                        // One that is always a little behind must not have everything kept that it was ever told.
                        self.unread.drain(..self.written);
                        self.written = 0;
                    }
                    return;
                }
                // It has closed its input, and will never read again.
                Err(_) => {
                    self.input = None;
                    self.deaf_since.get_or_insert_with(Instant::now);
                }
            }
        }
        self.written = 0;
        self.unread.clear();
        self.unread.shrink_to(READ_SIZE);
    }

    /// Reads once what it wants done, up to where it fails.
    pub fn read(&mut self) -> (Vec<Action>, Option<Fault>) {
        let mut actions = Vec::new();
        let fault = self.read_into(&mut actions).err();
        (actions, fault)
    }

    fn read_into(&mut self, actions: &mut Vec<Action>) -> Result<(), Fault> {
        let Some(output) = &self.output else { return Err(Fault::Died) };
        let mut buffer = vec![0; READ_SIZE];
        let count = match rustix::io::read(output, &mut buffer) {
            Ok(0) => {
                self.output = None;
                return Err(Fault::Died);
            }
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(()),
            Err(_) => return Err(Fault::Died),
        };
        let mut rest = &buffer[..count];
        while let Some(end) = memchr::memchr(b'\n', rest) {
            self.begun.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.begun);
            if !line.trim_ascii().is_empty() {
                actions.push(action(&line)?);
            }
        }
        self.begun.extend_from_slice(rest);
        if self.begun.len() > self.longest_line {
            return Err(Fault::Nonsense(format!("it is longer than {} bytes", self.longest_line)));
        }
        Ok(())
    }

    /// Lets it read its last events and end by itself, for a short while, and gives `take` what it still wants done.
    pub async fn finish(mut self, mut take: impl FnMut(Action) + Send) {
        let until = Instant::now() + GRACE;
        loop {
            self.write();
            if self.unread() == 0 {
                // The end of its input is what tells it to end.
                self.input = None;
            }
            let left = until.saturating_duration_since(Instant::now());
            let Some(output) = self.output().filter(|_| !left.is_zero()) else { return };
            {
                let (mut output, mut input) = (Ready::to_read(output), self.input().map(Ready::to_write));
                let mut wakes: Vec<&mut dyn Wake> = vec![&mut output];
                wakes.extend(input.as_mut().map(|input| input as &mut dyn Wake));
                wake::wait(&mut wakes, left).await;
            }
            let (actions, fault) = self.read();
            actions.into_iter().for_each(&mut take);
            if fault.is_some() {
                return;
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Its number is its own until it is waited for, so nobody else is hit.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = crate::workers::blocking(|| self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::run_blocking;
    use crate::ws::Frame;
    use proptest::prelude::*;

    fn read(line: &str) -> Action {
        action(line.as_bytes()).unwrap_or_else(|fault| panic!("{line}: {fault}"))
    }

    #[test]
    fn actions_are_what_they_say() {
        assert_eq!(read(r#"{"accept":true}"#), Action::Accept(true, None));
        assert_eq!(read(r#"{"accept":true,"protocol":"chat"}"#), Action::Accept(true, Some("chat".to_owned())));
        assert_eq!(read(r#"{"protocol":null,"accept":false}"#), Action::Accept(false, None));
        assert_eq!(read(r#" {"send": "h\u00e9"} "#), Action::Send("h\u{e9}".to_owned()));
        assert_eq!(read(r#"{"send_binary":"aGk="}"#), Action::SendBinary(b"hi".to_vec()));
        assert_eq!(read(r#"{"broadcast":"hi"}"#), Action::Broadcast(r#""hi""#.to_owned(), 4));
        assert_eq!(read(r#"{"broadcast":{ "a": 1e5 }}"#), Action::Broadcast(r#"{"a":1e5}"#.to_owned(), 12));
        assert_eq!(read(r#"{"close":{}}"#), Action::Close(1000, String::new()));
        assert_eq!(read(r#"{"close":{"code":4000,"reason":"bye"}}"#), Action::Close(4000, "bye".to_owned()));
        assert_eq!(read(r#"{"log":"x"}"#), Action::Log("x".to_owned()));
    }

    #[test]
    fn what_is_no_action_is_nonsense() {
        for line in [
            "hello",
            "{}",
            "[]",
            r#"{"sing":"la"}"#,
            r#"{"send":1}"#,
            r#"{"send":"a","log":"b"}"#,
            r#"{"send_binary":"?"}"#,
            r#"{"close":{"status":1000}}"#,
            r#"{"protocol":"chat"}"#,
            r#"{"accept":true,"protocol":1}"#,
            r#"{"accept":true,"send":"hi"}"#,
            "\u{0}",
        ] {
            assert!(matches!(action(line.as_bytes()), Err(Fault::Nonsense(_))), "{line}");
        }
        assert!(action(b"{\"send\":\"\xff\"}").is_err());
    }

    /// A program that says this, and reads.
    fn saying(text: &str) -> Program {
        script("printf %s \"$0\"; exec cat >/dev/null", text)
    }

    fn script(script: &str, argument: &str) -> Program {
        let command = ["sh", "-c", script, argument];
        let settings = Settings { ws_handler: command.map(str::to_owned).to_vec(), ..Settings::default() };
        Program::start(&settings, &[]).unwrap()
    }

    #[test]
    fn what_stands_before_nonsense_is_done() {
        let text = "{\"send\":\"a\"}\n{\"broadcast\":1}\nHello, world\n{\"send\":\"b\"}\n";
        let wanted = [Action::Send("a".to_owned()), Action::Broadcast("1".to_owned(), 1)];
        let mut program = saying(text);
        let (mut actions, mut fault) = (Vec::new(), None);
        while fault.is_none() {
            run_blocking(wake::wait(&mut [&mut Ready::to_read(program.output().unwrap())], GRACE));
            let read = program.read();
            actions.extend(read.0);
            fault = read.1;
        }
        assert_eq!(actions, wanted);
        assert!(matches!(fault, Some(Fault::Nonsense(_))), "{fault:?}");
        let mut actions = Vec::new();
        run_blocking(saying(text).finish(|action| actions.push(action)));
        assert_eq!(actions, wanted);
    }

    #[test]
    fn a_program_that_closes_its_input_counts_as_deaf() {
        let mut program = script("exec <&-; exec sleep 60", "");
        let start = Instant::now();
        while program.deaf_at().is_none() {
            assert!(start.elapsed() < Duration::from_secs(60));
            program.tell(&Event::Initialize);
            program.write();
            std::thread::sleep(Duration::from_millis(1));
        }
        program.tell(&Event::Initialize);
        program.write();
        assert!(program.deaf_at().is_some() && program.unread() == 0, "and nothing is kept for it");
    }

    #[test]
    fn events_are_what_a_program_reads() {
        let json = |event: &Event<'_>| serde_json::to_string(event).unwrap();
        assert_eq!(json(&Event::Initialize), r#"{"event":"initialize"}"#);
        assert_eq!(
            json(&Event::Started { channel: "a", user: 2, time: 1 }),
            r#"{"event":"started","channel":"a","user":2,"time":1}"#
        );
        assert_eq!(json(&Event::Read(Frame::Text("hi"))), r#"{"event":"read","size":2}"#);
        assert_eq!(json(&Event::Read(Frame::Binary(b"hi"))), r#"{"event":"read","size":2,"binary":"aGk="}"#);
        let data = RawValue::from_string(r#"{"a":1.0}"#.to_owned()).unwrap();
        assert_eq!(json(&Event::Fifo { data: &data }), r#"{"event":"fifo","data":{"a":1.0}}"#);
        assert_eq!(
            json(&Event::BeforeClose { code: 1000, reason: "" }),
            r#"{"event":"before_close","code":1000,"reason":""}"#
        );
        let visitor = super::super::Visitor { user_agent: "x".to_owned(), ..super::super::Visitor::default() };
        assert_eq!(
            json(&Event::Authenticate(&visitor)),
            r#"{"event":"authenticate","cookies":{},"user_agent":"x","remote_address":null,"origin":"","query":"","protocols":[]}"#
        );
    }

    proptest! {
        #[test]
        fn any_line_is_an_action_or_nonsense(line in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..60),
            r#"\{"(send|close|accept|broadcast|send_binary|log)":("?[a-z0-9=\\]{0,9}"?|\{("code":[0-9]{0,6})?\})\}"#
                .prop_map(String::into_bytes),
        ]) {
            if let Ok(Action::Broadcast(value, _)) = action(&line) {
                prop_assert!(!value.contains(['\n', '\r', '\0']));
            }
        }
    }
}
