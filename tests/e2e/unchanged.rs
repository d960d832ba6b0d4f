//! What must stay as it is however the store is made: order, exactly once, ids that never come again, and a disk without FIFOs.
//!
//! That a message is kept for its lifetime whatever ends before is tested in `promise`; what holds while everything is killed at
//! random is tested by `tests/proof/run`.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::bare::{Bare, timed};
use crate::endurance::{PATIENT, Random};
use crate::place::{Folder, LONG, fifos, have, log_of_host, records, repository, set_mode, skip, until};
use crate::relay::{Call, Relay, Talk as _};
use crate::serve::Serve;
use crate::stream::{Item, Stream};

/// Somebody who comes back with the last id it has seen, whatever has become of its stream.
struct Reader<'a> {
    cgi: &'a Bare,
    serve: &'a Serve,
    token: String,
    stream: Option<Stream>,
    /// Whether the stream is a process that can be killed.
    is_process: bool,
    last: String,
    heard: Vec<u64>,
}

impl<'a> Reader<'a> {
    fn new(cgi: &'a Bare, serve: &'a Serve, token: &str) -> Self {
        let mut stream = cgi.open(token);
        let last = stream.first_id();
        Self { cgi, serve, token: token.to_owned(), stream: Some(stream), is_process: true, last, heard: Vec::new() }
    }

    /// Takes its own place: the older stream is still there, and nothing of it is read any more.
    fn take_over(&mut self, by_serve: bool) {
        let door: &dyn Relay = if by_serve { self.serve } else { self.cgi };
        let older = self.stream.replace(door.resume(&self.token, &self.last));
        self.is_process = !by_serve;
        if let Some(mut older) = older {
            older.rest();
        }
    }

    fn is_killed(&mut self, by_serve: bool) {
        if self.is_process {
            self.stream.as_mut().unwrap().signal(Signal::KILL);
        }
        self.stream = None;
        self.take_over(by_serve);
    }

    fn hear_one(&mut self) {
        let event = self.stream.as_mut().unwrap().event();
        self.last.clone_from(&event.id);
        self.heard.push(event.body().as_u64().unwrap());
    }
}

#[test]
fn broadcasts_and_replies_come_in_the_order_of_their_sending_over_kills_and_takeovers() {
    const MESSAGES: u64 = 150;
    let serve = Serve::with(&PATIENT);
    let cgi = serve.cgi();
    let (host, mut host_stream) = cgi.listening_host();
    let mut readers = Vec::new();
    let mut replies = Vec::new();
    for number in 0..3 {
        let token = cgi.join(&host.id);
        cgi.send(&token, number.to_string()).expect(200);
        replies.push(host_stream.event().response_token());
        readers.push(Reader::new(&cgi, &serve, &token));
    }
    let mut random = Random::new(13);
    let mut expected: Vec<Vec<u64>> = vec![Vec::new(); readers.len()];
    for number in 0..MESSAGES {
        let door: &dyn Relay = if random.below(2) == 0 { &serve } else { &cgi };
        // Broadcasts and replies to each of them, mixed.
        match random.index(2 * replies.len()) {
            to if to < replies.len() => {
                door.send(&replies[to], number.to_string()).expect(200);
                expected[to].push(number);
            }
            _ => {
                let answer = door.send(&host.token, number.to_string()).expect(200).json();
                assert!(answer.as_object().unwrap().values().all(|sent| *sent == json!(true)), "{answer}");
                for one in &mut expected {
                    one.push(number);
                }
            }
        }
        let at = random.index(readers.len());
        let (reader, by_serve) = (&mut readers[at], random.below(2) == 0);
        match random.below(8) {
            0 => reader.is_killed(by_serve),
            1 => reader.take_over(by_serve),
            2..5 if reader.heard.len() < expected[at].len() => reader.hear_one(),
            _ => {}
        }
    }
    for (reader, expected) in readers.iter_mut().zip(&expected) {
        while reader.heard.len() < expected.len() {
            reader.hear_one();
        }
        assert_eq!(reader.heard, *expected);
        reader.stream.as_mut().unwrap().expect_silence(Duration::from_millis(200));
    }
}

/// The id at which a queue's file begins.
fn base(queue: &Path) -> u64 {
    let bytes = fs::read(queue).unwrap();
    let head = String::from_utf8_lossy(&bytes[..bytes.iter().position(|byte| *byte == b'\n').unwrap()]).into_owned();
    head.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn what_is_resumed_within_the_lifetime_comes_exactly_once_while_the_queue_is_compacted() {
    const EACH: u64 = 6;
    let relay = Bare::with(&[
        ("RELAY_MESSAGE_LIFETIME", "1"),
        ("RELAY_MAX_QUEUE", "1000000"),
        ("RELAY_GRACE", "30"),
        ("RELAY_SESSION_LIFETIME", "60"),
    ]);
    let (host, mut stream) = relay.listening_host();
    let client = relay.join(&host.id);
    let queue = log_of_host(&relay.sessions()[0]);
    let began = base(&queue);
    let mut last = stream.first_id();
    let (mut next, mut in_time) = (0, 0);
    let start = Instant::now();
    // Enough for a compaction at least, and for what was read to be too old.
    while in_time < 30 || base(&queue) == began {
        assert!(start.elapsed() < LONG, "{in_time} rounds in time; compacted: {}", base(&queue) > began);
        let sending = Instant::now();
        let first = next;
        for _ in 0..EACH {
            relay.send(&client, format!("[{next},\"{}\"]", "x".repeat(20_000))).expect(200);
            next += 1;
        }
        for number in first..first + 2 {
            let event = stream.event();
            assert_eq!(event.body()[0], json!(number));
            last.clone_from(&event.id);
        }
        stream.signal(Signal::KILL);
        stream = relay.resume(&host.token, &last);
        let is_in_time = sending.elapsed() < Duration::from_millis(900);
        in_time += u64::from(is_in_time);
        relay.send(&client, format!("[{next}]")).expect(200);
        let expected: Vec<u64> = (first + 2..=next).collect();
        let mut heard = Vec::new();
        while heard.last() != Some(&next) {
            let event = stream.event();
            heard.push(event.body()[0].as_u64().unwrap());
            last.clone_from(&event.id);
        }
        if is_in_time {
            assert_eq!(heard, expected);
        } else {
            // The machine was slow, and some of it was dead; but nothing comes twice, and nothing late.
            assert!(heard.is_sorted() && heard.iter().all(|number| expected.contains(number)), "{heard:?}");
        }
        next += 1;
    }
    let size = fs::metadata(&queue).unwrap().len();
    assert!(size < 3_000_000, "{size}");
}

#[test]
fn the_ids_and_users_of_a_bus_never_come_again_when_it_was_removed_and_made_anew() {
    let mut relay = Bare::new();
    let call = |relay: &Bare, method: &str, query: &str| {
        let call = Call { method, path_info: "/bus/news", query, body: b"1", ..Call::default() };
        relay.call(&call).expect(200).json()
    };
    let (mut ids, mut users) = (HashSet::new(), HashSet::new());
    let mut highest = 0;
    for round in 0..6 {
        relay.set("RELAY_BUS_LIFETIME", "60");
        relay.set("RELAY_MESSAGE_LIFETIME", "60");
        let user = call(&relay, "GET", "")["user"].as_u64().unwrap();
        let registered = call(&relay, "POST", "register")["user"].as_u64().unwrap();
        assert!(users.insert(user) && users.insert(registered), "round {round}: {user}, {registered} come again");
        for _ in 0..20 {
            let id = call(&relay, "POST", &format!("user={user}"))["id"].as_u64().unwrap();
            assert!(id > highest && ids.insert(id), "round {round}: {id} after {highest}");
            highest = id;
        }
        // One that is killed may have got a number and a place, or not.
        let query = format!("user={user}");
        let post = Call { path_info: "/bus/news", query: &query, body: b"2", ..Call::default() };
        let mut poster = relay.start(&post);
        std::thread::sleep(Duration::from_millis(round));
        poster.kill().unwrap();
        poster.wait().unwrap();
        relay.set("RELAY_BUS_LIFETIME", "0.05");
        relay.set("RELAY_MESSAGE_LIFETIME", "0.05");
        std::thread::sleep(Duration::from_millis(100));
        // A sweep that is killed half way leaves a bus of which something is missing.
        let mut sweep = relay.command_line(&["sweep"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(2 * round));
        sweep.kill().unwrap();
        sweep.wait().unwrap();
        until("the bus is gone", LONG, || {
            relay.sweep();
            records(&relay.data(), "buses").is_empty()
        });
    }
}

/// What runs the real program in a process that cannot make FIFOs, as on a disk that has none. `None` where that cannot be had.
fn without_fifos(real: &Path, folder: &Folder) -> Option<PathBuf> {
    if !have("python3") {
        skip("python3 is missing");
        return None;
    }
    let program = folder.join("without-fifos");
    let text =
        format!("#!/bin/sh\nexec {} {} \"$@\"\n", repository().join("tests/e2e/no-fifos").display(), real.display());
    // Not written by this process, see `place::install_program`.
    let written = Command::new("sh").args(["-c", "printf %s \"$1\" >\"$2\"", "sh", &text]).arg(&program).status();
    assert!(written.unwrap().success());
    set_mode(&program, 0o755);
    Some(program)
}

/// A CGI program that cannot make FIFOs.
struct FifolessCgi {
    bare: Bare,
    program: PathBuf,
}

impl Relay for FifolessCgi {
    fn call(&self, call: &Call) -> crate::relay::Reply {
        self.bare.run(&mut self.bare.request_of(&self.program, call), call.body)
    }

    fn listen_at(&self, path_info: &str, query: &str, headers: &[(&str, &str)]) -> Result<Stream, crate::relay::Reply> {
        let call = Call { method: "GET", path_info, query, headers, ..Call::default() };
        Stream::from_process(self.bare.request_of(&self.program, &call).spawn().expect("the program runs"))
    }

    fn folder(&self) -> &Folder {
        self.bare.folder()
    }
}

#[test]
fn on_a_disk_without_fifos_cgi_programs_reach_each_other() {
    let bare = Bare::new();
    let Some(program) = without_fifos(&bare.program(), bare.folder()) else { return };
    let data = bare.data();
    everything_arrives_without_fifos(&FifolessCgi { bare, program }, &data, |mut stream| stream.signal(Signal::KILL));
}

#[test]
fn on_a_disk_without_fifos_the_server_serves() {
    let folder = Folder::new();
    let Some(program) = without_fifos(Path::new(env!("CARGO_BIN_EXE_uhst-relay")), &folder) else { return };
    let serve = Serve::of_program(&program, &[]);
    everything_arrives_without_fifos(&serve, &serve.data(), Stream::hang_up);
}

fn everything_arrives_without_fifos(relay: &dyn Relay, data: &Path, break_off: impl Fn(Stream)) {
    let (host, mut host_stream) = relay.listening_host();
    let mut client = relay.listening_client(&host.id);
    let mut other = relay.listening_client(&host.id);
    let mut fastest = LONG;
    for number in 0..20 {
        relay.send(&client.token, number.to_string()).expect(200);
        let (event, time) = timed(|| host_stream.event());
        fastest = fastest.min(time);
        assert_eq!(event.body(), json!(number));
        relay.send(&event.response_token(), "\"reply\"").expect(200);
        assert_eq!(client.stream.body(), json!("reply"));
        relay.send(&host.token, number.to_string()).expect(200);
        assert_eq!([client.stream.body(), other.stream.body()], [json!(number), json!(number)]);
    }
    // They look every 20 ms, not only once a round.
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");

    // A takeover, also of a stream that has not read everything.
    relay.send(&host.token, "\"last\"").expect(200);
    let last = client.stream.first_id();
    let newer = relay.resume(&client.token, &last);
    let mut older = std::mem::replace(&mut client.stream, newer);
    assert_eq!(client.stream.body(), json!("last"));
    assert!(older.rest().len() <= 1);
    assert_eq!(other.stream.body(), json!("last"));

    // A bus, by poll and stream.
    let bus = |method: &str, query: &str, body: &[u8]| {
        relay.call(&Call { method, path_info: "/bus/news", query, body, ..Call::default() }).expect(200).json()
    };
    let (ann, bob) = (bus("GET", "", b""), bus("GET", "", b""));
    let stream = relay.listen_at("/bus/news", &format!("events&user={}", bob["user"]), &[]);
    let mut stream = stream.unwrap_or_else(|reply| panic!("{reply:?}"));
    stream.expect_comment("Connected.");
    std::thread::scope(|scope| {
        let poll = scope.spawn(|| bus("GET", &format!("id={}&user={}&wait=50", bob["id"], bob["user"]), b""));
        std::thread::sleep(Duration::from_millis(200));
        bus("POST", &format!("user={}", ann["user"]), b"\"said\"");
        assert_eq!(poll.join().unwrap()[0]["data"], json!("said"));
    });
    assert_eq!(stream.event().json()["data"], json!("said"));

    assert_eq!(fifos(data), Vec::<PathBuf>::new(), "there were FIFOs after all");

    // Who left is told of: a client to its host, and the host to its clients.
    break_off(other.stream);
    host_stream.expect_closed("client_closed", &other.id);
    break_off(host_stream);
    client.stream.expect_closed("host_closed", &host.id);
    assert!(matches!(client.stream.next_event(Duration::from_millis(100)), Item::Nothing | Item::End));
    let _: Value = relay.send(&client.token, "1").expect(400).json();
}
