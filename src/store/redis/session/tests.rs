//! What the contract of all homes does not ask: several processes, and a Redis that goes and comes.

use super::super::process::Redis;
use super::super::reply::{Reply, text};
use super::super::testing::{TestServer, Way, sooner_or_later};
use super::listener::Listener;
use crate::config::Settings;
use crate::config::redis::Address;
use crate::gateway::run_blocking;
use crate::protocol::uhst::policy;
use crate::store::Error;
use crate::store::files::Files;
use crate::store::sessions::{Claim, Party, Refused, Standing};
use crate::token::{ClientId, HostId};
use std::time::Duration;

mod fan_out;

fn process(address: &Address) -> Redis {
    Redis::elsewhere(address, Files::new(std::path::Path::new("/nowhere")))
}

fn host() -> Party {
    Party { host: HostId::new("h").unwrap(), client: None, registration: Some("one".to_owned()) }
}

fn client(name: &str) -> Party {
    Party { client: ClientId::new(name), ..host() }
}

async fn register(redis: &Redis, settings: &Settings) {
    redis.register(&host().host, "one", Claim::Drawn, &policy(settings)).await.unwrap();
}

/// Joins, and listens.
async fn enter(redis: &Redis, name: &str, settings: &Settings) -> Listener {
    redis.join(&host().host, &ClientId::new(name).unwrap(), &policy(settings)).await.unwrap();
    redis.listen(&client(name), None, &policy(settings)).await.unwrap()
}

async fn take(listener: &mut Listener) -> Vec<String> {
    let mut all = Vec::new();
    while let Ok(true) = listener.next(|event| all.push(event.data.to_owned())).await {}
    let _ = listener.delivered().await;
    all
}

/// What a program for one stream hears, which looks when it is woken, and tends from time to time.
fn hears(listener: &mut Listener, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    sooner_or_later(|| {
        // Redis may be away.
        let _ = run_blocking(listener.tend());
        listener.hear();
        all.extend(run_blocking(take(listener)));
        (all.len() >= count).then_some(())
    });
    all
}

#[test]
fn a_stream_whose_connection_has_died_without_a_word_is_given_what_is_said() {
    let Some(server) = TestServer::start_tcp(&[]) else { return };
    let way = Way::to(&server);
    let (here, there) =
        (process(&Address { servers: vec![way.server.clone()], ..Address::default() }), process(&server.address()));
    let settings = Settings::default();
    let policy = policy(&settings);
    let (mut h, mut c) = run_blocking(async {
        register(&there, &settings).await;
        (here.listen(&host(), None, &policy).await.unwrap(), enter(&there, "c", &settings).await)
    });
    let send = |data: &str| run_blocking(there.send_to_host(&client("c"), data, &policy)).unwrap();
    send("1");
    assert_eq!(hears(&mut h, 1).len(), 1);
    way.die();
    // It finds out, and listens anew: then it is woken by what is said, and need not look for it.
    sooner_or_later(|| {
        run_blocking(c.tend()).unwrap();
        // What was asked on the connection that has died may have been done.
        let _ = run_blocking(h.tend());
        while !run_blocking(take(&mut h)).is_empty() {}
        send("2");
        (0..50)
            .any(|_| {
                std::thread::sleep(Duration::from_millis(10));
                h.hear();
                !run_blocking(take(&mut h)).is_empty()
            })
            .then_some(())
    });
}

#[test]
fn whoever_is_killed_is_told_to_the_peers_within_seconds() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (killed, here) = (process(&server.address()), process(&server.address()));
    let settings = Settings::default();
    let mut h = run_blocking(async {
        register(&here, &settings).await;
        let h = here.listen(&host(), None, &policy(&settings)).await.unwrap();
        std::mem::forget(enter(&killed, "c", &settings).await);
        h
    });
    assert_eq!(hears(&mut h, 1), [r#"{"eventType":"client_closed","body":"c"}"#]);
    let send = run_blocking(here.send_to_client(&host().host, &ClientId::new("c").unwrap(), "1", &policy(&settings)));
    assert!(matches!(send, Err(Refused::ClientGone)));
}

#[test]
fn whoever_was_there_when_redis_ended_has_time_to_say_so_again_though_others_have_said_it_already() {
    let Some(mut server) = TestServer::start(&["--appendonly", "yes", "--appendfsync", "always"]) else { return };
    let (late, here) = (process(&server.address()), process(&server.address()));
    let settings = Settings::default();
    let mut h = run_blocking(async {
        register(&here, &settings).await;
        std::mem::forget(enter(&late, "c", &settings).await);
        here.listen(&host(), None, &policy(&settings)).await.unwrap()
    });
    let present = server.keys().into_iter().find(|key| key.ends_with(":present")).unwrap();
    let send =
        || run_blocking(here.send_to_client(&host().host, &ClientId::new("c").unwrap(), "1", &policy(&settings)));
    sooner_or_later(|| {
        server.kill();
        server.restart();
        let began = std::time::Instant::now();
        // The host has said that it is there, and the client's time is over now.
        run_blocking(h.tend()).ok()?;
        let Reply::Array(time) = server.ask(&["TIME"]) else { panic!("it tells") };
        let now = format!("{}000", text(&time[0]).unwrap());
        assert_eq!(server.ask(&["ZADD", &present, "XX", "CH", &now, "cc 1"]), Reply::Integer(1));
        let outcome = send();
        // Whoever is slower than that has had its time.
        (began.elapsed() < Duration::from_secs(3)).then(|| outcome.unwrap())
    });
    sooner_or_later(|| {
        let _ = run_blocking(h.tend());
        matches!(send(), Err(Refused::ClientGone)).then_some(())
    });
}

#[test]
fn whoever_could_not_say_that_it_is_there_takes_its_place_back() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (here, there) = (process(&server.address()), process(&server.address()));
    let settings = Settings::default();
    run_blocking(async {
        register(&here, &settings).await;
        let mut c = enter(&here, "c", &settings).await;
        let send =
            async || there.send_to_client(&host().host, &ClientId::new("c").unwrap(), "1", &policy(&settings)).await;
        let mut tries = 0;
        while send().await.is_ok() {
            tries += 1;
            assert!(tries < 600, "it counts as there for ever");
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(c.tend().await.unwrap(), Standing::Listening);
        send().await.unwrap();
        c.look_anew();
        assert_eq!(take(&mut c).await.len(), tries + 1, "nothing was lost, and nothing doubled");
    });
}

#[test]
fn streams_go_on_when_redis_has_been_away_and_nothing_is_doubled() {
    let Some(mut server) = TestServer::start(&["--appendonly", "yes", "--appendfsync", "always"]) else { return };
    let (here, there) = (process(&server.address()), process(&server.address()));
    let settings = Settings::default();
    let policy = policy(&settings);
    let (mut h, mut c) = run_blocking(async {
        register(&here, &settings).await;
        (here.listen(&host(), None, &policy).await.unwrap(), enter(&there, "c", &settings).await)
    });
    let both = |data: &str| {
        run_blocking(there.send_to_host(&client("c"), data, &policy))?;
        run_blocking(here.broadcast(&host(), data, &policy)).map(drop)
    };
    both("1").unwrap();
    assert_eq!((hears(&mut h, 1), hears(&mut c, 1)), (vec!["1".to_owned()], vec!["1".to_owned()]));
    both("2").unwrap();
    server.kill();
    assert!(matches!(both("3"), Err(Refused::Store(_))));
    server.restart();
    both("4").unwrap();
    let rest = || vec!["2".to_owned(), "4".to_owned()];
    assert_eq!((hears(&mut h, 2), hears(&mut c, 2)), (rest(), rest()));
}

#[test]
fn the_memory_of_redis_has_a_limit() {
    let Some(server) = TestServer::start(&[]) else { return };
    let redis = process(&server.address());
    let (settings, tight) = (Settings::default(), Settings { max_data: 1, ..Settings::default() });
    run_blocking(async {
        register(&redis, &settings).await;
        let mut c = enter(&redis, "c", &settings).await;
        let refused = redis.send_to_host(&client("c"), "1", &policy(&tight)).await;
        assert!(matches!(refused, Err(Refused::Store(Error::DataFull(full))) if full.limit == 1));
        let refused = redis.broadcast(&host(), "1", &policy(&tight)).await;
        assert!(matches!(refused, Err(Refused::Store(Error::DataFull(_)))));
        redis.broadcast(&host(), "2", &policy(&settings)).await.unwrap();
        assert_eq!(take(&mut c).await, ["2"]);
    });
}

/// What a stream is given: it notes what it has written, if it has written anything.
async fn give(listener: &mut Listener) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let before = all.len();
        listener.look_anew();
        let Ok(has_more) = listener.next(|event| all.push(event.data.chars().take(40).collect())).await else {
            return all;
        };
        if all.len() > before {
            let _ = listener.delivered().await;
        }
        if !has_more {
            return all;
        }
    }
}

#[test]
fn whoever_was_left_out_of_much_is_given_what_comes_next() {
    let Some(server) = TestServer::start(&[]) else { return };
    let redis = process(&server.address());
    let settings = Settings { max_queue: 250_000, ..Settings::default() };
    let policy = policy(&settings);
    run_blocking(async {
        register(&redis, &settings).await;
        let mut c = enter(&redis, "c", &settings).await;
        let mut d = enter(&redis, "d", &settings).await;
        let large = "1".repeat(100_000);
        // How many of the two are to get it.
        let mut broadcast = async || {
            let told = redis.broadcast(&host(), &large, &policy).await.unwrap();
            assert_eq!(give(&mut d).await.len(), 1, "it reads");
            told.into_iter().filter(|(_, is_sent)| *is_sent).count()
        };
        let counts = [broadcast().await, broadcast().await, broadcast().await, broadcast().await, broadcast().await];
        assert_eq!(counts, [2, 2, 1, 1, 1]);
        assert_eq!(give(&mut c).await.len(), 3, "two, and that it has missed something");
        assert_eq!(broadcast().await, 2);
        assert_eq!(give(&mut c).await.len(), 1);
    });
}

#[test]
fn nobody_is_told_of_a_loss_where_all_that_was_dropped_was_for_others() {
    let Some(server) = TestServer::start(&[]) else { return };
    let redis = process(&server.address());
    let settings = Settings::default();
    let short = Settings { message_lifetime: Duration::from_millis(1), ..Settings::default() };
    run_blocking(async {
        register(&redis, &settings).await;
        let [mut c, _d, mut e] = [
            enter(&redis, "c", &settings).await,
            enter(&redis, "d", &settings).await,
            enter(&redis, "e", &settings).await,
        ];
        let send = async |to: &str, settings: &Settings| {
            let to = ClientId::new(to).unwrap();
            redis.send_to_client(&host().host, &to, "1", &policy(settings)).await.unwrap();
        };
        // Says something to one, and drops it.
        let drop_one = async |to: &str| {
            send(to, &settings).await;
            std::thread::sleep(Duration::from_millis(10));
            send("d", &short).await;
        };
        let lost = |name: &str| format!(r#"{{"eventType":"messages_lost","body":"{name}"}}"#);
        send("c", &settings).await;
        assert_eq!(take(&mut c).await, ["1"]);
        let resume = Some(c.position());
        drop_one("d").await;
        drop_one("d").await;
        let mut c = redis.listen(&client("c"), resume, &policy(&settings)).await.unwrap();
        assert_eq!(take(&mut c).await, [""; 0]);
        assert_eq!(take(&mut e).await, [""; 0], "it has been there all the time, and did not look");
        drop_one("c").await;
        let mut c = redis.listen(&client("c"), resume, &policy(&settings)).await.unwrap();
        assert_eq!(take(&mut c).await, [lost("c")]);
        e.look_anew();
        assert_eq!(take(&mut e).await, [""; 0]);
        drop_one("e").await;
        e.look_anew();
        assert_eq!(take(&mut e).await, [lost("e")]);
    });
}

#[test]
fn many_that_lag_cost_a_broadcast_one_walk_and_whoever_it_names_takes_room() {
    let Some(server) = TestServer::start(&[]) else { return };
    let redis = process(&server.address());
    let settings = Settings { max_queue: 100_000, max_topic: 250_000, ..Settings::default() };
    run_blocking(async {
        register(&redis, &settings).await;
        let _h = redis.listen(&host(), None, &policy(&settings)).await.unwrap();
        let first = ClientId::new("0").unwrap();
        for number in 0..200 {
            redis.join(&host().host, &ClientId::new(&number.to_string()).unwrap(), &policy(&settings)).await.unwrap();
            // So that each has another place in the log, and what comes next is not for it.
            redis.send_to_client(&host().host, &first, "1", &policy(&settings)).await.unwrap();
        }
        let broadcast = async |data: &str| redis.broadcast(&host(), data, &policy(&settings)).await;
        let large = "x".repeat(30_000);
        let is_sent = async || broadcast(&large).await.unwrap().iter().filter(|(_, is_sent)| *is_sent).count();
        for expected in [200, 200, 199, 0] {
            assert_eq!(is_sent().await, expected);
        }
        let before = server.calls("xrange");
        assert_eq!(is_sent().await, 0);
        let looks = server.calls("xrange") - before;
        assert!(looks < 20, "{looks}");

        let mut broadcasts = 0;
        while broadcast(&large).await.is_ok() {
            broadcasts += 1;
            assert!(broadcasts < 1000, "who is left out of them takes no room");
        }
    });
}

#[test]
fn what_was_given_while_redis_was_away_is_noted_later() {
    let Some(mut server) = TestServer::start(&["--appendonly", "yes", "--appendfsync", "always"]) else { return };
    let redis = process(&server.address());
    let settings = Settings { max_queue: 250_000, ..Settings::default() };
    run_blocking(async {
        register(&redis, &settings).await;
        let mut c = enter(&redis, "c", &settings).await;
        let broadcast = async |data: &str| redis.broadcast(&host(), data, &policy(&settings)).await.unwrap()[0].1;
        assert!(broadcast(&"1".repeat(200_000)).await);
        let mut all = Vec::new();
        while c.next(|event| all.push(event.data.len())).await.unwrap() {}
        server.kill();
        c.delivered().await.unwrap_err();
        server.restart();
        while c.tend().await.is_err() {}
        assert!(broadcast(&"2".repeat(200_000)).await, "it has been given all");
    });
}

#[test]
fn everything_has_a_time_to_live() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (redis, settings) = (process(&server.address()), Settings::default());
    let policy = policy(&settings);
    run_blocking(async {
        register(&redis, &settings).await;
        let (_h, mut c) = (redis.listen(&host(), None, &policy).await.unwrap(), enter(&redis, "c", &settings).await);
        redis.send_to_host(&client("c"), "1", &policy).await.unwrap();
        redis.broadcast(&host(), "1", &policy).await.unwrap();
        assert_eq!(server.keys().len(), 7, "all kinds of keys are there");
        assert_eq!(server.immortal(), [""; 0]);
        for end in [":to-host", ":to-clients", ":cursors"] {
            server.remove(end);
        }
        redis.send_to_host(&client("c"), "1", &policy).await.unwrap();
        assert_eq!(server.immortal(), [""; 0]);
        redis.broadcast(&host(), "1", &policy).await.unwrap();
        assert_eq!(server.immortal(), [""; 0]);
        c.end().await.unwrap();
        assert_eq!(server.keys().len(), 7, "all kinds of keys are there again");
        assert_eq!(server.immortal(), [""; 0]);
    });
}

#[test]
fn an_id_that_is_registered_again_and_again_leaves_nothing_behind() {
    let Some(server) = TestServer::start(&[]) else { return };
    let redis = process(&server.address());
    let settings = Settings { grace: Duration::ZERO, ..Settings::default() };
    let policy = policy(&settings);
    run_blocking(async {
        for number in 0..100 {
            let host = Party { registration: Some(number.to_string()), ..host() };
            let registration = host.registration.as_deref().unwrap();
            redis.register(&host.host, registration, Claim::Chosen, &policy).await.unwrap();
            let h = redis.listen(&host, None, &policy).await.unwrap();
            redis.join(&host.host, &ClientId::new(registration).unwrap(), &policy).await.unwrap();
            drop(h);
        }
    });
    let record = server.keys().into_iter().find(|key| key.ends_with('}')).unwrap();
    let Reply::Integer(fields) = server.ask(&["HLEN", &record]) else { panic!("it tells") };
    assert!(fields < 60, "{fields} fields");
}

#[test]
fn whoever_takes_its_place_back_makes_nothing_that_lives_for_ever() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (redis, settings) = (process(&server.address()), Settings::default());
    run_blocking(async {
        register(&redis, &settings).await;
        let mut h = redis.listen(&host(), None, &policy(&settings)).await.unwrap();
        let present = server.keys().into_iter().find(|key| key.ends_with(":present")).unwrap();
        // As when all were taken for gone.
        server.ask(&["DEL", &present]);
        assert_eq!(h.standing().await.unwrap(), Standing::Listening);
        assert!(server.keys().contains(&present));
        assert_eq!(server.immortal(), [""; 0]);
    });
}

#[test]
fn a_host_that_nobody_has_used_for_a_while_gives_way_to_a_newcomer() {
    let Some(server) = TestServer::start(&[]) else { return };
    let (redis, settings) = (process(&server.address()), Settings { max_hosts: 1, ..Settings::default() });
    let policy = policy(&settings);
    let id = |name: &str| HostId::new(name).unwrap();
    let is_room_for = async |name: &str| match redis.register(&id(name), "one", Claim::Drawn, &policy).await {
        Err(Refused::TooManyHosts(1)) => false,
        other => other.is_ok(),
    };
    // As after more than a minute.
    let grow_old = || {
        let record = server.keys().into_iter().find(|key| key.starts_with("uhst:host:") && key.ends_with('}')).unwrap();
        server.ask(&["HSET", &record, "touched", "1", "swept", "1"]);
    };
    run_blocking(async {
        assert!(is_room_for("a").await);
        redis.join(&id("a"), &ClientId::new("c").unwrap(), &policy).await.unwrap();
        assert!(!is_room_for("b").await, "it has only just come");
        grow_old();
        assert!(is_room_for("b").await);
        let party = Party { host: id("b"), ..host() };
        redis.listen(&party, None, &policy).await.unwrap().end().await.unwrap();
        grow_old();
        assert!(!is_room_for("c").await, "somebody has listened");
    });
}

#[test]
fn a_session_works_in_a_cluster_wherever_it_is() {
    let Some(nodes) = TestServer::start_cluster() else { return };
    let (here, there) = (process(&nodes[0].address()), process(&nodes[1].address()));
    let settings = Settings::default();
    let policy = policy(&settings);
    for name in ["a", "b", "c", "d", "e", "f"] {
        let party = Party { host: HostId::new(name).unwrap(), ..host() };
        let c = Party { client: ClientId::new("c"), ..party.clone() };
        let (mut of_host, mut of_client) = run_blocking(async {
            here.register(&party.host, "one", Claim::Drawn, &policy).await.unwrap();
            there.join(&party.host, &ClientId::new("c").unwrap(), &policy).await.unwrap();
            let listeners =
                (here.listen(&party, None, &policy).await.unwrap(), there.listen(&c, None, &policy).await.unwrap());
            there.send_to_host(&c, "1", &policy).await.unwrap();
            here.broadcast(&party, "2", &policy).await.unwrap();
            listeners
        });
        assert_eq!((hears(&mut of_host, 1), hears(&mut of_client, 1)), (vec!["1".to_owned()], vec!["2".to_owned()]));
    }
}

#[cfg(feature = "serve")]
mod served {
    use super::*;
    use crate::wake::wait;
    use std::time::Instant;
    use tokio::task::JoinHandle;

    pub fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    }

    /// Listens as a stream does, until so much has come, and ends.
    fn listen(mut listener: Listener, count: usize) -> JoinHandle<Vec<String>> {
        tokio::spawn(async move {
            let (mut all, began) = (Vec::new(), Instant::now());
            while all.len() < count {
                assert!(began.elapsed().as_secs() < 60, "only {} of {count} come: {all:?}", all.len());
                all.extend(take(&mut listener).await);
                wait(&mut [&mut listener.wake()], Duration::from_secs(5)).await;
                listener.hear();
                assert_eq!(listener.tend().await.unwrap(), Standing::Listening);
            }
            listener.end().await.unwrap();
            all
        })
    }

    #[test]
    fn a_host_and_clients_of_two_processes_hear_everything_once_and_in_order() {
        let Some(server) = TestServer::start(&[]) else { return };
        runtime().block_on(async {
            let processes = [process(&server.address()), process(&server.address())];
            let settings = Settings::default();
            register(&processes[0], &settings).await;
            let h = listen(processes[0].listen(&host(), None, &policy(&settings)).await.unwrap(), 200);
            let mut clients = Vec::new();
            for n in 0..20 {
                clients.push(listen(enter(&processes[n % 2], &format!("c{n}"), &settings).await, 20));
            }
            let senders: Vec<_> = (0..20)
                .map(|n| {
                    let (redis, settings) = (processes[(n + 1) % 2].clone(), settings.clone());
                    tokio::spawn(async move {
                        let (party, policy) = (client(&format!("c{n}")), policy(&settings));
                        for data in 0..10 {
                            redis.send_to_host(&party, &format!("{n} {data}"), &policy).await.unwrap();
                            let id = party.client.clone().unwrap();
                            redis.send_to_client(&party.host, &id, &format!("own {data}"), &policy).await.unwrap();
                        }
                    })
                })
                .collect();
            for data in 0..10 {
                processes[1].broadcast(&host(), &format!("all {data}"), &policy(&settings)).await.unwrap();
            }
            for sender in senders {
                sender.await.unwrap();
            }
            let of = |all: &[String], prefix: &str| -> Vec<String> {
                all.iter().filter_map(|data| data.strip_prefix(prefix)).map(str::to_owned).collect()
            };
            let ten: Vec<String> = (0..10).map(|data| data.to_string()).collect();
            for client in clients {
                let all = client.await.unwrap();
                assert_eq!((of(&all, "own "), of(&all, "all ")), (ten.clone(), ten.clone()));
            }
            let all = h.await.unwrap();
            for n in 0..20 {
                assert_eq!(of(&all, &format!("{n} ")), ten);
            }
        });
    }

    #[test]
    fn a_newer_stream_elsewhere_takes_the_place_at_once() {
        let Some(server) = TestServer::start(&[]) else { return };
        runtime().block_on(async {
            let (here, there) = (process(&server.address()), process(&server.address()));
            let settings = Settings::default();
            register(&here, &settings).await;
            let mut c = enter(&here, "c", &settings).await;
            // It listens once it has been given what it was sent.
            there.send_to_client(&host().host, &ClientId::new("c").unwrap(), "1", &policy(&settings)).await.unwrap();
            while take(&mut c).await.is_empty() {
                wait(&mut [&mut c.wake()], Duration::from_secs(5)).await;
                c.hear();
            }
            let mut next = there.listen(&client("c"), None, &policy(&settings)).await.unwrap();
            let began = Instant::now();
            while !c.hear() {
                assert!(began.elapsed().as_secs() < 60, "it does not hear that its place is taken");
                wait(&mut [&mut c.wake()], Duration::from_secs(5)).await;
            }
            assert_eq!(c.standing().await.unwrap(), Standing::Superseded);
            assert_eq!(next.standing().await.unwrap(), Standing::Listening);
            assert!(take(&mut next).await.is_empty(), "it was given already");
        });
    }
}
