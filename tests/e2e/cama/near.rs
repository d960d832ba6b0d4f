//! Two parties at one `serve`, and at one `serve` and a CGI program beside it.

use super::{Answer, Running, Scene, Session, Two, Who, bytes, hear, hear_more, pour, private_memory};
use crate::bare::finish;
use crate::door::Door;
use crate::place::{LONG, everything_below, have, kill, skip, until};
use crate::serve::Serve;
use rustix::process::Signal;
use std::io::Write as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// The FIFOs below a folder.
pub fn fifos(folder: &Path) -> Vec<PathBuf> {
    let mut found = everything_below(folder);
    found.retain(|path| path.symlink_metadata().is_ok_and(|about| about.file_type().is_fifo()));
    found
}

fn serve() -> Scene {
    Scene::new(Door::Serve, &[]).expect("it needs nothing")
}

#[test]
fn a_transfer_makes_no_fifo_and_waits_for_its_receiver_in_little_memory() {
    const SIZE: usize = 64 << 20;
    let scene = serve();
    let Running::Serve(serve) = &scene.relay else { unreachable!() };
    let memory = || private_memory(|| vec![serve.pid().as_raw_nonzero().get()], &AtomicBool::new(true));
    let session = scene.session(&[]);
    // What the first transfer needs, and keeps.
    let receiving = session.receive(Who::Host);
    assert_eq!(session.call(Who::Guest, "POST", &[], &bytes(1 << 20)).delivered(), 1 << 20);
    receiving.join().unwrap();
    let before = memory();

    let mut receiver = session.start(Who::Host, "GET", &[], None);
    session.until_waiting(1);
    assert_eq!(fifos(&serve.data().join("pipes")), Vec::<PathBuf>::new(), "while one waits");
    let sender = session.start(Who::Guest, "POST", &[("Content-Length", &SIZE.to_string())], None);
    let pouring = pour(&sender, SIZE);
    let mut got = Vec::new();
    hear_more(&mut receiver, &mut got);
    // It reads no more, so that after a while all is full that is between the two.
    std::thread::sleep(Duration::from_secs(1));
    assert!(!pouring.is_finished());
    assert_eq!(fifos(&serve.data().join("pipes")), Vec::<PathBuf>::new(), "while bytes flow");
    let grown = memory().saturating_sub(before);
    assert!(grown < 1024, "{before} KiB, and then {grown} more");
    let rest = hear_rest(receiver, got);
    pouring.join().unwrap();
    assert_eq!((hear(sender).delivered(), rest.body.len()), (SIZE as u64, SIZE));
    assert!(rest.body.chunks(1 << 16).all(|piece| piece == bytes(1 << 16)), "not the bytes that were sent");
}

/// The whole answer of which that much has been heard.
fn hear_rest(mut socket: std::net::TcpStream, mut heard: Vec<u8>) -> Answer {
    use std::io::Read as _;
    socket.read_to_end(&mut heard).unwrap();
    super::understand(&heard)
}

/// What curl has of an answer: its exit status, header and trailer fields, and the body.
struct Curled {
    status: Option<i32>,
    fields: String,
    body: String,
}

/// A receiver with these options gets `hello` in chunks, or with the length that is said, and then its sender breaks off, or
/// ends.
fn curled(session: &Session<'_>, options: &[&str], length: Option<usize>, breaks_off: bool) -> Curled {
    let fields = session.scene.folder().join("fields");
    let url = format!("{}{}", session.scene.url(), session.path);
    let receiver = Command::new("curl")
        .args(["-sN", "--max-time", "60", "-H", &format!("Token: {}", session.token), "-D"])
        .arg(&fields)
        .args(options)
        .arg(url)
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl runs");
    session.until_waiting(1);
    let about = match length {
        Some(length) => format!("Content-Length: {length}\r\n"),
        None => "Transfer-Encoding: chunked\r\n".to_owned(),
    };
    let mut sender = session.scene.connect();
    sender.write_all(session.scene.head("POST", &session.path, &[], &about).as_bytes()).unwrap();
    sender.write_all(if length.is_some() { b"hello" } else { b"5\r\nhello\r\n" }).unwrap();
    // Its receiver has begun, so that it is no other's.
    until("it has a head", LONG, || std::fs::read_to_string(&fields).is_ok_and(|fields| fields.ends_with("\r\n\r\n")));
    if breaks_off {
        drop(sender);
    } else {
        sender.write_all(b"0\r\n\r\n").unwrap();
        assert_eq!(hear(sender).delivered(), 5);
    }
    let (body, status) = finish(receiver);
    let fields = std::fs::read_to_string(&fields).unwrap().to_ascii_lowercase();
    Curled { status: status.code(), fields, body: String::from_utf8(body).unwrap() }
}

const VERSIONS: [&str; 2] = ["--http1.1", "--http2-prior-knowledge"];

#[test]
fn a_receiver_that_asks_for_trailers_is_told_that_chunks_were_broken_off() {
    if !have("curl") {
        return skip("curl is not installed");
    }
    let scene = serve();
    let session = scene.session(&[]);
    for version in VERSIONS {
        for (te, is_asked) in
            [("TE: trailers", true), ("TE: gzip, Trailers", true), ("TE: gzip", false), ("TE:", false)]
        {
            // HTTP/2 knows no other TE (RFC 9113, 8.2.2).
            if version != VERSIONS[0] && te.contains("gzip") {
                continue;
            }
            for breaks_off in [true, false] {
                let Curled { status, fields, body } = curled(&session, &[version, "-H", te], None, breaks_off);
                assert_eq!((status, body.as_str()), (Some(0), "hello"), "{fields}");
                assert_eq!(fields.contains("trailer: x-transfer"), is_asked, "{version} {te} {fields}");
                assert_eq!(fields.contains("x-transfer: aborted"), is_asked && breaks_off, "{version} {te} {fields}");
            }
        }
    }
}

#[test]
fn a_body_with_a_length_is_seen_to_be_cut_short() {
    if !have("curl") {
        return skip("curl is not installed");
    }
    let scene = serve();
    let session = scene.session(&[]);
    for version in VERSIONS {
        let Curled { status, fields, body } = curled(&session, &[version, "-H", "TE: trailers"], Some(10), true);
        assert!(body == "hello" && !fields.contains("trailer"), "{fields}");
        // CURLE_PARTIAL_FILE; CURLE_HTTP2_STREAM.
        assert!([Some(18), Some(92)].contains(&status), "{version}: {status:?}");
    }
}

/// A `serve`, and the CGI program with the same data.
fn beside() -> (Serve, Two) {
    let serve = Serve::new();
    let two = Two::at(serve.cgi());
    (serve, two)
}

/// curl at the server. The host has the cookie.
fn at_serve(serve: &Serve, two: &Two, is_host: bool) -> Command {
    let mut curl = Command::new("curl");
    curl.args(["-sN", "--max-time", "60", "-i"]);
    if is_host {
        curl.args(["-H", &format!("Cookie: {}", two.cookie)]);
    }
    curl.arg(format!("{}{}", serve.url().trim_end_matches('/'), two.path)).stdout(Stdio::piped());
    curl
}

fn until_there(serve: &Serve, begins: &str) {
    until("it waits", LONG, || {
        let below = everything_below(&serve.data().join("pipes"));
        below.iter().any(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begins)))
    });
}

#[test]
fn a_server_and_a_cgi_program_meet_whoever_comes_first() {
    if !have("curl") {
        return skip("curl is not installed");
    }
    let (serve, two) = beside();
    let body = bytes(300_000);
    std::fs::write(serve.data().join("body"), &body).unwrap();
    for receiver_first in [true, false] {
        // From the CGI program to the server.
        let receive = || at_serve(&serve, &two, true).spawn().unwrap();
        let early = receiver_first.then(|| {
            let receiver = receive();
            until_there(&serve, "receiver");
            receiver
        });
        let mut sender = two.command("POST", Some("300000")).spawn().unwrap();
        let mut input = sender.stdin.take().unwrap();
        let sent = body.clone();
        let writing = std::thread::spawn(move || input.write_all(&sent).unwrap());
        let receiver = early.unwrap_or_else(|| {
            until_there(&serve, "sender-");
            receive()
        });
        assert!(finish(receiver).0.ends_with(&body));
        writing.join().unwrap();
        let (told, status) = finish(sender);
        assert_eq!(two.bare.reply(&told, status).expect(200).header("x-bytes-delivered"), Some("300000"));

        // And the other way.
        let receive = || two.command("GET", None).spawn().unwrap();
        let early = receiver_first.then(|| {
            let receiver = receive();
            until_there(&serve, "receiver");
            receiver
        });
        let file = format!("@{}", serve.data().join("body").display());
        let sender = at_serve(&serve, &two, false).args(["--data-binary", &file]).spawn().unwrap();
        let receiver = early.unwrap_or_else(|| {
            until_there(&serve, "sender-");
            receive()
        });
        assert!(finish(receiver).0.ends_with(&body));
        let told = String::from_utf8(finish(sender).0).unwrap().to_ascii_lowercase();
        assert!(told.contains("x-bytes-delivered: 300000"), "{told}");
    }
}

#[test]
fn whichever_of_two_processes_is_killed_the_other_goes_on() {
    if !have("curl") {
        return skip("curl is not installed");
    }
    let (mut serve, two) = beside();
    // The sender.
    let receiver = at_serve(&serve, &two, true).spawn().unwrap();
    until_there(&serve, "receiver");
    let mut sender = two.command("POST", Some("1000")).spawn().unwrap();
    sender.stdin.as_mut().unwrap().write_all(b"hello").unwrap();
    until("it is taken", LONG, || !fifos(&serve.data().join("pipes")).iter().any(|path| path.ends_with("data")));
    std::thread::sleep(Duration::from_millis(300));
    super::kill9(&mut sender);
    let (got, status) = finish(receiver);
    assert!(got.ends_with(b"hello") && status.code() == Some(18), "{status}: {}", String::from_utf8_lossy(&got));

    // One that waits at the server, and is gone with it: what it leaves is nobody.
    let waiting = at_serve(&serve, &two, true).spawn().unwrap();
    until_there(&serve, "receiver");
    kill(serve.pid(), Signal::KILL);
    finish(waiting);
    // Its connections may end before its locks do.
    serve.ends();
    let receiver = two.command("GET", None).spawn().unwrap();
    let sent = two.bare.run(&mut two.command("POST", Some("5")), b"Hello");
    let (got, _) = finish(receiver);
    assert!(got.ends_with(b"Hello"), "{}", String::from_utf8_lossy(&got));
    assert_eq!(sent.expect(200).header("x-bytes-delivered"), Some("5"));
}
