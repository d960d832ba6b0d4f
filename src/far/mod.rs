//! The far end of PTTH: asks the relay for requests, answers them from a folder or from another HTTP server, and posts the
//! answers. It only makes connections and takes none, so that it works behind any firewall.
//!
//! A few threads ask at the same time. Whoever gets a request answers it itself, which is the fastest way, and has another
//! thread ask where nobody else does. There are only so many threads: while all are at work nobody asks, so requests wait
//! at the relay, where another far end of the same name may take them.

mod answer;
mod files;
mod forward;

pub use files::Root;
pub use forward::Target;

use crate::gateway;
use crate::ptth::{self, HEAD_FIELD, KEY_FIELD, PREFIX, RequestHead, ServerName};
use crate::ptth::{Method, Waiting};
use answer::Answer;
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::HashSet;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};
use ureq::{Agent, SendBody};

/// How many answers are given at once. A client that reads slowly keeps one of them busy.
const MOST_ANSWERS: usize = 256;

/// How long one question may take: the relay says that there is nothing (204) long before.
const LISTEN_TIME: Duration = Duration::from_secs(60);

/// How long to wait until the relay takes the next bytes of an answer, and then until it says that the client has them
/// all, which it does when a slow client has read what is on its way.
const WRITE_TIME: Duration = Duration::from_secs(600);
const DELIVERY_TIME: Duration = Duration::from_secs(3600);

/// How long to wait before asking a relay again that did not answer as it should.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Within which time what happens to several of our questions belongs together, and by how much the relay may have got two
/// in another order than they began in.
const TOGETHER: Duration = Duration::from_secs(5);
const OVERTAKEN: Duration = Duration::from_millis(500);

/// How long answers may go on once the process is asked to stop.
const STOP_TIME: Duration = Duration::from_secs(4);

/// How many bytes the head of an answer may have, encoded: the relay takes no more than 16 KiB with what is beside it.
const LONGEST_HEAD: usize = 15 * 1024;

/// Web servers in front of a relay may take less. The body after a longer head waits until they agree (RFC 9110, 10.1.1).
const LONG_HEAD: usize = 4 * 1024;

/// An answer of which less than this has been read may be given again on another connection: the relay takes only one.
const REPEATABLE: u64 = 64 * 1024;

/// Where answers come from.
pub enum Source {
    /// The files of a folder.
    Files(Root),
    /// Another HTTP server.
    Forward(Target),
}

/// What it needs to know.
pub struct FarEnd {
    /// The relay's own URL, without a slash at its end.
    pub relay: String,
    /// The name by which it is reached.
    pub name: ServerName,
    /// What proves that.
    pub key: String,
    /// Where answers come from.
    pub source: Source,
}

/// Works until the process is asked to stop.
///
/// # Errors
/// When it cannot begin, or the relay refuses the name or its key.
pub fn run(far: FarEnd, listeners: usize) -> Result<(), String> {
    gateway::catch_signals(true).map_err(|error| format!("cannot catch signals: {error}"))?;
    say!("uhst-relay: waiting for requests to {} at {}", far.name, far.relay);
    let (report, end) = mpsc::channel();
    let stopped = report.clone();
    let worker = Arc::new(Worker {
        listen_url: format!("{}/{PREFIX}/http_listen/{}", far.relay, far.name),
        response_url: format!("{}/{PREFIX}/http_response/", far.relay),
        listening: agent(LISTEN_TIME, LISTEN_TIME),
        answering: agent(WRITE_TIME, DELIVERY_TIME),
        is_away: AtomicBool::new(false),
        answers: Counter::default(),
        asking: Counter::default(),
        most_listeners: listeners,
        listeners: AtomicUsize::new(listeners),
        questions: Mutex::default(),
        at_work: Mutex::default(),
        report,
        far,
    });
    worker.start_listeners(listeners)?;
    let stop = gateway::stop_signal().ok_or("signals are not caught")?;
    start("stop", move || {
        while poll(&mut [PollFd::from_borrowed_fd(stop, PollFlags::IN)], None).is_err() {}
        stopped.send(Ok(()))
    })?;
    let ended = end.recv().unwrap_or(Ok(()));
    if ended.is_ok() {
        worker.answers.wait_for_fewer_than(1, Some(Instant::now() + STOP_TIME));
    }
    ended
}

fn start<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<(), String> {
    let started = std::thread::Builder::new().name(name.into()).spawn(work);
    started.map(drop).map_err(|error| format!("cannot start a thread: {error}"))
}

/// A client of the relay. No redirect is followed: the key is for the relay alone.
fn agent(write_time: Duration, read_time: Duration) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("uhst-relay/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_per_write(Some(write_time))
        .timeout_per_read(Some(read_time))
        .max_idle_connections_per_host(8)
        // Servers and proxies close idle connections after five seconds, or later.
        .max_idle_age(Duration::from_secs(3))
        .build()
        .into()
}

struct Worker {
    far: FarEnd,
    listen_url: String,
    response_url: String,
    listening: Agent,
    answering: Agent,
    /// Whether the relay did not answer the last time, which is said once.
    is_away: AtomicBool,
    answers: Counter,
    /// Those that ask for requests, how many there may be, and how many there should be now: one at a relay that keeps one.
    asking: Counter,
    most_listeners: usize,
    listeners: AtomicUsize,
    questions: Mutex<Questions>,
    /// The ids of the requests that are being answered. The relay gives a request again whose answer takes long to begin.
    at_work: Mutex<HashSet<String>>,
    /// Where to say why there is no point in asking any more.
    report: mpsc::Sender<Result<(), String>>,
}

/// That a request is being answered, until it is dropped, whatever becomes of the answer.
struct AtWork<'a> {
    ids: &'a Mutex<HashSet<String>>,
    id: &'a str,
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        lock(self.ids).remove(self.id);
    }
}

/// What became of the latest questions to the relay.
///
/// The original relay keeps one listener: with 500 it turns away the one before. So a 500 counts as that where another
/// question of ours came later, and did not fail. A relay that fails in earnest fails the last one, too; and where it fails one alone,
/// it does not do so twice in a row.
#[derive(Default)]
struct Questions {
    /// When they began, but for those that failed.
    began: Vec<Instant>,
    /// When one failed, and when one was turned away for another.
    failed: Option<Instant>,
    turned_away: Option<Instant>,
}

impl Questions {
    fn begin(&mut self) -> Instant {
        let now = Instant::now();
        self.began.retain(|began| is_recent(*began));
        self.began.push(now);
        now
    }

    fn failed(&mut self, began: Instant, why: NoRequests) -> NoRequests {
        if let Some(own) = self.began.iter().position(|other| *other == began) {
            self.began.swap_remove(own);
        }
        let is_later = |other: &Instant| *other + OVERTAKEN > began && is_recent(*other);
        match why {
            NoRequests::TurnedAway { reason, .. } if self.began.iter().any(is_later) => {
                let last = self.turned_away.replace(Instant::now());
                NoRequests::TurnedAway { reason, again: last.is_some_and(is_recent) }
            }
            NoRequests::TurnedAway { reason, .. } | NoRequests::Passing(reason) => {
                self.failed = Some(Instant::now());
                NoRequests::Passing(reason)
            }
            refused @ NoRequests::Refused(_) => refused,
        }
    }
}

fn is_recent(moment: Instant) -> bool {
    moment.elapsed() < TOGETHER
}

/// Why there are no requests.
enum NoRequests {
    /// It may be over later.
    Passing(String),
    /// It had to give way to another question of ours, perhaps not for the first time in a short time.
    TurnedAway { reason: String, again: bool },
    /// It is not.
    Refused(String),
}

impl Worker {
    /// So that so many ask. Whoever gets a request at once has another ask.
    fn start_listeners(self: &Arc<Self>, listeners: usize) -> Result<(), String> {
        for _ in 0..listeners {
            let Some(asking) = self.asking.count_up_to(listeners) else { break };
            let worker = Arc::clone(self);
            start("listener", move || worker.listen(asking))?;
        }
        Ok(())
    }

    /// Asks for requests and answers them, until the relay refuses or enough others ask.
    fn listen(self: Arc<Self>, mut asking: One) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            self.answers.wait_for_fewer_than(MOST_ANSWERS, None);
            let asked = Instant::now();
            match self.ask() {
                Ok(mut requests) => {
                    if self.is_away.swap(false, Ordering::Relaxed) {
                        say!("uhst-relay: the relay is there again");
                        // It may be another one now, which keeps as many as there are.
                        self.listeners.store(self.most_listeners, Ordering::Relaxed);
                        self.tell(self.start_listeners(self.most_listeners));
                    }
                    pause = SHORTEST_PAUSE;
                    let Some(last) = requests.pop() else {
                        // A relay that does not wait is not asked without a break.
                        std::thread::sleep(SHORTEST_PAUSE.saturating_sub(asked.elapsed()));
                        continue;
                    };
                    drop(asking);
                    for request in requests {
                        let worker = Arc::clone(&self);
                        self.tell(start("answer", move || worker.answer(&request)));
                    }
                    self.tell(self.start_listeners(1));
                    self.answer(&last);
                }
                Err(why) => {
                    // This thread does not ask while it pauses: another one may have to.
                    drop(asking);
                    let failure = match why {
                        NoRequests::TurnedAway { reason, again } => {
                            std::thread::sleep(SHORTEST_PAUSE);
                            let is_failing = lock(&self.questions).failed.is_some_and(is_recent);
                            if !is_failing && again && self.listeners.swap(1, Ordering::Relaxed) > 1 {
                                say!(
                                    "uhst-relay: the relay keeps one listener (status 500 for others): one asks from now on"
                                );
                            }
                            is_failing.then_some(reason)
                        }
                        NoRequests::Passing(reason) => Some(reason),
                        NoRequests::Refused(reason) => {
                            let _ = self.report.send(Err(reason));
                            return;
                        }
                    };
                    if let Some(reason) = failure {
                        if !self.is_away.swap(true, Ordering::Relaxed) {
                            say!("uhst-relay: {reason} Trying again until the relay is there.");
                        }
                        std::thread::sleep(pause);
                        pause = (2 * pause).min(LONGEST_PAUSE);
                    }
                }
            }
            match self.asking.count_up_to(self.listeners.load(Ordering::Relaxed)) {
                Some(one) => asking = one,
                None => return,
            }
        }
    }

    /// One question to the relay, beside those of other threads.
    fn ask(&self) -> Result<Vec<Waiting>, NoRequests> {
        let began = lock(&self.questions).begin();
        self.ask_alone().map_err(|why| lock(&self.questions).failed(began, why))
    }

    fn tell(&self, started: Result<(), String>) {
        if let Err(error) = started {
            say!("uhst-relay: {}: {error}", self.far.name);
        }
    }

    fn ask_alone(&self) -> Result<Vec<Waiting>, NoRequests> {
        let asked = self.listening.get(&self.listen_url).header(KEY_FIELD, &self.far.key).call();
        let mut answer =
            asked.map_err(|error| NoRequests::Passing(format!("The relay cannot be reached ({error}).")))?;
        match answer.status().as_u16() {
            200 => {
                let mut list = Vec::new();
                let mut body = answer.body_mut().as_reader().take(ptth::MAX_LIST as u64 + 1);
                body.read_to_end(&mut list)
                    .map_err(|error| NoRequests::Passing(format!("The relay's answer broke off ({error}).")))?;
                let list = ptth::decode_list(&list)
                    .map_err(|error| NoRequests::Passing(format!("The relay's answer is not PTTH's. {error}")))?;
                let passed_over = |error| say!("uhst-relay: a request cannot be taken. {error}");
                Ok(list.into_iter().filter_map(|request| request.map_err(passed_over).ok()).collect())
            }
            204 => Ok(Vec::new()),
            401 => Err(NoRequests::Refused(format!(
                "the relay knows no server {name} with this key: `uhst-relay ptth add {name}` there registers it, and \
                 shows its key",
                name = self.far.name
            ))),
            403 => Err(NoRequests::Refused(format!(
                "the relay got no key: something on the way to {} removes the header field {KEY_FIELD}, or it is no relay",
                self.far.relay
            ))),
            status if (300..400).contains(&status) => {
                let place = answer.headers().get("location").and_then(|place| place.to_str().ok()).unwrap_or("?");
                Err(NoRequests::Refused(format!("the relay is not at {} any more but at {place}", self.far.relay)))
            }
            404 => Err(NoRequests::Passing(format!("There is no relay with PTTH at {} (404).", self.far.relay))),
            500 => Err(NoRequests::TurnedAway { reason: "The relay answers with status 500.".into(), again: false }),
            status => Err(NoRequests::Passing(format!("The relay answers with status {status}."))),
        }
    }

    /// Answers a request, unless somebody is at it.
    fn answer(&self, request: &Waiting) {
        if !lock(&self.at_work).insert(request.id.clone()) {
            return;
        }
        let _at_work = AtWork { ids: &self.at_work, id: &request.id };
        self.answers.wait_for_fewer_than(MOST_ANSWERS, None);
        let _counted = self.answers.count();
        self.post_answer(request);
    }

    fn post_answer(&self, request: &Waiting) {
        for is_last in [false, true] {
            // A mistake of ours in one answer is that answer's end only, and its client need not wait in vain.
            let answer = catch_unwind(AssertUnwindSafe(|| self.far.source.answer(&request.head)));
            let answer = answer.unwrap_or_else(|_| Answer::sentence(500, "The server cannot answer this."));
            let (posted, sent) = self.post(&request.id, answer);
            match posted {
                // 410: the client did not wait for all of it.
                Ok(200..300 | 410) => return,
                // The head is not taken, so that the client would wait in vain. Or, as the relay says 400 too, it has gone
                // already, or another far end was faster; then nobody takes this either.
                Ok(status @ (400 | 413 | 431)) => {
                    let (told, _) = self.post(&request.id, Answer::unfit());
                    if matches!(told, Ok(200)) {
                        say!("uhst-relay: the relay did not take an answer (status {status}); its client was told 502");
                    }
                    return;
                }
                Ok(status) => {
                    say!("uhst-relay: the relay did not take an answer: status {status}");
                    return;
                }
                // Most often the client has gone in the middle.
                Err(_) if sent > REPEATABLE => return,
                Err(error) if is_last => say!("uhst-relay: an answer did not reach the relay: {error}"),
                Err(_) => {}
            }
        }
    }

    /// Posts an answer: the relay's status, and how much of the body was read.
    fn post(&self, id: &str, mut answer: Answer) -> (Result<u16, ureq::Error>, u64) {
        let mut encoded = answer.head.encode();
        if encoded.len() > LONGEST_HEAD {
            say!("uhst-relay: the header fields of an answer are too large for the relay; its client is told 502");
            answer = Answer::unfit();
            encoded = answer.head.encode();
        }
        let is_long = encoded.len() > LONG_HEAD;
        let mut body = Measured { body: answer.body, count: 0, length: answer.length };
        let mut post = self
            .answering
            .post(format!("{}{}", self.response_url, urlencoding::encode(id)))
            .header(KEY_FIELD, &self.far.key)
            .header(HEAD_FIELD, encoded)
            .content_type("application/octet-stream");
        if let Some(length) = answer.length {
            post = post.header("Content-Length", length);
        }
        if is_long {
            post = post.header("Expect", "100-continue");
        }
        let posted = post.send(SendBody::from_reader(&mut body)).map(|mut answer| {
            // Once it is read, the connection can be used again.
            let _ = io::copy(&mut answer.body_mut().as_reader().take(4096), &mut io::sink());
            answer.status().as_u16()
        });
        if body.length == Some(body.count) {
            // The end, which a connection that gave it must have shown before it is used again.
            let _ = body.read(&mut [0]);
        }
        (posted, body.count)
    }
}

impl Source {
    fn answer(&self, request: &RequestHead) -> Answer {
        // The relay passes on nothing else, and what has a body would need one.
        if !matches!(request.method, Method::Get | Method::Head) {
            return Answer::sentence(405, "Only GET, HEAD and OPTIONS are possible here.")
                .field("allow", "GET, HEAD, OPTIONS");
        }
        match self {
            Self::Files(root) => root.answer(request),
            Self::Forward(target) => target.answer(request),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts what is read. It does not end before its length: a file may become shorter while it is sent, and whoever
/// was told of more asks for the rest for ever.
struct Measured {
    body: Box<dyn Read>,
    count: u64,
    length: Option<u64>,
}

impl Read for Measured {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.body.read(buffer)?;
        self.count += read as u64;
        if read == 0 && !buffer.is_empty() && self.length.is_some_and(|length| self.count < length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(read)
    }
}

/// How many there are of something.
#[derive(Clone, Default)]
struct Counter(Arc<(Mutex<usize>, Condvar)>);

/// One of them, until it is dropped.
struct One(Counter);

impl Counter {
    fn count(&self) -> One {
        *lock(&self.0.0) += 1;
        One(self.clone())
    }

    /// `None` where there are `most` already.
    fn count_up_to(&self, most: usize) -> Option<One> {
        let mut count = lock(&self.0.0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(One(self.clone()))
    }

    fn wait_for_fewer_than(&self, most: usize, until: Option<Instant>) {
        let mut count = lock(&self.0.0);
        while *count >= most {
            let left = until.map_or(LISTEN_TIME, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return;
            }
            count = self.0.1.wait_timeout(count, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for One {
    fn drop(&mut self) {
        *lock(&self.0.0.0) -= 1;
        self.0.0.1.notify_all();
    }
}
