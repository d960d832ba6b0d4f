//! What the contract of all homes does not ask: several processes, and a Redis that goes and comes.

use super::super::testing::{TestServer, sooner_or_later};
use super::far_ends::WaitingFarEnd;
use super::*;
use crate::config::redis::Address;
use crate::gateway::run_blocking;
use crate::ptth::Tripcode;
use crate::store::files::Files;
use crate::store::remote::Reason;
use crate::store::requests::{FarEnds, PtthServer};
use std::slice::from_ref;
use std::time::Duration;

/// A client as ask.rs has it, but for one that gives a far end no time.
const PATIENCE: Patience =
    Patience { look: Duration::ZERO, claim: Duration::from_secs(7), head: Duration::from_secs(5) };

fn process(address: &Address) -> Redis {
    Redis::elsewhere(address, Files::new(std::path::Path::new("/nowhere")))
}

fn registered(redis: &Redis) -> ServerName {
    let name = ServerName::new("s").unwrap();
    let server = PtthServer { tripcode: Tripcode::of("key"), display_name: None, listed: false };
    assert!(run_blocking(redis.register_ptth_server(&name, &server)).unwrap());
    name
}

fn ask(redis: &Redis, server: &ServerName) -> PendingRequest {
    run_blocking(redis.ask(server, &RequestId::fresh().unwrap(), b"request", 1)).unwrap().unwrap()
}

fn listen(redis: &Redis, server: &ServerName) -> WaitingFarEnd {
    run_blocking(redis.listen_for_requests(server)).unwrap()
}

/// The ids of the requests that a far end claims now.
fn claim(far_end: &mut WaitingFarEnd) -> Vec<RequestId> {
    run_blocking(far_end.claim(10)).unwrap().into_iter().map(|claimed| claimed.id).collect()
}

fn answer(redis: &Redis, server: &ServerName, id: &RequestId) -> Sender {
    run_blocking(redis.answer_request(from_ref(server), id)).unwrap().unwrap()
}

/// What becomes of a request whose client looks after it.
fn progress(pending: &mut PendingRequest) -> Progress {
    sooner_or_later(|| match run_blocking(pending.look(&PATIENCE)).unwrap() {
        Progress::Waits => None,
        other => Some(other),
    })
}

#[test]
fn where_redis_has_no_more_memory_nobody_asks() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (here, tight) = (process(&server.address()), process(&Address { max_data: Some(1), ..server.address() }));
    let name = registered(&here);
    let refused = run_blocking(tight.ask(&name, &RequestId::fresh().unwrap(), b"request", 1));
    assert!(matches!(refused, Err(Error::DataFull(full)) if full.limit == 1));
    ask(&here, &name);
}

#[test]
fn a_request_of_a_killed_far_end_is_another_s_after_its_time_and_answered_once() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (killed, here) = (process(&server.address()), process(&server.address()));
    let name = registered(&here);
    let mut pending = ask(&here, &name);
    let mut dead = listen(&killed, &name);
    let id = pending.id.clone();
    assert_eq!(claim(&mut dead), from_ref(&id));
    std::mem::forget(dead);
    let mut far_end = listen(&here, &name);
    sooner_or_later(|| {
        assert_eq!(run_blocking(pending.look(&PATIENCE)).unwrap(), Progress::Waits);
        (claim(&mut far_end) == from_ref(&id)).then_some(())
    });
    let mut sender = answer(&here, &name, &id);
    assert!(sender.send_head(b"head", b"") && run_blocking(sender.exchange()));
    assert_eq!(progress(&mut pending), Progress::Begins(b"head".to_vec()));
    let late = run_blocking(killed.answer_request(&[name], &id)).unwrap();
    assert!(late.is_none(), "it has come to life again");
}

#[test]
fn an_answer_whose_far_end_is_killed_breaks_off_within_seconds_before_and_after_its_head() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (killed, here) = (process(&server.address()), process(&server.address()));
    let name = registered(&here);
    let mut pending = ask(&here, &name);
    std::mem::forget(answer(&killed, &name, &pending.id));
    assert_eq!(progress(&mut pending), Progress::BrokenOff);
    let id = RequestId::fresh().unwrap();
    let mut pending = run_blocking(pending.ask_again(&id, b"request", 1)).unwrap().unwrap();
    let mut sender = answer(&killed, &name, &id);
    assert!(sender.send_head(b"head", b"some") && run_blocking(sender.exchange()));
    std::mem::forget(sender);
    assert_eq!(progress(&mut pending), Progress::Begins(b"head".to_vec()));
    let mut receiver = pending.begin();
    assert_eq!(receiver.take_at_once(4).unwrap(), b"some");
    sooner_or_later(|| {
        run_blocking(receiver.exchange(None));
        receiver.has_ended().then_some(())
    });
    assert!(!receiver.is_complete());
}

#[test]
fn a_request_of_a_killed_client_is_nobody_s_and_counts_for_nothing_within_seconds() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (killed, here) = (process(&server.address()), process(&server.address()));
    let name = registered(&here);
    let dead = ask(&killed, &name);
    let id = dead.id.clone();
    std::mem::forget(dead);
    let ask = || run_blocking(here.ask(&name, &RequestId::fresh().unwrap(), b"request", 1)).unwrap();
    assert!(ask().is_none(), "it may be there");
    let pending = sooner_or_later(ask);
    assert_eq!(claim(&mut listen(&here, &name)), from_ref(&pending.id));
    assert!(run_blocking(here.answer_request(from_ref(&name), &id)).unwrap().is_none());
}

#[test]
fn a_far_end_that_was_killed_is_not_listening_within_seconds_and_one_that_waits_is() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (killed, here) = (process(&server.address()), process(&server.address()));
    let name = registered(&here);
    let far_ends = || run_blocking(here.far_ends(&name)).unwrap();
    assert_eq!(far_ends(), FarEnds { seen: None, is_listening: false });
    std::mem::forget(listen(&killed, &name));
    assert!(far_ends().is_listening);
    sooner_or_later(|| (!far_ends().is_listening).then_some(()));
    assert!(far_ends().seen.unwrap().elapsed().unwrap() >= Duration::from_secs(4));
    let mut far_end = listen(&here, &name);
    for _ in 0..7 {
        std::thread::sleep(Duration::from_secs(1));
        assert!(far_ends().is_listening);
        assert_eq!(claim(&mut far_end), []);
    }
}

#[test]
fn a_request_waits_for_a_redis_that_is_away_and_is_answered_once_it_is_back() {
    let Some(mut server) = TestServer::start(&["--appendonly", "yes", "--appendfsync", "always"]) else { return };
    let (here, there) = (process(&server.address()), process(&server.address()));
    let name = registered(&here);
    let mut pending = ask(&here, &name);
    server.freeze();
    assert_eq!(run_blocking(pending.look(&PATIENCE)).unwrap(), Progress::Waits);
    std::thread::sleep(Duration::from_secs(6));
    server.go_on();
    assert_eq!(run_blocking(pending.look(&PATIENCE)).unwrap(), Progress::Waits);
    server.kill();
    assert_eq!(run_blocking(pending.look(&PATIENCE)).unwrap(), Progress::Waits);
    server.restart();
    assert_eq!(run_blocking(pending.look(&PATIENCE)).unwrap(), Progress::Waits);
    let mut far_end = listen(&there, &name);
    assert_eq!(claim(&mut far_end), from_ref(&pending.id));
    let mut sender = answer(&there, &name, &pending.id);
    assert!(sender.send_head(b"head", b"") && run_blocking(sender.exchange()));
    assert_eq!(progress(&mut pending), Progress::Begins(b"head".to_vec()));
}

#[test]
fn a_request_that_redis_has_lost_is_asked_again_where_its_server_is_known() {
    let Some(mut server) = TestServer::start(&[]) else { return };
    let here = process(&server.address());
    let name = registered(&here);
    let mut pending = ask(&here, &name);
    server.kill();
    server.restart();
    assert_eq!(progress(&mut pending), Progress::ServerRemoved);
    registered(&here);
    assert_eq!(progress(&mut pending), Progress::BrokenOff);
    let id = RequestId::fresh().unwrap();
    let _again = run_blocking(pending.ask_again(&id, b"request", 1)).unwrap().unwrap();
    assert_eq!(claim(&mut listen(&here, &name)), [id]);
}

#[test]
fn a_server_is_registered_once_a_replica_knows_it_and_else_it_is_told() {
    let Some((_primary, replica, address)) = TestServer::start_with_replica() else { return };
    let redis = process(&address);
    let server = PtthServer { tripcode: Tripcode::of("key"), display_name: None, listed: false };
    let [name, other] = ["s", "other"].map(|name| ServerName::new(name).unwrap());
    // A machine that has much to do may be too slow for the time that a replica has.
    sooner_or_later(|| run_blocking(redis.register_ptth_server(&name, &server)).ok());
    let too_few = |error: Error| matches!(error, Error::Remote(remote) if remote.reason == Reason::TooFewReplicas);
    replica.freeze();
    assert!(run_blocking(redis.register_ptth_server(&other, &server)).is_err_and(too_few));
    assert!(run_blocking(redis.remove_ptth_server(&name)).is_err_and(too_few));
    replica.go_on();
    // It was done all the same, once.
    let done = || run_blocking(redis.register_ptth_server(&other, &server)).ok();
    assert!(!sooner_or_later(done));
    assert!(!sooner_or_later(|| run_blocking(redis.remove_ptth_server(&name)).ok()));
    assert!(run_blocking(redis.ptth_servers()).unwrap().keys().eq([&other]));
}

#[test]
fn everything_has_a_time_to_live_and_nothing_is_left_of_what_has_ended() {
    let Some(server) = TestServer::start(&[]) else { return };
    let redis = process(&server.address());
    let name = registered(&redis);
    let mut pending = ask(&redis, &name);
    let mut far_end = listen(&redis, &name);
    assert_eq!(server.keys().len(), 6, "all kinds of keys are there: {:?}", server.keys());
    assert_eq!(server.immortal(), [""; 0]);
    // What was gone meanwhile comes again.
    assert_eq!(claim(&mut far_end), from_ref(&pending.id));
    run_blocking(redis.give_back(&name, from_ref(&pending.id))).unwrap();
    server.remove(":clients");
    sooner_or_later(|| {
        assert_eq!(run_blocking(pending.look(&PATIENCE)).unwrap(), Progress::Waits);
        (server.keys().len() == 6).then_some(())
    });
    assert_eq!(server.immortal(), [""; 0]);
    let mut sender = answer(&redis, &name, &pending.id);
    assert!(sender.send_head(b"head", b"body") && run_blocking(sender.exchange()));
    assert_eq!(server.immortal(), [""; 0]);
    drop((pending, sender, far_end));
    assert!(run_blocking(redis.remove_ptth_server(&name)).unwrap());
    // What the sender may still ask for, for a minute; and which change of the servers it was.
    let left = server.keys();
    assert!(left.len() <= 2 && server.immortal().is_empty(), "{left:?}");
}

#[test]
fn requests_work_in_a_cluster_wherever_they_are() {
    let Some(nodes) = TestServer::start_cluster() else { return };
    let (here, there) = (process(&nodes[0].address()), process(&nodes[1].address()));
    for name in ["a", "b", "c", "d", "e", "f"].map(|name| ServerName::new(name).unwrap()) {
        let server = PtthServer { tripcode: Tripcode::of("key"), display_name: None, listed: false };
        assert!(run_blocking(here.register_ptth_server(&name, &server)).unwrap());
        let mut far_end = listen(&there, &name);
        let mut pending = ask(&here, &name);
        sooner_or_later(|| far_end.awaited().is_ready().then_some(()));
        assert_eq!(claim(&mut far_end), from_ref(&pending.id));
        let mut sender = answer(&there, &name, &pending.id);
        assert!(sender.send_head(b"head", b"") && run_blocking(sender.exchange()));
        assert_eq!(progress(&mut pending), Progress::Begins(b"head".to_vec()));
    }
}
