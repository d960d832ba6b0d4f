use super::{Done as _, Exchanged as _, Home, homes_near_and_far, is_any_woken, soon, sooner_or_later};
use crate::store::pipes::{Denied, LONGEST_HEAD, Limits, NewSession, Role, Visitor};
use crate::store::{Receiver, Sender, Store, WaitingReceiver, WaitingSender};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const LIMITS: Limits = Limits { sessions: 100, senders: 2, lifetime: Duration::from_secs(3600) };
const OVER: Limits = Limits { lifetime: Duration::ZERO, ..LIMITS };

const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

fn session(store: &Store, is_secure: bool) -> NewSession {
    store.make_session(is_secure, &LIMITS).done().unwrap().unwrap()
}

fn host(session: &NewSession) -> Visitor {
    Visitor { tokens: vec!["another's".into(), session.token.clone()], address: None }
}

fn guest() -> Visitor {
    Visitor::default()
}

fn at(address: IpAddr) -> Visitor {
    Visitor { address: Some(address), ..guest() }
}

fn send_head(sender: &mut Sender, head: &[u8], first: &[u8]) {
    assert!(sender.send_head(head, first) && sender.exchanged().is_received());
}

fn write(sender: &mut Sender, bytes: &[u8]) {
    assert_eq!(sender.write(bytes).unwrap(), bytes.len());
    assert!(sender.exchanged().is_received());
}

fn end(sender: &mut Sender) {
    sender.end(true);
    sender.exchanged();
}

/// What is there now; `None` where more may come, nothing at the end.
fn read_now(receiver: &mut Receiver) -> Option<Vec<u8>> {
    let mut bytes = [0; 100];
    let got = receiver.exchanged().read(&mut bytes);
    (got > 0 || receiver.has_ended()).then(|| bytes[..got].to_vec())
}

/// What comes next; nothing at the end.
fn read(receiver: &mut Receiver) -> Vec<u8> {
    sooner_or_later(|| read_now(receiver))
}

fn take(sender: &mut WaitingSender) -> Option<Sender> {
    sender.take_receiver().done().unwrap()
}

/// Whether a sender was called.
fn is_called(sender: &WaitingSender) -> bool {
    sender.awaited().is_ready()
}

/// Whether a sender has taken it, as a look tells.
fn is_taken(receiver: &mut WaitingReceiver) -> bool {
    assert_eq!(receiver.look().done().unwrap(), None);
    receiver.is_taken()
}

/// Whether it was sent away, as it finds when it looks for a receiver. There is none.
fn is_sent_away(sender: &mut WaitingSender) -> bool {
    let taken = sender.take_receiver().done();
    assert!(matches!(taken, Ok(None) | Err(Denied::Removed | Denied::NotTheGuest)));
    assert_eq!(taken.is_err(), sender.is_sent_away());
    sender.is_sent_away()
}

/// What the guest receives, and the host sends.
fn met(store: &Store, id: &str, host: &Visitor) -> (Receiver, Sender) {
    let mut receiver = store.receive(id, &guest(), &LIMITS).done().unwrap();
    let mut sender = take(&mut store.wait_to_send(id, host, &LIMITS).done().unwrap()).unwrap();
    send_head(&mut sender, b"head", b"");
    assert_eq!(receiver.look().done().unwrap().unwrap(), b"head");
    (receiver.begin(), sender)
}

#[test]
fn whoever_has_the_token_is_the_host_and_anybody_else_the_guest() {
    for Home { store, .. } in &homes_near_and_far() {
        let (one, other) = (session(store, false), session(store, false));
        let join = |visitor: &Visitor| store.join_session(&one.id, visitor, &LIMITS).done().unwrap();
        assert_eq!(join(&host(&one)), Role::Host);
        assert_eq!((join(&host(&other)), join(&guest())), (Role::Guest, Role::Guest));
        assert!(one.id != other.id && one.token != other.token);
        assert!(matches!(store.join_session("unknown", &guest(), &LIMITS).done(), Err(Denied::UnknownSession)));
    }
}

#[test]
fn a_secure_session_is_for_its_host_and_the_guest_that_the_host_named() {
    for Home { store, .. } in &homes_near_and_far() {
        let session = session(store, true);
        let (id, host) = (&session.id, host(&session));
        assert!(matches!(store.receive(id, &at(ONE), &LIMITS).done(), Err(Denied::NotTheGuest)));
        assert!(matches!(store.permit_guest(id, &at(ONE), ONE, &LIMITS).done(), Err(Denied::NotTheHost)));
        store.permit_guest(id, &host, ONE, &LIMITS).done().unwrap();
        assert_eq!(store.join_session(id, &at(ONE), &LIMITS).done().unwrap(), Role::Guest);
        assert_eq!(store.join_session(id, &host, &LIMITS).done().unwrap(), Role::Host);
        for stranger in [guest(), at(OTHER)] {
            assert!(matches!(store.join_session(id, &stranger, &LIMITS).done(), Err(Denied::NotTheGuest)));
            assert!(matches!(store.receive(id, &stranger, &LIMITS).done(), Err(Denied::NotTheGuest)));
            assert!(matches!(store.wait_to_send(id, &stranger, &LIMITS).done(), Err(Denied::NotTheGuest)));
        }
    }
}

#[test]
fn nobody_is_named_the_guest_of_an_open_session() {
    for Home { store, .. } in &homes_near_and_far() {
        let session = session(store, false);
        let permitted = store.permit_guest(&session.id, &host(&session), ONE, &LIMITS).done();
        assert!(matches!(permitted, Err(Denied::BasicSession)));
        assert_eq!(store.join_session(&session.id, &at(OTHER), &LIMITS).done().unwrap(), Role::Guest);
    }
}

#[test]
fn a_head_and_bytes_arrive_and_the_sender_learns_how_many_were_taken() {
    for Home { store, .. } in &homes_near_and_far() {
        let session = session(store, false);
        let mut receiver = store.receive(&session.id, &guest(), &LIMITS).done().unwrap();
        assert_eq!(receiver.look().done().unwrap(), None);
        assert!(!receiver.is_taken() && !is_any_woken(receiver.awaited()));
        let mut waiting = store.wait_to_send(&session.id, &host(&session), &LIMITS).done().unwrap();
        let mut sender = take(&mut waiting).unwrap();
        assert!(is_taken(&mut receiver));
        send_head(&mut sender, &vec![7; LONGEST_HEAD], b"first");
        soon(|| is_any_woken(receiver.awaited()));
        assert_eq!(receiver.look().done().unwrap().unwrap(), vec![7; LONGEST_HEAD]);
        let mut receiver = receiver.begin();
        assert_eq!(sender.taken().unwrap(), None, "it has not begun");
        assert_eq!(receiver.take_at_once(6).unwrap(), None, "not all of it is there");
        assert_eq!(receiver.take_at_once(5).unwrap().unwrap(), b"first");
        write(&mut sender, b"second");
        assert_eq!(read(&mut receiver), b"second");
        assert_eq!(read_now(&mut receiver), None, "there may be more");
        end(&mut sender);
        assert_eq!(read(&mut receiver), b"", "the end");
        receiver.took(2).unwrap();
        drop(receiver);
        soon(|| sender.exchanged().taken().unwrap() == Some(7));
        waiting.finish().done();
    }
}

#[test]
fn whoever_comes_first_and_wherever_it_is_the_two_meet() {
    for home in &homes_near_and_far() {
        let session = session(&home.store, false);
        for ([from, to], receiver_first) in home.pairs().into_iter().flat_map(|pair| [(pair, true), (pair, false)]) {
            let receive = || to.receive(&session.id, &guest(), &LIMITS).done().unwrap();
            let early = receiver_first.then(receive);
            let mut waiting = from.wait_to_send(&session.id, &host(&session), &LIMITS).done().unwrap();
            let none = take(&mut waiting);
            let mut receiver = early.unwrap_or_else(receive);
            for store in [from, to] {
                assert!(matches!(store.receive(&session.id, &guest(), &LIMITS).done(), Err(Denied::ReceiverThere)));
            }
            let mut sender = none.unwrap_or_else(|| {
                sooner_or_later(|| {
                    // Each does what it does when it is woken.
                    if is_any_woken(receiver.awaited()) {
                        assert_eq!(receiver.look().done().unwrap(), None);
                    }
                    is_called(&waiting).then(|| take(&mut waiting)).flatten()
                })
            });
            assert!(is_taken(&mut receiver));
            send_head(&mut sender, b"head", b"first");
            assert_eq!(receiver.look().done().unwrap().unwrap(), b"head");
            let mut receiver = receiver.begin();
            assert_eq!(receiver.take_at_once(5).unwrap().unwrap(), b"first");
            write(&mut sender, b"second");
            end(&mut sender);
            assert_eq!((read(&mut receiver), read(&mut receiver)), (b"second".to_vec(), vec![]));
            receiver.took(6).unwrap();
            assert!(receiver.is_complete() && sender.exchanged().is_received());
            drop(receiver);
            soon(|| !sender.exchanged().is_received());
            assert_eq!(sender.taken().unwrap(), Some(11));
        }
    }
}

#[test]
fn one_that_waits_is_there_for_other_processes_too() {
    for home in &homes_near_and_far() {
        let [here, there] = [&home.store, &home.elsewhere];
        let session = session(here, false);
        let mut receiver = here.receive(&session.id, &guest(), &LIMITS).done().unwrap();
        let mut senders = [(); 2].map(|()| here.wait_to_send(&session.id, &guest(), &LIMITS).done().unwrap());
        assert!(matches!(there.wait_to_send(&session.id, &guest(), &LIMITS).done(), Err(Denied::TooManySenders)));
        assert!(there.join_session(&session.id, &guest(), &OVER).done().is_ok(), "it is in use");
        there.remove_session(&session.id, &host(&session), &LIMITS).done().unwrap();
        soon(|| is_any_woken(receiver.awaited()));
        assert!(matches!(receiver.look().done(), Err(Denied::Removed)));
        for sender in &mut senders {
            soon(|| is_called(sender));
            assert!(is_sent_away(sender));
        }
    }
}

#[test]
fn an_end_that_was_said_is_known_from_one_that_was_not() {
    for Home { store, .. } in &homes_near_and_far() {
        let session = session(store, false);
        for is_said in [true, false] {
            let (mut receiver, mut sender) = met(store, &session.id, &host(&session));
            if is_said {
                sender.end(true);
            }
            drop(sender);
            assert_eq!((read(&mut receiver), receiver.is_complete()), (vec![], is_said));
        }
    }
}

#[test]
fn in_each_direction_there_is_one_receiver_at_a_time() {
    for Home { store, .. } in &homes_near_and_far() {
        let session = session(store, false);
        let receive = |visitor: &Visitor| store.receive(&session.id, visitor, &LIMITS).done();
        let first = receive(&guest()).unwrap();
        assert!(matches!(receive(&guest()), Err(Denied::ReceiverThere)));
        let _other_direction = receive(&host(&session)).unwrap();
        drop(first);
        let (mut first, _sender) = met(store, &session.id, &host(&session));
        assert!(matches!(receive(&guest()), Err(Denied::ReceiverThere)), "while bytes flow");
        first.leave();
        let _second = receive(&guest()).unwrap();
        drop(first);
        assert!(matches!(receive(&guest()), Err(Denied::ReceiverThere)), "the first did not take the second along");
    }
}

#[test]
fn a_receiver_is_taken_by_one_sender() {
    for Home { store, .. } in &homes_near_and_far() {
        let session = session(store, false);
        let mut senders = [(); 2].map(|()| store.wait_to_send(&session.id, &host(&session), &LIMITS).done().unwrap());
        assert!(senders.iter_mut().all(|sender| take(sender).is_none()), "there is none");
        let _receiver = store.receive(&session.id, &guest(), &LIMITS).done().unwrap();
        soon(|| senders.iter().all(is_called));
        let _taken = take(&mut senders[0]).unwrap();
        assert!(take(&mut senders[1]).is_none());
        let mut to_host = store.wait_to_send(&session.id, &guest(), &LIMITS).done().unwrap();
        assert!(take(&mut to_host).is_none(), "the other direction");
    }
}

#[test]
fn a_sender_that_leaves_without_a_word_makes_room_for_another() {
    for Home { store, .. } in &homes_near_and_far() {
        let session = session(store, false);
        let mut receiver = store.receive(&session.id, &guest(), &LIMITS).done().unwrap();
        let wait = || store.wait_to_send(&session.id, &host(&session), &LIMITS).done().unwrap();
        drop(take(&mut wait()).unwrap());
        let mut next = wait();
        assert!(take(&mut next).is_none(), "the receiver has not noticed yet");
        soon(|| is_any_woken(receiver.awaited()));
        assert_eq!(receiver.look().done().unwrap(), None);
        soon(|| is_called(&next));
        assert!(!receiver.is_taken());
        let mut sender = take(&mut next).unwrap();
        send_head(&mut sender, b"", b"first");
        assert_eq!(receiver.look().done().unwrap().unwrap(), b"");
        assert_eq!(receiver.begin().take_at_once(5).unwrap().unwrap(), b"first");
    }
}

#[test]
fn no_more_senders_wait_in_a_direction_than_may() {
    for Home { store, .. } in &homes_near_and_far() {
        let session = session(store, false);
        let wait = |visitor: &Visitor| store.wait_to_send(&session.id, visitor, &LIMITS).done();
        let (one, two) = (wait(&guest()).unwrap(), wait(&guest()).unwrap());
        assert!(matches!(wait(&guest()), Err(Denied::TooManySenders)));
        let _other_direction = wait(&host(&session)).unwrap();
        drop(one);
        let _three = wait(&guest()).unwrap();
        two.finish().done();
        assert!(wait(&guest()).is_ok());
    }
}

#[test]
fn a_sender_learns_that_its_receiver_has_gone() {
    for Home { store, .. } in &homes_near_and_far() {
        let session = session(store, false);
        let (receiver, mut sender) = met(store, &session.id, &host(&session));
        assert!(sender.exchanged().is_received());
        drop(receiver);
        soon(|| {
            let [_, gone] = sender.awaited();
            gone.unwrap().is_ready()
        });
        assert!(!sender.exchanged().is_received());
        let mut next = store.receive(&session.id, &guest(), &LIMITS).done().unwrap();
        assert!(!sender.is_received() && !is_taken(&mut next), "the next is no business of this sender");
    }
}

#[test]
fn removing_a_session_sends_everybody_away() {
    for Home { store, .. } in &homes_near_and_far() {
        let session = session(store, false);
        let (id, host) = (&session.id, host(&session));
        let mut to_host = store.receive(id, &host, &LIMITS).done().unwrap();
        let mut to_guest = store.wait_to_send(id, &host, &LIMITS).done().unwrap();
        let (mut receiver, sender) = met(store, id, &host);
        assert!(matches!(store.remove_session(id, &guest(), &LIMITS).done(), Err(Denied::NotTheHost)));
        // It was called when the receiver came.
        soon(|| is_called(&to_guest));
        assert!(!is_sent_away(&mut to_guest) && !receiver.is_removed().unwrap());
        assert!(!is_called(&to_guest) && !is_any_woken(to_host.awaited()));
        store.remove_session(id, &host, &LIMITS).done().unwrap();
        soon(|| is_called(&to_guest) && is_any_woken(to_host.awaited()) && is_any_woken(receiver.awaited()));
        assert!(matches!(to_host.look().done(), Err(Denied::Removed)));
        assert!(receiver.exchanged().is_removed().unwrap());
        assert!(matches!(to_guest.take_receiver().done(), Err(Denied::Removed)) && to_guest.is_sent_away());
        assert!(matches!(to_guest.why_sent_away().done(), Denied::Removed));
        assert!(matches!(store.join_session(id, &host, &LIMITS).done(), Err(Denied::UnknownSession)));
        drop((receiver, sender));
    }
}

#[test]
fn when_another_guest_is_named_the_one_before_is_sent_away_and_the_host_is_not() {
    for Home { store, .. } in &homes_near_and_far() {
        let session = session(store, true);
        let (id, host) = (&session.id, host(&session));
        store.permit_guest(id, &host, ONE, &LIMITS).done().unwrap();
        let mut guests = store.receive(id, &at(ONE), &LIMITS).done().unwrap();
        let mut from_guest = store.wait_to_send(id, &at(ONE), &LIMITS).done().unwrap();
        let mut hosts = store.receive(id, &host, &LIMITS).done().unwrap();
        store.permit_guest(id, &host, ONE, &LIMITS).done().unwrap();
        assert_eq!(guests.look().done().unwrap(), None, "the same guest stays");
        assert!(!from_guest.is_sent_away());
        store.permit_guest(id, &host, OTHER, &LIMITS).done().unwrap();
        soon(|| is_any_woken(guests.awaited()) && is_called(&from_guest));
        assert!(matches!(guests.look().done(), Err(Denied::NotTheGuest)));
        assert!(
            matches!(from_guest.take_receiver().done(), Err(Denied::NotTheGuest)),
            "the host's receiver is not for it"
        );
        assert!(matches!(from_guest.why_sent_away().done(), Denied::NotTheGuest));
        assert_eq!(hosts.look().done().unwrap(), None);
        let mut others = store.receive(id, &at(OTHER), &LIMITS).done().unwrap();
        drop(guests);
        let _sender = take(&mut store.wait_to_send(id, &host, &LIMITS).done().unwrap()).unwrap();
        assert!(is_taken(&mut others), "the one before left it alone");
    }
}

#[test]
fn a_receiver_that_was_sent_away_after_its_sender_left_leaves_the_next_ones_alone() {
    for Home { store, .. } in &homes_near_and_far() {
        let session = session(store, true);
        let (id, host) = (&session.id, host(&session));
        store.permit_guest(id, &host, ONE, &LIMITS).done().unwrap();
        let mut before = store.receive(id, &at(ONE), &LIMITS).done().unwrap();
        drop(take(&mut store.wait_to_send(id, &host, &LIMITS).done().unwrap()).unwrap());
        store.permit_guest(id, &host, OTHER, &LIMITS).done().unwrap();
        let mut next = store.receive(id, &at(OTHER), &LIMITS).done().unwrap();
        assert!(matches!(before.look().done(), Err(Denied::NotTheGuest)));
        drop(before);
        let mut sender = take(&mut store.wait_to_send(id, &host, &LIMITS).done().unwrap()).unwrap();
        send_head(&mut sender, b"for the next", b"");
        assert_eq!(next.look().done().unwrap().unwrap(), b"for the next");
    }
}

#[test]
fn a_session_lasts_for_its_lifetime_and_while_somebody_is_in_it() {
    for home in &homes_near_and_far() {
        let store = &home.store;
        let session = session(store, false);
        let is_there = |limits| store.join_session(&session.id, &guest(), limits).done().is_ok();
        assert!(is_there(&LIMITS) && !is_there(&OVER));
        let receiver = store.receive(&session.id, &guest(), &LIMITS).done().unwrap();
        assert!(is_there(&OVER));
        home.sweep(OVER.lifetime);
        assert!(is_there(&LIMITS), "a sweep leaves alone what is in use");
        drop(receiver);
        assert!(!is_there(&OVER));
        home.sweep(LIMITS.lifetime);
        assert!(is_there(&LIMITS), "and what is not over");
        home.sweep_until(OVER.lifetime, || !is_there(&LIMITS));
    }
}

#[test]
fn there_is_a_limit_to_sessions() {
    for home in &homes_near_and_far() {
        let make = || home.store.make_session(false, &Limits { sessions: 2, ..LIMITS }).done().unwrap();
        let one = make().unwrap();
        make().unwrap();
        assert!(make().is_none());
        home.store.remove_session(&one.id, &host(&one), &LIMITS).done().unwrap();
        home.sweep_until(LIMITS.lifetime, || make().is_some());
    }
}
