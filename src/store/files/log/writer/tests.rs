use super::super::reader::Reader;
use super::super::tests::{append, data, place, rest};
use super::*;

#[test]
fn a_torn_record_is_cut_off_by_the_next_writer_and_never_read() {
    for torn in [1, 100, 4095, 4096, 4097, 10_000] {
        let (_dir, path) = place();
        append(&path, "a");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&b"0000000026 1 *0 message x".repeat(1 + torn / 25)[..torn]).unwrap();
        assert_eq!(data(&path), ["a"]);
        append(&path, "b");
        assert_eq!(data(&path), ["a", "b"]);
    }
}

#[test]
fn a_torn_header_is_written_again() {
    for torn in ["", "u", "uhst-relay lo", "uhst-relay log 000000000000000000"] {
        let (_dir, path) = place();
        std::fs::write(&path, torn).unwrap();
        append(&path, "a");
        assert_eq!(data(&path), ["a"], "{torn:?}");
    }
}

#[test]
fn ids_increase_and_say_where_records_end() {
    let (_dir, path) = place();
    let mut writer = Writer::open(&path).unwrap();
    let (base, empty) = (writer.base(), writer.size());
    assert_eq!((writer.end(), empty), (base, HEADER_LEN));
    let id = writer.append(7, &Address::One(3), "message", "some data").unwrap().0;
    assert_eq!(id, base + "0000000034 7 @3 message some data\n".len() as u64);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), header(base) + "0000000034 7 @3 message some data\n");
    assert_eq!(Writer::open(&path).unwrap().end(), id, "another writer goes on there");
    assert!(append(&path, "") > id);
}

#[test]
fn a_record_has_all_that_was_said() {
    let (_dir, path) = place();
    let to = Address::All { generation: 4, except: vec![3, 17] };
    let id = Writer::open(&path).unwrap().append(1234, &to, "relay_event", "a b  c ").unwrap().0;
    let mut reader = Reader::open(&path, 0).unwrap();
    let mut is_read = false;
    reader
        .read(
            |_| true,
            |record| {
                is_read = true;
                assert_eq!((record.id, record.time, record.to), (id, 1234, &to));
                assert_eq!((record.event, record.data), ("relay_event", "a b  c "));
            },
        )
        .unwrap();
    assert!(is_read);
}

#[test]
fn compacting_keeps_ids_and_what_comes_after_them() {
    let (dir, path) = place();
    let ids: Vec<_> = (0..6).map(|n| append(&path, &n.to_string())).collect();
    let mut reader = Reader::open(&path, ids[4]).unwrap();
    Writer::open(&path).unwrap().compact(&path, &dir.join("log.new"), ids[3]).unwrap();
    let id = append(&path, "6");
    assert!(id > ids[5]);
    let kept = [(ids[4], "4".to_owned()), (ids[5], "5".to_owned()), (id, "6".to_owned())];
    assert_eq!(rest(&mut Reader::open(&path, ids[3]).unwrap()), kept);
    assert_eq!(rest(&mut reader), kept[1..], "whoever was reading reads on");
    assert!(!dir.join("log.new").exists());
    Writer::open(&path).unwrap().compact(&path, &dir.join("log.new"), u64::MAX).unwrap();
    let writer = Writer::open(&path).unwrap();
    assert_eq!((writer.base(), writer.end(), writer.size()), (id, id, HEADER_LEN), "all of it may go");
}

#[test]
fn a_log_that_cannot_be_made_anew_stays_as_it_is() {
    let (dir, path) = place();
    append(&path, "a");
    let id = append(&path, "b");
    let beside = dir.join("there is no such folder/log.new");
    assert!(Writer::open(&path).unwrap().compact(&path, &beside, id).is_err());
    assert_eq!(data(&path), ["a", "b"]);
}

#[test]
fn a_hole_is_within_what_may_go() {
    let (_dir, path) = place();
    let ids: Vec<_> = (0..100).map(|n| append(&path, &format!("{n:0500}"))).collect();
    let writer = Writer::open(&path).unwrap();
    let (base, size) = (writer.base(), writer.size());
    let keep_from = ids[59];
    match writer.punch_hole(HEADER_LEN + keep_from - base) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported && std::env::var_os("CI").is_none() => {
            eprintln!("SKIPPED: this file system knows no holes");
            return;
        }
        other => other.unwrap(),
    }
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, size, "ids are positions");
    assert!(bytes[4096..8192].iter().all(|byte| *byte == 0));
    let mut reader = Reader::open(&path, 0).unwrap();
    let read: Vec<_> = rest(&mut reader).into_iter().map(|(id, _)| id).collect();
    assert!(read.ends_with(&ids[60..]) && reader.has_lost());
    assert!(append(&path, "new") > ids[99]);
}

#[test]
fn a_log_of_something_else_begins_anew() {
    let (_dir, path) = place();
    std::fs::write(&path, "x".repeat(1000)).unwrap();
    assert!(Reader::open(&path, 0).is_err(), "whoever writes mends it");
    append(&path, "a");
    assert_eq!(data(&path), ["a"]);
}
