//! Two parties and a pipe each way (`/cama/session`), through web servers and `serve`.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

pub mod near;

use crate::bare::Bare;
use crate::door::Door;
use crate::machines::Machines;
use crate::place::{LONG, everything_below, have, kill, relays_running, set_mode, skip, until};
use crate::relay::{Call, Relay, Reply};
use crate::serve::Serve;
use crate::server::Server;
use crate::stream::{end_of_head, parse_head};

/// A whole answer, its body as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether it ended where it said it would.
    pub is_whole: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        crate::relay::header(&self.headers, name).unwrap_or_default()
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:?} {}", self.headers, String::from_utf8_lossy(&self.body));
        assert!(!self.header("access-control-allow-origin").is_empty(), "a page could not read {self:?}");
        self
    }

    #[track_caller]
    pub fn expect_error(self, status: u16) {
        let answer = self.expect(status);
        let Answer { status, headers, body, .. } = answer;
        Reply { status, headers, body: String::from_utf8(body).unwrap() }.expect_error(status);
    }

    /// What the sender is told.
    #[track_caller]
    fn delivered(&self) -> u64 {
        assert_eq!(self.status, 200, "{self:?}");
        let told = self.header("x-bytes-delivered");
        assert_eq!(told, self.header("x-bytes-relayed"));
        told.parse().unwrap_or_else(|_| panic!("{self:?}"))
    }
}

pub enum Running {
    Server(Server),
    Serve(Serve),
    Machines(Box<Machines>),
}

thread_local! {
    /// Where this thread has connected last.
    static URL: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Who waits at pipes, in Redis.
const WAITING: &str = "for _, key in ipairs(keys) do
    local kind = redis.call('TYPE', key).ok
    if kind == 'zset' and (key:match(':to%-host$') or key:match(':to%-guest$')) then
        for _, name in ipairs(redis.call('ZRANGEBYSCORE', key, now, '+inf')) do
            found[#found + 1] = 'sender-' .. name
        end
    elseif kind == 'hash' then
        for _, name in ipairs(redis.call('HMGET', key, 'to-host', 'to-guest')) do
            local seen, left = unpack(redis.call('HMGET', key .. ':' .. tostring(name), 'r', 'left'))
            if seen and not left and now - seen < 5000 then
                found[#found + 1] = 'receiver'
            end
        end
    end
end";

/// A relay, reached over sockets.
pub struct Scene {
    pub relay: Running,
    door: Door,
}

impl Scene {
    pub fn new(door: Door, settings: &[(&str, &str)]) -> Option<Self> {
        let relay = match door {
            _ if door.is_serve() => Running::Serve(door.serve(settings)?),
            Door::Machines => Running::Machines(Box::new(Machines::start(settings)?)),
            _ => Running::Server(door.server(settings)?),
        };
        Some(Self { relay, door })
    }

    pub fn url(&self) -> String {
        match &self.relay {
            Running::Server(server) => server.url(),
            Running::Serve(serve) => serve.url(),
            Running::Machines(machines) => machines.next_url(),
        }
    }

    pub fn folder(&self) -> &Path {
        match &self.relay {
            Running::Server(server) => server.folder().path(),
            Running::Serve(serve) => serve.folder().path(),
            Running::Machines(machines) => machines.folder().path(),
        }
    }

    /// Removes what is dead.
    pub fn sweep(&self) {
        let status = Command::new(self.folder().join("cgi-bin/relay.cgi"))
            .args(["sweep", "--data"])
            .arg(self.folder().join("cgi-bin/data"))
            .status();
        assert!(status.expect("the program runs").success());
    }

    /// What there is of pipes: FIFOs and counts on the disk, or whoever waits.
    fn left_of_pipes(&self) -> Vec<String> {
        if let Running::Machines(machines) = &self.relay {
            return machines.redis.look(WAITING);
        }
        let below = everything_below(&self.folder().join("cgi-bin/data/pipes"));
        let names = below.iter().filter(|path| !path.is_dir()).filter_map(|path| path.file_name()?.to_str());
        names.filter(|name| !["session.json", "counts"].contains(name)).map(str::to_owned).collect()
    }

    pub fn connect(&self) -> TcpStream {
        let url = self.url();
        let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
        URL.set(url.clone());
        let socket = TcpStream::connect(address).expect("the server accepts connections");
        socket.set_read_timeout(Some(LONG)).unwrap();
        socket.set_write_timeout(Some(LONG)).unwrap();
        socket
    }

    /// The head of a request, for where this thread has connected last. Where a web server passes only GET and POST and few header fields, all is in the query.
    pub fn head(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
        let url = URL.with_borrow(String::clone);
        let mount = url.strip_prefix("http://").unwrap().split_once('/').map_or("", |(_, mount)| mount);
        let slash = if mount.is_empty() { "" } else { "/" };
        let mut query = String::new();
        let mut lines = String::new();
        let mut method = method;
        if self.door.passes_every_method() {
            for (name, value) in headers {
                write!(lines, "{name}: {value}\r\n").unwrap();
            }
        } else {
            if !["GET", "POST"].contains(&method) {
                write!(query, "&method={method}").unwrap();
                method = "POST";
            }
            for (name, value) in headers {
                match *name {
                    "Content-Disposition" | "Content-Encoding" | "Content-Language" | "Last-Modified" => {
                        let value = urlencoding::encode(value);
                        write!(query, "&{}={value}", name.to_ascii_lowercase()).unwrap();
                    }
                    "X-Timeout" => write!(query, "&timeout={value}").unwrap(),
                    "X-Type" => write!(query, "&type={value}").unwrap(),
                    "X-Peer-Address" => write!(query, "&peer-address={value}").unwrap(),
                    "Token" => write!(query, "&token={value}").unwrap(),
                    _ => write!(lines, "{name}: {value}\r\n").unwrap(),
                }
            }
        }
        let mark = if query.is_empty() { "" } else { "?" };
        format!(
            "{method} {slash}{mount}{path}{mark}{query} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n{lines}{body}\r\n"
        )
    }

    pub fn start(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> TcpStream {
        let length = body.map_or(String::new(), |body| format!("Content-Length: {}\r\n", body.len()));
        let mut socket = self.connect();
        socket.write_all(self.head(method, path, headers, &length).as_bytes()).unwrap();
        // It may answer before it has read everything.
        let _ = socket.write_all(body.unwrap_or_default());
        socket
    }

    #[track_caller]
    pub fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let body = (method != "GET" && method != "HEAD").then_some(body);
        hear(self.start(method, path, headers, body))
    }

    #[track_caller]
    fn session(&self, headers: &[(&str, &str)]) -> Session<'_> {
        let made = self.call("PUT", "/cama/session", headers, b"").expect(201);
        let location = made.header("location").to_owned();
        let at = location.find("/cama/session/").unwrap_or_else(|| panic!("{made:?}"));
        let token = made.header("token").to_owned();
        assert!(token.len() >= 22 && location.len() - at >= 14 + 22, "{made:?}");
        let cookie = made.header("set-cookie");
        // A proxy may make a whole URL of it (RFC 9110, 10.2.2).
        let own = location.split_once("://").map_or(0, |(scheme, rest)| scheme.len() + 3 + rest.find('/').unwrap());
        assert!(cookie.starts_with(&format!("token=\"{token}\"; Path={}; Expires=", &location[own..])), "{cookie}");
        assert!(cookie.contains("; HttpOnly") && cookie.contains("; SameSite=Lax") && !cookie.contains("Secure"));
        Session { scene: self, path: location[at..].to_owned(), cookie: format!("a=b; token=\"{token}\""), token }
    }
}

struct Session<'a> {
    scene: &'a Scene,
    path: String,
    cookie: String,
    token: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Who {
    Host,
    Guest,
}

impl Session<'_> {
    fn start(&self, who: Who, method: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> TcpStream {
        let mut all = headers.to_vec();
        if who == Who::Host {
            all.push(("Cookie", &self.cookie));
        }
        self.scene.start(method, &self.path, &all, body)
    }

    fn call(&self, who: Who, method: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        hear(self.start(who, method, headers, (method != "GET").then_some(body)))
    }

    /// Somebody receives, in the background.
    fn receive(&self, who: Who) -> JoinHandle<Answer> {
        let socket = self.start(who, "GET", &[], None);
        std::thread::spawn(move || hear(socket))
    }

    fn send(&self, who: Who, body: &[u8]) -> JoinHandle<Answer> {
        let head = self.start(who, "POST", &[("Content-Type", "a/b")], Some(body));
        std::thread::spawn(move || hear(head))
    }

    /// Waits until so many are there, by what is on the disk: each has a FIFO.
    fn until_waiting(&self, count: usize) {
        until("they wait", LONG, || {
            let left = self.scene.left_of_pipes();
            left.iter().filter(|name| *name == "receiver" || name.starts_with("sender-")).count() == count
        });
    }
}

#[track_caller]
pub fn hear(mut socket: TcpStream) -> Answer {
    let mut heard = Vec::new();
    loop {
        let mut bytes = [0; 16384];
        match socket.read(&mut bytes) {
            Ok(0) => break,
            Ok(got) => heard.extend_from_slice(&bytes[..got]),
            // A reset behind the answer.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("{error} after {} bytes", heard.len()),
        }
    }
    understand(&heard)
}

/// What comes next of an answer that is not at its end.
#[track_caller]
pub fn hear_more(socket: &mut TcpStream, heard: &mut Vec<u8>) {
    let mut some = [0; 16384];
    loop {
        match socket.read(&mut some) {
            Ok(got) => {
                assert!(got > 0, "the end after {:?}", String::from_utf8_lossy(heard));
                return heard.extend_from_slice(&some[..got]);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(heard)),
        }
    }
}

#[track_caller]
pub fn understand(heard: &[u8]) -> Answer {
    let mut rest = heard;
    let (status, headers) = loop {
        let end = end_of_head(rest).unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(heard)));
        let (status, headers) = parse_head(&rest[..end]);
        rest = &rest[end..];
        if status >= 200 {
            break (status, headers);
        }
    };
    let mut answer = Answer { status, headers, body: Vec::new(), is_whole: true };
    if answer.header("transfer-encoding") == "chunked" {
        answer.is_whole = false;
        while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
            rest = &rest[end + 2..];
            answer.is_whole = size == 0;
            answer.body.extend_from_slice(&rest[..size.min(rest.len())]);
            rest = rest.get(size + 2..).unwrap_or_default();
        }
    } else {
        let length = answer.header("content-length").parse();
        answer.is_whole = length.is_ok_and(|length: usize| length == rest.len());
        answer.body = rest.to_vec();
    }
    answer
}

/// Bytes that any mistake would show in, NUL among them.
pub fn bytes(count: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24).to_le_bytes()[0]
    };
    (0..count).map(|_| next()).collect()
}

pub fn a_body_reaches_who_waits_for_it(door: Door) {
    let Some(scene) = Scene::new(door, &[]) else { return };
    let session = scene.session(&[]);
    for (sender, receiver) in [(Who::Guest, Who::Host), (Who::Host, Who::Guest)] {
        for body in [&b"Hello"[..], b"", &bytes(100_000)] {
            for receiver_first in [true, false] {
                let (got, sent) = if receiver_first {
                    let receiving = session.receive(receiver);
                    session.until_waiting(1);
                    (receiving, session.send(sender, body))
                } else {
                    let sending = session.send(sender, body);
                    session.until_waiting(1);
                    (session.receive(receiver), sending)
                };
                let (got, sent) = (got.join().unwrap().expect(200), sent.join().unwrap().expect(200));
                assert!(got.is_whole && got.body == body, "{} of {} bytes", got.body.len(), body.len());
                assert_eq!(got.header("content-type"), "a/b");
                assert_eq!(sent.delivered(), body.len() as u64);
                // mini_httpd leaves it out of what a CGI program answers.
                let names_server = |answer: &Answer| !answer.header("server").is_empty();
                assert!(door == Door::MiniHttpd || (names_server(&sent) && names_server(&got)));
                session.until_waiting(0);
            }
        }
    }
    scene.sweep();
    assert_eq!(scene.left_of_pipes(), [""; 0]);
}

pub fn both_directions_flow_at_once(door: Door) {
    let Some(scene) = Scene::new(door, &[]) else { return };
    let session = scene.session(&[]);
    let (one, other) = (bytes(3_000_000), bytes(2_000_000));
    let (to_host, to_guest) = (session.receive(Who::Host), session.receive(Who::Guest));
    let (from_guest, from_host) = std::thread::scope(|scope| {
        let guest = scope.spawn(|| session.call(Who::Guest, "POST", &[], &one));
        let host = scope.spawn(|| session.call(Who::Host, "POST", &[], &other));
        (guest.join().unwrap(), host.join().unwrap())
    });
    assert!(to_host.join().unwrap().expect(200).body == one);
    assert!(to_guest.join().unwrap().expect(200).body == other);
    assert_eq!((from_guest.delivered(), from_host.delivered()), (3_000_000, 2_000_000));
}

pub fn chunks_arrive_and_their_sum_is_told(door: Door) {
    // mini_httpd knows no chunked coding.
    let Some(scene) = (door != Door::MiniHttpd).then(|| Scene::new(door, &[])).flatten() else { return };
    let session = scene.session(&[]);
    let receiving = session.receive(Who::Host);
    let mut socket = scene.connect();
    socket.write_all(scene.head("POST", &session.path, &[], "Transfer-Encoding: chunked\r\n").as_bytes()).unwrap();
    socket.write_all(b"5\r\nHello\r\n1;x=y\r\n\0\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    socket.write_all(b"3\r\nend\r\n0\r\n\r\n").unwrap();
    assert_eq!(hear(socket).expect(200).delivered(), 9);
    let got = receiving.join().unwrap().expect(200);
    assert!(got.is_whole && got.body == b"Hello\0end", "{got:?}");
}

pub fn what_a_sender_says_of_its_body_is_told_to_the_receiver(door: Door) {
    let Some(scene) = Scene::new(door, &[]) else { return };
    let session = scene.session(&[]);
    let said = [
        ("Content-Type", "application/x-tar"),
        ("Content-Disposition", r#"attachment; filename="a \"b\".tar"; filename*=UTF-8''%C3%A4.tar"#),
        ("Content-Encoding", "gzip"),
        ("Content-Language", "de, en"),
        ("Last-Modified", "Tue, 15 Nov 1994 12:45:26 GMT"),
    ];
    for method in ["POST", "PUT"] {
        let receiving = session.receive(Who::Host);
        session.until_waiting(1);
        session.call(Who::Guest, method, &said, b"not really").delivered();
        let got = receiving.join().unwrap().expect(200);
        assert_eq!(got.body, b"not really");
        for (name, value) in said {
            assert_eq!(got.header(&name.to_ascii_lowercase()), value, "{name} of a {method}");
        }
        // The next body is another one.
        session.until_waiting(0);
        let receiving = session.receive(Who::Host);
        session.until_waiting(1);
        session.call(Who::Guest, method, &[("Content-Disposition", &"x".repeat(1025))], b"plain").delivered();
        let got = receiving.join().unwrap().expect(200);
        for (name, _) in &said[1..] {
            assert_eq!(got.header(&name.to_ascii_lowercase()), "", "{name}");
        }
        session.until_waiting(0);
    }
}

pub fn deleting_a_session_answers_everybody_in_it(door: Door) {
    let Some(scene) = Scene::new(door, &[]) else { return };
    let session = scene.session(&[]);
    let host = session.receive(Who::Host);
    let one = session.send(Who::Host, b"x");
    let two = session.send(Who::Host, b"y");
    session.until_waiting(3);
    session.call(Who::Guest, "DELETE", &[], b"").expect_error(403);
    session.call(Who::Guest, "DELETE", &[("Token", "wrong")], b"").expect_error(403);
    let deleted = session.call(Who::Host, "DELETE", &[], b"").expect(200);
    assert!(deleted.header("set-cookie").starts_with("token=\"\"; Path=/"), "{deleted:?}");
    assert!(deleted.header("set-cookie").contains("Expires=Thu, 01 Jan 1970"), "{deleted:?}");
    for pending in [host, one, two] {
        pending.join().unwrap().expect_error(410);
    }
    for method in ["GET", "POST", "DELETE"] {
        session.call(Who::Host, method, &[], b"").expect_error(404);
    }
    assert_eq!(scene.left_of_pipes(), [""; 0]);
}

pub fn who_waits_in_vain_is_told_in_time(door: Door) {
    let Some(scene) = Scene::new(door, &[("RELAY_PIPE_TIMEOUT", "1.5")]) else { return };
    let session = scene.session(&[]);
    let start = Instant::now();
    session.call(Who::Host, "GET", &[("X-Timeout", "1")], b"").expect_error(504);
    let first = start.elapsed();
    assert!(first >= Duration::from_secs(1), "{first:?}");
    session.call(Who::Guest, "POST", &[], b"x").expect_error(504);
    assert!(start.elapsed() >= first + Duration::from_millis(1500), "the setting");
    for wrong in ["0", "301", "-1", "+1", "x"] {
        session.call(Who::Host, "GET", &[("X-Timeout", wrong)], b"").expect_error(400);
        session.call(Who::Host, "POST", &[("X-Timeout", wrong)], b"").expect_error(400);
    }
    assert_eq!(scene.left_of_pipes(), [""; 0]);
}

pub fn a_second_receiver_is_refused_and_a_second_sender_waits(door: Door) {
    let Some(scene) = Scene::new(door, &[]) else { return };
    let session = scene.session(&[]);
    let first = session.receive(Who::Host);
    session.until_waiting(1);
    session.call(Who::Host, "GET", &[], b"").expect_error(409);
    let guest = session.receive(Who::Guest);
    session.until_waiting(2);
    let sends = [session.send(Who::Guest, b"one"), session.send(Who::Guest, b"two")];
    let mut got = vec![first.join().unwrap().expect(200).body];
    // At once: whoever has got all may come for more.
    got.push(session.call(Who::Host, "GET", &[], b"").expect(200).body);
    got.sort();
    assert_eq!(got, [b"one", b"two"]);
    for sent in sends {
        assert_eq!(sent.join().unwrap().delivered(), 3);
    }
    session.call(Who::Host, "POST", &[], b"x").delivered();
    assert_eq!(guest.join().unwrap().body, b"x");
}

pub fn a_secure_session_serves_the_address_its_host_named(door: Door) {
    let Some(scene) = Scene::new(door, &[]) else { return };
    scene.call("PUT", "/cama/session", &[("X-Type", "loud")], b"").expect_error(400);
    let basic = scene.session(&[("X-Type", "basic")]);
    basic.call(Who::Host, "PUT", &[("X-Peer-Address", "127.0.0.1")], b"").expect_error(400);

    let session = scene.session(&[("X-Type", "secure")]);
    for method in ["GET", "POST"] {
        session.call(Who::Guest, method, &[], b"").expect_error(403);
    }
    session.call(Who::Guest, "PUT", &[("X-Peer-Address", "127.0.0.1")], b"").expect_error(403);
    for wrong in ["localhost", "[127.0.0.1]", "[::1", "::1]", "[::1]:80"] {
        session.call(Who::Host, "PUT", &[("X-Peer-Address", wrong)], b"").expect_error(400);
    }
    session.call(Who::Host, "PUT", &[("X-Peer-Address", "[::1]")], b"").expect(200);
    session.call(Who::Host, "PUT", &[("X-Peer-Address", "192.0.2.1")], b"").expect(200);
    // What somebody says about himself counts for nothing.
    session.call(Who::Guest, "GET", &[("X-Forwarded-For", "192.0.2.1")], b"").expect_error(403);
    session.call(Who::Host, "PUT", &[("X-Peer-Address", "::ffff:127.0.0.1")], b"").expect(200);
    let guest = session.receive(Who::Guest);
    session.call(Who::Host, "POST", &[], b"for you").expect(200);
    assert_eq!(guest.join().unwrap().expect(200).body, b"for you");

    // Who is the guest no more gets nothing, though he was waiting already, and what he wants to send goes nowhere.
    let receiving = session.receive(Who::Guest);
    let sending = session.send(Who::Guest, b"x");
    session.until_waiting(2);
    session.call(Who::Host, "PUT", &[("X-Peer-Address", "192.0.2.1")], b"").expect(200);
    receiving.join().unwrap().expect_error(403);
    sending.join().unwrap().expect_error(403);
    session.call(Who::Host, "POST", &[("X-Timeout", "1")], b"secret").expect_error(504);
}

pub fn a_wrong_pipe_request_says_what_is_wrong(door: Door) {
    let Some(scene) = Scene::new(door, &[("RELAY_MAX_PIPES", "1")]) else { return };
    for method in ["GET", "POST"] {
        scene.call(method, "/cama/session/x", &[], b"").expect_error(404);
    }
    // Other servers refuse that themselves.
    if door == Door::Serve {
        scene.call("GET", "/cama/session/..%2f..%2fx", &[], b"").expect_error(404);
    }
    scene.call("GET", "/cama/session", &[], b"").expect_error(405);
    let session = scene.session(&[]);
    let full = scene.call("PUT", "/cama/session", &[], b"");
    assert!(!full.header("retry-after").is_empty());
    full.expect_error(503);
    scene.call("GET", "/cama/sessions", &[], b"").expect_error(404);
    if door.passes_every_method() {
        session.call(Who::Host, "PATCH", &[], b"").expect_error(405);
        let asked = [("Origin", "http://a.example"), ("Access-Control-Request-Method", "PUT")];
        let preflight = scene.call("OPTIONS", &session.path, &asked, b"").expect(204);
        assert!(preflight.header("access-control-allow-methods").contains("DELETE"), "{preflight:?}");
    }
    let exposed = session.call(Who::Guest, "POST", &[("X-Timeout", "1")], b"x").expect(504);
    let exposed = exposed.header("access-control-expose-headers").to_ascii_lowercase();
    assert!(exposed.contains("x-bytes-delivered") && exposed.contains("location") && exposed.contains("retry-after"));
}

/// A page cannot send a cookie everywhere, and curl need not.
pub fn the_token_works_without_a_cookie(door: Door) {
    let Some(scene) = Scene::new(door, &[]) else { return };
    let session = scene.session(&[]);
    let receiving = std::thread::scope(|scope| {
        let host = scope.spawn(|| scene.call("GET", &session.path, &[("Token", &session.token)], b""));
        session.call(Who::Guest, "POST", &[], b"x").expect(200);
        host.join().unwrap()
    });
    assert_eq!(receiving.expect(200).body, b"x");
    if let Running::Serve(serve) = &scene.relay {
        // The log is written by a thread of its own, after the answer.
        until("the log has the request", LONG, || {
            let log = serve.log();
            log.contains("GET /cama/session/- HTTP/1.1") || log.contains("GET /cama/session/-? HTTP/1.1")
        });
        let (log, id) = (serve.log(), session.path.rsplit('/').next().unwrap());
        assert!(!log.contains(id) && !log.contains(&session.token), "a secret is in the log: {log}");
    }
}

pub fn curl_uploads_and_downloads(door: Door) {
    let Some(scene) = Scene::new(door, &[]) else { return };
    if !have("curl") {
        return skip("curl is not installed");
    }
    let session = scene.session(&[]);
    let url = format!("{}{}", scene.url(), session.path);
    let (file, got) = (scene.folder().join("file"), scene.folder().join("got"));
    std::fs::write(&file, bytes(300_000)).unwrap();
    let mut download = Command::new("curl")
        .args(["-sSf", "--max-time", "60", "-H", &format!("Token: {}", session.token), "-o"])
        .args([&got, Path::new(&url)])
        .spawn()
        .unwrap();
    let upload =
        Command::new("curl").args(["-sSf", "--max-time", "60", "-T"]).args([&file, Path::new(&url)]).output().unwrap();
    assert!(upload.status.success(), "{upload:?}");
    assert!(download.wait().unwrap().success());
    assert!(std::fs::read(&got).unwrap() == std::fs::read(&file).unwrap());
}

/// The most private memory, in KiB, of the processes that run the relay, until `done`.
pub fn private_memory(pids: impl Fn() -> Vec<i32>, done: &AtomicBool) -> u64 {
    let mut most = 0;
    loop {
        for pid in pids() {
            let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            // A program's own pages are clean, and private or not depending on who else runs it.
            let private = rollup.lines().filter(|line| line.starts_with("Private_Dirty:"));
            let kib = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum();
            most = most.max(kib);
        }
        if done.load(Ordering::Acquire) {
            return most;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn relay_pids(folder: &Path) -> Vec<i32> {
    let program = folder.join("cgi-bin/relay.cgi");
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let of_relay = entries.filter(|entry| std::fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == program));
    of_relay.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

pub fn a_large_body_flows_through_little_memory(door: Door) {
    const MOST_KIB: u64 = 3 * 1024;
    let Some(scene) = Scene::new(door, &[]) else { return };
    let session = scene.session(&[]);
    let body = bytes(64 << 20);
    let done = AtomicBool::new(false);
    let server = if let Running::Serve(serve) = &scene.relay { Some(serve.pid().as_raw_nonzero().get()) } else { None };
    let before = server.map_or(0, |pid| private_memory(|| vec![pid], &AtomicBool::new(true)));
    let most = std::thread::scope(|scope| {
        let watch = scope
            .spawn(|| private_memory(|| server.map_or_else(|| relay_pids(scene.folder()), |pid| vec![pid]), &done));
        let receiving = session.receive(Who::Host);
        let sent = session.call(Who::Guest, "POST", &[], &body);
        let got = receiving.join().unwrap().expect(200);
        done.store(true, Ordering::Release);
        assert_eq!(sent.delivered(), body.len() as u64);
        assert!(got.body == body, "not the bytes that were sent");
        watch.join().unwrap()
    });
    assert!(most > 0 && most < before + MOST_KIB, "{before} and then {most} KiB");
}

pub fn a_receiver_that_leaves_half_way_is_told_in_bytes(door: Door) {
    let Some(scene) = Scene::new(door, &[]) else { return };
    let session = scene.session(&[]);
    let mut receiver = session.start(Who::Host, "GET", &[], None);
    let body = bytes(32 << 20);
    let sending = session.send_large(&body);
    let mut read = 0;
    while read < 4 << 20 {
        let mut some = Vec::new();
        hear_more(&mut receiver, &mut some);
        read += some.len();
    }
    receiver.shutdown(Shutdown::Both).unwrap();
    drop(receiver);
    let sent = sending.join().unwrap();
    let delivered = sent.delivered();
    // The head is in what was read, too.
    assert!(delivered + 2000 >= read as u64 && delivered < body.len() as u64, "{delivered} of {read} read");
    // The session goes on.
    let receiving = session.receive(Who::Host);
    session.call(Who::Guest, "POST", &[], b"again").delivered();
    assert_eq!(receiving.join().unwrap().body, b"again");
}

impl Session<'_> {
    /// As [`Session::send`], for a body that does not go out at once.
    fn send_large(&self, body: &[u8]) -> JoinHandle<Answer> {
        let head = self.scene.head("POST", &self.path, &[], &format!("Content-Length: {}\r\n", body.len()));
        let (mut socket, body) = (self.scene.connect(), body.to_vec());
        std::thread::spawn(move || {
            socket.write_all(head.as_bytes()).unwrap();
            let _ = socket.write_all(&body);
            hear(socket)
        })
    }
}

/// However much its web server has still to take of its body then.
pub fn a_sender_whose_receiver_leaves_is_told(door: Door) {
    const SIZE: usize = 100_000_000;
    let Some(scene) = Scene::new(door, &[]) else { return };
    let session = scene.session(&[]);
    let receiver = session.start(Who::Host, "GET", &[], None);
    session.until_waiting(1);
    let mut sender = scene.connect();
    let length = format!("Content-Length: {SIZE}\r\n");
    sender.write_all(scene.head("POST", &session.path, &[], &length).as_bytes()).unwrap();
    let pouring = pour(&sender, SIZE);
    let read = read_and_leave(receiver, 4 << 20);
    let sent = hear(sender);
    pouring.join().unwrap();
    let delivered = sent.delivered();
    // The head is in what was read, too.
    assert!(delivered + 2000 >= read && delivered < SIZE as u64, "{delivered} of {read} read");
}

/// A slow sender has not sent all when the relay loses its patience; the web server takes the rest.
pub fn a_slow_sender_whose_receiver_leaves_is_told(door: Door) {
    const PIECES: usize = 60;
    let Some(scene) = Scene::new(door, &[]) else { return };
    let session = scene.session(&[]);
    let receiver = session.start(Who::Host, "GET", &[], None);
    session.until_waiting(1);
    let mut sender = scene.connect();
    let piece = bytes(100_000);
    let length = format!("Content-Length: {}\r\n", PIECES * piece.len());
    sender.write_all(scene.head("POST", &session.path, &[], &length).as_bytes()).unwrap();
    let leaving = std::thread::spawn(move || read_and_leave(receiver, 150_000));
    for _ in 0..PIECES {
        sender.write_all(&piece).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    let (sent, read) = (hear(sender), leaving.join().unwrap());
    assert!(sent.delivered() + 2000 >= read, "{} of {read} read", sent.delivered());
}

/// One that sends faster than anybody reads, and for longer than the relay is patient, so that there is always something
/// unread.
pub fn a_sender_that_goes_on_when_its_receiver_has_left_is_told(door: Door) {
    let Some(scene) = Scene::new(door, &[]) else { return };
    let session = scene.session(&[]);
    let receiver = session.start(Who::Host, "GET", &[], None);
    session.until_waiting(1);
    let mut sender = scene.connect();
    sender.write_all(scene.head("POST", &session.path, &[], "Transfer-Encoding: chunked\r\n").as_bytes()).unwrap();
    let leaving = std::thread::spawn(move || read_and_leave(receiver, 4 << 20));
    let chunk = [&b"100000\r\n"[..], &bytes(1 << 20), b"\r\n"].concat();
    let mut has_left = None;
    while has_left.is_none_or(|left: Instant| left.elapsed() < Duration::from_secs(3)) {
        sender.write_all(&chunk).unwrap();
        has_left = has_left.or_else(|| leaving.is_finished().then(Instant::now));
    }
    sender.write_all(b"0\r\n\r\n").unwrap();
    let (sent, read) = (hear(sender), leaving.join().unwrap());
    // The chunks' own lines are in what was read, too.
    assert!(sent.delivered() + 4000 >= read, "{} of {read} read", sent.delivered());
}

/// Reads about so many bytes of an answer, and hangs up: how many they were.
fn read_and_leave(mut receiver: TcpStream, count: usize) -> u64 {
    let mut read = 0;
    while read < count {
        let mut some = Vec::new();
        hear_more(&mut receiver, &mut some);
        read += some.len();
    }
    receiver.shutdown(Shutdown::Both).unwrap();
    read as u64
}

/// Sends a body of so many bytes, or as much as is wanted of it.
pub fn pour(socket: &TcpStream, mut left: usize) -> JoinHandle<()> {
    let mut socket = socket.try_clone().unwrap();
    std::thread::spawn(move || {
        let some = bytes(1 << 16);
        while left > 0 {
            let most = left.min(some.len());
            if socket.write_all(&some[..most]).is_err() {
                return;
            }
            left -= most;
        }
    })
}

pub fn a_sender_that_leaves_half_way_leaves_half_a_body(door: Door) {
    let Some(scene) = Scene::new(door, &[]) else { return };
    let session = scene.session(&[]);
    // One that only waits, and leaves again, takes nobody with it. A CGI program would not notice.
    if door == Door::Serve {
        let waiting = session.start(Who::Guest, "POST", &[], Some(b"x"));
        session.until_waiting(1);
        drop(waiting);
        session.until_waiting(0);
    }

    let receiving = session.receive(Who::Host);
    let mut socket = scene.connect();
    socket.write_all(scene.head("POST", &session.path, &[], "Content-Length: 100\r\n").as_bytes()).unwrap();
    socket.write_all(b"half").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    drop(socket);
    let got = receiving.join().unwrap().expect(200);
    assert_eq!(got.body, b"half");
    assert!(!got.is_whole, "{got:?}");

    // In chunks the end looks like any other.
    if door == Door::Serve {
        let receiving = session.receive(Who::Host);
        let mut socket = scene.connect();
        socket.write_all(scene.head("POST", &session.path, &[], "Transfer-Encoding: chunked\r\n").as_bytes()).unwrap();
        socket.write_all(b"4\r\nhalf\r\n").unwrap();
        std::thread::sleep(Duration::from_millis(200));
        drop(socket);
        let got = receiving.join().unwrap().expect(200);
        assert!(got.body == b"half" && got.is_whole, "{got:?}");
    }
}

pub fn a_body_flows_before_it_is_complete(door: Door) {
    let Some(scene) = Scene::new(door, &[]) else { return };
    let session = scene.session(&[]);
    let body = bytes(200_000);
    let (half, rest) = body.split_at(100_000);
    let mut receiver = session.start(Who::Host, "GET", &[], None);
    let mut socket = scene.connect();
    socket.write_all(scene.head("POST", &session.path, &[], "Content-Length: 200000\r\n").as_bytes()).unwrap();
    socket.write_all(half).unwrap();
    let mut heard = Vec::new();
    // fcgiwrap keeps what is less than 8 KiB.
    while heard.len() < 90_000 {
        hear_more(&mut receiver, &mut heard);
    }
    socket.write_all(rest).unwrap();
    assert_eq!(hear(socket).delivered(), 200_000);
    receiver.read_to_end(&mut heard).unwrap();
    assert!(understand(&heard).body == body);
}

pub fn chunks_flow_before_the_body_ends(door: Door) {
    // lighttpd collects chunks, mini_httpd knows none, and fcgiwrap keeps what is less than 8 KiB.
    if matches!(door, Door::Lighttpd | Door::MiniHttpd | Door::NginxFcgiwrap) {
        return;
    }

    let Some(scene) = Scene::new(door, &[]) else { return };
    let session = scene.session(&[]);
    let mut receiver = session.start(Who::Host, "GET", &[], None);
    let mut socket = scene.connect();
    let expects = "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n";
    socket.write_all(scene.head("POST", &session.path, &[], expects).as_bytes()).unwrap();
    let mut heard = Vec::new();
    for word in ["one", "two", "three"] {
        socket.write_all(format!("{:x}\r\n{word}\r\n", word.len()).as_bytes()).unwrap();
        while !heard.windows(word.len()).any(|part| part == word.as_bytes()) {
            hear_more(&mut receiver, &mut heard);
        }
    }
    socket.write_all(b"0\r\n\r\n").unwrap();
    assert_eq!(hear(socket).delivered(), 11);
    receiver.read_to_end(&mut heard).unwrap();
    assert!(understand(&heard).is_whole);
}

pub fn deleting_a_session_ends_what_flows(door: Door) {
    let Some(scene) = Scene::new(door, &[]) else { return };
    let session = scene.session(&[]);
    let mut receiver = session.start(Who::Guest, "GET", &[], None);
    let mut sender = scene.connect();
    let request = scene.head("POST", &session.path, &[("Cookie", &session.cookie)], "Content-Length: 1000\r\n");
    sender.write_all(request.as_bytes()).unwrap();
    sender.write_all(b"some").unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"some") {
        hear_more(&mut receiver, &mut heard);
    }
    session.call(Who::Host, "DELETE", &[], b"").expect(200);
    hear(sender).expect_error(410);
    // Reset or ended, as the server has it.
    let _ = receiver.read_to_end(&mut heard);
    assert!(!understand(&heard).is_whole);
}

/// Nobody who pauses, in whatever he does, keeps an answer from the other.
pub fn who_pauses_keeps_nobody_waiting(door: Door) {
    let Some(scene) = Scene::new(door, &[]) else { return };
    // Far less than the time that a silent connection is given.
    let soon = Duration::from_secs(7);
    let session = scene.session(&[]);
    let pausing = |headers: &[(&str, &str)]| {
        let mut sender = scene.connect();
        sender.write_all(scene.head("POST", &session.path, headers, "Content-Length: 1000\r\n").as_bytes()).unwrap();
        sender.write_all(b"some").unwrap();
        sender
    };
    let start = Instant::now();
    hear(pausing(&[("X-Timeout", "1")])).expect_error(504);
    hear(pausing(&[("X-Timeout", "nonsense")])).expect_error(400);
    assert!(start.elapsed() < soon, "{:?}", start.elapsed());

    // A receiver that takes nothing, and a sender with more than all the buffers between the two hold.
    let stuck = session.start(Who::Host, "GET", &[], None);
    session.until_waiting(1);
    let sender = {
        let mut socket = scene.connect();
        let head = scene.head("POST", &session.path, &[], "Content-Length: 40000000\r\n");
        socket.write_all(head.as_bytes()).unwrap();
        let mut writing = socket.try_clone().unwrap();
        let body = bytes(40_000_000);
        let writer = std::thread::spawn(move || _ = writing.write_all(&body));
        std::thread::sleep(Duration::from_millis(1500));
        (socket, writer)
    };
    let start = Instant::now();
    session.call(Who::Host, "DELETE", &[], b"").expect(200);
    hear(sender.0).expect_error(410);
    assert!(start.elapsed() < soon, "{:?}", start.elapsed());
    sender.1.join().unwrap();
    drop(stuck);
}

pub fn a_session_ends_after_its_last_use(door: Door) {
    let Some(scene) = Scene::new(door, &[("RELAY_PIPE_LIFETIME", "0.5")]) else { return };
    let session = scene.session(&[]);
    // As long as somebody waits it is in use.
    let receiving = session.receive(Who::Host);
    session.until_waiting(1);
    std::thread::sleep(Duration::from_millis(700));
    scene.sweep();
    session.call(Who::Guest, "POST", &[], b"x").delivered();
    receiving.join().unwrap().expect(200);
    std::thread::sleep(Duration::from_millis(700));
    session.call(Who::Host, "GET", &[], b"").expect_error(404);
    scene.sweep();
    let below = everything_below(&scene.folder().join("cgi-bin/data/pipes"));
    assert!(!below.iter().any(|path| path.ends_with("session.json")), "{below:?}");
}

pub fn only_a_named_proxy_speaks_for_others(door: Door) {
    let settings = [("RELAY_TRUSTED_PROXIES", "127.0.0.1, 198.51.100.7")];
    let Some(scene) = Scene::new(door, &settings) else { return };
    let made = scene.call("PUT", "/cama/session", &[("X-Forwarded-Proto", "https")], b"").expect(201);
    assert!(made.header("set-cookie").ends_with("; Secure"), "{made:?}");
    let session = scene.session(&[("X-Type", "secure")]);
    session.call(Who::Host, "PUT", &[("X-Peer-Address", "192.0.2.1")], b"").expect(200);
    let one = [("X-Timeout", "1")];
    for (list, status) in [
        ("192.0.2.1", 504),
        ("203.0.113.5, 192.0.2.1, 198.51.100.7", 504),
        ("192.0.2.1, 203.0.113.5", 403),
        ("192.0.2.1, nonsense", 403),
        ("192.0.2.1:4711", 504),
    ] {
        session.call(Who::Guest, "GET", &[one[0], ("X-Forwarded-For", list)], b"").expect_error(status);
    }
    session.call(Who::Guest, "GET", &one, b"").expect_error(403);
    // A client's own, beside the proxy's: CGI has one variable for both.
    let (forged, real) = (("X_Forwarded_For", "192.0.2.1"), ("X-Forwarded-For", "203.0.113.5"));
    for both in [[forged, real], [real, forged]] {
        session.call(Who::Guest, "GET", &[&one[..], &both].concat(), b"").expect_error(403);
    }
}

// ---- killed processes: the CGI program alone, so that a test kills exactly the one it means

struct Two {
    bare: Bare,
    path: String,
    cookie: String,
}

impl Two {
    fn new() -> Self {
        Self::at(Bare::new())
    }

    fn at(bare: Bare) -> Self {
        Self::made(bare, &[])
    }

    fn made(bare: Bare, headers: &[(&str, &str)]) -> Self {
        let made = bare.call(&Call { path_info: "/cama/session", headers, ..Call::default() }).expect(201);
        let location = made.header("location").unwrap();
        let path = location[location.find("/cama/").unwrap()..].to_owned();
        Self { path, cookie: format!("token=\"{}\"", made.header("token").unwrap()), bare }
    }

    fn command(&self, method: &str, length: Option<&str>) -> Command {
        let cookie = [("Cookie", self.cookie.as_str())];
        let headers = if method == "GET" { &cookie[..] } else { &[] };
        let mut command = self.bare.request(&Call { method, path_info: &self.path, headers, ..Call::default() });
        if let Some(length) = length {
            command.env("CONTENT_LENGTH", length).stdin(Stdio::piped());
        }
        command
    }

    fn names(&self) -> Vec<String> {
        let below = everything_below(&self.bare.data().join("pipes"));
        let names = below.iter().filter(|path| !path.is_dir()).filter_map(|path| path.file_name()?.to_str());
        names.map(str::to_owned).collect()
    }

    fn until_there(&self, begins: &str) {
        until("it waits", LONG, || self.names().iter().any(|name| name.starts_with(begins)));
    }

    /// A message goes through, and then nothing is left.
    #[track_caller]
    fn works(&self) {
        let receiver = self.command("GET", None).spawn().unwrap();
        let sent = self.bare.run(&mut self.command("POST", Some("5")), b"Hello").expect(200);
        assert_eq!(sent.header("x-bytes-delivered"), Some("5"));
        let (got, _) = crate::bare::finish(receiver);
        assert!(got.ends_with(b"Hello"), "{}", String::from_utf8_lossy(&got));
        self.bare.sweep();
        let mut names = self.names();
        names.sort();
        assert_eq!(names, ["counts", "session.json"]);
        assert_eq!(relays_running(self.bare.folder().path()), 0);
    }
}

fn kill9(process: &mut std::process::Child) {
    kill(Pid::from_child(process), Signal::KILL);
    process.wait().unwrap();
}

pub fn killing_who_waits_leaves_the_session_usable() {
    let two = Two::new();
    let mut receiver = two.command("GET", None).spawn().unwrap();
    two.until_there("receiver");
    kill9(&mut receiver);
    two.works();
    let mut sender = two.command("POST", Some("5")).spawn().unwrap();
    two.until_there("sender-");
    kill9(&mut sender);
    two.works();
}

pub fn killing_the_receiver_half_way_tells_the_sender_what_was_taken() {
    let two = Two::new();
    let mut receiver = two.command("GET", None).spawn().unwrap();
    let mut sender = two.command("POST", Some("1000000")).spawn().unwrap();
    let mut input = sender.stdin.take().unwrap();
    input.write_all(&[7; 1000]).unwrap();
    let mut output = receiver.stdout.take().unwrap();
    let mut got = Vec::new();
    while !got.ends_with(&[7; 1000]) {
        let mut some = [0; 4096];
        let count = output.read(&mut some).unwrap();
        got.extend_from_slice(&some[..count]);
    }
    std::thread::sleep(Duration::from_millis(50));
    kill9(&mut receiver);
    drop(input);
    let (output, status) = crate::bare::finish(sender);
    let sent = two.bare.reply(&output, status).expect(200);
    assert_eq!(sent.header("x-bytes-delivered"), Some("1000"));
    two.works();
}

pub fn killing_the_sender_half_way_ends_the_receivers_body() {
    let two = Two::new();
    let receiver = two.command("GET", None).spawn().unwrap();
    let mut sender = two.command("POST", Some("1000000")).spawn().unwrap();
    sender.stdin.as_mut().unwrap().write_all(&[7; 1000]).unwrap();
    // The receiver has been taken, and has had the time to pass it on.
    until("they flow", LONG, || {
        !two.names().iter().any(|name| name == "data") && relays_running(two.bare.folder().path()) == 2
    });
    std::thread::sleep(Duration::from_millis(300));
    kill9(&mut sender);
    let (got, status) = crate::bare::finish(receiver);
    assert!(status.success());
    assert!(got.ends_with(&[7; 1000]), "{}", String::from_utf8_lossy(&got));
    two.works();
}

/// Everything was delivered; that the relay cannot note it any more is no failure of the sender's.
pub fn what_was_delivered_is_told_whatever_goes_wrong_afterwards() {
    let two = Two::at(crate::faults::without_rights());
    let receiver = two.command("GET", None).spawn().unwrap();
    two.until_there("receiver");
    let mut sender = two.command("POST", Some("5")).spawn().unwrap();
    sender.stdin.as_mut().unwrap().write_all(b"Hel").unwrap();
    // The receiver has been taken.
    until("they flow", LONG, || !two.names().iter().any(|name| name == "data"));
    let below = everything_below(&two.bare.data().join("pipes"));
    let record = below.iter().find(|path| path.ends_with("session.json")).unwrap();
    set_mode(record, 0o400);
    sender.stdin.take().unwrap().write_all(b"lo").unwrap();
    let (got, _) = crate::bare::finish(receiver);
    assert!(got.ends_with(b"Hello"), "{}", String::from_utf8_lossy(&got));
    let (output, status) = crate::bare::finish(sender);
    let sent = two.bare.reply(&output, status).expect(200);
    assert_eq!(sent.header("x-bytes-delivered"), Some("5"));
    assert!(two.bare.log().contains("uhst-relay: "), "the log tells it: {}", two.bare.log());
    set_mode(record, 0o600);
    two.works();
}

/// The relay fails half way; the host asks again, and nobody stays who may not.
pub fn a_guest_that_could_not_be_sent_away_is_sent_away_the_next_time() {
    let two = Two::made(crate::faults::without_rights(), &[("X-Type", "secure")]);
    let permit = |address| {
        let headers = [("Cookie", two.cookie.as_str()), ("X-Peer-Address", address)];
        two.bare.call(&Call { method: "PUT", path_info: &two.path, headers: &headers, ..Call::default() })
    };
    permit("127.0.0.1").expect(200);
    let guest = two.bare.start(&Call { method: "GET", path_info: &two.path, ..Call::default() });
    two.until_there("receiver");
    let below = everything_below(&two.bare.data().join("pipes"));
    let pipe = below.iter().find(|path| path.ends_with("to-guest")).unwrap();
    set_mode(pipe, 0o000);
    permit("192.0.2.1").expect_error(500);
    set_mode(pipe, 0o700);
    permit("192.0.2.1").expect(200);
    let (output, status) = crate::bare::finish(guest);
    let told = two.bare.reply(&output, status);
    // 500 where it has looked for itself while nothing could be seen: it does not stay then either.
    assert!([403, 500].contains(&told.status), "{told:?}");
}

macro_rules! alone {
    ($($topic:ident,)*) => { $( #[test] fn $topic() { super::$topic(); } )* };
}

mod killed {
    alone! {
        killing_who_waits_leaves_the_session_usable,
        killing_the_receiver_half_way_tells_the_sender_what_was_taken,
        killing_the_sender_half_way_ends_the_receivers_body,
    }
}

mod noted {
    alone! {
        what_was_delivered_is_told_whatever_goes_wrong_afterwards,
        a_guest_that_could_not_be_sent_away_is_sent_away_the_next_time,
    }
}
