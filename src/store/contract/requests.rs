use super::{Done as _, Exchanged as _, Home, homes_near_and_far, is_any_woken, soon, sooner_or_later};
use crate::ptth::{ServerName, Tripcode};
use crate::store::requests::{FarEnds, MOST_CLAIMS, Patience, Progress, PtthServer, RequestId};
use crate::store::{Answer, PendingRequest, Sender, Store, WaitingFarEnd};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(3600);
/// A client that only looks for its answer.
const PATIENT: Patience = Patience { look: LONG, claim: LONG, head: LONG };
/// One that looks after its request each time.
const WATCHFUL: Patience = Patience { look: Duration::ZERO, ..PATIENT };

fn name(text: &str) -> ServerName {
    ServerName::new(text).unwrap()
}

fn server(key: &str) -> PtthServer {
    PtthServer { tripcode: Tripcode::of(key), display_name: None, listed: false }
}

/// The home's only server.
fn registered(store: &Store) -> ServerName {
    let name = name("s");
    assert!(store.register_ptth_server(&name, &server("key")).done().unwrap());
    name
}

fn ask(store: &Store, server: &ServerName, request: &[u8]) -> (RequestId, PendingRequest) {
    // So that it is later than whatever came before.
    std::thread::sleep(Duration::from_millis(2));
    let id = RequestId::fresh().unwrap();
    let pending = store.ask(server, &id, request, 10).done().unwrap().unwrap();
    std::thread::sleep(Duration::from_millis(2));
    (id, pending)
}

fn claim(far_end: &mut WaitingFarEnd, most: usize) -> Vec<Vec<u8>> {
    far_end.claim(most).done().unwrap().into_iter().map(|claimed| claimed.request).collect()
}

/// What a far end claims that comes now.
fn claim_now(store: &Store, server: &ServerName) -> Vec<Vec<u8>> {
    claim(&mut store.listen_for_requests(server).done().unwrap(), 10)
}

fn answer(store: &Store, server: &ServerName, id: &RequestId) -> Option<Answer> {
    store.answer_request(std::slice::from_ref(server), id).done().unwrap()
}

/// Sends the head of an answer, and is then the way for its bytes.
fn begin(mut answer: Answer, head: &[u8]) -> Sender {
    assert!(answer.sender().send_head(head, b"") && answer.sender().exchanged().is_received());
    answer.begin().done()
}

fn is_called(far_end: &WaitingFarEnd) -> bool {
    far_end.awaited().is_ready()
}

fn nothing() -> Vec<Vec<u8>> {
    Vec::new()
}

#[test]
fn what_is_registered_is_kept_and_what_is_removed_is_gone() {
    for Home { store, .. } in &homes_near_and_far() {
        assert!(store.ptth_servers().done().unwrap().is_empty());
        let shown = PtthServer { display_name: Some("A \"name\"".into()), listed: true, ..server("k2") };
        assert!(store.register_ptth_server(&name("a"), &server("k1")).done().unwrap());
        assert!(store.register_ptth_server(&name("b"), &shown).done().unwrap());
        assert!(!store.register_ptth_server(&name("a"), &server("another's")).done().unwrap(), "the name is taken");
        assert_eq!(*store.ptth_servers().done().unwrap(), [(name("a"), server("k1")), (name("b"), shown)].into());
        assert!(
            store.remove_ptth_server(&name("a")).done().unwrap()
                && !store.remove_ptth_server(&name("a")).done().unwrap()
        );
        assert_eq!(store.ptth_servers().done().unwrap().len(), 1);
    }
}

#[test]
fn nobody_loses_what_another_registers_at_the_same_time() {
    for Home { store, .. } in &homes_near_and_far() {
        std::thread::scope(|scope| {
            for thread in 0..8 {
                scope.spawn(move || {
                    for number in 0..5 {
                        let name = name(&format!("server-{thread}-{number}"));
                        assert!(store.register_ptth_server(&name, &server("k")).done().unwrap());
                    }
                });
            }
        });
        assert_eq!(store.ptth_servers().done().unwrap().len(), 40);
    }
}

#[test]
fn a_request_is_claimed_once_and_answered_once() {
    for Home { store, .. } in &homes_near_and_far() {
        let server = registered(store);
        let (id, mut pending) = ask(store, &server, b"one");
        let claimed = store.listen_for_requests(&server).done().unwrap().claim(10).done().unwrap();
        assert_eq!((claimed[0].id.clone(), claimed[0].request.as_slice()), (id.clone(), &b"one"[..]));
        assert_eq!(claim_now(store, &server), nothing());
        assert!(answer(store, &name("other"), &id).is_none(), "of another server");
        assert!(!pending.is_being_answered().done().unwrap() && !is_any_woken(pending.awaited()));
        let begun = answer(store, &server, &id).unwrap();
        assert!(answer(store, &server, &id).is_none(), "twice");
        assert!(answer(store, &server, &RequestId::fresh().unwrap()).is_none(), "nobody's");
        assert!(pending.is_being_answered().done().unwrap());
        assert_eq!(pending.look(&WATCHFUL).done().unwrap(), Progress::Waits);
        let mut sender = begin(begun, b"head");
        soon(|| is_any_woken(pending.awaited()));
        store.give_back(&server, &[id]).done().unwrap();
        assert_eq!(claim_now(store, &server), nothing(), "its answer has begun");
        assert_eq!(pending.look(&PATIENT).done().unwrap(), Progress::Begins(b"head".to_vec()));
        let mut receiver = pending.begin();
        sender.write(b"body").unwrap();
        sender.exchanged();
        assert_eq!(sooner_or_later(|| receiver.exchanged().take_at_once(4).unwrap()), b"body");
        drop(receiver);
        soon(|| sender.exchanged().taken().unwrap() == Some(4));
    }
}

#[test]
fn wherever_a_request_is_answered_its_client_has_the_answer() {
    for home in &homes_near_and_far() {
        let server = registered(&home.store);
        for [far_end, client] in home.pairs() {
            let (id, mut pending) = ask(client, &server, b"request");
            assert_eq!(claim_now(far_end, &server), [b"request"]);
            std::thread::scope(|scope| {
                // It may have to wait for the client.
                let answering = scope.spawn(|| {
                    let mut sender = begin(sooner_or_later(|| answer(far_end, &server, &id)), b"head");
                    sender.write(b"body").unwrap();
                    sender.exchanged();
                    sender
                });
                // As each client does, it looks now and then, or it is taken for gone where answering takes long.
                let mut looked_at = Instant::now();
                let head = sooner_or_later(|| {
                    if !is_any_woken(pending.awaited()) && looked_at.elapsed() < Duration::from_secs(2) {
                        return None;
                    }
                    looked_at = Instant::now();
                    match pending.look(&PATIENT).done().unwrap() {
                        Progress::Begins(head) => Some(head),
                        Progress::Waits => None,
                        other => panic!("{other:?}"),
                    }
                });
                let mut sender = answering.join().unwrap();
                let mut receiver = pending.begin();
                let body = sooner_or_later(|| receiver.exchanged().take_at_once(4).unwrap());
                assert_eq!((head, body), (b"head".to_vec(), b"body".to_vec()));
                sender.end(false);
                sender.exchanged();
                soon(|| receiver.exchanged().has_ended());
                assert!(!receiver.is_complete());
            });
            assert!(answer(far_end, &server, &id).is_none());
        }
    }
}

#[test]
fn the_oldest_are_claimed_first_and_another_far_end_is_called_for_the_others() {
    for Home { store, .. } in &homes_near_and_far() {
        let server = registered(store);
        let _asked = [b"1", b"2", b"3"].map(|request| ask(store, &server, request));
        let mut other = store.listen_for_requests(&server).done().unwrap();
        let mut far_end = store.listen_for_requests(&server).done().unwrap();
        assert!(!is_called(&other));
        assert_eq!(claim(&mut far_end, 2), [b"1", b"2"]);
        far_end.leave().done();
        soon(|| is_called(&other));
        assert_eq!(claim(&mut other, 2), [b"3"]);
        assert!(!is_called(&other), "it has heard it");
    }
}

#[test]
fn what_is_given_back_waits_again_and_calls_a_far_end() {
    for Home { store, .. } in &homes_near_and_far() {
        let server = registered(store);
        let asked = [b"1", b"2", b"3"].map(|request| ask(store, &server, request));
        assert_eq!(claim_now(store, &server).len(), 3);
        let mut other = store.listen_for_requests(&server).done().unwrap();
        assert_eq!(claim(&mut other, 10), nothing());
        store.give_back(&server, &[asked[1].0.clone()]).done().unwrap();
        soon(|| is_called(&other));
        assert_eq!(claim(&mut other, 10), [b"2"]);
    }
}

#[test]
fn a_request_is_claimed_twice_by_far_ends_that_came_after_it_and_not_again() {
    for Home { store, .. } in &homes_near_and_far() {
        let server = registered(store);
        let mut before = store.listen_for_requests(&server).done().unwrap();
        let (id, mut pending) = ask(store, &server, b"x");
        for claims in 1..=MOST_CLAIMS {
            assert_eq!(claim_now(store, &server), [b"x"]);
            store.give_back(&server, std::slice::from_ref(&id)).done().unwrap();
            if claims == 1 {
                // It may have died long since: after the first, it has the request for nothing.
                assert_eq!(claim(&mut before, 10), [b"x"]);
                store.give_back(&server, std::slice::from_ref(&id)).done().unwrap();
            }
        }
        assert_eq!(claim_now(store, &server), nothing());
        assert_eq!(pending.look(&Patience { claim: Duration::ZERO, ..WATCHFUL }).done().unwrap(), Progress::Waits);
        assert_eq!(claim_now(store, &server), nothing());
        assert!(answer(store, &server, &id).is_some(), "it can still be answered");
    }
}

#[test]
fn a_request_whose_answer_breaks_off_is_asked_again_but_not_for_ever() {
    for Home { store, .. } in &homes_near_and_far() {
        let server = registered(store);
        let (mut id, mut pending) = ask(store, &server, b"x");
        for claims in 1..=MOST_CLAIMS {
            assert_eq!(claim_now(store, &server), [b"x"]);
            drop(answer(store, &server, &id).unwrap());
            soon(|| is_any_woken(pending.awaited()));
            let progress = pending.look(&PATIENT).done().unwrap();
            if claims == MOST_CLAIMS {
                assert_eq!(progress, Progress::GivenUp);
            } else {
                assert_eq!(progress, Progress::BrokenOff);
                id = RequestId::fresh().unwrap();
                pending = pending.ask_again(&id, b"x", 10).done().unwrap().unwrap();
                // Who claims it now has listened for it since it was asked.
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        // Nothing has come at all of an answer that is begun, for too long.
        let (id, mut pending) = ask(store, &server, b"y");
        assert_eq!(claim_now(store, &server), [b"y"]);
        let begun = answer(store, &server, &id).unwrap();
        assert_eq!(pending.look(&WATCHFUL).done().unwrap(), Progress::Waits);
        assert_eq!(pending.look(&Patience { head: Duration::ZERO, ..WATCHFUL }).done().unwrap(), Progress::BrokenOff);
        drop(begun);
    }
}

#[test]
fn a_request_that_a_far_end_keeps_for_too_long_is_given_back_and_may_be_answered_all_the_same() {
    for Home { store, .. } in &homes_near_and_far() {
        let server = registered(store);
        let (id, mut pending) = ask(store, &server, b"x");
        assert_eq!(claim_now(store, &server), [b"x"]);
        assert_eq!(pending.look(&WATCHFUL).done().unwrap(), Progress::Waits);
        assert_eq!(claim_now(store, &server), nothing(), "it has some time");
        assert_eq!(pending.look(&Patience { claim: Duration::ZERO, ..WATCHFUL }).done().unwrap(), Progress::Waits);
        let _sender = begin(answer(store, &server, &id).unwrap(), b"late");
        assert_eq!(claim_now(store, &server), nothing());
        assert_eq!(pending.look(&PATIENT).done().unwrap(), Progress::Begins(b"late".to_vec()));
    }
}

#[test]
fn a_request_goes_with_its_client() {
    for Home { store, .. } in &homes_near_and_far() {
        let server = registered(store);
        let (id, pending) = ask(store, &server, b"x");
        drop(pending);
        assert_eq!(claim_now(store, &server), nothing());
        assert!(answer(store, &server, &id).is_none());
        let (id, pending) = ask(store, &server, b"y");
        assert_eq!(claim_now(store, &server), [b"y"]);
        drop(pending);
        store.give_back(&server, std::slice::from_ref(&id)).done().unwrap();
        assert_eq!(claim_now(store, &server), nothing());
        assert!(answer(store, &server, &id).is_none());
    }
}

#[test]
fn there_is_a_limit_to_the_requests_of_a_server() {
    for Home { store, .. } in &homes_near_and_far() {
        let server = registered(store);
        let (one, two) = (ask(store, &server, b"1"), ask(store, &server, b"2"));
        let ask_at_most = |most| store.ask(&server, &RequestId::fresh().unwrap(), b"3", most).done().unwrap();
        assert!(ask_at_most(2).is_none());
        drop(two);
        assert!(ask_at_most(2).is_some());
        let again = one.1.ask_again(&RequestId::fresh().unwrap(), b"1", 1).done().unwrap();
        assert!(again.is_none());
    }
}

/// Which of them are called.
fn called(far_ends: &[WaitingFarEnd]) -> usize {
    far_ends.iter().filter(|far_end| is_called(far_end)).count()
}

#[test]
fn one_of_the_far_ends_that_wait_is_called_for_a_request_wherever_it_waits() {
    for home in &homes_near_and_far() {
        let server = registered(&home.store);
        for [here, there] in home.pairs() {
            let mut far_ends = [(); 2].map(|()| there.listen_for_requests(&server).done().unwrap());
            for far_end in &mut far_ends {
                assert_eq!(claim(far_end, 10), nothing());
            }
            assert_eq!(called(&far_ends), 0);
            let asked = ask(here, &server, b"x");
            sooner_or_later(|| (called(&far_ends) > 0).then_some(()));
            let mut called = far_ends.into_iter().filter(is_called);
            let (mut far_end, None) = (called.next().unwrap(), called.next()) else { panic!("both are called") };
            assert_eq!(claim(&mut far_end, 10), [b"x"]);
            drop(asked);
        }
    }
}

#[test]
fn whoever_leaves_has_another_called_for_what_it_was_called_for() {
    for home in &homes_near_and_far() {
        let server = registered(&home.store);
        for [here, there] in home.pairs() {
            let asked = ask(here, &server, b"x");
            let mut far_ends = vec![here.listen_for_requests(&server).done().unwrap()];
            far_ends.push(there.listen_for_requests(&server).done().unwrap());
            assert_eq!(called(&far_ends), 0);
            while let Some(leaves) = far_ends.pop() {
                leaves.leave().done();
                sooner_or_later(|| (called(&far_ends) == far_ends.len()).then_some(()));
            }
            drop(asked);
        }
    }
}

#[test]
fn a_client_calls_a_far_end_once_more_where_nobody_has_its_request() {
    for Home { store, .. } in &homes_near_and_far() {
        let server = registered(store);
        let (_, mut pending) = ask(store, &server, b"x");
        let mut far_end = store.listen_for_requests(&server).done().unwrap();
        assert!(!is_called(&far_end));
        assert_eq!(pending.look(&WATCHFUL).done().unwrap(), Progress::Waits);
        soon(|| is_called(&far_end));
        assert_eq!(claim(&mut far_end, 10), [b"x"]);
    }
}

#[test]
fn far_ends_are_seen_to_wait_and_to_have_been_there() {
    for Home { store, .. } in &homes_near_and_far() {
        let server = registered(store);
        assert_eq!(store.far_ends(&server).done().unwrap(), FarEnds { seen: None, is_listening: false });
        let far_end = store.listen_for_requests(&server).done().unwrap();
        let seen = store.far_ends(&server).done().unwrap();
        assert!(seen.is_listening && seen.seen.unwrap().elapsed().unwrap_or_default() < LONG);
        drop(far_end);
        let seen = store.far_ends(&server).done().unwrap();
        assert!(!seen.is_listening && seen.seen.is_some());
    }
}

#[test]
fn removing_a_server_ends_what_waits_for_it() {
    for home in &homes_near_and_far() {
        let store = &home.store;
        let server = registered(store);
        let [(_, mut watchful), (_, mut waiting)] = [b"x", b"y"].map(|request| ask(store, &server, request));
        let mut far_ends = [(); 2].map(|()| store.listen_for_requests(&server).done().unwrap());
        home.sweep(LONG);
        assert_eq!(
            waiting.look(&PATIENT).done().unwrap(),
            Progress::Waits,
            "a sweep leaves a registered server's alone"
        );
        store.remove_ptth_server(&server).done().unwrap();
        assert_eq!(watchful.look(&WATCHFUL).done().unwrap(), Progress::ServerRemoved, "whoever looks sees it at once");
        home.sweep_until(LONG, || is_any_woken(waiting.awaited()));
        assert_eq!(waiting.look(&PATIENT).done().unwrap(), Progress::ServerRemoved);
        soon(|| far_ends.iter().all(is_called));
        assert_eq!(store.far_ends(&server).done().unwrap(), FarEnds { seen: None, is_listening: false });
        // It is registered anew: a far end that has not left yet hears of new requests.
        registered(store);
        assert_eq!(claim(&mut far_ends[0], 10), nothing());
        assert!(!is_called(&far_ends[0]), "the old call is over");
        let _asked = ask(store, &server, b"new");
        soon(|| is_called(&far_ends[0]));
        assert_eq!(claim(&mut far_ends[0], 10), [b"new"]);
    }
}

#[test]
fn only_what_was_given_out_can_be_an_id() {
    let fresh = RequestId::fresh().unwrap();
    assert_eq!(RequestId::parse(fresh.as_str()), Some(fresh.clone()));
    for wrong in ["", "..", &fresh.as_str()[1..], &fresh.as_str().to_uppercase().replace('0', "A"), &"/".repeat(44)] {
        assert_eq!(RequestId::parse(wrong), None, "{wrong}");
    }
}
