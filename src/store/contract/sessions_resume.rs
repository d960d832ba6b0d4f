//! Of those that come again: with an id or without one, in another's place, or after their host has been registered anew.

use super::sessions::{HOUR, client, host, host_closed, look, lost, minted, registered, relays, take, until};
use super::{Done as _, sooner_or_later};
use crate::store::sessions::{Claim, Refused, Standing};
use std::thread::sleep;
use std::time::Duration;

#[test]
fn a_newer_listener_takes_the_place_and_nobody_is_told() {
    for relay in registered() {
        let (mut h, mut c) = (relay.listen(&host("one")), relay.enter("c"));
        assert_eq!(c.standing().done().unwrap(), Standing::Listening);
        let mut next = relay.listen(&client("c", "one"));
        sooner_or_later(|| c.wake().unwrap().is_ready().then_some(()));
        assert!(c.hear());
        assert_eq!(c.standing().done().unwrap(), Standing::Superseded);
        assert_eq!(c.tend(relay.policy()).done().unwrap(), Standing::Superseded);
        relay.end(c);
        assert_eq!(next.tend(relay.policy()).done().unwrap(), Standing::Listening);
        relay.to_client("c", "said").unwrap();
        h.tend(relay.policy()).done().unwrap();
        assert!(take(&mut h).is_empty());
        assert_eq!(take(&mut next), ["said"]);
    }
}

#[test]
fn whether_one_could_listen_takes_nobody_s_place() {
    for relay in registered() {
        let mut c = relay.enter("c");
        relay.would_listen(&client("c", "one")).unwrap();
        assert!(!c.wake().unwrap().is_ready());
        assert_eq!(c.standing().done().unwrap(), Standing::Listening);
        assert!(matches!(relay.would_listen(&client("c", "another")), Err(Refused::Expired)));
        assert!(matches!(relay.would_listen(&client("d", "one")), Err(Refused::Expired)));
        relay.end(relay.listen(&host("one")));
        take(&mut c);
        assert!(matches!(relay.would_listen(&client("c", "one")), Err(Refused::HostGone)));
        assert!(matches!(relay.try_listen(&client("c", "one"), None), Err(Refused::HostGone)));
    }
}

#[test]
fn whoever_names_the_last_event_that_it_has_is_given_all_after_it() {
    for relay in registered() {
        let mut c = relay.enter("c");
        for data in ["1", "2", "3"] {
            relay.to_client("c", data).unwrap();
        }
        let events = look(&mut c);
        c.delivered().done().unwrap();
        assert!(events.is_sorted_by(|one, next| one.0 < next.0));
        let again = |resume| take(&mut relay.try_listen(&client("c", "one"), Some(resume)).unwrap());
        assert_eq!(again(events[0].0), ["2", "3"]);
        assert_eq!(again(0), ["1", "2", "3"], "0 is said by whoever has none");
        assert!(again(events[2].0).is_empty());
        assert!(take(&mut relay.listen(&client("c", "one"))).is_empty());
    }
}

#[test]
fn a_client_that_was_away_gets_the_broadcasts_it_missed_if_it_names_an_id() {
    for relay in registered() {
        let (mut c, _d) = (relay.enter("c"), relay.enter("d"));
        relay.to_client("c", "first").unwrap();
        let id = look(&mut c)[0].0;
        c.delivered().done().unwrap();
        relay.end(c);
        // What comes in the millisecond of an end counts as said before.
        std::thread::sleep(std::time::Duration::from_millis(3));
        assert_eq!(relay.broadcast("one", "missed").unwrap(), [("d".to_owned(), true)]);
        let mut without = relay.listen(&client("c", "one"));
        relay.broadcast("one", "next").unwrap();
        assert_eq!(take(&mut without), ["next"], "it was not there for the other");
        let mut with = relay.try_listen(&client("c", "one"), Some(id)).unwrap();
        assert_eq!(take(&mut with), ["missed", "next"]);
    }
}

#[test]
fn whoever_names_an_id_is_told_once_if_something_after_it_is_too_old() {
    for mut relay in registered() {
        let mut c = relay.enter("c");
        for data in ["1", "2", "3"] {
            relay.to_client("c", data).unwrap();
        }
        let id = look(&mut c)[0].0;
        relay.settings.message_lifetime = Duration::ZERO;
        sleep(Duration::from_millis(5));
        let mut without = relay.listen(&client("c", "one"));
        assert!(take(&mut without).is_empty());
        let mut with = relay.try_listen(&client("c", "one"), Some(id)).unwrap();
        relay.to_client("c", "4").unwrap();
        assert_eq!(take(&mut with), [lost("c"), "4".to_owned()]);
        assert!(take(&mut with).is_empty());
    }
}

#[test]
fn whoever_names_an_id_that_was_never_given_out_is_told_so_and_hears_what_comes() {
    for relay in registered() {
        let c = relay.enter("c");
        let ahead = c.position() + 1_000_000;
        let mut c = relay.try_listen(&client("c", "one"), Some(ahead)).unwrap();
        relay.to_client("c", "said").unwrap();
        assert_eq!(take(&mut c), [lost("c"), "said".to_owned()]);
    }
}

#[test]
fn an_earlier_registration_fetches_what_waits_for_it_and_hears_nothing_of_the_new_one() {
    for relay in registered() {
        let h = relay.listen(&host("one"));
        relay.join("c").unwrap();
        relay.to_client("c", "old").unwrap();
        relay.to_host(&client("c", "one"), "to the old").unwrap();
        relay.end(h);
        relay.register("two").unwrap();
        let mut new = relay.enter("d");
        assert_eq!(relay.broadcast("two", "new").unwrap(), [("d".to_owned(), true)]);
        assert!(matches!(relay.to_host(&client("c", "one"), "no"), Err(Refused::Expired)));
        for (party, waits) in
            [(client("c", "one"), vec!["old".to_owned(), host_closed()]), (host("one"), vec!["to the old".to_owned()])]
        {
            let mut listener = relay.listen(&party);
            assert_eq!(take(&mut listener), waits);
            relay.end(listener);
            assert!(matches!(relay.try_listen(&party, None), Err(Refused::Expired)));
        }
        assert_eq!(take(&mut new), ["new"]);
        assert!(take(&mut relay.listen(&host("two"))).is_empty());
    }
}

#[test]
fn an_application_s_own_parties_come_without_registering_or_joining() {
    for relay in relays() {
        let (h, c) = (minted(host("")), minted(client("c", "")));
        assert!(matches!(relay.to_host(&c, "no"), Err(Refused::UnknownHost)));
        assert!(matches!(relay.try_listen(&c, None), Err(Refused::UnknownHost)));
        assert!(matches!(relay.try_listen(&host("one"), None), Err(Refused::Expired)));
        let mut listener = relay.listen(&h);
        relay.to_host(&c, "said").unwrap();
        assert_eq!(take(&mut listener), ["said"]);
        assert_eq!(relay.join("d").unwrap(), None);
        relay.to_client("c", "answer").unwrap();
        assert_eq!(take(&mut relay.listen(&c)), ["answer"]);
    }
}

#[test]
fn an_application_s_own_client_hears_each_registration() {
    for relay in registered() {
        let h = relay.listen(&host("one"));
        let mut c = relay.listen(&minted(client("c", "")));
        relay.broadcast("one", "first").unwrap();
        relay.end(h);
        relay.register("two").unwrap();
        assert_eq!(relay.broadcast("two", "second").unwrap(), [("c".to_owned(), true)]);
        assert_eq!(take(&mut c), ["first".to_owned(), host_closed(), "second".to_owned()]);
        assert_eq!(c.tend(relay.policy()).done().unwrap(), Standing::Listening);
    }
}

#[test]
fn a_message_is_kept_for_its_lifetime_whatever_else_has_ended() {
    for mut relay in registered() {
        let (h, c) = (relay.listen(&host("one")), relay.enter("c"));
        relay.to_client("c", "to the client").unwrap();
        relay.to_host(&client("c", "one"), "to the host").unwrap();
        relay.end(c);
        relay.end(h);
        relay.settings.session_lifetime = Duration::ZERO;
        sleep(Duration::from_millis(5));
        for _ in 0..3 {
            relay.sweep();
        }
        assert_eq!(take(&mut relay.listen(&client("c", "one")))[0], "to the client");
        assert_eq!(take(&mut relay.listen(&host("one")))[0], "to the host");
    }
}

#[test]
fn a_session_that_is_over_is_removed_and_its_ids_never_come_again() {
    for mut relay in relays() {
        let mut last = 0;
        for _ in 0..3 {
            (relay.settings.session_lifetime, relay.settings.message_lifetime) = (HOUR, HOUR);
            relay.register_as("h", "one", Claim::Drawn).unwrap();
            let (mut h, mut c) = (relay.listen(&host("one")), relay.enter("c"));
            relay.to_client("c", "said").unwrap();
            relay.to_host(&client("c", "one"), "said").unwrap();
            let ids = [look(&mut h)[0].0, look(&mut c)[0].0];
            assert!(ids.iter().all(|id| *id > last), "{ids:?} after {last}");
            last = ids.into_iter().max().unwrap();
            relay.end(c);
            relay.end(h);
            (relay.settings.session_lifetime, relay.settings.message_lifetime) = (Duration::ZERO, Duration::ZERO);
            until(|| {
                relay.sweep();
                matches!(relay.would_listen(&minted(client("c", ""))), Err(Refused::UnknownHost))
                    && matches!(relay.broadcast("one", "no"), Err(Refused::Expired))
            });
        }
    }
}

#[test]
fn a_session_in_which_somebody_listens_is_not_removed() {
    for mut relay in registered() {
        let (mut h, mut c) = (relay.listen(&host("one")), relay.enter("c"));
        (relay.settings.session_lifetime, relay.settings.message_lifetime) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..3 {
            sleep(Duration::from_millis(2));
            relay.sweep();
        }
        (relay.settings.session_lifetime, relay.settings.message_lifetime) = (HOUR, HOUR);
        relay.to_client("c", "said").unwrap();
        relay.to_host(&client("c", "one"), "said").unwrap();
        assert_eq!((take(&mut h), take(&mut c)), (vec!["said".to_owned()], vec!["said".to_owned()]));
    }
}

#[test]
fn whoever_names_an_id_that_is_not_there_any_more_is_told_so_and_given_what_is_left() {
    for mut relay in registered() {
        // More than what can be under way.
        relay.settings.max_queue = 400_000;
        let mut c = relay.enter("c");
        let message = |number: u32| format!("{number} {}", "x".repeat(300_000));
        let mut ids = Vec::new();
        for number in 0..10 {
            relay.to_client("c", &message(number)).unwrap();
            ids.extend(look(&mut c).into_iter().map(|(id, _)| id));
            c.delivered().done().unwrap();
        }
        // Where others see how far it is.
        relay.end(c);
        relay.sweep();
        let again = take(&mut relay.try_listen(&client("c", "one"), Some(ids[0])).unwrap());
        assert_eq!(again[0], lost("c"));
        assert!((2..10).contains(&again.len()), "{} are left", again.len() - 1);
        let left: Vec<_> = (0..10).map(message).skip(11 - again.len()).collect();
        assert!(again[1..] == left, "other messages than the last ones");
    }
}

#[test]
fn a_host_is_not_registered_anew_for_ever_while_what_its_earlier_registrations_said_waits() {
    for relay in relays() {
        let name = |number: usize| format!("r{number}");
        let enough = (0..100).find(|number| {
            match relay.register(&name(*number)) {
                Err(Refused::MessagesWait) => return true,
                other => other.unwrap(),
            }
            relay.join(&name(*number)).unwrap();
            relay.to_client(&name(*number), "said").unwrap();
            relay.end(relay.listen(&host(&name(*number))));
            false
        });
        let enough = enough.unwrap();
        for number in 0..enough {
            let (id, registration) = (name(number), name(number));
            assert_eq!(take(&mut relay.listen(&client(&id, &registration))), ["said".to_owned(), host_closed()]);
        }
        relay.register("there is room").unwrap();
    }
}

#[test]
fn what_all_recipients_were_left_out_of_is_nothing_to_whoever_was_away() {
    for mut relay in registered() {
        relay.settings.max_queue = 1000;
        let (mut c, mut d) = (relay.enter("c"), relay.enter("d"));
        relay.to_client("d", "first").unwrap();
        let id = look(&mut d)[0].0;
        d.delivered().done().unwrap();
        relay.end(d);
        let large = "x".repeat(600);
        assert_eq!(relay.broadcast("one", &large).unwrap(), [("c".to_owned(), true)]);
        assert_eq!(relay.broadcast("one", &large).unwrap(), [("c".to_owned(), false)]);
        let mut again = relay.try_listen(&client("d", "one"), Some(id)).unwrap();
        assert_eq!(take(&mut again), [&*large]);
        assert_eq!(take(&mut c), [large, lost("c")]);
    }
}
