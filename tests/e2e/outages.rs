//! What several machines do when their Redis cannot do what they want: whoever asks is told so soon, and whoever listens goes on
//! listening, and is given everything once.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::bare::timed;
use crate::bus::news;
use crate::machines::Machines;
use crate::place::{LONG, built, until};
use crate::redis::Redis;
use crate::relay::{Call, Host, Relay, Reply, Talk as _};
use crate::serve::{Serve, program};
use crate::stream::{Event, Stream};

/// Whoever asks is told within this time.
pub const SOON: Duration = Duration::from_secs(2);

/// Longer than one may say nothing and still be there.
pub const WHILE: Duration = Duration::from_secs(7);

/// What outlives its end.
const KEPT: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// What is said to the same streams: numbers, each larger than those before.
pub struct Channel {
    /// Those that were answered 200, and those that may have been taken all the same.
    pub taken: Vec<u64>,
    pub perhaps: Vec<u64>,
    /// Those of the latter that may come at any time, once.
    late: Vec<u64>,
    streams: Vec<(Stream, Vec<u64>)>,
    number_of: fn(&Event) -> Value,
}

impl Channel {
    pub fn of(streams: Vec<Stream>, number_of: fn(&Event) -> Value) -> Self {
        let streams = streams.into_iter().map(|stream| (stream, Vec::new())).collect();
        Self { taken: Vec::new(), perhaps: Vec::new(), late: Vec::new(), streams, number_of }
    }

    /// What may have been taken, and was not heard yet, may come after what was said later.
    pub fn expect_late(&mut self) {
        let is_unheard = |number: &u64| self.streams.iter().all(|(_, heard)| !heard.contains(number));
        self.late = self.perhaps.iter().copied().filter(is_unheard).collect();
    }

    /// All streams have heard all that was taken, in order and once, and nothing that nobody has said.
    #[track_caller]
    pub fn hears(&mut self) {
        for (stream, heard) in &mut self.streams {
            while heard.last() < self.taken.last() {
                let event = stream.event();
                assert_eq!(event.name, "message", "{event:?}");
                let number = (self.number_of)(&event).as_u64().unwrap();
                match self.late.iter().position(|late| *late == number) {
                    Some(place) => _ = self.late.remove(place),
                    None => heard.push(number),
                }
            }
            assert!(heard.is_sorted_by(|one, next| one < next), "{heard:?}");
            assert!(self.taken.iter().all(|number| heard.contains(number)), "{heard:?} of {:?}", self.taken);
            let is_said = |number| self.taken.contains(number) || self.perhaps.contains(number);
            assert!(heard.iter().all(is_said), "{heard:?} of {:?}", self.taken);
        }
    }
}

/// A host at one machine that listens at another, and the token of its client at a third; and what either hears.
pub fn pair(machines: &Machines) -> (Host, String, Channel, Channel) {
    let [first, web, second] = machines.all();
    let host = first.host("");
    let to_host = Channel::of(vec![web.open(&host.token)], Event::body);
    let client = second.join(&host.id);
    let to_client = Channel::of(vec![second.open(&client)], Event::body);
    (host, client, to_host, to_client)
}

/// A host at one machine, its client at another, and readers of a bus at all three.
struct Company {
    host: Host,
    /// The client's token.
    client: String,
    user: u64,
    said: u64,
    to_host: Channel,
    to_client: Channel,
    on_bus: Channel,
}

impl Company {
    fn meet(machines: &Machines) -> Self {
        let (host, client, to_host, to_client) = pair(machines);
        let [first, ..] = machines.all();
        let user = news(first).greet().0;
        let readers = machines.all().map(|machine| news(machine).listen("events", &[])).into();
        let on_bus = Channel::of(readers, |event| event.json()["data"].clone());
        Self { host, client, user, said: 0, to_host, to_client, on_bus }
    }

    /// Says the next number to all, at this machine.
    fn say(&mut self, machine: &dyn Relay) -> [(Reply, Duration); 3] {
        self.said += 1;
        let said = self.said.to_string();
        let replies = [
            timed(|| machine.send(&self.client, &said)),
            timed(|| machine.send(&self.host.token, &said)),
            timed(|| news(machine).call("POST", &format!("user={}", self.user), &said)),
        ];
        for (channel, (reply, _)) in
            [&mut self.to_host, &mut self.to_client, &mut self.on_bus].into_iter().zip(&replies)
        {
            match reply.status {
                200 => channel.taken.push(self.said),
                503 => channel.perhaps.push(self.said),
                _ => panic!("nobody has left, and nothing is too much: {reply:?}"),
            }
        }
        replies
    }

    /// Everybody is heard, by streams that have been open all the time.
    #[track_caller]
    fn talks(&mut self, machines: &Machines) {
        for machine in machines.all() {
            // It is known to each by itself that Redis is back.
            until("it works", LONG, || self.say(machine).iter().all(|(reply, _)| reply.status == 200));
            for channel in [&mut self.to_host, &mut self.to_client, &mut self.on_bus] {
                channel.hears();
            }
        }
    }

    /// Each is told soon, everywhere, that Redis cannot do it: one of these is why.
    #[track_caller]
    fn is_refused(&mut self, machines: &Machines, why: &[&str]) {
        for machine in machines.all() {
            // On a machine with more tests than cores not always at the first try.
            until("it is told soon", LONG, || {
                let replies = self.say(machine);
                replies.into_iter().fold(true, |was_soon, (reply, time)| {
                    let reason = reply.expect_error(503);
                    let is_why = reason.starts_with("The relay's Redis ") && why.iter().any(|why| reason.contains(why));
                    assert!(is_why, "{reason}");
                    was_soon && time < SOON
                })
            });
        }
    }
}

/// Machines, and a company that has met there.
fn company(redis: &[&str]) -> Option<(Machines, Company)> {
    let machines = Machines::on(Redis::start(redis)?, &[])?;
    let mut company = Company::meet(&machines);
    company.talks(&machines);
    Some((machines, company))
}

const AWAY: &[&str] = &["cannot be reached"];
/// It goes on with the next that wants something; what was under way before is given up at once.
const SLOW: &[&str] = &["does not answer in time", "cannot be reached"];
const NOT_READY: &[&str] = &["is not ready", "cannot be reached"];

#[test]
fn talks_go_on_when_redis_was_away_for_ten_seconds() {
    let Some((mut machines, mut company)) = company(&KEPT) else { return };
    machines.redis.kill();
    company.is_refused(&machines, AWAY);
    std::thread::sleep(Duration::from_secs(10));
    company.is_refused(&machines, AWAY);
    machines.redis.restart();
    company.talks(&machines);
}

#[test]
fn talks_go_on_when_redis_was_stopped_for_a_while() {
    let Some((machines, mut company)) = company(&[]) else { return };
    machines.redis.freeze();
    company.is_refused(&machines, SLOW);
    std::thread::sleep(WHILE);
    machines.redis.go_on();
    company.talks(&machines);
}

#[test]
fn talks_go_on_when_a_script_of_somebody_else_has_kept_redis_busy() {
    let Some((machines, mut company)) = company(&["--busy-reply-threshold", "1000"]) else { return };
    std::thread::scope(|scope| {
        scope.spawn(|| machines.redis.ask(&["EVAL", "while true do end", "0"]));
        until("it runs", LONG, || machines.redis.ask(&["PING"]).starts_with("BUSY"));
        company.is_refused(&machines, NOT_READY);
        std::thread::sleep(WHILE);
        machines.redis.ask(&["SCRIPT", "KILL"]);
    });
    company.talks(&machines);
}

#[test]
fn talks_go_on_when_redis_was_full() {
    let Some((machines, mut company)) = company(&[]) else { return };
    machines.redis.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    company.is_refused(&machines, &["is full"]);
    std::thread::sleep(WHILE);
    machines.redis.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    company.talks(&machines);
}

#[test]
fn talks_go_on_when_redis_was_another_ones_replica() {
    let Some((machines, mut company)) = company(&[]) else { return };
    machines.redis.ask(&["REPLICAOF", "127.0.0.1", "1"]);
    company.is_refused(&machines, NOT_READY);
    std::thread::sleep(WHILE);
    machines.redis.ask(&["REPLICAOF", "NO", "ONE"]);
    company.talks(&machines);
}

#[test]
fn talks_go_on_when_a_replica_takes_over() {
    let Some(primary) = Redis::start(&[]) else { return };
    let place = format!("127.0.0.1 {}", primary.port());
    let Some(replica) = Redis::start(&["--replicaof", &place]) else { return };
    let url = format!("{},127.0.0.1:{}", primary.url(), replica.port());
    let is_linked = || replica.ask(&["ROLE"]).contains("connected");
    until("the replica has found its primary", LONG, is_linked);
    let Some(mut machines) = Machines::at(&url, primary, &[("RELAY_REDIS_REPLICAS", "1")]) else { return };
    let mut company = Company::meet(&machines);
    company.talks(&machines);
    replica.freeze();
    company.is_refused(&machines, &["has too few replicas"]);
    let session = Call { method: "PUT", path_info: "/cama/session", ..Call::default() };
    for machine in machines.all() {
        until("it is told soon", LONG, || {
            let (reply, time) = timed(|| machine.call(&session));
            let reason = reply.expect_error(503);
            assert!(reason.contains("has too few replicas"), "{reason}");
            time < SOON
        });
    }
    replica.go_on();
    company.talks(&machines);
    for machine in machines.all() {
        until("it is made", LONG, || machine.call(&session).status == 201);
    }
    machines.redis.kill();
    company.is_refused(&machines, NOT_READY);
    std::thread::sleep(WHILE);
    replica.ask(&["REPLICAOF", "NO", "ONE"]);
    let place = format!("127.0.0.1 {}", replica.port());
    let Some(_next) = Redis::start(&["--replicaof", &place]) else { return };
    company.talks(&machines);
}

#[test]
fn talks_go_on_when_a_sentinel_lets_a_replica_take_over() {
    let Some(primary) = Redis::start(&[]) else { return };
    let place = format!("127.0.0.1 {}", primary.port());
    let Some(replica) = Redis::start(&["--replicaof", &place]) else { return };
    let Some(sentinel) = primary.sentinel() else { return };
    let knows = || sentinel.ask(&["SENTINEL", "MASTER", "relay"]).contains("num-slaves\n1\n");
    until("the sentinel knows the replica", LONG, || replica.ask(&["ROLE"]).contains("connected") && knows());
    // That is all that the machines are told.
    let Some(mut machines) = Machines::at(&sentinel.url(), primary, &[("RELAY_REDIS_REPLICAS", "1")]) else { return };
    let mut company = Company::meet(&machines);
    company.talks(&machines);
    let Some(_next) = Redis::start(&["--replicaof", &place]) else { return };
    until("the sentinel knows both", LONG, || {
        sentinel.ask(&["SENTINEL", "MASTER", "relay"]).contains("num-slaves\n2\n")
    });
    machines.redis.kill();
    company.talks(&machines);
}

#[test]
fn nothing_is_missed_while_a_primary_and_its_replica_change_places() {
    let Some(primary) = Redis::start(&[]) else { return };
    let place = format!("127.0.0.1 {}", primary.port());
    // It copies its data for so long, and passes on nothing of what is said meanwhile.
    let Some(replica) = Redis::start(&["--repl-diskless-sync-delay", "3", "--replicaof", &place]) else { return };
    let is_linked = |redis: &Redis| redis.ask(&["ROLE"]).contains("connected");
    until("the replica has found its primary", LONG, || is_linked(&replica));
    let url = format!("{},127.0.0.1:{}", primary.url(), replica.port());
    let Some(machines) = Machines::at(&url, primary, &[]) else { return };
    let mut company = Company::meet(&machines);
    company.talks(&machines);

    replica.ask(&["REPLICAOF", "NO", "ONE"]);
    // So that it needs a copy.
    machines.redis.ask(&["SET", "its own", "1"]);
    machines.redis.ask(&["REPLICAOF", "127.0.0.1", &replica.port().to_string()]);
    let mut is_over = || {
        company.say(&machines.serves[0]);
        std::thread::sleep(Duration::from_millis(20));
        is_linked(&machines.redis)
    };
    until("it is a replica", LONG, &mut is_over);
    for _ in 0..20 {
        is_over();
    }
    company.talks(&machines);
}

#[test]
fn whoever_listened_in_a_redis_that_lost_everything_is_told_to_come_back() {
    let Some((mut machines, company)) = company(&[]) else { return };
    machines.redis.kill();
    machines.redis.restart();
    let Company { host, to_host, to_client, on_bus, .. } = company;
    for mut stream in [to_host, on_bus].into_iter().flat_map(|channel| channel.streams).map(|(stream, _)| stream) {
        stream.expect_end();
    }
    for (mut stream, _) in to_client.streams {
        stream.expect_closed("host_closed", &host.id);
        stream.expect_end();
    }
    let mut company = Company::meet(&machines);
    company.talks(&machines);
}

#[test]
fn a_relay_whose_redis_is_not_there_yet_waits_for_it() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    redis.kill();
    let Some(mut machines) = Machines::on(redis, &[]) else { return };
    for machine in machines.all() {
        let reason = machine.post("action=host", "").expect_error(503);
        assert!(reason.starts_with("The relay's Redis cannot be reached"), "{reason}");
    }
    machines.redis.restart();
    let mut company = Company::meet(&machines);
    company.talks(&machines);
}

#[test]
fn a_password_that_redis_refuses_is_said_to_be_wrong_and_not_shown() {
    let Some(redis) = Redis::start(&["--requirepass", "correct"]) else { return };
    let url = redis.url().replace("//", "//:incorrect@");
    let Some(machines) = Machines::at(&url, redis, &[]) else { return };
    for machine in machines.all() {
        let reason = machine.post("action=host", "").expect_error(503);
        assert_eq!(reason, "The relay's Redis refuses the relay's user or password.");
    }
    let log = machines.serves[0].log() + &machines.web.log();
    let check = run(&mut program(&["check", "--data", machines.serves[0].data().to_str().unwrap()]));
    assert!(check.contains("Correct the user and the password in `RELAY_STORE`"), "{check}");
    assert!(log.contains("WRONGPASS") && !log.contains("correct"), "{log}");
}

/// What a program says, on stdout and stderr.
fn run(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}

#[test]
fn whoever_asks_for_a_check_is_told_what_to_do_about_redis() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    let relay = Serve::with(&[("RELAY_STORE", &redis.url())]);
    let data = relay.data();
    let check = || run(&mut program(&["check", "--data", data.to_str().unwrap()]));
    let said = check();
    let place = format!("(127.0.0.1:{})", redis.port());
    assert!(
        said.contains("note     Redis:") && said.contains("`appendonly` to `yes`") && said.contains(&place),
        "{said}"
    );
    redis.ask(&["CONFIG", "SET", "appendonly", "yes"]);
    until("it is fine", LONG, || check().contains("ok       Redis: "));
    redis.ask(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    assert!(check().contains("`maxmemory-policy` to `noeviction`"));
    let page = relay.call(&Call { method: "GET", headers: &[("Accept", "text/html")], ..Call::default() }).body;
    assert!(page.contains("noeviction") && !page.contains(&place), "{page}");
    redis.kill();
    let said = check();
    assert!(said.contains("PROBLEM  Redis: The relay's Redis cannot be reached") && said.contains(&place), "{said}");
    assert!(said.contains("Start it, or correct `RELAY_STORE`"), "{said}");
}

#[test]
fn a_redis_that_uses_more_memory_than_it_may_takes_no_messages() {
    let Some(machines) = Machines::start(&[("RELAY_MAX_DATA", "1")]) else { return };
    for machine in machines.all() {
        let user = news(machine).greet().0;
        let reason = news(machine).call("POST", &format!("user={user}"), "1").expect_error(507);
        assert!(reason.contains("RELAY_MAX_DATA"), "{reason}");
    }
}

#[test]
fn a_program_without_tls_says_what_to_do() {
    let said =
        run(Command::new(built("relay-redis.cgi")).arg("check").env("RELAY_STORE", "rediss://:hidden@redis.example"));
    assert!(said.contains("this program has no TLS: take `uhst-relay serve`") && !said.contains("hidden"), "{said}");
}
