//! Everything that is said goes through one log a topic: a broadcast costs its bytes once, whoever lags is told so and holds up
//! nobody, and there is a limit to what strangers can have the relay keep.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::bare::{Bare, timed};
use crate::bus::news;
use crate::door::Door;
use crate::place::{
    Folder, LONG, bytes_below, everything_below, have, kill, log_of_clients, node_files, records, set_mode, skip,
    until, version_of,
};
use crate::relay::{Call, Relay, Talk as _};
use crate::serve::{Serve, program};
use crate::stream::{Event, Item, Stream};
use crate::token;

/// Nothing here ends before its test does.
const LONG_LIVED: [(&str, &str); 3] =
    [("RELAY_SESSION_LIFETIME", "600"), ("RELAY_MESSAGE_LIFETIME", "600"), ("RELAY_GRACE", "60")];

fn with(settings: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    [&LONG_LIVED, settings].concat()
}

fn data(relay: &dyn Relay) -> PathBuf {
    relay.folder().join("cgi-bin/data")
}

fn client_id(token: &str) -> String {
    token::payload(token)["clientId"].as_str().unwrap().to_owned()
}

/// Has so many clients join, some at once.
fn join_many(relay: &dyn Relay, host: &str, count: usize) -> Vec<String> {
    const AT_ONCE: usize = 4;
    std::thread::scope(|scope| {
        let join = || (0..count / AT_ONCE).map(|_| relay.join(host)).collect::<Vec<_>>();
        let joining: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(join)).collect();
        joining.into_iter().flat_map(|joining| joining.join().unwrap()).collect()
    })
}

fn text(size: usize) -> String {
    format!("\"{}\"", "x".repeat(size - 2))
}

fn numeric(id: &str) -> u64 {
    id.parse().unwrap_or_else(|_| panic!("no id: {id:?}"))
}

/// What an answer says of a client.
fn given(answer: &Value, client: &str) -> bool {
    answer[client].as_bool().unwrap_or_else(|| panic!("nothing is said of {client}: {answer}"))
}

// ---- what a broadcast costs

/// A stranger with a thousand clients of its own must not turn eight requests into 8 GB.
pub fn a_broadcast_is_stored_once_whatever_the_number_of_clients(door: Door) {
    const CLIENTS: usize = 1000;
    let Some(relay) = door.start_with(&with(&[])) else { return };
    let (host, _stream) = relay.listening_host();
    let clients = join_many(&*relay, &host.id, CLIENTS);
    let message = text(1_000_000);
    for number in 0..8 {
        let answer = relay.send(&host.token, &message).expect(200).json();
        let answer = answer.as_object().unwrap();
        assert!(answer.len() == CLIENTS && answer.values().all(|given| *given == json!(true)), "{number}: {answer:?}");
    }
    let stored = bytes_below(&data(&*relay));
    assert!((8_000_000..=9_000_000).contains(&stored), "{stored} bytes are stored");
    // And it is there for each of them.
    for client in clients.iter().step_by(CLIENTS / 4) {
        let mut stream = relay.open(client);
        (0..8).for_each(|_| assert_eq!(stream.body().to_string().len(), message.len()));
    }
}

/// The bytes that a process has given to `write` so far, whatever for.
fn bytes_written(relay: &Serve) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", relay.pid().as_raw_nonzero()))
        .expect("a child's figures are readable");
    io.lines().find_map(|line| line.strip_prefix("wchar: ")).expect("wchar").parse().unwrap()
}

#[test]
fn a_broadcast_is_written_once_whatever_the_number_of_clients() {
    let relay = Serve::with(&with(&[]));
    let (host, _stream) = relay.listening_host();
    join_many(&relay, &host.id, 1000);
    let message = text(1_000_000);
    let before = bytes_written(&relay);
    (0..8).for_each(|_| _ = relay.send(&host.token, &message).expect(200));
    let written = bytes_written(&relay) - before;
    // The answers, which name each client, are among them or not.
    assert!((8_000_000..=9_000_000).contains(&written), "{written} bytes were written");
}

/// When each file was written last, and how long it is.
fn times(data: &Path) -> BTreeMap<PathBuf, (SystemTime, u64)> {
    let about = |path: PathBuf| {
        let about = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
        Some((path, (about.modified().unwrap(), about.len())))
    };
    everything_below(data).into_iter().filter_map(about).collect()
}

/// A program that is `real`, with what it writes and opens noted in the file `trace` in the folder.
fn tracing(real: &Path, folder: &Folder) -> Option<PathBuf> {
    if !have("strace") {
        skip("strace is not installed");
        return None;
    }
    let program = folder.join("traced");
    let calls = "write,writev,pwrite64,pwritev,pwritev2,ftruncate,open,openat";
    // -D: the relay keeps the number of the process that was started.
    let text = format!(
        "#!/bin/sh\nexec strace -D -f -qq -y --seccomp-bpf -s 0 -e trace={calls} -o {} {} \"$@\"\n",
        folder.join("trace").display(),
        real.display()
    );
    // Not written by this process, see `place::install_program`.
    let written = Command::new("sh").args(["-c", "printf %s \"$1\" >\"$2\"", "sh", &text]).arg(&program).status();
    assert!(written.unwrap().success());
    set_mode(&program, 0o755);
    Some(program)
}

/// The calls noted after so many bytes.
fn noted(trace: &Path, from: u64) -> Vec<String> {
    let mut file = fs::File::open(trace).unwrap();
    // The byte before tells whether a line began there: the end of one that began before was done before.
    let before = from.saturating_sub(1);
    file.seek(SeekFrom::Start(before)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    let lines = if from > 0 { text.split_once('\n').map_or("", |(_, lines)| lines) } else { &text };
    lines.lines().map(str::to_owned).collect()
}

#[test]
fn a_broadcast_to_a_thousand_listening_clients_of_the_server_is_one_write() {
    const CLIENTS: usize = 1000;
    let settings = with(&[("RELAY_KEEP_ALIVE", "600")]);
    let folder = Folder::new();
    let Some(program) = tracing(Path::new(env!("CARGO_BIN_EXE_uhst-relay")), &folder) else { return };
    let (relay, trace) = (Serve::of_program(&program, &settings), folder.join("trace"));
    let (host, _stream) = relay.listening_host();
    let tokens = join_many(&relay, &host.id, CLIENTS);
    let mut clients: Vec<_> = tokens.iter().map(|token| relay.open(token)).collect();
    // What they have done to begin with has been written by now.
    std::thread::sleep(Duration::from_secs(2));
    let (before, noted_before) = (times(&relay.data()), fs::metadata(&trace).unwrap().len());
    let answer = relay.send(&host.token, "\"to all\"").expect(200).json();
    assert!(answer.as_object().unwrap().values().all(|given| *given == json!(true)));
    for client in &mut clients {
        assert_eq!(client.body(), json!("to all"));
    }
    let session = records(&relay.data(), "hosts").remove(0);
    let log = log_of_clients(&session);
    let mut after = times(&relay.data());
    let grown = after[&log].1 - before.get(&log).map_or(0, |file| file.1);
    assert!(grown < 200, "{grown} bytes for a message of 8");
    // The sweep's own; and a record's time says now and then that it is used.
    let is_noted = |path: &PathBuf| path.ends_with("sweep") || path.ends_with("counts") || *path == session;
    after.retain(|path, file| before.get(path) != Some(file) && !is_noted(path));
    assert_eq!(after.keys().collect::<Vec<_>>(), [&log], "nothing else was written to");
    let folder = format!("<{}/", relay.data().display());
    let writes = noted(&trace, noted_before);
    let to_files = writes.iter().filter(|call| call.contains(&folder) && !call.contains(" open"));
    let to_files: Vec<_> = to_files.filter(|call| !call.contains("/sweep>") && !call.contains("/counts>")).collect();
    assert_eq!(to_files.len(), 1, "{to_files:?}");
}

// ---- who lags

/// Whoever does not read holds up nobody: it is told that it has missed something, and goes on from there.
pub fn whoever_lags_too_far_is_told_so_once_and_goes_on(door: Door) {
    let Some(relay) = door.start_with(&with(&[("RELAY_MAX_QUEUE", "20000"), ("RELAY_MAX_TOPIC", "10000000")])) else {
        return;
    };
    let (host, mut host_stream) = relay.listening_host();
    let mut reader = relay.listening_client(&host.id);
    let sleeper = relay.join(&host.id);
    let sleeper_id = client_id(&sleeper);
    relay.send(&sleeper, "\"hello\"").expect(200);
    let reply = host_stream.event().response_token();
    let body = |number: u32| json!([number, "x".repeat(1000)]);
    let mut number = 0;
    let mut seen: Option<String> = None;
    // Before it has ever come, and after it has gone.
    for round in 0..2 {
        let (mut promised, mut refused) = (Vec::new(), 0);
        while refused < 10 {
            let (answer, took) = timed(|| relay.send(&host.token, body(number).to_string()).expect(200).json());
            assert!(took < Duration::from_secs(10), "the sender has waited for {took:?}");
            assert!(given(&answer, &reader.id), "{round}: who reads gets all");
            assert_eq!(reader.stream.body(), body(number));
            if given(&answer, &sleeper_id) {
                assert_eq!(refused, 0, "there is no more room than before");
                promised.push(number);
            } else {
                refused += 1;
            }
            // A stream that has just broken off may take some with it.
            assert!(promised.len() < 40, "20 of 1 kB make 20 kB");
            number += 1;
        }
        assert!(promised.len() >= 15, "{} of 1 kB are less than 20 kB", promised.len());
        // A message to it alone is refused, as it always was.
        relay.send(&reply, "\"refused\"").expect_error(429);
        let mut stream = match &seen {
            None => relay.open(&sleeper),
            Some(seen) => relay.resume(&sleeper, seen),
        };
        for number in promised {
            assert_eq!(stream.body(), body(number), "what was promised");
        }
        let before = stream.last_id.clone();
        let lost = stream.event();
        is_lost(&lost, &sleeper_id);
        assert!(numeric(&lost.id) > numeric(&before), "{lost:?} after {before}");
        stream.expect_silence(Duration::from_millis(300));
        // From here on it is like everybody else.
        let answer = relay.send(&host.token, "\"all\"").expect(200).json();
        assert!(given(&answer, &sleeper_id) && given(&answer, &reader.id), "{answer}");
        relay.send(&reply, "\"one\"").expect(200);
        assert_eq!([stream.body(), stream.body()], [json!("all"), json!("one")]);
        assert_eq!(reader.stream.body(), json!("all"));
        seen = Some(stream.last_id.clone());
        stream.hang_up();
    }
    // Nobody else was told anything.
    reader.stream.expect_silence(Duration::from_millis(200));
}

/// The event that says so.
#[track_caller]
fn is_lost(event: &Event, to: &str) {
    assert_eq!(event.name, "relay_event", "{event:?}");
    assert_eq!(event.json(), json!({"eventType": "messages_lost", "body": to}));
}

pub fn whoever_comes_back_with_its_id_gets_what_it_missed_in_the_order_of_the_log(door: Door) {
    let Some(relay) = door.start_with(&with(&[])) else { return };
    let (host, mut host_stream) = relay.listening_host();
    let mut away = relay.listening_client(&host.id);
    let mut here = relay.listening_client(&host.id);
    let mut reply_to = |token: &str| {
        relay.send(token, "0").expect(200);
        host_stream.event().response_token()
    };
    let (to_away, to_here) = (reply_to(&away.token), reply_to(&here.token));
    relay.send(&host.token, "0").expect(200);
    let first = away.stream.event();
    assert_eq!(first, here.stream.event(), "an event has one id, whoever gets it");
    away.stream.hang_up();
    for number in 1..=12 {
        match number % 3 {
            0 => relay.send(&to_away, number.to_string()).expect(200),
            1 => relay.send(&host.token, number.to_string()).expect(200),
            _ => relay.send(&to_here, number.to_string()).expect(200),
        };
    }
    let events = |stream: &mut Stream, numbers: &[u32]| -> Vec<Event> {
        let events: Vec<_> = numbers.iter().map(|_| stream.event()).collect();
        assert_eq!(
            events.iter().map(Event::body).collect::<Vec<_>>(),
            numbers.iter().map(|n| json!(n)).collect::<Vec<_>>()
        );
        events
    };
    let heard = events(&mut here.stream, &[1, 2, 4, 5, 7, 8, 10, 11]);
    // From any id that it had, also a second time.
    let missed = events(&mut relay.resume(&away.token, &first.id), &[1, 3, 4, 6, 7, 9, 10, 12]);
    let broadcast =
        |events: &[Event]| events.iter().filter(|event| event.body().as_u64().unwrap() % 3 == 1).cloned().collect();
    let (one, other): (Vec<Event>, Vec<Event>) = (broadcast(&heard), broadcast(&missed));
    assert_eq!(one, other, "for all of them");
    let mut stream = relay.resume(&away.token, &missed[3].id);
    events(&mut stream, &[7, 9, 10, 12]);
    // Also from the id of what was for somebody else.
    let mut stream = relay.resume(&away.token, &heard[5].id);
    events(&mut stream, &[9, 10, 12]);
    stream.expect_silence(Duration::from_millis(200));
}

// ---- ids that are gone

const LARGE: usize = 60_000;

/// Sends as much as makes the relay drop what is older than a message lives; how many messages that were.
fn make_it_forget(send: impl Fn(&str)) -> usize {
    let message = text(LARGE);
    (0..10).for_each(|_| send(&message));
    std::thread::sleep(Duration::from_millis(1300));
    (0..5).for_each(|_| send(&message));
    15
}

const FORGETFUL: [(&str, &str); 5] = [
    ("RELAY_MAX_QUEUE", "2000000"),
    ("RELAY_BUS_MESSAGE", "70000"),
    ("RELAY_MESSAGE_LIFETIME", "1"),
    ("RELAY_SESSION_LIFETIME", "600"),
    ("RELAY_GRACE", "60"),
];

pub fn whoever_resumes_from_an_id_that_is_gone_is_told_so(door: Door) {
    let Some(relay) = door.start_with(&FORGETFUL) else { return };
    let (host, mut stream) = relay.listening_host();
    let mut client = relay.listening_client(&host.id);
    relay.send(&client.token, "\"first\"").expect(200);
    relay.send(&host.token, "\"first\"").expect(200);
    let (first, clients_first) = (stream.event(), client.stream.event());
    assert_eq!([first.body(), clients_first.body()], [json!("first"), json!("first")]);
    let is_told = |stream: &mut Stream, id: &str, say_new: &dyn Fn()| {
        let event = stream.event();
        is_lost(&event, id);
        say_new();
        // Cut off right after it, it misses nothing of what is still there.
        let next = stream.event();
        assert!(numeric(&event.id) < numeric(&next.id), "{event:?} before {next:?}");
        // What there still is comes, and nothing says so again.
        let mut left = 1;
        while stream.body() != json!("new") {
            left += 1;
        }
        assert!(left < 15, "nothing was dropped");
    };
    let client_token = client.token.clone();
    let to_host = |body: &str| _ = relay.send(&client_token, body).expect(200);
    let to_clients = |body: &str| _ = relay.send(&host.token, body).expect(200);
    for _ in 0..make_it_forget(to_host) {
        stream.event();
    }
    stream = relay.resume(&host.token, &first.id);
    is_told(&mut stream, &host.id, &|| to_host("\"new\""));
    for _ in 0..make_it_forget(to_clients) {
        client.stream.event();
    }
    client.stream = relay.resume(&client.token, &clients_first.id);
    is_told(&mut client.stream, &client.id, &|| to_clients("\"new\""));
    // Nothing was lost for whoever comes back in time, or for the first time.
    let mut again = relay.resume(&client.token, &client.stream.last_id);
    again.expect_silence(Duration::from_millis(300));
    relay.open(&relay.join(&host.id)).expect_silence(Duration::from_millis(300));
}

pub fn whoever_resumes_on_a_bus_from_an_id_that_is_gone_is_told_so(door: Door) {
    let Some(relay) = door.start_with(&FORGETFUL) else { return };
    let bus = news(&*relay);
    let (user, _) = bus.greet();
    let first = bus.post(user, "\"first\"");
    make_it_forget(|message| _ = bus.post(user, message));
    let last = bus.post(user, "\"last\"");
    let mut stream = bus.listen(&format!("events&lastEventId={first}"), &[]);
    let event = stream.event();
    assert_eq!((event.name.as_str(), event.data.as_str()), ("lost", "{}"), "{event:?}");
    let mut next = stream.event();
    assert!(numeric(&event.id) < numeric(&next.id), "cut off in between, it would miss {next:?}");
    while next.id != last.to_string() {
        next = stream.event();
    }
    for query in ["events&id=0".to_owned(), format!("events&lastEventId={last}"), "events".to_owned()] {
        let mut stream = bus.listen(&query, &[]);
        let next = bus.post(user, "1");
        loop {
            let event = stream.event();
            assert_ne!(event.name, "lost", "{query}: it has missed nothing");
            if event.id == next.to_string() {
                break;
            }
        }
    }
}

// ---- a host that is registered anew

#[test]
fn each_registration_has_its_own_broadcasts() {
    let relay = Bare::with(&[("RELAY_SESSION_LIFETIME", "600"), ("RELAY_MESSAGE_LIFETIME", "600")]);
    let mut earlier: Vec<(String, Vec<String>)> = Vec::new();
    for generation in 0..3 {
        let host = relay.host("room");
        let host_stream = relay.open(&host.token);
        let [here, away] = [relay.join("room"), relay.join("room")];
        let mut stream = relay.open(&here);
        let said = format!("of {generation}");
        let answer = relay.send(&host.token, json!(said).to_string()).expect(200).json();
        assert_eq!(answer, json!({client_id(&here): true, client_id(&away): true}), "and nobody of an earlier one");
        assert_eq!(stream.body(), json!(said), "the first that it hears");
        stream.expect_silence(Duration::from_millis(100));
        earlier.push((away, vec![said]));
        host_stream.hang_up();
        until("the host is gone", LONG, || relay.try_join("room").status == 400);
    }
    let host = relay.host("room");
    let _stream = relay.open(&host.token);
    let new = relay.join("room");
    relay.send(&host.token, "\"of the last\"").expect(200);
    for (token, said) in earlier {
        let mut stream = relay.open(&token);
        let mut heard = Vec::new();
        loop {
            match stream.next_event(Duration::from_millis(500)) {
                Item::Event(event) if event.name == "message" => heard.push(event.body()),
                Item::Event(event) => {
                    assert_eq!(event.json(), json!({"eventType": "host_closed", "body": "room"}));
                }
                Item::End | Item::Nothing => break,
                other @ Item::Comment(_) => panic!("{other:?}"),
            }
        }
        assert_eq!(heard, said);
    }
    assert_eq!(relay.open(&new).body(), json!("of the last"));
}

// ---- limits

pub fn a_topic_holds_only_so_much_and_what_was_promised_stays(door: Door) {
    let Some(relay) = door.start_with(&with(&[("RELAY_MAX_TOPIC", "200000"), ("RELAY_MAX_QUEUE", "1000000")])) else {
        return;
    };
    let (host, _stream) = relay.listening_host();
    let sleeper = relay.join(&host.id);
    let body = |number: u32| json!([number, "x".repeat(10_000)]);
    let mut promised = 0;
    let refused = loop {
        let reply = relay.send(&host.token, body(promised).to_string());
        if reply.status != 200 {
            break reply;
        }
        assert!(given(&reply.json(), &client_id(&sleeper)));
        promised += 1;
        assert!(promised <= 20, "20 of 10 kB make 200 kB");
    };
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    refused.expect_error(429);
    assert!(promised >= 15, "{promised} of 10 kB are not 200 kB");
    // Others have their own.
    let (other, _other_stream) = relay.listening_host();
    let other_client = relay.join(&other.id);
    relay.send(&other.token, body(0).to_string()).expect(200);
    assert_eq!(relay.open(&other_client).body(), body(0));
    let mut stream = relay.open(&sleeper);
    for number in 0..promised {
        assert_eq!(stream.body(), body(number));
    }
    stream.expect_silence(Duration::from_millis(200));
}

#[test]
fn a_topic_that_was_full_goes_on_when_what_it_held_is_dead() {
    let relay = Bare::with(&[
        ("RELAY_MAX_TOPIC", "200000"),
        ("RELAY_MESSAGE_LIFETIME", "2"),
        ("RELAY_SESSION_LIFETIME", "600"),
    ]);
    let (host, _stream) = relay.listening_host();
    let mut client = relay.listening_client(&host.id);
    let message = text(20_000);
    let start = Instant::now();
    while relay.send(&host.token, &message).status == 200 {
        client.stream.event();
        assert!(start.elapsed() < LONG, "it never fills");
    }
    until("there is room again", LONG, || relay.send(&host.token, "\"new\"").status == 200);
    assert_eq!(client.stream.body(), json!("new"));
}

pub fn the_data_folder_holds_only_so_much_and_goes_on_after_the_sweep(door: Door) {
    let settings = [
        ("RELAY_MAX_DATA", "1000000"),
        ("RELAY_MESSAGE_LIFETIME", "5"),
        ("RELAY_SESSION_LIFETIME", "5"),
        ("RELAY_BUS_MESSAGE", "50000"),
    ];
    let Some(relay) = door.start_with(&settings) else { return };
    let message = text(40_000);
    let start = Instant::now();
    let mut hosts = Vec::new();
    // Many hosts, none of which has much.
    let refused = loop {
        assert!(start.elapsed() < 2 * LONG && bytes_below(&data(&*relay)) < 2_000_000, "it never fills");
        let host = relay.post("action=host", "");
        if host.status != 200 {
            break host;
        }
        let id = host.json()["hostId"].as_str().unwrap().to_owned();
        let joined = relay.try_join(&id);
        if joined.status != 200 {
            break joined;
        }
        let client = joined.json()["clientToken"].as_str().unwrap().to_owned();
        let refused = (0..5).map(|_| relay.send(&client, &message)).find(|reply| reply.status != 200);
        hosts.push((host, client));
        if let Some(refused) = refused {
            break refused;
        }
    };
    let reason = refused.expect_error(507);
    assert!(reason.contains("full"), "{reason}");
    // A bus is in the same folder.
    let bus = news(&*relay);
    until("what is dead is swept, and there is room again", 2 * LONG, || {
        relay.post("action=ping", "");
        let greeting = bus.call("GET", "", "");
        if greeting.status != 200 {
            greeting.expect_error(507);
            return false;
        }
        let user = greeting.json()["user"].as_u64().unwrap();
        bus.call("POST", &format!("user={user}"), &message).status == 200
    });
    let (host, mut stream) = relay.listening_host();
    relay.send(&relay.join(&host.id), "1").expect(200);
    assert_eq!(stream.body(), json!(1));
}

// ---- a data folder of another version

#[test]
fn a_data_folder_of_another_version_is_refused_with_what_to_do() {
    let relay = Bare::new();
    let old = relay.data().join("hosts/ab/abcdef");
    let is_told = |said: &str| {
        assert!(
            said.contains("version") && said.to_lowercase().contains("remove") && said.contains("secret"),
            "not what to do: {said}"
        );
    };
    for version in [None, Some("2\n"), Some("4\n")] {
        let _ = fs::remove_dir_all(relay.data());
        // A folder in which somebody has just put the settings is a new one.
        crate::place::write_settings(&relay.data(), &[("RELAY_PREFIX", "x")], None);
        fs::create_dir_all(&old).unwrap();
        fs::write(old.join("session.json"), "{}").unwrap();
        if let Some(version) = version {
            fs::write(version_of(&relay.data()), version).unwrap();
        }
        for query in ["action=host", "action=join&hostId=x"] {
            relay.post(query, "").expect_error(500);
        }
        is_told(&relay.log());
        assert!(old.join("session.json").exists(), "it is not touched");

        let path = relay.data().display().to_string();
        let mut serve = program(&["serve", "--listen", "127.0.0.1:0", "--data", &path]);
        let output = finish(&mut serve);
        assert_eq!(output.0, Some(1), "{version:?}: {}", output.1);
        is_told(&output.1);
        let check = relay.command_line(&["check"]).output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&check.stdout), String::from_utf8_lossy(&check.stderr));
        assert!(!check.status.success(), "{version:?}: {said}");
        is_told(&said);
    }
    // What it says helps.
    for entry in fs::read_dir(relay.data()).unwrap().flatten() {
        if !["secret", "settings.conf", "ptth.json"].iter().any(|kept| entry.file_name() == *kept) {
            crate::faults::remove(&entry.path());
        }
    }
    let (host, mut stream) = relay.listening_host();
    assert!(host.id.starts_with('x'), "with the settings of before: {}", host.id);
    relay.send(&relay.join(&host.id), "1").expect(200);
    assert_eq!(stream.body(), json!(1));
    assert_eq!(fs::read_to_string(version_of(&relay.data())).unwrap(), "3\n");
}

/// Exit code, and all that it said.
fn finish(command: &mut Command) -> (Option<i32>, String) {
    let folder = Folder::new();
    let log = folder.join("log");
    let mut process =
        command.stderr(fs::File::create(&log).unwrap()).stdout(std::process::Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + LONG;
    let code = loop {
        if let Some(status) = process.try_wait().unwrap() {
            break status.code();
        }
        if Instant::now() > deadline {
            let _ = process.kill();
            let _ = process.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    (code, fs::read_to_string(log).unwrap())
}

// ---- a server that is killed

#[test]
fn all_clients_of_a_server_that_was_killed_are_noticed_by_one_look() {
    const CLIENTS: usize = 50;
    let relay = Serve::with(&[("RELAY_SESSION_LIFETIME", "600")]);
    let cgi = relay.cgi();
    let (host, mut host_stream) = cgi.listening_host();
    let clients: Vec<_> = (0..CLIENTS).map(|_| relay.listening_client(&host.id)).collect();
    // Not of the host's own process, and of this server's only.
    let (remote, _remote_stream) = relay.listening_host();
    let mut local = cgi.listening_client(&remote.id);
    let answer = cgi.send(&host.token, "1").expect(200).json();
    assert!(answer.as_object().unwrap().values().all(|given| *given == json!(true)), "{answer}");
    let nodes_of_cgi = 2;
    let is_lock = |path: &&PathBuf| path.extension().is_none();
    let nodes = node_files(&relay.data());
    assert_eq!(nodes.iter().filter(is_lock).count(), nodes_of_cgi + 1, "a server is one node: {nodes:?}");
    kill(relay.pid(), Signal::KILL);
    let start = Instant::now();

    // Whoever sends looks at once, and at each node once.
    let folder = Folder::new();
    if let Some(program) = tracing(&cgi.program(), &folder) {
        let query = format!("token={}", host.token);
        let call = Call { query: &query, body: b"2", ..Call::default() };
        let reply = cgi.run(&mut cgi.request_of(&program, &call), b"2").expect(200);
        assert_eq!(reply.json(), json!({}), "nobody is there");
        let mut looks: BTreeMap<String, u32> = BTreeMap::new();
        for line in noted(&folder.join("trace"), 0) {
            let opened = line.split('"').nth(1).filter(|path| line.contains(" open") && path.contains("/nodes/"));
            if let Some(path) = opened {
                *looks.entry(path.to_owned()).or_default() += 1;
            }
        }
        assert!(!looks.is_empty() && looks.values().all(|times| *times == 1), "{looks:?}");
    }

    let mut gone: Vec<String> = Vec::new();
    while gone.len() < CLIENTS {
        let event = host_stream.event().json();
        assert_eq!(event["eventType"], json!("client_closed"));
        gone.push(event["body"].as_str().unwrap().to_owned());
    }
    local.stream.expect_closed("host_closed", &remote.id);
    // The promise is 5 s; the rest is for a machine with more tests than cores.
    assert!(start.elapsed() < Duration::from_secs(5 + 3), "{:?}", start.elapsed());
    gone.sort();
    let mut known: Vec<_> = clients.iter().map(|client| client.id.clone()).collect();
    known.sort();
    assert_eq!(gone, known);
    assert_eq!(cgi.send(&host.token, "3").expect(200).json(), json!({}));
    host_stream.expect_silence(Duration::from_millis(500));
    until("its files are gone", LONG, || {
        cgi.sweep();
        node_files(&relay.data()).iter().filter(is_lock).count() == nodes_of_cgi
    });
}

/// Where a topic's promises have to hold.
macro_rules! topics_through {
    ($module:ident = $door:ident) => {
        mod $module {
            tests! { $door:
                topics::a_broadcast_is_stored_once_whatever_the_number_of_clients,
                topics::whoever_lags_too_far_is_told_so_once_and_goes_on,
                topics::whoever_comes_back_with_its_id_gets_what_it_missed_in_the_order_of_the_log,
                topics::whoever_resumes_from_an_id_that_is_gone_is_told_so,
                topics::whoever_resumes_on_a_bus_from_an_id_that_is_gone_is_told_so,
                topics::a_topic_holds_only_so_much_and_what_was_promised_stays,
                topics::the_data_folder_holds_only_so_much_and_goes_on_after_the_sweep,
            }
        }
    };
}

topics_through!(of_lighttpd = Lighttpd);
topics_through!(of_serve = Serve);
