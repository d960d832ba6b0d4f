//! The program without a web server: the test sets the environment of RFC 3875 and reads stdout. It is quick, and a
//! test can kill exactly the process that it means.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::place::{Folder, LONG, User, is_root, readable};
use crate::relay::{Call, Relay, Reply};
use crate::stream::{Stream, end_of_head, parse_head};

pub struct Bare {
    folder: Folder,
    settings: Vec<(String, String)>,
    user: Option<User>,
    script_name: String,
}

impl Bare {
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// With these settings in the environment.
    pub fn with(settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { folder: Folder::with_program(), settings, user: None, script_name: "/cgi-bin/relay.cgi".into() }
    }

    /// Runs as somebody without rights from now on: nothing is forbidden to root. Nobody else can change users, nor needs to.
    pub fn run_as(mut self, user: User) -> Self {
        self.user = is_root().then_some(user);
        self
    }

    /// Another address of the program, as the web server would tell it.
    pub fn named(mut self, script_name: &str) -> Self {
        script_name.clone_into(&mut self.script_name);
        self
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.into(), value.into()));
    }

    pub fn program(&self) -> PathBuf {
        self.folder.join("cgi-bin/relay.cgi")
    }

    /// Where the relay keeps everything, if `RELAY_DATA_DIR` says nothing else.
    pub fn data(&self) -> PathBuf {
        let elsewhere = self.settings.iter().find(|(name, _)| name == "RELAY_DATA_DIR");
        elsewhere.map_or_else(|| self.folder.join("cgi-bin/data"), |(_, path)| PathBuf::from(path))
    }

    /// The records of all sessions of hosts.
    pub fn sessions(&self) -> Vec<PathBuf> {
        crate::place::records(&self.data(), "hosts")
    }

    /// What the program has written for the web server's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("error.log")).unwrap_or_default()
    }

    /// The command that runs `program`, as the user and with the settings of this relay.
    fn command(&self, program: &Path) -> Command {
        let mut command = match self.user {
            None => Command::new(program),
            Some(User { uid, gid }) => {
                let mut command = Command::new("setpriv");
                command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()]);
                command.arg("--").arg(program);
                command
            }
        };
        let log = File::options().create(true).append(true).open(self.folder.join("error.log")).unwrap();
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").current_dir(self.folder.join("cgi-bin"));
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command.stderr(log);
        command
    }

    /// The program on the command line, not as CGI.
    pub fn command_line(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&self.program());
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        if !self.settings.iter().any(|(name, _)| name == "RELAY_DATA_DIR") {
            command.env("RELAY_DATA_DIR", self.data());
        }
        command
    }

    /// Removes what is dead, as `relay sweep` does for the owner of the host.
    #[track_caller]
    pub fn sweep(&self) {
        let output = self.command_line(&["sweep"]).output().expect("the program runs");
        assert!(output.status.success(), "sweep: {:?}: {}", output.status, self.log());
    }

    /// A request's process, before it starts: a test may bend its environment.
    pub fn request(&self, call: &Call) -> Command {
        self.request_of(&self.program(), call)
    }

    pub fn request_of(&self, program: &Path, call: &Call) -> Command {
        let mut command = self.command(program);
        command
            .env("GATEWAY_INTERFACE", "CGI/1.1")
            .env("SERVER_PROTOCOL", "HTTP/1.1")
            .env("SERVER_SOFTWARE", "test")
            .env("SERVER_NAME", "127.0.0.1")
            .env("SERVER_PORT", "80")
            .env("REMOTE_ADDR", "127.0.0.1")
            .env("REQUEST_METHOD", call.method)
            .env("SCRIPT_NAME", &self.script_name)
            .env("SCRIPT_FILENAME", self.program())
            .env("QUERY_STRING", OsString::from_vec(call.query.as_bytes().to_vec()));
        if !call.path_info.is_empty() {
            command.env("PATH_INFO", call.path_info);
        }
        if call.method == "POST" || !call.body.is_empty() {
            command.env("CONTENT_LENGTH", call.body.len().to_string());
        }
        for (name, value) in call.headers {
            let name = name.to_uppercase().replace('-', "_");
            let name = if name == "CONTENT_TYPE" { name } else { format!("HTTP_{name}") };
            command.env(name, value);
        }
        command.stdin(if call.body.is_empty() { Stdio::null() } else { Stdio::piped() }).stdout(Stdio::piped());
        command
    }

    /// Runs a request that a test has bent.
    #[track_caller]
    pub fn run(&self, command: &mut Command, body: &[u8]) -> Reply {
        let (output, status) = finish(start(command, body));
        self.reply(&output, status)
    }

    /// Starts a request and leaves it to the test, with its whole body sent.
    #[track_caller]
    pub fn start(&self, call: &Call) -> Child {
        start(&mut self.request(call), call.body)
    }

    #[track_caller]
    pub fn reply(&self, output: &[u8], status: ExitStatus) -> Reply {
        let text = String::from_utf8_lossy(output);
        assert!(status.success(), "the program ended with {status} after {text:?}: {}", self.log());
        let end = end_of_head(output).unwrap_or_else(|| panic!("no head in {text:?}: {}", self.log()));
        let (status, headers) = parse_head(&output[..end]);
        Reply { status, headers, body: String::from_utf8_lossy(&output[end..]).into_owned() }
    }
}

#[track_caller]
fn start(command: &mut Command, body: &[u8]) -> Child {
    let mut process = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    if let Some(mut input) = process.stdin.take() {
        // It may answer before it has read everything: a body that is too large is refused early.
        let _ = input.write_all(body);
    }
    process
}

/// All that it writes, and how it ends, within the time limit.
#[track_caller]
pub fn finish(mut process: Child) -> (Vec<u8>, ExitStatus) {
    let deadline = Instant::now() + LONG;
    let mut pipe = process.stdout.take().expect("its output is piped");
    let (mut output, mut buffer) = (Vec::new(), [0; 8192]);
    loop {
        if !readable(&pipe, deadline) {
            let _ = process.kill();
            panic!("the program did not end within {LONG:?} after {:?}", String::from_utf8_lossy(&output));
        }
        match pipe.read(&mut buffer).expect("its output can be read") {
            0 => break,
            count => output.extend_from_slice(&buffer[..count]),
        }
    }
    (output, process.wait().expect("a child can be waited for"))
}

impl Relay for Bare {
    fn call(&self, call: &Call) -> Reply {
        self.run(&mut self.request(call), call.body)
    }

    fn listen_at(&self, path_info: &str, query: &str, headers: &[(&str, &str)]) -> Result<Stream, Reply> {
        let call = Call { method: "GET", path_info, query, headers, ..Call::default() };
        Stream::from_process(self.request(&call).spawn().expect("the program runs"))
    }

    fn folder(&self) -> &Folder {
        &self.folder
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("--- what the program wrote for the log\n{log}");
        } else {
            assert!(!log.contains("panicked"), "the program panicked: {log}");
        }
        // Streams of a failed test, if any: they are below this test's own folder.
        for pid in crate::place::processes_below(self.folder.path()) {
            crate::place::kill(pid, rustix::process::Signal::KILL);
        }
    }
}

/// How long something took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

protocol_through!(Bare);
tests! { Bare: bus::an_id_beyond_the_newest_means_from_now_on, }
