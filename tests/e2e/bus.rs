//! The broadcast bus, row by row through each door; and what only shows under load, over time, or after a killing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac as _};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::bare::{Bare, timed};
use crate::door::Door;
use crate::faults::{Disk, overwrite, remove};
use crate::place::{LONG, bus_readers, fifos, files_of, kill, new_record, node_files, records, until};
use crate::relay::{Call, Relay, Reply};
use crate::serve::Serve;
use crate::stream::{Item, Stream};

const NAME: &str = "news";

/// One bus, as somebody who knows its URL calls it.
#[derive(Clone, Copy)]
pub struct BusAt<'a> {
    relay: &'a dyn Relay,
    path: &'a str,
}

pub fn news(relay: &dyn Relay) -> BusAt<'_> {
    BusAt { relay, path: "/bus/news" }
}

impl BusAt<'_> {
    #[track_caller]
    pub fn call(&self, method: &str, query: &str, body: impl AsRef<[u8]>) -> Reply {
        self.relay.call(&Call { method, path_info: self.path, query, body: body.as_ref(), headers: &[] })
    }

    #[track_caller]
    fn get(&self, query: &str) -> Reply {
        self.call("GET", query, "")
    }

    /// A fresh user, and the last id.
    #[track_caller]
    pub fn greet(&self) -> (u64, u64) {
        let json = self.get("").expect(200).json();
        (whole(&json["user"]), whole(&json["id"]))
    }

    #[track_caller]
    fn poll(&self, id: u64, user: u64) -> Vec<Value> {
        messages(self.get(&format!("id={id}&user={user}")))
    }

    #[track_caller]
    pub fn post(&self, user: u64, body: impl AsRef<[u8]>) -> u64 {
        let json = self.call("POST", &format!("user={user}"), body).expect(200).json();
        assert_eq!(whole(&json["user"]), user);
        whole(&json["id"])
    }

    #[track_caller]
    fn register(&self) -> Registered {
        let json = self.call("POST", "register", "").expect(200).json();
        let key = json["key"].as_str().expect("a key").to_owned();
        assert!(key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit()), "{key}");
        whole(&json["id"]);
        Registered { user: whole(&json["user"]), key }
    }

    #[track_caller]
    pub fn listen(&self, query: &str, headers: &[(&str, &str)]) -> Stream {
        let stream = self.relay.listen_at(self.path, query, headers);
        let mut stream = stream.unwrap_or_else(|reply| panic!("no stream but {reply:?}"));
        stream.expect_comment("Connected.");
        stream
    }
}

pub struct Registered {
    pub user: u64,
    pub key: String,
}

impl Registered {
    /// The query of a signed post.
    pub fn sign(&self, name: &str, n: u64, body: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.as_bytes()).unwrap();
        mac.update(format!("{name}\n{}\n{n}\n{body}", self.user).as_bytes());
        format!("user={}&n={n}&signature={:x}", self.user, mac.finalize().into_bytes())
    }
}

/// A number that JavaScript reads exactly.
#[track_caller]
fn whole(json: &Value) -> u64 {
    let number = json.as_u64().unwrap_or_else(|| panic!("not a whole number: {json}"));
    assert!(number < 1 << 53, "{number}");
    number
}

#[track_caller]
fn messages(reply: Reply) -> Vec<Value> {
    let reply = reply.expect(200);
    assert!(reply.header("content-type").is_some_and(|kind| kind.starts_with("application/json")), "{reply:?}");
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    reply.json().as_array().unwrap_or_else(|| panic!("not an array: {reply:?}")).clone()
}

fn ids(messages: &[Value]) -> Vec<u64> {
    messages.iter().map(|message| whole(&message["id"])).collect()
}

/// The client of the original: it greets once, then polls with the last id it has seen.
pub fn users_hear_each_other_in_one_order_and_not_themselves(door: Door) {
    let Some(relay) = door.start() else { return };
    for path in ["/bus", "/bus/news", "/bus/gr%C3%BC%C3%9Fe%20.."] {
        let bus = BusAt { relay: &*relay, path };
        let (ann, mut last) = bus.greet();
        let (bob, _) = bus.greet();
        assert_ne!(ann, bob);
        assert_eq!(bus.poll(last, ann), Vec::<Value>::new());

        let first = bus.post(ann, r#" { "b": 12345678901234567890123, "a": [ 1.0e5 ] } "#);
        let second = bus.post(bob, "\"Grüße\"");
        let third = bus.post(ann, "null");
        assert!(last < first && first < second && second < third, "{last} {first} {second} {third}");

        let reply = bus.get(&format!("id={last}&user={bob}")).expect(200);
        let expected = format!(
            r#"[{{"id":{first},"user":{ann},"data":{{"b":12345678901234567890123,"a":[1.0e5]}}}},{{"id":{third},"user":{ann},"data":null}}]"#
        );
        assert_eq!(reply.body, expected);
        let heard = bus.poll(last, ann);
        assert_eq!(heard, [json!({"id": second, "user": bob, "data": "Grüße"})]);
        last = whole(&heard[0]["id"]);
        assert_eq!(bus.poll(last, ann), Vec::<Value>::new(), "nothing twice");
        assert_eq!(ids(&bus.poll(0, bob)), [first, third], "an old id means all there is");
        assert_eq!(ids(&bus.poll(first + 1, bob)), [third], "any number may be asked for");
        let (_, now) = bus.greet();
        assert_eq!(now, third, "a newcomer begins at the end");
    }
    // `/bus/` is `/bus`, and nothing is heard from one bus on another.
    let slash = BusAt { relay: &*relay, path: "/bus/" };
    let (user, _) = BusAt { relay: &*relay, path: "/bus" }.greet();
    assert_eq!(slash.poll(0, user).len(), 3);
}

pub fn a_waiting_poll_is_answered_when_something_comes(door: Door) {
    let Some(relay) = door.start() else { return };
    let bus = news(&*relay);
    let (ann, last) = bus.greet();
    let (bob, _) = bus.greet();
    let wait = format!("id={last}&user={ann}&wait=45");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| timed(|| messages(bus.get(&wait))));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished(), "there is nothing yet");
        bus.post(ann, "1");
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished(), "his own message is nothing new");
        let id = bus.post(bob, "2");
        let (heard, took) = waiting.join().unwrap();
        assert_eq!(heard, [json!({"id": id, "user": bob, "data": 2})]);
        assert!(took < Duration::from_secs(40), "{took:?}: that was the time limit");
    });
    let (heard, took) = timed(|| messages(bus.get(&wait)));
    assert_eq!(heard.len(), 1);
    assert!(took < Duration::from_secs(40), "there is something already");
    let (_, last) = bus.greet();
    let (heard, took) = timed(|| messages(bus.get(&format!("id={last}&user={ann}&wait=0.7"))));
    assert_eq!(heard.len(), 0);
    assert!(took >= Duration::from_millis(690), "{took:?}");
}

pub fn a_bus_is_a_stream_that_goes_on_where_it_broke(door: Door) {
    let Some(relay) = door.start() else { return };
    let bus = news(&*relay);
    let (ann, _) = bus.greet();
    let before = bus.post(ann, "0");
    let mut newcomer = bus.listen("events", &[]);
    let mut everything = bus.listen("events&id=0", &[]);
    let mut without_own = bus.listen(&format!("events&id=0&user={ann}"), &[]);
    let mut posted = vec![before];
    for number in 1..4 {
        posted.push(bus.post(ann, number.to_string()));
        let event = newcomer.event();
        let id = posted[number];
        assert_eq!((event.name.as_str(), event.id.clone()), ("message", id.to_string()));
        assert_eq!(event.data, format!(r#"{{"id":{id},"user":{ann},"data":{number}}}"#));
    }
    for id in &posted {
        assert_eq!(everything.event().id, id.to_string());
    }
    let (bob, _) = bus.greet();
    let last = bus.post(bob, "4");
    assert_eq!(without_own.event().id, last.to_string());

    let seen = newcomer.last_id.clone();
    newcomer.hang_up();
    posted.push(last);
    posted.push(bus.post(ann, "5"));
    let mut returned = vec![bus.listen(&format!("events&lastEventId={seen}"), &[])];
    if door.passes_every_header() {
        // As an EventSource does it: the URL is the one it began with.
        let accept = ("Accept", "text/event-stream");
        returned.push(bus.listen("id=0", &[accept, ("Last-Event-ID", &seen)]));
    }
    for stream in &mut returned {
        assert_eq!(stream.event().id, posted[4].to_string());
        assert_eq!(stream.event().id, posted[5].to_string());
    }
}

/// Whoever has an id of another bus, or a made-up one, hears what comes from now on and not nothing for ever.
pub fn an_id_beyond_the_newest_means_from_now_on(door: Door) {
    let Some(relay) = door.start() else { return };
    let bus = news(&*relay);
    let (ann, _) = bus.greet();
    let (bob, _) = bus.greet();
    let mut newest = bus.post(ann, "0");
    let waiting_readers = || bus_readers(&relay.folder().join("cgi-bin/data"));
    for beyond in [(newest + 1).to_string(), "999999999999999999".into(), "99999999999999999999999".into()] {
        let mut streams = [format!("events&id={beyond}"), format!("events&lastEventId={beyond}")]
            .map(|query| bus.listen(&query, &[]));
        for stream in &mut streams {
            assert_eq!(stream.first_id(), newest.to_string(), "{beyond}: one that is cut off now misses nothing");
        }
        let waits = format!("id={beyond}&user={bob}&wait=45");
        let earlier = waiting_readers();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| messages(bus.get(&waits)));
            until("it waits", LONG, || waiting_readers().iter().any(|wake| !earlier.contains(wake)));
            assert!(!waiting.is_finished(), "{beyond}: there is nothing yet");
            let id = bus.post(ann, "1");
            newest = id;
            assert_eq!(ids(&waiting.join().unwrap()), [id], "{beyond}");
            for stream in &mut streams {
                assert_eq!(stream.event().id, id.to_string(), "{beyond}");
            }
        });
    }
}

pub fn nobody_posts_as_a_registered_user(door: Door) {
    let Some(relay) = door.start() else { return };
    let bus = news(&*relay);
    let (plain, last) = bus.greet();
    let ann = bus.register();
    let eve = bus.register();
    let post = |query: &str, body: &str| bus.call("POST", query, body);
    let body = r#"{ "pay": 1 }"#;

    let signed = ann.sign(NAME, 1000, body);
    let answer = post(&signed, body).expect(200).json();
    assert_eq!(whole(&answer["user"]), ann.user);
    post(&signed, body).expect_error(403);
    post(&ann.sign(NAME, 999, body), body).expect_error(403);
    post(&ann.sign(NAME, 1001, body), r#"{ "pay": 9 }"#).expect_error(403);
    post(&ann.sign("other", 1001, body), body).expect_error(403);
    post(&ann.sign(NAME, 1001, body).replace("n=1001", "n=1002"), body).expect_error(403);
    post(&Registered { user: ann.user, key: eve.key.clone() }.sign(NAME, 1001, body), body).expect_error(403);
    post(&format!("user={}", ann.user), body).expect_error(403);
    post(&format!("user={}&n=1001&signature=", ann.user), body).expect_error(403);
    post(&format!("user={}&n=1001&signature=xyz", ann.user), body).expect_error(403);
    post(&format!("user={}&n=-1&signature=00", ann.user), body).expect_error(403);
    // His number is not used up by what others have tried.
    post(&ann.sign(NAME, 1001, "2"), "2").expect(200);
    post(&eve.sign(NAME, 1, "3"), "3").expect(200);
    let unsigned = bus.post(plain, "4");

    let heard = bus.poll(last, plain);
    let senders: Vec<_> = heard.iter().map(|message| (whole(&message["user"]), message["data"].clone())).collect();
    assert_eq!(senders, [(ann.user, json!({"pay": 1})), (ann.user, json!(2)), (eve.user, json!(3))]);
    assert_eq!(*ids(&bus.poll(last, ann.user)).last().unwrap(), unsigned, "unsigned users keep working");

    // A bus on which every post is signed.
    let safe = BusAt { relay: &*relay, path: "/bus/safe" };
    assert_eq!(safe.call("POST", "create=signed", "").expect(201).json(), json!({}));
    safe.call("POST", "create=signed", "").expect(200);
    bus.call("POST", "create=signed", "").expect_error(409);
    let (plain, last) = safe.greet();
    safe.call("POST", &format!("user={plain}"), "1").expect_error(403);
    let ann = safe.register();
    safe.call("POST", &ann.sign("safe", 1, "2"), "2").expect(200);
    assert_eq!(safe.poll(last, plain).len(), 1, "anybody may read");
}

pub fn a_wrong_call_says_what_is_wrong(door: Door) {
    let Some(relay) = door.start() else { return };
    let bus = news(&*relay);
    let missing = BusAt { relay: &*relay, path: "/bus/missing" };
    missing.get("id=0&user=2").expect_error(404);
    missing.call("POST", "user=2", "1").expect_error(404);
    missing.get("events&user=2").expect_error(404);

    let (user, last) = bus.greet();
    for stranger in ["0", "1", "-1", "x", "18446744073709551616", &(user + 2).to_string(), &(user + 1).to_string()] {
        for reply in [
            bus.get(&format!("id=0&user={stranger}")),
            bus.get(&format!("id=0&user={stranger}&wait=30")),
            bus.get(&format!("events&user={stranger}")),
            bus.call("POST", &format!("user={stranger}"), "1"),
        ] {
            let reason = reply.expect_error(404);
            assert!(reason.contains("user"), "{stranger}: {reason}");
        }
    }
    missing.get(&format!("id=0&user={user}")).expect_error(404);

    for body in ["{", "", " \n", "'a'", "1 2", "\"\u{1}\"", "nul"] {
        bus.call("POST", &format!("user={user}"), body).expect_error(400);
    }
    bus.call("POST", &format!("user={user}"), b"\"\xff\"").expect_error(400);
    let largest = format!("\"{}\"", "x".repeat(10_238));
    let id = bus.post(user, &largest);
    assert_eq!(bus.poll(id - 1, bus.greet().0)[0]["data"].as_str().unwrap().len(), 10_238);
    let too_large = bus.call("POST", &format!("user={user}"), format!("{largest} ")).expect_error(413);
    assert!(too_large.contains("10240"), "{too_large}");

    for query in
        ["id=1", &format!("user={user}"), &format!("id=x&user={user}"), &format!("id=0&user={user}&wait=soon"), "a=b"]
    {
        let reason = bus.get(query).expect_error(404);
        assert!(reason.contains("no such call"), "{query}: {reason}");
    }
    for query in ["", "create=open", "id=1"] {
        bus.call("POST", query, "1").expect_error(404);
    }
    bus.get("events&id=x").expect_error(404);
    for path in ["/bus/a/b", "/bus/a/", "/buses", "/bus/a%0Ab", &format!("/bus/{}", "x".repeat(257))] {
        if path.contains('%') && door != Door::Serve {
            continue; // The web server has decoded it, or refused it by itself.
        }
        let reply = BusAt { relay: &*relay, path }.get("");
        assert!([400, 404].contains(&reply.status), "{path}: {reply:?}");
    }
    BusAt { relay: &*relay, path: &format!("/bus/{}", "x".repeat(256)) }.greet();
    if door.passes_every_method() {
        for method in ["PUT", "DELETE"] {
            bus.call(method, &format!("user={user}"), "").expect_error(404);
        }
        let preflight = bus.call("OPTIONS", "", "").expect(204);
        assert!(preflight.header("access-control-allow-methods").unwrap().contains("POST"));
        missing.call("HEAD", "", "").expect(200);
        missing.get(&format!("id=0&user={user}")).expect_error(404);
        bus.call("HEAD", &format!("id=0&user={user}"), "").expect(200);
        bus.call("HEAD", &format!("id=0&user={}", user + 1), "").expect(404);
    }
    assert_eq!(ids(&bus.poll(last, bus.greet().0)), [id], "nothing that was refused is on the bus");
}

#[test]
fn every_limit_refuses_and_lets_go() {
    let relay = Bare::with(&[
        ("RELAY_MAX_CLIENTS", "2"),
        ("RELAY_MAX_BUSES", "2"),
        ("RELAY_MAX_QUEUE", "1000"),
        ("RELAY_BUS_MESSAGE", "500"),
        ("RELAY_MESSAGE_LIFETIME", "4"),
    ]);
    let bus = news(&relay);
    let again = |reply: Reply, status: u16| {
        assert!(reply.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok()), "{reply:?}");
        reply.expect_error(status)
    };
    let (user, last) = bus.greet();
    BusAt { relay: &relay, path: "/bus" }.greet();
    let third = BusAt { relay: &relay, path: "/bus/third" };
    again(third.get(""), 503);
    again(third.call("POST", "register", ""), 503);
    again(third.call("POST", "create=signed", ""), 503);

    bus.register();
    bus.register();
    again(bus.call("POST", "register", ""), 503);

    let streams = [bus.listen("events", &[]), bus.listen("events", &[])];
    again(bus.relay.listen_at(bus.path, "events", &[]).err().expect("two streams are enough"), 503);
    again(bus.get(&format!("id={last}&user={user}&wait=30")), 503);
    assert_eq!(bus.poll(last, user).len(), 0, "who does not wait is not counted");
    drop(streams);
    drop(bus.listen("events", &[]));

    bus.call("POST", &format!("user={user}"), format!("\"{}\"", "x".repeat(499))).expect_error(413);
    let large = format!("\"{}\"", "x".repeat(400));
    bus.post(user, &large);
    bus.post(user, &large);
    let reason = again(bus.call("POST", &format!("user={user}"), &large), 429);
    assert!(reason.contains("1000"), "{reason}");
    until("messages die, and make room", LONG, || bus.call("POST", &format!("user={user}"), &large).status == 200);
}

/// A page that posts in a loop must not take the bus away from everybody else.
#[test]
fn who_posts_without_end_leaves_room_for_the_others() {
    let relay = Bare::with(&[("RELAY_MAX_QUEUE", "200000")]);
    let bus = news(&relay);
    let (eve, last) = bus.greet();
    let others: Vec<_> = (0..5).map(|_| bus.greet().0).collect();
    let large = format!("\"{}\"", "x".repeat(10_000));
    let post = |user: u64, body: &str| bus.call("POST", &format!("user={user}"), body);
    let mut posted = 0;
    let refusal = loop {
        let reply = post(eve, &large);
        if reply.status != 200 {
            break reply;
        }
        posted += 1;
        assert!(posted < 20, "the bus does not fill");
    };
    assert!(posted >= 14, "{posted}: it is there for one as well");
    assert!(refusal.header("retry-after").is_some(), "{refusal:?}");
    assert!(refusal.expect_error(429).contains("RELAY_MAX_QUEUE"));
    let posted: Vec<_> = others.iter().map(|user| bus.post(*user, "\"hello\"")).collect();
    post(eve, "1").expect_error(429);
    assert!(ids(&bus.poll(last, eve)) == posted);
}

#[test]
fn a_message_is_gone_after_its_lifetime() {
    let relay = Bare::with(&[("RELAY_MESSAGE_LIFETIME", "1")]);
    let bus = news(&relay);
    let (user, last) = bus.greet();
    let (reader, _) = bus.greet();
    let start = Instant::now();
    bus.post(user, "1");
    let heard = bus.poll(last, reader);
    assert!(heard.len() == 1 || start.elapsed() >= Duration::from_secs(1), "{heard:?}");
    std::thread::sleep(Duration::from_millis(1050));
    assert_eq!(bus.poll(last, reader), Vec::<Value>::new());
    let mut stream = bus.listen("events&id=0", &[]);
    let id = bus.post(user, "2");
    assert_eq!(stream.event().id, id.to_string(), "the first that a stream has to tell");
}

/// A signed-only bus must not become an open one because nobody has posted for a while.
#[test]
fn a_bus_lives_as_long_as_somebody_uses_it_and_no_longer() {
    const LIFETIME: Duration = Duration::from_secs(6);
    let relay = Bare::with(&[("RELAY_BUS_LIFETIME", "6")]);
    let at = |path| BusAt { relay: &relay, path };
    let (polled, heard, left) = (at("/bus/polled"), at("/bus/heard"), at("/bus/left"));
    for bus in [polled, heard, left] {
        bus.call("POST", "create=signed", "").expect(201);
    }
    let (user, last) = polled.greet();
    let _listener = heard.listen("events", &[]);
    let buses = || records(&relay.data(), "buses").len();
    assert_eq!(buses(), 3);
    let start = Instant::now();
    until("a bus that nobody uses is gone", LONG, || {
        polled.get(&format!("id={last}&user={user}")).expect(200);
        relay.sweep();
        buses() < 3 && start.elapsed() > LIFETIME + LIFETIME / 2
    });
    assert_eq!(buses(), 2, "who polls or listens keeps a bus");
    for bus in [polled, heard] {
        bus.call("POST", "create=signed", "").expect(200);
    }
    left.call("POST", "create=signed", "").expect(201);
}

#[test]
fn whoever_is_killed_leaves_a_bus_that_works() {
    let relay = Bare::new();
    let bus = news(&relay);
    let (user, last) = bus.greet();
    let (reader, _) = bus.greet();
    let wait = format!("id={last}&user={user}&wait=50");
    for _ in 0..3 {
        let before = fifos(&relay.data());
        let mut stream = bus.listen("events", &[]);
        let mut waiting = relay.start(&Call { method: "GET", path_info: bus.path, query: &wait, ..Call::default() });
        until("both wait", LONG, || fifos(&relay.data()).iter().filter(|wake| !before.contains(wake)).count() == 2);
        stream.signal(Signal::KILL);
        waiting.kill().unwrap();
        waiting.wait().unwrap();
    }
    // A killed process cannot remove what it had. That is in nobody's way, and the sweep does.
    bus.post(user, "0");
    relay.sweep();
    assert_eq!(bus_readers(&relay.data()), Vec::<String>::new());
    assert_eq!(node_files(&relay.data()), Vec::<PathBuf>::new());

    // Writers, killed at all moments of their work.
    let mut survived = 0;
    for number in 0..60 {
        let query = format!("user={user}");
        let body = number.to_string();
        let call = Call { path_info: bus.path, query: &query, body: body.as_bytes(), ..Call::default() };
        let mut writer = relay.start(&call);
        std::thread::sleep(Duration::from_micros(50 * number));
        writer.kill().unwrap();
        survived += usize::from(writer.wait().unwrap().success());
    }
    let heard = bus.poll(last, reader);
    assert!(heard.len() > survived, "{survived} were answered, {} and one are there", heard.len());
    let id = bus.post(user, r#""still here""#);
    assert!(ids(&heard).is_sorted_by(|a, b| a < b) && ids(&heard).last() < Some(&id));
    assert_eq!(bus.poll(id - 1, reader)[0]["data"], "still here");

    let mut stream = bus.listen("events", &[]);
    stream.signal(Signal::KILL);
    relay.sweep();
    assert_eq!(bus_readers(&relay.data()), Vec::<String>::new());
    assert_eq!([fifos(&relay.data()), node_files(&relay.data())].concat(), Vec::<PathBuf>::new());
}

#[test]
fn a_stream_survives_whoever_removes_its_wake_up() {
    let relay = Serve::with(&[]);
    let bus = news(&relay);
    let (user, _) = bus.greet();
    let mut stream = bus.listen("events", &[]);
    for fifo in fifos(&relay.data()) {
        fs::remove_file(fifo).unwrap();
    }
    // By a process that could wake it in no other way.
    let cgi = relay.cgi();
    let id = news(&cgi).post(user, "1");
    assert_eq!(stream.event().id, id.to_string());
    until("it has a new one", LONG, || fifos(&relay.data()).len() == 1);
}

#[test]
fn a_full_disk_loses_nothing_that_was_answered() {
    let mut relay = Bare::new();
    let Some(disk) = Disk::under(&mut relay, "1m") else { return };
    disk.fill(800_000);
    let bus = news(&relay);
    let (user, last) = bus.greet();
    let (reader, _) = bus.greet();
    let ann = bus.register();
    let mut accepted = Vec::new();
    // Large ones until it is full, then small ones into what is left.
    for size in [9_000, 500, 10] {
        let reply = loop {
            let reply = bus.call("POST", &format!("user={user}"), format!("\"{}\"", "x".repeat(size)));
            if reply.status != 200 {
                break reply;
            }
            accepted.push(whole(&reply.json()["id"]));
            assert!(accepted.len() < 10_000, "the disk does not fill");
        };
        let reason = reply.expect_error(507);
        assert!(reason.contains("full"), "{reason}");
    }
    let signed = format!("\"{}\"", "x".repeat(100));
    bus.call("POST", &ann.sign(NAME, 1, &signed), &signed).expect_error(507);
    BusAt { relay: &relay, path: "/bus/other" }.get("").expect_error(507);
    assert_eq!(ids(&bus.poll(last, reader)), accepted, "who reads needs no room");
    disk.clear();
    accepted.push(bus.post(user, "1"));
    let signed = bus.call("POST", &ann.sign(NAME, 2, "1"), "1").expect(200);
    accepted.push(whole(&signed.json()["id"]));
    assert_eq!(ids(&bus.poll(last, reader)), accepted);
    BusAt { relay: &relay, path: "/bus/other" }.greet();
}

/// A way to break a file or a folder.
type Damage<'a> = (&'a str, &'a dyn Fn(&Path));

#[test]
fn damage_to_any_file_of_a_bus_does_no_lasting_harm() {
    const NAMES: usize = 6;
    let half = |path: &Path| {
        let whole = if path.is_file() { fs::read(path).unwrap() } else { Vec::new() };
        overwrite(path, &whole[..whole.len() / 2]);
    };
    let folder = |path: &Path| {
        remove(path);
        let _ = fs::create_dir(path); // a running stream may have made it anew already
    };
    let kinds: [Damage; 5] = [
        ("removed", &remove),
        ("emptied", &|path| overwrite(path, b"")),
        ("overwritten", &|path| overwrite(path, br#"{"first":-1,"x":[null,{"y":1e999}]}"#)),
        ("cut in half", &half),
        ("replaced by a folder", &folder),
    ];
    let relay = Bare::new();
    let paths: Vec<String> = (0..kinds.len() * NAMES).map(|number| format!("/bus/{number}")).collect();
    let mut broken = Vec::new();
    for (what, damage) in &kinds {
        for number in 0..NAMES {
            let bus = BusAt { relay: &relay, path: &paths[broken.len()] };
            let before = node_files(&relay.data());
            let (record, (user, _)) = new_record(&relay.data(), "buses", || bus.greet());
            bus.register();
            bus.post(user, "0");
            let stream = bus.listen("events", &[]);
            let mut names = files_of(&record);
            names.extend(node_files(&relay.data()).into_iter().filter(|node| !before.contains(node)));
            assert_eq!(
                names.len(),
                NAMES,
                "the record, the log, members, users, and two of the stream's process: {names:?}"
            );
            damage(&names[number]);
            broken.push((*what, names[number].clone(), bus, stream));
        }
    }
    for (what, path, bus, _) in &broken {
        let works = || {
            let greeting = bus.get("");
            if greeting.status != 200 {
                return greeting.expect_error(500).is_empty();
            }
            let user = whole(&greeting.json()["user"]);
            let registration = bus.call("POST", "register", "");
            let listening = bus.relay.listen_at(bus.path, "events", &[]);
            if registration.status != 200 || listening.is_err() {
                return false;
            }
            let id = bus.post(user, r#""well""#);
            listening.is_ok_and(|mut stream| stream.event().id == id.to_string())
                && bus.poll(id - 1, bus.greet().0).len() == 1
        };
        if !works() {
            // Something else is in the place of a file, or of a folder: its owner has to take it away.
            assert!(
                ["overwritten", "emptied", "cut in half", "replaced by a folder"].contains(what),
                "{}",
                path.display()
            );
            remove(path);
        }
        until(&format!("{} was {what}", path.display()), LONG, works);
    }
    // Who was listening hears of it, or is told to come back.
    for (what, path, _, mut stream) in broken {
        let deadline = Instant::now() + LONG;
        loop {
            match stream.next_event(deadline.saturating_duration_since(Instant::now())) {
                Item::Event(event) if event.data.contains("well") => break,
                Item::Event(_) => {}
                Item::End => break,
                other => panic!("{} was {what}: a stream hears {other:?}", path.display()),
            }
        }
    }
}

#[test]
fn a_poll_that_waits_ends_with_its_client_and_with_its_server() {
    let relay = Serve::with(&[]);
    let bus = news(&relay);
    let (user, last) = bus.greet();
    let query = format!("id={last}&user={user}&wait=45");
    let mut wire = relay.wire();
    wire.send(format!("GET {}?{query} HTTP/1.1\r\nHost: relay\r\n\r\n", bus.path));
    until("it waits", LONG, || bus_readers(&relay.data()).len() == 1);
    drop(wire);
    until("it has noticed that its client left", Duration::from_secs(30), || bus_readers(&relay.data()).is_empty());

    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| timed(|| messages(bus.get(&query))));
        until("it waits", LONG, || bus_readers(&relay.data()).len() == 1);
        kill(relay.pid(), Signal::TERM);
        let (heard, took) = waiting.join().unwrap();
        assert_eq!(heard, Vec::<Value>::new());
        assert!(took < Duration::from_secs(30), "{took:?}");
    });
}

/// What a process has read so far, from files and sockets, in bytes.
fn bytes_read(pid: Pid) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", pid.as_raw_nonzero())).expect("a child's figures are readable");
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("rchar");
    line.trim().parse().unwrap()
}

#[test]
fn a_poll_costs_what_it_returns_and_not_what_the_bus_holds() {
    const COUNT: usize = 10_000;
    let relay = Serve::with(&[("RELAY_MESSAGE_LIFETIME", "600")]);
    let bus = news(&relay);
    let (user, first) = bus.greet();
    let (reader, _) = bus.greet();
    let text = format!("\"{}\"", "x".repeat(100));
    let mut wire = relay.wire();
    let mut last = [first; 2];
    for _ in 0..COUNT {
        let head = format!("POST /bus/news?user={user} HTTP/1.1\r\nHost: relay\r\nContent-Length: {}", text.len());
        wire.send(format!("{head}\r\n\r\n{text}"));
        last = [last[1], whole(&wire.answer().expect(200).json()["id"])];
    }
    let reads = |what: &str, query: &str, count: usize, most: u64| {
        let before = bytes_read(relay.pid());
        assert_eq!(messages(bus.get(query)).len(), count);
        let read = bytes_read(relay.pid()) - before;
        println!("{what}: {read} bytes read");
        assert!(read <= most, "{what}: {read} bytes read");
    };
    reads("the last message of 10,000", &format!("id={}&user={reader}", last[0]), 1, 4096);
    reads("nothing new", &format!("id={}&user={reader}", last[1]), 0, 4096);
    reads("all", &format!("id={first}&user={reader}"), COUNT, 4 << 20);
    // The sweep reads, too, and may come in between, but not each time.
    let read = (0..3).map(|_| {
        let before = bytes_read(relay.pid());
        bus.greet();
        bus.post(user, "1");
        bytes_read(relay.pid()) - before
    });
    let read = read.min().unwrap();
    assert!(read <= 16_384, "a greeting and a post: {read} bytes read");
}

/// 16 writers of 500 messages each, all doors at once: half of the writers post to `first`, half to `second`, each user
/// polls or listens at one of them, and all of it is one bus.
pub fn storm(first: &dyn Relay, second: &dyn Relay) {
    const WRITERS: usize = 16;
    const MESSAGES: usize = 500;
    const POLLERS: usize = 8;
    const STREAMS: usize = 4;
    let relays = [first, second];
    let bus = |index: usize| news(relays[index % 2]);
    let (_, start) = bus(0).greet();
    let writers: Vec<u64> = (0..WRITERS).map(|index| bus(index).greet().0).collect();
    let writing = AtomicUsize::new(WRITERS);
    let is_over = || writing.load(Ordering::SeqCst) == 0;
    let (posted, heard) = std::thread::scope(|scope| {
        let (is_over, writers, writing) = (&is_over, &writers, &writing);
        // The first readers are writers too, and do not hear themselves; the others are nobody.
        let readers: Vec<_> = (0..POLLERS + STREAMS)
            .map(|index| {
                let own = (index % 2 == 0).then(|| writers[index]);
                scope.spawn(move || {
                    let bus = bus(index / 2);
                    let expected = (WRITERS - usize::from(own.is_some())) * MESSAGES;
                    let mut heard = Vec::new();
                    let deadline = Instant::now() + 4 * LONG;
                    if index < POLLERS {
                        let user = own.unwrap_or_else(|| bus.greet().0);
                        let mut last = start;
                        // Some wait for it; the others ask ten times a second, as clients of the original do.
                        let (wait, pause) = if index % 4 < 2 { ("&wait=10", 0) } else { ("", 100) };
                        while heard.len() < expected && Instant::now() < deadline {
                            std::thread::sleep(Duration::from_millis(pause));
                            let news = messages(bus.get(&format!("id={last}&user={user}{wait}")));
                            last = ids(&news).last().copied().unwrap_or(last);
                            heard.extend(news);
                            // All that was posted is there by now.
                            if is_over() && heard.len() < expected {
                                heard.extend(bus.poll(last, user));
                                break;
                            }
                        }
                    } else {
                        let user = own.map_or_else(String::new, |user| format!("&user={user}"));
                        let mut stream = bus.listen(&format!("events&id={start}{user}"), &[]);
                        while heard.len() < expected && Instant::now() < deadline {
                            heard.push(stream.event().json());
                        }
                        assert!(!matches!(stream.next_event(Duration::from_millis(300)), Item::Event(_)), "twice");
                    }
                    (own, heard)
                })
            })
            .collect();
        let posting: Vec<_> = (0..WRITERS)
            .map(|index| {
                scope.spawn(move || {
                    let bus = bus(index);
                    let ids: Vec<u64> = (0..MESSAGES)
                        .map(|number| bus.post(writers[index], format!(r#"{{"writer":{index},"number":{number}}}"#)))
                        .collect();
                    writing.fetch_sub(1, Ordering::SeqCst);
                    ids
                })
            })
            .collect();
        let posted: Vec<_> = posting.into_iter().map(|writer| writer.join().unwrap()).collect();
        let heard: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        (posted, heard)
    });

    // The one order: that of the ids the writers were answered.
    let mut all = BTreeMap::new();
    for (writer, ids) in posted.iter().enumerate() {
        assert!(ids.is_sorted_by(|a, b| a < b), "a writer's own messages come in his order");
        for (number, id) in ids.iter().enumerate() {
            assert_eq!(all.insert(*id, (writer, number)), None, "{id} was given out twice");
        }
    }
    assert_eq!(all.len(), WRITERS * MESSAGES);
    for (own, heard) in heard {
        let expected: Vec<_> = all
            .iter()
            .filter(|(_, (writer, _))| Some(writers[*writer]) != own)
            .map(|(id, (writer, number))| {
                json!({"id": id, "user": writers[*writer], "data": {"writer": writer, "number": number}})
            })
            .collect();
        assert_eq!(heard.len(), expected.len());
        assert!(heard == expected, "a reader has heard something else, or in another order");
    }
}

/// A minute is not enough on a busy machine, and nothing may die of old age here.
pub const PATIENT: (&str, &str) = ("RELAY_MESSAGE_LIFETIME", "600");

#[test]
fn sixteen_writers_are_heard_by_everybody_in_one_order_through_a_web_server() {
    let Some(relay) = Door::Lighttpd.start_with(&[PATIENT]) else { return };
    storm(&*relay, &*relay);
}

#[test]
fn sixteen_writers_are_heard_by_everybody_in_one_order_through_serve_and_cgi_at_once() {
    let relay = Serve::with(&[PATIENT]);
    storm(&relay, &relay.cgi());
}
