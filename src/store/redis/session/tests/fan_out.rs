//! One to many: what is looked at, and noted, for all of them at once.

use super::super::DELIVER;
use super::{client, enter, host, process, register, take};
use crate::config::Settings;
use crate::gateway::run_blocking;
use crate::protocol::uhst::policy;
use crate::store::redis::process::Redis;
use crate::store::redis::reply::{Reply, text};
use crate::store::redis::session::listener::Listener;
use crate::store::redis::testing::{TestServer, sooner_or_later};
use crate::store::sessions::{Claim, Party, Refused};
use crate::token::ClientId;
use std::time::Duration;

/// How far the clients were given the log, as Redis knows.
fn cursors(server: &TestServer) -> Vec<String> {
    let key = server.keys().into_iter().find(|key| key.ends_with(":cursors")).unwrap();
    let Reply::Array(all) = server.ask(&["HGETALL", &key]) else { panic!("it tells") };
    let pairs = all.as_chunks::<2>().0.iter();
    pairs.filter(|[key, _]| text(key).unwrap().starts_with('c')).map(|[_, at]| text(at).unwrap().to_owned()).collect()
}

/// Says something to all, and tells who is to get it.
async fn broadcast(redis: &Redis, data: &str, settings: &Settings) -> Vec<String> {
    let told = redis.broadcast(&host(), data, &policy(settings)).await.unwrap();
    let mut names: Vec<_> = told.iter().map(|(id, is_sent)| format!("{} {is_sent}", id.as_str())).collect();
    names.sort();
    names
}

#[test]
fn a_broadcast_reaches_whoever_is_there_each_time_somebody_comes_or_goes() {
    let Some(server) = TestServer::start(&[]) else { return };
    let redis = process(&server.address());
    let settings = Settings { grace: Duration::from_secs(1), ..Settings::default() };
    let say = |data: &str| run_blocking(broadcast(&redis, data, &settings));
    let (mut c, mut d) = run_blocking(async {
        register(&redis, &settings).await;
        let listeners = (enter(&redis, "c", &settings).await, enter(&redis, "d", &settings).await);
        redis.join(&host().host, &ClientId::new("e").unwrap(), &policy(&settings)).await.unwrap();
        listeners
    });
    for _ in 0..2 {
        assert_eq!(say("1"), ["c true", "d true", "e true"]);
    }
    run_blocking(redis.join(&host().host, &ClientId::new("f").unwrap(), &policy(&settings))).unwrap();
    assert_eq!(say("2"), ["c true", "d true", "e true", "f true"]);
    // It may come back; and is over when it has not.
    run_blocking(d.end()).unwrap();
    sooner_or_later(|| (say("3") == ["c true", "e true", "f true"]).then_some(()));
    let mut again = run_blocking(redis.listen(&client("d"), Some(d.position()), &policy(&settings))).unwrap();
    assert_eq!(say("4"), ["c true", "d true", "e true", "f true"]);
    assert_eq!(run_blocking(take(&mut again)).last().unwrap(), "4");
    assert_eq!(run_blocking(take(&mut c)).last().unwrap(), "4");
    // Whoever is killed is known to be gone, whether or not somebody looks.
    std::mem::forget(again);
    sooner_or_later(|| {
        run_blocking(c.tend()).unwrap();
        (say("5") == ["c true", "e true", "f true"]).then_some(())
    });
    // Those of an earlier registration are others.
    run_blocking(async {
        let keys = redis.process.session(&host().host);
        server.ask(&["HSET", &keys.all[0], "touched", "1"]);
        redis.register(&host().host, "two", Claim::Chosen, &policy(&settings)).await.unwrap();
        let two = Party { registration: Some("two".to_owned()), ..host() };
        let _h = redis.listen(&two, None, &policy(&settings)).await.unwrap();
        assert!(redis.broadcast(&two, "6", &policy(&settings)).await.unwrap().is_empty());
        assert!(matches!(redis.broadcast(&host(), "6", &policy(&settings)).await, Err(Refused::Expired)));
    });
}

#[test]
fn whoever_joins_and_never_comes_is_counted_for_its_lifetime_only() {
    let Some(server) = TestServer::start(&[]) else { return };
    let redis = process(&server.address());
    let settings = Settings { session_lifetime: Duration::from_secs(3), ..Settings::default() };
    let mut c = run_blocking(async {
        register(&redis, &settings).await;
        redis.join(&host().host, &ClientId::new("d").unwrap(), &policy(&settings)).await.unwrap();
        enter(&redis, "c", &settings).await
    });
    let mut seen = Vec::new();
    sooner_or_later(|| {
        run_blocking(c.tend()).unwrap();
        seen.push(run_blocking(broadcast(&redis, "1", &settings)));
        (seen.last().unwrap() == &["c true"]).then_some(())
    });
    assert_eq!(seen[0], ["c true", "d true"]);
}

#[test]
fn a_broadcast_does_not_look_at_members_that_have_not_changed() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (redis, settings) = (process(&server.address()), Settings::default());
    run_blocking(async {
        register(&redis, &settings).await;
        let mut listeners: Vec<Listener> = Vec::new();
        for name in 0..30 {
            listeners.push(enter(&redis, &name.to_string(), &settings).await);
        }
        assert_eq!(broadcast(&redis, "1", &settings).await.len(), 30);
        let before = server.calls("hgetall");
        for listener in listeners.iter_mut().take(20) {
            assert_eq!(broadcast(&redis, "1", &settings).await.len(), 30);
            redis.send_to_client(&host().host, &ClientId::new("7").unwrap(), "2", &policy(&settings)).await.unwrap();
            take(listener).await;
        }
        assert_eq!(server.calls("hgetall"), before);
    });
}

#[test]
fn whoever_is_refused_again_and_again_does_not_have_all_members_looked_at() {
    let Some(server) = TestServer::start(&[]) else { return };
    let redis = process(&server.address());
    let settings = Settings { max_clients: 1, ..Settings::default() };
    run_blocking(register(&redis, &settings));
    let _c = run_blocking(enter(&redis, "c", &settings));
    sooner_or_later(|| {
        let before = server.calls("hgetall");
        let joined =
            run_blocking(async { redis.join(&host().host, &ClientId::new("d").unwrap(), &policy(&settings)).await });
        assert!(matches!(joined, Err(Refused::TooManyClients(1))));
        (server.calls("hgetall") == before).then_some(())
    });
}

#[test]
fn a_note_that_comes_late_takes_nothing_back() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (redis, settings) = (process(&server.address()), Settings::default());
    run_blocking(async {
        register(&redis, &settings).await;
        let mut c = enter(&redis, "c", &settings).await;
        let stream = cursors(&server)[0].split_once(':').unwrap().0.to_owned();
        let begin = c.position().to_string();
        broadcast(&redis, "1", &settings).await;
        assert_eq!(take(&mut c).await, ["1"]);
        let given = cursors(&server);
        assert_eq!(given, [format!("{stream}:{}", c.position())]);
        let keys = redis.process.session(&host().host);
        let late = async |stream: &str| {
            let arguments = [b"cc", stream.as_bytes(), begin.as_bytes(), b"cnobody", b"1", b"7"];
            DELIVER.run(&redis.process.servers, &[keys.cursors()], &arguments).await.unwrap();
        };
        late(&stream).await;
        assert_eq!(cursors(&server), given);
        let mut next = redis.listen(&client("c"), None, &policy(&settings)).await.unwrap();
        late(&stream).await;
        assert!(take(&mut next).await.is_empty(), "it was given already");
    });
}

#[cfg(feature = "serve")]
mod served {
    use super::*;
    use crate::store::redis::session::tests::served::runtime;

    #[test]
    fn what_many_are_given_is_noted_together_and_to_the_last() {
        let Some(server) = TestServer::start(&[]) else { return };
        runtime().block_on(async {
            let (redis, settings) = (process(&server.address()), Settings::default());
            register(&redis, &settings).await;
            let mut listeners = Vec::new();
            for name in 0..50 {
                listeners.push(enter(&redis, &name.to_string(), &settings).await);
            }
            let (before, began) = (server.calls("evalsha"), std::time::Instant::now());
            for number in 0..20 {
                broadcast(&redis, &number.to_string(), &settings).await;
                for listener in &mut listeners {
                    listener.look_anew();
                    assert_eq!(take(listener).await, [number.to_string()]);
                }
            }
            // Each has read the log for itself: that was another.
            let notes = server.calls("evalsha") - before - 20 - 20 * 50;
            let rounds = u64::try_from(began.elapsed().as_millis()).unwrap() / 100 + 1;
            assert!(notes <= 2 * rounds + 20, "{notes} notes of 1000 deliveries in {rounds} rounds");
            let (all, last) = (listeners.len(), listeners[0].position());
            let is_noted = || cursors(&server).iter().filter(|at| at.ends_with(&format!(":{last}"))).count() == all;
            sooner_or_later(|| is_noted().then_some(()));
        });
    }

    #[test]
    fn whoever_takes_a_place_in_the_same_process_is_given_nothing_again() {
        let Some(server) = TestServer::start(&[]) else { return };
        runtime().block_on(async {
            let (redis, settings) = (process(&server.address()), Settings::default());
            register(&redis, &settings).await;
            let mut c = enter(&redis, "c", &settings).await;
            for number in 0..20 {
                broadcast(&redis, &number.to_string(), &settings).await;
                c.look_anew();
                assert_eq!(take(&mut c).await, [number.to_string()]);
            }
            let mut next = redis.listen(&client("c"), None, &policy(&settings)).await.unwrap();
            assert!(take(&mut next).await.is_empty(), "it was given already");
        });
    }

    #[test]
    fn whoever_reads_much_is_not_taken_for_slow() {
        let Some(server) = TestServer::start(&[]) else { return };
        runtime().block_on(async {
            let redis = process(&server.address());
            let settings = Settings { max_queue: 250_000, ..Settings::default() };
            register(&redis, &settings).await;
            let mut c = enter(&redis, "c", &settings).await;
            let large = "1".repeat(100_000);
            for _ in 0..20 {
                assert_eq!(broadcast(&redis, &large, &settings).await, ["c true"]);
                c.look_anew();
                assert_eq!(take(&mut c).await.len(), 1);
                let noted = format!(":{}", c.position());
                // It is noted without being asked for.
                sooner_or_later(|| cursors(&server)[0].ends_with(&noted).then_some(()));
            }
        });
    }
}
