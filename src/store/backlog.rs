//! The requests that wait for a server of PTTH, and the far ends that wait for requests.
//!
//! A request is a file: in `waiting`, until a far end is given it, then in `given`, until its answer begins. Its client
//! waits as the receiver of a [pipe](super::pipe) in `answers`. So a request whose client was killed is known by a FIFO
//! that nobody has open, and whoever comes upon it removes it. The client itself looks after its request: it is the one
//! that wakes another far end, or has the request given again.

use super::folder::Folder;
use super::mailbox::modified;
use super::pipe::{Pipe, Place, Receiver, Sender};
use super::queue::now_ms;
use super::shelf::Kind;
use super::wake::Knock;
use super::{Error, Store, identity_at, make_dir, private_file, random_hex, remove_file};
use crate::ptth::ServerName;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const LISTENERS: &str = "listeners";
const WAITING: &str = "waiting";
const GIVEN: &str = "given";
const ANSWERS: &str = "answers";
/// Changed last when a far end asked last.
const SEEN: &str = "seen";
/// A request that is being written, before it is renamed into place.
const BESIDE: &str = "request.new";

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
        Ok(Self(format!("{:012x}{}", now_ms() & 0xFFFF_FFFF_FFFF, random_hex(16)?)))
    }

    /// `None` for what cannot be one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_id = text.len() == Self::LENGTH && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_id.then(|| Self(text.to_owned()))
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

/// The requests of one server, locked.
pub struct Backlog {
    folder: Folder<BacklogRecord>,
    record: Option<BacklogRecord>,
}

/// A request, as its client has it. When it is dropped, nothing is left of it.
pub struct Question {
    /// Where the answer comes.
    pub receiver: Receiver,
    /// Removed behind the receiver.
    pub papers: Papers,
}

/// The files of a request.
pub struct Papers {
    waiting: PathBuf,
    given: PathBuf,
    _pipe: Emptied,
}

/// A far end's answer to one request.
pub struct Answering {
    /// The way to the client.
    pub sender: Sender,
    /// What the far end sleeps on.
    pub place: Place,
    _pipe: Emptied,
}

/// A folder that is removed by whoever leaves it last.
struct Emptied(PathBuf);

impl Drop for Emptied {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// How a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No far end has it.
    Waiting,
    /// A far end has had it for too long.
    Overdue,
    /// It is on its way.
    Fine,
}

impl Papers {
    /// How the request stands, without a lock. A far end may have it for `patience`.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn standing(&self, patience: Duration) -> Result<Standing, Error> {
        if identity_at(&self.waiting)?.is_some() {
            return Ok(Standing::Waiting);
        }
        let since = modified(&self.given)?.map(|given| given.elapsed().unwrap_or_default());
        Ok(if since.is_some_and(|since| since >= patience) { Standing::Overdue } else { Standing::Fine })
    }
}

impl Drop for Papers {
    fn drop(&mut self) {
        for file in [&self.waiting, &self.given] {
            let _ = remove_file(file);
        }
    }
}

impl Store {
    /// Locks the requests of a server; `None` where it has never had any.
    ///
    /// # Errors
    /// When the data folder cannot be used.
    pub fn backlog(&self, server: &ServerName) -> Result<Option<Backlog>, Error> {
        self.open(Kind::Ptth, server.as_str())?.map(Backlog::read).transpose()
    }

    /// Locks the requests of a server, which is registered: so there is a limit to them.
    ///
    /// # Errors
    /// When the data folder cannot be used.
    pub fn backlog_or_new(&self, server: &ServerName) -> Result<Backlog, Error> {
        let folder = self.open_or_make(Kind::Ptth, server.as_str(), u64::MAX)?.ok_or(Error::Busy)?;
        let mut backlog = Backlog::read(folder)?;
        if backlog.record.is_none() {
            // The record last: where there is one, there are the folders.
            for name in [LISTENERS, WAITING, GIVEN, ANSWERS] {
                make_dir(&backlog.path(name))?;
            }
            let record = BacklogRecord { server: server.clone() };
            backlog.folder.write(&record)?;
            backlog.record = Some(record);
        }
        Ok(backlog)
    }

    /// When a far end of the server asked last, and whether one is waiting now, without a lock.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn far_ends(&self, server: &ServerName) -> Result<(Option<SystemTime>, bool), Error> {
        let path = self.folder(Kind::Ptth, server.as_str());
        let is_listening = names(&path.join(LISTENERS))?.iter().any(|name| {
            let knock = Knock::at(&path.join(LISTENERS).join(name));
            let is_heard = knock.is_heard();
            knock.cancel();
            is_heard
        });
        Ok((modified(&path.join(SEEN))?, is_listening))
    }
}

impl Backlog {
    pub(super) fn read(folder: Folder<BacklogRecord>) -> Result<Self, Error> {
        let record = folder.read()?;
        Ok(Self { folder, record })
    }

    /// Whose requests they are; `None` where that is damaged.
    #[must_use]
    pub fn server(&self) -> Option<&ServerName> {
        self.record.as_ref().map(|record| &record.server)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn pipe(&self, id: &RequestId) -> Pipe<'_> {
        Pipe::new(&self.folder, self.path(ANSWERS).join(id.as_str()))
    }

    // ---- the client

    /// Asks: from now on the request waits for a far end, and its client for the answer. `None` where `most` requests
    /// wait already.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn ask(&self, id: &RequestId, request: &[u8], most: u64) -> Result<Option<Question>, Error> {
        if self.count()? >= most {
            // Some of them may be those of killed clients.
            self.tidy()?;
            if self.count()? >= most {
                return Ok(None);
            }
        }
        let pipe = Emptied(self.path(ANSWERS).join(id.as_str()));
        let papers = Papers {
            waiting: self.path(WAITING).join(id.as_str()),
            given: self.path(GIVEN).join(id.as_str()),
            _pipe: pipe,
        };
        let Some(receiver) = self.pipe(id).receive()? else { return Ok(None) };
        let question = Question { receiver, papers };
        self.put(&question.papers, request)?;
        Ok(Some(question))
    }

    /// Asks again, after a far end has left without a word.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn ask_again(&self, id: &RequestId, request: &[u8], question: &mut Question) -> Result<(), Error> {
        self.pipe(id).receive_again(&mut question.receiver)?;
        remove_file(&question.papers.given)?;
        self.put(&question.papers, request)
    }

    fn put(&self, papers: &Papers, request: &[u8]) -> Result<(), Error> {
        let beside = self.path(BESIDE);
        let written = private_file(&beside).and_then(|file| {
            file.set_len(0)?;
            io::Write::write_all(&mut &file, request)?;
            std::fs::rename(&beside, &papers.waiting)
        });
        if written.is_err() {
            remove_file(&beside)?;
        }
        Ok(written?)
    }

    fn count(&self) -> Result<u64, Error> {
        Ok((names(&self.path(WAITING))?.len() + names(&self.path(GIVEN))?.len()) as u64)
    }

    /// Whether its client is there.
    fn is_awaited(&self, id: &str) -> bool {
        self.pipe_at(id).is_received()
    }

    fn pipe_at(&self, name: &str) -> Pipe<'_> {
        Pipe::new(&self.folder, self.path(ANSWERS).join(name))
    }

    // ---- the far end

    /// Notes that a far end is there.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn note_seen(&self) -> Result<(), Error> {
        Ok(private_file(&self.path(SEEN))?.set_modified(SystemTime::now())?)
    }

    /// Takes a place among the far ends that wait.
    ///
    /// # Errors
    /// When its file cannot be made.
    pub fn listen(&self) -> Result<Place, Error> {
        Place::make(&self.path(LISTENERS), &random_hex(8)?)
    }

    /// What wakes a far end when it is dropped, better behind the lock; `None` where nothing waits for one, or none is
    /// there.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn bell(&self) -> Result<Option<Knock>, Error> {
        if names(&self.path(WAITING))?.is_empty() { Ok(None) } else { self.bell_of_listener() }
    }

    /// The same where it is known that a request waits.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn bell_of_listener(&self) -> Result<Option<Knock>, Error> {
        for name in names(&self.path(LISTENERS))? {
            let knock = Knock::at_or_remove(&self.path(LISTENERS).join(name));
            if knock.is_heard() {
                return Ok(Some(knock));
            }
        }
        Ok(None)
    }

    /// Gives away the requests that have waited longest, up to `most`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn take(&self, most: usize) -> Result<Vec<(RequestId, Vec<u8>)>, Error> {
        let mut waiting = names(&self.path(WAITING))?;
        let mut taken = Vec::new();
        // There may be many, of which few are taken.
        while taken.len() < most
            && let Some(oldest) = (0..waiting.len()).min_by_key(|index| &waiting[*index])
        {
            let name = waiting.swap_remove(oldest);
            let (from, to) = (self.path(WAITING).join(&name), self.path(GIVEN).join(&name));
            let Some(id) = RequestId::parse(&name).filter(|_| self.is_awaited(&name)) else {
                remove_file(&from)?;
                continue;
            };
            // Its client may go at any moment, and takes it along.
            let given = std::fs::read(&from).and_then(|request| {
                std::fs::rename(&from, &to)?;
                File::open(&to)?.set_modified(SystemTime::now())?;
                Ok(request)
            });
            match given {
                Ok(request) => taken.push((id, request)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(taken)
    }

    /// Has a request wait again that was given to a far end. One whose answer has begun is left alone.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn give_back(&self, id: &RequestId) -> Result<(), Error> {
        match std::fs::rename(self.path(GIVEN).join(id.as_str()), self.path(WAITING).join(id.as_str())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Begins to answer a request; `None` where there is none, or its answer has begun.
    ///
    /// # Errors
    /// When its files cannot be made or removed.
    pub fn answer(&self, id: &RequestId) -> Result<Option<Answering>, Error> {
        let files = [WAITING, GIVEN].map(|name| self.path(name).join(id.as_str()));
        if identity_at(&files[0])?.is_none() && identity_at(&files[1])?.is_none() {
            return Ok(None);
        }
        let pipe = self.pipe(id);
        let emptied = Emptied(self.path(ANSWERS).join(id.as_str()));
        let Some(place) = pipe.wait_to_send(usize::MAX)? else { return Ok(None) };
        let sender = pipe.take_receiver()?;
        for file in &files {
            remove_file(file)?;
        }
        Ok(sender.map(|sender| Answering { sender, place, _pipe: emptied }))
    }

    // ---- the sweep

    /// Removes what killed processes have left behind.
    ///
    /// # Errors
    /// The first thing that cannot be removed; a later sweep tries again.
    pub fn tidy(&self) -> Result<(), Error> {
        remove_file(&self.path(BESIDE))?;
        for name in names(&self.path(LISTENERS))? {
            Knock::at_or_remove(&self.path(LISTENERS).join(name)).cancel();
        }
        for folder in [WAITING, GIVEN] {
            for name in names(&self.path(folder))? {
                if !self.is_awaited(&name) {
                    remove_file(&self.path(folder).join(name))?;
                }
            }
        }
        for name in names(&self.path(ANSWERS))? {
            let pipe = self.pipe_at(&name);
            if !pipe.is_in_use()? {
                pipe.remove()?;
            }
        }
        Ok(())
    }

    /// Removes everything of a server that is not registered any more. Whoever waits is woken, and finds it gone.
    ///
    /// # Errors
    /// The first thing that cannot be removed; a later sweep tries again.
    pub fn remove(self) -> Result<(), Error> {
        for name in names(&self.path(ANSWERS))? {
            self.pipe_at(&name).remove()?;
        }
        for folder in [LISTENERS, WAITING, GIVEN, ANSWERS] {
            for name in names(&self.path(folder))? {
                let path = self.path(folder).join(name);
                let knock = Knock::at(&path);
                remove_file(&path)?;
                drop(knock);
            }
            match std::fs::remove_dir(self.path(folder)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        for file in [SEEN, BESIDE] {
            remove_file(&self.path(file))?;
        }
        self.folder.remove()
    }
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
    use super::*;

    struct Scene {
        store: Store,
        _dir: TestDir,
    }

    impl Scene {
        fn new() -> Self {
            let dir = TestDir::new();
            Self { store: Store::new(&dir.join("data")), _dir: dir }
        }

        fn backlog(&self) -> Backlog {
            self.store.backlog_or_new(&ServerName::new("s").unwrap()).unwrap()
        }

        fn ask(&self, request: &[u8]) -> (RequestId, Question) {
            let id = RequestId::fresh().unwrap();
            let question = self.backlog().ask(&id, request, 10).unwrap().unwrap();
            (id, question)
        }

        /// What is given away now.
        fn take(&self) -> Vec<Vec<u8>> {
            self.backlog().take(10).unwrap().into_iter().map(|(_, request)| request).collect()
        }
    }

    #[test]
    fn a_request_is_given_once_and_answered_once() {
        let scene = Scene::new();
        let (id, mut question) = scene.ask(b"one");
        assert_eq!(question.papers.standing(Duration::ZERO).unwrap(), Standing::Waiting);
        let taken = scene.backlog().take(10).unwrap();
        assert_eq!(taken, [(id.clone(), b"one".to_vec())]);
        assert_eq!(scene.take(), [[0_u8; 1]; 0]);
        assert_eq!(question.papers.standing(Duration::from_secs(60)).unwrap(), Standing::Fine);
        assert_eq!(question.papers.standing(Duration::ZERO).unwrap(), Standing::Overdue);
        let answering = scene.backlog().answer(&id).unwrap().unwrap();
        assert!(scene.backlog().answer(&id).unwrap().is_none(), "twice");
        assert!(scene.backlog().answer(&RequestId::fresh().unwrap()).unwrap().is_none(), "nobody's");
        assert!(answering.sender.send_head(b"head"));
        assert_eq!(question.receiver.head().unwrap(), Came::Head(b"head".to_vec()));
        scene.backlog().give_back(&id).unwrap();
        assert_eq!(scene.take(), [[0_u8; 1]; 0], "its answer has begun");
        drop((question, answering));
        assert_eq!(names(&scene.backlog().path(ANSWERS)).unwrap(), [""; 0]);
    }

    #[test]
    fn the_oldest_come_first_and_what_is_given_back_is_given_again() {
        let scene = Scene::new();
        let asked: Vec<_> = (0..3_u8)
            .map(|number| {
                std::thread::sleep(Duration::from_millis(2));
                scene.ask(&[number])
            })
            .collect();
        assert_eq!(scene.backlog().take(2).unwrap().len(), 2);
        scene.backlog().give_back(&asked[1].0).unwrap();
        assert_eq!(scene.take(), [[1], [2]]);
    }

    #[test]
    fn a_request_goes_with_its_client_even_a_killed_one() {
        let scene = Scene::new();
        drop(scene.ask(b"gone"));
        let (id, question) = scene.ask(b"killed");
        // What a killed client leaves: its files, and a FIFO that nobody has open.
        let Question { receiver, papers } = question;
        let kept = std::fs::read(&papers.waiting).unwrap();
        drop(papers);
        drop(receiver);
        let backlog = scene.backlog();
        let path = backlog.path(WAITING).join(id.as_str());
        std::fs::write(&path, &kept).unwrap();
        assert_eq!(backlog.take(10).unwrap(), []);
        assert!(!path.exists());
        std::fs::write(backlog.path(GIVEN).join(id.as_str()), &kept).unwrap();
        assert!(backlog.answer(&id).unwrap().is_none());
        std::fs::write(backlog.path(GIVEN).join(id.as_str()), &kept).unwrap();
        backlog.tidy().unwrap();
        for name in [WAITING, GIVEN, ANSWERS, LISTENERS] {
            assert_eq!(names(&backlog.path(name)).unwrap(), [""; 0], "{name}");
        }
    }

    #[test]
    fn there_is_a_limit_to_requests_that_those_of_killed_clients_do_not_count_for() {
        let scene = Scene::new();
        let (one, two) = (scene.ask(b"1"), scene.ask(b"2"));
        let id = RequestId::fresh().unwrap();
        assert!(scene.backlog().ask(&id, b"3", 2).unwrap().is_none());
        std::fs::write(scene.backlog().path(WAITING).join(RequestId::fresh().unwrap().as_str()), "x").unwrap();
        drop(two);
        assert!(scene.backlog().ask(&id, b"3", 2).unwrap().is_some());
        drop(one);
    }

    #[test]
    fn a_far_end_that_waits_is_seen_and_woken() {
        let scene = Scene::new();
        let name = ServerName::new("s").unwrap();
        assert_eq!(scene.store.far_ends(&name).unwrap(), (None, false));
        let place = scene.backlog().listen().unwrap();
        scene.backlog().note_seen().unwrap();
        let (seen, is_listening) = scene.store.far_ends(&name).unwrap();
        assert!(seen.is_some() && is_listening);
        assert!(scene.backlog().bell().unwrap().is_none(), "nothing waits");
        let asked = scene.ask(b"x");
        assert!(scene.backlog().bell().unwrap().is_some());
        drop(place);
        assert!(scene.backlog().bell().unwrap().is_none(), "nobody is there");
        scene.backlog().remove().unwrap();
        assert!(scene.store.backlog(&name).unwrap().is_none() && asked.1.receiver.is_gone());
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
