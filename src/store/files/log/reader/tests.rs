use super::super::tests::{ALL, append, data, place, rest, rest_for};
use super::super::writer::Writer;
use super::super::{HEADER_LEN, header};
use super::*;
use proptest::prelude::*;
use std::fs::OpenOptions;
use std::io::Write as _;

fn only(slot: u32) -> impl Fn(&Address) -> bool {
    move |to| *to == Address::One(slot)
}

/// A log of many records, long and short ones, whose time counts up from 1000; and the ids at which they end.
fn long_log(path: &Path) -> Vec<u64> {
    let mut writer = Writer::open(path).unwrap();
    let size = |n: usize| if n.is_multiple_of(100) { 20_000 } else { n % 300 };
    (0..3000).map(|n| writer.append(1000 + n as u64, &ALL, "message", &"x".repeat(size(n))).unwrap().0).collect()
}

/// No record of [`long_log`] is longer.
const LONGEST: u64 = 20_100;

/// Adds bytes that no writer wrote.
fn add_raw(path: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn reading_goes_on_where_an_id_says() {
    let (_dir, path) = place();
    for n in 0..5 {
        append(&path, &n.to_string());
    }
    let all = rest(&mut Reader::open(&path, 0).unwrap());
    for (index, (id, _)) in all.iter().enumerate() {
        assert_eq!(rest(&mut Reader::open(&path, *id).unwrap()), all[index + 1..]);
    }
}

#[test]
fn an_id_from_elsewhere_means_the_beginning() {
    let (_dir, path) = place();
    append(&path, "a");
    let end = append(&path, "b");
    for id in [0, end - 1, end + 1, u64::MAX] {
        assert_eq!(rest(&mut Reader::open(&path, id).unwrap()).len(), 2, "{id}");
    }
}

#[test]
fn an_id_to_resume_with_is_where_a_record_ends_or_is_refused() {
    let (_dir, path) = place();
    let (first, second, third) = (append(&path, "a"), append(&path, "b"), append(&path, "c"));
    let mut reader = Reader::open(&path, second).unwrap();
    for id in [first + 1, third + 1, u64::MAX] {
        assert!(!reader.resume(id).unwrap(), "{id}");
        assert_eq!(reader.position(), second, "it stays where it is");
    }
    assert!(reader.resume(first).unwrap() && reader.position() == first);
    Writer::open(&path).unwrap().compact(&path, &path.with_extension("new"), second).unwrap();
    assert!(!reader.resume(first).unwrap(), "it is gone");
    assert_eq!(rest(&mut reader), [(third, "c".to_owned())], "from the beginning of what is left");
    assert!(!reader.has_lost(), "whoever resumes has been told");
    assert!(reader.resume(second).unwrap(), "the beginning is where a record ended");
}

#[test]
fn seeking_leaves_out_nothing_and_reads_little_too_much() {
    let (_dir, path) = place();
    let ids = long_log(&path);
    let (base, end) = (Reader::open(&path, 0).unwrap().base(), ids[ids.len() - 1]);
    let mut reader = Reader::open(&path, end).unwrap();
    for id in ids.iter().step_by(37).flat_map(|id| [id - 1, *id, id + 1]).filter(|id| *id < end) {
        reader.seek(id).unwrap();
        let position = reader.position();
        assert!(position <= id && id - position <= GRAIN + LONGEST, "{position} of {id}");
        assert!(position == base || ids.contains(&position), "no record ends at {position}");
    }
    for id in [0, end + GRAIN + 1, u64::MAX] {
        reader.seek(id).unwrap();
        assert_eq!(reader.position(), base, "{id} is nowhere");
    }
}

#[test]
fn going_back_ends_where_a_record_does() {
    let (_dir, path) = place();
    let ids = long_log(&path);
    let (base, end) = (Reader::open(&path, 0).unwrap().base(), ids[ids.len() - 1]);
    for bytes in [1, 1000, 30_000, 100_000, u64::MAX] {
        let mut reader = Reader::open(&path, end).unwrap();
        reader.go_back(bytes).unwrap();
        let back = end - reader.position();
        assert!(back <= bytes && back + LONGEST > bytes.min(end - base), "{back} of {bytes}");
        assert!(reader.position() == base || ids.contains(&reader.position()));
    }
}

#[test]
fn skipping_is_never_backwards() {
    let (_dir, path) = place();
    let (first, second) = (append(&path, "a"), append(&path, "b"));
    let mut reader = Reader::open(&path, first).unwrap();
    reader.skip_to(0);
    assert_eq!(reader.position(), first);
    reader.skip_to(second);
    assert_eq!(rest(&mut reader), []);
}

#[test]
fn only_what_is_wanted_is_given() {
    let (_dir, path) = place();
    let mut writer = Writer::open(&path).unwrap();
    for (slot, data) in [(1, "a"), (2, "b"), (1, "c")] {
        writer.append(1, &Address::One(slot), "message", data).unwrap();
    }
    let end = writer.append(1, &ALL, "message", "d").unwrap().0;
    let given = |wants: &dyn Fn(&Address) -> bool| {
        let mut reader = Reader::open(&path, 0).unwrap();
        let data: Vec<_> = rest_for(&mut reader, wants).into_iter().map(|(_, data)| data).collect();
        assert_eq!(reader.position(), end, "what is for others is passed over too");
        data
    };
    assert_eq!(given(&only(1)), ["a", "c"]);
    assert_eq!(given(&only(3)), [""; 0]);
    assert_eq!(given(&|to| *to == ALL || *to == Address::One(2)), ["b", "d"]);
}

#[test]
fn a_record_longer_than_the_buffer_is_read_whole() {
    let (_dir, path) = place();
    let long = "x".repeat(3 * READ_SIZE + 1);
    append(&path, &long);
    append(&path, "b");
    assert_eq!(data(&path), [long.as_str(), "b"]);
}

#[test]
fn a_long_record_for_others_is_passed_over_without_being_read() {
    let (_dir, path) = place();
    Writer::open(&path).unwrap();
    // What would be a record for us stands in the middle of it, as no writer writes it: whoever reads all of it takes that.
    let inner = "0000000027 1 @1 message x\n";
    let body = format!(" 1 @2 message {}\n{inner}{}\n", "x".repeat(2 * READ_SIZE), "x".repeat(READ_SIZE));
    let record = format!("{:010}{body}", 10 + body.len());
    add_raw(&path, record.as_bytes());
    let end = Writer::open(&path).unwrap().append(1, &Address::One(1), "message", "mine").unwrap().0;
    let mut reader = Reader::open(&path, 0).unwrap();
    assert_eq!(rest_for(&mut reader, only(1)), [(end, "mine".to_owned())]);
}

#[test]
fn a_length_that_is_not_true_leads_nowhere() {
    for length in ["0000000000", "0000000001", "0000000500", "0000999999", "18446744073709551615"] {
        let (_dir, path) = place();
        Writer::open(&path).unwrap();
        add_raw(&path, format!("{length} 1 @2 message {}\n", "x".repeat(2 * READ_SIZE)).as_bytes());
        Writer::open(&path).unwrap().append(1, &Address::One(1), "message", "mine").unwrap();
        let given = rest_for(&mut Reader::open(&path, 0).unwrap(), only(1));
        assert!(matches!(&given[..], [(_, data)] if data == "mine"), "{length}: {given:?}");
    }
}

#[test]
fn a_record_whose_length_is_not_true_is_none() {
    let (_dir, path) = place();
    append(&path, "a");
    for line in
        ["0000000025 1 *0 message x\n", "0000000027 1 *0 message x\n", "x\n", "\n", "0000000024 1 *0  message\r\n"]
    {
        add_raw(&path, line.as_bytes());
    }
    append(&path, "b");
    assert_eq!(data(&path), ["a", "b"]);
    add_raw(&path, b"0000000026 1 *0 message x\n");
    assert_eq!(data(&path), ["a", "b", "x"], "this one is true");
}

#[test]
fn what_was_dropped_before_it_was_read_is_told_once() {
    let (_dir, path) = place();
    let ids: Vec<_> = (0..4).map(|n| append(&path, &n.to_string())).collect();
    let (mut slow, mut quick) = (Reader::open(&path, ids[0]).unwrap(), Reader::open(&path, ids[2]).unwrap());
    Writer::open(&path).unwrap().compact(&path, &path.with_extension("new"), ids[2]).unwrap();
    assert!(!slow.has_lost(), "nobody has looked yet");
    assert_eq!(rest(&mut slow), [(ids[3], "3".to_owned())]);
    assert!(slow.has_lost() && !slow.has_lost());
    assert_eq!(rest(&mut quick), [(ids[3], "3".to_owned())]);
    assert!(!quick.has_lost());
}

#[test]
fn a_hole_is_a_loss_and_what_follows_it_is_read() {
    let (_dir, path) = place();
    let ids: Vec<_> = (0..20).map(|n| append(&path, &format!("{n:0500}"))).collect();
    let base = Reader::open(&path, 0).unwrap().base();
    // As it is made on a full disk: whole blocks, whatever stands there.
    let (start, end) = (4096, 8192);
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[0; 4096], start).unwrap();
    let is_before = |id: &u64| id - base + HEADER_LEN <= start;
    let is_after = |id: &u64| id - base + HEADER_LEN > end + 600;
    let mut reader = Reader::open(&path, 0).unwrap();
    let read: Vec<_> = rest(&mut reader).into_iter().map(|(id, _)| id).collect();
    assert!(ids.iter().filter(|id| is_before(id) || is_after(id)).all(|id| read.contains(id)));
    assert!(read.iter().all(|id| is_before(id) || id - base + HEADER_LEN > end) && reader.has_lost());
}

#[test]
fn there_is_more_until_all_has_been_read() {
    let (_dir, path) = place();
    append(&path, "a");
    let mut reader = Reader::open(&path, 0).unwrap();
    assert!(reader.has_more().unwrap());
    rest(&mut reader);
    assert!(!reader.has_more().unwrap());
    let id = append(&path, "b");
    assert!(reader.has_more().unwrap());
    rest(&mut reader);
    Writer::open(&path).unwrap().compact(&path, &path.with_extension("new"), id).unwrap();
    rest(&mut reader);
    assert!(!reader.has_more().unwrap());
    std::fs::remove_file(&path).unwrap();
    assert!(!reader.has_more().unwrap() && rest(&mut reader).is_empty(), "there is no log");
}

#[test]
fn a_log_that_takes_a_lost_ones_place_is_read_from_its_beginning() {
    let (_dir, path) = place();
    append(&path, "a");
    let mut reader = Reader::open(&path, 0).unwrap();
    rest(&mut reader);
    // Of another time: its ids begin later, as those of every log that is made later do.
    let base = reader.position() + 1000;
    std::fs::write(&path, header(base)).unwrap();
    let id = append(&path, "b");
    assert!(id > base);
    assert_eq!(rest(&mut reader), [(id, "b".to_owned())]);
    assert!(reader.has_lost(), "it cannot know what was in the other one");
}

#[test]
fn a_log_that_was_cut_off_is_read_again() {
    let (_dir, path) = place();
    let first = append(&path, "a");
    let second = append(&path, "b");
    let mut reader = Reader::open(&path, second).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(HEADER_LEN + first - reader.base()).unwrap();
    assert_eq!(rest(&mut reader), [(first, "a".to_owned())]);
}

#[test]
fn what_is_dead_is_found_without_reading_all_of_it() {
    let (_dir, path) = place();
    let ids = long_log(&path);
    let end = ids[ids.len() - 1];
    let base = Reader::open(&path, 0).unwrap().base();
    for oldest in [0, 1000, 1001, 1500, 2999, 3999, 4000, u64::MAX] {
        let dead = Reader::open(&path, end).unwrap().dead_up_to(oldest, u64::MAX).unwrap();
        let exact = usize::try_from(oldest.saturating_sub(1000)).unwrap_or(usize::MAX).min(ids.len());
        let exact = if exact == 0 { base } else { ids[exact - 1] };
        assert!(dead <= exact && exact - dead <= GRAIN + LONGEST, "{oldest}: {dead} of {exact}");
        assert!(dead == base || ids.contains(&dead));
    }
    for most in [0, 1, 50_000, 300_000] {
        let dead = Reader::open(&path, end).unwrap().dead_up_to(0, most).unwrap();
        assert!(end - dead <= most && end - dead + LONGEST > most.min(end - base), "{most}: {}", end - dead);
    }
    assert_eq!(Reader::open(&path, ids[9]).unwrap().dead_up_to(u64::MAX, 0).unwrap(), ids[9], "not past the position");
}

proptest! {
    #[test]
    fn any_bytes_after_the_header_are_read_without_a_crash_and_only_whole_lines_count(
        bytes in proptest::collection::vec(
            prop_oneof![Just(b'\n'), Just(b' '), Just(b'1'), Just(b'*'), Just(b'@'), Just(b'-'), any::<u8>()], 0..300),
        position in prop_oneof![0..400_u64, any::<u64>()],
        others in proptest::bool::ANY,
    ) {
        let (_dir, path) = place();
        std::fs::write(&path, [header(7).as_bytes(), &bytes].concat()).unwrap();
        let mut reader = Reader::open(&path, position).unwrap();
        let start = reader.position();
        let records = rest_for(&mut reader, |_| !others);
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1) as u64;
        prop_assert!(reader.position() == 7 + whole || reader.position() == start);
        prop_assert!(records.is_empty() || !others);
        for (id, data) in records {
            prop_assert!(id <= 7 + whole && id > start);
            prop_assert!(!data.contains(['\n', '\r', '\0']));
        }
        reader.seek(position).unwrap();
        reader.resume(position).unwrap();
        reader.go_back(position).unwrap();
        reader.dead_up_to(position, position).unwrap();
        prop_assert!(reader.position() >= 7);
    }

    #[test]
    fn what_is_appended_is_read(all in proptest::collection::vec("[^\r\n\0]{0,50}", 1..20)) {
        let (_dir, path) = place();
        for data in &all {
            append(&path, data);
        }
        prop_assert_eq!(data(&path), all);
    }
}
