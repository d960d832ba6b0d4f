//! Real servers for the tests: Debian's redis-server, or valkey-server, on loopback and UNIX sockets.

use super::reply::{Reply, command, read, text};
use crate::config::redis::{Address, Server};
use crate::store::files::test_dir::TestDir;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A server of this test's own, with nothing in it. It ends with this.
pub struct TestServer {
    dir: TestDir,
    arguments: Vec<String>,
    child: Child,
    pub server: Server,
}

/// The program; `None` where it is not installed, which is an error where everything has to be tested.
fn program() -> Option<&'static str> {
    let is_there = |name: &&str| Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok();
    let found = ["redis-server", "valkey-server"].into_iter().find(is_there);
    if found.is_none() {
        let reason = "there is neither redis-server nor valkey-server";
        assert!(std::env::var("CI").as_deref() != Ok("true"), "cannot run this test: {reason}");
        eprintln!("SKIPPED, nothing was tested: {reason}");
    }
    found
}

/// Waits until that is there.
pub fn sooner_or_later<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "it does not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_loading(reply: &Reply) -> bool {
    matches!(reply, Reply::Error(error) if error.starts_with("LOADING"))
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl TestServer {
    /// One on a UNIX socket, with more arguments; `None` where none is installed.
    pub fn start(more: &[&str]) -> Option<Self> {
        let dir = TestDir::new();
        let socket = dir.join("redis.sock");
        let place = ["--port", "0", "--unixsocket", socket.to_str().unwrap()];
        Self::start_in(dir, Server::Unix(socket.clone()), &[&place[..], more].concat())
    }

    /// One on a port of the loopback address.
    pub fn start_tcp(more: &[&str]) -> Option<Self> {
        let port = free_port();
        let number = port.to_string();
        let place = ["--bind", "127.0.0.1", "--port", &number];
        Self::start_in(TestDir::new(), Server::Tcp("127.0.0.1".to_owned(), port), &[&place[..], more].concat())
    }

    /// A primary and its replica, and where both are; what is promised the replica has to have.
    pub fn start_with_replica() -> Option<(Self, Self, Address)> {
        let primary = Self::start_tcp(&[])?;
        let Server::Tcp(host, port) = &primary.server else { unreachable!() };
        let replica = Self::start_tcp(&["--replicaof", &format!("{host} {port}")])?;
        let is_linked =
            |role: &Reply| matches!(role, Reply::Array(role) if role.get(3).and_then(text) == Some("connected"));
        sooner_or_later(|| is_linked(&replica.ask(&["ROLE"])).then_some(()));
        let servers = vec![primary.server.clone(), replica.server.clone()];
        let address = Address { servers, replicas: 1, ..Address::default() };
        Some((primary, replica, address))
    }

    /// Three nodes of a cluster, each with a third of the slots.
    pub fn start_cluster() -> Option<[Self; 3]> {
        let nodes = [(); 3].map(|()| {
            let bus = free_port().to_string();
            let node = Self::start_tcp(&["--cluster-enabled", "yes", "--cluster-port", &bus])?;
            Some((node, bus))
        });
        let [Some(one), Some(two), Some(three)] = nodes else { return None };
        let nodes = [one, two, three];
        for (number, (node, _)) in nodes.iter().enumerate() {
            let (first, last) = (number * 16384 / 3, (number + 1) * 16384 / 3 - 1);
            node.ask(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
            for (other, bus) in &nodes {
                let Server::Tcp(host, port) = &other.server else { unreachable!() };
                node.ask(&["CLUSTER", "MEET", host, &port.to_string(), bus]);
            }
        }
        let is_whole = |node: &Self| match node.ask(&["CLUSTER", "INFO"]) {
            Reply::BulkString(info) => {
                let info = String::from_utf8(info).unwrap();
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
            }
            other => panic!("{other:?}"),
        };
        sooner_or_later(|| nodes.iter().all(|(node, _)| is_whole(node)).then_some(()));
        Some(nodes.map(|(node, _)| node))
    }

    fn start_in(dir: TestDir, server: Server, arguments: &[&str]) -> Option<Self> {
        let program = program()?;
        let folder = dir.join("");
        let fixed = ["--save", "", "--dir", folder.to_str().unwrap(), "--loglevel", "warning"];
        let arguments: Vec<String> = fixed.iter().chain(arguments).map(|text| (*text).to_owned()).collect();
        let child = Command::new(program).args(&arguments).stdout(Stdio::null()).spawn().unwrap();
        let started = Self { dir, arguments, child, server };
        started.wait_until_there();
        Some(started)
    }

    fn wait_until_there(&self) {
        sooner_or_later(|| self.try_to_ask(&["PING"]).filter(|reply| !is_loading(reply)));
    }

    /// Where it is, for somebody without a password.
    pub fn address(&self) -> Address {
        Address { servers: vec![self.server.clone()], ..Address::default() }
    }

    /// Asks it without a password, whatever it is.
    pub fn ask(&self, arguments: &[&str]) -> Reply {
        self.try_to_ask(arguments).unwrap()
    }

    fn try_to_ask(&self, arguments: &[&str]) -> Option<Reply> {
        fn exchange(mut stream: impl Read + Write, arguments: &[&str]) -> Option<Reply> {
            let mut bytes = Vec::new();
            stream.write_all(&command(arguments)).ok()?;
            loop {
                if let Some((reply, _)) = read(&bytes).unwrap() {
                    return Some(reply);
                }
                let mut piece = [0; 4096];
                let got = stream.read(&mut piece).ok().filter(|got| *got > 0)?;
                bytes.extend_from_slice(&piece[..got]);
            }
        }
        match &self.server {
            Server::Tcp(host, port) => exchange(TcpStream::connect((host.as_str(), *port)).ok()?, arguments),
            Server::Unix(path) => exchange(UnixStream::connect(path).ok()?, arguments),
        }
    }

    /// All its keys.
    pub fn keys(&self) -> Vec<String> {
        let Reply::Array(keys) = self.ask(&["KEYS", "*"]) else { panic!("it tells") };
        keys.iter().map(|key| text(key).unwrap().to_owned()).collect()
    }

    /// Removes the keys that end like this, as a Redis may that is full.
    pub fn remove(&self, end: &str) {
        for key in self.keys().iter().filter(|key| key.ends_with(end)) {
            self.ask(&["DEL", key]);
        }
    }

    /// Those of them that live for ever.
    pub fn immortal(&self) -> Vec<String> {
        self.keys().into_iter().filter(|key| self.ask(&["PTTL", key]) == Reply::Integer(-1)).collect()
    }

    /// A number of what `INFO` tells of a section: what follows this.
    pub fn info(&self, section: &str, before: &str) -> u64 {
        let Reply::BulkString(info) = self.ask(&["INFO", section]) else { panic!("it tells") };
        let info = String::from_utf8(info).unwrap();
        let rest = info.lines().find_map(|line| line.strip_prefix(before)).unwrap_or("0");
        rest.split(',').next().unwrap().parse().unwrap()
    }

    /// How often it was asked to do this, by scripts too.
    pub fn calls(&self, command: &str) -> u64 {
        self.info("commandstats", &format!("cmdstat_{command}:calls="))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Stops it, as it were: it answers nothing until it goes on.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again, after it was killed.
    pub fn restart(&mut self) {
        let program = program().unwrap();
        assert!(self.dir.join("").exists());
        self.child = Command::new(program).args(&self.arguments).stdout(Stdio::null()).spawn().unwrap();
        self.wait_until_there();
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A way to a server, on which connections can die so that neither end is told.
pub struct Way {
    pub server: Server,
    /// How often they have.
    deaths: Arc<AtomicUsize>,
}

impl Way {
    /// To one that has a port.
    pub fn to(server: &TestServer) -> Self {
        let Server::Tcp(_, port) = server.server else { panic!("it has a port") };
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let way = Server::Tcp("127.0.0.1".to_owned(), door.local_addr().unwrap().port());
        let deaths = Arc::new(AtomicUsize::new(0));
        let counted = deaths.clone();
        std::thread::spawn(move || {
            while let Ok((here, _)) = door.accept()
                && let Ok(there) = TcpStream::connect(("127.0.0.1", port))
            {
                let born = counted.load(Ordering::SeqCst);
                for (from, to) in [(&here, &there), (&there, &here)] {
                    let (from, to, counted) = (from.try_clone().unwrap(), to.try_clone().unwrap(), counted.clone());
                    std::thread::spawn(move || pass_on(from, to, || counted.load(Ordering::SeqCst) > born));
                }
            }
        });
        Self { server: way, deaths }
    }

    /// Has all connections die that were made until now.
    pub fn die(&self) {
        self.deaths.fetch_add(1, Ordering::SeqCst);
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, is_dead: impl Fn() -> bool) {
    let mut piece = [0; 4096];
    while let Ok(got @ 1..) = from.read(&mut piece) {
        if !is_dead() && to.write_all(&piece[..got]).is_err() {
            break;
        }
    }
    if !is_dead() {
        let _ = to.shutdown(Shutdown::Write);
    }
}
