//! What whoever runs the server relies on: clear words when it cannot start, sockets, and the log.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal};

use super::{Serve, parse_address, ping, program, run};
use crate::place::{Folder, LONG, kill, until};
use crate::relay::Talk as _;

/// It ends with this code, and says why in one sentence that has these words in it.
#[track_caller]
pub fn expect_failure(arguments: &[&str], code: i32, words: &[&str]) {
    let (ended, said) = run(&mut program(arguments));
    assert_eq!(ended, Some(code), "{arguments:?}: {said}");
    let mut lines = said.lines();
    let sentence = lines.next().unwrap_or_default();
    assert!(sentence.starts_with("uhst-relay: "), "{arguments:?}: {said}");
    for word in words {
        assert!(sentence.contains(word), "{arguments:?}: no {word:?} in {said}");
    }
    // Who has mistyped something is shown where to look.
    let rest: Vec<_> = lines.collect();
    assert_eq!(code == 2, rest.iter().any(|line| line.contains("--help")), "{arguments:?}: {said}");
    assert!(code == 2 || rest.is_empty(), "{arguments:?}: {said}");
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let folder = Folder::new();
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let data = path("data");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    expect_failure(&["serve", "--data", &data, "--listen", &address], 1, &[&address, "in use"]);
    expect_failure(&["serve", "--data", &data, "--listen", "192.0.2.1:80"], 1, &["192.0.2.1:80"]);
    let nowhere = path("no/folder/relay.sock");
    expect_failure(&["serve", "--data", &data, "--listen", &format!("unix:{nowhere}")], 1, &[&nowhere]);
    for listen in ["nonsense", "8080", ":8080", "localhost", "127.0.0.1", "127.0.0.1:99999", "unix:"] {
        expect_failure(&["serve", "--data", &data, "--listen", listen], 2, &["--listen", listen, "127.0.0.1:8080"]);
    }
    expect_failure(&["serve", "--data", &data, "--listen", ""], 2, &["--listen"]);

    fs::write(path("file"), "").unwrap();
    for unusable in [path("file"), path("file/data"), "/proc/data".to_owned()] {
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--data", &unusable];
        expect_failure(&arguments, 1, &["data folder", &unusable]);
    }
    assert_eq!(fs::read(path("file")).unwrap(), b"", "what is there stays as it is");

    for arguments in [&["serve", "--port", "80"][..], &["serve", "--listen"], &["serve", "--data"]] {
        expect_failure(arguments, 2, &[arguments[1]]);
    }
    expect_failure(&["serve", "now"], 2, &["now"]);
}

#[test]
fn a_setting_that_cannot_be_read_is_named() {
    let folder = Folder::new();
    let data = folder.join("data");
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()];
    let (code, said) = run(program(&arguments).env("RELAY_MAX_CONNECTIONS", "many"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.starts_with("uhst-relay: ") && said.contains("RELAY_MAX_CONNECTIONS"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// A server on a socket file.
struct OnSocket(Child);

impl OnSocket {
    #[track_caller]
    fn start(folder: &Folder, socket: &Path) -> Self {
        let log = folder.join("unix.log");
        let listen = format!("unix:{}", socket.display());
        let process = program(&["serve", "--listen", &listen, "--data", folder.join("data").to_str().unwrap()])
            .stderr(File::create(&log).unwrap())
            .spawn()
            .expect("setpriv runs the server");
        let server = Self(process);
        until("the server says where it is", LONG, || {
            fs::read_to_string(&log).unwrap().lines().any(|line| line.contains(&format!(" at {listen}, data in ")))
        });
        server
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_child(&self.0), signal);
    }
}

impl Drop for OnSocket {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn answers(socket: &Path) {
    let mut connection = UnixStream::connect(socket).expect("the server accepts connections");
    connection.set_read_timeout(Some(LONG)).unwrap();
    connection
        .write_all(format!("{}{}", ping(7), ping(8).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).as_bytes())
        .unwrap();
    let mut said = String::new();
    connection.read_to_string(&mut said).unwrap();
    assert!(said.contains(r#"{"pong":7}"#) && said.ends_with(r#"{"pong":8}"#), "{said}");
}

#[test]
fn a_proxy_on_the_same_machine_may_use_a_socket_file() {
    let folder = Folder::new();
    let socket = folder.join("relay.sock");
    let mut server = OnSocket::start(&folder, &socket);
    answers(&socket);

    // A second one does not take the place of the first.
    let listen = format!("unix:{}", socket.display());
    let data = folder.join("data");
    expect_failure(&["serve", "--listen", &listen, "--data", data.to_str().unwrap()], 1, &["in use"]);
    answers(&socket);

    // One that was killed leaves its file behind, which is in nobody's way.
    server.signal(Signal::KILL);
    server.0.wait().unwrap();
    assert!(socket.exists());
    let mut server = OnSocket::start(&folder, &socket);
    answers(&socket);

    // One that ends takes it along.
    server.signal(Signal::TERM);
    assert_eq!(server.0.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn a_file_that_is_no_socket_is_never_removed() {
    let folder = Folder::new();
    let path = folder.join("precious");
    fs::write(&path, "do not lose me").unwrap();
    let data = folder.join("data");
    let listen = format!("unix:{}", path.display());
    expect_failure(&["serve", "--listen", &listen, "--data", data.to_str().unwrap()], 1, &["precious"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "do not lose me");
}

/// The fields of a line in the common log format: `host ident user [time] "request" status size`.
#[track_caller]
fn log_line(line: &str) -> (String, String, u16, u64) {
    let parsed = (|| {
        let (begin, rest) = line.split_once(" [")?;
        let (time, rest) = rest.split_once("] \"")?;
        let (request, end) = rest.split_once("\" ")?;
        let host = begin.strip_suffix(" - -")?;
        let (status, size) = end.split_once(' ')?;
        // 10/Oct/2000:13:55:36 -0700
        let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
        let month = shape.get(3..6)?;
        "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".contains(month).then_some(())?;
        (shape == format!("99/{month}/9999:99:99:99 +9999")).then_some(())?;
        Some((host.to_owned(), request.to_owned(), status.parse().ok()?, size.parse().ok()?))
    })();
    parsed.unwrap_or_else(|| panic!("not the common log format: {line:?}"))
}

#[test]
fn the_log_tells_who_asked_for_what_and_no_secret() {
    let relay = Serve::new();
    let (host, stream) = relay.listening_host();
    let client = relay.join(&host.id);
    relay.send(&client, r#""a secret message""#).expect(200);
    let signature = client.rsplit_once('.').unwrap().1;
    for target in [
        format!("/?token={client}"),
        format!("/?%74oken={client}"),
        format!("/?action=dance&token={client}&x={client}"),
        format!("http://relay/?Token={client}"),
        format!("/?{client}"),
        format!("/?x=%22&token={client}\"quoted\""),
        "/nothing?action=ping&timestamp=7".to_owned(),
    ] {
        // What is no target ends the connection.
        let mut wire = relay.wire();
        wire.send(format!("HEAD {target} HTTP/1.1\r\nHost: relay\r\nReferer: /?token={client}\r\n\r\n"));
        wire.answer_to("HEAD");
    }
    let mut broken = relay.wire();
    broken.send(format!("POST /?token={client} HTTP/1.1\r\nContent-Length: {client}\r\n\r\n"));
    assert_eq!(broken.answer().status, 400);
    relay.send(&format!("{client}x"), "1").expect(401);

    let lines = || relay.log().lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    until("everything is in the log", LONG, || lines().len() >= 13);
    let log = relay.log();
    for secret in [&*host.token, &client, signature, "secret message"] {
        assert!(!log.contains(secret), "{log}");
    }
    let lines: Vec<_> = lines().iter().map(|line| log_line(line)).collect();
    assert!(lines.iter().all(|(from, ..)| from == "127.0.0.1"), "{log}");
    let expected = [
        ("POST /?action=host HTTP/1.1", 200),
        ("GET /?token=- HTTP/1.1", 200),
        (&format!("POST /?action=join&hostId={} HTTP/1.1", host.id), 200),
        ("POST /?token=- HTTP/1.1", 200),
        ("HEAD /?action=dance&token=-&- HTTP/1.1", 400),
        ("HEAD /nothing?action=ping&timestamp=7 HTTP/1.1", 404),
        ("-", 400),
        ("POST /?token=- HTTP/1.1", 401),
    ];
    for (request, status) in expected {
        let found = lines.iter().any(|(_, line, code, _)| line == request && *code == status);
        assert!(found, "no {request:?} {status} in {log}");
    }
    stream.hang_up();
}

#[test]
fn nothing_from_outside_forges_a_line_of_the_log() {
    let relay = Serve::new();
    for target in [
        "/\"%20200%20\"",
        "/%0a127.0.0.1%20-%20-",
        "/\u{9b}31m",
        "/\u{85}x",
        "/\\\"",
        "/?a\"b=c",
        "/?action=\u{202e}\"",
    ] {
        // What is no target ends the connection.
        let mut wire = relay.wire();
        wire.send(format!("POST {target} HTTP/1.1\r\nHost: relay\r\n\r\n"));
        wire.answer();
    }
    until("everything is in the log", LONG, || relay.log().lines().count() >= 8);
    let log = relay.log();
    assert_eq!(log.lines().count(), 8, "{log}");
    for line in log.lines().skip(1) {
        let (_, request, status, _) = log_line(line);
        let is_whole = request.starts_with("POST /") && request.ends_with(" HTTP/1.1");
        assert!((is_whole || request == "-") && status >= 400, "{line:?}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
}

#[test]
fn quiet_means_quiet() {
    let relay = Serve::with_options(&[], &["--quiet"]);
    let (host, mut stream) = relay.listening_host();
    relay.send(&relay.join(&host.id), "1").expect(200);
    stream.body();
    relay.get("").expect_error(401);
    let mut wire = relay.wire();
    wire.send("nonsense\r\n\r\n");
    assert_eq!(wire.answer().status, 400);
    let log = relay.log();
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains(&relay.data().display().to_string()), "{log}");
}

#[test]
fn a_log_that_nobody_reads_any_more_stops_nothing() {
    let folder = Folder::new();
    let data = folder.join("data");
    let mut process = program(&["serve", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()])
        .stderr(Stdio::piped())
        .spawn()
        .expect("setpriv runs the server");
    let pid = Pid::from_child(&process);
    let mut line = String::new();
    // As in `uhst-relay serve 2>&1 | head -1`.
    BufReader::new(process.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let address = parse_address(line.trim_end());
    let served = std::panic::catch_unwind(|| {
        let mut wire = super::Wire::new(std::net::TcpStream::connect(address).unwrap());
        for number in 0..3 {
            wire.send(ping(number));
            wire.expect_pong(number);
        }
        wire.send("nonsense\r\n\r\n");
        assert_eq!(wire.answer().status, 400);
        let mut wire = super::Wire::new(std::net::TcpStream::connect(address).unwrap());
        wire.send(ping(7));
        wire.expect_pong(7);
    });
    kill(pid, Signal::TERM);
    let ended = process.wait().unwrap();
    if let Err(panic) = served {
        std::panic::resume_unwind(panic);
    }
    assert_eq!(ended.code(), Some(0));
}

/// A log's reader that sleeps is found out by the first line that does not fit into the pipe.
#[test]
fn a_log_whose_reader_sleeps_stops_nothing() {
    let folder = Folder::new();
    let data = folder.join("data");
    let (reader, writer) = std::io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    let process = program(&["serve", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()])
        .stderr(writer)
        .spawn()
        .expect("setpriv runs the server");
    let mut server = OnSocket(process);
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let address = parse_address(line.trim_end());
    // Far more than there is room for, by several at once.
    let long = "x".repeat(7000);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut wire = super::Wire::new(std::net::TcpStream::connect(address).unwrap());
                for number in 0..50 {
                    wire.send(format!("GET /{long} HTTP/1.1\r\nHost: relay\r\n\r\n"));
                    wire.answer().expect_error(404);
                    wire.send(ping(number));
                    wire.expect_pong(number);
                }
            });
        }
    });
    // Its reader wakes up, and is told what it has missed.
    let mut wire = super::Wire::new(std::net::TcpStream::connect(address).unwrap());
    let mut lost = false;
    while !lost {
        line.clear();
        reader.read_line(&mut line).unwrap();
        lost = line.ends_with("lines of the log are lost: nobody has read it for too long\n");
        if !lost {
            log_line(line.trim_end());
            wire.send(ping(7));
            wire.expect_pong(7);
        }
    }
    let reading = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    server.signal(Signal::TERM);
    assert_eq!(server.0.wait().unwrap().code(), Some(0));
    reading.join().unwrap().unwrap();
}
