use super::super::kept::keep_files;
use super::super::test_dir::TestDir;
use super::*;
use std::cell::Cell;

const KEEP: Keep = Keep { lifetime: Duration::from_secs(60), given: u64::MAX, most: u64::MAX, most_of_all: u64::MAX };
const LONG_AGO: Duration = Duration::from_secs(600);
const ONE: Address = Address::One(1);

fn topic(dir: &TestDir, keep: Keep) -> Topic {
    Topic { log: dir.join("log"), keep, files: Files::new(&dir.join("data")) }
}

fn append(topic: &Topic, time: u64, to: &Address, floor: u64) -> Result<u64, Error> {
    topic.open()?.append(time, to, MESSAGE, &"x".repeat(500), || Ok(floor))
}

/// Appends so many, and tells their ids.
fn fill(topic: &Topic, count: usize, time: u64) -> Vec<u64> {
    (0..count).map(|_| append(topic, time, &ONE, 0).unwrap()).collect()
}

fn base(topic: &Topic) -> u64 {
    topic.reader(0).unwrap().base()
}

fn old() -> u64 {
    oldest(LONG_AGO)
}

#[test]
fn what_is_too_old_goes_whoever_needs_it() {
    let dir = TestDir::new();
    let topic = topic(&dir, KEEP);
    let dead = fill(&topic, 20, old());
    let alive = fill(&topic, 10, now_ms());
    topic.trim(0).unwrap();
    assert_eq!((base(&topic), topic.end().unwrap()), (dead[19], alive[9]));
    assert!(!beside(&topic.log, "new").exists());
}

#[test]
fn what_all_have_been_given_goes_but_for_the_last_of_it() {
    let dir = TestDir::new();
    let topic = topic(&dir, Keep { given: 2000, ..KEEP });
    let (first, ids) = (topic.end().unwrap(), fill(&topic, 100, now_ms()));
    topic.trim(0).unwrap();
    assert_eq!(base(&topic), first, "somebody still needs all of it");
    let floor = ids[79];
    topic.trim(floor).unwrap();
    assert!(base(&topic) <= floor - 1000 && base(&topic) >= floor - 2000, "{} before", floor - base(&topic));
    topic.trim(u64::MAX).unwrap();
    assert!(base(&topic) < ids[99], "a floor that is nowhere is the end");
}

#[test]
fn what_is_not_worth_the_copying_stays() {
    let dir = TestDir::new();
    let topic = topic(&dir, KEEP);
    let first = topic.end().unwrap();
    fill(&topic, 10, old());
    let last = fill(&topic, 11, now_ms())[10];
    topic.trim(0).unwrap();
    assert_eq!((base(&topic), topic.end().unwrap()), (first, last));
}

#[test]
fn a_log_is_full_of_what_is_alive_only() {
    let most = 20_000;
    let dir = TestDir::new();
    let alive = topic(&dir, Keep { most, ..KEEP });
    let mut stored = 0;
    let refused = loop {
        match append(&alive, now_ms(), &ONE, 0) {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 40, "it takes more than its most");
    };
    assert!(matches!(refused, Error::TopicFull(Full { limit }) if limit == most) && stored > 30, "{refused} {stored}");
    let end = alive.end().unwrap();
    assert!(append(&alive, now_ms(), &ONE, 0).is_err());
    assert_eq!(alive.end().unwrap(), end, "what is refused leaves it as it was");

    let dir = TestDir::new();
    let dead = topic(&dir, Keep { most, ..KEEP });
    fill(&dead, 200, old());
    let other_dir = TestDir::new();
    let given = topic(&other_dir, Keep { most, given: 0, ..KEEP });
    for _ in 0..200 {
        append(&given, now_ms(), &ONE, given.end().unwrap()).unwrap();
    }
    for topic in [dead, given] {
        let size = std::fs::metadata(&topic.log).unwrap().len();
        assert!(size < 3 * most, "{size} bytes, of which nothing is alive");
    }
}

#[test]
fn the_floor_is_asked_for_seldom() {
    let dir = TestDir::new();
    let topic = topic(&dir, KEEP);
    let asked = Cell::new(0);
    let size = 1000;
    for _ in 0..600 {
        let floor = || {
            asked.set(asked.get() + 1);
            Ok(0)
        };
        topic.open().unwrap().append(now_ms(), &ONE, MESSAGE, &"x".repeat(size), floor).unwrap();
    }
    assert_eq!(asked.get(), 600 * (size + 34) / usize::try_from(WORTH_TRIMMING).unwrap());
}

#[test]
fn all_logs_together_have_a_limit() {
    let dir = TestDir::new();
    let keep = Keep { most_of_all: 100_000, ..KEEP };
    let (one, mut other) = (topic(&dir, keep), topic(&dir, keep));
    other.log = dir.join("other");
    fill(&one, 150, now_ms());
    fill(&other, 100, now_ms());
    let end = other.end().unwrap();
    let refused = (0..100).find_map(|_| append(&other, now_ms(), &ONE, 0).err()).expect("a limit");
    assert!(matches!(refused, Error::DataFull(Full { limit: 100_000 })), "{refused}");
    assert!(other.end().unwrap() - end < 20_000);
}

#[test]
fn a_missing_log_is_made_for_whoever_will_wait_and_for_nobody_else() {
    let dir = TestDir::new();
    let topic = topic(&dir, KEEP);
    assert!(reader_if_any(&topic.log, 0).unwrap().is_none() && !topic.log.exists());
    assert!(!topic.has_alive().unwrap() && !is_any(&topic.log, 0, |_| true, |_| true).unwrap() && !topic.log.exists());
    topic.reader(0).unwrap();
    assert!(topic.log.exists());
    // Whoever has it open must see the damage, too.
    keep_files();
    for damaged in ["", "half", &"x".repeat(1000)] {
        std::fs::write(&topic.log, damaged).unwrap();
        topic.reader(0).unwrap();
        assert_eq!(base(&topic), topic.end().unwrap(), "{damaged}");
    }
}

#[test]
fn only_a_message_that_is_alive_and_for_somebody_waits_for_it() {
    let dir = TestDir::new();
    let topic = topic(&dir, KEEP);
    let start = topic.end().unwrap();
    let waits = |position| topic.has_message(position, |to| *to == ONE).unwrap();
    append(&topic, old(), &ONE, 0).unwrap();
    assert!(!waits(start) && !topic.has_alive().unwrap(), "it is too old");
    topic.open().unwrap().append(now_ms(), &ONE, "relay_event", "{}", || Ok(0)).unwrap();
    assert!(!waits(start) && topic.has_alive().unwrap(), "it is the relay's own");
    append(&topic, now_ms(), &Address::One(2), 0).unwrap();
    assert!(!waits(start), "it is another's");
    let id = append(&topic, now_ms(), &ONE, 0).unwrap();
    assert!(waits(start) && !waits(id));
}

#[test]
fn a_member_lags_behind_what_is_for_it() {
    let dir = TestDir::new();
    let topic = topic(&dir, KEEP);
    let start = topic.end().unwrap();
    let others = fill(&topic, 50, now_ms())[49];
    let lag = |position, limit, slot| {
        topic.lag(position, topic.end().unwrap(), limit, |to| *to == Address::One(slot)).unwrap()
    };
    assert_eq!((lag(others, 0, 1), lag(others, 0, 2)), (0, 0), "whoever has all of it");
    assert_eq!(lag(start, 1000, 2), 0, "nothing of it was for this one");
    assert!(lag(start, 1000, 1) > 25_000);
    let own = append(&topic, now_ms(), &Address::One(2), 0).unwrap();
    let end = fill(&topic, 10, now_ms())[9];
    assert!((end - own..=end - others).contains(&lag(start, 1000, 2)), "from the first one on");
    assert_eq!(lag(start, u64::MAX, 2), end - start, "below the limit nobody looks");
}

#[test]
fn a_record_is_for_the_member_in_its_slot_or_all_of_its_generations() {
    let all = |generation, except| Address::All { generation, except };
    assert!(is_for(&ONE, 1, &(0..=0)) && !is_for(&ONE, 2, &(0..=0)));
    assert!(is_for(&all(3, vec![]), 7, &(2..=3)) && is_for(&all(2, vec![]), 7, &(2..=3)));
    assert!(!is_for(&all(1, vec![]), 7, &(2..=3)) && !is_for(&all(4, vec![]), 7, &(2..=3)));
    assert!(is_for(&all(3, vec![7]), 7, &(3..=3)), "it stands there that this one was left out");
}
