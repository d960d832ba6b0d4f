//! Many at once, killed at any moment: nothing that was answered 200 is lost, nothing comes twice, nothing stays behind.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::bare::{Bare, finish};
use crate::place::{LONG, everything_below, fifos, node_files, until};
use crate::relay::{Call, Talk as _};
use crate::stream::{Event, Item};

/// Numbers that look random and are the same in every run (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }

    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("an index")
    }
}

/// Settings under which nothing is refused or forgotten while a test takes its time.
pub const PATIENT: [(&str, &str); 4] = [
    ("RELAY_GRACE", "600"),
    ("RELAY_SESSION_LIFETIME", "600"),
    ("RELAY_MESSAGE_LIFETIME", "600"),
    ("RELAY_MAX_QUEUE", "1000000000"),
];

#[test]
fn twenty_writers_reach_a_host_whose_stream_is_killed_ten_times() {
    const WRITERS: usize = 20;
    const MESSAGES: usize = 500;
    const KILLS: usize = 10;
    let relay = Bare::with(&PATIENT);
    let (host, mut stream) = relay.listening_host();
    let tokens: Vec<String> = (0..WRITERS).map(|_| relay.join(&host.id)).collect();

    let mut heard: Vec<Vec<usize>> = vec![Vec::new(); WRITERS];
    thread::scope(|scope| {
        for (writer, token) in tokens.iter().enumerate() {
            let relay = &relay;
            scope.spawn(move || {
                for number in 0..MESSAGES {
                    relay.send(token, json!([writer, number]).to_string()).expect(200);
                }
            });
        }
        let mut count = 0;
        let mut take = |event: Event| {
            let body = event.body();
            let part = |at: usize| usize::try_from(body[at].as_u64().expect("a number")).expect("a small one");
            heard[part(0)].push(part(1));
            count += 1;
            count
        };
        let mut kills = 0;
        loop {
            let count = take(stream.event());
            if count == WRITERS * MESSAGES {
                break;
            }
            if kills < KILLS && count > (kills + 1) * WRITERS * MESSAGES / (KILLS + 2) {
                kills += 1;
                stream.signal(Signal::KILL);
                // What it had written is in the pipe, as it is on the line to a browser: that may still hear it, all but
                // a torn last event, or lose it, and ask for it again.
                if kills % 2 == 0 {
                    for event in stream.rest() {
                        take(event);
                    }
                }
                let last = stream.last_id.clone();
                stream = relay.resume(&host.token, &last);
            }
        }
        assert_eq!(kills, KILLS);
    });
    let in_order: Vec<usize> = (0..MESSAGES).collect();
    for (writer, numbers) in heard.iter().enumerate() {
        assert!(*numbers == in_order, "writer {writer}: {numbers:?}");
    }
    stream.expect_silence(Duration::from_millis(500));
}

#[test]
fn writers_killed_at_any_moment_never_corrupt_a_queue() {
    const THREADS: u64 = 4;
    const WRITES: u64 = 120;
    const LAST: u64 = u64::MAX;
    let relay = Bare::with(&PATIENT);
    let (host, mut stream) = relay.listening_host();
    // Long ones give a kill time to fall into the middle of a write.
    let text = |seed: u64, length: usize| -> String {
        let mut random = Random::new(seed);
        (0..length).map(|_| char::from(b'a' + u8::try_from(random.below(26)).unwrap())).collect()
    };
    let answered = Mutex::new(HashSet::new());
    let killed = AtomicU64::new(0);
    let heard = thread::scope(|scope| {
        let writers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (relay, answered, killed, host_id) = (&relay, &answered, &killed, &host.id);
                scope.spawn(move || {
                    let mut random = Random::new(100 + thread);
                    let token = relay.join(host_id);
                    let query = format!("token={token}");
                    for number in 0..WRITES {
                        let key = thread * WRITES + number;
                        let length = [10, 3_000, 60_000, 400_000][random.index(4)];
                        let body = json!([key, text(key, length)]).to_string();
                        let process = relay.start(&Call { query: &query, body: body.as_bytes(), ..Call::default() });
                        if random.below(4) > 0 {
                            thread::sleep(Duration::from_micros(random.below(2_500)));
                            crate::place::kill(rustix::process::Pid::from_child(&process), Signal::KILL);
                        }
                        let (output, status) = finish(process);
                        killed.fetch_add(u64::from(!status.success()), Ordering::Relaxed);
                        // An answer counts once it is whole, killed afterwards or not.
                        let output = String::from_utf8_lossy(&output);
                        if output.starts_with("Status: 200") && output.trim_end().ends_with("{}") {
                            answered.lock().unwrap().insert(key);
                        }
                    }
                })
            })
            .collect();
        let mut heard: Vec<(u64, Value)> = Vec::new();
        let mut take = |limit| match stream.next_event(limit) {
            Item::Event(event) => {
                let body = event.body();
                let key = body[0].as_u64().expect("a key");
                heard.push((key, body[1].clone()));
                key == LAST
            }
            Item::Nothing => false,
            other => panic!("{other:?}"),
        };
        while !writers.iter().all(thread::ScopedJoinHandle::is_finished) {
            take(Duration::from_millis(20));
        }
        // Whatever the kills left behind, the next message comes through, and after all before it.
        relay.send(&relay.join(&host.id), json!([LAST, ""]).to_string()).expect(200);
        until("the last message arrives", LONG, || take(LONG));
        heard
    });
    let mut times: HashMap<u64, u32> = HashMap::new();
    for (key, body) in heard.iter().filter(|(key, _)| *key != LAST) {
        *times.entry(*key).or_default() += 1;
        let body = body.as_str().expect("a text");
        assert!(body == text(*key, body.len()), "message {key} arrived changed");
    }
    let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "delivered more than once: {twice:?}");
    let answered = answered.into_inner().unwrap();
    let lost: Vec<_> = answered.iter().filter(|key| !times.contains_key(key)).collect();
    assert!(lost.is_empty(), "answered 200 but lost: {lost:?}");
    let killed = killed.into_inner();
    assert!(
        killed >= WRITES / 2 && answered.len() as u64 >= WRITES / 2,
        "{killed} killed, {} answered",
        answered.len()
    );
}

/// Lifetimes as short as a test can wait for, and processes that do nothing but sweep.
#[test]
fn sweeping_never_touches_the_living_and_leaves_nothing_of_the_dead() {
    let relay = Bare::with(&[("RELAY_SESSION_LIFETIME", "3"), ("RELAY_MESSAGE_LIFETIME", "10")]);
    let (idle, mut idle_stream) = relay.listening_host();
    let mut idle_client = relay.listening_client(&idle.id);
    let (speaker, speaker_stream) = relay.listening_host();
    let mut hearer = relay.listening_client(&speaker.id);
    let hearer_id = hearer.id.clone();
    let over = AtomicBool::new(false);
    let repeat = |job: &mut dyn FnMut()| {
        let mut rounds = 0;
        while !over.load(Ordering::Relaxed) {
            job();
            rounds += 1;
        }
        assert!(rounds > 2, "a job that ran {rounds} times shows nothing");
    };
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| repeat(&mut || relay.sweep()));
            // Some register, are joined, get a message, and never come.
            scope.spawn(|| {
                repeat(&mut || {
                    let host = relay.host("");
                    relay.send(&relay.join(&host.id), "1").expect(200);
                });
            });
            // Some go on for longer than a lifetime, with clients that come and go.
            scope.spawn(|| {
                let (host, mut host_stream) = relay.listening_host();
                repeat(&mut || {
                    let mut client = relay.listening_client(&host.id);
                    relay.send(&client.token, "2").expect(200);
                    let event = host_stream.event();
                    assert_eq!(event.body(), json!(2));
                    relay.send(&event.response_token(), "3").expect(200);
                    assert_eq!(client.stream.body(), json!(3));
                    relay.send(&host.token, "4").expect(200);
                    assert_eq!(client.stream.body(), json!(4));
                    client.stream.hang_up();
                    host_stream.expect_closed("client_closed", &client.id);
                });
            });
        }
        // A host that only listens is there for everybody who asks, and a client that only listens hears everything.
        scope.spawn(|| {
            repeat(&mut || {
                relay.join(&idle.id);
                thread::sleep(Duration::from_millis(50));
            });
        });
        scope.spawn(|| {
            repeat(&mut || {
                let answer = relay.send(&speaker.token, r#""heard""#).expect(200).json();
                assert_eq!(answer, json!({&*hearer_id: true}));
                assert_eq!(hearer.stream.body(), json!("heard"));
                thread::sleep(Duration::from_millis(50));
            });
        });
        thread::sleep(Duration::from_secs(8));
        over.store(true, Ordering::Relaxed);
    });
    // One pair said nothing in all that time.
    relay.send(&idle_client.token, "5").expect(200);
    let event = idle_stream.event();
    assert_eq!(event.body(), json!(5));
    relay.send(&event.response_token(), "6").expect(200);
    assert_eq!(idle_client.stream.body(), json!(6));

    idle_client.stream.hang_up();
    idle_stream.hang_up();
    drop((hearer, speaker_stream));
    let files = || -> Vec<PathBuf> {
        everything_below(&relay.data().join("hosts")).into_iter().filter(|path| !path.is_dir()).collect()
    };
    until("nothing of the dead is left", LONG, || {
        relay.sweep();
        relay.sessions().is_empty() && node_files(&relay.data()).is_empty() && fifos(&relay.data()).is_empty()
    });
    // Files of the relay itself may stay, but not one for each session that there ever was.
    assert!(files().len() <= 256, "{:?}", files());
}

/// The owner of a host sets up no cron job: requests do the sweeping.
#[test]
fn a_relay_in_use_sweeps_by_itself() {
    let relay = Bare::with(&[("RELAY_SESSION_LIFETIME", "2")]);
    let dead: Vec<PathBuf> = {
        for _ in 0..30 {
            relay.host("");
        }
        relay.sessions()
    };
    assert!(dead.len() > 10, "only {} sessions are left to die", dead.len());
    until("dead sessions are swept by other requests", LONG, || {
        relay.post("action=host&hostId=living", "");
        !dead.iter().any(|session| session.exists())
    });
}
