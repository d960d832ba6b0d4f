//! The relay under test: its two doors, a process for each request and `serve`, on one data folder.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::IgnoredAny;

/// An answer that takes longer is a hang, not slowness.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which way a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Cgi,
    Serve,
}

/// What is to be killed, and what must be left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    MayBeKilled,
    Safe,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub method: &'static str,
    /// After the relay's own URL, such as `/bus/NAME`.
    pub path: &'a str,
    pub query: &'a str,
    pub body: &'a [u8],
    pub last_event_id: Option<u64>,
}

impl<'a> Request<'a> {
    pub fn post(path: &'a str, query: &'a str, body: &'a [u8]) -> Self {
        Self { method: "POST", path, query, body, last_event_id: None }
    }

    pub fn get(path: &'a str, query: &'a str) -> Self {
        Self { method: "GET", path, query, body: b"", last_event_id: None }
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// The relay.
pub struct Relay {
    pub cgi: PathBuf,
    pub serve: PathBuf,
    pub data: PathBuf,
    pub address: SocketAddr,
    /// The processes of requests that run now, and what may happen to them. An owner takes its process off the list before it
    /// waits for it, so that no number on the list can mean another process.
    processes: Mutex<HashMap<i32, Fate>>,
    pub log: PathBuf,
    /// `RELAY_STORE`, where it is not the data folder.
    store: Option<String>,
}

/// The process of a request.
struct Process<'a> {
    child: Child,
    relay: &'a Relay,
}

impl Drop for Process<'_> {
    fn drop(&mut self) {
        self.relay.forget(&self.child);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running `serve`. Dropped, it is killed with SIGKILL, and gone.
pub struct Server(Child);

impl Server {
    /// How many descriptors it has open.
    pub fn descriptors(&self) -> io::Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.0.id()))?.count())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A stream, or an answer that is still coming.
pub struct Stream<'a> {
    fd: OwnedFd,
    process: Option<Process<'a>>,
    buffer: Vec<u8>,
}

/// What a stream has given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Got {
    Bytes,
    Nothing,
    End,
}

impl Relay {
    pub fn new(cgi: PathBuf, serve: PathBuf, folder: &Path, address: SocketAddr, store: Option<String>) -> Self {
        let processes = Mutex::default();
        Self { cgi, serve, data: folder.join("data"), address, processes, log: folder.join("relay.log"), store }
    }

    /// Whether it has its data in another program.
    pub fn is_remote(&self) -> bool {
        self.store.is_some()
    }

    fn processes(&self) -> std::sync::MutexGuard<'_, HashMap<i32, Fate>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, child: &Child) {
        self.processes().remove(&child.id().cast_signed());
    }

    /// Kills one of the processes that may be killed, chosen by `choose` of so many.
    pub fn kill_one(&self, choose: impl FnOnce(usize) -> usize) -> bool {
        let processes = self.processes();
        let mut mortal: Vec<_> =
            processes.iter().filter(|&(_, &fate)| fate == Fate::MayBeKilled).map(|(&pid, _)| pid).collect();
        mortal.sort_unstable();
        if mortal.is_empty() {
            return false;
        }
        let pid = Pid::from_raw(mortal[choose(mortal.len())]);
        // Still under the lock: its owner has not waited for it yet, so the number is its own.
        pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
    }

    /// How many processes of requests run now.
    pub fn running(&self) -> usize {
        self.processes().len()
    }

    fn command(&self, program: &Path) -> Command {
        let log = std::fs::File::options().create(true).append(true).open(&self.log).expect("the log can be opened");
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("RELAY_DATA_DIR", &self.data).stderr(log);
        command.envs(self.store.iter().map(|url| ("RELAY_STORE", url)));
        command
    }

    fn start(&self, command: &mut Command, fate: Fate) -> io::Result<Process<'_>> {
        // Under the lock, so that a process is on the list before anybody looks for it.
        let mut processes = self.processes();
        let child = command.spawn()?;
        processes.insert(child.id().cast_signed(), fate);
        Ok(Process { child, relay: self })
    }

    /// Starts `serve` and waits until it answers.
    pub fn start_server(&self) -> io::Result<Server> {
        let address = self.address.to_string();
        let child = self
            .command(&self.serve)
            .args(["serve", "--quiet", "--listen", &address, "--data"])
            .arg(&self.data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let mut server = Server(child);
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = server.0.try_wait()? {
                return Err(io::Error::other(format!("serve has ended: {status}")));
            }
            if Instant::now() > until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Runs a whole sweep, which may be killed.
    pub fn sweep(&self, fate: Fate) -> io::Result<bool> {
        let mut command = self.command(&self.cgi);
        let mut process = self.start(command.arg("sweep").stdin(Stdio::null()).stdout(Stdio::null()), fate)?;
        self.wait(&mut process)
    }

    /// Waits for a process, without keeping others from being killed.
    fn wait(&self, process: &mut Process<'_>) -> io::Result<bool> {
        use rustix::process::{WaitIdOptions, waitid};
        let id = rustix::process::WaitId::Pid(Pid::from_child(&process.child));
        loop {
            // It is not reaped here, so its number stays its own.
            match waitid(id.clone(), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => break,
            }
        }
        self.forget(&process.child);
        Ok(process.child.wait()?.success())
    }

    /// Asks, and waits for the whole answer. `Ok(None)` when it broke off: nobody knows what has become of the request.
    /// `Err` when the request was never made.
    pub fn ask(&self, door: Door, request: &Request<'_>, fate: Fate) -> io::Result<Option<Answer>> {
        let mut stream = self.open(door, request, fate)?;
        let until = Instant::now() + PATIENCE;
        loop {
            match stream.read(Duration::from_secs(1)) {
                Got::End => break,
                // It was asked, and may still be done.
                Got::Nothing if Instant::now() > until => return Ok(None),
                _ => {}
            }
        }
        if let Some(mut process) = stream.process.take() {
            // Whatever it has begun ends with it: only then may the next message be sent.
            self.wait(&mut process)?;
        }
        Ok(stream.answer())
    }

    /// Begins a request.
    pub fn open(&self, door: Door, request: &Request<'_>, fate: Fate) -> io::Result<Stream<'_>> {
        match door {
            Door::Cgi => self.open_cgi(request, fate),
            Door::Serve => self.open_serve(request),
        }
    }

    fn open_cgi(&self, request: &Request<'_>, fate: Fate) -> io::Result<Stream<'_>> {
        let mut command = self.command(&self.cgi);
        command
            .env("GATEWAY_INTERFACE", "CGI/1.1")
            .env("SERVER_PROTOCOL", "HTTP/1.1")
            .env("SERVER_SOFTWARE", "proof")
            .env("REQUEST_METHOD", request.method)
            .env("SCRIPT_NAME", "/relay.cgi")
            .env("PATH_INFO", request.path)
            .env("QUERY_STRING", request.query)
            .env("REMOTE_ADDR", "127.0.0.1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if request.method == "POST" {
            command.env("CONTENT_LENGTH", request.body.len().to_string());
        }
        if let Some(id) = request.last_event_id {
            command.env("HTTP_LAST_EVENT_ID", id.to_string());
        }
        let mut process = self.start(&mut command, fate)?;
        if let Some(mut stdin) = process.child.stdin.take() {
            // It may have been killed already.
            let _ = stdin.write_all(request.body);
        }
        let fd = process.child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?.into();
        Ok(Stream { fd, process: Some(process), buffer: Vec::new() })
    }

    fn open_serve(&self, request: &Request<'_>) -> io::Result<Stream<'_>> {
        let mut socket = TcpStream::connect(self.address)?;
        // HTTP/1.0: the end of the connection is the end of the answer, and a stream comes without chunks.
        let Request { method, path, query, body, .. } = request;
        let path = if path.is_empty() { "/" } else { path };
        let mut head = format!("{method} {path}?{query} HTTP/1.0\r\nHost: relay\r\nContent-Length: {}\r\n", body.len());
        if let Some(id) = request.last_event_id {
            let _ = write!(head, "Last-Event-ID: {id}\r\n");
        }
        // The server may be killed meanwhile; then there will be no answer.
        let _ = socket.write_all(&[head.as_bytes(), b"\r\n", body].concat());
        Ok(Stream { fd: socket.into(), process: None, buffer: Vec::new() })
    }
}

impl Stream<'_> {
    /// Leaves, and gives the process of a request the time to notice.
    pub fn hang_up(self) {
        let Self { fd, process, .. } = self;
        drop(fd);
        let Some(mut process) = process else { return };
        process.relay.forget(&process.child);
        let until = Instant::now() + Duration::from_secs(5);
        while matches!(process.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for bytes, but not for longer than `limit`.
    pub fn read(&mut self, limit: Duration) -> Got {
        let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&limit)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Got::Nothing,
            Ok(_) => {}
            Err(_) => return Got::End,
        }
        let mut bytes = [0; 16 * 1024];
        match rustix::io::read(self.fd.as_fd(), &mut bytes) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Got::Nothing,
            Ok(0) | Err(_) => Got::End,
            Ok(count) => {
                self.buffer.extend_from_slice(&bytes[..count]);
                Got::Bytes
            }
        }
    }

    /// The status and what is behind the head, once the head is here.
    fn head(&self) -> Option<(u16, usize)> {
        let end = find(&self.buffer, b"\r\n\r\n")? + 4;
        let head = std::str::from_utf8(&self.buffer[..end]).ok()?;
        let line = head.lines().next()?;
        let status = line.strip_prefix("Status: ").or_else(|| line.split_once(' ').map(|(_, rest)| rest))?;
        Some((status.get(..3)?.parse().ok()?, end))
    }

    /// Waits for the head, and takes it off: the status. `None` when it broke off before.
    pub fn take_head(&mut self, limit: Duration) -> Option<u16> {
        let until = Instant::now() + limit;
        loop {
            if let Some((status, end)) = self.head() {
                self.buffer.drain(..end);
                return Some(status);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.read(left) == Got::End {
                return None;
            }
        }
    }

    /// Takes the next whole event or comment off: what is before an empty line.
    pub fn take_block(&mut self) -> Option<String> {
        let end = find(&self.buffer, b"\n\n")?;
        let block = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end + 2);
        Some(block)
    }

    fn answer(mut self) -> Option<Answer> {
        let (status, end) = self.head()?;
        let head = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length = length.map(|length| length.trim().parse::<usize>());
        let body = self.buffer.split_off(end);
        let is_whole = match length {
            Some(length) => length.ok()? == body.len(),
            // A poll of much is written as it is read: an array, which is none without its last byte.
            None => serde_json::from_slice::<IgnoredAny>(&body).is_ok(),
        };
        is_whole.then_some(Answer { status, body })
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
