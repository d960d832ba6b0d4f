//! What one damaged, absent or crowding user of the store must not cost the others.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::Signal;
use serde_json::json;

use crate::bare::{Bare, timed};
use crate::place::{LONG, damage_member, fifos, files_of, kill, log_of_host, node_files, until};
use crate::relay::{Call, Relay as _, Talk as _};
use crate::serve::Serve;

#[test]
fn a_damaged_member_does_not_keep_the_other_clients_from_a_broadcast() {
    let relay = Bare::new();
    let (host, _stream) = relay.listening_host();
    let mut clients: Vec<_> = (0..6).map(|_| relay.listening_client(&host.id)).collect();
    let unopened = relay.join(&host.id);
    let damaged = crate::token::payload(&unopened)["clientId"].as_str().unwrap().to_owned();
    damage_member(&relay.sessions()[0], &damaged);
    let answer = relay.send(&host.token, "1").expect(200).json();
    assert_ne!(answer[&damaged], json!(true), "{answer}");
    for client in &mut clients {
        assert_eq!(answer[&client.id], json!(true), "{answer}");
        assert_eq!(client.stream.body(), json!(1));
    }
    assert!(!relay.log().is_empty(), "the operator is told");
}

/// How many writes a thread has made, and of how many bytes.
fn writes(task: &Path) -> [u64; 2] {
    let io = fs::read_to_string(task.join("io")).unwrap_or_default();
    let of = |name: &str| io.lines().find_map(|line| line.strip_prefix(name)).map_or(0, |n| n.parse().unwrap());
    [of("syscw: "), of("wchar: ")]
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
    let before: Vec<[u64; 2]> = tasks.iter().map(|task| writes(task)).collect();
    assert!(before.iter().any(|[count, _]| *count > 0), "nothing is known of the threads' writes");
    let swept = || fs::metadata(serve.data().join("sweep")).unwrap().modified().unwrap();
    let last_sweep = swept();
    std::thread::sleep(Duration::from_secs(12));
    assert!(swept() > last_sweep, "somebody sweeps");
    // Threads wake each other by eight bytes at a time; whoever sweeps writes fewer.
    let has_written = |task: &Path, [count, bytes]: [u64; 2]| {
        let [count_now, bytes_now] = writes(task);
        bytes_now - bytes != 8 * (count_now - count)
    };
    let busy: Vec<_> = tasks.iter().zip(&before).filter(|&(task, before)| has_written(task, *before)).collect();
    // The streams run in the runtime's own threads, which have names.
    let name = |task: &Path| fs::read_to_string(task.join("comm")).unwrap();
    let of_streams = busy.iter().filter(|(task, _)| name(task).starts_with("tokio")).count();
    assert!(busy.len() <= 1 && of_streams == 0, "{of_streams} of {} that have written something", busy.len());
}

#[test]
fn a_broadcast_wakes_its_clients_after_it_has_let_go_of_the_lock() {
    const CLIENTS: usize = 40;
    let relay = Bare::with(&[("RELAY_KEEP_ALIVE", "600")]);
    let (host, stream) = relay.listening_host();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| relay.listening_client(&host.id)).collect();
    let lock = File::open(relay.sessions().remove(0)).unwrap();
    let is_free = || {
        let locked = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_ok();
        rustix::fs::flock(&lock, FlockOperation::Unlock).unwrap();
        locked
    };
    let pids: Vec<_> = clients.iter().map(|client| client.stream.pid()).chain([stream.pid()]).collect();
    let signal = |signal: Signal| {
        for &pid in &pids {
            kill(pid, signal);
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let mut held = 0;
    for _ in 0..5 {
        // As they are stopped, nobody but this test takes out of their FIFOs what is knocked with.
        until("they have stopped with nothing in their hands", LONG, || {
            signal(Signal::CONT);
            signal(Signal::STOP);
            is_free()
        });
        let wakes: Vec<_> = fifos(&relay.data())
            .iter()
            .map(|path| rustix::fs::open(path, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).unwrap())
            .collect();
        assert!(wakes.len() >= CLIENTS, "{} FIFOs", wakes.len());
        for wake in &wakes {
            while rustix::io::read(wake, &mut [0; 4096]).is_ok_and(|count| count > 0) {}
        }
        let sent = std::thread::scope(|scope| {
            let sent = scope.spawn(|| relay.send(&host.token, "1").expect(200).json());
            let mut fds: Vec<_> = wakes.iter().map(|wake| PollFd::new(wake, PollFlags::IN)).collect();
            let limit = Timespec { tv_sec: LONG.as_secs().cast_signed(), tv_nsec: 0 };
            assert!(poll(&mut fds, Some(&limit)).unwrap() > 0, "nobody knocks");
            held += u32::from(!is_free());
            sent.join().unwrap()
        });
        assert_eq!(sent.as_object().unwrap().len(), CLIENTS, "{sent}");
        let knocked = wakes.iter().filter(|wake| {
            poll(&mut [PollFd::new(wake, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
        });
        assert!(knocked.count() >= CLIENTS, "all have been knocked at");
        signal(Signal::CONT);
        for client in &mut clients {
            assert_eq!(client.stream.body(), json!(1));
        }
    }
    // A sweep may have it now and then.
    assert!(held <= 1, "{held} of 5 times whoever was woken first found the lock held");
}

#[test]
fn looking_whether_somebody_is_there_writes_nothing() {
    let relay = Bare::with(&[("RELAY_GRACE", "50")]);
    let (host, mut stream) = relay.listening_host();
    let client = relay.join(&host.id);
    stream.signal(Signal::KILL);
    let files = || -> Vec<_> {
        let files = [files_of(&relay.sessions()[0]), node_files(&relay.data())].concat();
        files
            .into_iter()
            .map(|file| fs::metadata(&file).map(|about| (file, about.modified().unwrap())).unwrap())
            .collect()
    };
    let before = files();
    std::thread::sleep(Duration::from_millis(50));
    // It looks whether a host is there under this id, and one is: within its grace.
    relay.post(&format!("action=host&hostId={}", host.id), "").expect_error(400);
    let query = format!("token={client}");
    relay.call(&Call { method: "HEAD", query: &query, ..Call::default() }).expect(200);
    assert_eq!(files(), before);
}

#[test]
fn a_join_past_the_limit_costs_no_look_at_each_client() {
    const CLIENTS: usize = 1000;
    let relay = Serve::with(&[("RELAY_MAX_CLIENTS", "10000"), ("RELAY_SESSION_LIFETIME", "600")]);
    let (few, many) = (relay.listening_host(), relay.listening_host());
    let join = |host: &str, count: usize| (0..count).for_each(|_| _ = relay.join(host));
    join(&few.0.id, 10);
    join(&many.0.id, CLIENTS);
    let refused_after = |host: &str, most: usize| {
        let cgi = Bare::with(&[
            ("RELAY_DATA_DIR", relay.data().to_str().unwrap()),
            ("RELAY_MAX_CLIENTS", &most.to_string()),
            ("RELAY_SESSION_LIFETIME", "600"),
        ]);
        let refused = || cgi.try_join(host).expect_error(503);
        // The shortest of many: on a busy machine most are held up.
        (0..40).map(|_| timed(refused).1).min().unwrap()
    };
    let (few, many) = (refused_after(&few.0.id, 10), refused_after(&many.0.id, CLIENTS));
    assert!(many < 5 * few, "{few:?} with 10 clients, {many:?} with {CLIENTS}");
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
    let size = fs::metadata(log_of_host(&relay.sessions()[0])).unwrap().len();
    // A header, the limit of messages, as much for what the relay tells, and the heads of the first and the last record.
    assert!(size <= 2 * LIMIT + 400, "{size} bytes");
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
