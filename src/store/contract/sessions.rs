use super::{Done as _, Home, homes_and_redis as homes, sooner_or_later};
use crate::config::Settings;
use crate::protocol::uhst::policy;
use crate::store::sessions::{Claim, Party, Policy, Refused, Standing};
use crate::store::{Error, Listener};
use crate::token::{ClientId, HostId};
use std::thread::sleep;
use std::time::{Duration, Instant};

pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// A home, and the limits and times that hold there.
pub(super) struct Relay {
    pub(super) home: Home,
    pub(super) settings: Settings,
}

pub(super) fn relays() -> impl Iterator<Item = Relay> {
    relays_of(homes())
}

fn relays_of(homes: Vec<Home>) -> impl Iterator<Item = Relay> {
    // Nothing ends by itself while a test runs.
    let settings = || Settings { message_lifetime: HOUR, session_lifetime: HOUR, ..Settings::default() };
    homes.into_iter().map(move |home| Relay { home, settings: settings() })
}

/// The same in homes on this machine, which count the bytes of all sessions. A Redis has its own limit of memory.
pub(super) fn registered_on_this_machine() -> impl Iterator<Item = Relay> {
    relays_of(super::homes()).inspect(|relay| relay.register("one").unwrap())
}

/// The same where the host `h` has been registered as `one`.
pub(super) fn registered() -> impl Iterator<Item = Relay> {
    relays().inspect(|relay| relay.register("one").unwrap())
}

pub(super) fn id(text: &str) -> HostId {
    HostId::new(text).unwrap()
}

pub(super) fn client_id(text: &str) -> ClientId {
    ClientId::new(text).unwrap()
}

pub(super) fn host(registration: &str) -> Party {
    Party { host: id("h"), client: None, registration: Some(registration.to_owned()) }
}

pub(super) fn client(client: &str, registration: &str) -> Party {
    Party { client: Some(client_id(client)), ..host(registration) }
}

pub(super) fn minted(party: Party) -> Party {
    Party { registration: None, ..party }
}

pub(super) fn lost(id: &str) -> String {
    format!(r#"{{"eventType":"messages_lost","body":"{id}"}}"#)
}

pub(super) fn host_closed() -> String {
    r#"{"eventType":"host_closed","body":"h"}"#.to_owned()
}

pub(super) fn client_closed(id: &str) -> String {
    format!(r#"{{"eventType":"client_closed","body":"{id}"}}"#)
}

impl Relay {
    pub(super) fn policy(&self) -> Policy<'_> {
        policy(&self.settings)
    }

    pub(super) fn register_as(&self, host: &str, registration: &str, claim: Claim) -> Result<(), Refused> {
        self.home.store.register(&id(host), registration, claim, &self.policy()).done()
    }

    pub(super) fn register(&self, registration: &str) -> Result<(), Refused> {
        self.register_as("h", registration, Claim::Chosen)
    }

    pub(super) fn join(&self, client: &str) -> Result<Option<String>, Refused> {
        self.home.store.join(&id("h"), &client_id(client), &self.policy()).done()
    }

    pub(super) fn to_host(&self, from: &Party, data: &str) -> Result<(), Refused> {
        self.home.store.send_to_host(from, data, &self.policy()).done()
    }

    pub(super) fn to_client(&self, client: &str, data: &str) -> Result<(), Refused> {
        self.home.store.send_to_client(&id("h"), &client_id(client), data, &self.policy()).done()
    }

    /// Who is told, sorted, and whether it gets it.
    pub(super) fn broadcast(&self, registration: &str, data: &str) -> Result<Vec<(String, bool)>, Refused> {
        let answer = self.home.store.broadcast(&host(registration), data, &self.policy()).done()?;
        let mut answer: Vec<_> = answer.into_iter().map(|(id, is_sent)| (id.as_str().to_owned(), is_sent)).collect();
        answer.sort();
        Ok(answer)
    }

    pub(super) fn try_listen(&self, party: &Party, resume: Option<u64>) -> Result<Listener, Refused> {
        self.home.store.listen(party, resume, &self.policy()).done()
    }

    pub(super) fn listen(&self, party: &Party) -> Listener {
        self.try_listen(party, None).unwrap()
    }

    pub(super) fn would_listen(&self, party: &Party) -> Result<(), Refused> {
        self.home.store.would_listen(party, None, &self.policy()).done()
    }

    pub(super) fn end(&self, mut listener: Listener) {
        listener.end(&self.policy()).done().unwrap();
    }

    /// Joins, and listens.
    pub(super) fn enter(&self, name: &str) -> Listener {
        let registration = self.join(name).unwrap().unwrap();
        self.listen(&client(name, &registration))
    }

    pub(super) fn sweep(&self) {
        self.home.store.sweep_all(&self.policy()).done().unwrap();
    }
}

/// The ids and the data of what is there, which is then not noted as written.
pub(super) fn look(listener: &mut Listener) -> Vec<(u64, String)> {
    let mut events = Vec::new();
    listener.hear();
    listener.look_anew();
    while listener.next(|event| events.push((event.id, event.data.to_owned()))).done().unwrap() {}
    events
}

pub(super) fn take(listener: &mut Listener) -> Vec<String> {
    let events = look(listener);
    listener.delivered().done().unwrap();
    events.into_iter().map(|(_, data)| data).collect()
}

pub(super) fn until(mut has_happened: impl FnMut() -> bool) {
    let began = Instant::now();
    while !has_happened() {
        assert!(began.elapsed() < Duration::from_secs(60), "it does not happen");
        sleep(Duration::from_millis(1));
    }
}

// ---- hosts

#[test]
fn an_id_that_was_chosen_belongs_to_one_host_until_that_has_gone() {
    for relay in registered() {
        assert!(matches!(relay.register("two"), Err(Refused::Taken)), "it may still begin to listen");
        let listener = relay.listen(&host("one"));
        assert!(matches!(relay.register("two"), Err(Refused::Taken)));
        relay.end(listener);
        relay.register("two").unwrap();
        assert!(matches!(relay.try_listen(&host("one"), None), Err(Refused::Expired)));
        relay.listen(&host("two"));
    }
}

#[test]
fn an_id_that_was_drawn_is_one_that_no_host_has_present_or_not() {
    for relay in relays() {
        relay.register_as("h", "one", Claim::Drawn).unwrap();
        relay.end(relay.listen(&host("one")));
        assert!(matches!(relay.register_as("h", "two", Claim::Drawn), Err(Refused::Taken)));
        relay.register_as("h", "two", Claim::Chosen).unwrap();
    }
}

#[test]
fn a_registration_that_is_refused_changes_nothing() {
    for relay in registered() {
        relay.join("c").unwrap();
        relay.register("two").unwrap_err();
        relay.to_host(&client("c", "one"), "said").unwrap();
        assert_eq!(take(&mut relay.listen(&host("one"))), ["said"]);
    }
}

#[test]
fn there_is_a_limit_to_the_hosts() {
    for mut relay in relays() {
        relay.settings.max_hosts = 2;
        relay.register_as("a", "one", Claim::Chosen).unwrap();
        relay.register_as("b", "one", Claim::Drawn).unwrap();
        assert!(matches!(relay.register_as("c", "one", Claim::Chosen), Err(Refused::TooManyHosts(2))));
        let minted = Party { host: id("d"), client: None, registration: None };
        assert!(matches!(relay.try_listen(&minted, None), Err(Refused::TooManyHosts(2))));
    }
}

#[test]
fn sessions_do_not_hear_each_other() {
    for relay in registered() {
        relay.register_as("g", "one", Claim::Chosen).unwrap();
        let (mut ours, mut host_of_ours) = (relay.enter("c"), relay.listen(&host("one")));
        let other = Party { host: id("g"), client: None, registration: Some("one".to_owned()) };
        let mut host_of_other = relay.listen(&other);
        relay.home.store.join(&id("g"), &client_id("c"), &relay.policy()).done().unwrap();
        let there = Party { client: Some(client_id("c")), ..other.clone() };
        relay.to_host(&there, "to the other").unwrap();
        relay.home.store.broadcast(&other, "from the other", &relay.policy()).done().unwrap();
        assert_eq!(take(&mut host_of_other), ["to the other"]);
        assert!(take(&mut ours).is_empty() && take(&mut host_of_ours).is_empty());
    }
}

// ---- joining

#[test]
fn a_client_joins_a_host_that_is_there_and_learns_which_registration() {
    for relay in relays() {
        assert!(matches!(relay.join("c"), Err(Refused::UnknownHost)));
        relay.register("one").unwrap();
        assert_eq!(relay.join("c").unwrap().unwrap(), "one", "before it listens");
        let listener = relay.listen(&host("one"));
        assert_eq!(relay.join("d").unwrap().unwrap(), "one");
        relay.end(listener);
        assert!(matches!(relay.join("e"), Err(Refused::UnknownHost)));
    }
}

#[test]
fn there_is_a_limit_to_the_clients_that_are_there() {
    for mut relay in registered() {
        relay.settings.max_clients = 2;
        let first = relay.enter("c");
        relay.join("d").unwrap();
        assert!(matches!(relay.join("e"), Err(Refused::TooManyClients(2))));
        let stranger = minted(client("m", "one"));
        assert!(matches!(relay.to_host(&stranger, "no"), Err(Refused::TooManyClients(2))));
        relay.end(first);
        relay.join("e").unwrap();
        assert!(matches!(relay.join("f"), Err(Refused::TooManyClients(2))), "nobody gives way who came just now");
    }
}

// ---- messages

#[test]
fn what_is_said_before_anybody_listens_waits() {
    for relay in registered() {
        relay.join("c").unwrap();
        relay.to_host(&client("c", "one"), "to the host").unwrap();
        relay.to_client("c", "to the client").unwrap();
        assert_eq!(relay.broadcast("one", "to all").unwrap(), [("c".to_owned(), true)]);
        assert_eq!(take(&mut relay.listen(&host("one"))), ["to the host"]);
        assert_eq!(take(&mut relay.listen(&client("c", "one"))), ["to the client", "to all"]);
    }
}

#[test]
fn broadcasts_and_messages_to_one_come_in_the_order_of_the_calls() {
    for relay in registered() {
        let (mut c, mut d) = (relay.enter("c"), relay.enter("d"));
        for number in 0..5 {
            relay.to_client("c", &format!("c {number}")).unwrap();
            relay.broadcast("one", &format!("all {number}")).unwrap();
            relay.to_client("d", &format!("d {number}")).unwrap();
        }
        let of_c: Vec<_> = (0..5).flat_map(|n| [format!("c {n}"), format!("all {n}")]).collect();
        let of_d: Vec<_> = (0..5).flat_map(|n| [format!("all {n}"), format!("d {n}")]).collect();
        assert_eq!((take(&mut c), take(&mut d)), (of_c, of_d));
    }
}

#[test]
fn the_host_hears_all_clients_in_the_order_of_the_calls() {
    for relay in registered() {
        let mut listener = relay.listen(&host("one"));
        for name in ["c", "d"] {
            relay.join(name).unwrap();
        }
        for (name, data) in [("c", "1"), ("d", "2"), ("d", "3"), ("c", "4")] {
            relay.to_host(&client(name, "one"), data).unwrap();
        }
        assert_eq!(take(&mut listener), ["1", "2", "3", "4"]);
    }
}

#[test]
fn only_the_one_to_which_something_is_said_is_woken() {
    for relay in registered() {
        let (mut c, d, h) = (relay.enter("c"), relay.enter("d"), relay.listen(&host("one")));
        let are_woken = |all: [&Listener; 3]| all.map(|one| one.wake().unwrap().is_ready());
        assert_eq!(are_woken([&c, &d, &h]), [false; 3]);
        relay.to_client("c", "said").unwrap();
        sooner_or_later(|| (are_woken([&c, &d, &h]) == [true, false, false]).then_some(()));
        assert_eq!(take(&mut c), ["said"]);
        assert!(!c.wake().unwrap().is_ready(), "it has heard");
        relay.broadcast("one", "said").unwrap();
        sooner_or_later(|| (are_woken([&c, &d, &h]) == [true, true, false]).then_some(()));
    }
}

#[test]
fn a_message_is_given_once() {
    for relay in registered() {
        let mut c = relay.enter("c");
        relay.to_client("c", "first").unwrap();
        assert_eq!(take(&mut c), ["first"]);
        assert!(take(&mut c).is_empty());
        relay.to_client("c", "second").unwrap();
        let mut next = relay.listen(&client("c", "one"));
        assert_eq!(take(&mut next), ["second"]);
        assert!(take(&mut next).is_empty());
    }
}

#[test]
fn what_may_not_have_been_written_is_given_again() {
    for relay in registered() {
        let mut c = relay.enter("c");
        relay.to_client("c", "said").unwrap();
        assert_eq!(look(&mut c).len(), 1);
        drop(c);
        assert_eq!(take(&mut relay.listen(&client("c", "one"))), ["said"]);
    }
}

#[test]
fn what_is_refused_as_too_much_is_never_seen_and_there_is_room_once_it_is_read() {
    for mut relay in registered() {
        relay.settings.max_queue = 1000;
        let (mut h, mut c) = (relay.listen(&host("one")), relay.enter("c"));
        let big = |letter: &str| letter.repeat(800);
        for letter in ["a", "b"] {
            relay.to_host(&client("c", "one"), &big(letter)).unwrap();
            relay.to_client("c", &big(letter)).unwrap();
            for refused in [relay.to_host(&client("c", "one"), &big("x")), relay.to_client("c", &big("x"))] {
                assert!(matches!(refused, Err(Refused::Store(Error::QueueFull(full))) if full.limit == 1000));
            }
            assert_eq!((take(&mut h), take(&mut c)), (vec![big(letter)], vec![big(letter)]));
        }
    }
}

#[test]
fn one_that_lags_is_left_out_of_a_broadcast_told_so_once_and_goes_on() {
    for mut relay in registered() {
        relay.settings.max_queue = 1000;
        let (mut slow, mut quick) = (relay.enter("slow"), relay.enter("quick"));
        let big = |letter: &str| letter.repeat(800);
        let answer = |is_slow_sent| [("quick".to_owned(), true), ("slow".to_owned(), is_slow_sent)];
        for (letter, is_slow_sent) in [("a", true), ("b", false), ("c", false)] {
            assert_eq!(relay.broadcast("one", &big(letter)).unwrap(), answer(is_slow_sent));
            assert_eq!(take(&mut quick), [big(letter)], "it is not held up");
        }
        assert_eq!(take(&mut slow), [big("a"), lost("slow")]);
        assert_eq!(relay.broadcast("one", &big("d")).unwrap(), answer(true));
        assert_eq!((take(&mut slow), take(&mut quick)), (vec![big("d")], vec![big("d")]));
    }
}

#[test]
fn the_clients_log_has_a_limit_and_room_again_once_what_it_holds_is_too_old() {
    for mut relay in registered() {
        relay.settings.max_topic = 1000;
        let mut c = relay.enter("c");
        relay.broadcast("one", &"a".repeat(800)).unwrap();
        let refused = relay.broadcast("one", &"x".repeat(800));
        assert!(matches!(refused, Err(Refused::Store(Error::TopicFull(full))) if full.limit == 1000));
        assert_eq!(take(&mut c), ["a".repeat(800)]);
        relay.settings.message_lifetime = Duration::from_millis(1);
        until(|| relay.broadcast("one", &"b".repeat(800)).is_ok());
        assert_eq!(take(&mut c), ["b".repeat(800)]);
    }
}

#[test]
fn a_broadcast_needs_somebody_and_the_current_registration() {
    for relay in registered() {
        assert!(matches!(relay.broadcast("one", "said"), Err(Refused::NobodyThere)));
        assert!(matches!(relay.broadcast("another", "said"), Err(Refused::Expired)));
        relay.join("c").unwrap();
        assert!(matches!(relay.broadcast("another", "said"), Err(Refused::Expired)));
        assert!(take(&mut relay.listen(&client("c", "one"))).is_empty());
    }
}

// ---- who is there

#[test]
fn nothing_is_said_to_one_that_has_gone() {
    for relay in registered() {
        let (h, c) = (relay.listen(&host("one")), relay.enter("c"));
        relay.join("d").unwrap();
        relay.end(c);
        assert!(matches!(relay.to_client("c", "no"), Err(Refused::ClientGone)));
        assert!(matches!(relay.to_client("unknown", "no"), Err(Refused::ClientGone)));
        assert_eq!(relay.broadcast("one", "yes").unwrap(), [("d".to_owned(), true)]);
        relay.end(h);
        assert!(matches!(relay.to_host(&client("d", "one"), "no"), Err(Refused::HostGone)));
        assert!(take(&mut relay.listen(&host("one"))).iter().all(|data| data != "no"));
        assert!(take(&mut relay.listen(&client("c", "one"))).iter().all(|data| data != "no"));
    }
}

#[test]
fn whoever_comes_back_within_the_grace_has_not_been_away() {
    for mut relay in registered() {
        relay.settings.grace = HOUR;
        let (mut h, mut c) = (relay.listen(&host("one")), relay.enter("c"));
        relay.end(relay.listen(&client("c", "one")));
        relay.to_client("c", "said").unwrap();
        assert_eq!(relay.broadcast("one", "to all").unwrap(), [("c".to_owned(), true)]);
        assert_eq!(c.standing().done().unwrap(), Standing::Superseded);
        c = relay.listen(&client("c", "one"));
        relay.end(relay.listen(&host("one")));
        relay.to_host(&client("c", "one"), "said").unwrap();
        assert!(matches!(relay.register("two"), Err(Refused::Taken)));
        relay.sweep();
        h.hear();
        h = relay.listen(&host("one"));
        for listener in [&mut h, &mut c] {
            assert_eq!(listener.tend(relay.policy()).done().unwrap(), Standing::Listening);
        }
        assert_eq!(
            (take(&mut h), take(&mut c)),
            (vec!["said".to_owned()], vec!["said".to_owned(), "to all".to_owned()])
        );
    }
}

#[test]
fn the_host_is_told_once_of_a_client_that_has_gone_and_of_no_other() {
    for relay in registered() {
        let (mut h, c, mut d) = (relay.listen(&host("one")), relay.enter("c"), relay.enter("d"));
        relay.end(c);
        for _ in 0..2 {
            h.tend(relay.policy()).done().unwrap();
            d.tend(relay.policy()).done().unwrap();
            relay.sweep();
        }
        assert_eq!(take(&mut h), [client_closed("c")]);
        assert!(take(&mut d).is_empty());
    }
}

#[test]
fn all_clients_are_told_once_of_a_host_that_has_gone() {
    for relay in registered() {
        let (h, mut c) = (relay.listen(&host("one")), relay.enter("c"));
        relay.join("d").unwrap();
        relay.end(h);
        for _ in 0..2 {
            c.tend(relay.policy()).done().unwrap();
            relay.sweep();
        }
        relay.register("two").unwrap();
        assert_eq!(take(&mut c), [host_closed()]);
        assert_eq!(take(&mut relay.listen(&client("d", "one"))), [host_closed()]);
    }
}

#[test]
fn the_peers_notice_one_that_ends_without_a_word() {
    for relay in registered() {
        let (mut h, c, mut d) = (relay.listen(&host("one")), relay.enter("c"), relay.enter("d"));
        drop(c);
        let mut heard = Vec::new();
        until(|| {
            h.tend(relay.policy()).done().unwrap();
            heard.extend(take(&mut h));
            !heard.is_empty()
        });
        assert_eq!(heard, [client_closed("c")]);
        drop(h);
        heard.clear();
        until(|| {
            d.tend(relay.policy()).done().unwrap();
            heard.extend(take(&mut d));
            !heard.is_empty()
        });
        assert_eq!(heard, [host_closed()]);
    }
}
