//! A web server, started from the files in `deploy/` and stopped whatever happens.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use ureq::http;

use crate::door::Door;
use crate::place::{Folder, LONG, is_root, kill, processes_below, repository, web_user, write_settings};
use crate::relay::{Call, Relay, Reply};
use crate::stream::Stream;

const PROGRAM: &str = "/cgi-bin/relay.cgi";

pub struct Server {
    folder: Folder,
    port: u16,
    process: Option<Child>,
    agent: ureq::Agent,
}

impl Server {
    pub fn start(door: Door, settings: &[(&str, &str)]) -> Self {
        Self::of_program(&crate::place::program(), door, settings)
    }

    /// With another program as its `relay.cgi`.
    pub fn of_program(program: &Path, door: Door, settings: &[(&str, &str)]) -> Self {
        let folder = Folder::with(program);
        write_settings(&folder.join("cgi-bin/data"), settings, is_root().then(web_user));
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(LONG))
            .max_redirects(0)
            .max_idle_connections(0)
            .proxy(None)
            .build()
            .into();
        let mut server = Self { folder, port: 0, process: None, agent };
        for _ in 0..3 {
            server.port = free_port();
            server.process = Some(spawn(door, server.port, &server.folder));
            if server.answers() {
                return server;
            }
            server.stop();
        }
        panic!("{door:?} does not start");
    }

    /// Waits until a ping comes back. False when the server ended instead, for example because its port was taken.
    fn answers(&mut self) -> bool {
        let deadline = Instant::now() + LONG;
        while Instant::now() < deadline {
            let process = self.process.as_mut().expect("it was started");
            if process.try_wait().expect("a child can be waited for").is_some() {
                return false;
            }
            let ready = TcpStream::connect(("127.0.0.1", self.port)).is_ok()
                && self
                    .try_call(&Call { query: "action=ping", ..Call::default() })
                    .is_ok_and(|reply| reply.status == 200);
            if ready {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!(
            "no answer to a ping within {LONG:?}; the last one was {:?}",
            self.try_call(&Call { query: "action=ping", ..Call::default() })
        );
    }

    /// Whether a ping comes back within two seconds; false where nobody listens or answers.
    pub fn answers_soon(&self) -> bool {
        let Ok(mut socket) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let request = format!("POST {PROGRAM}?action=ping&timestamp=1 HTTP/1.0\r\nContent-Length: 0\r\n\r\n");
        let mut answer = String::new();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket.write_all(request.as_bytes()).is_ok()
            && socket.read_to_string(&mut answer).is_ok()
            && answer.ends_with(r#"{"pong":1}"#)
    }

    /// What everybody types into a browser.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}{PROGRAM}", self.port)
    }

    /// Sends bytes as they are and reads the answer, which must come within the time limit.
    #[track_caller]
    pub fn raw(&self, request: &[u8]) -> Reply {
        let mut socket = self.connect();
        // The server may answer and close before it has read everything.
        let _ = socket.write_all(request);
        match Stream::from_socket(socket) {
            Ok(_) => panic!("a stream, not an answer"),
            Err(reply) => reply,
        }
    }

    /// Any file of the site.
    #[track_caller]
    pub fn page(&self, path: &str) -> Reply {
        self.raw(
            format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n\r\n", self.port).as_bytes(),
        )
    }

    fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(("127.0.0.1", self.port)).expect("the server accepts connections");
        socket.set_nodelay(true).unwrap();
        socket
    }

    fn try_call(&self, call: &Call) -> Result<Reply, ureq::Error> {
        let query = if call.query.is_empty() { String::new() } else { format!("?{}", call.query) };
        let mut request =
            http::Request::builder().method(call.method).uri(format!("{}{}{query}", self.url(), call.path_info));
        for &(name, value) in call.headers {
            request = request.header(name, value);
        }
        let answer = if matches!(call.method, "POST" | "PUT" | "PATCH") {
            self.agent.run(request.body(call.body).map_err(ureq::Error::from)?)
        } else {
            assert!(call.body.is_empty(), "a body with {}", call.method);
            self.agent.run(request.body(()).map_err(ureq::Error::from)?)
        };
        let mut answer = answer?;
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = answer.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let body = answer.body_mut().read_to_string()?;
        Ok(Reply { status: answer.status().as_u16(), headers, body })
    }

    /// Stops the server as an init system does, and makes sure that nothing of it is left.
    pub fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let pid = Pid::from_child(&process);
        kill(pid, Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(15);
        while matches!(process.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = kill_process_group(pid, Signal::KILL);
        let _ = process.wait();
    }

    /// What the server and the program wrote to the log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("run/error.log")).unwrap_or_default()
    }
}

/// Ports below those that the kernel gives to outgoing connections, no two the same within this process: a test can
/// never reach the server of another one that stopped.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id() * 500 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(10_000 + number % 20_000).expect("below 30,000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn spawn(door: Door, port: u16, folder: &Folder) -> Child {
    let (deployment, variant) = door.deployment();
    // --pdeathsig: when the test is killed, so is the server.
    Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "--"])
        .arg(repository().join("deploy").join(deployment).join("run"))
        .arg(port.to_string())
        .arg(folder.path())
        .args(variant)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("setpriv runs the server")
}

impl Relay for Server {
    #[track_caller]
    fn call(&self, call: &Call) -> Reply {
        self.try_call(call).unwrap_or_else(|error| panic!("{} ?{}: {error}", call.method, call.query))
    }

    fn listen_at(&self, path_info: &str, query: &str, headers: &[(&str, &str)]) -> Result<Stream, Reply> {
        let mut request = format!(
            "GET {PROGRAM}{path_info}?{query} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAccept: text/event-stream\r\n",
            self.port
        );
        for (name, value) in headers {
            write!(request, "{name}: {value}\r\n").unwrap();
        }
        request += "\r\n";
        let mut socket = self.connect();
        socket.write_all(request.as_bytes()).expect("the server reads the request");
        Stream::from_socket(socket)
    }

    fn folder(&self) -> &Folder {
        &self.folder
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        for pid in processes_below(self.folder.path()) {
            kill(pid, Signal::KILL);
        }
        let log = self.log();
        if std::thread::panicking() {
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- the end of the server's log");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        } else {
            assert!(!log.contains("panicked"), "the program panicked: {log}");
        }
    }
}
