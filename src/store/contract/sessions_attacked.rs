//! What a home promises of sessions when somebody is out to break them, or the machine gives way.

use super::Done as _;
use super::sessions::{client_closed, host, lost, registered, registered_on_this_machine, take};
use crate::store::Error;
use crate::store::sessions::{Claim, Refused, Standing};
use std::thread::sleep;
use std::time::Duration;

#[test]
fn clients_that_never_listened_are_forgotten_however_much_the_host_says() {
    for mut relay in registered() {
        (relay.settings.session_lifetime, relay.settings.message_lifetime) =
            (Duration::from_millis(50), Duration::from_millis(50));
        relay.settings.max_clients = 3;
        let (_host, _listening) = (relay.listen(&host("one")), relay.enter("c"));
        for number in 0..12 {
            relay.join(&format!("never {number}")).unwrap();
            sleep(Duration::from_millis(60));
            relay.broadcast("one", "said").unwrap();
            relay.sweep();
        }
    }
}

#[test]
fn a_session_that_is_over_is_removed_where_there_is_no_room_to_tell_so() {
    for mut relay in registered_on_this_machine() {
        let (h, c) = (relay.listen(&host("one")), relay.enter("c"));
        // One event more would begin another piece.
        relay.broadcast("one", &"x".repeat(65_536 - 92)).unwrap();
        relay.settings.max_data = 0;
        let (mut h, mut c) = (h, c);
        assert!(matches!(h.end(&relay.policy()).done(), Err(Error::DataFull(_))));
        let _ = c.end(&relay.policy()).done();
        drop((h, c));
        (relay.settings.session_lifetime, relay.settings.message_lifetime) = (Duration::ZERO, Duration::ZERO);
        sleep(Duration::from_millis(5));
        for _ in 0..3 {
            let _ = relay.home.store.sweep_all(&relay.policy()).done();
        }
        // Nobody has the id any more.
        relay.register_as("h", "two", Claim::Drawn).unwrap();
    }
}

#[test]
fn a_host_that_was_there_first_is_told_of_all_clients_that_are_killed() {
    for relay in registered() {
        let mut h = relay.listen(&host("one"));
        let names: Vec<_> = (0..60).map(|number| number.to_string()).collect();
        for name in &names {
            let _first = relay.enter(name);
            // It is killed here: nobody has ended it.
            assert_eq!(h.tend(relay.policy()).done().unwrap(), Standing::Listening);
        }
        h.tend(relay.policy()).done().unwrap();
        h.tend(relay.policy()).done().unwrap();
        let mut told = take(&mut h);
        told.sort();
        let mut closed: Vec<_> = names.iter().map(|name| client_closed(name)).collect();
        closed.sort();
        assert_eq!(told, closed);
    }
}

#[test]
fn a_client_of_an_earlier_registration_never_hears_what_is_said_to_those_of_a_later_one() {
    for mut relay in registered() {
        relay.settings.message_lifetime = Duration::from_millis(1);
        let mut earlier = Vec::new();
        for number in 0..20 {
            let h = relay.listen(&host(if number == 0 { "one".to_owned() } else { number.to_string() }.as_str()));
            for other in 0..4 {
                earlier.push(relay.enter(&format!("{number} {other}")));
            }
            relay.end(h);
            relay.register(&(number + 1).to_string()).unwrap();
            sleep(Duration::from_millis(2));
        }
        relay.settings.message_lifetime = super::sessions::HOUR;
        for number in 0..200 {
            let name = format!("later {number}");
            relay.join(&name).unwrap();
            relay.to_client(&name, "secret").unwrap();
        }
        for listener in &mut earlier {
            assert!(!take(listener).contains(&"secret".to_owned()));
        }
    }
}

#[test]
fn whoever_could_not_say_that_it_ends_is_gone_all_the_same() {
    for relay in registered() {
        let node = relay.home.store.listen_as_one().done().unwrap();
        let (h, c) = (relay.listen(&host("one")), relay.enter("c"));
        relay.to_client("c", "said").unwrap();
        // Its thread had no descriptor left.
        drop(c);
        assert!(matches!(relay.to_client("c", "said"), Err(Refused::ClientGone)));
        drop(h);
        relay.register("two").unwrap();
        drop(node);
    }
}

#[test]
fn what_waits_for_others_leaves_no_less_room_for_one() {
    for mut relay in registered() {
        relay.settings.max_queue = 1000;
        let (mut c, mut other) = (relay.enter("c"), relay.enter("other"));
        for _ in 0..6 {
            relay.to_client("other", &"x".repeat(100)).unwrap();
        }
        relay.to_client("c", &"y".repeat(300)).unwrap();
        assert_eq!(take(&mut c), ["y".repeat(300)]);
        assert_eq!(take(&mut other).len(), 6);
        for _ in 0..5 {
            relay.to_client("other", &"x".repeat(100)).unwrap();
        }
        let sent = relay.broadcast("one", &"z".repeat(800)).unwrap();
        assert_eq!(sent, [("c".to_owned(), true), ("other".to_owned(), false)]);
        assert_eq!(take(&mut c), ["z".repeat(800)]);
        assert_eq!(take(&mut other).last(), Some(&lost("other")));
    }
}
