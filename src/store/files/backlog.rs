//! The requests that wait for a server of PTTH, and the far ends that wait for requests.
//!
//! A request is a file: in `waiting`, until a far end is given it, then in `given`, until its answer begins. Its client
//! waits as the [receiver](super::pipe::Receiver) of a pipe whose tally that file is: it stands behind the numbers. So a
//! request whose client was killed is known by a FIFO that nobody has open, and whoever comes upon it removes it. The
//! client itself looks after its request: it is the one that wakes another far end, or has the request given again. How
//! often it has been given stands in the file too, before the request: a far end that cannot answer it is not asked for ever.
//!
//! None of this needs the lock. Each step is one `rename` or `unlink`, which the kernel does for one process only: a
//! request appears in `waiting` by the one, whole; it is given to whoever moves it to `given`, and is answered by whoever
//! removes it, who takes its other names away too once the client has the head: nothing on the disk belongs to an answer
//! that is under way. An id is never used again. The lock is for making the folders and for removing them.
//!
//! All far ends of a server wait at one FIFO. In it are the ids of requests that have come; whoever reads one takes that
//! request. One that is not read stays there for the next, as long as there is one. When the last has gone the kernel drops
//! them all, and the next looks for requests before it sleeps.

use super::folder::Folder;
use super::mailbox::modified;
use super::pipe::{Names, Receiver, Sender, TALLY_SIZE, behind_tally};
use super::shelf::Kind;
use super::wake::{Fifo, Knock, call, call_and_remove, is_heard};
use super::{Error, Files, identity_at, make_dir, read_small, remove_file};
use crate::clock::now_ms;
use crate::hex;
use crate::ptth::ServerName;
use rustix::fd::BorrowedFd;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

const LISTENERS: &str = "listeners";
const WAITING: &str = "waiting";
const GIVEN: &str = "given";
const CLIENTS: &str = "clients";
const ANSWERS: &str = "answers";
const FOLDERS: [&str; 4] = [WAITING, GIVEN, CLIENTS, ANSWERS];

/// How often a request is given to a far end that asks: one that dies with it should not be its end, but one that cannot
/// answer it should not have it again and again. Whoever began to ask before the request came has it for nothing, after
/// the first: a web server may notice only then that it has died long since, and each asks only once.
const MOST_TIMES: u8 = 2;

/// What a request is known by: the time in milliseconds since 1970, so that the oldest comes first, and 128 random bits,
/// all in hexadecimal digits. So it is a part of a path as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    const LENGTH: usize = 12 + 32;

    /// A new one.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn fresh() -> Result<Self, Error> {
        Ok(Self(format!("{:012x}{}", now_ms() & 0xFFFF_FFFF_FFFF, hex::random(16)?)))
    }

    /// `None` for what cannot be one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_id = text.len() == Self::LENGTH && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_id.then(|| Self(text.to_owned()))
    }

    /// When it was made, in milliseconds since 1970.
    fn made_at(&self) -> u64 {
        u64::from_str_radix(&self.0[..12], 16).unwrap_or_default()
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What `session.json` says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct BacklogRecord {
    server: ServerName,
}

/// The requests of one server.
pub struct Backlog {
    store: Files,
    server: ServerName,
    path: PathBuf,
}

/// The requests of one server, and nobody else makes their folder or removes it.
pub struct LockedBacklog {
    folder: Folder<BacklogRecord>,
    record: Option<BacklogRecord>,
}

/// A request, as its client has it. When it is dropped, nothing is left of it.
pub struct Question {
    /// Where the answer comes.
    pub receiver: Receiver,
    papers: Papers,
}

/// Where the file of a request may be.
struct Papers {
    waiting: PathBuf,
    given: PathBuf,
    /// The file itself, wherever it is.
    file: File,
    /// Whether it has been taken away by whoever answers.
    is_taken: bool,
}

/// How a request stands that has no answer yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No far end has it.
    Waiting,
    /// A far end has it.
    Given,
    /// Its answer begins.
    Begins,
}

impl Question {
    /// How the request stands, without a lock.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn standing(&self) -> Result<Standing, Error> {
        Ok(if identity_at(&self.papers.waiting)?.is_some() {
            Standing::Waiting
        } else if identity_at(&self.papers.given)?.is_some() {
            Standing::Given
        } else {
            Standing::Begins
        })
    }

    /// How often it has been given to a far end.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn times_given(&self) -> Result<u8, Error> {
        Ok(times_given(&self.papers.file)?)
    }

    /// Whether no far end is given it any more.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn is_given_up(&self) -> Result<bool, Error> {
        Ok(self.times_given()? >= MOST_TIMES)
    }

    /// To be called once the answer has begun.
    #[must_use]
    pub fn begin(mut self) -> Receiver {
        self.papers.is_taken = true;
        self.receiver.forget_names();
        self.receiver
    }
}

impl Papers {
    fn remove(&self) -> Result<(), Error> {
        // In this order, which is that of a far end that takes it.
        for file in [&self.waiting, &self.given] {
            remove_file(file)?;
        }
        Ok(())
    }
}

impl Drop for Papers {
    fn drop(&mut self) {
        if !self.is_taken {
            let _ = self.remove();
        }
    }
}

/// A request that a far end is given.
#[derive(Debug, PartialEq, Eq)]
pub struct Given {
    /// What its answer is known by.
    pub id: RequestId,
    /// What its client has asked.
    pub request: Vec<u8>,
}

/// What a far end hears.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// Another far end was faster.
    Nothing,
    /// A request has come.
    Request(RequestId),
    /// The server has been removed.
    Gone,
}

/// Said to the far ends of a server that is removed. No id looks like that.
const GONE: [u8; RequestId::LENGTH] = [b'!'; RequestId::LENGTH];

/// A request whose answer begins.
pub struct Answering {
    /// The way to the client.
    pub sender: Sender,
    names: Names,
}

impl Answering {
    /// Removes what is left of the request, to be called soon, but not before the client has what it waits for.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn forget_request(&self) -> Result<(), Error> {
        // Its tally has been taken away already.
        remove_file(&self.names.data)?;
        Ok(remove_file(&self.names.receiver)?)
    }
}

/// A far end's place among those that wait for requests.
pub struct Listening {
    fifo: Fifo,
    since: Instant,
    asked_at: u64,
}

impl Listening {
    /// When it has begun, in milliseconds since 1970.
    #[must_use]
    pub fn asked_at(&self) -> u64 {
        self.asked_at
    }

    /// What becomes readable when a request has come.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fifo.fd()
    }

    /// To be called when that is readable.
    #[must_use]
    pub fn hear(&self) -> Heard {
        // All that is ever written there has this size, so no reader gets half of it.
        let mut message = [0; RequestId::LENGTH];
        match rustix::io::read(self.fifo.fd(), &mut message) {
            Ok(RequestId::LENGTH) => {}
            _ => return Heard::Nothing,
        }
        let text = std::str::from_utf8(&message).ok();
        let Some(id) = text.and_then(RequestId::parse) else {
            // The others shall hear it too.
            let _ = rustix::io::write(self.fifo.fd(), &GONE);
            return Heard::Gone;
        };
        Heard::Request(id)
    }

    /// Notes that a far end is there now.
    fn note(&self) {
        use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let _ = futimens(self.fifo.fd(), &Timestamps { last_access: now, last_modification: now });
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // It has just been noted otherwise.
        if self.since.elapsed() >= Duration::from_secs(1) {
            self.note();
        }
    }
}

impl Files {
    /// The requests of a server, which is registered: so there is a limit to them.
    #[must_use]
    pub fn backlog(&self, server: &ServerName) -> Backlog {
        let path = self.folder(Kind::Ptth, server.as_str());
        Backlog { store: self.clone(), server: server.clone(), path }
    }

    /// Makes the folders for the requests of a server.
    fn make_backlog(&self, server: &ServerName) -> Result<(), Error> {
        let folder: Option<Folder<BacklogRecord>> = self.open_or_make(Kind::Ptth, server.as_str(), u64::MAX)?;
        let folder = folder.ok_or(Error::Busy)?;
        // The record first: where there are folders, there is one.
        if folder.read()?.is_none() {
            folder.write(&BacklogRecord { server: server.clone() })?;
        }
        for name in FOLDERS {
            make_dir(&folder.path().join(name))?;
        }
        Ok(())
    }

    /// When a far end of the server asked last, and whether one is waiting now, without a lock.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn far_ends(&self, server: &ServerName) -> Result<(Option<SystemTime>, bool), Error> {
        let path = self.folder(Kind::Ptth, server.as_str()).join(LISTENERS);
        Ok((modified(&path)?, is_heard(&path)?))
    }
}

impl Backlog {
    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The names of a request, which is in the folder `tally`.
    fn names(&self, id: &str, tally: &str) -> Names {
        names_of(&self.path, id, tally)
    }

    /// Runs `make`, and where it finds no folder to make something in, makes the folders and runs it again. Also where a
    /// sweep has just taken what it made, before it was in use, for a leftover.
    fn with_folders<T>(&self, make: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        for _ in 0..5 {
            match make() {
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                    self.store.make_backlog(&self.server)?;
                }
                other => return other,
            }
        }
        make()
    }

    // ---- the client

    /// Asks: from now on the request waits for a far end, and its client for the answer. It has been given `times` under
    /// other ids. `None` where `most` requests wait already.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn ask(&self, id: &RequestId, request: &[u8], times: u8, most: u64) -> Result<Option<Question>, Error> {
        if self.count()? >= most {
            // Some of them may be those of killed clients.
            tidy(&self.path)?;
            if self.count()? >= most {
                return Ok(None);
            }
        }
        self.with_folders(|| {
            let names = self.names(id.as_str(), GIVEN);
            let (waiting, given) = (self.path(WAITING).join(id.as_str()), names.tally.clone());
            let receiver = Receiver::make(names, &[&[times], request].concat())?;
            let papers = Papers { file: File::open(&given)?, waiting, given, is_taken: false };
            std::fs::rename(&papers.given, &papers.waiting)?;
            Ok(Some(Question { receiver, papers }))
        })
    }

    fn count(&self) -> Result<u64, Error> {
        Ok(names(&self.path(CLIENTS))?.len() as u64)
    }

    // ---- the far end

    /// Takes a place among the far ends that wait.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn listen(&self) -> Result<Listening, Error> {
        let fifo = self.with_folders(|| Fifo::open_or_make(&self.path(LISTENERS)))?;
        let listening = Listening { fifo, since: Instant::now(), asked_at: now_ms() };
        listening.note();
        Ok(listening)
    }

    /// Tells a far end, if one is there, that a request waits.
    pub fn ring(&self, id: &RequestId) {
        call(&self.path(LISTENERS), id.as_str().as_bytes());
    }

    /// Tells a far end of a request that waits, if one does.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn ring_if_any_waits(&self) -> Result<(), Error> {
        if let Some(id) = names(&self.path(WAITING))?.iter().find_map(|name| RequestId::parse(name)) {
            self.ring(&id);
        }
        Ok(())
    }

    /// Gives away the requests that have waited longest, up to `most`, to a far end that began to ask at that time.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn take(&self, most: usize, asked_at: u64) -> Result<Vec<Given>, Error> {
        let mut waiting = names(&self.path(WAITING))?;
        let mut taken = Vec::new();
        // There may be many, of which few are taken.
        while taken.len() < most
            && let Some(oldest) = (0..waiting.len()).min_by_key(|index| &waiting[*index])
        {
            let name = waiting.swap_remove(oldest);
            match self.take_or_remove(&name, asked_at) {
                Ok(given) => taken.extend(given),
                Err(error) if taken.is_empty() => return Err(error),
                // Those that are taken wait for nobody else.
                Err(error) => {
                    error.log();
                    break;
                }
            }
        }
        Ok(taken)
    }

    /// Gives away what stands in `waiting` under that name, unless a killed client has left it.
    fn take_or_remove(&self, name: &str, asked_at: u64) -> Result<Option<Given>, Error> {
        let names = self.names(name, WAITING);
        match RequestId::parse(name) {
            Some(id) if names.are_received()? => self.take_one(id, asked_at),
            _ => names.remove().map(|()| None),
        }
    }

    /// Gives a request away; `None` where it has gone: its client takes it along, and another far end may be faster.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn take_one(&self, id: RequestId, asked_at: u64) -> Result<Option<Given>, Error> {
        let [from, to] = [WAITING, GIVEN].map(|folder| self.path(folder).join(id.as_str()));
        let read = || -> io::Result<_> {
            std::fs::rename(from, &to)?;
            let file = File::options().read(true).write(true).open(&to)?;
            let text = read_small(&file)?;
            // Nobody else writes there: whoever has moved the file is the only one who has it.
            Ok(match behind_tally(&text).and_then(<[u8]>::split_first) {
                Some((times, request)) => {
                    if *times == 0 || asked_at > id.made_at() {
                        file.write_all_at(&[times.saturating_add(1)], times_at())?;
                    }
                    Some(Given { id, request: request.to_vec() })
                }
                None => None,
            })
        };
        match read() {
            Ok(given) => Ok(given),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Has a request wait again that was given to a far end, unless that was the last time. One whose answer has begun is
    /// left alone.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn give_back(&self, id: &RequestId) -> Result<(), Error> {
        let given = self.path(GIVEN).join(id.as_str());
        let move_back = || -> io::Result<()> {
            if times_given(&File::open(&given)?)? < MOST_TIMES {
                std::fs::rename(&given, self.path(WAITING).join(id.as_str()))?;
            }
            Ok(())
        };
        match move_back() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Begins to answer a request; `None` where there is none, or its answer has begun.
    ///
    /// # Errors
    /// When its files cannot be opened or removed.
    pub fn answer(&self, id: &RequestId) -> Result<Option<Answering>, Error> {
        // It may have been given back meanwhile.
        for tally in [GIVEN, WAITING] {
            let names = self.names(id.as_str(), tally);
            if let Some(sender) = Sender::take(&names)? {
                return Ok(Some(Answering { sender, names }));
            }
        }
        Ok(None)
    }
}

impl LockedBacklog {
    pub(super) fn read(folder: Folder<BacklogRecord>) -> Result<Self, Error> {
        let record = folder.read()?;
        Ok(Self { folder, record })
    }

    /// Whether a client or a far end waits. Removes what killed ones have left behind.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn is_in_use(&self) -> Result<bool, Error> {
        let path = self.folder.path();
        tidy(path)?;
        Ok(is_heard(&path.join(LISTENERS))? || !names(&path.join(CLIENTS))?.is_empty())
    }

    /// Whose requests they are; `None` where that is damaged.
    #[must_use]
    pub fn server(&self) -> Option<&ServerName> {
        self.record.as_ref().map(|record| &record.server)
    }

    /// Removes everything of a server that is not registered any more. Whoever waits is woken, and finds it gone; an answer
    /// that has begun goes on.
    ///
    /// # Errors
    /// The first thing that cannot be removed; a later sweep tries again.
    pub fn remove(self) -> Result<(), Error> {
        let path = self.folder.path();
        let mut knocks = Vec::new();
        for folder in FOLDERS {
            for name in names(&path.join(folder))? {
                let names = names_of(path, &name, folder);
                knocks.push(Knock::at(&names.receiver));
                names.remove()?;
            }
            match std::fs::remove_dir(path.join(folder)) {
                // Somebody has just come. It will see that the server is gone, and the next sweep that it has gone too.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        call_and_remove(&path.join(LISTENERS), &GONE)?;
        self.folder.remove()
    }
}

fn names_of(backlog: &Path, id: &str, tally: &str) -> Names {
    let [receiver, data, tally] = [CLIENTS, ANSWERS, tally].map(|name| backlog.join(name).join(id));
    Names { receiver, data, tally }
}

/// Where it stands in the file how often a request has been given: behind the tally.
fn times_at() -> u64 {
    TALLY_SIZE as u64
}

fn times_given(file: &File) -> io::Result<u8> {
    let mut times = [0];
    file.read_exact_at(&mut times, times_at())?;
    Ok(times[0])
}

/// Removes what killed clients have left behind.
fn tidy(backlog: &Path) -> Result<(), Error> {
    for folder in FOLDERS {
        for name in names(&backlog.join(folder))? {
            let names = names_of(backlog, &name, folder);
            if !names.are_received()? {
                names.remove()?;
            }
        }
    }
    Ok(())
}

/// What stands in a folder; nothing where there is none.
fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    // Names are ours; what is not UTF-8 is not.
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string().ok());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::super::pipe::Came;
    use super::super::test_dir::TestDir;
    use super::super::wake::make_fifo;
    use super::*;

    struct Scene {
        store: Files,
        _dir: TestDir,
    }

    impl Scene {
        fn new() -> Self {
            let dir = TestDir::new();
            Self { store: Files::new(&dir.join("data")), _dir: dir }
        }

        fn backlog(&self) -> Backlog {
            self.store.backlog(&ServerName::new("s").unwrap())
        }

        fn ask(&self, request: &[u8]) -> (RequestId, Question) {
            let id = RequestId::fresh().unwrap();
            let question = self.backlog().ask(&id, request, 0, 10).unwrap().unwrap();
            (id, question)
        }

        fn is_empty(&self) -> bool {
            FOLDERS.iter().all(|name| names(&self.backlog().path(name)).unwrap().is_empty())
        }

        /// What is given away now.
        fn take(&self) -> Vec<Vec<u8>> {
            self.backlog().take(10, u64::MAX).unwrap().into_iter().map(|given| given.request).collect()
        }
    }

    #[test]
    fn a_request_is_given_once_and_answered_once() {
        let scene = Scene::new();
        let (id, mut question) = scene.ask(b"one");
        assert_eq!(question.standing().unwrap(), Standing::Waiting);
        let taken = scene.backlog().take(10, u64::MAX).unwrap();
        assert_eq!(taken, [Given { id: id.clone(), request: b"one".to_vec() }]);
        assert_eq!(scene.take(), [[0_u8; 1]; 0]);
        assert_eq!(question.standing().unwrap(), Standing::Given);
        let answering = scene.backlog().answer(&id).unwrap().unwrap();
        assert!(scene.backlog().answer(&id).unwrap().is_none(), "twice");
        assert!(scene.backlog().answer(&RequestId::fresh().unwrap()).unwrap().is_none(), "nobody's");
        assert_eq!(question.standing().unwrap(), Standing::Begins);
        let sender = &answering.sender;
        assert!(sender.send_head(b"head", b""));
        assert_eq!(question.receiver.head().unwrap(), Came::Head(b"head".to_vec()));
        scene.backlog().give_back(&id).unwrap();
        assert_eq!(scene.take(), [[0_u8; 1]; 0], "its answer has begun");
        answering.forget_request().unwrap();
        assert!(scene.is_empty(), "nothing is left once it begins");
        let mut receiver = question.begin();
        assert!(receiver.wake().is_none());
        receiver.took(3).unwrap();
        drop(receiver);
        assert_eq!(sender.taken().unwrap(), Some(3));
    }

    #[test]
    fn the_oldest_come_first_and_what_is_given_back_is_given_again() {
        let scene = Scene::new();
        let asked: Vec<_> = (0..3_u8)
            .map(|number| {
                std::thread::sleep(std::time::Duration::from_millis(2));
                scene.ask(&[number])
            })
            .collect();
        assert_eq!(scene.backlog().take(2, u64::MAX).unwrap().len(), 2);
        scene.backlog().give_back(&asked[1].0).unwrap();
        assert_eq!(scene.take(), [[1], [2]]);
    }

    #[test]
    fn a_request_is_given_twice_and_not_again() {
        let scene = Scene::new();
        let (id, question) = scene.ask(b"x");
        assert_eq!(scene.take(), [b"x"]);
        for _ in 0..3 {
            // It may have died long since.
            scene.backlog().give_back(&id).unwrap();
            assert_eq!(question.standing().unwrap(), Standing::Waiting);
            let before = scene.backlog().take_one(id.clone(), id.made_at() - 1).unwrap();
            assert_eq!((before.unwrap().request, question.times_given().unwrap()), (b"x".to_vec(), 1));
        }
        scene.backlog().give_back(&id).unwrap();
        assert_eq!(scene.take(), [b"x"]);
        assert_eq!(question.times_given().unwrap(), MOST_TIMES);
        scene.backlog().give_back(&id).unwrap();
        assert!(question.is_given_up().unwrap());
        assert_eq!(question.standing().unwrap(), Standing::Given, "it can still be answered");
        assert_eq!(scene.take(), [[0_u8; 1]; 0]);
        assert!(scene.backlog().answer(&id).unwrap().is_some());
        // Under another id it is the same request.
        let id = RequestId::fresh().unwrap();
        let _again = scene.backlog().ask(&id, b"x", 1, 10).unwrap().unwrap();
        assert_eq!(scene.take(), [b"x"]);
        scene.backlog().give_back(&id).unwrap();
        assert_eq!(scene.take(), [[0_u8; 1]; 0]);
    }

    #[test]
    fn who_cannot_be_seen_is_not_taken_for_gone() {
        let scene = Scene::new();
        let id = RequestId::fresh().unwrap();
        drop(scene.ask(b"so that there are folders"));
        // A FIFO that can be opened as little as one for which there is no file descriptor.
        let names = scene.backlog().names(id.as_str(), WAITING);
        std::os::unix::fs::symlink(&names.receiver, &names.receiver).unwrap();
        make_fifo(&names.data).unwrap();
        std::fs::write(&names.tally, b"1234567890request").unwrap();
        tidy(&scene.backlog().path).unwrap_err();
        scene.backlog().take(10, u64::MAX).unwrap_err();
        assert!(scene.backlog().ask(&RequestId::fresh().unwrap(), b"full", 0, 1).is_err());
        for kept in [&names.receiver, &names.data, &names.tally] {
            assert!(kept.symlink_metadata().is_ok(), "{} is gone", kept.display());
        }
        std::os::unix::fs::symlink(scene.backlog().path(LISTENERS), scene.backlog().path(LISTENERS)).unwrap();
        scene.store.far_ends(&ServerName::new("s").unwrap()).unwrap_err();
    }

    #[test]
    fn a_request_goes_with_its_client_even_a_killed_one() {
        let scene = Scene::new();
        drop(scene.ask(b"gone"));
        assert!(scene.is_empty());
        // What a killed client leaves: its files, and FIFOs that nobody has open.
        let id = RequestId::fresh().unwrap();
        let leave = |folder| {
            let names = scene.backlog().names(id.as_str(), folder);
            make_fifo(&names.receiver).unwrap();
            make_fifo(&names.data).unwrap();
            std::fs::write(&names.tally, b"123456789request").unwrap();
        };
        leave(WAITING);
        assert_eq!(scene.take(), [[0_u8; 1]; 0]);
        assert!(scene.is_empty());
        leave(GIVEN);
        assert!(scene.backlog().answer(&id).unwrap().is_none());
        tidy(&scene.backlog().path).unwrap();
        assert!(scene.is_empty());
    }

    #[test]
    fn a_far_end_that_is_killed_as_it_takes_a_request_has_it_asked_again() {
        let scene = Scene::new();
        let (id, mut question) = scene.ask(b"request");
        assert_eq!(scene.take().len(), 1);
        drop(scene.backlog().answer(&id).unwrap().unwrap());
        assert_eq!(question.receiver.head().unwrap(), Came::Left);
        drop(question);
        let (id, mut question) = scene.ask(b"again");
        assert_eq!(scene.take(), [b"again"]);
        // It is answered late, by one from whom it has been taken again.
        scene.backlog().give_back(&id).unwrap();
        let answering = scene.backlog().answer(&id).unwrap().unwrap();
        assert_eq!(question.receiver.head().unwrap(), Came::Nothing);
        assert!(answering.sender.send_head(b"late", b""));
        answering.forget_request().unwrap();
        assert_eq!(question.receiver.head().unwrap(), Came::Head(b"late".to_vec()));
        assert!(scene.is_empty());
    }

    #[test]
    fn there_is_a_limit_to_requests_that_those_of_killed_clients_do_not_count_for() {
        let scene = Scene::new();
        let (one, two) = (scene.ask(b"1"), scene.ask(b"2"));
        let id = RequestId::fresh().unwrap();
        assert!(scene.backlog().ask(&id, b"3", 0, 2).unwrap().is_none());
        make_fifo(&scene.backlog().path(CLIENTS).join(RequestId::fresh().unwrap().as_str())).unwrap();
        drop(two);
        assert!(scene.backlog().ask(&id, b"3", 0, 2).unwrap().is_some());
        drop(one);
    }

    #[test]
    fn a_far_end_that_waits_is_seen_and_woken() {
        let scene = Scene::new();
        let name = ServerName::new("s").unwrap();
        assert_eq!(scene.store.far_ends(&name).unwrap(), (None, false));
        let one = scene.backlog().listen().unwrap();
        let two = scene.backlog().listen().unwrap();
        let (seen, is_listening) = scene.store.far_ends(&name).unwrap();
        assert!(seen.is_some() && is_listening);
        scene.backlog().ring_if_any_waits().unwrap();
        assert_eq!(one.hear(), Heard::Nothing, "nothing waits");
        let (id, question) = scene.ask(b"x");
        scene.backlog().ring_if_any_waits().unwrap();
        assert_eq!(two.hear(), Heard::Request(id.clone()));
        assert_eq!((one.hear(), two.hear()), (Heard::Nothing, Heard::Nothing), "one of them, once");
        assert_eq!(scene.backlog().take_one(id.clone(), u64::MAX).unwrap().unwrap().request, b"x");
        assert_eq!(scene.backlog().take_one(id.clone(), u64::MAX).unwrap(), None);
        drop((one, two));
        assert!(!scene.store.far_ends(&name).unwrap().1, "nobody is there");
        scene.backlog().ring(&id);
        let one = scene.backlog().listen().unwrap();
        let two = scene.backlog().listen().unwrap();
        assert_eq!(one.hear(), Heard::Nothing);
        let folder = scene.store.open(Kind::Ptth, name.as_str()).unwrap().unwrap();
        let locked = LockedBacklog::read(folder).unwrap();
        assert_eq!(locked.server(), Some(&name));
        locked.remove().unwrap();
        assert!(!scene.backlog().path.exists() && question.receiver.hears());
        assert_eq!((one.hear(), two.hear()), (Heard::Gone, Heard::Gone));
    }

    #[test]
    fn only_what_was_given_out_can_be_an_id() {
        let fresh = RequestId::fresh().unwrap();
        assert_eq!(RequestId::parse(fresh.as_str()), Some(fresh.clone()));
        for wrong in ["", "..", &fresh.as_str()[1..], &fresh.as_str().to_uppercase().replace('0', "A"), &"/".repeat(44)]
        {
            assert_eq!(RequestId::parse(wrong), None, "{wrong}");
        }
    }
}
