//! What the relay does with real servers, and with those that are not there.

use super::process::Redis;
use super::reply::Reply;
use super::script::Script;
use super::servers::Servers;
use super::testing::{TestServer, free_port, sooner_or_later};
#[cfg(feature = "serve")]
use super::{
    ear::ROUND,
    lock::lock,
    subscription::{Care, Caring, Subscription},
    topic::Topic,
};
#[cfg(feature = "serve")]
use crate::clock::instant;
use crate::config::redis::{Address, Password, Server};
use crate::gateway::run_blocking;
use crate::store::Error;
use crate::store::files::Files;
use crate::store::remote::{Reason, Remote};
use std::io::Read as _;
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// Adds to a number, and tells it.
static COUNT: Script = Script::new("return redis.call('INCRBY', KEYS[1], ARGV[1])");

fn count(servers: &Servers, key: &str) -> Result<Reply, Remote> {
    run_blocking(COUNT.run(servers, &[key], &[b"1"]))
}

/// Nobody is kept waiting for longer. The tests' machine may be slow, but not by so much.
fn in_time<T>(work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    done
}

#[test]
fn a_script_is_told_once_and_again_where_it_was_forgotten() {
    let Some(server) = TestServer::start(&[]) else { return };
    let servers = Servers::new(server.address());
    for expected in 1..=2 {
        assert_eq!(count(&servers, "{a}"), Ok(Reply::Integer(expected)));
    }
    server.ask(&["SCRIPT", "FLUSH"]);
    assert_eq!(count(&servers, "{a}"), Ok(Reply::Integer(3)), "once, and not twice");
}

#[test]
fn a_login_opens_what_is_closed_to_others() {
    let Some(server) = TestServer::start(&[]) else { return };
    server.ask(&["ACL", "SETUSER", "me", "on", ">pa:ss", "~*", "+@all"]);
    server.ask(&["ACL", "SETUSER", "default", "off"]);
    let login = |user: Option<&str>, password: Option<&str>| {
        let servers = Servers::new(Address {
            user: user.map(str::to_owned),
            password: password.map(|password| Password(password.to_owned())),
            database: 2,
            ..server.address()
        });
        count(&servers, "{a}")
    };
    assert_eq!(login(Some("me"), Some("pa:ss")), Ok(Reply::Integer(1)));
    for (user, password) in [(Some("me"), Some("hidden")), (None, Some("pa:ss")), (None, None)] {
        let refused = login(user, password).unwrap_err();
        assert_eq!(refused.reason, Reason::Login, "{refused:?}");
        assert!(!refused.cause.contains("hidden") && !refused.cause.contains("pa:ss"), "{refused:?}");
    }
}

#[test]
fn a_database_is_not_another() {
    let Some(server) = TestServer::start(&[]) else { return };
    let one = Servers::new(Address { database: 1, ..server.address() });
    assert_eq!(count(&one, "{a}"), Ok(Reply::Integer(1)));
    assert_eq!(count(&Servers::new(server.address()), "{a}"), Ok(Reply::Integer(1)));
    let none = Servers::new(Address { database: 1000, ..server.address() });
    assert_eq!(count(&none, "{a}").unwrap_err().reason, Reason::Failed);
}

#[test]
fn what_is_not_there_is_told_at_once() {
    let free = || Server::Tcp("127.0.0.1".to_owned(), 1);
    let address = Address { servers: vec![free(), Server::Unix("/none.sock".into())], ..Address::default() };
    assert_eq!(in_time(|| count(&Servers::new(address), "{a}")).unwrap_err().reason, Reason::Away);
}

#[test]
fn a_server_that_does_not_greet_is_asked_nothing_but_what_does_no_harm() {
    static HARMLESS: Script = Script::harmless_promise("return 1");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = Server::Tcp("127.0.0.1".to_owned(), listener.local_addr().unwrap().port());
    for (script, is_asked) in [(&COUNT, false), (&HARMLESS, true)] {
        let servers = Servers::new(Address { servers: vec![here.clone()], database: 1, ..Address::default() });
        let heard = std::thread::scope(|scope| {
            let server = scope.spawn(|| {
                let mut heard = String::new();
                listener.accept().unwrap().0.read_to_string(&mut heard).unwrap();
                heard
            });
            run_blocking(script.run(&servers, &["{a}"], &[b"1"])).unwrap_err();
            server.join().unwrap()
        });
        assert!(heard.contains("HELLO") && heard.contains("SELECT"), "{heard}");
        assert_eq!(heard.contains("EVALSHA"), is_asked, "it takes a round trip: {heard}");
    }
}

#[test]
fn whoever_is_not_there_is_passed_over() {
    let Some(server) = TestServer::start_tcp(&[]) else { return };
    let away = Server::Unix("/none.sock".into());
    let servers = Servers::new(Address { servers: vec![away, server.server.clone()], ..server.address() });
    assert_eq!(count(&servers, "{a}"), Ok(Reply::Integer(1)));
}

#[test]
fn whoever_is_stopped_is_passed_over_too() {
    let Some(stopped) = TestServer::start_tcp(&[]) else { return };
    let Some(server) = TestServer::start_tcp(&[]) else { return };
    stopped.freeze();
    let servers =
        Servers::new(Address { servers: vec![stopped.server.clone(), server.server.clone()], ..server.address() });
    assert_eq!(in_time(|| count(&servers, "{a}")), Ok(Reply::Integer(1)));
    stopped.go_on();
    assert_eq!(count(&servers, "{a}"), Ok(Reply::Integer(2)), "it is the other that is asked from now on");
}

#[test]
fn a_stopped_server_keeps_nobody_waiting_and_is_used_again_when_it_goes_on() {
    let Some(server) = TestServer::start(&[]) else { return };
    let servers = Servers::new(server.address());
    count(&servers, "{a}").unwrap();
    server.freeze();
    for _ in 0..2 {
        assert_eq!(in_time(|| count(&servers, "{a}")).unwrap_err().reason, Reason::Slow);
    }
    server.go_on();
    // The first of them was sent, and may have been done.
    assert!(matches!(count(&servers, "{a}"), Ok(Reply::Integer(2 | 3))));
}

#[test]
fn a_server_that_was_restarted_is_used_again_at_once() {
    let Some(mut server) = TestServer::start(&["--appendonly", "yes", "--appendfsync", "always"]) else { return };
    let servers = Servers::new(server.address());
    count(&servers, "{a}").unwrap();
    server.kill();
    assert_eq!(in_time(|| count(&servers, "{a}")).unwrap_err().reason, Reason::Away);
    server.restart();
    assert_eq!(count(&servers, "{a}"), Ok(Reply::Integer(2)));
}

#[test]
fn a_full_server_says_so() {
    let Some(server) = TestServer::start(&["--maxmemory", "1", "--maxmemory-policy", "noeviction"]) else { return };
    assert_eq!(count(&Servers::new(server.address()), "{a}").unwrap_err().reason, Reason::Full);
}

#[test]
fn each_key_goes_to_its_node_of_a_cluster_and_follows_when_that_moves() {
    let Some(nodes) = TestServer::start_cluster() else { return };
    let servers = Servers::new(nodes[0].address());
    let keys: Vec<String> = (0..30).map(|n| format!("{{{n}}}")).collect();
    for expected in 1..=2 {
        for key in &keys {
            assert_eq!(count(&servers, key), Ok(Reply::Integer(expected)));
        }
    }
    for node in &nodes {
        assert!(matches!(node.ask(&["DBSIZE"]), Reply::Integer(1..)), "it has its share");
    }

    // The slot of one key is on its way from one node to another.
    let slot = redis_protocol::redis_keyslot(b"{0}").to_string();
    let owner = usize::from(redis_protocol::redis_keyslot(b"{0}")) * 3 / 16384;
    let (from, to) = (&nodes[owner], &nodes[(owner + 1) % 3]);
    let id = |node: &TestServer| match node.ask(&["CLUSTER", "MYID"]) {
        Reply::BulkString(id) => String::from_utf8(id).unwrap(),
        other => panic!("{other:?}"),
    };
    let Server::Tcp(host, port) = &to.server else { panic!("it has a port") };
    to.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]);
    from.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]);
    from.ask(&["MIGRATE", host, &port.to_string(), "{0}", "0", "5000"]);
    assert_eq!(count(&servers, "{0}"), Ok(Reply::Integer(3)), "it was asked for there");
    for node in [to, from] {
        node.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &id(to)]);
    }
    assert_eq!(count(&servers, "{0}"), Ok(Reply::Integer(4)), "it has moved");
}

#[test]
fn a_replica_names_its_primary_and_takes_over() {
    let Some(mut primary) = TestServer::start_tcp(&[]) else { return };
    let Server::Tcp(host, port) = primary.server.clone() else { panic!("it has a port") };
    let Some(replica) = TestServer::start_tcp(&["--replicaof", &format!("{host} {port}")]) else { return };
    let both = Address { servers: vec![replica.server.clone(), primary.server.clone()], ..primary.address() };
    let servers = Servers::new(both);
    assert_eq!(count(&servers, "{a}"), Ok(Reply::Integer(1)));
    let value = || match replica.ask(&["GET", "{a}"]) {
        Reply::BulkString(value) => Some(value),
        _ => None,
    };
    assert_eq!(sooner_or_later(value), b"1");
    primary.kill();
    in_time(|| count(&servers, "{a}")).unwrap_err();
    replica.ask(&["REPLICAOF", "NO", "ONE"]);
    assert_eq!(sooner_or_later(|| count(&servers, "{a}").ok()), Reply::Integer(2));
}

#[test]
fn what_is_promised_a_replica_has() {
    static PROMISE: Script = Script::promise("return redis.call('INCRBY', KEYS[1], ARGV[1])");
    let promise = |servers: &Servers| run_blocking(PROMISE.run(servers, &["{a}"], &[b"1"]));
    let Some(primary) = TestServer::start_tcp(&[]) else { return };
    let servers = Servers::new(Address { replicas: 1, ..primary.address() });
    let alone = in_time(|| promise(&servers)).unwrap_err();
    assert_eq!((alone.reason, alone.cause.as_str()), (Reason::TooFewReplicas, "0 of 1 replicas have it in time"));
    assert_eq!(count(&servers, "{a}"), Ok(Reply::Integer(2)), "by this nothing is promised");

    let Server::Tcp(host, port) = primary.server.clone() else { panic!("it has a port") };
    let Some(replica) = TestServer::start_tcp(&["--replicaof", &format!("{host} {port}")]) else { return };
    sooner_or_later(|| promise(&servers).ok());
    let Ok(Reply::Integer(last)) = promise(&servers) else { panic!("there is a replica") };
    assert_eq!(replica.ask(&["GET", "{a}"]), Reply::BulkString(last.to_string().into_bytes()), "it has it by then");
    replica.freeze();
    assert_eq!(in_time(|| promise(&servers)).unwrap_err().reason, Reason::TooFewReplicas);
    assert_eq!(count(&servers, "{a}"), Ok(Reply::Integer(last + 2)));
    replica.go_on();
    sooner_or_later(|| promise(&servers).ok());
    primary.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(promise(&servers).unwrap_err().reason, Reason::Full, "that comes first");
}

#[cfg(feature = "serve")]
#[test]
fn only_those_wait_for_replicas_who_are_promised_something() {
    static PROMISE: Script = Script::promise("return redis.call('INCRBY', KEYS[1], ARGV[1])");
    let Some(server) = TestServer::start(&[]) else { return };
    let servers = std::sync::Arc::new(Servers::new(Address { replicas: 1, ..server.address() }));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        for _ in 0..5 {
            let [promised, counted] = [&PROMISE, &COUNT].map(|script| {
                let servers = servers.clone();
                tokio::spawn(async move { script.run(&servers, &["{a}"], &[b"1"]).await })
            });
            assert_eq!(promised.await.unwrap().unwrap_err().reason, Reason::TooFewReplicas);
            counted.await.unwrap().unwrap();
        }
    });
    assert_eq!(count(&servers, "{a}"), Ok(Reply::Integer(11)));
}

#[cfg(feature = "serve")]
#[test]
fn many_tasks_share_a_connection_and_each_gets_its_own_answer() {
    let Some(server) = TestServer::start(&[]) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let servers = std::sync::Arc::new(Servers::new(server.address()));
    runtime.block_on(async {
        let tasks: Vec<_> = (0..200)
            .map(|n| {
                let servers = servers.clone();
                tokio::spawn(async move {
                    for expected in 1..=5 {
                        let reply = COUNT.run(&servers, &[&format!("{{{n}}}")], &[b"1"]).await;
                        assert_eq!(reply, Ok(Reply::Integer(expected)));
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    let Reply::BulkString(info) = server.ask(&["INFO", "stats"]) else { panic!("it tells") };
    let info = String::from_utf8(info).unwrap();
    let connections = info.lines().find_map(|line| line.strip_prefix("total_connections_received:")).unwrap();
    assert!(connections.parse::<u32>().unwrap() <= 3, "one to start, one to ask, and one for all: {connections}");
    server.freeze();
    runtime.block_on(async {
        let began = Instant::now();
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let servers = servers.clone();
                tokio::spawn(async move { COUNT.run(&servers, &["{a}"], &[b"1"]).await })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap().unwrap_err().reason, Reason::Slow);
        }
        assert!(began.elapsed().as_secs() < 10, "they wait one after the other");
    });
    server.go_on();
    let reply = runtime.block_on(COUNT.run(&servers, &["{a}"], &[b"1"]));
    assert!(matches!(reply, Ok(Reply::Integer(_))), "{reply:?}");
}

/// Cannot say that somebody is there for some time, and notes when it has tried.
#[cfg(feature = "serve")]
#[derive(Default)]
struct Failing(std::sync::Mutex<Vec<Instant>>);

#[cfg(feature = "serve")]
impl Care for Failing {
    fn tend<'a>(&'a self, _: &'a Topic) -> Caring<'a, Result<(), Error>> {
        Box::pin(async {
            let mut times = lock(&self.0);
            times.push(instant());
            if times.len() < 4 { Err(Remote::new(Reason::Away, "no connection").into()) } else { Ok(()) }
        })
    }

    fn leave(&self, _: usize) -> Caring<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Whoever is there has 5 s to say so. Where Redis was away for nearly as long, two rounds more would be too many.
#[cfg(feature = "serve")]
#[test]
fn whoever_could_not_say_that_it_is_there_says_so_soon() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let nowhere = Address { servers: vec![Server::Unix("/none.sock".into())], ..Address::default() };
        let process = Redis::elsewhere(&nowhere, Files::new(std::path::Path::new("/nowhere"))).process;
        let (care, place) = (std::sync::Arc::new(Failing::default()), process.topics.enter("a", ""));
        let began = instant();
        let _subscription = Subscription::begin(&process, place, Vec::new(), care.clone()).await.unwrap();
        tokio::time::sleep(ROUND * 3).await;
        let times: Vec<_> = lock(&care.0).iter().map(|at| (*at - began).as_millis()).collect();
        assert_eq!(times, [2000, 2250, 2500, 2750, 4750]);
    });
}

#[test]
fn a_place_is_kept_for_the_longest_that_it_was_taken_for() {
    let Some(server) = TestServer::start(&[]) else { return };
    let redis = Redis::elsewhere(&server.address(), Files::new(std::path::Path::new("/nowhere")));
    let until = || match server.ask(&["ZSCORE", "kind", "who"]) {
        Reply::BulkString(score) => String::from_utf8(score).unwrap().parse::<u64>().unwrap(),
        other => panic!("{other:?}"),
    };
    let reserve = |time| assert!(run_blocking(redis.process.reserve("kind", "who", 10, time)).unwrap());
    reserve(7_200_000);
    let long = until();
    // Another that makes the same says so a moment later.
    reserve(60_000);
    assert_eq!(until(), long);
    reserve(14_400_000);
    assert!(until() > long);
}

#[cfg(feature = "serve")]
#[test]
fn what_its_asker_has_given_up_is_not_done_later() {
    let Some(server) = TestServer::start(&[]) else { return };
    let servers = std::sync::Arc::new(Servers::new(server.address()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let begin = |key: &'static str| {
            let servers = servers.clone();
            tokio::spawn(async move { COUNT.run(&servers, &[key], &[b"1"]).await })
        };
        begin("{a}").await.unwrap().unwrap();
        server.freeze();
        let first = begin("{a}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let second = begin("{b}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        second.abort();
        assert!(second.await.unwrap_err().is_cancelled());
        server.go_on();
        let _ = first.await.unwrap();
        assert_eq!(begin("{b}").await.unwrap(), Ok(Reply::Integer(1)));
    });
}

#[test]
fn a_program_for_one_request_waits_for_a_stopped_server_once() {
    let Some(server) = TestServer::start(&[]) else { return };
    server.freeze();
    // Not always at the first try where there are more tests than cores.
    sooner_or_later(|| {
        let redis = Redis::elsewhere(&server.address(), Files::new(std::path::Path::new("/nowhere")));
        let began = Instant::now();
        redis.process.servers.begin_request();
        assert!(run_blocking(redis.reach()).is_err() && run_blocking(redis.ptth_servers()).is_err());
        assert!(run_blocking(redis.process.soonest_of("{a}", 1)).is_err());
        (began.elapsed() < Duration::from_millis(2500)).then_some(())
    });
}

#[test]
fn all_steps_of_one_request_share_its_time() {
    sooner_or_later(|| {
        let servers = Servers::new(Address::default());
        servers.begin_request();
        let until = servers.until();
        std::thread::sleep(Duration::from_millis(10));
        (servers.until() == until).then_some(())
    });
    let servers = Servers::new(Address::default());
    servers.begin_request();
    std::thread::sleep(Duration::from_secs(2));
    assert!(servers.until() > Instant::now() + Duration::from_secs(1), "what a stream does later has time of its own");
}

#[test]
fn servers_that_name_one_that_is_not_there_say_why() {
    let gone = free_port().to_string();
    let Some(replica) = TestServer::start_tcp(&["--replicaof", &format!("127.0.0.1 {gone}")]) else { return };
    let remote = in_time(|| count(&Servers::new(replica.address()), "{a}")).unwrap_err();
    assert!(remote.reason == Reason::Away && remote.cause.contains(&gone), "{remote:?}");
}

#[test]
fn servers_that_name_each_other_are_not_asked_without_a_pause() {
    let Some(one) = TestServer::start_tcp(&[]) else { return };
    let Server::Tcp(host, port) = &one.server else { unreachable!() };
    let Some(other) = TestServer::start_tcp(&["--replicaof", &format!("{host} {port}")]) else { return };
    let Server::Tcp(host, port) = &other.server else { unreachable!() };
    one.ask(&["REPLICAOF", host, &port.to_string()]);
    let began = Instant::now();
    let remote = in_time(|| count(&Servers::new(one.address()), "{a}")).unwrap_err();
    assert_eq!(remote.reason, Reason::NotReady);
    assert!(began.elapsed() > Duration::from_millis(500), "{:?}", began.elapsed());
}

#[test]
fn a_redis_that_may_be_told_nothing_is_no_good() {
    let Some(server) = TestServer::start(&[]) else { return };
    let login = |channels: &[&str]| {
        let rights = ["ACL", "SETUSER", "me", "reset", "on", ">secret", "~uhst*", "+@all"];
        server.ask(&[&rights[..], channels].concat());
        let (user, password) = (Some("me".to_owned()), Some(Password("secret".to_owned())));
        let redis = Redis::elsewhere(
            &Address { user, password, ..server.address() },
            Files::new(std::path::Path::new("/nowhere")),
        );
        run_blocking(redis.reach())
    };
    let Err(Error::Remote(remote)) = login(&[]) else { panic!("nobody would hear of a message") };
    assert_eq!(remote.reason, Reason::Login);
    assert!(login(&["&uhst*"]).is_ok());
}

#[test]
fn all_processes_sign_with_the_same_secret() {
    let Some(server) = TestServer::start(&[]) else { return };
    let process = || Redis::elsewhere(&server.address(), Files::new(std::path::Path::new("/nowhere")));
    let secrets: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| run_blocking(process().secret()).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(secrets[0].len() == 32 && secrets.iter().all(|secret| *secret == secrets[0]));
}
