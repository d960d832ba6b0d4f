//! Proves by trying that the relay keeps its promises while everything around it is killed.
//!
//! Hundreds of senders and readers of UHST and of buses, each request through a process of its own or through `serve`; and all
//! that time processes are killed, `serve` too, readers leave, come back, take their own place over and sleep, sweeps run, and
//! the disk is full now and then. What was answered and what was seen decides (`check`).

mod actors;
mod check;
mod history;
mod redis;
mod relay;

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use actors::{Bus, Manner, Phase, Session, Source, World};
use fastrand::Rng;
use history::{Log, Said};
use redis::Redis;
use relay::{Door, Fate, Relay, Request, Server};
use serde_json::Value;

/// How long the relay keeps a message in this run: short, so that queues are compacted within it.
pub const MESSAGE_LIFETIME: Duration = Duration::from_secs(8);

/// How long it keeps a session and a bus.
pub const LIFETIME: Duration = Duration::from_secs(20);

const HOSTS: usize = 12;
const CLIENTS: usize = 6;
const BUSES: usize = 6;
const POSTERS: usize = 6;
const LISTENERS: usize = 3;
const POLLERS: usize = 2;

struct Options {
    seconds: u64,
    /// The storm goes on until so many are sent, too.
    messages: usize,
    has_redis: bool,
    seed: u64,
    cgi: PathBuf,
    serve: PathBuf,
}

fn options() -> Result<Options, lexopt::Error> {
    use lexopt::prelude::*;
    let (mut seconds, mut messages, mut has_redis) = (60, 0, false);
    let (mut seed, mut cgi, mut serve) = (fastrand::u64(..), None, None);
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("seconds") => seconds = arguments.value()?.parse()?,
            Long("messages") => messages = arguments.value()?.parse()?,
            Long("store") => {
                has_redis = match arguments.value()?.to_str() {
                    Some("files") => false,
                    Some("redis") => true,
                    _ => return Err(lexopt::Error::from("--store is files or redis")),
                }
            }
            Long("seed") => seed = arguments.value()?.parse()?,
            Long("cgi") => cgi = Some(PathBuf::from(arguments.value()?)),
            Long("serve") => serve = Some(PathBuf::from(arguments.value()?)),
            other => return Err(other.unexpected()),
        }
    }
    let needed =
        |path: Option<PathBuf>, name: &str| path.ok_or_else(|| lexopt::Error::from(format!("--{name} is missing")));
    Ok(Options { seconds, messages, has_redis, seed, cgi: needed(cgi, "cgi")?, serve: needed(serve, "serve")? })
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("proof: {error}");
            return ExitCode::from(2);
        }
    };
    println!("seed {}, {} s", options.seed, options.seconds);
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            println!("the seed was {}", options.seed);
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("proof: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A folder on a small disk of its own, where that can be had.
struct Disk {
    path: PathBuf,
    is_mounted: bool,
}

impl Disk {
    /// What Redis writes is not to end in a full disk, after which it does not go on by itself. Nor in a slow one.
    fn new(is_small: bool) -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("uhst-relay-proof-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        let options = if is_small { c"size=96m" } else { c"size=2g" };
        let mounted = rustix::mount::mount("proof", &path, "tmpfs", rustix::mount::MountFlags::empty(), options);
        if mounted.is_err() && is_small {
            let reason = "a disk that fills needs root: it stays as it is in this run";
            if std::env::var("CI").as_deref() == Ok("true") {
                return Err(io::Error::other(reason));
            }
            println!("SKIPPED: {reason}");
        }
        Ok(Self { path, is_mounted: mounted.is_ok() })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
        }
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn run(options: &Options) -> io::Result<bool> {
    let disk = Disk::new(!options.has_redis)?;
    // A port that is free now; serve comes back to it whenever it was killed.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut redis = if options.has_redis { Some(Redis::start(&disk.path)?) } else { None };
    let url = options.has_redis.then(|| Redis::url(&disk.path));
    let relay = Relay::new(options.cgi.clone(), options.serve.clone(), &disk.path, address, url);
    std::fs::create_dir(&relay.data)?;
    write_settings(&relay, MESSAGE_LIFETIME, LIFETIME)?;
    let server = Mutex::new(Some(relay.start_server()?));
    let mut readers = Vec::new();
    let sessions = (0..HOSTS).map(|at| make_session(&relay, at, &mut readers)).collect::<io::Result<Vec<_>>>()?;
    let buses = (0..BUSES).map(|number| make_bus(number, &mut readers)).collect::<Vec<_>>();
    let world = World::new(relay, readers);
    let mut seeds = Rng::with_seed(options.seed);
    let outcome = std::thread::scope(|scope| {
        let storm = begin(scope, &world, &sessions, &buses, &mut seeds)
            .and_then(|()| storm(&world, &server, redis.as_mut(), &disk, options, &mut seeds))
            .inspect(|_| drain(&world));
        // Whatever has happened: nobody waits for the readers for ever.
        world.set_phase(Phase::Leave);
        storm
    });
    let kills = outcome?;
    // Now that the last connections have ended, too: who was there is known by them.
    let history = world.history();
    let verdict = history.check(MESSAGE_LIFETIME);
    let [accepted, refused, unknown] = check::outcomes(&history.sends);
    println!("{} messages: {accepted} accepted, {refused} refused, {unknown} unanswered", history.sends.len());
    let Kills { requests, servers, redis: ends } = kills;
    println!("{requests} kills of requests, streams and sweeps, {servers} of serve, {ends} of Redis");
    let connections: usize = history.readers.iter().map(|log| log.connections.len()).sum();
    println!("{connections} connections of readers");
    let left_out: usize = history.sends.iter().map(|send| send.without.len()).sum();
    let missed = history.readers.iter().flat_map(|log| &log.heard).filter(|heard| heard.said == Said::Missed).count();
    println!(
        "{left_out} times a reader was left out, and {missed} times one was told that it has missed something\n{verdict}"
    );
    for broken in history.most_telling(&verdict) {
        println!("\n{}", history.show(broken));
    }
    let left = lock(&server)
        .as_ref()
        .map_or(Err("serve has ended".to_owned()), |server| nothing_is_left(&world.relay, server, redis.as_ref()));
    if let Err(what) = &left {
        println!("\nLEFT BEHIND: {what}");
    }
    let complaints = complaints(&world.relay)?;
    for complaint in complaints.iter().take(5) {
        println!("\nLOGGED: {complaint}");
    }
    // A run in which hardly anything was checked proves nothing.
    let is_enough = verdict.seen >= accepted
        && verdict.excused * 50 <= verdict.promised
        && requests > 0
        && (ends > 0) == options.has_redis;
    if !is_enough {
        println!(
            "too little was seen for this to mean anything; those that were away most, and for how many deliveries:"
        );
        for (reader, count) in &verdict.absent {
            let log = &history.readers[*reader];
            let last = log.connections.last().map(|one| one.opened);
            println!("  {}: {count}, {} connections, the last at {last:?}", log.name, log.connections.len());
        }
    }
    Ok(verdict.broken.is_empty() && left.is_ok() && complaints.is_empty() && is_enough)
}

fn write_settings(relay: &Relay, message: Duration, session: Duration) -> io::Result<()> {
    let (message, session) = (message.as_secs(), session.as_secs());
    let settings = format!(
        "RELAY_MESSAGE_LIFETIME={message}\nRELAY_SESSION_LIFETIME={session}\nRELAY_BUS_LIFETIME={session}\n\
         RELAY_MAX_QUEUE=1000000\n"
    );
    // Beside it first: a request may be reading it.
    let path = relay.data.join("settings.conf");
    std::fs::write(path.with_extension("new"), settings)?;
    std::fs::rename(path.with_extension("new"), path)
}

/// Has everybody connect, and then begin to send.
fn begin<'scope>(
    scope: &'scope Scope<'scope, '_>,
    world: &'scope World,
    sessions: &'scope [Session],
    buses: &'scope [Bus],
    seeds: &mut Rng,
) -> io::Result<()> {
    for session in sessions {
        begin_session(scope, world, session, seeds);
    }
    for bus in buses {
        begin_bus(scope, world, bus, seeds)?;
    }
    let until = Instant::now() + Duration::from_secs(60);
    while world.connected() < world.readers() {
        if Instant::now() > until {
            return Err(io::Error::other("not every reader is connected after a minute"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut count = 0;
    let mut sender = |name: String| {
        count += 1;
        world.new_sender(name)
    };
    for session in sessions {
        let (rng, host) = (seeds.fork(), sender(world.name(session.host)));
        scope.spawn(move || actors::host_sends(world, session, host, rng));
        for (reader, token) in &session.clients {
            if manner(*reader, session) == Manner::Steady {
                // It only listens: that is use enough of a session.
                continue;
            }
            let (rng, client) = (seeds.fork(), sender(world.name(*reader)));
            scope.spawn(move || actors::client_sends(world, session, client, token, rng));
        }
    }
    for bus in buses {
        for _ in 0..POSTERS {
            let (rng, user) = (seeds.fork(), greet(&world.relay, &bus.path)?.0);
            let me = sender(format!("user {user} of {}", bus.path));
            scope.spawn(move || actors::user_posts(world, bus, me, user, rng));
        }
    }
    println!("{} readers, {count} senders", world.readers());
    Ok(())
}

/// How often something was killed.
struct Kills {
    requests: usize,
    servers: usize,
    redis: usize,
}

/// Kills, sweeps and fills the disk, for as long and until as much is sent as is wanted.
fn storm(
    world: &World,
    server: &Mutex<Option<Server>>,
    redis: Option<&mut Redis>,
    disk: &Disk,
    options: &Options,
    seeds: &mut Rng,
) -> io::Result<Kills> {
    let is_over = &AtomicBool::new(false);
    let [one, two, three, four, five] = std::array::from_fn(|_| seeds.fork());
    std::thread::scope(|scope| {
        let requests = scope.spawn(move || kill_requests(world, is_over, one));
        let servers = scope.spawn(move || kill_servers(world, is_over, server, two));
        scope.spawn(move || sweep(world, is_over, three));
        let redis = redis.map(|redis| scope.spawn(move || kill_redis(redis, is_over, five)));
        if disk.is_mounted && !options.has_redis {
            let filler = disk.path.join("filler");
            scope.spawn(move || fill(&filler, is_over, four));
        }
        let until = Instant::now() + Duration::from_secs(options.seconds);
        while Instant::now() < until || world.sent() < options.messages {
            let began = Instant::now();
            if world.history().check(MESSAGE_LIFETIME).is_final() {
                break;
            }
            // A long history takes its time, and the storm needs the cores.
            std::thread::sleep(Duration::from_secs(1).max(20 * began.elapsed()));
        }
        is_over.store(true, Ordering::Relaxed);
        let panicked = || io::Error::other("a thread that kills has panicked");
        Ok(Kills {
            requests: requests.join().map_err(|_| panicked())?,
            servers: servers.join().map_err(|_| panicked())??,
            redis: redis.map_or(Ok(Ok(0)), ScopedJoinHandle::join).map_err(|_| panicked())??,
        })
    })
}

/// Waits until everything that is under way has arrived, and every stream whose place was taken has ended: within milliseconds, but
/// a busy machine gets its time. While everything is killed, hardly one lives for long enough to show that it does not end.
fn drain(world: &World) {
    world.set_phase(Phase::Drain);
    for _ in 0..6 {
        std::thread::sleep(Duration::from_secs(5));
        let verdict = world.history().check(MESSAGE_LIFETIME);
        if verdict.is_final() || (!verdict.may_get_better() && !world.has_older()) {
            break;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ask(relay: &Relay, request: &Request<'_>) -> io::Result<Value> {
    let until = Instant::now() + Duration::from_secs(30);
    let answer = loop {
        let answer = relay.ask(Door::Cgi, request, Fate::Safe)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        // A busy machine may have kept Redis waiting.
        if answer.status != 503 || Instant::now() > until {
            break answer;
        }
    };
    if answer.status != 200 {
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        return Err(io::Error::other(format!("{} {}: {} {body}", request.path, request.query, answer.status)));
    }
    Ok(serde_json::from_slice(&answer.body)?)
}

fn text(value: &Value, name: &str) -> io::Result<String> {
    value[name].as_str().map(str::to_owned).ok_or_else(|| io::Error::other(format!("no {name} in {value}")))
}

fn new_reader(readers: &mut Vec<Log>, name: String, bus: Option<usize>) -> usize {
    readers.push(Log { name, bus, ..Log::default() });
    readers.len() - 1
}

/// One session in so many has a host that leaves for good, and one has messages large enough for queues to be compacted soon.
const ENDING: usize = 12;
const CROWDED: usize = 6;

fn make_session(relay: &Relay, at: usize, readers: &mut Vec<Log>) -> io::Result<Session> {
    let host = ask(relay, &Request::post("", "action=host", b""))?;
    let (id, host_token) = (text(&host, "hostId")?, text(&host, "hostToken")?);
    let reader = new_reader(readers, format!("host {id}"), None);
    let mut ids = HashMap::from([(id.clone(), reader)]);
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let token = text(&ask(relay, &Request::post("", &format!("action=join&hostId={id}"), b""))?, "clientToken")?;
        let client = new_reader(readers, format!("client {number} of host {id}"), None);
        let client_id = actors::client_of(&token).ok_or_else(|| io::Error::other("a token without a client"))?;
        ids.insert(client_id, client);
        readers[reader].peers.push(client);
        readers[client].peers.push(reader);
        clients.push((client, token));
    }
    let is_crowded = at % CROWDED == 1;
    let longest = if is_crowded { 60_000 } else { 8000 };
    let ends = at.is_multiple_of(ENDING);
    Ok(Session { host: reader, host_token, clients, ids, replies: Mutex::default(), longest, is_crowded, ends })
}

fn make_bus(number: usize, readers: &mut Vec<Log>) -> Bus {
    let mut reader = |kind: &str, at: usize| new_reader(readers, format!("{kind} {at} of bus {number}"), Some(number));
    let mut all: Vec<usize> = (0..LISTENERS).map(|at| reader("listener", at)).collect();
    all.extend((0..POLLERS).map(|at| reader("poller", at)));
    Bus { path: format!("/bus/proof-{number}"), readers: all }
}

/// A user's number and the newest id.
fn greet(relay: &Relay, path: &str) -> io::Result<(u64, u64)> {
    let hello = ask(relay, &Request::get(path, ""))?;
    let number = |name: &str| hello[name].as_u64().ok_or_else(|| io::Error::other(format!("no {name} in {hello}")));
    Ok((number("user")?, number("id")?))
}

/// In a session the last client leaves for good, or the host does, and another client stays where it is for the whole run. Every
/// fifth host stays as well.
fn manner(reader: usize, session: &Session) -> Manner {
    let is = |at: usize| session.clients[at].0 == reader;
    let is_host = reader == session.host;
    if if session.ends { is_host } else { is(CLIENTS - 1) } {
        Manner::Leaver
    } else if is(0) || (is_host && reader.is_multiple_of(5)) {
        Manner::Steady
    } else {
        Manner::Restless
    }
}

fn begin_session<'scope>(
    scope: &'scope Scope<'scope, '_>,
    world: &'scope World,
    session: &'scope Session,
    seeds: &mut Rng,
) {
    let tokens = std::iter::once((session.host, &session.host_token))
        .chain(session.clients.iter().map(|(reader, token)| (*reader, token)));
    for (reader, token) in tokens {
        let (query, rng) = (format!("token={token}"), seeds.fork());
        scope.spawn(move || {
            let understand = |event: &str, data: &Value| actors::uhst(session, event, data);
            let source = Source {
                reader,
                path: "",
                query: &query,
                manner: manner(reader, session),
                begin: None,
                may_end: session.ends,
                is_crowded: session.is_crowded,
                understand: &understand,
            };
            actors::reads(world, &source, rng);
        });
    }
}

fn begin_bus<'scope>(
    scope: &'scope Scope<'scope, '_>,
    world: &'scope World,
    bus: &'scope Bus,
    seeds: &mut Rng,
) -> io::Result<()> {
    for (number, &reader) in bus.readers.iter().enumerate() {
        let (user, newest) = greet(&world.relay, &bus.path)?;
        let rng = seeds.fork();
        scope.spawn(move || {
            let query = format!("events&user={user}");
            let manner = if number == 0 { Manner::Steady } else { Manner::Restless };
            let source = Source {
                reader,
                path: &bus.path,
                query: &query,
                manner,
                begin: Some(newest),
                may_end: false,
                is_crowded: false,
                understand: &actors::bus,
            };
            if number < LISTENERS {
                actors::reads(world, &source, rng);
            } else {
                actors::polls(world, &source, user, newest, rng);
            }
        });
    }
    Ok(())
}

/// Kills processes of requests, of streams and of sweeps: how many.
fn kill_requests(world: &World, is_over: &AtomicBool, mut rng: Rng) -> usize {
    let mut kills = 0;
    while !is_over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(rng.u64(2..50)));
        kills += usize::from(world.relay.kill_one(|count| rng.usize(..count)));
    }
    kills
}

/// Kills `serve`, and starts it again: how often.
fn kill_servers(
    world: &World,
    is_over: &AtomicBool,
    server: &Mutex<Option<Server>>,
    mut rng: Rng,
) -> io::Result<usize> {
    let mut kills = 0;
    while !is_over.load(Ordering::Relaxed) {
        let until = Instant::now() + Duration::from_millis(rng.u64(1000..7000));
        while Instant::now() < until && !is_over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(lock(server).take());
        kills += 1;
        let give_up = Instant::now() + Duration::from_secs(30);
        let started = loop {
            match world.relay.start_server() {
                Ok(server) => break server,
                // The disk is full now and then, and then it cannot start.
                Err(_) if Instant::now() < give_up => std::thread::sleep(Duration::from_millis(50)),
                Err(error) => return Err(error),
            }
        };
        *lock(server) = Some(started);
    }
    Ok(kills)
}

/// Kills Redis, and starts it again: how often.
fn kill_redis(redis: &mut Redis, is_over: &AtomicBool, mut rng: Rng) -> io::Result<usize> {
    let mut kills = 0;
    while !is_over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(rng.u64(2000..8000)));
        redis.kill(Duration::from_millis(rng.u64(0..400)))?;
        kills += 1;
    }
    Ok(kills)
}

/// Runs sweeps, one after the other.
fn sweep(world: &World, is_over: &AtomicBool, mut rng: Rng) {
    while !is_over.load(Ordering::Relaxed) {
        let _ = world.relay.sweep(Fate::MayBeKilled);
        std::thread::sleep(Duration::from_millis(rng.u64(0..200)));
    }
}

/// Fills the disk now and then, for a moment.
fn fill(path: &Path, is_over: &AtomicBool, mut rng: Rng) {
    use std::io::Write as _;
    while !is_over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(rng.u64(2000..8000)));
        if let Ok(mut file) = std::fs::File::create(path) {
            let bytes = vec![0; 1 << 20];
            while file.write_all(&bytes).is_ok() && !is_over.load(Ordering::Relaxed) {}
            std::thread::sleep(Duration::from_millis(rng.u64(10..400)));
        }
        let _ = std::fs::remove_file(path);
    }
}

/// What the relay must never have to say where nobody but itself touches its files.
fn complaints(relay: &Relay) -> io::Result<Vec<String>> {
    const WORDS: [&str; 5] = ["anew", "damaged", "no record", "cut off", "panicked"];
    let log = String::from_utf8_lossy(&std::fs::read(&relay.log)?).into_owned();
    let is_one = |line: &&str| WORDS.iter().any(|word| line.contains(word));
    Ok(log.lines().filter(is_one).map(str::to_owned).collect())
}

/// Waits until the lifetime of everything is over, and looks for what should not be there any more.
fn nothing_is_left(relay: &Relay, server: &Server, redis: Option<&Redis>) -> Result<(), String> {
    if relay.running() > 0 {
        return Err(format!("{} processes of requests", relay.running()));
    }
    // The promises are checked; what there is now may die sooner.
    let lifetime = Duration::from_secs(1);
    write_settings(relay, lifetime, lifetime).map_err(|error| error.to_string())?;
    // Who was killed while it made something may have left that for a minute.
    let until = Instant::now() + Duration::from_secs(90);
    loop {
        std::thread::sleep(Duration::from_secs(2));
        let swept = relay.sweep(Fate::Safe).map_err(|error| error.to_string())?;
        let mut left = Vec::new();
        files_below(&relay.data, 0, &mut left).map_err(|error| error.to_string())?;
        left.extend(nodes_left(&relay.data).map_err(|error| error.to_string())?);
        // The secret stays.
        let keys = redis.map_or(Ok(0), Redis::keys).map_err(|error| error.to_string())?;
        let open = server.descriptors().map_err(|error| error.to_string())?;
        // Its input, output and log, where it listens, how it is stopped, and a file or two; and on which it asks and hears Redis.
        let most = if redis.is_some() { 20 } else { 16 };
        if left.is_empty() && keys <= 1 && swept && open <= most {
            return Ok(());
        }
        if Instant::now() > until {
            left.truncate(10);
            return Err(format!(
                "{left:?}; {keys} keys; the last sweep succeeded: {swept}; serve has {open} descriptors open"
            ));
        }
    }
}

/// What is in the data folder, but for what it always has: files at its top, one file a shard and kind, and what the one node has
/// that is still there.
fn files_below(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            match files_below(&path, depth + 1, found) {
                // Swept while we were looking.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        } else if depth >= 2 {
            found.push(path);
        }
    }
    Ok(())
}

/// What nodes have left, if that is more than the files of one, which is `serve`.
fn nodes_left(data: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = data.join("nodes");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let files = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    let is_of_one = files.windows(2).all(|two| two[0].file_stem() == two[1].file_stem());
    Ok(if is_of_one { Vec::new() } else { files })
}
