//! What the contract of all homes does not ask: several processes, and a Redis that goes and comes.

use super::super::process::Redis;
use super::super::reply::Reply;
use super::super::testing::{TestServer, sooner_or_later};
use super::reader::BusReader;
use crate::config::Settings;
use crate::config::redis::Address;
use crate::gateway::run_blocking;
use crate::store::buses::{BusEvent, BusName, Refused};
use crate::store::files::Files;
use crate::store::sessions::Standing;
use crate::store::{Error, Reason};
use std::time::Duration;

fn bus() -> BusName {
    BusName::new("news").unwrap()
}

fn process(address: &Address) -> Redis {
    Redis::elsewhere(address, Files::new(std::path::Path::new("/nowhere")))
}

fn subscribe(redis: &Redis, settings: &Settings) -> Result<BusReader, Refused> {
    run_blocking(redis.subscribe(&bus(), None, None, settings))
}

fn notify(redis: &Redis, data: &str) -> Result<u64, Refused> {
    run_blocking(redis.notify(&bus(), data, &Settings::default()))
}

async fn take(reader: &mut BusReader, all: &mut Vec<String>) -> Result<bool, Error> {
    let next = reader.fetch_next(|heard| {
        all.push(match heard {
            BusEvent::Message(message) => message.data.to_owned(),
            BusEvent::Lost(_) => "lost".to_owned(),
        });
    });
    next.await
}

/// What a reader hears that does no more than a stream: it looks when it is woken, and tends from time to time.
fn hears(reader: &mut BusReader, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    sooner_or_later(|| {
        // Redis may be away.
        let _ = run_blocking(reader.tend());
        reader.hear();
        while let Ok(true) = run_blocking(take(reader, &mut all)) {}
        (all.len() >= count).then_some(())
    });
    all
}

#[test]
fn what_is_posted_elsewhere_wakes_a_reader_and_no_other_database_does() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (here, there) = (process(&server.address()), process(&server.address()));
    let other = process(&Address { database: 1, ..server.address() });
    let mut reader = subscribe(&here, &Settings::default()).unwrap();
    notify(&other, "\"other\"").unwrap();
    notify(&there, "1").unwrap();
    sooner_or_later(|| reader.wake().unwrap().is_ready().then_some(()));
    notify(&other, "\"other\"").unwrap();
    notify(&there, "2").unwrap();
    assert_eq!(hears(&mut reader, 2), ["1", "2"]);
}

#[test]
fn a_stream_goes_on_when_redis_has_been_away_and_nothing_is_doubled() {
    let Some(mut server) = TestServer::start(&["--appendonly", "yes", "--appendfsync", "always"]) else { return };
    let (here, there) = (process(&server.address()), process(&server.address()));
    let mut reader = subscribe(&here, &Settings::default()).unwrap();
    notify(&there, "1").unwrap();
    assert_eq!(hears(&mut reader, 1), ["1"]);
    notify(&there, "2").unwrap();
    server.kill();
    let Err(Refused::Store(Error::Remote(remote))) = notify(&there, "3") else { panic!("it is away") };
    assert_eq!(remote.reason, Reason::Away);
    server.restart();
    notify(&there, "4").unwrap();
    assert_eq!(hears(&mut reader, 2), ["2", "4"]);
    notify(&there, "5").unwrap();
    assert_eq!(hears(&mut reader, 1), ["5"]);
}

#[test]
fn a_bus_that_was_lost_with_its_redis_is_another_one() {
    let Some(mut server) = TestServer::start(&[]) else { return };
    let here = process(&server.address());
    let mut reader = subscribe(&here, &Settings::default()).unwrap();
    let last = notify(&here, "1").unwrap();
    server.kill();
    server.restart();
    assert!(notify(&here, "2").unwrap() > last, "no number comes again");
    assert_eq!(run_blocking(reader.tend()).unwrap(), Standing::Over, "its client comes back");
}

#[test]
fn a_reader_that_was_killed_gives_way_within_seconds() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (killed, here) = (process(&server.address()), process(&server.address()));
    let few = Settings { max_clients: 1, ..Settings::default() };
    std::mem::forget(subscribe(&killed, &few).unwrap());
    assert!(matches!(subscribe(&here, &few), Err(Refused::TooManyReaders(1))));
    sooner_or_later(|| subscribe(&here, &few).ok());
}

#[test]
fn the_memory_of_redis_has_a_limit() {
    let Some(server) = TestServer::start(&[]) else { return };
    let redis = process(&server.address());
    let post = |max_data: u64, size: usize| {
        let settings = Settings { max_data, ..Settings::default() };
        run_blocking(redis.notify(&bus(), &format!("\"{}\"", "a".repeat(size)), &settings))
    };
    assert!(matches!(post(1, 1), Err(Refused::Store(Error::DataFull(full))) if full.limit == 1));
    post(1 << 30, 1).unwrap();
    // It is looked at once in 64 KiB.
    post(1, 60_000).unwrap();
    assert!(matches!(post(1, 10_000), Err(Refused::Store(Error::DataFull(_)))));
    post(1 << 30, 10_000).unwrap();
}

#[test]
fn whether_a_user_says_too_much_is_seen_from_little_of_the_log() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (redis, settings) = (process(&server.address()), Settings::default());
    let (user, _) = run_blocking(redis.greet(&bus(), &settings)).unwrap();
    for number in 0..1000 {
        // Lua has what is the same only once.
        notify(&redis, &format!("\"{number}{}\"", "a".repeat(7_000))).unwrap();
    }
    // What Lua has had in its hands so far goes.
    server.ask(&["SCRIPT", "FLUSH"]);
    run_blocking(redis.post(&bus(), user, None, "1", &settings)).unwrap();
    let memory = server.info("memory", "used_memory_lua:");
    assert!(memory < 3_000_000, "{memory}");
}

#[test]
fn a_message_is_kept_for_all_of_its_lifetime_also_where_the_bus_was_used_just_before() {
    let Some(server) = TestServer::start(&[]) else { return };
    let redis = process(&server.address());
    let minute = Duration::from_secs(60);
    let settings = Settings { bus_lifetime: minute, message_lifetime: minute, ..Settings::default() };
    let post = || run_blocking(redis.notify(&bus(), "1", &settings)).unwrap();
    post();
    std::thread::sleep(Duration::from_secs(1));
    post();
    for key in server.keys() {
        let Reply::Integer(left) = server.ask(&["PTTL", &key]) else { panic!("it tells") };
        assert!(left >= 60_000, "{key}: {left}");
    }
}

#[test]
fn everything_has_a_time_to_live() {
    let Some(server) = TestServer::start(&[]) else { return };
    let redis = process(&server.address());
    let short = Settings {
        bus_lifetime: Duration::from_millis(1),
        message_lifetime: Duration::from_millis(1),
        ..Settings::default()
    };
    run_blocking(async {
        redis.register_user(&bus(), &short).await.unwrap();
        let (user, _reader) = redis.enter(&bus(), &short).await.unwrap();
        redis.say(&bus(), user, "1", &short).await.unwrap();
        assert_eq!(server.ask(&["DBSIZE"]), Reply::Integer(6), "all kinds of keys are there");
    });
    assert_eq!(server.immortal(), [""; 0]);
    sooner_or_later(|| (server.ask(&["DBSIZE"]) == Reply::Integer(0)).then_some(()));
}

#[test]
fn a_log_that_a_full_redis_has_dropped_does_not_come_back_for_ever() {
    let Some(server) = TestServer::start(&[]) else { return };
    let redis = process(&server.address());
    run_blocking(redis.notify(&bus(), "1", &Settings::default())).unwrap();
    server.remove(":log");
    run_blocking(redis.notify(&bus(), "2", &Settings::default())).unwrap();
    assert_eq!(server.keys().len(), 3);
    assert_eq!(server.immortal(), [""; 0]);
}

#[test]
fn a_bus_works_in_a_cluster_wherever_it_is() {
    let Some(nodes) = TestServer::start_cluster() else { return };
    let (here, there) = (process(&nodes[0].address()), process(&nodes[1].address()));
    for name in ["a", "b", "c", "d", "e", "f"].map(|name| BusName::new(name).unwrap()) {
        let settings = Settings::default();
        let mut reader = run_blocking(here.subscribe(&name, None, None, &settings)).unwrap();
        for data in ["1", "2"] {
            run_blocking(there.notify(&name, data, &settings)).unwrap();
        }
        sooner_or_later(|| reader.wake().unwrap().is_ready().then_some(()));
        assert_eq!(hears(&mut reader, 2), ["1", "2"]);
    }
    let keys = nodes.each_ref().map(|node| node.ask(&["DBSIZE"]));
    assert!(keys.iter().filter(|keys| matches!(keys, Reply::Integer(1..))).count() > 1, "{keys:?}");
}

#[cfg(feature = "serve")]
mod served {
    use super::*;
    use crate::wake::wait;
    use std::time::Instant;
    use tokio::task::JoinHandle;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    }

    /// Reads as a stream does, until so many messages have come.
    fn read(mut reader: BusReader, count: usize) -> JoinHandle<Vec<String>> {
        tokio::spawn(async move {
            let (mut all, began) = (Vec::new(), Instant::now());
            while all.len() < count {
                assert!(began.elapsed().as_secs() < 60, "only {} of {count} come", all.len());
                while let Ok(true) = take(&mut reader, &mut all).await {}
                wait(&mut [&mut reader.wake()], Duration::from_secs(5)).await;
                reader.hear();
                assert_eq!(reader.tend().await.unwrap(), Standing::Listening);
            }
            all
        })
    }

    #[test]
    fn readers_of_two_processes_hear_everything_once_and_in_the_same_order() {
        let Some(server) = TestServer::start(&[]) else { return };
        runtime().block_on(async {
            let processes = [process(&server.address()), process(&server.address())];
            let mut readers = Vec::new();
            for n in 0..40 {
                let reader = processes[n % 2].subscribe(&bus(), None, None, &Settings::default()).await.unwrap();
                readers.push(read(reader, 200));
            }
            let posters = processes.each_ref().map(|process| {
                let process = process.clone();
                tokio::spawn(async move {
                    for n in 0..100 {
                        process.notify(&bus(), &n.to_string(), &Settings::default()).await.unwrap();
                    }
                })
            });
            for poster in posters {
                poster.await.unwrap();
            }
            let first = readers.pop().unwrap().await.unwrap();
            for reader in readers {
                assert_eq!(reader.await.unwrap(), first);
            }
            let mut numbers: Vec<u32> = first.iter().map(|data| data.parse().unwrap()).collect();
            numbers.sort_unstable();
            assert_eq!(numbers, (0..200).map(|n| n / 2).collect::<Vec<_>>());
        });
        // One to start, one or two to ask, and for each process one to post, read and tend, and one to listen.
        let Reply::BulkString(clients) = server.ask(&["CLIENT", "LIST"]) else { panic!("it tells") };
        assert!(String::from_utf8(clients).unwrap().lines().count() <= 5);
    }

    #[test]
    fn streams_go_on_when_redis_has_been_away() {
        let Some(mut server) = TestServer::start(&["--appendonly", "yes", "--appendfsync", "always"]) else { return };
        runtime().block_on(async {
            let settings = Settings::default();
            let (here, there) = (process(&server.address()), process(&server.address()));
            let readers = [
                here.subscribe(&bus(), None, None, &settings).await.unwrap(),
                there.subscribe(&bus(), None, None, &settings).await.unwrap(),
            ];
            let readers = readers.map(|reader| read(reader, 3));
            there.notify(&bus(), "1", &settings).await.unwrap();
            server.kill();
            there.notify(&bus(), "2", &settings).await.unwrap_err();
            server.restart();
            for data in ["3", "4"] {
                while there.notify(&bus(), data, &settings).await.is_err() {}
            }
            for reader in readers {
                assert_eq!(reader.await.unwrap(), ["1", "3", "4"]);
            }
        });
    }

    #[test]
    fn whoever_lags_far_behind_reads_the_log() {
        let Some(server) = TestServer::start(&[]) else { return };
        runtime().block_on(async {
            let (settings, redis) = (Settings::default(), process(&server.address()));
            let reader = redis.subscribe(&bus(), None, None, &settings).await.unwrap();
            let data = format!("\"{}\"", "a".repeat(10_000));
            for _ in 0..100 {
                redis.notify(&bus(), &data, &settings).await.unwrap();
            }
            assert_eq!(read(reader, 100).await.unwrap().len(), 100);
        });
    }
}
