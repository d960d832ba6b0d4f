//! Limits: each refuses with its status, tells when to try again, and lets go.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::bare::{Bare, finish};
use crate::bus::Registered;
use crate::place::{LONG, age, age_member, age_users, everything_below, has_member, new_record, records, until};
use crate::relay::{Call, Relay as _, Reply, Talk as _};
use crate::token::payload;

/// Retry-After tells a client when, in seconds.
#[track_caller]
fn expect_try_again(reply: Reply, status: u16) {
    let seconds = reply.header("retry-after").and_then(|value| value.parse::<u32>().ok());
    assert!(seconds.is_some(), "no Retry-After in {reply:?}");
    reply.expect_error(status);
}

#[test]
fn a_queue_that_is_full_says_so_and_takes_messages_again_once_read() {
    let relay = Bare::with(&[("RELAY_MAX_QUEUE", "20000")]);
    let host = relay.host("");
    let client = relay.join(&host.id);
    let mut accepted = 0;
    let full = loop {
        let reply = relay.send(&client, format!("\"{accepted:04}{}\"", "x".repeat(996)));
        if reply.status != 200 {
            break reply;
        }
        accepted += 1;
        assert!(accepted <= 20, "20 messages of 1 kB fill a queue of 20 kB");
    };
    assert!(accepted >= 10, "{accepted}");
    expect_try_again(full, 429);

    let mut stream = relay.open(&host.token);
    for number in 0..accepted {
        assert!(stream.body().as_str().unwrap().starts_with(&format!("{number:04}")));
    }
    until("what was read makes room", LONG, || relay.send(&client, "1").status == 200);
    assert_eq!(stream.body(), json!(1), "nothing that was refused arrives");
    // A host that reads is never full.
    for number in 0..100 {
        relay.send(&client, format!("\"{number:04}{}\"", "y".repeat(996))).expect(200);
        assert!(stream.body().as_str().unwrap().starts_with(&format!("{number:04}")));
    }
}

#[test]
fn a_broadcast_tells_whose_queue_was_full() {
    let relay = Bare::with(&[("RELAY_MAX_QUEUE", "20000")]);
    let (host, _host_stream) = relay.listening_host();
    let mut reader = relay.listening_client(&host.id);
    let sleeper = payload(&relay.join(&host.id))["clientId"].as_str().unwrap().to_owned();
    let message = format!("\"{}\"", "x".repeat(998));
    let mut heard = 0;
    let full = loop {
        let answer = relay.send(&host.token, &message).expect(200).json();
        assert_eq!(answer[&reader.id], true, "who reads has room");
        reader.stream.event();
        heard += 1;
        assert!(heard <= 20, "20 messages of 1 kB fill a queue of 20 kB");
        if answer[&sleeper] != true {
            break answer;
        }
    };
    assert_eq!(full, json!({&*reader.id: true, &*sleeper: false}));
}

#[test]
fn a_host_has_only_so_many_clients() {
    let relay = Bare::with(&[("RELAY_MAX_CLIENTS", "2")]);
    let (host, mut host_stream) = relay.listening_host();
    let first = relay.listening_client(&host.id);
    let _second = relay.join(&host.id);
    expect_try_again(relay.try_join(&host.id), 503);
    let (other, _other_stream) = relay.listening_host();
    relay.try_join(&other.id).expect(200);

    first.stream.hang_up();
    host_stream.expect_closed("client_closed", &first.id);
    until("a client that left makes room", LONG, || relay.try_join(&host.id).status == 200);
}

#[test]
fn a_relay_has_only_so_many_hosts() {
    let relay = Bare::with(&[("RELAY_MAX_HOSTS", "3"), ("RELAY_SESSION_LIFETIME", "1")]);
    let (_first, first_stream) = relay.listening_host();
    let (_second, _second_stream) = relay.listening_host();
    relay.host("");
    expect_try_again(relay.post("action=host", ""), 503);
    expect_try_again(relay.post("action=host&hostId=mine", ""), 503);

    // No command of the owner is needed: dead hosts make room by themselves.
    first_stream.hang_up();
    until("hosts that left make room", LONG, || relay.post("action=host&hostId=mine", "").status == 200);
}

#[test]
fn a_body_over_the_limit_is_refused_however_it_comes() {
    let relay = Bare::with(&[("RELAY_MAX_BODY", "100")]);
    let (host, mut stream) = relay.listening_host();
    let client = relay.join(&host.id);
    let fits = format!("\"{}\"", "x".repeat(98));
    let exceeds = format!("\"{}\"", "x".repeat(99));
    relay.send(&client, &fits).expect(200);
    assert_eq!(stream.body().as_str().map(str::len), Some(98));
    relay.send(&client, &exceeds).expect_error(413);
    // Without a length it shows only while it is read; and it is not read to its end.
    let query = format!("token={client}");
    let endless = "x".repeat(10_000_000);
    for body in [&exceeds, &endless] {
        let call = Call { query: &query, body: body.as_bytes(), ..Call::default() };
        let mut command = relay.request(&call);
        command.env_remove("CONTENT_LENGTH").env("HTTP_TRANSFER_ENCODING", "chunked");
        relay.run(&mut command, body.as_bytes()).expect_error(413);
    }
    relay.send(&client, "1").expect(200);
    assert_eq!(stream.body(), json!(1));
}

#[test]
fn a_message_lives_only_for_its_lifetime() {
    let relay = Bare::with(&[("RELAY_MESSAGE_LIFETIME", "2")]);
    let host = relay.host("");
    let client = relay.join(&host.id);
    relay.send(&client, r#""old""#).expect(200);
    std::thread::sleep(Duration::from_millis(3500));
    relay.send(&client, r#""new""#).expect(200);
    let mut stream = relay.open(&host.token);
    assert_eq!(stream.body(), json!("new"));
}

#[test]
fn a_session_lives_only_for_its_lifetime() {
    // A session with a message that was promised to be kept outlives it until that is over as well.
    let relay = Bare::with(&[("RELAY_SESSION_LIFETIME", "2"), ("RELAY_MESSAGE_LIFETIME", "2")]);
    let (host, stream) = relay.listening_host();
    let mut client = relay.listening_client(&host.id);
    stream.hang_up();
    client.stream.expect_closed("host_closed", &host.id);
    // Within it the same token may come back.
    relay.open(&host.token).hang_up();
    client.stream.expect_closed("host_closed", &host.id);
    std::thread::sleep(Duration::from_millis(3500));
    relay.sweep();
    relay.get(&format!("token={}", host.token)).expect_error(401);
    relay.try_join(&host.id).expect_error(400);
}

#[test]
fn a_registration_that_never_opens_frees_its_id_after_ten_seconds() {
    let relay = Bare::new();
    let first = relay.host("room");
    std::thread::sleep(Duration::from_secs(5));
    relay.post("action=host&hostId=room", "").expect_error(400);
    let mut second = None;
    until("the id is free again", Duration::from_secs(30), || {
        second = Some(relay.post("action=host&hostId=room", "")).filter(|reply| reply.status == 200);
        second.is_some()
    });
    relay.get(&format!("token={}", first.token)).expect_error(401);
    let token = second.unwrap().json()["hostToken"].as_str().unwrap().to_owned();
    let mut stream = relay.open(&token);
    relay.send(&relay.join("room"), "1").expect(200);
    assert_eq!(stream.body(), json!(1));
}

// ---- at a limit, what nobody has used yet gives way, once it is older than a minute

/// More than the minute.
const OLD: Duration = Duration::from_secs(100);
const OLDER: Duration = Duration::from_secs(200);
const OLDEST: Duration = Duration::from_secs(300);

fn at(relay: &Bare, method: &str, path_info: &str, query: &str) -> Reply {
    relay.call(&Call { method, path_info, query, ..Call::default() })
}

/// A bus, its record, a user of it and its last id.
fn new_bus(relay: &Bare, path: &str) -> (PathBuf, u64, u64) {
    let (record, hello) = new_record(&relay.data(), "buses", || at(relay, "GET", path, "").expect(200).json());
    (record, hello["user"].as_u64().unwrap(), hello["id"].as_u64().unwrap())
}

#[test]
fn buses_that_nobody_has_used_give_way_the_oldest_first() {
    let relay = Bare::with(&[("RELAY_MAX_BUSES", "5")]);
    let (posted, user, _) = new_bus(&relay, "/bus/posted");
    relay
        .call(&Call { path_info: "/bus/posted", query: &format!("user={user}"), body: b"1", ..Call::default() })
        .expect(200);
    let (heard, ..) = new_bus(&relay, "/bus/heard");
    let _stream = relay.listen_at("/bus/heard", "events", &[]).unwrap();
    let (polled, polling, last) = new_bus(&relay, "/bus/polled");
    let (older, ..) = new_bus(&relay, "/bus/older");
    let (oldest, _) = new_record(&relay.data(), "buses", || at(&relay, "POST", "/bus/oldest", "register").expect(200));
    expect_try_again(at(&relay, "GET", "/bus/new", ""), 503);

    for record in [&posted, &heard, &polled] {
        age(record, OLDEST);
    }
    age(&oldest, OLDER);
    age(&older, OLD);
    at(&relay, "GET", "/bus/polled", &format!("id={last}&user={polling}")).expect(200);
    new_bus(&relay, "/bus/new");
    assert!(!oldest.exists() && older.exists());
    at(&relay, "POST", "/bus/newer", "create=signed").expect(201);
    assert!(!older.exists());
    expect_try_again(at(&relay, "GET", "/bus/newest", ""), 503);
    assert!([&posted, &heard, &polled].iter().all(|record| record.exists()), "what is used stays");
}

#[test]
fn a_bus_that_is_empty_and_unread_is_forgotten_after_a_minute() {
    let relay = Bare::new();
    let (posted, user, _) = new_bus(&relay, "/bus/posted");
    relay
        .call(&Call { path_info: "/bus/posted", query: &format!("user={user}"), body: b"1", ..Call::default() })
        .expect(200);
    let (heard, ..) = new_bus(&relay, "/bus/heard");
    let _stream = relay.listen_at("/bus/heard", "events", &[]).unwrap();
    let (empty, ..) = new_bus(&relay, "/bus/empty");
    let (keyed, _) = new_record(&relay.data(), "buses", || at(&relay, "POST", "/bus/keyed", "register").expect(200));
    let (signed, _) =
        new_record(&relay.data(), "buses", || at(&relay, "POST", "/bus/signed", "create=signed").expect(201));
    relay.sweep();
    assert!(empty.exists(), "not before the minute is over");
    for record in [&posted, &heard, &empty, &keyed, &signed] {
        age(record, OLD);
    }
    relay.sweep();
    assert!(!empty.exists());
    assert!([posted, heard, keyed, signed].iter().all(|record| record.exists()));
}

#[test]
fn registered_users_who_never_signed_give_way_the_oldest_first() {
    let relay = Bare::with(&[("RELAY_MAX_CLIENTS", "3")]);
    let register = || at(&relay, "POST", "/bus/news", "register");
    let users = [(); 3].map(|()| {
        let made = register().expect(200).json();
        Registered { user: made["user"].as_u64().unwrap(), key: made["key"].as_str().unwrap().to_owned() }
    });
    let post = |user: &Registered, n: u64| {
        let query = user.sign("news", n, "1");
        relay.call(&Call { path_info: "/bus/news", query: &query, body: b"1", ..Call::default() })
    };
    post(&users[0], 1).expect(200);
    expect_try_again(register(), 503);

    age_users(&records(&relay.data(), "buses")[0], OLD);
    register().expect(200);
    post(&users[1], 1).expect_error(404);
    post(&users[0], 2).expect(200);
    post(&users[2], 1).expect(200);
    expect_try_again(register(), 503);
}

#[test]
fn sessions_in_which_nobody_has_met_give_way_the_oldest_first() {
    let relay = Bare::with(&[("RELAY_MAX_PIPES", "4")]);
    let allocate = || at(&relay, "PUT", "/cama/session", "");
    let new = || {
        let (record, answer) = new_record(&relay.data(), "pipes", || allocate().expect(201));
        let location = answer.header("location").unwrap();
        let path = location[location.find("/cama/").unwrap()..].to_owned();
        (record, path, answer.header("token").unwrap().to_owned())
    };
    let receive = |path: &str, token: &str| {
        let receiver =
            relay.start(&Call { method: "GET", path_info: path, headers: &[("Token", token)], ..Call::default() });
        until("it waits", LONG, || everything_below(&relay.data()).iter().any(|path| path.ends_with("receiver")));
        receiver
    };
    let send = |path: &str| {
        let sent = relay.call(&Call { path_info: path, body: b"Hello", ..Call::default() }).expect(200);
        assert_eq!(sent.header("x-bytes-delivered"), Some("5"));
    };
    let (met, path, token) = new();
    let receiver = receive(&path, &token);
    send(&path);
    finish(receiver);
    let (waiting, path, token) = new();
    let receiver = receive(&path, &token);
    let ((older, ..), (oldest, ..)) = (new(), new());
    expect_try_again(allocate(), 503);

    for (record, by) in [(&met, OLDEST), (&waiting, OLDEST), (&oldest, OLDER), (&older, OLD)] {
        age(record, by);
    }
    relay.sweep();
    assert!(older.exists() && oldest.exists(), "as long as there is room they keep their hour");
    new();
    assert!(!oldest.exists() && older.exists());
    new();
    assert!(!older.exists() && met.exists() && waiting.exists());
    expect_try_again(allocate(), 503);
    send(&path);
    finish(receiver);
}

#[test]
fn hosts_that_never_came_give_way_the_oldest_first() {
    let relay = Bare::with(&[("RELAY_MAX_HOSTS", "4"), ("RELAY_SESSION_LIFETIME", "3600")]);
    let register = || relay.post("action=host", "");
    let (listening, (host, _stream)) = new_record(&relay.data(), "hosts", || relay.listening_host());
    let (written, to) = new_record(&relay.data(), "hosts", || relay.host(""));
    relay.send(&relay.join(&to.id), "1").expect(200);
    let (older, _) = new_record(&relay.data(), "hosts", || relay.host(""));
    let (oldest, never) = new_record(&relay.data(), "hosts", || relay.host(""));
    relay.join(&never.id);
    expect_try_again(register(), 503);

    for (record, by) in [(&listening, OLDEST), (&written, OLDEST), (&oldest, OLDER), (&older, OLD)] {
        age(record, by);
    }
    register().expect(200);
    assert!(!oldest.exists() && older.exists());
    relay.get(&format!("token={}", never.token)).expect_error(401);
    register().expect(200);
    assert!(!older.exists() && listening.exists() && written.exists());
    expect_try_again(register(), 503);
    relay.send(&relay.join(&host.id), "1").expect(200);
    assert_eq!(relay.open(&to.token).body(), json!(1));
}

#[test]
fn clients_that_never_came_give_way_the_oldest_first() {
    let relay = Bare::with(&[("RELAY_MAX_CLIENTS", "4"), ("RELAY_SESSION_LIFETIME", "3600")]);
    let (host, _stream) = relay.listening_host();
    let session = relay.sessions().remove(0);
    let id = |token: &str| payload(token)["clientId"].as_str().unwrap().to_owned();
    let is_known = |token: &str| has_member(&session, &id(token));
    let written = relay.join(&host.id);
    relay.send(&host.token, "1").expect(200);
    let listening = relay.listening_client(&host.id);
    let [older, oldest] = [relay.join(&host.id), relay.join(&host.id)];
    expect_try_again(relay.try_join(&host.id), 503);
    let ages = [(&written, OLDEST), (&listening.token, OLDEST), (&oldest, OLDER), (&older, OLD)];
    for (token, by) in ages {
        age_member(&session, &id(token), by);
    }
    relay.join(&host.id);
    assert!(!is_known(&oldest) && is_known(&older));
    relay.join(&host.id);
    assert!(!is_known(&older));
    expect_try_again(relay.try_join(&host.id), 503);
    relay.send(&listening.token, "2").expect(200);
    assert_eq!(relay.open(&written).body(), json!(1));
}
