//! Limits: each refuses with its status, tells when to try again, and lets go.

use std::time::Duration;

use serde_json::json;

use crate::bare::Bare;
use crate::place::{LONG, until};
use crate::relay::{Reply, Talk as _};
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
        let call = crate::relay::Call { query: &query, body: body.as_bytes(), ..crate::relay::Call::default() };
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
