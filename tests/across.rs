//! Pipes and PTTH between processes that share nothing but a Redis: two servers, programs for one request, and far ends; and what
//! is seen when one of them is killed, or Redis is away.

use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_uhst-relay");

fn sooner_or_later<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(90), "it does not happen");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A process that is killed with this.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(command.stderr(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Redis, and what else is on the disk.
struct Scene {
    folder: PathBuf,
    redis: Option<Process>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.redis = None;
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Scene {
    /// `None` where there is no Redis on this machine, which is an error where everything has to be tested.
    fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let program = ["redis-server", "valkey-server"]
            .into_iter()
            .find(|name| Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok());
        let Some(program) = program else {
            let reason = "there is neither redis-server nor valkey-server";
            assert!(std::env::var("CI").as_deref() != Ok("true"), "cannot run this test: {reason}");
            eprintln!("SKIPPED, nothing was tested: {reason}");
            return None;
        };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("uhst-relay-across-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("redis.sock");
        let mut command = Command::new(program);
        command.args(["--port", "0", "--save", "", "--dir"]).arg(&folder).arg("--unixsocket").arg(&socket);
        let redis = Some(Process::start(command.stdout(Stdio::null())));
        sooner_or_later(|| std::os::unix::net::UnixStream::connect(&socket).ok());
        Some(Self { folder, redis })
    }

    /// The relay, as on a machine of that name: with a data folder of its own.
    fn relay(&self, machine: &str) -> Command {
        let mut command = Command::new(PROGRAM);
        command.env("RELAY_STORE", format!("redis+unix://{}", self.folder.join("redis.sock").display()));
        command.env("RELAY_DATA_DIR", self.folder.join(machine)).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn serve(&self, machine: &str) -> Server {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = self.relay(machine);
        let process = Process::start(command.args(["serve", "--quiet", "--listen", &format!("127.0.0.1:{port}")]));
        sooner_or_later(|| TcpStream::connect(("127.0.0.1", port)).ok());
        Server { process, port }
    }

    /// A program for one request, without a body.
    fn cgi(&self, machine: &str, path: &str) -> Process {
        let mut command = self.relay(machine);
        command.envs([("GATEWAY_INTERFACE", "CGI/1.1"), ("REQUEST_METHOD", "GET"), ("SCRIPT_NAME", "/relay.cgi")]);
        command.envs([("PATH_INFO", path), ("SERVER_PROTOCOL", "HTTP/1.1"), ("REMOTE_ADDR", "127.0.0.1")]);
        Process::start(command.stdout(Stdio::piped()))
    }
}

struct Server {
    process: Process,
    port: u16,
}

impl Server {
    /// Sends the beginning of a request.
    fn begin(&self, method: &str, path: &str, fields: &str) -> TcpStream {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(90))).unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n{fields}\r\n");
        socket.write_all(head.as_bytes()).unwrap();
        socket
    }

    fn get(&self, path: &str) -> TcpStream {
        self.begin("GET", path, "")
    }

    /// Sends these bytes, and waits for the answer.
    fn post(&self, session: &Session, bytes: &[u8]) -> Answer {
        let mut socket = self.begin("POST", &session.path, &session.fields(bytes.len()));
        socket.write_all(bytes).unwrap();
        answer(socket)
    }

    fn session(&self) -> Session {
        let made = answer(self.begin("PUT", "/cama/session", "Content-Length: 0\r\n"));
        assert_eq!(made.status, 201, "{made:?}");
        let path = made.field("location").to_owned();
        Session { path: path[path.find("/cama/").unwrap()..].to_owned(), token: made.field("token").to_owned() }
    }
}

struct Session {
    path: String,
    token: String,
}

impl Session {
    fn fields(&self, length: usize) -> String {
        format!("Token: {}\r\nContent-Length: {length}\r\n", self.token)
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn field(&self, name: &str) -> &str {
        let find = |line: &'_ str| line.split_once(": ").is_some_and(|(field, _)| field.eq_ignore_ascii_case(name));
        let line = self.head.lines().find(|line| find(line)).unwrap_or_else(|| panic!("no {name}: {}", self.head));
        line.split_once(": ").unwrap().1
    }
}

/// Reads an answer to its end, whole or not.
fn answer(mut socket: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    if let Err(error) = socket.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "after {} bytes", bytes.len());
    }
    let end = bytes.windows(4).position(|some| some == b"\r\n\r\n").expect("there is a head") + 4;
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head[9..12].parse().unwrap();
    Answer { status, head, body: bytes.split_off(end) }
}

/// Bytes of which none that is missing, or comes twice, goes unnoticed.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(size).collect()
}

#[test]
fn a_pipe_crosses_between_servers_and_to_a_program_for_one_request() {
    let Some(scene) = Scene::new() else { return };
    let (one, two) = (scene.serve("one"), scene.serve("two"));
    let session = one.session();
    // A client that takes nothing for longer than a killed one would be waited for is there all the same.
    for (bytes, pause) in [(noise(20_000_000), 8), (b"short".to_vec(), 0), (Vec::new(), 0)] {
        let receiving = two.get(&session.path);
        let (sent, received) = thread::scope(|scope| {
            let sender = scope.spawn(|| one.post(&session, &bytes));
            thread::sleep(Duration::from_secs(pause));
            let received = answer(receiving);
            (sender.join().unwrap(), received)
        });
        assert!(received.status == 200 && received.body == bytes, "{} bytes", received.body.len());
        assert_eq!((sent.status, sent.field("x-bytes-delivered")), (200, bytes.len().to_string().as_str()));
    }
    let bytes = noise(1_000_000);
    let mut cgi = scene.cgi("three", &session.path);
    let (sent, received) = thread::scope(|scope| {
        let sender = scope.spawn(|| two.post(&session, &bytes));
        let mut received = Vec::new();
        cgi.0.stdout.take().unwrap().read_to_end(&mut received).unwrap();
        (sender.join().unwrap(), received)
    });
    assert!(received.ends_with(&[b"\n", &bytes[..]].concat()), "{} bytes", received.len());
    assert_eq!((sent.status, sent.field("x-bytes-delivered")), (200, "1000000"));
}

#[test]
fn what_a_killed_sender_has_sent_arrives_and_its_receiver_sees_that_it_is_not_all() {
    let Some(scene) = Scene::new() else { return };
    let (one, two) = (scene.serve("one"), scene.serve("two"));
    let session = one.session();
    let receiving = two.get(&session.path);
    let mut sending = one.begin("POST", &session.path, &session.fields(1_000_000));
    sending.write_all(&noise(10_000)).unwrap();
    let mut receiving = receiving;
    sooner_or_later(|| (receiving.peek(&mut [0; 16_000]).unwrap() > 10_000).then_some(()));
    one.process.signal(Signal::KILL);
    let mut received = Vec::new();
    let began = Instant::now();
    let _ = receiving.read_to_end(&mut received);
    assert!(began.elapsed() < Duration::from_secs(60), "it was not seen, but waited for");
    assert!(received.ends_with(&noise(10_000)));
    // The session is on the other server all the same.
    let receiving = two.get(&session.path);
    assert_eq!((two.post(&session, b"more").status, answer(receiving).body), (200, b"more".to_vec()));
}

#[test]
fn a_sender_hears_what_a_killed_receiver_has_taken() {
    let Some(scene) = Scene::new() else { return };
    let one = scene.serve("one");
    let session = one.session();
    let mut cgi = scene.cgi("two", &session.path);
    let mut sending = one.begin("POST", &session.path, &session.fields(10_000_000));
    let sender = thread::spawn(move || {
        let _ = sending.write_all(&noise(10_000_000));
        answer(sending)
    });
    let mut output = cgi.0.stdout.take().unwrap();
    output.read_exact(&mut vec![0; 200_000]).unwrap();
    cgi.signal(Signal::KILL);
    let sent = sender.join().unwrap();
    let delivered: u64 = sent.field("x-bytes-delivered").parse().unwrap();
    assert!(sent.status == 200 && delivered < 10_000_000, "{sent:?}");
    let receiving = one.get(&session.path);
    assert_eq!((one.post(&session, b"more").status, answer(receiving).body), (200, b"more".to_vec()));
}

#[test]
fn a_pipe_goes_on_where_redis_was_away_and_whoever_comes_meanwhile_is_told_so() {
    let Some(scene) = Scene::new() else { return };
    let (one, two) = (scene.serve("one"), scene.serve("two"));
    let session = one.session();
    let bytes = noise(20_000_000);
    let mut receiving = two.get(&session.path);
    let mut sending = one.begin("POST", &session.path, &session.fields(bytes.len()));
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            sending.write_all(&bytes).unwrap();
            answer(sending)
        });
        // It is stopped in the middle: what waits here keeps the rest from coming.
        let mut received = vec![0; 100_000];
        receiving.read_exact(&mut received).unwrap();
        let redis = scene.redis.as_ref().unwrap();
        redis.signal(Signal::STOP);
        let reading = scope.spawn(|| {
            receiving.read_to_end(&mut received).unwrap();
            received
        });
        let began = Instant::now();
        assert_eq!(answer(one.begin("PUT", "/cama/session", "Content-Length: 0\r\n")).status, 503);
        thread::sleep(Duration::from_secs(8).saturating_sub(began.elapsed()));
        redis.signal(Signal::CONT);
        assert!(reading.join().unwrap().ends_with(&bytes));
        let sent = sender.join().unwrap();
        assert_eq!((sent.status, sent.field("x-bytes-delivered")), (200, "20000000"));
    });
}

/// A far end that shows the files of a folder.
fn far_end(scene: &Scene, relay: &Server, key: &Path) -> Process {
    let url = format!("http://127.0.0.1:{}/", relay.port);
    let mut command = scene.relay("far");
    command.args(["ptth", "serve", "--name", "box", "--relay", &url, "--root"]).arg(scene.folder.join("files"));
    Process::start(command.arg("--key-file").arg(key))
}

#[test]
fn a_server_behind_one_relay_is_reached_through_another_and_its_requests_outlive_a_far_end() {
    let Some(scene) = Scene::new() else { return };
    let (one, two) = (scene.serve("one"), scene.serve("two"));
    let bytes = noise(3_000_000);
    std::fs::create_dir(scene.folder.join("files")).unwrap();
    std::fs::write(scene.folder.join("files/file.bin"), &bytes).unwrap();
    let added = scene.relay("one").args(["ptth", "add", "box"]).stdout(Stdio::piped()).output().unwrap();
    let added = String::from_utf8(added.stdout).unwrap();
    let key = scene.folder.join("key");
    let is_key =
        |word: &&str| word.len() >= 20 && word.chars().all(|c| c.is_ascii_alphanumeric() || "+/=_-".contains(c));
    std::fs::write(&key, added.split_whitespace().find(is_key).unwrap_or_else(|| panic!("no key: {added}"))).unwrap();
    let path = "/frontend/servers/box/file.bin";
    let first = far_end(&scene, &two, &key);
    for _ in 0..3 {
        let got = answer(one.get(path));
        assert!(got.status == 200 && got.body == bytes, "{}, {} bytes", got.head, got.body.len());
    }
    // It takes what it is given, but answers nothing any more.
    first.signal(Signal::STOP);
    let asked = one.get(path);
    thread::sleep(Duration::from_millis(500));
    first.signal(Signal::KILL);
    let _second = far_end(&scene, &one, &key);
    let got = answer(asked);
    assert!(got.status == 200 && got.body == bytes, "{}", got.head);
}
