//! Which server is asked, and what happens when it is another one, or none.
//!
//! Under `serve` one task has the connection to a server. What many ask meanwhile it sends together, in the order in which it was
//! asked: so a thousand tasks need one connection, and a few system calls. A program for one request has the connection to
//! itself. What is sent to a server that does not answer is never sent again: it may have been done.

use super::connection::{Connection, Opened};
use super::lock::lock;
use super::reply::{Meaning, Reply, command};
use crate::clock::instant;
use crate::config::redis::{Address, Server};
use crate::store::remote::{Reason, Remote};
use crate::wake::wait;
use redis_protocol::redis_keyslot;
use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};
#[cfg(feature = "serve")]
use tokio::{runtime::Handle, sync::mpsc, sync::oneshot};

/// Whoever asks is told within this time that there is no answer: together with what a request takes besides, less than 2 s.
pub const TIME: Duration = Duration::from_millis(1800);

/// What a request does last has at least so long, however long it has waited before.
const LAST_STEP: Duration = Duration::from_millis(200);

/// Replicas have so long to take what is promised.
const REPLICA_TIME: Duration = Duration::from_millis(600);

/// Where several servers are named, one that does not greet for so long is passed over.
const GREETING: Duration = Duration::from_millis(500);

/// What is not done yet is tried again after this time.
const PAUSE: Duration = Duration::from_millis(50);

/// How often somebody is sent on to another server.
pub const MOST_HOPS: usize = 16;

/// So much is sent together.
#[cfg(feature = "serve")]
const TOGETHER: usize = 256 * 1024;

/// The servers of one Redis.
pub struct Servers {
    address: Address,
    known: Mutex<Known>,
    /// When the only request began for which this process is, if it is one for one.
    begun: OnceLock<Instant>,
    /// When it has last waited in vain, and why.
    in_vain: Mutex<Option<(Instant, Remote)>>,
    /// Connections that nobody uses now.
    idle: Mutex<Vec<(Server, Connection)>>,
    #[cfg(feature = "serve")]
    queues: Mutex<BTreeMap<Server, mpsc::UnboundedSender<Job>>>,
}

/// What the servers have told of each other.
#[derive(Default)]
struct Known {
    primary: Option<Server>,
    slots: BTreeMap<u16, Server>,
    /// Which of those that are named is asked first where nothing is known: the next after one that has not answered.
    first: usize,
}

/// What has to be known of a command to send it.
#[derive(Clone, Copy, Default)]
pub struct Kind {
    /// What is promised by it: as many replicas have it as the owner wants.
    pub is_promise: bool,
    /// Nobody minds if it was done in vain, or twice: it is sent before it is known whether the server is the one to ask.
    pub is_harmless: bool,
}

/// Why there is no answer.
#[derive(Clone)]
enum NoAnswer {
    /// This one is to be asked instead.
    Elsewhere(Server),
    /// It was not asked.
    NotAsked(Remote),
    /// It was asked.
    Lost(Remote),
}

/// What somebody asks under `serve`.
#[cfg(feature = "serve")]
struct Job {
    commands: Vec<u8>,
    replies: usize,
    is_promise: bool,
    /// How long it is waited for.
    until: Instant,
    answer: oneshot::Sender<Result<Vec<Reply>, NoAnswer>>,
}

impl Servers {
    /// Those of this address. Nothing is connected before it is needed.
    pub fn new(address: Address) -> Self {
        Self {
            address,
            known: Mutex::default(),
            begun: OnceLock::new(),
            in_vain: Mutex::default(),
            idle: Mutex::default(),
            #[cfg(feature = "serve")]
            queues: Mutex::default(),
        }
    }

    /// Notes that this process is for one request, which begins now. Whoever waits for its answer is told in time that there is
    /// none, however many steps it takes; and what is still to do afterwards is not waited for again.
    pub fn begin_request(&self) {
        let _ = self.begun.set(instant());
    }

    fn request(&self) -> Option<Instant> {
        self.begun.get().copied().filter(|_| !is_shared())
    }

    /// By when whoever asks now is told that there is no answer. What a stream asks later has its own time.
    pub fn until(&self) -> Instant {
        let now = instant();
        match self.request() {
            Some(begun) if now < begun + TIME => (begun + TIME).max(now + LAST_STEP),
            _ => now + TIME,
        }
    }

    /// The reply to a command for what this key's slot has; a server's error is one. Once it was sent, it is not sent again.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn call(&self, key: &str, command: &[u8]) -> Result<Reply, Remote> {
        self.ask(key, command, Kind::default()).await
    }

    /// The same for a command of some kind.
    ///
    /// # Errors
    /// The same; and when too few replicas have in time what is promised.
    pub async fn ask(&self, key: &str, command: &[u8], kind: Kind) -> Result<Reply, Remote> {
        self.once(self.find_and_ask(key, command, kind)).await
    }

    /// Waits for an answer, unless it has just been waited for in vain for the same request.
    async fn once<T>(&self, answer: impl Future<Output = Result<T, Remote>>) -> Result<T, Remote> {
        if self.request().is_none() {
            return answer.await;
        }
        if let Some((at, remote)) = &*lock(&self.in_vain)
            && at.elapsed() < LAST_STEP
        {
            return Err(remote.clone());
        }
        let answer = answer.await;
        let in_vain = answer.as_ref().err().filter(|remote| remote.reason == Reason::Slow);
        *lock(&self.in_vain) = in_vain.map(|remote| (instant(), remote.clone()));
        answer
    }

    async fn find_and_ask(&self, key: &str, command: &[u8], kind: Kind) -> Result<Reply, Remote> {
        let (slot, until) = (redis_keyslot(key.as_bytes()), self.until());
        // What is known may be wrong, and each that is named may know it better.
        let mut tries = self.address.servers.len() + usize::from(self.known_for(slot).is_some());
        let mut asked = None;
        for hop in 0..MOST_HOPS {
            let is_asking = asked.is_some();
            let server = asked.take().or_else(|| self.known_for(slot)).unwrap_or_else(|| self.named(0));
            match self.exchange(&server, command, is_asking, kind, until).await {
                Ok(Reply::Error(error)) => match Meaning::of(&error, &server) {
                    Meaning::Moved(slot, server) => _ = lock(&self.known).slots.insert(slot, server),
                    Meaning::Ask(server) => asked = Some(server),
                    Meaning::Later(remote) => {
                        self.forget(&server);
                        if instant() + PAUSE >= until {
                            return Err(remote);
                        }
                        wait(&mut [], PAUSE).await;
                    }
                    Meaning::Error(remote) => return Err(remote),
                    Meaning::NoScript => return Ok(Reply::Error(error)),
                },
                Ok(reply) => return Ok(reply),
                Err(NoAnswer::Elsewhere(server)) => {
                    lock(&self.known).primary = Some(server);
                    // They are about to take over from each other.
                    if hop > 0 {
                        wait(&mut [], PAUSE).await;
                    }
                }
                Err(NoAnswer::Lost(remote)) => {
                    self.forget(&server);
                    return Err(remote);
                }
                Err(NoAnswer::NotAsked(remote)) => {
                    self.forget(&server);
                    tries -= 1;
                    if tries == 0 || instant() >= until {
                        return Err(remote);
                    }
                }
            }
        }
        Err(Remote::new(Reason::NotReady, "the servers name each other without an end"))
    }

    /// Which server to listen to for what this key's slot has, as far as is known.
    #[cfg(feature = "serve")]
    pub fn server_of(&self, key: &str, number: usize) -> Server {
        self.known_for(redis_keyslot(key.as_bytes())).unwrap_or_else(|| self.named(number))
    }

    /// Begins a connection to this server, for somebody alone.
    ///
    /// # Errors
    /// When it cannot, or this server is another's replica; that is known then.
    #[cfg(feature = "serve")]
    pub async fn connect_to(&self, server: &Server) -> Result<Connection, Remote> {
        match open(server, &self.address, &[], 0, instant() + TIME).await {
            Ok((Opened::Here(connection), _)) => Ok(connection),
            Ok((Opened::Elsewhere(primary), _)) => {
                let cause = format!("{primary} is the primary");
                lock(&self.known).primary = Some(primary);
                Err(Remote::new(Reason::NotReady, cause))
            }
            Err(remote) => {
                self.forget(server);
                Err(remote)
            }
        }
    }

    fn known_for(&self, slot: u16) -> Option<Server> {
        let known = lock(&self.known);
        known.slots.get(&slot).or(known.primary.as_ref()).cloned()
    }

    /// One of the servers that are named, so many after the one that is asked first.
    fn named(&self, number: usize) -> Server {
        let servers = &self.address.servers;
        servers[(lock(&self.known).first + number) % servers.len()].clone()
    }

    /// Forgets what is known of a server that could not be asked, and has another asked first.
    fn forget(&self, server: &Server) {
        let mut known = lock(&self.known);
        known.slots.retain(|_, other| other != server);
        known.primary.take_if(|primary| primary == server);
        if self.address.servers[known.first] == *server {
            known.first = (known.first + 1) % self.address.servers.len();
        }
    }

    async fn exchange(
        &self,
        server: &Server,
        command: &[u8],
        is_asking: bool,
        kind: Kind,
        until: Instant,
    ) -> Result<Reply, NoAnswer> {
        const ASKING: &[u8] = b"*1\r\n$6\r\nASKING\r\n";
        let commands = [if is_asking { ASKING } else { &[] }, command].concat();
        let replies = 1 + usize::from(is_asking);
        #[cfg(feature = "serve")]
        if let Ok(runtime) = Handle::try_current() {
            let (answer, answered) = oneshot::channel();
            let job = Job { commands, replies, is_promise: kind.is_promise, until, answer };
            return last(self.exchange_among_others(server, job, answered, until, &runtime).await?);
        }
        let mut connection = {
            let mut idle = lock(&self.idle);
            idle.iter().position(|(other, _)| other == server).map(|at| idle.swap_remove(at).1)
        };
        let (replies, kept) = attempt(&mut connection, server, &self.address, commands, replies, kind, until).await?;
        if let Some(connection) = connection {
            lock(&self.idle).push((server.clone(), connection));
        }
        if is_ok(&replies) {
            kept?;
        }
        last(replies)
    }

    #[cfg(feature = "serve")]
    async fn exchange_among_others(
        &self,
        server: &Server,
        mut job: Job,
        answered: oneshot::Receiver<Result<Vec<Reply>, NoAnswer>>,
        until: Instant,
        runtime: &Handle,
    ) -> Result<Vec<Reply>, NoAnswer> {
        let mut is_again = false;
        loop {
            let queue = {
                let mut queues = lock(&self.queues);
                queues.retain(|_, queue| !queue.is_closed());
                let new = || {
                    let (queue, jobs) = mpsc::unbounded_channel();
                    runtime.spawn(ask(server.clone(), self.address.clone(), jobs));
                    queue
                };
                queues.entry(server.clone()).or_insert_with(new).clone()
            };
            match queue.send(job) {
                Ok(()) => break,
                // Another runtime's task has just ended.
                Err(mpsc::error::SendError(back)) if !is_again => (job, is_again) = (back, true),
                // This one ends, and begins no task any more.
                Err(_) => return Err(NoAnswer::NotAsked(Remote::new(Reason::Away, "this process is about to end"))),
            }
        }
        match tokio::time::timeout_at(until.into(), answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(NoAnswer::Lost(Remote::new(Reason::Away, "the task that asks Redis has ended"))),
            Err(_) => Err(NoAnswer::Lost(Remote::new(Reason::Slow, "Redis does not answer in time"))),
        }
    }

    /// Whether this server is still the one to listen to for what this key's slot has, as far as is known.
    pub fn is_it(&self, key: &str, server: &Server) -> bool {
        self.known_for(redis_keyslot(key.as_bytes())).is_none_or(|known| known == *server)
    }

    /// A connection to the server that has what this key's slot has, for somebody alone; and which server that is.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn connect(&self, key: &str, until: Instant) -> Result<(Server, Connection), Remote> {
        self.once(self.find_and_connect(key, until)).await
    }

    async fn find_and_connect(&self, key: &str, until: Instant) -> Result<(Server, Connection), Remote> {
        let slot = redis_keyslot(key.as_bytes());
        let named = (0..self.address.servers.len()).map(|number| self.named(number));
        let mut why = Remote::new(Reason::NotReady, "the servers name each other without an end");
        let mut places: Vec<Server> = self.known_for(slot).into_iter().chain(named).collect();
        places.reverse();
        for _ in 0..MOST_HOPS {
            let Some(server) = places.pop() else { break };
            match open(&server, &self.address, &[], 0, until).await {
                Ok((Opened::Here(connection), _)) => return Ok((server, connection)),
                Ok((Opened::Elsewhere(primary), _)) => places.push(primary),
                Err(remote) => {
                    self.forget(&server);
                    why = remote;
                }
            }
        }
        Err(why)
    }

    /// Notes that a server says which one has a slot.
    pub fn learn(&self, slot: u16, server: Server) {
        lock(&self.known).slots.insert(slot, server);
    }
}

/// Whether this is `serve`, where one process is for many.
pub fn is_shared() -> bool {
    #[cfg(feature = "serve")]
    return Handle::try_current().is_ok();
    #[cfg(not(feature = "serve"))]
    false
}

fn last(mut replies: Vec<Reply>) -> Result<Reply, NoAnswer> {
    replies.pop().ok_or_else(|| NoAnswer::Lost(Remote::new(Reason::Failed, "Redis has not answered")))
}

/// Begins a connection to a server, and asks something with the login.
async fn open(
    server: &Server,
    address: &Address,
    commands: &[u8],
    replies: usize,
    until: Instant,
) -> Result<(Opened, Vec<Reply>), Remote> {
    let has_others = address.servers.len() > 1;
    let until = if has_others { until.min(instant() + GREETING) } else { until };
    Connection::open_and_ask(server, address, commands, replies, until).await
}

/// One that can be used again.
fn idle(mut connection: Connection) -> Option<Connection> {
    connection.is_idle().then_some(connection)
}

/// Whether it was done.
fn is_ok(replies: &[Reply]) -> bool {
    !matches!(replies.last(), Some(Reply::Error(_)))
}

/// Whether so many replicas have what was written, by what the server answers when it has waited for them.
fn kept(reply: Option<Reply>, wanted: u64) -> Result<(), NoAnswer> {
    let cause = match reply {
        Some(Reply::Integer(have)) if u64::try_from(have).is_ok_and(|have| have >= wanted) => return Ok(()),
        Some(Reply::Integer(have)) => format!("{have} of {wanted} replicas have it in time"),
        other => format!("the replicas cannot be waited for: {other:?}"),
    };
    Err(NoAnswer::Lost(Remote::new(Reason::TooFewReplicas, cause)))
}

/// Sends commands on a connection, which is made if there is none, and there afterwards if it can be used again. Also tells
/// whether as many replicas as the owner wants have what is promised.
async fn attempt(
    connection: &mut Option<Connection>,
    server: &Server,
    address: &Address,
    mut commands: Vec<u8>,
    mut replies: usize,
    kind: Kind,
    until: Instant,
) -> Result<(Vec<Reply>, Result<(), NoAnswer>), NoAnswer> {
    let replicas = if kind.is_promise { address.replicas } else { 0 };
    if replicas > 0 {
        let time = REPLICA_TIME.as_millis();
        commands.extend(command(["WAIT", &replicas.to_string(), &time.to_string()]));
        replies += 1;
    }
    // The server may have ended since it was used, and closed it.
    let (mut open, mut got) = if let Some(open) = connection.take().and_then(idle) {
        (open, Vec::new())
    } else {
        // Replicas may take longer than a server that is there takes to greet.
        let (first, count) = if kind.is_harmless && replicas == 0 { (&commands[..], replies) } else { (&[][..], 0) };
        match open(server, address, first, count, until).await {
            Ok((Opened::Here(open), got)) => (open, got),
            Ok((Opened::Elsewhere(server), _)) => return Err(NoAnswer::Elsewhere(server)),
            Err(remote) => return Err(NoAnswer::NotAsked(remote)),
        }
    };
    if got.is_empty() {
        got = open.exchange(&commands, replies, until).await.map_err(NoAnswer::Lost)?;
    }
    *connection = Some(open);
    let kept = if replicas > 0 { kept(got.pop(), replicas) } else { Ok(()) };
    Ok((got, kept))
}

/// Asks a server for all that want something of it.
#[cfg(feature = "serve")]
async fn ask(server: Server, address: Address, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let mut connection = None;
    while let Some(first) = jobs.recv().await {
        let (mut together, mut commands, mut next) = (Vec::new(), Vec::new(), Some(first));
        while let Some(mut job) = next {
            // Whoever was told that there is no answer may ask again: it must not be done now.
            if !job.answer.is_closed() {
                commands.append(&mut job.commands);
                together.push(job);
            }
            next = if commands.len() < TOGETHER { jobs.try_recv().ok() } else { None };
        }
        // Each has its whole time, also where the server did nothing for most of it; whoever comes later has what is left then.
        let Some(until) = together.iter().map(|job| job.until).max() else { continue };
        let replies = together.iter().map(|job| job.replies).sum();
        let kind = Kind { is_promise: together.iter().any(|job| job.is_promise), is_harmless: false };
        match attempt(&mut connection, &server, &address, commands, replies, kind, until).await {
            Ok((replies, kept)) => {
                let mut replies = replies.into_iter();
                for job in together {
                    let own: Vec<_> = replies.by_ref().take(job.replies).collect();
                    let needs_replicas = job.is_promise && is_ok(&own);
                    // Whoever has gone meanwhile has no use for it.
                    let _ = job.answer.send(if needs_replicas { kept.clone().map(|()| own) } else { Ok(own) });
                }
            }
            Err(no_answer) => {
                for job in together {
                    let _ = job.answer.send(Err(no_answer.clone()));
                }
            }
        }
    }
}

#[cfg(all(test, feature = "serve"))]
mod tests {
    use super::super::testing::TestServer;
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    }

    #[test]
    fn whoever_asks_a_server_that_pauses_for_a_second_is_answered() {
        let Some(server) = TestServer::start(&[]) else { return };
        let servers = std::sync::Arc::new(Servers::new(server.address()));
        let count = |key: &'static str| {
            let servers = servers.clone();
            async move { servers.call(key, &command(["INCR", key])).await }
        };
        runtime().block_on(async {
            assert_eq!(count("a").await, Ok(Reply::Integer(1)));
            for number in 1.. {
                let began = instant();
                server.freeze();
                let first = tokio::spawn(count("b"));
                tokio::time::sleep(Duration::from_millis(100)).await;
                let second = tokio::spawn(count("c"));
                tokio::time::sleep(Duration::from_millis(1100)).await;
                server.go_on();
                let answers = [first.await.unwrap(), second.await.unwrap()];
                // A machine that was slow itself has to show it once more.
                if began.elapsed() < TIME {
                    return assert!(answers.iter().all(Result::is_ok), "{answers:?}");
                }
                assert!(number < 100, "this machine is too slow to show it");
            }
        });
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_not_done() {
        let Some(server) = TestServer::start(&[]) else { return };
        let (queue, jobs) = mpsc::unbounded_channel();
        let job = |key: &str| {
            let (answer, answered) = oneshot::channel();
            let commands = command(["INCR", key]);
            let job = Job { commands, replies: 1, is_promise: false, until: instant() + TIME, answer };
            assert!(queue.send(job).is_ok());
            answered
        };
        drop(job("a"));
        let last = job("a");
        runtime().block_on(async {
            tokio::spawn(ask(server.server.clone(), server.address(), jobs));
            assert!(matches!(last.await.unwrap(), Ok(replies) if replies == [Reply::Integer(1)]));
        });
    }
}
