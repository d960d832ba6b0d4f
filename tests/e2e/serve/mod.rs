//! The embedded server, `uhst-relay serve`: HTTP/1.1 as strangers and proxies speak it, the whole protocol through it,
//! and what an operator relies on.

mod crowd;
mod http11;
mod life;
mod listen;
mod malformed;
mod operator;
mod order;
mod proxied;
mod silence;
mod stalls;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use ureq::http;

use crate::bare::Bare;
use crate::place::{Folder, LONG, have, repository, settled_log, skip, until, write_settings};
use crate::proxies::{Front, MOUNT, Proxy};
use crate::relay::{Call, Relay, Reply};
use crate::stream::{Stream, end_of_head, parse_head};

/// A server on a port of its own. Its data folder is beside a CGI program, which may use it too.
pub struct Serve {
    folder: Folder,
    /// Where it is reached: its own address, or the proxy's.
    address: SocketAddr,
    front: Option<Front>,
    process: Child,
    agent: ureq::Agent,
}

/// `uhst-relay` with these arguments, and without anything of the test's own environment.
pub fn program(arguments: &[&str]) -> Command {
    program_at(Path::new(env!("CARGO_BIN_EXE_uhst-relay")), arguments)
}

fn program_at(binary: &Path, arguments: &[&str]) -> Command {
    // --pdeathsig: when the test is killed, so is the server.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(binary).args(arguments);
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin").stdin(Stdio::null());
    command
}

impl Serve {
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// With these settings, in the data folder.
    pub fn with(settings: &[(&str, &str)]) -> Self {
        Self::with_options(settings, &[])
    }

    /// Behind a proxy, which speaks for its clients. `None` with a word on stderr where there is no such proxy.
    pub fn behind(proxy: Proxy, settings: &[(&str, &str)]) -> Option<Self> {
        let trusting = [settings, &[("RELAY_TRUSTED_PROXIES", "127.0.0.1")]].concat();
        let mut serve = Self::with(&trusting);
        let front = Front::start(proxy, serve.address)?;
        serve.address = front.address();
        serve.front = Some(front);
        Some(serve)
    }

    /// With these settings and further command-line options.
    pub fn with_options(settings: &[(&str, &str)], options: &[&str]) -> Self {
        Self::start(Path::new(env!("CARGO_BIN_EXE_uhst-relay")), "127.0.0.1:0", settings, options)
    }

    /// On another address than the usual one.
    pub fn at(listen: &str, settings: &[(&str, &str)]) -> Self {
        Self::start(Path::new(env!("CARGO_BIN_EXE_uhst-relay")), listen, settings, &[])
    }

    /// Of another program that is the relay and more.
    pub fn of_program(program: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start(program, "127.0.0.1:0", settings, &[])
    }

    fn start(binary: &Path, listen: &str, settings: &[(&str, &str)], options: &[&str]) -> Self {
        let folder = Folder::with_program();
        let data = folder.join("cgi-bin/data");
        write_settings(&data, settings, None);
        let log = folder.join("serve.log");
        let mut process = program_at(binary, &["serve", "--listen", listen, "--data", data.to_str().unwrap()])
            .args(options)
            .stderr(File::create(&log).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .expect("setpriv runs the server");
        let mut address = None;
        until("the server says where it is", LONG, || {
            let said = fs::read_to_string(&log).unwrap();
            assert!(process.try_wait().unwrap().is_none(), "the server ended: {said}");
            // Whether its Redis is there stands before.
            let (lines, _) = said.rsplit_once('\n').unwrap_or_default();
            address = lines.lines().find(|line| !line.starts_with("uhst-relay: ")).map(parse_address);
            address.is_some()
        });
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(LONG))
            .max_redirects(0)
            // Below the server's own limit for idle connections.
            .max_idle_age(Duration::from_secs(3))
            .proxy(None)
            .build()
            .into();
        Self { folder, address: address.unwrap(), front: None, process, agent }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.join("cgi-bin/data")
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    pub fn url(&self) -> String {
        format!("http://{}{}", self.address, self.mount())
    }

    /// Below which path it is.
    fn mount(&self) -> &'static str {
        if self.front.is_some() { MOUNT } else { "" }
    }

    /// All that the server has written to stderr.
    pub fn log(&self) -> String {
        settled_log(&self.folder.join("serve.log"))
    }

    /// A CGI program that shares the data folder.
    pub fn cgi(&self) -> Bare {
        Bare::with(&[("RELAY_DATA_DIR", self.data().to_str().unwrap())])
    }

    pub fn wire(&self) -> Wire {
        Wire::new(TcpStream::connect(self.address).expect("the server accepts connections"))
    }

    /// Asks for a stream with a head of the test's own, on a socket that stays in its hands.
    #[track_caller]
    fn stream(&self, head: &str) -> (TcpStream, Stream) {
        let mut socket = TcpStream::connect(self.address).expect("the server accepts connections");
        socket.write_all(head.as_bytes()).unwrap();
        let own = socket.try_clone().unwrap();
        let mut stream = Stream::from_socket(socket).unwrap_or_else(|reply| panic!("no stream but {reply:?}"));
        stream.expect_comment("Connected.");
        (own, stream)
    }

    /// A stream of this token, unread but for its first line.
    #[track_caller]
    fn open_wire(&self, token: &str) -> Wire {
        let mut wire = self.wire();
        wire.send(format!("GET /?token={token} HTTP/1.1\r\nHost: relay\r\n\r\n"));
        wire.hear_text(": Connected.\n");
        wire
    }

    /// One request on a connection of its own.
    #[track_caller]
    fn serves(&self, number: u64) {
        let mut wire = self.wire();
        wire.send(ping(number));
        wire.expect_pong(number);
    }

    /// How the server ends, and how long it took, from now.
    #[track_caller]
    pub fn ends(&mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        let mut status = None;
        until("the server ends", LONG, || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        (status.unwrap(), start.elapsed())
    }
}

/// `uhst-relay 0.1.0 (abcdef123456) at http://127.0.0.1:PORT, data in …`
#[track_caller]
fn parse_address(line: &str) -> SocketAddr {
    let (program, place) = line.split_once(" at ").unwrap_or_default();
    let place = place.trim_start_matches("http://").trim_start_matches("https://");
    let address = place
        .split_once(", data in ")
        .filter(|_| program.starts_with(concat!("uhst-relay ", env!("CARGO_PKG_VERSION"))));
    let address = address.unwrap_or_else(|| panic!("not the line of a server that begins: {line}")).0;
    let first = address.split(" and ").next().unwrap_or_default();
    first.parse().unwrap_or_else(|_| panic!("no address in {line}"))
}

impl Relay for Serve {
    #[track_caller]
    fn call(&self, call: &Call) -> Reply {
        let query = if call.query.is_empty() { String::new() } else { format!("?{}", call.query) };
        let path = if call.path_info.is_empty() { "/" } else { call.path_info };
        let mut request = http::Request::builder().method(call.method).uri(format!("{}{path}{query}", self.url()));
        for &(name, value) in call.headers {
            request = request.header(name, value);
        }
        let answer = if matches!(call.method, "POST" | "PUT" | "PATCH") {
            self.agent.run(request.body(call.body).unwrap())
        } else {
            self.agent.run(request.body(()).unwrap())
        };
        let mut answer = answer.unwrap_or_else(|error| panic!("{} ?{}: {error}", call.method, call.query));
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = answer.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let body = answer.body_mut().read_to_string().unwrap();
        Reply { status: answer.status().as_u16(), headers, body }
    }

    fn listen_at(&self, path_info: &str, query: &str, headers: &[(&str, &str)]) -> Result<Stream, Reply> {
        let path = if path_info.is_empty() { "/" } else { path_info };
        let mut request = format!(
            "GET {}{path}?{query} HTTP/1.1\r\nHost: {}\r\nAccept: text/event-stream\r\n",
            self.mount(),
            self.address
        );
        for (name, value) in headers {
            write!(request, "{name}: {value}\r\n").unwrap();
        }
        request += "\r\n";
        let mut socket = TcpStream::connect(self.address).expect("the server accepts connections");
        socket.write_all(request.as_bytes()).expect("the server reads the request");
        Stream::from_socket(socket)
    }

    fn folder(&self) -> &Folder {
        &self.folder
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let log = self.log();
        if std::thread::panicking() {
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- the end of the server's log");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        } else {
            assert!(!log.contains("panicked"), "the server panicked: {log}");
        }
    }
}

/// A whole request whose answer is known by its number.
fn ping(number: u64) -> String {
    format!("POST /?action=ping&timestamp={number} HTTP/1.1\r\nHost: relay\r\nContent-Length: 0\r\n\r\n")
}

/// A connection on which a test says and hears every byte itself.
pub struct Wire {
    socket: TcpStream,
    /// Heard and not yet looked at.
    heard: Vec<u8>,
}

impl Wire {
    fn new(socket: TcpStream) -> Self {
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        Self { socket, heard: Vec::new() }
    }

    /// False when the server has closed the connection already.
    fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.socket.write_all(bytes.as_ref()).is_ok()
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        assert!(self.try_send(bytes), "the server has closed the connection");
    }

    /// Says that nothing more will be sent.
    fn done(&mut self) {
        self.socket.shutdown(Shutdown::Write).unwrap();
    }

    /// False at the end of the connection. A reset is no end: it may take an answer with it that the client has not read
    /// yet (RFC 9112, 9.6).
    #[track_caller]
    fn hear(&mut self) -> bool {
        let mut bytes = [0; 16384];
        match self.socket.read(&mut bytes) {
            Ok(0) => {
                let error = self.socket.take_error().unwrap();
                assert!(error.is_none(), "{error:?} behind {:?}", String::from_utf8_lossy(&self.heard));
                false
            }
            Ok(count) => {
                self.heard.extend_from_slice(&bytes[..count]);
                true
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => true,
            Err(error) => panic!("{error}: nothing after {:?}", String::from_utf8_lossy(&self.heard)),
        }
    }

    /// All that has come, once this is in it.
    #[track_caller]
    fn hear_text(&mut self, text: &str) -> String {
        loop {
            let heard = String::from_utf8_lossy(&self.heard);
            if heard.contains(text) {
                return heard.into_owned();
            }
            assert!(self.hear(), "no {text:?}, but {:?}", String::from_utf8_lossy(&self.heard));
        }
    }

    /// The next answer, however its end is told.
    #[track_caller]
    pub fn answer(&mut self) -> Reply {
        self.answer_to("POST")
    }

    #[track_caller]
    fn answer_to(&mut self, method: &str) -> Reply {
        let end = loop {
            if let Some(end) = end_of_head(&self.heard) {
                break end;
            }
            assert!(self.hear(), "no answer, but {:?}", String::from_utf8_lossy(&self.heard));
        };
        let rest = self.heard.split_off(end);
        let head = std::mem::replace(&mut self.heard, rest);
        // An old client is answered in its own version (RFC 9110, 6.2, and what hyper makes of it).
        let is_http = head.starts_with(b"HTTP/1.1 ") || head.starts_with(b"HTTP/1.0 ");
        assert!(is_http, "{:?}", String::from_utf8_lossy(&head));
        let (status, headers) = parse_head(&head);
        let mut reply = Reply { status, headers, body: String::new() };
        if method == "HEAD" || status < 200 || status == 204 {
            return reply;
        }
        let length = reply.header("content-length").map(|length| length.parse::<usize>().expect("a length"));
        assert!(reply.header("transfer-encoding").is_none(), "a stream: {reply:?}");
        while length.is_none_or(|length| self.heard.len() < length) {
            if !self.hear() {
                assert!(length.is_none(), "half an answer: {reply:?}");
                break;
            }
        }
        let rest = self.heard.split_off(length.unwrap_or(self.heard.len()));
        reply.body = String::from_utf8(std::mem::replace(&mut self.heard, rest)).expect("an answer is UTF-8");
        reply
    }

    #[track_caller]
    fn expect_pong(&mut self, number: u64) -> Reply {
        let reply = self.answer().expect(200);
        assert_eq!(reply.body, format!("{{\"pong\":{number}}}"));
        reply
    }

    /// All that comes until the server closes the connection, which it has to.
    #[track_caller]
    fn rest(&mut self) -> String {
        while self.hear() {}
        String::from_utf8_lossy(&std::mem::take(&mut self.heard)).into_owned()
    }

    #[track_caller]
    fn expect_end(&mut self) {
        let rest = self.rest();
        assert_eq!(rest, "", "something comes where the connection should end");
    }
}

/// Runs the program to its end: exit code and stderr.
#[track_caller]
fn run(command: &mut Command) -> (Option<i32>, String) {
    let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("setpriv runs the program");
    let deadline = Instant::now() + LONG;
    while process.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = process.kill();
            panic!("{command:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = process.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Removes what is dead from a data folder.
#[track_caller]
fn sweep(data: &Path) {
    let (code, said) = run(&mut program(&["sweep", "--data", data.to_str().unwrap()]));
    assert_eq!(code, Some(0), "{said}");
}

protocol_through!(Serve);
tests! { Serve: bus::an_id_beyond_the_newest_means_from_now_on, }

/// The `uhst` package as published on npm, unchanged, on Node: see `tests/client/client.cjs`.
#[test]
fn the_published_client_works() {
    let client = repository().join("tests/client");
    if !have("node") {
        return skip("node is not installed");
    }
    if !client.join("node_modules/uhst").is_dir() {
        return skip("the uhst package is not there: `npm ci` in tests/client, or `tests/run`, installs it");
    }
    let relay = Serve::new();
    // The script has a time limit of its own for every step.
    let output = Command::new("node").arg(client.join("client.cjs")).arg(relay.url()).stdin(Stdio::null()).output();
    let output = output.expect("node runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim_end().ends_with("PASSED"), "{}\n{said}\n{complained}", output.status);
}
