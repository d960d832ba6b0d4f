//! The `WebSocket` protocol and its event handlers, through `serve` and through a CGI program under lighttpd.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;
use rustix::process::Signal;
use serde_json::{Value, json};
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame};
use tungstenite::{Message, WebSocket};

use crate::door::Door;
use crate::machines::Machines;
use crate::place::{
    Folder, LONG, User, have, is_root, kill, processes_below, relays_of, repository, set_mode, skip, until, web_user,
};
use crate::relay::{Call, Relay, Reply, header};
use crate::serve::Serve;
use crate::server::Server;
use crate::stream::{end_of_head, parse_head};

/// A relay that a `WebSocket` can reach.
enum Place {
    Serve(Serve),
    Server(Server),
    Machines(Box<Machines>),
}

fn place(door: Door, settings: &[(&str, &str)]) -> Option<Place> {
    Some(match door {
        _ if door.is_serve() => Place::Serve(door.serve(settings)?),
        Door::Machines => Place::Machines(Box::new(Machines::start(settings)?)),
        _ => Place::Server(door.server(settings)?),
    })
}

impl Place {
    fn relay(&self) -> &dyn Relay {
        match self {
            Self::Serve(serve) => serve,
            Self::Server(server) => server,
            Self::Machines(machines) => &**machines,
        }
    }

    fn url(&self) -> String {
        match self {
            Self::Serve(serve) => serve.url(),
            Self::Server(server) => server.url(),
            Self::Machines(machines) => machines.next_url(),
        }
    }

    fn log(&self) -> String {
        match self {
            Self::Serve(serve) => serve.log(),
            Self::Server(server) => server.log(),
            Self::Machines(machines) => machines.web.log(),
        }
    }

    fn data(&self) -> PathBuf {
        self.relay().folder().join("cgi-bin/data")
    }

    /// Asks for the connection.
    fn ask(&self, path: &str, fields: &str) -> TcpStream {
        let url = self.url();
        let (authority, mount) =
            url["http://".len()..].split_at(url["http://".len()..].find('/').unwrap_or(url.len() - 7));
        let mut socket = TcpStream::connect(authority).expect("the server accepts connections");
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        let request = format!("GET {mount}{path} HTTP/1.1\r\nHost: {authority}\r\n{fields}\r\n");
        socket.write_all(request.as_bytes()).unwrap();
        socket
    }

    /// Says a handshake; what comes back.
    #[track_caller]
    fn shake(&self, path: &str, fields: &str) -> Result<(TcpStream, Vec<u8>), Reply> {
        self.shake_to_speak(None, path, fields)
    }

    /// The same; where it is accepted, this subprotocol is to be spoken.
    #[track_caller]
    fn shake_to_speak(&self, protocol: Option<&str>, path: &str, fields: &str) -> Result<(TcpStream, Vec<u8>), Reply> {
        let mut socket = self.ask(path, fields);
        let mut heard = Vec::new();
        let end = loop {
            if let Some(end) = end_of_head(&heard) {
                break end;
            }
            let mut bytes = [0; 4096];
            let count = match socket.read(&mut bytes) {
                // Where a socket has a time limit, a process that was held up for a moment is told so (signal(7)).
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other.expect("an answer comes"),
            };
            assert!(count > 0, "no whole answer: {:?}", String::from_utf8_lossy(&heard));
            heard.extend_from_slice(&bytes[..count]);
        };
        let (status, headers) = parse_head(&heard[..end]);
        let rest = heard.split_off(end);
        if status == 101 {
            // RFC 6455, 1.3 has this pair.
            assert_eq!(header(&headers, "sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
            assert!(header(&headers, "upgrade").is_some_and(|upgrade| upgrade.eq_ignore_ascii_case("websocket")));
            assert!(header(&headers, "connection").is_some_and(|list| list.eq_ignore_ascii_case("upgrade")));
            assert_eq!(header(&headers, "sec-websocket-protocol"), protocol, "{fields}");
            return Ok((socket, rest));
        }
        Err(Reply { status, headers, body: String::from_utf8_lossy(&rest).into_owned() })
    }

    #[track_caller]
    fn open(&self, path: &str) -> Socket {
        self.open_with(path, "")
    }

    #[track_caller]
    fn open_with(&self, path: &str, fields: &str) -> Socket {
        self.open_to_speak(None, path, fields)
    }

    #[track_caller]
    fn open_to_speak(&self, protocol: Option<&str>, path: &str, fields: &str) -> Socket {
        let shaken = self.shake_to_speak(protocol, path, &format!("{HANDSHAKE}{fields}"));
        let (socket, rest) = shaken.unwrap_or_else(|reply| panic!("{reply:?}"));
        let role = tungstenite::protocol::Role::Client;
        Socket(WebSocket::from_partially_read(socket, rest, role, None))
    }

    fn notify(&self, channel: &str, lines: &str) {
        let mut command = self.command(&["notify", channel]).stdin(Stdio::piped()).spawn().unwrap();
        command.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        assert!(command.wait().unwrap().success());
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        if let (Self::Server(_), true) = (self, is_root()) {
            // As the web server's user, whose the data folder is.
            let User { uid, gid } = web_user();
            command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()]);
        }
        command.arg("--").arg(self.relay().folder().join("cgi-bin/relay.cgi"));
        command.args(arguments).arg("--data").arg(self.data());
        command
    }

    #[track_caller]
    fn has_logged(&self, text: &str) {
        until(&format!("the log has {text:?}"), LONG, || self.log().contains(text));
    }

    /// Sends a signal to the processes that hold the connections.
    fn signal(&self, signal: Signal) {
        match self {
            Self::Serve(serve) => kill(serve.pid(), signal),
            Self::Server(_) => {
                let relays = relays_of(self.relay().folder().path());
                assert!(!relays.is_empty(), "a connection is a process");
                for pid in relays {
                    kill(pid, signal);
                }
            }
            Self::Machines(_) => unreachable!("one of many is killed in machines.rs"),
        }
    }

    fn stop(&mut self) {
        match self {
            Self::Serve(serve) => kill(serve.pid(), Signal::TERM),
            Self::Server(server) => server.stop(),
            Self::Machines(_) => unreachable!("one of many is stopped in machines.rs"),
        }
    }
}

const HANDSHAKE: &str = "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

struct Socket(WebSocket<TcpStream>);

impl Socket {
    #[track_caller]
    fn say(&mut self, text: &str) {
        self.0.send(Message::text(text)).unwrap();
    }

    /// The next message, past what the relay asks to see whether somebody is there.
    #[track_caller]
    fn next(&mut self) -> Message {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < LONG, "nothing but pings");
            match self.0.read() {
                Ok(Message::Ping(_)) => {}
                // As above.
                Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => return other.expect("a message comes"),
            }
        }
    }

    #[track_caller]
    fn hear(&mut self, text: &str) {
        assert_eq!(self.next(), Message::text(text));
    }

    /// The connection ends with this code, and cleanly.
    #[track_caller]
    fn ends(mut self, code: u16) {
        match self.next() {
            Message::Close(Some(CloseFrame { code: found, .. })) => assert_eq!(u16::from(found), code),
            other => panic!("not a close with {code} but {other:?}"),
        }
        while self.0.read().is_ok() {}
        let mut rest = Vec::new();
        assert_eq!(self.0.get_mut().read_to_end(&mut rest).unwrap_or(0), 0, "nothing behind the close");
    }

    #[track_caller]
    fn leave(mut self) {
        self.0.close(Some(CloseFrame { code: CloseCode::Normal, reason: "bye".into() })).unwrap();
        self.ends(1000);
    }
}

pub fn messages_reach_the_others_in_one_order(door: Door) {
    let Some(place) = place(door, &[]) else { return };
    let mut sockets = [place.open("/ws/news"), place.open("/bus/news"), place.open("/ws/news")];
    let mut elsewhere = place.open("/ws/olds");
    let greeting =
        place.relay().call(&Call { method: "GET", path_info: "/bus/news", ..Call::default() }).expect(200).json();
    let (user, start) = (greeting["user"].as_u64().unwrap(), greeting["id"].as_u64().unwrap());
    let mut stream = place.relay().listen_at("/bus/news", "events", &[]).expect("a stream");
    stream.expect_comment("Connected.");

    for (n, text) in ["plain", r#"{"a":[1,null]}"#, r#""quoted""#, "42", "h\u{e9}\n\u{0}", ""].into_iter().enumerate() {
        sockets[n % 3].say(text);
        for (other, socket) in sockets.iter_mut().enumerate().filter(|(other, _)| *other != n % 3) {
            assert_eq!(socket.next(), Message::text(text), "{other}");
        }
    }
    sockets[0].0.send(Message::binary(vec![0, 255])).unwrap();
    for socket in &mut sockets[1..] {
        assert_eq!(socket.next(), Message::binary(vec![0, 255]));
    }
    // Pollers and listeners have values.
    let expected = [
        json!("plain"),
        json!({"a": [1, null]}),
        json!("\"quoted\""),
        json!(42),
        json!("h\u{e9}\n\u{0}"),
        json!(""),
        json!({"base64": "AP8="}),
    ];
    let query = format!("id={start}&user={user}");
    let poll = Call { method: "GET", path_info: "/bus/news", query: &query, ..Call::default() };
    let polled = place.relay().call(&poll).expect(200).json();
    let data: Vec<Value> = polled.as_array().unwrap().iter().map(|message| message["data"].clone()).collect();
    assert_eq!(data, expected);
    for value in &expected {
        assert_eq!(serde_json::from_str::<Value>(&stream.event().data).unwrap()["data"], *value);
    }
    // What a poller posts reaches all.
    let query = format!("user={user}");
    for (body, message) in [
        (r#""words""#, Message::text("words")),
        (r#"{ "b" : 1 }"#, Message::text(r#"{"b":1}"#)),
        (r#"{"base64":"aGk="}"#, Message::binary(&b"hi"[..])),
    ] {
        place
            .relay()
            .call(&Call { path_info: "/bus/news", query: &query, body: body.as_bytes(), ..Call::default() })
            .expect(200);
        for socket in &mut sockets {
            assert_eq!(socket.next(), message);
        }
    }
    // Many at once, in one order for all.
    for n in 0..100 {
        sockets[n % 2].say(&format!("many {n}"));
    }
    sockets[2].say("over");
    let mut heard = Vec::new();
    while heard.len() < 100 {
        heard.push(sockets[2].next().into_text().unwrap().to_string());
    }
    let of = |parity: usize| (0..100).filter(move |n| n % 2 == parity).map(|n| format!("many {n}"));
    for parity in [0, 1] {
        let expected: Vec<_> = heard.iter().filter(|text| of(1 - parity).any(|other| other == **text)).collect();
        let mut found = Vec::new();
        while found.len() < 50 {
            let text = sockets[parity].next().into_text().unwrap().to_string();
            if text != "over" {
                found.push(text);
            }
        }
        assert_eq!(found.iter().collect::<Vec<_>>(), expected);
    }
    elsewhere.say("nobody");
    elsewhere.leave();
    for socket in sockets {
        drop(socket);
    }
}

pub fn a_wrong_handshake_says_what_is_wrong(door: Door) {
    let Some(place) = place(door, &[("RELAY_ALLOWED_ORIGINS", "https://good.example")]) else { return };
    let refused = |fields: &str| place.shake("/ws/a", fields).expect_err("an answer that is no 101");
    for fields in ["", &HANDSHAKE.replace(": 13", ": 8"), &HANDSHAKE.replace("Sec-WebSocket-Version: 13\r\n", "")] {
        let reply = refused(fields);
        assert_eq!((reply.status, reply.header("sec-websocket-version")), (426, Some("13")), "{fields}: {reply:?}");
        assert!(is_upgrade_of_this_connection(&reply), "{fields}: {reply:?}");
    }
    for key in ["", "c2hvcnQ=", "dGhlIHNhbXBsZSBub25jZQ", "!!!!!!!!!!!!!!!!!!!!!!=="] {
        let reply = refused(&HANDSHAKE.replace("dGhlIHNhbXBsZSBub25jZQ==", key));
        assert!(reply.status == 400 && reply.body.contains("Sec-WebSocket-Key"), "{key}: {reply:?}");
    }
    let reply = refused(&format!("{HANDSHAKE}Origin: https://evil.example\r\n"));
    assert!(reply.status == 403 && reply.body.contains("RELAY_ALLOWED_ORIGINS"), "{reply:?}");
    assert_eq!(place.shake("/ws/a/b", HANDSHAKE).expect_err("no channel").status, 404);
    place.open_with("/ws/a", "Origin: https://good.example\r\n").leave();
}

pub fn frames_are_taken_as_the_rfc_says(door: Door) {
    let Some(place) = place(door, &[("RELAY_WS_HANDLER", "echo"), ("RELAY_MAX_BODY", "1000")]) else { return };
    let frame = |bytes: &[u8], code: OpCode, is_final| Message::Frame(Frame::message(bytes.to_vec(), code, is_final));
    let text = |bytes: &[u8], is_final| frame(bytes, OpCode::Data(Data::Text), is_final);
    let more = |bytes: &[u8], is_final| frame(bytes, OpCode::Data(Data::Continue), is_final);

    let mut socket = place.open("/ws");
    // A character in two pieces, and a ping between them.
    socket.0.send(text(b"h\xc3", false)).unwrap();
    socket.0.send(Message::Ping("there?".into())).unwrap();
    socket.0.send(more(b"\xa9", true)).unwrap();
    assert_eq!(socket.next(), Message::Pong("there?".into()));
    socket.hear("h\u{e9}");
    let all: Vec<u8> = (0..1000_u32).map(|n| n.to_le_bytes()[0]).collect();
    socket.0.send(Message::binary(all.clone())).unwrap();
    assert_eq!(socket.next(), Message::binary(all));
    socket.leave();

    for (code, messages) in [
        (1009, vec![text(&[b'x'; 1001], true)]),
        (1009, vec![text(&[b'x'; 600], false), more(&[b'x'; 600], true)]),
        (1007, vec![text(b"\xff", true)]),
        (1007, vec![text(b"\xc3", true)]),
        (1002, vec![more(b"x", true)]),
        (1002, vec![text(b"x", false), text(b"x", true)]),
    ] {
        let mut socket = place.open("/ws");
        for message in messages {
            socket.0.send(message).unwrap();
        }
        socket.ends(code);
    }
    for (what, bytes) in [
        ("a frame without a mask", &b"\x81\x01x"[..]),
        ("an opcode that there is not", b"\x83\x81\0\0\0\0x"),
        ("a ping in two pieces", b"\x09\x80\0\0\0\0"),
        ("a bit that nobody has agreed on", b"\xc1\x81\0\0\0\0x"),
        ("a ping of 126 bytes", &[b"\x89\xfe\0\x7e\0\0\0\0".as_slice(), &[b'x'; 126]].concat()),
        ("a close of one byte", b"\x88\x81\0\0\0\0x"),
    ] {
        let mut socket = place.open("/ws");
        socket.0.get_mut().write_all(bytes).unwrap();
        eprintln!("{what}");
        socket.ends(1002);
    }
}

/// A connection that is closed with unread bytes in it is reset, and what was said last may be lost with it (RFC 9112, 9.6).
#[test]
fn whoever_sends_too_much_is_told_so_before_it_is_cut_off() {
    let place = Place::Serve(Serve::new());
    for _ in 0..5 {
        let (mut socket, _) = place.shake("/ws/room", HANDSHAKE).expect("it is let in");
        let size = 200_000_u64;
        let head = [b"\x81\xff".as_slice(), &size.to_be_bytes(), b"\0\0\0\0"].concat();
        socket.write_all(&[head, vec![b'x'; usize::try_from(size).unwrap()]].concat()).expect("it may say all of it");
        let mut said = Vec::new();
        socket.read_to_end(&mut said).expect("it ends, and is not reset");
        assert!(said.starts_with(&[0x88]) && said[2..4] == 1009_u16.to_be_bytes(), "{said:?}");
    }
}

/// Writes what it is told to a file of its own, and does what the texts say.
const HANDLER: &str = r#"#!/usr/bin/env python3
import json, os, sys, time
def do(**action):
    print(json.dumps(action), flush=True)
log = open(os.path.join(sys.argv[1], str(os.getpid())), "w", buffering=1)
log.write(json.dumps({"environment": dict(os.environ)}) + "\n")
for line in sys.stdin:
    log.write(line)
    event = json.loads(line)
    kind = event["event"]
    if kind == "authenticate":
        if event["query"] == "hangs":
            time.sleep(1000)
        name, _, protocol = event["query"].partition("=")
        if protocol and name in ("speaks", "refuses"):
            do(accept=name == "speaks", protocol=protocol)
        else:
            do(accept=name != "stranger")
    elif kind == "open":
        do(send="welcome")
    elif kind == "fifo":
        do(send="fifo " + json.dumps(event["data"]))
    elif kind == "read" and "binary" in event:
        do(send_binary=event["binary"])
    elif kind == "text":
        text = event["text"]
        if text == "die":
            sys.exit(1)
        elif text == "nonsense":
            print("Hello, world", flush=True)
        elif text == "flood":
            while True:
                do(broadcast="x" * 5000)
        elif text == "chatter":
            while True:
                do(log="x")
        elif text == "much":
            for _ in range(200):
                do(send="x" * 100000)
        elif text == "pour":
            while True:
                do(send="x" * 100000)
        elif text == "end":
            do(close={"code": 1005})
        elif text == "deaf":
            time.sleep(1000)
        elif text == "leave":
            do(close={"code": 4001, "reason": "as you wish"})
        elif text == "log":
            do(log="said\nso")
        elif text.startswith("all "):
            do(broadcast=text[4:])
        else:
            do(send="you said " + text)
    elif kind == "after_close":
        do(broadcast="one has left")
"#;

/// The handler above, in a folder where it may write.
struct Recorder {
    folder: Folder,
}

impl Recorder {
    fn new() -> Option<Self> {
        if !have("python3") {
            skip("python3 is not installed");
            return None;
        }
        let folder = Folder::new();
        let path = folder.join("handler.py");
        fs::write(&path, HANDLER).unwrap();
        set_mode(&path, 0o755);
        fs::create_dir(folder.join("told")).unwrap();
        set_mode(&folder.join("told"), 0o777);
        Some(Self { folder })
    }

    fn setting(&self) -> String {
        let at = |name: &str| self.folder.join(name).to_str().unwrap().to_owned();
        format!("python3 {} {}", at("handler.py"), at("told"))
    }

    /// What each handler was told so far.
    fn told(&self) -> Vec<Vec<Value>> {
        let files = fs::read_dir(self.folder.join("told")).unwrap();
        let lines = |text: String| text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        files.map(|file| lines(fs::read_to_string(file.unwrap().path()).unwrap())).collect()
    }

    /// What the only handler was told, once it was told everything.
    #[track_caller]
    fn all_told(&self) -> Vec<Value> {
        let is_all = |told: &[Value]| told.last().is_some_and(|last| last["event"] == "finalize");
        until("the handler was told everything", LONG, || self.told().first().is_some_and(|told| is_all(told)));
        self.told().remove(0)
    }
}

fn kinds(told: &[Value]) -> Vec<&str> {
    told.iter().filter_map(|event| event["event"].as_str()).collect()
}

pub fn a_handler_is_told_every_event_in_order(door: Door) {
    let Some(recorder) = Recorder::new() else { return };
    let settings =
        [("RELAY_WS_HANDLER", &*recorder.setting()), ("RELAY_WS_LOOP", "0.05"), ("JWT_SECRET", "sesame-sesame")];
    let Some(place) = place(door, &settings) else { return };
    let mut socket = place.open_with("/ws/room?a=b", "Cookie: id=7; x=y=z\r\nUser-Agent: test\r\nProxy: evil\r\n");
    socket.hear("welcome");
    std::thread::sleep(Duration::from_millis(200));
    socket.say("hi");
    socket.hear("you said hi");
    socket.0.send(Message::binary(vec![1, 2])).unwrap();
    assert_eq!(socket.next(), Message::binary(vec![1, 2]));
    place.notify("room", "news\n");
    socket.hear(r#"fifo "news""#);
    socket.leave();

    let told = recorder.all_told();
    let environment = &told[0]["environment"];
    assert_eq!(environment["HTTP_COOKIE"], "id=7; x=y=z");
    assert_eq!(environment["PATH_INFO"], "/ws/room");
    assert!(environment.get("HTTP_PROXY").is_none() && !environment.to_string().contains("sesame"), "{environment}");
    let of = |kind: &str| told.iter().find(|event| event["event"] == kind).unwrap_or_else(|| panic!("no {kind}"));
    assert_eq!(of("started")["channel"], "room");
    let visitor = of("authenticate");
    assert_eq!(visitor["cookies"], json!({"id": "7", "x": "y=z"}));
    assert_eq!((&visitor["user_agent"], &visitor["query"]), (&json!("test"), &json!("a=b")));
    assert_eq!(visitor["remote_address"], "127.0.0.1");
    assert_eq!(of("open")["key"], "dGhlIHNhbXBsZSBub25jZQ==");
    assert_eq!(of("before_close"), &json!({"event": "before_close", "code": 1000, "reason": "bye"}));
    assert!(kinds(&told).contains(&"loop"));
    let order: Vec<_> = kinds(&told).into_iter().filter(|kind| *kind != "loop").collect();
    let expected =
        "initialize started authenticate open read text read fifo before_close after_close shutdown finalize";
    assert_eq!(order, expected.split(' ').collect::<Vec<_>>());
}

/// How a connection can end without a word.
#[derive(Clone, Copy, Debug)]
enum Break {
    /// The client's process is killed with SIGKILL.
    Killed,
    /// It closes its socket.
    Closed,
    /// It resets the connection.
    Reset,
    /// It is there, as far as its kernel goes, and says nothing.
    Silent,
    /// It reads nothing any more, and there is much to read.
    Clogged,
    /// The relay's process is asked to stop.
    Stopped,
}

pub fn a_connection_that_breaks_is_said_goodbye(door: Door) {
    for how in [Break::Killed, Break::Closed, Break::Reset, Break::Silent, Break::Clogged, Break::Stopped] {
        let Some(recorder) = Recorder::new() else { return };
        // Nobody answers a ping here, and who is to be stopped must not be dropped for that.
        let keep_alive = if matches!(how, Break::Stopped) { "60" } else { "0.2" };
        let handler = recorder.setting();
        let settings =
            [("RELAY_WS_HANDLER", &*handler), ("RELAY_KEEP_ALIVE", keep_alive), ("RELAY_MAX_QUEUE", "100000000")];
        let Some(place) = place(door, &settings) else { return };
        let mut socket = place.open("/ws/room");
        socket.hear("welcome");
        let start = Instant::now();
        // Who waits for the handler to be told reads nothing, and so answers no ping.
        let mut left = None;
        match how {
            Break::Killed => {
                let mut client =
                    Command::new("sleep").arg("1000").stdin(OwnedFd::from(socket.0.into_inner())).spawn().unwrap();
                client.kill().unwrap();
                client.wait().unwrap();
            }
            Break::Closed => drop(socket),
            Break::Reset => {
                set_socket_linger(socket.0.get_ref(), Some(Duration::ZERO)).unwrap();
                drop(socket);
            }
            Break::Silent => left = Some(socket),
            Break::Clogged => {
                socket.say("much");
                left = Some(socket);
            }
            Break::Stopped => {
                left = Some(socket);
                place.signal(Signal::TERM);
            }
        }
        let told = recorder.all_told();
        let end = &told[told.len() - 4..];
        assert_eq!(kinds(end), ["before_close", "after_close", "shutdown", "finalize"], "{how:?}");
        let codes: &[u16] = match how {
            Break::Stopped => &[1001],
            // lighttpd ends the program when it notices first, which to the program is the server's end.
            Break::Killed | Break::Closed | Break::Reset if door == Door::Lighttpd => &[1006, 1001],
            _ => &[1006],
        };
        assert!(codes.iter().any(|code| end[0]["code"] == *code), "{how:?}: {end:?}");
        if matches!(how, Break::Silent | Break::Clogged) {
            assert!(start.elapsed() > Duration::from_millis(500), "{how:?}: not before three pings");
        }
        drop(left);
    }
}

/// Whether or not the answer to its handshake has to wait for the handler. lighttpd does not tell that it has gone.
pub fn a_client_that_goes_before_it_is_let_in_is_not_waited_for(door: Door) {
    let Some(recorder) = Recorder::new() else { return };
    let Some(place) = place(door, &[("RELAY_WS_HANDLER", &recorder.setting())]) else { return };
    for offers in ["", "Sec-WebSocket-Protocol: chat\r\n"] {
        let socket = place.ask("/ws/room?hangs", &format!("{HANDSHAKE}{offers}"));
        until("the handler is asked", LONG, || {
            recorder.told().iter().any(|told| kinds(told).last() == Some(&"authenticate"))
        });
        drop(socket);
        let handlers = || processes_with(recorder.folder.join("handler.py").to_str().unwrap());
        until("the handler has ended", LONG, || handlers() == 0);
        assert!(!place.log().contains("has not answered authenticate"), "{}", place.log());
        fs::remove_dir_all(recorder.folder.join("told")).unwrap();
        fs::create_dir(recorder.folder.join("told")).unwrap();
        set_mode(&recorder.folder.join("told"), 0o777);
    }
}

/// Nobody is left to tell it anything: the end of its input is the end. The examples know that too.
pub fn a_handler_ends_when_the_relay_is_killed(door: Door) {
    let Some(recorder) = Recorder::new() else { return };
    let example = |name: &str| {
        let program = recorder.folder.join(name);
        fs::copy(repository().join("deploy/examples").join(name), &program).unwrap();
        format!("{} {}", program.display(), recorder.folder.join("told").display())
    };
    for handler in [recorder.setting(), example("chat.py"), example("chat.php")] {
        if handler.contains(".php") && !have("php") {
            skip("php is not installed");
            continue;
        }
        let Some(place) = place(door, &[("RELAY_WS_HANDLER", &handler)]) else { return };
        let mut socket = place.open("/ws/room?name=Anna");
        let script = handler.split(' ').rev().nth(1).unwrap();
        let handlers = || processes_with(script);
        until("the handler runs", LONG, || handlers() == 1);
        place.signal(Signal::KILL);
        until("the handler has ended", LONG, || handlers() == 0);
        while socket.0.read().is_ok() {}
    }
    let told = recorder.told().into_iter().find(|told| !told.is_empty()).unwrap();
    assert!(!kinds(&told).contains(&"before_close"), "{told:?}");
}

/// How many processes have this among their arguments.
fn processes_with(argument: &str) -> usize {
    let has = |entry: &fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
    };
    fs::read_dir("/proc").unwrap().flatten().filter(|entry| has(entry)).count()
}

pub fn a_handler_that_fails_takes_nobody_else_with_it(door: Door) {
    let Some(recorder) = Recorder::new() else { return };
    // A test that waits for one of them answers no pings of the others.
    let Some(place) = place(door, &[("RELAY_WS_HANDLER", &recorder.setting()), ("RELAY_KEEP_ALIVE", "60")]) else {
        return;
    };
    let mut healthy = place.open("/ws/other");
    healthy.hear("welcome");
    // The one that takes its time begins first.
    let silent = place.open("/ws/silent?hangs");
    let mut socket = place.open("/ws/room");
    socket.hear("welcome");
    socket.say("leave");
    socket.ends(4001);
    place.open("/ws/room?stranger").ends(1008);
    for (text, logged) in [
        ("die", "has ended before its connection"),
        ("nonsense", "that is no action"),
        ("flood", "more than can be taken"),
        ("chatter", "more than can be taken"),
        ("pour", "more than can be taken"),
        ("end", "nobody may close with 1005"),
    ] {
        let mut socket = place.open(&format!("/ws/{text}"));
        socket.hear("welcome");
        socket.say(text);
        if text == "pour" {
            // It pours as long as nobody takes it, and the close comes behind all of it.
            place.has_logged(&format!("\"pour\": the handler says {logged}"));
            continue;
        }
        socket.ends(1011);
        place.has_logged(logged);
        // Others on the same channel talk on.
        let mut pair = [place.open(&format!("/ws/{text}")), place.open(&format!("/ws/{text}"))];
        for socket in &mut pair {
            socket.hear("welcome");
        }
        pair[0].say("all is well");
        pair[1].hear("is well");
    }
    socket = place.open("/ws/room");
    socket.hear("welcome");
    socket.say("log");
    place.has_logged("saidso");
    // Only now, because it has 10 s from the first word that it does not read.
    let mut deaf = place.open("/ws/deaf");
    deaf.hear("welcome");
    deaf.say("deaf");
    // The pipe to it is full some time.
    for _ in 0..30 {
        deaf.say(&"x".repeat(10_000));
    }
    silent.ends(1011);
    place.has_logged("has not answered authenticate");
    deaf.ends(1011);
    place.has_logged("has not read its input");
    healthy.say("still there");
    healthy.hear("you said still there");
    healthy.leave();
}

#[test]
fn a_crowd_does_not_start_more_handlers_than_the_owner_allows() {
    let Some(recorder) = Recorder::new() else { return };
    let settings = [("RELAY_WS_HANDLER", &*recorder.setting()), ("RELAY_MAX_HANDLERS", "2")];
    let Some(place) = place(Door::Serve, &settings) else { return };
    let mut one = place.open("/ws/room");
    one.hear("welcome");
    // One that is not let in yet counts too.
    let _silent = place.open("/ws/other?hangs");
    for channel in ["room", "other", "new"] {
        let reply = place.shake(&format!("/ws/{channel}"), HANDSHAKE).expect_err("an answer that is no 101");
        assert!(reply.status == 503 && reply.body.contains("RELAY_MAX_HANDLERS"), "{reply:?}");
        assert!(reply.header("retry-after").is_some(), "{reply:?}");
    }
    one.leave();
    until("there is a place again", LONG, || place.shake("/ws/room", HANDSHAKE).is_ok());
}

pub fn the_application_reaches_everybody(door: Door) {
    let pipe = Folder::new();
    let pipe = pipe.join("notify");
    let Some(place) = place(door, &[("WEBSOCKET_XHR_PIPE_FILE", pipe.to_str().unwrap())]) else { return };
    let mut sockets = [place.open("/ws/room"), place.open("/ws/room")];
    place.notify("room", "one\n\n{\"two\": 2}\n");
    for socket in &mut sockets {
        socket.hear("one");
        socket.hear(r#"{"two":2}"#);
    }
    let key = place.command(&["notify", "--key", "room"]).output().unwrap();
    let key = String::from_utf8(key.stdout).unwrap();
    let post = |channel: &str, key: &str, body: &[u8]| {
        let (path, query) = (format!("/ws/{channel}"), format!("key={key}"));
        place.relay().call(&Call { path_info: &path, query: &query, body, ..Call::default() })
    };
    if let (Place::Server(_), true) = (&place, is_root()) {
        // Root goes on as the web server's user, in whose way its own files would be.
        let program = place.relay().folder().join("cgi-bin/relay.cgi");
        let mut command = Command::new(program);
        let mut root =
            command.args(["notify", "room", "--data"]).arg(place.data()).stdin(Stdio::piped()).spawn().unwrap();
        root.stdin.take().unwrap().write_all(b"from root\n").unwrap();
        assert!(root.wait().unwrap().success());
        for socket in &mut sockets {
            socket.hear("from root");
        }
    }
    post("room", key.trim(), "caf\u{e9}".as_bytes()).expect(200);
    for socket in &mut sockets {
        socket.hear("caf\u{e9}");
    }
    post("other", key.trim(), b"x").expect_error(403);
    post("room", "", b"x").expect_error(403);
    post("room", &key.trim().replace(|c: char| c.is_ascii_digit(), "0"), b"x").expect_error(403);
    post("room", key.trim(), b"\xff").expect_error(400);
    post("room", key.trim(), &[b'x'; 10_241]).expect_error(413);
    // The named pipe of the original.
    if door == Door::Serve {
        let mut socket = place.open("/ws");
        fs::OpenOptions::new().append(true).open(&pipe).unwrap().write_all(b"through the pipe\nand more\n").unwrap();
        socket.hear("through the pipe");
        socket.hear("and more");
    }
}

/// `push_server`'s own writer sends JSON without a line end, and its other ways are a shell's.
#[test]
fn the_named_pipe_takes_what_the_programs_of_push_server_write() {
    let folder = Folder::new();
    let (pipe, program) = (folder.join("ws_notify"), folder.join("serve"));
    let pipe_name = pipe.to_str().unwrap();
    fs::write(&program, format!("#!/bin/sh\numask 077\nexec '{}' \"$@\"\n", env!("CARGO_BIN_EXE_uhst-relay"))).unwrap();
    set_mode(&program, 0o755);
    let place = Place::Serve(Serve::of_program(&program, &[("WEBSOCKET_XHR_PIPE_FILE", pipe_name)]));
    let mode = || fs::metadata(&pipe).map(|pipe| pipe.permissions().mode() & 0o7777).ok();
    assert_eq!(mode(), Some(0o660), "whatever the umask");
    let shell = |script: &str| Command::new("sh").args(["-c", script, pipe_name]).spawn().unwrap();
    let mut socket = place.open("/ws");

    shell(r#"printf '{"a":1}' >"$0""#).wait().unwrap();
    socket.hear(r#"{"a":1}"#);
    shell(r#"printf 'caf\303\251 one\ntwo\r\n{"three":3}{"four":4}' >"$0""#).wait().unwrap();
    for message in ["caf\u{e9} one", "two", r#"{"three":3}"#, r#"{"four":4}"#] {
        socket.hear(message);
    }
    // Many at once, while another one keeps the pipe open and so never ends its message.
    let mut held = fs::OpenOptions::new().append(true).open(&pipe).unwrap();
    let count = 40;
    let writers: Vec<_> = (0..count).map(|n| shell(&format!(r#"printf '{{"n":{n}}}' >"$0""#))).collect();
    let mut heard: Vec<_> = (0..count).map(|_| socket.next().into_text().unwrap().to_string()).collect();
    for mut writer in writers {
        writer.wait().unwrap();
    }
    heard.sort_by_key(|text| (text.len(), text.clone()));
    assert_eq!(heard, (0..count).map(|n| format!(r#"{{"n":{n}}}"#)).collect::<Vec<_>>());
    // Who pauses has said its message; who pauses for a moment has not. Once more where the machine has paused.
    for attempt in 0.. {
        let start = Instant::now();
        held.write_all(format!(r#"{{"attempt":{attempt},"#).as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(10));
        held.write_all(br#""is":"whole"}"#).unwrap();
        let is_quick = start.elapsed() < Duration::from_millis(50);
        let mut heard = socket.next().into_text().unwrap().to_string();
        let is_whole = heard.ends_with('}');
        while !heard.ends_with('}') {
            heard += socket.next().into_text().unwrap().as_str();
        }
        assert_eq!(heard, format!(r#"{{"attempt":{attempt},"is":"whole"}}"#));
        if is_whole {
            break;
        }
        assert!(!is_quick, "it was cut in two");
    }
    held.write_all(b"no line end").unwrap();
    socket.hear("no line end");
    drop(held);
    // Somebody cleans up.
    fs::remove_file(&pipe).unwrap();
    until("the pipe is there again", LONG, || mode() == Some(0o660));
    shell(r#"printf again >"$0""#).wait().unwrap();
    socket.hear("again");
    // Another one that finds its address taken leaves the pipe alone.
    let data = place.data();
    let listen = place.url()["http://".len()..].to_owned();
    let arguments = ["serve", "--listen", &listen, "--data", data.to_str().unwrap()];
    let second = Command::new(env!("CARGO_BIN_EXE_uhst-relay")).args(arguments).output().unwrap();
    assert!(!second.status.success(), "{second:?}");
    assert_eq!(mode(), Some(0o660));
    // What was written just before the end is not lost, whether a WebSocket still hears it or not.
    let Place::Serve(serve) = &place else { unreachable!() };
    let cgi = serve.cgi();
    shell(r#"printf '{"last":1}' >"$0""#).wait().unwrap();
    kill(serve.pid(), Signal::TERM);
    until("a clean end removes the pipe", LONG, || mode().is_none());
    let poll =
        |query: &str| cgi.call(&Call { method: "GET", path_info: "/bus", query, ..Call::default() }).expect(200).json();
    let user = poll("")["user"].clone();
    until("the last words are on the bus", LONG, || {
        poll(&format!("id=0&user={user}"))
            .as_array()
            .unwrap()
            .iter()
            .any(|message| message["data"] == json!({"last": 1}))
    });
}

/// Somebody has made it for those who may write to it.
#[test]
fn a_named_pipe_that_serve_has_not_made_stays() {
    let folder = Folder::new();
    let pipe = folder.join("ws_notify");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    set_mode(&pipe, 0o622);
    let place = Place::Serve(Serve::with(&[("WEBSOCKET_XHR_PIPE_FILE", pipe.to_str().unwrap())]));
    let mut socket = place.open("/ws");
    fs::OpenOptions::new().append(true).open(&pipe).unwrap().write_all(b"hi").unwrap();
    socket.hear("hi");
    let Place::Serve(serve) = &place else { unreachable!() };
    kill(serve.pid(), Signal::TERM);
    socket.ends(1001);
    until("nobody reads it any more", LONG, || {
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
        rustix::fs::open(&pipe, flags, rustix::fs::Mode::empty()).is_err_and(|error| error == rustix::io::Errno::NXIO)
    });
    assert_eq!(fs::metadata(&pipe).unwrap().permissions().mode() & 0o7777, 0o622);
}

pub fn stopping_says_goodbye(door: Door) {
    let Some(recorder) = Recorder::new() else { return };
    let Some(mut place) = place(door, &[("RELAY_WS_HANDLER", &recorder.setting())]) else { return };
    let mut socket = place.open("/ws/room");
    socket.hear("welcome");
    place.stop();
    if door == Door::Serve {
        socket.ends(1001);
    }
    let told = recorder.all_told();
    assert_eq!(kinds(&told[told.len() - 4..]), ["before_close", "after_close", "shutdown", "finalize"]);
    let folder = place.relay().folder().path();
    until("no process is left", LONG, || processes_below(folder).is_empty());
}

/// The share of a channel that a handler has is everybody's.
pub fn a_flood_closes_its_own_connection_and_no_other(door: Door) {
    let Some(place) = place(door, &[("RELAY_MAX_QUEUE", "200000")]) else { return };
    let mut innocents: Vec<_> = (0..5).map(|_| place.open("/ws/room")).collect();
    let mut flood = place.open("/ws/room");
    for _ in 0..300 {
        flood.say(&"x".repeat(1000));
    }
    flood.ends(1013);
    for n in 0..5 {
        // What does not fit into what a flood leaves of a full channel.
        let text = format!("innocent {n} {}", "y".repeat(2000));
        innocents[n].say(&text);
        for (_, other) in innocents.iter_mut().enumerate().filter(|(other, _)| *other != n) {
            while other.next() != Message::text(&text) {}
        }
    }
    innocents.into_iter().for_each(Socket::leave);
}

pub fn only_the_registered_post_where_only_they_may(door: Door) {
    let Some(place) = place(door, &[]) else { return };
    place.relay().call(&Call { path_info: "/bus/signed", query: "create=signed", ..Call::default() }).expect(201);
    let mut listening = place.open("/ws/signed");
    let mut posting = place.open("/bus/signed");
    posting.say("let me");
    posting.ends(1008);
    place.notify("signed", "from the application\n");
    listening.hear("from the application");
}

/// A web server that cannot hand a connection over says so, and what to do.
pub fn another_web_server_says_what_to_do(door: Door) {
    let Some(place) = place(door, &[]) else { return };
    let reply = place.shake("/ws/a", HANDSHAKE).expect_err("an answer that is no 101");
    assert!([426, 501].contains(&reply.status), "{reply:?}");
    assert_eq!(reply.header("sec-websocket-accept"), None);
    let reply = place.shake("/ws/a", "").expect_err("an answer that is no 101");
    assert_eq!(reply.status, 426, "{reply:?}");
    // nginx describes its connection itself, whatever the program says.
    assert!(is_upgrade_of_this_connection(&reply) || door == Door::NginxFcgiwrap, "{reply:?}");
}

/// Whether an answer tells that its `Upgrade` is for this connection only (RFC 9110, 7.8).
fn is_upgrade_of_this_connection(reply: &Reply) -> bool {
    let fields = reply.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("connection"));
    let mut options = fields.flat_map(|(_, list)| list.split(','));
    reply.header("upgrade").is_some() && options.any(|option| option.trim().eq_ignore_ascii_case("upgrade"))
}

/// Browsers, undici and others give a connection up whose server does not answer which of their subprotocols is spoken.
pub fn a_client_and_its_application_agree_on_a_subprotocol(door: Door) {
    let Some(recorder) = Recorder::new() else { return };
    let offers = |list: &str| format!("Sec-WebSocket-Protocol: {list}\r\n");
    let handler = recorder.setting();
    // Without a handler, and with one that leaves it to the relay.
    for handler in ["", "echo", &handler] {
        let settings = [("RELAY_WS_PROTOCOLS", "chat.v1, chat.v2"), ("RELAY_WS_HANDLER", handler)];
        let Some(place) = place(door, &settings) else { return };
        for (offered, spoken) in [
            ("chat.v1", Some("chat.v1")),
            ("chat.v2,chat.v1", Some("chat.v2")),
            ("soap, chat.v2", Some("chat.v2")),
            // RFC 6455, 4.2.2: the field is left out, and the client decides.
            ("soap", None),
            ("chat", None),
            ("CHAT.V1", None),
            ("chat v1, ;", None),
        ] {
            let mut socket = place.open_to_speak(spoken, "/ws/room", &offers(offered));
            if handler.starts_with("python3") {
                socket.hear("welcome");
            }
            socket.leave();
        }
    }
    let Some(place) = place(door, &[("RELAY_WS_HANDLER", &handler), ("RELAY_WS_PROTOCOLS", "chat.v1")]) else { return };
    let open = |spoken: Option<&str>, query: &str, offered: &str| {
        place.open_to_speak(spoken, &format!("/ws/room?{query}"), &offers(offered))
    };
    let mut socket = open(Some("mqtt"), "speaks=mqtt", "chat.v1, mqtt");
    socket.hear("welcome");
    socket.say("hi");
    socket.hear("you said hi");
    socket.leave();
    // Who is refused is told so in a protocol that it understands.
    open(Some("mqtt"), "refuses=mqtt", "mqtt").ends(1008);
    open(Some("chat.v1"), "stranger", "chat.v1").ends(1008);
    open(Some("chat.v1"), "speaks=soap", "chat.v1").ends(1011);
    place.has_logged("a subprotocol that its client does not offer");
    place.open("/ws/room?speaks=chat.v1").ends(1011);
    let told = recorder.told();
    let offered = |told: &Vec<Value>| {
        told.iter().find(|event| event["event"] == "authenticate").map(|event| event["protocols"].clone())
    };
    assert!(told.iter().any(|told| offered(told) == Some(json!(["chat.v1", "mqtt"]))), "{told:?}");
    assert!(told.iter().any(|told| offered(told) == Some(json!([]))), "{told:?}");
}

/// A page in its place would look like an answer.
pub fn no_websocket_passes_through_a_tunnel(door: Door) {
    let Some(place) = place(door, &[]) else { return };
    for path in ["/frontend/servers/home/socket", "/frontend/servers/home"] {
        let reply = place.shake(path, HANDSHAKE).expect_err("an answer that is no 101");
        assert!(reply.status == 501 && reply.body.contains("/ws/CHANNEL"), "{path}: {reply:?}");
    }
    // Whoever asks for something else is answered as if it did not.
    let reply = place.shake("/frontend/servers/home/", "Upgrade: h2c\r\nConnection: Upgrade\r\n");
    assert_eq!(reply.expect_err("an answer that is no 101").status, 404);
}

/// The examples in Python and PHP: names and history.
pub fn the_chat_of_the_examples_works(door: Door) {
    for (interpreter, script) in [("python3", "chat.py"), ("php", "chat.php")] {
        if !have(interpreter) {
            skip(&format!("{interpreter} is not installed"));
            continue;
        }
        let folder = Folder::new();
        let (history, program) = (folder.join("history"), folder.join(script));
        fs::create_dir(&history).unwrap();
        set_mode(&history, 0o777);
        fs::copy(repository().join("deploy/examples").join(script), &program).unwrap();
        let command = format!("{} {}", program.display(), history.display());
        let Some(place) = place(door, &[("RELAY_WS_HANDLER", &command)]) else { return };
        place.open("/ws/room").ends(1008);
        let mut anna = place.open("/ws/room?name=Anna");
        anna.say("hello");
        anna.hear("Anna: hello");
        let mut bert = place.open("/ws/room?name=B%c3%a9rt");
        bert.hear("Anna: hello");
        anna.hear("* B\u{e9}rt has come");
        bert.say("h\u{e9} \"Anna\"");
        bert.hear("B\u{e9}rt: h\u{e9} \"Anna\"");
        anna.hear("B\u{e9}rt: h\u{e9} \"Anna\"");
        place.notify("room", "closing time\n");
        anna.hear("closing time");
        bert.hear("closing time");
        bert.leave();
        anna.hear("* B\u{e9}rt has left");
        // What somebody else has heard, too, is not on its way any more when the next one comes.
        let mut carl = place.open("/ws/room?name=Carl");
        carl.hear("Anna: hello");
        carl.hear("B\u{e9}rt: h\u{e9} \"Anna\"");
        anna.hear("* Carl has come");
        for n in 0..30 {
            anna.say(&n.to_string());
            anna.hear(&format!("Anna: {n}"));
            carl.hear(&format!("Anna: {n}"));
        }
        let mut late = place.open("/ws/room?name=Late");
        for n in 10..30 {
            late.hear(&format!("Anna: {n}"));
        }
    }
}

/// Who comes just when something is said gets it from the channel, and not from the history as well.
#[test]
fn the_history_of_the_examples_ends_where_the_channel_begins() {
    for (interpreter, script) in [("python3", "chat.py"), ("php", "chat.php")] {
        if !have(interpreter) {
            skip(&format!("{interpreter} is not installed"));
            continue;
        }
        let folder = Folder::new();
        let chat = |events: &[Value]| {
            let mut command = Command::new(repository().join("deploy/examples").join(script));
            let mut child = command.arg(folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut input = child.stdin.take().unwrap();
            for event in events {
                writeln!(input, "{event}").unwrap();
            }
            drop(input);
            String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
        };
        let started = |time: u64| json!({"event": "started", "channel": "room", "user": 2, "time": time});
        let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap();
        let now = u64::try_from(since_1970.as_millis()).unwrap();
        chat(&[started(now), json!({"event": "text", "text": "hello"})]);
        for (time, is_told) in [(now, false), (now + 3_600_000, true)] {
            let said = chat(&[started(time), json!({"event": "open", "key": ""})]);
            assert_eq!(said.contains("hello"), is_told, "{script}: {said}");
        }
    }
}

/// The Autobahn suite's groups 1 to 7: every kind of frame, right and wrong. 9 and 10, long and many messages, take a
/// minute and are for the measurements.
pub fn the_autobahn_suite_is_content(door: Door) {
    let suite = repository().join("tests/autobahn/run");
    if !Command::new(&suite).arg("is-installed").status().unwrap().success() {
        return skip("the Autobahn suite is not there, or this is not root: `tests/autobahn/run install`, as root");
    }
    let Some(place) = place(door, &[("RELAY_WS_HANDLER", "echo")]) else { return };
    let url = place.url().replacen("http", "ws", 1) + "/ws/echo";
    let groups = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*"];
    let output = Command::new(&suite).arg(url).args(groups).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let count = said.split(' ').next().and_then(|count| count.parse().ok());
    assert!(count >= Some(246), "the suite has fewer cases than it had: {said}");
}

/// The chat in a real browser, and `notify` from the shell: see `tests/browser/chat.mjs`.
pub fn two_tabs_chat(door: Door) {
    if !have("python3") {
        return skip("python3 is not installed");
    }
    let folder = Folder::new();
    let (history, program) = (folder.join("history"), folder.join("chat.py"));
    fs::create_dir(&history).unwrap();
    set_mode(&history, 0o777);
    fs::copy(repository().join("deploy/examples/chat.py"), &program).unwrap();
    let command = format!("{} {}", program.display(), history.display());
    let Some(place) = place(door, &[("RELAY_WS_HANDLER", &command)]) else { return };
    let notify = place.command(&["notify", "room"]);
    let words = [notify.get_program()].into_iter().chain(notify.get_args()).map(|word| word.to_str().unwrap());
    let url = place.url();
    crate::web::passes_in_a_browser("chat.mjs", &[&*url].into_iter().chain(words).collect::<Vec<_>>());
}

/// The example in Rust, a relay with a handler inside.
#[test]
fn the_handler_in_rust_works() {
    let arguments = ["build", "--locked", "--example", "counter", "--message-format=json"];
    let built = Command::new(env!("CARGO")).args(arguments).current_dir(repository()).output().unwrap();
    let messages = String::from_utf8(built.stdout).unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let program = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "counter")
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .expect("cargo says where the example is");
    let serve = Serve::of_program(&program, &[("WEBSOCKET_LISTENING_ADDRESS", "localhost")]);
    let place = Place::Serve(serve);
    place.open("/ws/room").ends(1008);
    let mut one = place.open("/ws/room?ticket=please");
    one.hear("welcome");
    let mut other = place.open("/ws/room?ticket=please");
    other.hear("welcome");
    // The one without a ticket had left too.
    one.say("a");
    one.hear("1");
    other.hear("a");
    one.say("bye");
    one.hear("2");
    one.ends(1000);
    other.hear("bye");
    other.hear("one has left");
}

/// The settings file of the original, as its owner has it.
#[test]
fn the_settings_of_push_server_are_understood() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let folder = Folder::new();
    let (pipe, data) = (folder.join("ws_notify"), folder.join("data"));
    fs::create_dir(&data).unwrap();
    set_mode(&data, 0o700);
    let settings = format!(
        "WEBSOCKET_LISTENING_ADDRESS=localhost\nWEBSOCKET_LISTENING_PORT={port}\nWEBSOCKET_SELECT_TIMEOUT=200000\n\
         WEBSOCKET_SERVER_HEADER=SimplePHPWS\nWEBSOCKET_XHR_PIPE_FILE={}\n\
         WEBSOCKET_EVENTS_INCLUDE_FILE=/var/events.php\nWEBSOCKET_LOG_PATH=/var/log/\nDB_PASSWORD=***\n",
        pipe.display()
    );
    fs::write(data.join("settings.conf"), settings).unwrap();
    let mut process = Command::new(env!("CARGO_BIN_EXE_uhst-relay"))
        .args(["serve", "--quiet", "--data"])
        .arg(&data)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("it listens where the file says", LONG, || TcpStream::connect(("127.0.0.1", port)).is_ok());
    // It makes the pipe when it has the address.
    until("the pipe is there", LONG, || {
        fs::metadata(&pipe).is_ok_and(|pipe| std::os::unix::fs::FileTypeExt::is_fifo(&pipe.file_type()))
    });
    process.kill().unwrap();
    process.wait().unwrap();
}
