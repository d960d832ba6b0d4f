//! Debian's redis-server, or valkey-server, for the relays of a test.

use std::fs;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal};

use crate::place::{Folder, LONG, have, kill, skip, until};
use crate::server::free_port;

/// One on a port of the loopback address. It ends with the test.
pub struct Redis {
    folder: Folder,
    port: u16,
    more: Vec<String>,
    process: Child,
}

impl Redis {
    /// With nothing in it, and more arguments; `None` with a word on stderr where none is installed.
    pub fn start(more: &[&str]) -> Option<Self> {
        Self::of(more, "")
    }

    /// The same with these lines in its file of settings.
    fn of(more: &[&str], settings: &str) -> Option<Self> {
        let Some(program) = ["redis-server", "valkey-server"].into_iter().find(|program| have(program)) else {
            skip("neither redis-server nor valkey-server is installed");
            return None;
        };
        let (folder, port) = (Folder::new(), free_port());
        // A sentinel writes what it finds out into its file.
        let file = folder.join("redis.conf");
        fs::write(&file, settings).unwrap();
        let more: Vec<String> =
            [program, file.to_str().unwrap()].iter().chain(more).map(|&text| text.to_owned()).collect();
        let process = spawn(&folder, port, &more);
        let redis = Self { folder, port, more, process };
        redis.wait_until_it_answers();
        Some(redis)
    }

    /// A sentinel that lets a replica take over where this one has been away for a second.
    pub fn sentinel(&self) -> Option<Self> {
        let port = self.port;
        Self::of(
            &["--sentinel"],
            &format!("sentinel monitor relay 127.0.0.1 {port} 1\nsentinel down-after-milliseconds relay 1000\n"),
        )
    }

    /// For `RELAY_STORE`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it answers, as the client program of the same package shows it.
    #[track_caller]
    pub fn ask(&self, command: &[&str]) -> String {
        let client = self.more[0].replace("server", "cli");
        let said = Command::new(client).args(["-p", &self.port.to_string()]).args(command).output().expect("it runs");
        String::from_utf8(said.stdout).unwrap().trim_end().to_owned()
    }

    /// The names that this script in Lua puts into `found`. It has all `keys`, and the time `now` in milliseconds.
    #[track_caller]
    pub fn look(&self, script: &str) -> Vec<String> {
        let begin = "local time, found, keys = redis.call('TIME'), {}, redis.call('KEYS', '*')
            local now = time[1] * 1000 + time[2] / 1000";
        let said = self.ask(&["EVAL", &format!("{begin}\n{script}\nreturn found"), "0"]);
        assert!(!said.contains("ERR"), "{said}");
        said.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    fn wait_until_it_answers(&self) {
        until("Redis answers", LONG, || ["PONG", "NOAUTH Authentication required."].contains(&&*self.ask(&["PING"])));
    }

    /// Kills it. What it has not written to a disk is lost.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again where it was.
    pub fn restart(&mut self) {
        self.process = spawn(&self.folder, self.port, &self.more);
        self.wait_until_it_answers();
    }

    /// Stops it as it is: it answers nothing until it [goes on](Self::go_on).
    pub fn freeze(&self) {
        kill(Pid::from_child(&self.process), Signal::STOP);
    }

    pub fn go_on(&self) {
        kill(Pid::from_child(&self.process), Signal::CONT);
    }
}

fn spawn(folder: &Folder, port: u16, more: &[String]) -> Child {
    let log = fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    // --pdeathsig: when the test is killed, so is the server.
    let mut command = Command::new("setpriv");
    // The program and its file come first.
    command.args(["--pdeathsig", "KILL", "--"]).args(&more[..2]).args(["--bind", "127.0.0.1"]);
    command.args(["--port", &port.to_string(), "--save", "", "--dir"]).arg(folder.path()).args(&more[2..]);
    command.stdin(Stdio::null()).stdout(log).spawn().expect("setpriv runs the server")
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- Redis\n{}", fs::read_to_string(self.folder.join("log")).unwrap_or_default());
        }
    }
}
