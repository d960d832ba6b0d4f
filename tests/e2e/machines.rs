//! Several machines that share one Redis. Each has a data folder of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::bare::timed;
use crate::bus::{PATIENT, storm};
use crate::door::Door;
use crate::place::{Folder, built, kill, relays_of};
use crate::redis::Redis;
use crate::relay::{Call, Relay, Reply, Talk as _};
use crate::serve::Serve;
use crate::server::Server;
use crate::stream::Stream;
use crate::web::passes;

/// A `serve`, a lighttpd with the CGI program, and another `serve`. As a relay they are asked one after the other: so whatever a
/// test does crosses from one to the next.
pub struct Machines {
    pub serves: [Serve; 2],
    pub web: Server,
    // Dropped last.
    pub redis: Redis,
    next: AtomicUsize,
}

impl Machines {
    /// With these settings each; `None` with a word on stderr where something is not installed.
    pub fn start(settings: &[(&str, &str)]) -> Option<Self> {
        Self::on(Redis::start(&[])?, settings)
    }

    /// On this Redis.
    pub fn on(redis: Redis, settings: &[(&str, &str)]) -> Option<Self> {
        let url = redis.url();
        Self::at(&url, redis, settings)
    }

    /// At this URL, at which the Redis is.
    pub fn at(url: &str, redis: Redis, settings: &[(&str, &str)]) -> Option<Self> {
        if !Door::Lighttpd.is_installed() {
            return None;
        }
        let settings = [settings, &[("RELAY_STORE", url)]].concat();
        Some(Self {
            serves: [(); 2].map(|()| Serve::with(&settings)),
            web: Server::of_program(&built("relay-redis.cgi"), Door::Lighttpd, &settings),
            redis,
            next: AtomicUsize::new(0),
        })
    }

    pub fn all(&self) -> [&dyn Relay; 3] {
        [&self.serves[0], &self.web, &self.serves[1]]
    }

    fn turn(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed) % 3
    }

    fn next(&self) -> &dyn Relay {
        self.all()[self.turn()]
    }

    /// Where the next one is.
    pub fn next_url(&self) -> String {
        match self.turn() {
            0 => self.serves[0].url(),
            1 => self.web.url(),
            _ => self.serves[1].url(),
        }
    }
}

impl Relay for Machines {
    #[track_caller]
    fn call(&self, call: &Call) -> Reply {
        self.next().call(call)
    }

    fn listen_at(&self, path_info: &str, query: &str, headers: &[(&str, &str)]) -> Result<Stream, Reply> {
        self.next().listen_at(path_info, query, headers)
    }

    /// That of the web server, whose programs can be seen there.
    fn folder(&self) -> &Folder {
        self.web.folder()
    }
}

protocol_through!(Machines);
pipe_through!(Machines);
ptth_through!(Machines);
tests! { Machines:
    ptth::a_request_is_given_to_far_ends_twice_at_most,
    ptth::a_request_whose_listener_died_is_given_to_another,
    ptth::who_waits_in_vain_for_an_answer_or_a_request_is_told_in_time,
    ws::messages_reach_the_others_in_one_order,
    ws::only_the_registered_post_where_only_they_may,
}

/// The promise for one that could not say goodbye is 5 s; the rest is for a machine with more tests than cores.
const PROMISE: Duration = Duration::from_secs(5 + 5);

#[test]
fn the_published_client_talks_from_machine_to_machine() {
    let Some(machines) = Machines::start(&[]) else { return };
    let [serve, web] = [machines.serves[0].url(), machines.web.url()];
    passes("tests/client", "client.cjs", &[&serve, &web]);
    passes("tests/client", "client.cjs", &[&web, &serve]);
}

#[test]
fn sixteen_writers_are_heard_on_all_machines_in_one_order() {
    let Some(machines) = Machines::start(&[PATIENT]) else { return };
    storm(&machines, &machines);
}

#[test]
fn whoever_is_killed_is_missed_on_the_other_machines_within_seconds() {
    let Some(machines) = Machines::start(&[]) else { return };
    let [first, web, second] = machines.all();
    let host = first.host("");
    let mut stream = first.open(&host.token);
    let mut clients = [web.listening_client(&host.id), second.listening_client(&host.id)];

    for pid in relays_of(web.folder().path()) {
        kill(pid, Signal::KILL);
    }
    let ((), time) = timed(|| stream.expect_closed("client_closed", &clients[0].id));
    assert!(time < PROMISE, "{time:?}");
    // Its browser comes back.
    clients[0].stream = web.resume(&clients[0].token, &clients[0].stream.last_id);

    kill(machines.serves[0].pid(), Signal::KILL);
    let ((), time) =
        timed(|| clients.iter_mut().for_each(|client| client.stream.expect_closed("host_closed", &host.id)));
    assert!(time < PROMISE, "{time:?}");
    web.send(&clients[1].token, "1").expect_error(400);
    second.try_join(&host.id).expect_error(400);
}
