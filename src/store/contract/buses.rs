use super::{Done as _, Home, homes_and_redis as homes, sooner_or_later};
use crate::config::Settings;
use crate::store::buses::{BusEvent, BusName, Proof, Refused, User};
use crate::store::sessions::Standing;
use crate::store::{BusReader, Error, Store};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use std::time::{Duration, Instant};

fn name(text: &str) -> BusName {
    BusName::new(text).unwrap()
}

fn bus() -> BusName {
    name("news")
}

fn settings() -> Settings {
    Settings::default()
}

/// What is to be heard now: messages' data, and `LOST`.
fn heard(reader: &mut BusReader) -> Vec<String> {
    reader.hear();
    reader.look_anew();
    let mut all = Vec::new();
    loop {
        let next = reader.fetch_next(|heard| {
            all.push(match heard {
                BusEvent::Message(message) => message.data.to_owned(),
                BusEvent::Lost(_) => LOST.to_owned(),
            });
        });
        if !next.done().unwrap() {
            return all;
        }
    }
}

const LOST: &str = "lost";

/// What a user hears that comes with this id.
fn heard_after(store: &Store, after: u64, user: User, settings: &Settings) -> Vec<String> {
    heard(&mut store.read(&bus(), after, user, settings).done().unwrap())
}

fn greet(store: &Store) -> User {
    store.greet(&bus(), &settings()).done().unwrap().0
}

fn post(store: &Store, user: User, data: &str) -> u64 {
    store.post(&bus(), user, None, data, &settings()).done().unwrap()
}

fn signature(key: &str, signed: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(signed);
    mac.finalize().into_bytes().to_vec()
}

/// Posts what a user has signed with this key and this number.
fn post_signed(store: &Store, user: User, key: &str, n: u64) -> Result<u64, Refused> {
    let signature = signature(key, b"signed");
    let proof = Proof { n, signed: b"signed", signature: &signature };
    store.post(&bus(), user, Some(proof), "\"signed\"", &settings()).done()
}

/// Sweeps until that has happened: what another process holds at the moment is left for the next round.
fn sweep_until(store: &Store, settings: &Settings, mut has_happened: impl FnMut() -> bool) {
    let began = Instant::now();
    while !has_happened() {
        assert!(began.elapsed() < Duration::from_secs(60), "a sweep does nothing");
        store.sweep_all(&crate::protocol::uhst::policy(settings)).done().unwrap();
    }
}

#[test]
fn all_that_is_posted_is_read_by_all_others_in_one_order() {
    for Home { store, .. } in &homes() {
        let (mut all, (ann, mut bobs)) = (
            store.subscribe(&bus(), None, None, &settings()).done().unwrap(),
            store.enter(&bus(), &settings()).done().unwrap(),
        );
        let bob = greet(store);
        assert_eq!(heard(&mut all), [""; 0]);
        let ids = [post(store, ann, "1"), post(store, bob, "2"), post(store, ann, "3")];
        assert!(ids.is_sorted_by(|one, other| one < other), "ids increase");
        assert_eq!(heard(&mut all), ["1", "2", "3"]);
        assert_eq!(heard(&mut bobs), ["2"], "not what this user has posted itself");
        assert_eq!((heard(&mut all), heard(&mut bobs)), (vec![], vec![]), "once");
        assert_eq!((all.after(), bobs.after()), (ids[2], ids[2]));
    }
}

#[test]
fn a_message_tells_its_id_and_who_has_posted_it() {
    for Home { store, .. } in &homes() {
        let (ann, start) = store.greet(&bus(), &settings()).done().unwrap();
        let posted = post(store, ann, "{\"a\": [1, 2]}");
        let said = store.say(&bus(), ann, "\"b c\"", &settings()).done().unwrap();
        let notified = store.notify(&bus(), "3", &settings()).done().unwrap();
        let mut all = Vec::new();
        let mut reader = store.read(&bus(), start, greet(store), &settings()).done().unwrap();
        while reader
            .fetch_next(|heard| match heard {
                BusEvent::Message(message) => all.push((message.id, message.user, message.data.to_owned())),
                BusEvent::Lost(id) => panic!("lost {id}"),
            })
            .done()
            .unwrap()
        {}
        let expected = [(posted, ann.0, "{\"a\": [1, 2]}"), (said, ann.0, "\"b c\""), (notified, 0, "3")];
        assert_eq!(all, expected.map(|(id, user, data)| (id, user, data.to_owned())));
    }
}

#[test]
fn reading_goes_on_after_any_id_that_was_given_out() {
    for Home { store, .. } in &homes() {
        let (ann, start) = store.greet(&bus(), &settings()).done().unwrap();
        let bob = greet(store);
        let ids: Vec<_> = (0..5).map(|n| post(store, ann, &n.to_string())).collect();
        assert_eq!(heard_after(store, start, bob, &settings()), ["0", "1", "2", "3", "4"]);
        assert_eq!(heard_after(store, ids[2], bob, &settings()), ["3", "4"]);
        assert_eq!(heard_after(store, ids[4], bob, &settings()), [""; 0]);
        assert_eq!(heard_after(store, 0, bob, &settings()), ["0", "1", "2", "3", "4"], "0 is everything, and no loss");
    }
}

#[test]
fn an_id_that_no_message_has_reached_means_what_comes_from_now_on() {
    for Home { store, .. } in &homes() {
        let (ann, bob) = (greet(store), greet(store));
        let last = post(store, ann, "1");
        for ahead in [last + 1, last + 1_000_000, u64::MAX] {
            let mut reader = store.read(&bus(), ahead, bob, &settings()).done().unwrap();
            assert_eq!(heard(&mut reader), [""; 0]);
            post(store, ann, "\"new\"");
            assert_eq!(heard(&mut reader), ["\"new\""], "{ahead}");
        }
    }
}

#[test]
fn whoever_names_no_id_hears_what_is_posted_from_then_on() {
    for Home { store, .. } in &homes() {
        let ann = greet(store);
        post(store, ann, "1");
        let mut named = store.subscribe(&bus(), None, Some(greet(store)), &settings()).done().unwrap();
        let mut nameless = store.subscribe(&bus(), None, None, &settings()).done().unwrap();
        let (_, mut entered) = store.enter(&bus(), &settings()).done().unwrap();
        post(store, ann, "2");
        for reader in [&mut named, &mut nameless, &mut entered] {
            assert_eq!(heard(reader), ["2"]);
        }
    }
}

#[test]
fn whoever_waits_is_woken_by_each_message() {
    for Home { store, .. } in &homes() {
        let ann = greet(store);
        let mut readers = [
            store.subscribe(&bus(), None, None, &settings()).done().unwrap(),
            store.enter(&bus(), &settings()).done().unwrap().1,
            store.read(&bus(), 0, greet(store), &settings()).done().unwrap(),
        ];
        assert!(readers[2].wake().is_none(), "it does not wait");
        readers[2].wait_for_more(&settings()).done().unwrap();
        for data in ["1", "2"] {
            for reader in &readers {
                assert!(!reader.wake().unwrap().is_ready());
            }
            post(store, ann, data);
            for reader in &mut readers {
                let is_woken = || reader.wake().unwrap().is_ready() || !reader.is_surely_woken();
                sooner_or_later(|| is_woken().then_some(()));
                assert_eq!(heard(reader), [data]);
            }
        }
        post(store, ann, "3");
        store.notify(&name("other"), "4", &settings()).done().unwrap();
        assert_eq!(heard(&mut readers[0]), ["3"], "and by no other bus");
    }
}

#[test]
fn no_bus_hears_another() {
    for Home { store, .. } in &homes() {
        let names = ["", "a", "A", "a b", "..", "ä", &"x".repeat(BusName::LONGEST)].map(name);
        let mut readers: Vec<_> =
            names.iter().map(|name| store.subscribe(name, None, None, &settings()).done().unwrap()).collect();
        for (number, name) in names.iter().enumerate() {
            store.notify(name, &number.to_string(), &settings()).done().unwrap();
        }
        for (number, reader) in readers.iter_mut().enumerate() {
            assert_eq!(heard(reader), [number.to_string()]);
        }
    }
}

#[test]
fn nobody_else_is_known() {
    for Home { store, .. } in &homes() {
        let (settings, news) = (settings(), bus());
        assert!(matches!(store.check_user(&news, User(2), &settings).done(), Err(Refused::UnknownBus)));
        assert!(matches!(store.read(&news, 0, User(2), &settings).done(), Err(Refused::UnknownBus)));
        assert!(matches!(store.post(&news, User(2), None, "1", &settings).done(), Err(Refused::UnknownBus)));
        let ann = greet(store);
        store.check_user(&news, ann, &settings).done().unwrap();
        let strangers = [0, ann.0 - 2, ann.0 + 1, ann.0 + 2, u64::MAX - 1, u64::MAX].map(User);
        for user in strangers {
            assert!(matches!(store.check_user(&news, user, &settings).done(), Err(Refused::UnknownUser)), "{user:?}");
            assert!(matches!(store.read(&news, 0, user, &settings).done(), Err(Refused::UnknownUser)));
            assert!(matches!(store.subscribe(&news, None, Some(user), &settings).done(), Err(Refused::UnknownUser)));
            assert!(matches!(store.post(&news, user, None, "1", &settings).done(), Err(Refused::UnknownUser)));
            assert!(matches!(store.say(&news, user, "1", &settings).done(), Err(Refused::UnknownUser)));
        }
        assert_eq!(heard_after(store, 0, ann, &settings), [""; 0], "what is refused is never heard");
    }
}

#[test]
fn no_number_is_given_out_twice() {
    for Home { store, .. } in &homes() {
        let mut plain: Vec<_> = (0..4).map(|_| greet(store).0).collect();
        plain.push(store.enter(&bus(), &settings()).done().unwrap().0.0);
        let registered: Vec<_> = (0..3).map(|_| store.register_user(&bus(), &settings()).done().unwrap().0.0).collect();
        assert!(plain.iter().all(|number| number % 2 == 0) && registered.iter().all(|number| number % 2 == 1));
        let mut all = [plain, registered].concat();
        assert!(all.iter().all(|number| *number > 0 && *number < 1 << 53));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 8);
    }
}

#[test]
fn a_registered_user_posts_what_it_has_signed_and_nothing_twice() {
    for Home { store, .. } in &homes() {
        let (ann, start, key) = store.register_user(&bus(), &settings()).done().unwrap();
        let (_, _, other) = store.register_user(&bus(), &settings()).done().unwrap();
        assert!(key.len() == 64 && key != other);
        assert!(matches!(store.post(&bus(), ann, None, "1", &settings()).done(), Err(Refused::NotSigned)));
        assert!(matches!(post_signed(store, ann, &other, 5), Err(Refused::WrongSignature)));
        post_signed(store, ann, &key, 5).unwrap();
        for stale in [0, 4, 5] {
            assert!(matches!(post_signed(store, ann, &key, stale), Err(Refused::StaleNumber(5))));
        }
        post_signed(store, ann, &key, 6).unwrap();
        assert_eq!(heard_after(store, start, greet(store), &settings()), ["\"signed\""; 2]);
    }
}

#[test]
fn a_signed_bus_is_for_registered_users_only_and_for_all_to_read() {
    for Home { store, .. } in &homes() {
        assert!(store.make_signed_bus(&bus(), &settings()).done().unwrap());
        assert!(!store.make_signed_bus(&bus(), &settings()).done().unwrap(), "it is there already");
        let plain = greet(store);
        assert!(matches!(store.post(&bus(), plain, None, "1", &settings()).done(), Err(Refused::NotRegistered)));
        assert!(matches!(store.say(&bus(), plain, "1", &settings()).done(), Err(Refused::NotRegistered)));
        let (ann, start, key) = store.register_user(&bus(), &settings()).done().unwrap();
        post_signed(store, ann, &key, 1).unwrap();
        assert_eq!(heard_after(store, start, plain, &settings()), ["\"signed\""]);
        store.greet(&name("open"), &settings()).done().unwrap();
        assert!(matches!(store.make_signed_bus(&name("open"), &settings()).done(), Err(Refused::IsOpen)));
    }
}

#[test]
fn there_is_a_limit_to_buses_users_and_readers() {
    for Home { store, .. } in &homes() {
        let few = Settings { max_buses: 1, max_clients: 2, ..settings() };
        let readers = [(); 2].map(|()| store.subscribe(&bus(), None, None, &few).done().unwrap());
        assert!(matches!(store.subscribe(&bus(), None, None, &few).done(), Err(Refused::TooManyReaders(2))));
        assert!(matches!(store.enter(&bus(), &few).done(), Err(Refused::TooManyReaders(2))));
        let [gone, _stays] = readers;
        drop(gone);
        store.subscribe(&bus(), None, None, &few).done().expect("whoever goes makes room");
        for _ in 0..2 {
            store.register_user(&bus(), &few).done().unwrap();
        }
        assert!(matches!(store.register_user(&bus(), &few).done(), Err(Refused::TooManyUsers(2))));
        assert!(matches!(store.greet(&name("other"), &few).done(), Err(Refused::TooManyBuses(1))));
        assert!(matches!(store.notify(&name("other"), "1", &few).done(), Err(Refused::TooManyBuses(1))));
        store.greet(&bus(), &few).done().expect("one that is there is no more");
    }
}

#[test]
fn a_bus_holds_its_most_and_what_is_refused_is_never_heard() {
    for Home { store, .. } in &homes() {
        let small = Settings { max_queue: 20_000, ..settings() };
        let (mut all, data) = (store.subscribe(&bus(), None, None, &small).done().unwrap(), "1".repeat(1000));
        let mut stored = 0;
        let refused = loop {
            match store.notify(&bus(), &data, &small).done() {
                Ok(_) => stored += 1,
                Err(refused) => break refused,
            }
            assert!(stored < 20, "it holds more than its most");
        };
        assert!(matches!(refused, Refused::Store(Error::TopicFull(full)) if full.limit == 20_000));
        assert!(stored > 10);
        assert_eq!(heard(&mut all).len(), stored);
        assert_eq!(heard_after(store, 0, greet(store), &small).len(), stored, "what is alive stays");
    }
}

#[test]
fn whoever_says_too_much_leaves_the_last_quarter_to_others() {
    for Home { store, .. } in &homes() {
        let small = Settings { max_queue: 40_000, ..settings() };
        let (loud, quiet, data) = (greet(store), greet(store), "1".repeat(1000));
        let mut said = 0;
        let refused = loop {
            match store.post(&bus(), loud, None, &data, &small).done() {
                Ok(_) => said += 1,
                Err(refused) => break refused,
            }
        };
        assert!(matches!(refused, Refused::SaysTooMuch(40_000)), "{refused:?}");
        assert!((25..=31).contains(&said), "{said} of 40");
        store.post(&bus(), quiet, None, &data, &small).done().unwrap();
        store.say(&bus(), loud, &data, &small).done().expect("its share is the caller's to watch");
    }
}

#[test]
fn a_message_is_gone_after_its_lifetime_and_whoever_missed_it_is_told() {
    for Home { store, .. } in &homes() {
        let short = Settings { message_lifetime: Duration::from_millis(50), ..settings() };
        let (ann, start) = store.greet(&bus(), &short).done().unwrap();
        let bob = greet(store);
        let first = store.post(&bus(), ann, None, "1", &short).done().unwrap();
        store.post(&bus(), ann, None, "2", &short).done().unwrap();
        let began = Instant::now();
        while heard_after(store, 0, bob, &short).iter().any(|data| data != LOST) {
            assert!(began.elapsed() < Duration::from_secs(60), "it never dies");
            std::thread::sleep(Duration::from_millis(10));
        }
        post(store, ann, "3");
        // It is heard by whoever keeps messages for longer.
        assert_eq!(heard_after(store, first, bob, &settings()), ["2", "3"]);
        assert_eq!(heard_after(store, first, bob, &short)[0], LOST);
        let none = Settings { message_lifetime: Duration::ZERO, ..settings() };
        sweep_until(store, &none, || heard_after(store, start, bob, &settings()) == [LOST]);
        let last = post(store, ann, "4");
        assert_eq!(heard_after(store, first, bob, &settings()), [LOST, "4"], "dropped, and told once");
        assert_eq!(heard_after(store, 0, bob, &settings()), ["4"], "whoever has read nothing has lost nothing");
        assert_eq!(heard_after(store, last, bob, &settings()), [""; 0]);
    }
}

#[test]
fn a_bus_that_nobody_uses_goes_and_none_of_its_numbers_comes_again() {
    for Home { store, .. } in &homes() {
        let (ann, bob) = (greet(store), greet(store));
        let last = post(store, ann, "1");
        let none = Settings { message_lifetime: Duration::ZERO, bus_lifetime: Duration::ZERO, ..settings() };
        let is_gone = || matches!(store.check_user(&bus(), bob, &settings()).done(), Err(Refused::UnknownBus));
        sweep_until(store, &none, is_gone);
        let (new, start) = store.greet(&bus(), &settings()).done().unwrap();
        assert!(start > last && new.0 > bob.0);
        assert!(post(store, new, "2") > last);
        assert!(matches!(store.check_user(&bus(), ann, &settings()).done(), Err(Refused::UnknownUser)));
    }
}

#[test]
fn a_sweep_leaves_what_is_in_use() {
    for Home { store, .. } in &homes() {
        let (ann, start) = store.greet(&bus(), &settings()).done().unwrap();
        let (carl, _, key) = store.register_user(&bus(), &settings()).done().unwrap();
        post(store, ann, "1");
        let mut reader = store.subscribe(&bus(), None, None, &settings()).done().unwrap();
        // What is in the shards of these is gone once the sweep has seen everything.
        let over = Settings { message_lifetime: Duration::ZERO, ..settings() };
        store.greet(&name("other"), &settings()).done().unwrap();
        store.sweep_all(&crate::protocol::uhst::policy(&settings())).done().unwrap();
        assert_eq!(heard_after(store, start, carl, &settings()), ["1"]);
        sweep_until(store, &over, || heard_after(store, start, carl, &settings()) == [LOST]);
        post_signed(store, carl, &key, 1).unwrap();
        post(store, ann, "2");
        assert_eq!(heard(&mut reader), ["\"signed\"", "2"]);
        assert_eq!(reader.tend(&settings()).done().unwrap(), Standing::Listening);
    }
}

#[test]
fn a_reader_learns_that_its_bus_is_gone() {
    for Home { store, .. } in &homes() {
        let (_, mut reader) = store.enter(&bus(), &settings()).done().unwrap();
        assert_eq!(reader.tend(&settings()).done().unwrap(), Standing::Listening);
        let none = Settings { message_lifetime: Duration::ZERO, bus_lifetime: Duration::ZERO, ..settings() };
        sweep_until(store, &none, || reader.tend(&settings()).done().unwrap() == Standing::Over);
    }
}

#[test]
fn many_post_at_once_and_all_is_read_once() {
    for Home { store, .. } in &homes() {
        let mut all = store.subscribe(&bus(), None, None, &settings()).done().unwrap();
        std::thread::scope(|scope| {
            for user in 0..4 {
                scope.spawn(move || {
                    for n in 0..10 {
                        post(store, greet(store), &format!("{user}{n}"));
                    }
                });
            }
        });
        let heard = heard(&mut all);
        for user in ["0", "1", "2", "3"] {
            let own: Vec<_> = heard.iter().filter(|data| data.starts_with(user)).cloned().collect();
            assert_eq!(own, (0..10).map(|n| format!("{user}{n}")).collect::<Vec<_>>(), "in the order of posting");
        }
        assert_eq!(heard.len(), 40);
    }
}
