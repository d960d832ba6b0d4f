//! What the contract of all homes does not ask: several processes, and a Redis that goes and comes.

use super::super::testing::{TestServer, sooner_or_later};
use super::*;
use crate::config::redis::Address;
use crate::gateway::run_blocking;
use crate::store::files::Files;
use crate::store::redis::reply::Reply;
use std::thread;

const LIMITS: Limits = Limits { sessions: 100, senders: 2, lifetime: Duration::from_secs(3600) };

fn process(address: &Address) -> Redis {
    Redis::elsewhere(address, Files::new(std::path::Path::new("/nowhere")))
}

fn make(redis: &Redis) -> NewSession {
    run_blocking(redis.make_session(false, &LIMITS)).unwrap().unwrap()
}

fn host(session: &NewSession) -> Visitor {
    Visitor { tokens: vec![session.token.clone()], address: None }
}

fn receive(redis: &Redis, session: &NewSession) -> Result<WaitingReceiver, Denied> {
    run_blocking(redis.receive(&session.id, &Visitor::default(), &LIMITS))
}

fn wait_to_send(redis: &Redis, session: &NewSession) -> Result<WaitingSender, Denied> {
    run_blocking(redis.wait_to_send(&session.id, &host(session), &LIMITS))
}

/// A guest that receives what the host sends, which has said its first word.
fn met(from: &Redis, to: &Redis, session: &NewSession) -> (Receiver, Sender, WaitingSender) {
    let mut receiver = receive(to, session).unwrap();
    let mut waiting = wait_to_send(from, session).unwrap();
    let mut sender = run_blocking(waiting.take_receiver()).unwrap().unwrap();
    assert!(sender.send_head(b"head", b"") && run_blocking(sender.exchange()));
    assert_eq!(run_blocking(receiver.look()).unwrap().unwrap(), b"head");
    let mut receiver = receiver.begin();
    receiver.took(0);
    run_blocking(receiver.exchange(None));
    (receiver, sender, waiting)
}

fn take(receiver: &mut Receiver) -> Vec<u8> {
    let mut bytes = Vec::new();
    let got = receiver.give(|some| {
        bytes.extend_from_slice(some);
        some.len()
    });
    receiver.took(got as u64);
    bytes
}

/// Sends as a request does, whatever Redis does. How many of the bytes were taken; as many as were sent before the receiver
/// has gone.
fn send(mut sender: Sender, bytes: &[u8]) -> Option<u64> {
    let mut left = bytes;
    while run_blocking(sender.exchange()) {
        if let Ok(written) = sender.write(&left[..left.len().min(50_000)]) {
            left = &left[written..];
        } else {
            thread::sleep(Duration::from_millis(1));
        }
        if left.is_empty() {
            sender.end(true);
        }
    }
    sender.taken()
}

/// Receives as a request does, until so many bytes have come, or the end.
fn read_some(receiver: &mut Receiver, all: &mut Vec<u8>, size: usize) {
    sooner_or_later(|| {
        run_blocking(receiver.exchange(None));
        while receiver.there() > 0 && all.len() < size {
            all.extend(take(receiver));
            run_blocking(receiver.exchange(None));
        }
        (all.len() >= size || receiver.has_ended()).then_some(())
    });
}

/// The same up to the end; the bytes, and whether these were all.
fn read(mut receiver: Receiver) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    read_some(&mut receiver, &mut all, usize::MAX);
    (all, receiver.is_complete())
}

/// Bytes of which none that is missing, or comes twice, goes unnoticed.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(size).collect()
}

#[test]
fn whoever_has_sent_keeps_the_place_of_its_session() {
    let Some(server) = TestServer::start(&[]) else { return };
    let redis = process(&server.address());
    let session = make(&redis);
    let (_receiver, _sender, waiting) = met(&redis, &redis, &session);
    let place = ["ZSCORE", "uhst:pipes", &hash(&session.id)];
    // As after a body that took longer than the lifetime.
    server.ask(&["ZREM", "uhst:pipes", &hash(&session.id)]);
    run_blocking(waiting.finish());
    assert!(matches!(server.ask(&place), Reply::BulkString(_)), "it is among those that are counted and swept");
}

#[test]
fn where_redis_has_no_more_memory_one_piece_is_under_way_and_the_body_gets_through() {
    let Some(server) = TestServer::start(&[]) else { return };
    let redis = process(&Address { max_data: Some(1), ..server.address() });
    let (receiver, mut sender, _waiting) = met(&redis, &redis, &make(&redis));
    let (bytes, mut sent) = (noise(180_000), 0);
    while let Ok(written) = sender.write(&bytes[sent..]) {
        sent += written;
        assert!(run_blocking(sender.exchange()));
    }
    assert_eq!(sent, 2 * 65_536, "one is under way, and one has yet to go");
    let rest = bytes[sent..].to_vec();
    let reading = thread::spawn(|| read(receiver));
    send(sender, &rest);
    assert!(reading.join().unwrap() == (bytes, true));
}

#[test]
fn no_more_is_under_way_than_a_window_whatever_is_sent() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (here, there) = (process(&server.address()), process(&server.address()));
    let (mut receiver, mut sender, _waiting) = met(&here, &there, &make(&here));
    let (piece, mut sent) = (noise(65_536), 0);
    while let Ok(written) = sender.write(&piece) {
        sent += written;
        assert!(run_blocking(sender.exchange()));
    }
    assert_eq!(sent, 9 * 65_536, "eight in Redis, and one in memory");
    let held =
        || server.keys().iter().filter(|key| key.ends_with(":bytes")).map(|key| server.ask(&["XLEN", key])).next();
    assert_eq!(held(), Some(super::super::reply::Reply::Integer(8)));
    assert_eq!(receiver.there(), 0);
    sooner_or_later(|| {
        run_blocking(receiver.exchange(None));
        (receiver.there() > 0).then_some(())
    });
    for _ in 0..10 {
        run_blocking(receiver.exchange(None));
        assert_eq!(receiver.there(), 65_536, "it takes no more as long as its client does not");
    }
    assert_eq!(sender.write(&piece).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(take(&mut receiver), piece);
    run_blocking(receiver.exchange(None));
    sooner_or_later(|| sender.awaited()[1].as_ref().unwrap().is_ready().then_some(()));
    assert!(run_blocking(sender.exchange()));
    assert_eq!(sender.write(&piece).unwrap(), 65_536, "there is room again");
    assert_eq!(sender.taken(), Some(65_536));
}

#[test]
fn what_a_killed_sender_has_sent_is_delivered_and_cut_short_within_seconds() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (killed, here) = (process(&server.address()), process(&server.address()));
    let session = make(&here);
    let (receiver, mut sender, waiting) = met(&killed, &here, &session);
    sender.write(b"all that has come").unwrap();
    assert!(run_blocking(sender.exchange()));
    std::mem::forget((sender, waiting));
    assert_eq!(read(receiver), (b"all that has come".to_vec(), false));
    sooner_or_later(|| {
        let one = wait_to_send(&here, &session).ok()?;
        let two = wait_to_send(&here, &session).ok()?;
        Some((one, two))
    });
}

#[test]
fn a_sender_hears_within_seconds_that_its_receiver_was_killed_and_how_much_was_taken() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (here, killed) = (process(&server.address()), process(&server.address()));
    let session = make(&here);
    let (mut receiver, mut sender, _waiting) = met(&here, &killed, &session);
    sender.write(b"12345").unwrap();
    assert!(run_blocking(sender.exchange()));
    sooner_or_later(|| {
        run_blocking(receiver.exchange(None));
        (receiver.there() > 0).then_some(())
    });
    take(&mut receiver);
    run_blocking(receiver.exchange(None));
    std::mem::forget(receiver);
    assert!(matches!(receive(&here, &session), Err(Denied::ReceiverThere)));
    assert_eq!(send(sender, b"6789"), Some(5));
    receive(&here, &session).unwrap();
}

#[test]
fn whoever_waits_and_is_killed_gives_way_within_seconds() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (killed, here) = (process(&server.address()), process(&server.address()));
    let session = make(&here);
    std::mem::forget(receive(&killed, &session).unwrap());
    std::mem::forget([(); 2].map(|()| wait_to_send(&killed, &session).unwrap()));
    assert!(matches!(receive(&here, &session), Err(Denied::ReceiverThere)));
    assert!(matches!(wait_to_send(&here, &session), Err(Denied::TooManySenders)));
    let _receiver = sooner_or_later(|| receive(&here, &session).ok());
    sooner_or_later(|| wait_to_send(&here, &session).ok());
}

#[test]
fn whoever_waits_for_longer_than_a_killed_one_would_stays() {
    let Some(server) = TestServer::start(&[]) else { return };
    let here = process(&server.address());
    let session = make(&here);
    let (mut receiver, mut waiting) = (receive(&here, &session).unwrap(), wait_to_send(&here, &session).unwrap());
    let _other = wait_to_send(&here, &session).unwrap();
    for _ in 0..7 {
        thread::sleep(Duration::from_secs(1));
        assert_eq!(run_blocking(receiver.look()).unwrap(), None);
        assert!(matches!(receive(&here, &session), Err(Denied::ReceiverThere)));
    }
    assert!(run_blocking(waiting.take_receiver()).unwrap().is_some());
}

#[test]
fn a_body_is_whole_and_told_so_though_redis_was_away_for_longer_than_a_killed_end_would_have() {
    let Some(mut server) = TestServer::start(&["--appendonly", "yes", "--appendfsync", "always"]) else { return };
    let (here, there) = (process(&server.address()), process(&server.address()));
    let session = make(&here);
    let (mut receiver, sender, waiting) = met(&here, &there, &session);
    let (bytes, mut got) = (noise(9_000_000), Vec::new());
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(sender, &bytes));
        read_some(&mut receiver, &mut got, 3_000_000);
        server.freeze();
        let reading = scope.spawn(|| {
            read_some(&mut receiver, &mut got, 6_000_000);
            (receiver, got)
        });
        thread::sleep(Duration::from_secs(8));
        server.go_on();
        let (mut receiver, mut got) = reading.join().unwrap();
        server.kill();
        server.restart();
        read_some(&mut receiver, &mut got, usize::MAX);
        let is_complete = receiver.is_complete();
        assert!(got == bytes && is_complete, "{} of {} bytes, told to be whole: {is_complete}", got.len(), bytes.len());
        drop(receiver);
        assert_eq!(sending.join().unwrap(), Some(bytes.len() as u64));
    });
    drop(waiting);
}

#[test]
fn a_body_that_redis_has_lost_is_cut_short() {
    let Some(mut server) = TestServer::start(&[]) else { return };
    let (here, there) = (process(&server.address()), process(&server.address()));
    let (receiver, mut sender, waiting) = met(&here, &there, &make(&here));
    sender.write(b"12345").unwrap();
    assert!(run_blocking(sender.exchange()));
    server.kill();
    server.restart();
    let (_, is_complete) = read(receiver);
    assert!(!is_complete);
    assert!(send(sender, b"6789").is_none_or(|taken| taken == 0));
    drop(waiting);
}

/// Whoever asks is told so before it loses patience. The tests' machine may be slow, but not by so much.
fn in_time<T>(work: impl FnOnce() -> T) -> T {
    let began = std::time::Instant::now();
    let done = work();
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    done
}

#[test]
fn what_is_promised_of_a_session_a_replica_has_and_else_it_is_done_when_it_is_asked_for_again() {
    let Some((_primary, replica, address)) = TestServer::start_with_replica() else { return };
    let redis = process(&address);
    // A machine that has much to do may be too slow for the time that a replica has.
    let session = sooner_or_later(|| run_blocking(redis.make_session(true, &LIMITS)).ok().flatten());
    let permit = || run_blocking(redis.permit_guest(&session.id, &host(&session), [127, 0, 0, 1].into(), &LIMITS));
    let remove = || run_blocking(redis.remove_session(&session.id, &host(&session), &LIMITS));
    let guest = Visitor { tokens: vec![], address: Some([127, 0, 0, 1].into()) };
    let too_few = |error: &Error| matches!(error, Error::Remote(Remote { reason: Reason::TooFewReplicas, .. }));
    replica.freeze();
    assert!(in_time(|| run_blocking(redis.make_session(true, &LIMITS))).is_err_and(|error| too_few(&error)));
    assert!(matches!(in_time(permit), Err(Denied::Failed(error)) if too_few(&error)));
    replica.go_on();
    sooner_or_later(|| permit().ok());
    assert_eq!(run_blocking(redis.join_session(&session.id, &guest, &LIMITS)).unwrap(), Role::Guest);
    replica.freeze();
    assert!(matches!(in_time(remove), Err(Denied::Failed(error)) if too_few(&error)));
    replica.go_on();
    // It is done, and the answer was another.
    assert!(matches!(remove(), Err(Denied::UnknownSession)));
}

#[test]
fn a_sender_takes_nobody_whom_a_replica_would_give_to_another() {
    let Some((_primary, replica, address)) = TestServer::start_with_replica() else { return };
    let (here, there) = (process(&address), process(&address));
    let session = sooner_or_later(|| run_blocking(here.make_session(false, &LIMITS)).ok().flatten());
    let mut receiver = receive(&there, &session).unwrap();
    let mut waiting = wait_to_send(&here, &session).unwrap();
    replica.freeze();
    for _ in 0..3 {
        assert!(in_time(|| run_blocking(waiting.take_receiver())).unwrap().is_none());
        assert_eq!(run_blocking(receiver.look()).unwrap(), None);
    }
    replica.go_on();
    let mut sender = sooner_or_later(|| run_blocking(waiting.take_receiver()).unwrap());
    assert!(sender.send_head(b"head", b"body") && run_blocking(sender.exchange()));
    sender.end(true);
    assert_eq!(sooner_or_later(|| run_blocking(receiver.look()).unwrap()), b"head");
    let mut receiver = receiver.begin();
    receiver.took(0);
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(sender, b""));
        assert_eq!(read(receiver), (b"body".to_vec(), true));
        assert_eq!(sending.join().unwrap(), Some(4));
    });
}

#[test]
fn a_body_of_which_a_replica_that_takes_over_has_less_is_cut_short_at_both_ends() {
    let Some((mut primary, replica, address)) = TestServer::start_with_replica() else { return };
    let (here, there) = (process(&address), process(&address));
    let session = make(&here);
    let (mut receiver, mut sender, _waiting) = met(&here, &there, &session);
    replica.ask(&["REPLICAOF", "NO", "ONE"]);
    sender.write(b"12345").unwrap();
    assert!(run_blocking(sender.exchange()));
    let mut got = Vec::new();
    read_some(&mut receiver, &mut got, 5);
    primary.kill();
    let sent = sender.taken();
    sooner_or_later(|| (!run_blocking(sender.exchange())).then_some(()));
    assert!(sender.taken() == sent, "nobody says that more was taken");
    assert_eq!(read(receiver), (vec![], false));
    assert_eq!(got, b"12345");
}

#[test]
fn everything_has_a_time_to_live_and_nothing_is_left_of_what_has_ended() {
    let Some(server) = TestServer::start(&[]) else { return };
    let redis = process(&server.address());
    let session = make(&redis);
    let (receiver, mut sender, waiting) = met(&redis, &redis, &session);
    sender.write(b"bytes").unwrap();
    assert!(run_blocking(sender.exchange()));
    assert_eq!(server.keys().len(), 5, "all kinds of keys are there: {:?}", server.keys());
    assert_eq!(server.immortal(), [""; 0]);
    drop((receiver, sender, waiting));
    run_blocking(redis.remove_session(&session.id, &host(&session), &LIMITS)).unwrap();
    // What a sender may still ask for, for a minute.
    let left = server.keys();
    assert!(left.len() <= 1 && server.immortal().is_empty(), "{left:?}");
}

#[test]
fn a_session_in_which_nobody_has_met_gives_way_to_a_newcomer_after_a_while() {
    let Some(server) = TestServer::start(&[]) else { return };
    let redis = process(&server.address());
    let few = Limits { sessions: 2, ..LIMITS };
    let make = || run_blocking(redis.make_session(false, &few)).unwrap();
    let (one, two) = (make().unwrap(), make().unwrap());
    drop(met(&redis, &redis, &one));
    assert!(make().is_none());
    for session in [&one, &two] {
        let key = format!("uhst:pipe:{{{}}}", hash(&session.id));
        server.ask(&["HINCRBY", &key, "touched", "-70000"]);
    }
    assert!(make().is_some() && make().is_none());
    let is_there = |id: &str| run_blocking(redis.join_session(id, &Visitor::default(), &few)).is_ok();
    assert!(is_there(&one.id) && !is_there(&two.id));
}

#[test]
fn a_pipe_works_in_a_cluster_wherever_it_is() {
    let Some(nodes) = TestServer::start_cluster() else { return };
    let (here, there) = (process(&nodes[0].address()), process(&nodes[1].address()));
    for _ in 0..6 {
        let (receiver, sender, _waiting) = met(&here, &there, &make(&here));
        let bytes = noise(1_000_000);
        thread::scope(|scope| {
            let sending = scope.spawn(|| send(sender, &bytes));
            assert!(read(receiver) == (bytes.clone(), true));
            assert_eq!(sending.join().unwrap(), Some(bytes.len() as u64));
        });
    }
}
