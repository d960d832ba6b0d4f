//! The requests that wait for a server of PTTH, as their clients have them, and where everything of them is.
//!
//! A request is a file: in `waiting`, until a far end claims it, then in `given`, until its answer begins. Its client
//! waits as the [receiver](super::ends::Receiver) of a pipe whose receipt that file is: it stands after the numbers. So a
//! request whose client was killed is known by what that slept on, and whoever comes upon it removes it. The
//! client itself looks after its request: it is the one that wakes another far end, or has the request given back. How
//! often it has been claimed stands in the file too, before the request.
//!
//! None of this needs the lock. Each step is one `rename` or `unlink`, which the kernel does for one process only: a
//! request appears in `waiting` by the one, whole; it is claimed by whoever moves it to `given`, and is answered by whoever
//! removes it, and takes its other names away too once the client has the head: nothing on the disk belongs to an answer
//! that is under way. The lock is for making the folders and for removing them.

use super::ends::{Called, Incoming, Receiver};
use super::folder::Folder;
use super::node::MAKING_TIME;
use super::receipt::{RECEIPT_SIZE, ReceiverPaths};
use super::sleeper::Knocker;
use super::{Error, Files, Kind, identity_at, if_there, make_dir, modified, names, remove_dir, remove_file};
use crate::clock::{is_recent, now_ms};
use crate::ptth::ServerName;
use crate::store::requests::{MOST_CLAIMS, Patience, Progress, PtthServers, RequestId};
use crate::wake::Ready;
use crate::workers::at_disk;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What the far ends sleep on.
pub(super) const FAR_ENDS: &str = "far-ends";
pub(super) const WAITING: &str = "waiting";
pub(super) const GIVEN: &str = "given";
const CLIENTS: &str = "clients";
const ANSWERS: &str = "answers";
const FOLDERS: [&str; 4] = [WAITING, GIVEN, CLIENTS, ANSWERS];

/// What `session.json` says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ServerRecord {
    server: ServerName,
}

/// The requests of one server.
#[derive(Clone)]
pub(super) struct Requests {
    pub(super) files: Files,
    server: ServerName,
    path: PathBuf,
}

impl Files {
    /// The requests of a server, which is registered: so there is a limit to them.
    pub(super) fn requests(&self, server: &ServerName) -> Requests {
        let path = self.folder(Kind::Ptth, server.as_str());
        Requests { files: self.clone(), server: server.clone(), path }
    }

    pub fn ask(
        &self,
        server: &ServerName,
        id: &RequestId,
        request: &[u8],
        most: u64,
    ) -> Result<Option<PendingRequest>, Error> {
        self.requests(server).ask(0, id, request, most)
    }

    pub fn give_back(&self, server: &ServerName, ids: &[RequestId]) -> Result<(), Error> {
        let requests = self.requests(server);
        ids.iter().try_for_each(|id| requests.give_back(id))
    }
}

impl Requests {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The names of a request, which is in the folder `receipt`.
    pub(super) fn paths(&self, id: &str, receipt: &str) -> ReceiverPaths {
        paths_of(&self.path, id, receipt)
    }

    /// Makes the folders.
    fn make(&self) -> Result<(), Error> {
        let folder: Option<Folder<ServerRecord>> =
            self.files.open_or_make(Kind::Ptth, self.server.as_str(), u64::MAX)?;
        let folder = folder.ok_or(Error::Busy)?;
        // The record first: where there are folders, there is one.
        if folder.read()?.is_none() {
            folder.write(&ServerRecord { server: self.server.clone() })?;
        }
        for name in FOLDERS {
            make_dir(&folder.path().join(name))?;
        }
        Ok(())
    }

    /// Runs `make`, and where it finds no folder to make something in, makes the folders and runs it again. Also where a
    /// sweep has just taken what it made, before it was in use, for a leftover.
    pub(super) fn with_folders<T>(&self, make: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        for _ in 0..5 {
            match make() {
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::NotFound => self.make()?,
                other => return other,
            }
        }
        make()
    }

    /// Asks, after the request has been claimed so often under other ids.
    fn ask(&self, claims: u8, id: &RequestId, request: &[u8], most: u64) -> Result<Option<PendingRequest>, Error> {
        if self.count()? >= most {
            // Some of them may be those of killed clients.
            tidy(&self.files, &self.path)?;
            if self.count()? >= most {
                return Ok(None);
            }
        }
        let pending = self.with_folders(|| {
            let paths = self.paths(id.as_str(), GIVEN);
            let (waiting, given) = (self.path(WAITING).join(id.as_str()), paths.receipt.clone());
            let receiver = Receiver::make(&self.files, paths, &[&[claims], request].concat(), false)?;
            let file = RequestFile { file: File::open(&given)?, waiting, given, is_taken: false };
            std::fs::rename(&file.given, &file.waiting)?;
            let (requests, id) = (self.clone(), id.clone());
            Ok(PendingRequest { requests, id, receiver, file, last_look: Instant::now(), state: None })
        })?;
        self.wake_far_end();
        Ok(Some(pending))
    }

    /// Tells a far end, if one is there, that a request waits.
    pub(super) fn wake_far_end(&self) {
        match find_far_end(&self.files, &self.path(FAR_ENDS)) {
            Ok(Some(far_end)) => self.files.knock_at(&far_end),
            Ok(None) => {}
            // The client sees to it a moment later.
            Err(error) => error.log(),
        }
    }

    fn give_back(&self, id: &RequestId) -> Result<(), Error> {
        let given = self.path(GIVEN).join(id.as_str());
        let move_back = || -> io::Result<()> {
            if claims(&File::open(&given)?)? < MOST_CLAIMS {
                std::fs::rename(&given, self.path(WAITING).join(id.as_str()))?;
                self.wake_far_end();
            }
            Ok(())
        };
        Ok(if_there(move_back()).map(drop)?)
    }

    fn count(&self) -> Result<u64, Error> {
        Ok(names(&self.path(CLIENTS))?.len() as u64)
    }
}

/// A request, as its client has it until the answer begins. When it is dropped, nothing is left of it.
pub struct PendingRequest {
    requests: Requests,
    id: RequestId,
    /// Where the answer comes.
    receiver: Receiver,
    file: RequestFile,
    last_look: Instant,
    /// As of the last look: its state, and since when it is known to be so.
    state: Option<(State, Instant)>,
}

/// The state of a request that has no answer yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No far end has it.
    Waiting,
    /// A far end has it.
    Claimed,
    /// Its answer begins.
    Answered,
}

impl PendingRequest {
    /// What is ready when there is something to [look](Self::look) at.
    #[must_use]
    pub fn awaited(&self) -> [Option<Ready<'_>>; 2] {
        self.receiver.awaited()
    }

    /// To be called when [that](Self::awaited) was so, and no less often than [`Patience::look`]: looks for the
    /// answer. Now and then it looks after the request too: where nobody has it, a far end is woken again, and where one
    /// has had it for too long, it is given back.
    ///
    /// # Errors
    /// When what has come cannot be read, or the state of the request not be seen.
    pub async fn look(&mut self, patience: &Patience) -> Result<Progress, Error> {
        at_disk(|| self.look_now(patience)).await
    }

    fn look_now(&mut self, patience: &Patience) -> Result<Progress, Error> {
        let called = self.receiver.called()?;
        match self.receiver.head()? {
            Incoming::Head(head) => Ok(Progress::Begins(head)),
            Incoming::SenderLeft => self.broken_off(),
            // Whoever answers removes the request too, but does not call.
            Incoming::Nothing if called == Called::Away => Ok(Progress::ServerRemoved),
            // For an answer that comes to another process.
            Incoming::Nothing if called == Called::ByOthers => {
                self.receiver.admit_others()?;
                Ok(Progress::Waits)
            }
            Incoming::Nothing if self.last_look.elapsed() < patience.look => Ok(Progress::Waits),
            Incoming::Nothing => {
                self.last_look = Instant::now();
                self.look_after(patience)
            }
        }
    }

    /// Sees to it that a request that nobody has is claimed, and one that somebody keeps is given back.
    fn look_after(&mut self, patience: &Patience) -> Result<Progress, Error> {
        let state = self.state()?;
        let since = match self.state {
            Some((before, since)) if before == state => since,
            _ => Instant::now(),
        };
        self.state = Some((state, since));
        match state {
            State::Answered if since.elapsed() >= patience.head => return self.broken_off(),
            State::Claimed if since.elapsed() >= patience.claim => {}
            State::Answered | State::Claimed => return Ok(Progress::Waits),
            State::Waiting => {}
        }
        if !self.requests.files.ptth_servers()?.contains_key(&self.requests.server) {
            return Ok(Progress::ServerRemoved);
        }
        match state {
            State::Waiting => self.requests.wake_far_end(),
            // Where it cannot be claimed any more, its answer may still come.
            _ => self.requests.give_back(&self.id)?,
        }
        Ok(Progress::Waits)
    }

    fn state(&self) -> Result<State, Error> {
        Ok(if identity_at(&self.file.waiting)?.is_some() {
            State::Waiting
        } else if identity_at(&self.file.given)?.is_some() {
            State::Claimed
        } else {
            State::Answered
        })
    }

    fn broken_off(&self) -> Result<Progress, Error> {
        Ok(if claims(&self.file.file)? < MOST_CLAIMS { Progress::BrokenOff } else { Progress::GivenUp })
    }

    /// Whether somebody has begun to answer, and the head is on its way.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub async fn is_being_answered(&self) -> Result<bool, Error> {
        Ok(at_disk(|| self.state()).await? == State::Answered)
    }

    /// Asks once more, after the answer has broken off: nobody can claim what is left of this one. The far ends that have
    /// claimed it count. `None` where `most` wait already.
    ///
    /// # Errors
    /// As for [asking](crate::store::Store::ask).
    pub async fn ask_again(&self, id: &RequestId, request: &[u8], most: u64) -> Result<Option<Self>, Error> {
        at_disk(|| self.requests.ask(claims(&self.file.file)?, id, request, most)).await
    }

    /// To be called once the answer has begun: the way to its bytes.
    #[must_use]
    pub fn begin(mut self) -> Receiver {
        self.file.is_taken = true;
        self.receiver.forget_names();
        self.receiver
    }
}

/// The file of a request, wherever it is. It is removed with this, unless it has been taken.
struct RequestFile {
    waiting: PathBuf,
    given: PathBuf,
    file: File,
    /// Whether it has been taken away by whoever answers.
    is_taken: bool,
}

impl Drop for RequestFile {
    fn drop(&mut self) {
        if !self.is_taken {
            // In this order, which is that of a far end that claims it.
            for file in [&self.waiting, &self.given] {
                let _ = remove_file(file);
            }
        }
    }
}

/// The requests of one server, and nobody else makes their folder or removes it.
pub(super) struct LockedRequests {
    files: Files,
    folder: Folder<ServerRecord>,
    record: Option<ServerRecord>,
}

impl LockedRequests {
    pub(super) fn read(files: &Files, folder: Folder<ServerRecord>) -> Result<Self, Error> {
        let record = folder.read()?;
        Ok(Self { files: files.clone(), folder, record })
    }

    /// Whether a client or a far end waits. Removes what killed ones have left behind.
    fn is_in_use(&self) -> Result<bool, Error> {
        let path = self.folder.path();
        tidy(&self.files, path)?;
        Ok(find_far_end(&self.files, &path.join(FAR_ENDS))?.is_some() || !names(&path.join(CLIENTS))?.is_empty())
    }

    /// Removes what killed processes have left behind, and everything of a server that is not registered any more.
    ///
    /// # Errors
    /// When that cannot be seen or done; a later sweep tries again.
    pub(super) fn sweep(self, servers: &PtthServers) -> Result<(), Error> {
        let is_in_use = self.is_in_use()?;
        match &self.record {
            Some(record) if servers.contains_key(&record.server) => Ok(()),
            // Nobody can say whose it is. It is made anew once nobody uses it.
            None if is_in_use => Ok(()),
            _ => self.remove(),
        }
    }

    /// Removes everything of a server that is not registered any more. Whoever waits is woken, and finds it gone; an answer
    /// that has begun goes on.
    ///
    /// # Errors
    /// The first thing that cannot be removed; a later sweep tries again.
    pub(super) fn remove(self) -> Result<(), Error> {
        let path = self.folder.path();
        for folder in FOLDERS.into_iter().chain([FAR_ENDS]) {
            for name in names(&path.join(folder))? {
                let paths = paths_of(path, &name, folder);
                let sleeper = self.files.find_sleeper(&paths.receiver).ok().flatten();
                paths.remove()?;
                if let Some(sleeper) = sleeper {
                    self.files.knock_at(&sleeper);
                }
            }
            if !remove_dir(&path.join(folder))? {
                // Somebody has just come. It will see that the server is gone, and the next sweep that it has gone too.
                return Ok(());
            }
        }
        self.folder.remove()
    }
}

/// The names of a request; of a far end, in the folder of those, all that there is of it.
fn paths_of(requests: &Path, id: &str, receipt: &str) -> ReceiverPaths {
    let receiver = if receipt == FAR_ENDS { FAR_ENDS } else { CLIENTS };
    let [receiver, data, receipt] = [receiver, ANSWERS, receipt].map(|name| requests.join(name).join(id));
    ReceiverPaths { receiver, data, receipt }
}

/// Where it stands in the file how often a request has been claimed: after the receipt.
pub(super) fn claims_at() -> u64 {
    RECEIPT_SIZE as u64
}

/// How often it has been claimed.
fn claims(file: &File) -> io::Result<u8> {
    let mut claims = [0];
    file.read_exact_at(&mut claims, claims_at())?;
    Ok(claims[0])
}

/// One of the far ends that sleep in `folder`, not always the same.
///
/// # Errors
/// When it cannot be seen whether one does.
pub(super) fn find_far_end(files: &Files, folder: &Path) -> Result<Option<Knocker>, Error> {
    let names = names(folder)?;
    let start = usize::try_from(now_ms() % 1000).unwrap_or(0);
    for number in start..start + names.len() {
        let far_end = files.find_sleeper(&folder.join(&names[number % names.len()]))?;
        if far_end.is_some() {
            return Ok(far_end);
        }
    }
    Ok(None)
}

/// Removes what killed clients and far ends have left behind.
fn tidy(files: &Files, requests: &Path) -> Result<(), Error> {
    for folder in FOLDERS.into_iter().chain([FAR_ENDS]) {
        let path = requests.join(folder);
        for name in names(&path)? {
            let paths = paths_of(requests, &name, folder);
            if paths.are_received(files)? {
                continue;
            }
            if folder != FAR_ENDS {
                paths.remove()?;
            // Somebody may be making it.
            } else if !modified(&paths.receiver)?.is_some_and(|made| is_recent(made, MAKING_TIME)) {
                let seen = modified(&path)?;
                paths.remove()?;
                // It went long ago.
                seen.map(|seen| File::open(&path)?.set_modified(seen)).transpose()?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::test_dir::TestDir;
    use super::super::wake::make_fifo;
    use super::*;
    use crate::ptth::Tripcode;
    use crate::store::requests::PtthServer;
    use std::time::Duration;

    struct Scene {
        requests: Requests,
        _dir: TestDir,
    }

    impl Scene {
        fn new() -> Self {
            let dir = TestDir::new();
            let requests = Files::new(&dir.join("data")).requests(&ServerName::new("s").unwrap());
            requests.make().unwrap();
            Self { requests, _dir: dir }
        }

        fn ask(&self, most: u64) -> Result<Option<PendingRequest>, Error> {
            self.requests.ask(0, &RequestId::fresh().unwrap(), b"request", most)
        }

        fn is_empty(&self) -> bool {
            FOLDERS.iter().all(|name| names(&self.requests.path(name)).unwrap().is_empty())
        }

        /// What a killed client leaves, but for what it sleeps on.
        fn leave(&self, folder: &str) -> (RequestId, ReceiverPaths) {
            let id = RequestId::fresh().unwrap();
            let paths = self.requests.paths(id.as_str(), folder);
            make_fifo(&paths.data).unwrap();
            std::fs::write(&paths.receipt, b"1234567890request").unwrap();
            (id, paths)
        }
    }

    #[test]
    fn nothing_is_left_of_a_request_once_its_answer_begins() {
        let scene = Scene::new();
        let mut pending = scene.ask(1).unwrap().unwrap();
        let answer = scene.requests.answer(&pending.id).unwrap().unwrap();
        assert!(answer.sender.send_head(b"head", b""));
        let patience = Patience { look: Duration::MAX, claim: Duration::MAX, head: Duration::MAX };
        assert_eq!(pending.look_now(&patience).unwrap(), Progress::Begins(b"head".to_vec()));
        crate::gateway::run_blocking(answer.leftovers.remove());
        assert!(scene.is_empty());
        let receiver = pending.begin();
        assert!(receiver.awaited()[1].is_none() && scene.ask(1).unwrap().is_some(), "it counts no more");
        drop(answer.sender);
    }

    #[test]
    fn what_killed_clients_leave_is_given_to_nobody_counts_for_nothing_and_is_removed() {
        let scene = Scene::new();
        let leave = |folder| {
            let (id, paths) = scene.leave(folder);
            make_fifo(&paths.receiver).unwrap();
            id
        };
        leave(WAITING);
        assert!(scene.requests.listen().unwrap().claim_now(10).unwrap().is_empty() && scene.is_empty());
        let id = leave(GIVEN);
        assert!(scene.requests.answer(&id).unwrap().is_none());
        assert!(scene.ask(1).unwrap().is_some());
        assert!(scene.is_empty());
        leave(WAITING);
        let folder = scene.requests.files.open(Kind::Ptth, "s").unwrap().unwrap();
        let server = PtthServer { tripcode: Tripcode::of("key"), display_name: None, listed: false };
        let servers = [(ServerName::new("s").unwrap(), server)].into();
        LockedRequests::read(&scene.requests.files, folder).unwrap().sweep(&servers).unwrap();
        assert!(scene.is_empty() && scene.requests.path.exists());
    }

    #[test]
    fn what_a_killed_far_end_leaves_is_called_by_nobody_and_does_not_look_as_if_it_had_just_left() {
        let scene = Scene::new();
        let Scene { requests, .. } = &scene;
        drop(requests.listen().unwrap());
        let killed = requests.path(FAR_ENDS).join("killed");
        make_fifo(&killed).unwrap();
        let made_at = |seconds| {
            let at = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: at, last_modification: at };
            rustix::fs::utimensat(rustix::fs::CWD, &killed, &times, rustix::fs::AtFlags::empty()).unwrap();
        };
        let far_ends = || requests.files.far_ends(&requests.server).unwrap();
        let seen = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000);
        File::open(requests.path(FAR_ENDS)).unwrap().set_modified(seen).unwrap();
        let _pending = scene.ask(1).unwrap().unwrap();
        tidy(&requests.files, &requests.path).unwrap();
        assert!(killed.exists(), "somebody may be making it");
        made_at(2_000_000);
        assert!(!far_ends().is_listening);
        tidy(&requests.files, &requests.path).unwrap();
        assert!(!killed.exists());
        assert_eq!((far_ends().seen, far_ends().is_listening), (Some(seen), false));
        let living = requests.listen().unwrap();
        tidy(&requests.files, &requests.path).unwrap();
        assert!(far_ends().is_listening && far_ends().seen > Some(seen));
        drop(living);
    }

    #[test]
    fn who_cannot_be_seen_is_not_taken_for_gone() {
        let scene = Scene::new();
        let (_, paths) = scene.leave(WAITING);
        // A FIFO that can be opened as little as one for which there is no file descriptor.
        std::os::unix::fs::symlink(&paths.receiver, &paths.receiver).unwrap();
        tidy(&scene.requests.files, &scene.requests.path).unwrap_err();
        scene.requests.listen().unwrap().claim_now(10).unwrap_err();
        assert!(scene.ask(1).is_err());
        for kept in [&paths.receiver, &paths.data, &paths.receipt] {
            assert!(kept.symlink_metadata().is_ok(), "{} is gone", kept.display());
        }
        let far_ends = scene.requests.path(FAR_ENDS);
        let far_end = far_ends.join("unseen");
        std::os::unix::fs::symlink(&far_end, &far_end).unwrap();
        scene.requests.files.far_ends(&scene.requests.server).unwrap_err();
    }

    #[test]
    fn what_is_left_of_a_removed_server_goes_with_the_sweep_once_nobody_uses_it() {
        let scene = Scene::new();
        let far_end = scene.requests.listen().unwrap();
        let record = scene.requests.path("session.json");
        std::fs::write(&record, "damaged").unwrap();
        let sweep = || {
            let folder = Folder::try_open_or_make_record(&scene.requests.path, super::super::folder::Shape::Folder)
                .unwrap()
                .unwrap();
            LockedRequests::read(&scene.requests.files, folder).unwrap().sweep(&PtthServers::new()).unwrap();
            scene.requests.path.exists()
        };
        assert!(sweep(), "nobody can say whose it is, and somebody uses it");
        drop(far_end);
        assert!(!sweep());
    }
}
