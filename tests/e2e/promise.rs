//! A message that was answered 200 is kept for its lifetime, whatever else ends by then.
//!
//! Nothing here waits for a lifetime: the tests set files' times back, and change the settings between two requests.

use std::time::Duration;

use serde_json::json;

use crate::bare::Bare;
use crate::place::{LONG, age, age_log, age_logs, bytes_below, has_member, log_of_host, until};
use crate::relay::{Call, Host, Relay as _, Talk as _};
use crate::token;

/// Longer ago than every lifetime here.
const LONG_AGO: Duration = Duration::from_secs(90);

/// Sweeps as if every session's lifetime were over.
fn sweep_after_the_session_lifetime(relay: &mut Bare) {
    relay.set("RELAY_SESSION_LIFETIME", "0.1");
    std::thread::sleep(Duration::from_millis(300));
    relay.sweep();
    relay.set("RELAY_SESSION_LIFETIME", "60");
}

#[track_caller]
fn until_absent(relay: &Bare, host: &Host) {
    until("the host is gone", LONG, || relay.try_join(&host.id).status == 400);
}

#[test]
fn a_reply_waits_for_its_lifetime_after_the_hosts_own_is_over() {
    let mut relay = Bare::new();
    let (host, mut host_stream) = relay.listening_host();
    let client = relay.join(&host.id);
    relay.send(&client, "\"hi\"").expect(200);
    let response = host_stream.event().response_token();
    host_stream.hang_up();
    until_absent(&relay, &host);
    relay.send(&response, "\"reply\"").expect(200);

    // The host, and what was sent to it, is long gone; the reply is young.
    let session = relay.sessions().remove(0);
    age_log(&log_of_host(&session), LONG_AGO);
    age(&session, LONG_AGO);
    sweep_after_the_session_lifetime(&mut relay);
    let mut stream = relay.open(&client);
    stream.expect_closed("host_closed", &host.id);
    assert_eq!(stream.body(), json!("reply"));
    stream.hang_up();

    // And then it all goes.
    age_logs(&relay.data(), LONG_AGO);
    until("the session goes once nothing waits in it", LONG, || {
        sweep_after_the_session_lifetime(&mut relay);
        relay.sessions().is_empty()
    });
    relay.get(&format!("token={client}")).expect_error(401);
}

#[test]
fn a_message_outlives_a_session_lifetime_that_is_shorter() {
    let mut relay = Bare::with(&[("RELAY_MESSAGE_LIFETIME", "600")]);
    let (host, host_stream) = relay.listening_host();
    let client = relay.join(&host.id);
    assert!(relay.send(&host.token, "1").expect(200).body.contains(":true"));
    host_stream.hang_up();
    until_absent(&relay, &host);
    // The host has been there for longer than a message lives.
    age_log(&log_of_host(&relay.sessions()[0]), Duration::from_secs(700));
    let unopened = relay.host("");
    relay.send(&relay.join(&unopened.id), "2").expect(200);
    for _ in 0..3 {
        sweep_after_the_session_lifetime(&mut relay);
    }
    let mut stream = relay.open(&client);
    assert_eq!(stream.body(), json!(1));
    stream.expect_closed("host_closed", &host.id);
    assert_eq!(relay.open(&unopened.token).body(), json!(2));
}

#[test]
fn clients_whose_host_never_came_are_told_so_once() {
    let mut relay = Bare::with(&[("RELAY_MESSAGE_LIFETIME", "600"), ("RELAY_KEEP_ALIVE", "0.2")]);
    let host = relay.host("");
    let client = relay.join(&host.id);
    assert!(relay.send(&host.token, "1").expect(200).body.contains(":true"));
    for _ in 0..3 {
        sweep_after_the_session_lifetime(&mut relay);
    }
    let mut stream = relay.open(&client);
    assert_eq!(stream.body(), json!(1));
    stream.expect_closed("host_closed", &host.id);
    stream.expect_silence(Duration::from_secs(1));
}

#[test]
fn what_waits_outlives_that_the_host_is_registered_anew() {
    let mut relay = Bare::new();
    let host = relay.host("room");
    let stream = relay.open(&host.token);
    let client = relay.join("room");
    assert!(relay.send(&host.token, "\"for the first one's client\"").expect(200).body.contains(":true"));
    stream.hang_up();
    until_absent(&relay, &host);

    let second = relay.host("room");
    relay.send(&second.token, "\"not for strangers\"").expect_error(400);
    let other = relay.join("room");
    relay.send(&other, "\"for the second one\"").expect(200);
    relay.send(&client, "0").expect_error(401);
    // Its time to open the stream is over, and somebody else takes the id.
    age(&relay.sessions()[0], Duration::from_secs(11));
    let mut third = relay.open(&relay.host("room").token);
    third.expect_silence(Duration::from_millis(500));

    sweep_after_the_session_lifetime(&mut relay);
    let mut stream = relay.open(&client);
    assert_eq!(stream.body(), json!("for the first one's client"));
    stream.expect_closed("host_closed", "room");
    assert_eq!(relay.open(&second.token).body(), json!("for the second one"));
    relay.send(&second.token, "0").expect_error(401);
    relay.get(&format!("token={}", host.token)).expect_error(401);
    relay.get(&format!("token={other}")).expect_error(401);

    age_logs(&relay.data(), LONG_AGO);
    relay.sweep();
    relay.get(&format!("token={client}&lastEventId=0")).expect_error(401);
    stream.hang_up();
    sweep_after_the_session_lifetime(&mut relay);
    let former = token::payload(&client)["clientId"].as_str().unwrap().to_owned();
    assert!(!has_member(&relay.sessions()[0], &former), "nothing is left of those of an earlier registration");
    relay.send(&relay.join("room"), "1").expect(200);
    assert_eq!(third.body(), json!(1));
}

#[test]
fn what_a_stream_has_lost_outlives_that_the_host_is_registered_anew() {
    let relay = Bare::new();
    let host = relay.host("room");
    let host_stream = relay.open(&host.token);
    let client = relay.join("room");
    let mut stream = relay.open(&client);
    relay.send(&host.token, "1").expect(200);
    let first = stream.event();
    // Given to the stream, and lost on its way.
    assert!(relay.send(&host.token, "2").expect(200).body.contains(":true"));
    stream.event();
    stream.hang_up();
    host_stream.hang_up();
    until_absent(&relay, &host);
    relay.host("room");
    assert_eq!(relay.resume(&client, &first.id).body(), json!(2));
}

#[test]
fn a_host_that_is_registered_anew_again_and_again_does_not_fill_the_disk() {
    let mut relay = Bare::with(&[("RELAY_MAX_CLIENTS", "10")]);
    let register = |relay: &Bare| relay.post("action=host&hostId=room", "");
    let mut registrations = 0;
    let mut client = String::new();
    let refusal = loop {
        let token = register(&relay).expect(200).json()["hostToken"].as_str().unwrap().to_owned();
        // Those that wait for messages of an earlier registration count, too.
        let joined = relay.try_join("room");
        if joined.status != 200 {
            break joined;
        }
        registrations += 1;
        assert!(registrations <= 10);
        client = joined.json()["clientToken"].as_str().unwrap().to_owned();
        assert!(relay.send(&token, "1").expect(200).body.contains(":true"));
        age(&relay.sessions()[0], Duration::from_secs(11));
    };
    assert!(refusal.header("retry-after").is_some(), "{refusal:?}");
    refusal.expect_error(503);
    // Nor does a host to which nobody comes: clients are told that theirs has gone, once, and earlier hosts are forgotten.
    let again_and_again = |relay: &Bare| {
        let before = bytes_below(&relay.data());
        for _ in 0..30 {
            age(&relay.sessions()[0], Duration::from_secs(11));
            register(relay).expect(200);
            relay.try_join("room").expect_error(503);
        }
        bytes_below(&relay.data()) - before
    };
    let grown = again_and_again(&relay);
    assert!(grown < 100_000, "{grown} bytes");
    sweep_after_the_session_lifetime(&mut relay);
    let grown = again_and_again(&relay);
    assert!(grown < 1000, "{grown} bytes");
    let mut stream = relay.open(&client);
    assert_eq!(stream.body(), json!(1));
    stream.expect_closed("host_closed", "room");
    stream.expect_silence(Duration::from_millis(500));
    stream.hang_up();
    age_logs(&relay.data(), LONG_AGO);
    age(&relay.sessions()[0], Duration::from_secs(11));
    register(&relay).expect(200);
}

#[test]
fn what_waits_for_an_applications_own_tokens_outlives_a_registration() {
    const SECRET: &str = "a secret of this test";
    let mut relay = Bare::with(&[("JWT_SECRET", SECRET)]);
    let alice = token::minted_client("room", "alice", SECRET);
    let host = relay.host("room");
    let stream = relay.open(&host.token);
    relay.call(&Call { method: "HEAD", query: &format!("token={alice}"), ..Call::default() }).expect(200);
    assert_eq!(relay.send(&host.token, "1").expect(200).json(), json!({"alice": true}));
    stream.hang_up();
    until_absent(&relay, &host);
    relay.host("room");
    assert_eq!(relay.open(&alice).body(), json!(1));

    // Nobody takes the id of an application's own host as long as something waits for it.
    let own = token::minted_host("app", SECRET);
    relay.set("RELAY_GRACE", "30");
    let stream = relay.open(&own);
    let client = relay.join("app");
    stream.hang_up();
    relay.send(&client, "2").expect(200);
    relay.set("RELAY_GRACE", "0");
    until_absent(&relay, &Host { id: "app".into(), token: own.clone() });
    relay.post("action=host&hostId=app", "").expect_error(400);
    assert_eq!(relay.open(&own).body(), json!(2));
}

#[test]
fn a_registered_user_of_a_bus_may_come_for_its_messages_until_they_die() {
    let mut relay = Bare::new();
    let call = |relay: &Bare, method: &str, query: &str, body: &str| {
        let call = Call { method, path_info: "/bus/news", query, body: body.as_bytes(), ..Call::default() };
        relay.call(&call).expect(200).json()
    };
    let registered = call(&relay, "POST", "register", "");
    let (user, last) = (&registered["user"], &registered["id"]);
    let other = call(&relay, "GET", "", "")["user"].clone();
    call(&relay, "POST", &format!("user={other}"), "1");
    relay.set("RELAY_BUS_LIFETIME", "0.1");
    std::thread::sleep(Duration::from_millis(300));
    relay.sweep();
    let messages = call(&relay, "GET", &format!("id={last}&user={user}"), "");
    assert_eq!(messages[0]["data"], json!(1), "{messages}");
}
