//! What one damaged, absent or crowding user of the store must not cost the others.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde_json::json;

use crate::bare::Bare;
use crate::place::{LONG, until};
use crate::relay::{Relay as _, Talk as _};
use crate::serve::Serve;

/// The mailboxes of a session's clients.
fn mailboxes(session: &Path) -> Vec<PathBuf> {
    fs::read_dir(session.join("clients")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_damaged_mailbox_does_not_keep_the_other_clients_from_a_broadcast() {
    let relay = Bare::new();
    let (host, _stream) = relay.listening_host();
    let mut clients: Vec<_> = (0..6).map(|_| relay.listening_client(&host.id)).collect();
    let unopened = relay.join(&host.id);
    let damaged = crate::token::payload(&unopened)["clientId"].as_str().unwrap().to_owned();
    fs::create_dir(relay.sessions()[0].join("clients").join(&damaged).join("stream")).unwrap();
    let answer = relay.send(&host.token, "1").expect(200).json();
    assert_eq!(answer.as_object().unwrap().len(), 7, "{answer}");
    assert_eq!(answer[&damaged], json!(false), "{answer}");
    for client in &mut clients {
        assert_eq!(answer[&client.id], json!(true), "{answer}");
        assert_eq!(client.stream.body(), json!(1));
    }
    assert!(!relay.log().is_empty(), "the operator is told");
}

/// How many writes a thread has made.
fn writes(task: &Path) -> u64 {
    let io = fs::read_to_string(task.join("io")).unwrap_or_default();
    let count = io.lines().find_map(|line| line.strip_prefix("syscw: "));
    count.map_or(0, |count| count.parse().unwrap())
}

#[test]
fn the_streams_of_the_server_leave_the_sweep_to_its_own_thread() {
    // They look after things every 5 s, and there is nothing else for them to do or to say.
    let serve = Serve::with(&[("RELAY_KEEP_ALIVE", "600")]);
    let (host, _stream) = serve.listening_host();
    // Not all at once, or they would all look at a moment at which somebody has swept already.
    let pause = || std::thread::sleep(Duration::from_millis(50));
    let _clients: Vec<_> = (0..12)
        .map(|_| {
            pause();
            serve.listening_client(&host.id)
        })
        .collect();
    let _bus: Vec<_> = (0..12)
        .map(|_| {
            pause();
            serve.listen_at("/bus/news", "events", &[]).unwrap_or_else(|reply| panic!("{reply:?}"))
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let tasks: Vec<PathBuf> = fs::read_dir(format!("/proc/{}/task", serve.pid().as_raw_nonzero()))
        .unwrap()
        .map(|task| task.unwrap().path())
        .collect();
    let before: Vec<u64> = tasks.iter().map(|task| writes(task)).collect();
    assert!(before.iter().sum::<u64>() > 0, "nothing is known of the threads' writes");
    let swept = || fs::metadata(serve.data().join("sweep")).unwrap().modified().unwrap();
    let last_sweep = swept();
    std::thread::sleep(Duration::from_secs(12));
    assert!(swept() > last_sweep, "somebody sweeps");
    let busy = tasks.iter().zip(&before).filter(|&(task, before)| writes(task) > *before).count();
    assert!(tasks.len() > 24 && busy <= 1, "{busy} of {} threads have written something", tasks.len());
}

#[test]
fn a_broadcast_wakes_its_clients_after_it_has_let_go_of_the_lock() {
    const CLIENTS: usize = 60;
    let relay = Bare::with(&[("RELAY_SESSION_LIFETIME", "600"), ("RELAY_MESSAGE_LIFETIME", "600")]);
    let (host, _stream) = relay.listening_host();
    (0..CLIENTS).for_each(|_| _ = relay.join(&host.id));
    let session = relay.sessions().remove(0);
    let lock = File::open(session.join("session.json")).unwrap();
    let mut held = 0;
    for _ in 0..5 {
        let wakes: Vec<_> = mailboxes(&session)
            .iter()
            .map(|mailbox| {
                let _ = fs::remove_file(mailbox.join("wake"));
                rustix::fs::mkfifoat(rustix::fs::CWD, mailbox.join("wake"), Mode::RUSR | Mode::WUSR).unwrap();
                rustix::fs::open(mailbox.join("wake"), OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).unwrap()
            })
            .collect();
        let sent = std::thread::scope(|scope| {
            let sent = scope.spawn(|| relay.send(&host.token, "1").expect(200).json());
            let mut fds: Vec<_> = wakes.iter().map(|wake| PollFd::new(wake, PollFlags::IN)).collect();
            let limit = Timespec { tv_sec: LONG.as_secs().cast_signed(), tv_nsec: 0 };
            assert!(poll(&mut fds, Some(&limit)).unwrap() > 0, "nobody knocks");
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_ok() {
                rustix::fs::flock(&lock, FlockOperation::Unlock).unwrap();
            } else {
                held += 1;
            }
            sent.join().unwrap()
        });
        assert_eq!(sent.as_object().unwrap().len(), CLIENTS, "{sent}");
        until("all have been knocked at", LONG, || {
            wakes.iter().all(|wake| {
                poll(&mut [PollFd::new(wake, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
            })
        });
    }
    // A sweep may have it now and then.
    assert!(held <= 1, "{held} of 5 times whoever was woken first found the lock held");
}

#[test]
fn a_crowd_that_comes_and_goes_does_not_grow_a_queue_past_its_limit() {
    const LIMIT: u64 = 1000;
    let relay = Bare::with(&[("RELAY_MAX_QUEUE", "1000")]);
    // It has not opened its stream yet, so nothing is ever taken from its queue.
    let host = relay.host("");
    let client = relay.join(&host.id);
    relay.send(&client, "\"before\"").expect(200);
    let mut last = None;
    for _ in 0..30 {
        let client = relay.listening_client(&host.id);
        last = Some(client.id.clone());
        client.stream.hang_up();
    }
    let size = fs::metadata(relay.sessions()[0].join("queue")).unwrap().len();
    // A header, the limit of messages, and as much for what the relay tells.
    assert!(size <= 2 * LIMIT + 40, "{size} bytes");
    // What was there is given, and from then on there is room again.
    let mut stream = relay.open(&host.token);
    assert_eq!(stream.body(), json!("before"));
    let left = relay.listening_client(&host.id);
    left.stream.hang_up();
    let start = Instant::now();
    loop {
        let event = stream.event();
        assert_ne!(Some(event.json()["body"].as_str().unwrap()), last.as_deref(), "there was no room for that");
        if event.json()["body"] == json!(left.id) {
            break;
        }
        assert!(start.elapsed() < LONG);
    }
}
