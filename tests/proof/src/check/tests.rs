//! The checker is checked.

use super::*;

const LIFETIME: Duration = Duration::from_secs(20);

fn at(ms: u64) -> Time {
    Duration::from_millis(ms)
}

fn send(n: u32, outcome: Outcome) -> Send {
    let readers = vec![0];
    let (must, may) = match outcome {
        Outcome::Accepted => (readers, vec![]),
        Outcome::Refused(_) => (vec![], vec![]),
        Outcome::Unknown => (vec![], readers),
    };
    let begun = at(1000 * u64::from(n) + 1000);
    Send { sender: 7, n, begun, ended: begun + at(2), outcome, must, may, without: vec![], id: None }
}

fn reader(heard: &[(u64, u32)]) -> Log {
    let said = |n| Said::Message { sender: 7, n };
    Log {
        connections: vec![Connection {
            opened: at(0),
            closed: at(60_000),
            resumed: None,
            resumed_from: at(0),
            note: "",
        }],
        heard: heard.iter().map(|&(id, n)| Heard { at: at(id), id: Some(id), said: said(n) }).collect(),
        bus: Some(0),
        ..Log::default()
    }
}

fn verdict(sends: &[Send], readers: &[Log]) -> Vec<Broken> {
    History { sends: sends.to_vec(), readers: readers.to_vec(), ..History::default() }.check(LIFETIME).broken
}

#[test]
fn a_good_history_is_good() {
    let sends = [send(0, Outcome::Accepted), send(1, Outcome::Refused(507)), send(2, Outcome::Unknown)];
    assert_eq!(verdict(&sends, &[reader(&[(1, 0)])]), []);
    assert_eq!(verdict(&sends, &[reader(&[(1, 0), (2, 2)])]), []);
}

#[test]
fn what_is_lost_doubled_or_uncalled_is_found() {
    let accepted = [send(0, Outcome::Accepted), send(1, Outcome::Accepted)];
    assert_eq!(verdict(&accepted, &[reader(&[(1, 0)])]), [Broken::Lost { reader: 0, sender: 7, n: 1 }]);
    let twice = verdict(&accepted, &[reader(&[(1, 0), (2, 1), (3, 1)])]);
    assert!(twice.contains(&Broken::Twice { reader: 0, sender: 7, n: 1 }), "{twice:?}");
    let refused = [send(0, Outcome::Refused(400))];
    let uncalled = [Broken::Uncalled { reader: 0, sender: 7, n: 0 }];
    assert_eq!(verdict(&refused, &[reader(&[(1, 0)])]), uncalled);
    assert_eq!(verdict(&[], &[reader(&[(1, 0)])]), uncalled, "never sent");
}

#[test]
fn whoever_was_not_there_within_the_lifetime_has_no_claim() {
    let mut away = reader(&[]);
    away.connections[0].closed = at(3000);
    let history = History { sends: vec![send(0, Outcome::Accepted)], readers: vec![away], ..History::default() };
    let verdict = history.check(LIFETIME);
    assert_eq!((verdict.broken.len(), verdict.excused), (0, 1));
}

#[test]
fn disorder_is_found() {
    let accepted = [send(0, Outcome::Accepted), send(1, Outcome::Accepted)];
    let disorder = verdict(&accepted, &[reader(&[(1, 1), (2, 0)])]);
    assert_eq!(disorder, [Broken::Disorder { reader: 0, sender: 7, n: 0, after: 1 }]);
    let mut given_up = History {
        sends: vec![send(0, Outcome::Unknown), send(1, Outcome::Accepted)],
        readers: vec![reader(&[(1, 1), (2, 0)])],
        ..History::default()
    };
    assert_eq!(given_up.check(LIFETIME).broken, [Broken::Disorder { reader: 0, sender: 7, n: 0, after: 1 }]);
    given_up.is_remote = true;
    assert_eq!(given_up.check(LIFETIME).broken, []);
    let ids = verdict(&accepted, &[reader(&[(2, 0), (2, 1)])]);
    assert!(ids.contains(&Broken::Ids { reader: 0, before: 2, id: 2 }), "{ids:?}");
}

#[test]
fn readers_of_a_bus_agree_with_each_other_and_with_the_answer() {
    let mut sends = [send(0, Outcome::Accepted), send(1, Outcome::Accepted)];
    for send in &mut sends {
        send.must = vec![0, 1];
    }
    let good = verdict(&sends, &[reader(&[(1, 0), (2, 1)]), reader(&[(1, 0), (2, 1)])]);
    assert_eq!(good, []);
    let differ = verdict(&sends, &[reader(&[(1, 0), (2, 1)]), reader(&[(1, 0), (4, 1)])]);
    assert_eq!(differ, [Broken::TwoIds { sender: 7, n: 1, one: 2, other: 4 }]);
    sends[0].id = Some(9);
    let differ = verdict(&sends, &[reader(&[(1, 0), (2, 1)]), reader(&[(9, 0), (10, 1)])]);
    assert!(differ.contains(&Broken::TwoIds { sender: 7, n: 0, one: 9, other: 1 }), "{differ:?}");
    let one_id = verdict(&sends, &[reader(&[(1, 0), (2, 1)]), reader(&[(0, 0), (1, 1)])]);
    assert!(one_id.contains(&Broken::OneId { id: 1, one: (7, 0), other: (7, 1) }), "{one_id:?}");
}

#[test]
fn only_who_left_is_said_to_have_left() {
    let mut told = reader(&[]);
    told.heard = vec![Heard { at: at(30_000), id: Some(1), said: Said::Closed(1) }];
    let mut other = reader(&[]);
    let wrong = |at| [Broken::Closed { told: 0, about: 1, at }];
    let found = verdict(&[], &[told.clone(), other.clone()]);
    assert_eq!(found, wrong(at(30_000)), "it is there for half a minute more");
    other.connections[0].closed = at(29_000);
    assert_eq!(verdict(&[], &[told.clone(), other.clone()]), []);
    told.heard.push(Heard { at: at(31_000), id: Some(2), said: Said::Closed(1) });
    assert_eq!(verdict(&[], &[told.clone(), other.clone()]), [], "whoever told it may have been killed");
    told.heard.push(Heard { at: at(50_000), id: Some(3), said: Said::Closed(1) });
    assert_eq!(verdict(&[], &[told, other]), wrong(at(50_000)));
}

#[test]
fn whoever_is_left_out_is_told_so_and_nobody_else() {
    let mut left_out = send(0, Outcome::Accepted);
    (left_out.must, left_out.without) = (vec![], vec![0]);
    let sends = [left_out];
    let mut client = reader(&[]);
    assert_eq!(verdict(&sends, &[client.clone()]), [Broken::Unsaid { reader: 0, sender: 7, n: 0 }]);
    let missed = |ms| Heard { at: at(ms), id: Some(9), said: Said::Missed };
    client.heard = vec![missed(1005)];
    assert_eq!(verdict(&sends, &[client.clone()]), []);
    assert_eq!(verdict(&[], &[client.clone()]), [Broken::Unfounded { reader: 0, at: at(1005) }]);
    client.heard.push(Heard { at: at(2000), id: Some(11), said: Said::Message { sender: 7, n: 0 } });
    assert_eq!(verdict(&sends, &[client.clone()]), [Broken::Uncalled { reader: 0, sender: 7, n: 0 }]);
    // It comes back after what is not kept any more.
    client.heard = vec![missed(50_000)];
    client.connections.push(Connection { opened: at(49_990), resumed_from: at(1000), ..client.connections[0].clone() });
    assert_eq!(verdict(&[], &[client.clone()]), []);
    client.connections[1].resumed_from = at(49_000);
    assert_eq!(verdict(&[], &[client]), [Broken::Unfounded { reader: 0, at: at(50_000) }]);
}

#[test]
fn whoever_left_for_good_is_said_to_have_left_and_believed_in_no_more() {
    let mut host = reader(&[]);
    let mut client = reader(&[]);
    client.connections[0].closed = at(1100);
    client.connections.push(Connection { opened: at(1500), closed: at(2000), ..client.connections[0].clone() });
    (client.left, client.peers) = (Some(at(2000)), vec![0]);
    let untold = Broken::Untold { told: 0, about: 1 };
    assert_eq!(verdict(&[], &[host.clone(), client.clone()]), [untold]);
    host.heard = vec![Heard { at: at(1000), id: Some(1), said: Said::Closed(1) }];
    assert!(verdict(&[], &[host.clone(), client.clone()]).contains(&untold), "that was about another time");
    host.heard[0].at = at(1800);
    assert_eq!(verdict(&[], &[host.clone(), client.clone()]), [], "it was killed, and has noted that later");
    host.heard[0].at = at(2500);
    assert_eq!(verdict(&[], &[host.clone(), client.clone()]), []);
    let mut late = send(0, Outcome::Accepted);
    (late.begun, late.ended, late.must) = (at(20_000), at(20_002), vec![1]);
    assert_eq!(verdict(&[late], &[host, client]), [Broken::Believed { reader: 1, sender: 7, n: 0 }]);
}

#[test]
fn what_is_shown_is_the_story_of_the_message_and_its_reader() {
    let mut client = reader(&[(1, 0)]);
    client.name = "client 1".to_owned();
    let sends = vec![send(0, Outcome::Accepted), send(1, Outcome::Accepted)];
    let senders = vec!["host 5".to_owned(); 8];
    let history = History { senders, sends, readers: vec![client], is_remote: false };
    let verdict = history.check(LIFETIME);
    assert!(!verdict.is_final() && verdict.may_get_better());
    let told = history.show(history.most_telling(&verdict)[0]);
    let lines: Vec<_> = told.lines().map(str::trim_start).collect();
    assert_eq!(
        lines,
        [
            "LOST: client 1 never saw message 1 of host 5, which was answered 200.",
            "0.000 s  client 1 has a stream without an id",
            "0.001 s  client 1 hears message 0 of host 5, id 1",
            "2.000 s  message 1 of host 5 is sent",
            "2.002 s  message 1 of host 5 is answered 200",
            "60.000 s  client 1 has it no more: ",
        ]
    );
}
