//! What relies on a roster that is kept.

use super::super::super::test_dir::TestDir;
use super::super::super::{Files, node::OneNode};
use super::super::listener::Listener;
use crate::config::Settings;
use crate::protocol::uhst::policy;
use crate::store::sessions::{Claim, Party, Refused};
use crate::token::{ClientId, HostId};
use std::time::{Duration, Instant};

/// A session of a process in which many listen, and the same as another process has it.
struct Place {
    here: Files,
    elsewhere: Files,
    settings: Settings,
    _node: OneNode,
    _dir: TestDir,
}

fn party(client: &str) -> Party {
    let (host, client) = (HostId::new("h").unwrap(), ClientId::new(client));
    Party { host, client, registration: Some("one".to_owned()) }
}

impl Place {
    fn new() -> Self {
        let dir = TestDir::new();
        std::fs::create_dir(dir.join("data")).unwrap();
        std::os::unix::fs::symlink(dir.join("data"), dir.join("alias")).unwrap();
        let (here, elsewhere) = (Files::new(&dir.join("data")), Files::new(&dir.join("alias")));
        let settings = Settings { grace: Duration::ZERO, ..Settings::default() };
        let node = here.listen_as_one().unwrap();
        here.register(&HostId::new("h").unwrap(), "one", Claim::Drawn, &policy(&settings)).unwrap();
        Self { here, elsewhere, settings, _node: node, _dir: dir }
    }

    fn enter(&self, files: &Files, client: &str) -> Listener {
        let (who, policy) = (party(client), policy(&self.settings));
        files.join(&who.host, who.client.as_ref().unwrap(), &policy).unwrap();
        files.listen(&who, None, &policy).unwrap()
    }

    fn broadcast(&self, data: &str) -> Vec<(String, bool)> {
        match self.here.broadcast(&party(""), data, &policy(&self.settings)) {
            Ok(sent) => sent.into_iter().map(|(client, is_sent)| (client.as_str().to_owned(), is_sent)).collect(),
            Err(Refused::NobodyThere) => Vec::new(),
            Err(other) => panic!("{other:?}"),
        }
    }

    /// Broadcasts until the next one has the table in memory: other tests, or a slow machine, may keep it from that.
    fn broadcast_until_known(&self) -> Vec<(String, bool)> {
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            let sent = self.broadcast("1");
            let (host, policy) = (party("").host, policy(&self.settings));
            if self.here.session(&host, &policy).unwrap().unwrap().known.roster.is_some() {
                return sent;
            }
        }
        panic!("each broadcast reads the table again, though nothing changes");
    }
}

fn is_sent_to(sent: &[(String, bool)]) -> Vec<&str> {
    let mut names: Vec<_> = sent.iter().filter_map(|(name, is_sent)| is_sent.then_some(name.as_str())).collect();
    names.sort_unstable();
    names
}

#[test]
fn whoever_comes_or_goes_in_another_process_is_seen_by_the_next_broadcast() {
    let place = Place::new();
    let _first = place.enter(&place.here, "first");
    for number in 0..20 {
        assert_eq!(is_sent_to(&place.broadcast_until_known()), ["first"]);
        let name = format!("other {number}");
        let mut other = place.enter(&place.elsewhere, &name);
        assert_eq!(is_sent_to(&place.broadcast("1")), ["first", &name]);
        other.end(&policy(&place.settings)).unwrap();
        drop(other);
        let _ = place.broadcast("1");
    }
}

#[test]
fn a_host_is_woken_by_what_is_said_to_it_and_not_by_what_it_says() {
    let place = Place::new();
    let mut host = place.here.listen(&party(""), None, &policy(&place.settings)).unwrap();
    let first = place.enter(&place.here, "first");
    let is_woken = |listener: &Listener| listener.wake().is_some_and(|wake| wake.is_ready());
    while is_woken(&host) {
        host.hear();
    }
    assert_eq!(is_sent_to(&place.broadcast("1")), ["first"]);
    assert!(is_woken(&first) && !is_woken(&host));
    place.here.send_to_host(&party("first"), "2", &policy(&place.settings)).unwrap();
    assert!(is_woken(&host));
}

#[test]
fn whoever_is_killed_among_many_is_not_said_to_get_the_next_broadcast() {
    let place = Place::new();
    let _first = place.enter(&place.here, "first");
    for number in 0..20 {
        let other = place.enter(&place.here, &number.to_string());
        assert_eq!(place.broadcast_until_known().len(), 2);
        // It could not write that it ends.
        drop(other);
        assert_eq!(is_sent_to(&place.broadcast("1")), ["first"]);
    }
}

#[test]
fn whoever_reads_is_left_out_of_nothing_and_whoever_does_not_is() {
    let mut place = Place::new();
    place.settings.max_queue = 2000;
    let (mut reads, _sleeps) = (place.enter(&place.here, "reads"), place.enter(&place.here, "sleeps"));
    let data = "x".repeat(300);
    let mut left_out = 0;
    for number in 0..40 {
        let sent = place.broadcast(&data);
        assert!(is_sent_to(&sent).contains(&"reads"), "{number}");
        left_out += usize::from(!is_sent_to(&sent).contains(&"sleeps"));
        reads.hear();
        while reads.next(|_| {}).unwrap() {}
        reads.delivered().unwrap();
        // A message to it alone goes by the same.
        place
            .here
            .send_to_client(&party("").host, &ClientId::new("reads").unwrap(), &data, &policy(&place.settings))
            .unwrap();
    }
    assert!(left_out > 30, "{left_out}");
}

#[test]
fn whoever_reads_in_another_process_is_left_out_of_nothing() {
    let mut place = Place::new();
    place.settings.max_queue = 2000;
    let (mut reads, _first) = (place.enter(&place.elsewhere, "reads"), place.enter(&place.here, "first"));
    for number in 0..40 {
        assert!(is_sent_to(&place.broadcast(&"x".repeat(300))).contains(&"reads"), "{number}");
        reads.hear();
        while reads.next(|_| {}).unwrap() {}
        reads.delivered().unwrap();
    }
}
