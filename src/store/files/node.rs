//! Nodes: who listens, and how it is woken.
//!
//! A *node* is a process that listens: a stream under CGI, or a whole `serve`. For its life it holds the lock of `nodes/ID`,
//! and sleeps on the FIFO `nodes/ID.wake`. Whether a member is there is known by one try of its node's lock: exact after a
//! kill, because the kernel lets go of the lock, and one try for all members of a node. A [knock](Files::knock) is one
//! write into the FIFO that names whom it is for. Within `serve` no FIFO is needed: there each listener has a bell, which
//! the thread that reads the FIFO rings too.

use super::folder::{is_locked, try_lock};
use super::members::{Progress, Slot};
use super::wake::{Wake, call, open_to_knock};
use super::{Error, FileIdentity, Files, identity, identity_at, make_dirs, names, private_file, remove_file};
use crate::clock::is_recent;
use crate::hex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// The folder of the nodes.
pub(super) const NODES: &str = "nodes";
const WAKE: &str = ".wake";
const NEW: &str = ".new";

/// What is being made for longer than this, its maker was killed.
const MAKING_TIME: Duration = Duration::from_secs(60);

/// How often `serve` looks whether somebody has removed its node's files.
const ROUND: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// Why somebody is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// There is something new in the log.
    News,
    /// Another stream has taken the member's place.
    Takeover,
}

/// Whom a knock is for: the listeners of a topic, or the one of them that stands in a slot of its table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Knock {
    /// The node on which it listens.
    pub node: String,
    /// The name of the topic's files.
    pub topic: String,
    /// `None` for all of them.
    pub slot: Option<Slot>,
    /// Why.
    pub cause: Cause,
}

/// The bytes of a topic's name, and of a whole knock in a FIFO.
const TOPIC: usize = 40;
const SLOT: usize = 10;
const MESSAGE: usize = 1 + TOPIC + SLOT + 1;
/// A FIFO that gives so much at once may have been full, and dropped knocks.
const MANY: usize = 60_000;

/// The name that knocks have for the topic whose record stands at `path`.
pub(super) fn topic_of(path: &Path) -> String {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned()
}

impl Knock {
    /// For all listeners of a topic, who are on these nodes: one a node.
    pub fn all<'n>(topic: &str, nodes: impl Iterator<Item = &'n str>) -> impl Iterator<Item = Self> {
        let nodes: BTreeSet<&str> = nodes.collect();
        nodes.into_iter().map(|node| Self {
            node: node.to_owned(),
            topic: topic.to_owned(),
            slot: None,
            cause: Cause::News,
        })
    }

    fn message(&self) -> String {
        let cause = match self.cause {
            Cause::News => '!',
            Cause::Takeover => '>',
        };
        let slot = self.slot.map_or_else(|| "*".repeat(SLOT), |slot| format!("{slot:0SLOT$}"));
        format!("{cause}{}{slot}\n", self.topic)
    }

    /// The topic, the slot and the cause that a message names.
    fn parse(message: &[u8]) -> Option<(&str, Option<Slot>, Cause)> {
        let text = std::str::from_utf8(message).ok()?.strip_suffix('\n')?;
        let cause = if text.starts_with('>') { Cause::Takeover } else { Cause::News };
        let (topic, slot) = text.get(1..)?.split_at_checked(TOPIC)?;
        Some((topic, slot.parse().ok(), cause))
    }
}

/// A node's files, which go with it.
pub(super) struct Node {
    id: String,
    folder: PathBuf,
    lock: File,
    identity: FileIdentity,
    /// `None` on a file system without FIFOs, or while there are no descriptors or no room left.
    wake: Option<Wake>,
}

impl Node {
    fn make(folder: &Path) -> Result<Self, Error> {
        let id = hex::random(8)?;
        let (lock, identity) = Self::take(folder, &id)?;
        let wake = Self::make_wake(folder, &id);
        Ok(Self { id, folder: folder.to_owned(), lock, identity, wake })
    }

    /// Locked before it has its name: nobody finds a node that is not there.
    fn take(folder: &Path, id: &str) -> Result<(File, FileIdentity), Error> {
        let (place, new) = (folder.join(id), folder.join(format!("{id}{NEW}")));
        loop {
            let made = private_file(&new).and_then(|file| {
                try_lock(&file)?;
                std::fs::rename(&new, &place)?;
                Ok(file)
            });
            match made {
                // There is no folder yet, or somebody is emptying it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => make_dirs(folder)?,
                Err(error) => return Err(error.into()),
                Ok(file) => {
                    let identity = identity(&file.metadata()?);
                    return Ok((file, identity));
                }
            }
        }
    }

    fn make_wake(folder: &Path, id: &str) -> Option<Wake> {
        Wake::make(&folder.join(format!("{id}{WAKE}")), &folder.join(format!("{id}{WAKE}{NEW}")))
    }

    /// Makes its files anew where somebody has removed them, and the FIFO where it could not be made before. Whether
    /// something was made.
    fn mend(&mut self) -> Result<bool, Error> {
        let mut is_mended = false;
        if identity_at(&self.folder.join(&self.id))? != Some(self.identity) {
            (self.lock, self.identity) = Self::take(&self.folder, &self.id)?;
            is_mended = true;
        }
        let place = self.folder.join(format!("{}{WAKE}", self.id));
        if self.wake.as_ref().map_or(Ok(true), |wake| wake.is_lost(&place))? {
            self.wake = Self::make_wake(&self.folder, &self.id);
            is_mended |= self.wake.is_some();
        }
        Ok(is_mended)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // While it is locked, so that nobody else does.
        let _ = remove_node(&self.folder, &self.id);
    }
}

fn remove_node(folder: &Path, id: &str) -> io::Result<()> {
    for end in [WAKE, ""] {
        remove_file(&folder.join(format!("{id}{end}")))?;
    }
    Ok(())
}

/// What wakes a listener of `serve`: a counter that becomes readable when it is not zero.
struct Bell {
    counter: OwnedFd,
    /// How far its listener is: written to the disk late, because others of this process see it here.
    progress: Mutex<Progress>,
}

impl Bell {
    /// What a takeover adds; news add 1. Nobody rings so often without being heard that one becomes the other.
    const TAKEOVER: u64 = 1 << 32;

    fn make() -> Result<Self, Error> {
        let counter = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { counter, progress: Mutex::default() })
    }

    fn ring(&self, cause: Cause) {
        let add = match cause {
            Cause::News => 1,
            Cause::Takeover => Self::TAKEOVER,
        };
        let _ = rustix::io::write(&self.counter, &add.to_ne_bytes());
    }

    fn hear(&self) -> Cause {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.counter, &mut count);
        if u64::from_ne_bytes(count) >= Self::TAKEOVER { Cause::Takeover } else { Cause::News }
    }
}

type Bells = BTreeMap<String, Vec<(Slot, Weak<Bell>)>>;

/// The node of a process in which many listen.
struct Hall {
    id: String,
    node: Mutex<Node>,
    bells: Mutex<Bells>,
}

/// Those of this process, by their data folder.
static HALLS: Mutex<BTreeMap<PathBuf, Arc<Hall>>> = Mutex::new(BTreeMap::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hall {
    fn ring(&self, topic: &str, slot: Option<Slot>, cause: Cause) {
        let bells = lock(&self.bells);
        for (_, bell) in bells.get(topic).into_iter().flatten().filter(|(own, _)| slot.is_none_or(|slot| slot == *own))
        {
            if let Some(bell) = bell.upgrade() {
                bell.ring(cause);
            }
        }
    }

    fn ring_all(&self) {
        let bells = lock(&self.bells);
        bells.values().flatten().filter_map(|(_, bell)| bell.upgrade()).for_each(|bell| bell.ring(Cause::News));
    }

    /// Hands on what other processes knock for, as long as the hall is open.
    fn listen(weak: &Weak<Self>) {
        while let Some(hall) = weak.upgrade() {
            let fifo = lock(&hall.node).wake.as_ref().and_then(|wake| wake.fd().try_clone_to_owned().ok());
            drop(hall);
            // Without a FIFO there is nothing to hear, but it may be made later.
            let mut fds: Vec<_> = fifo.iter().map(|fifo| PollFd::new(fifo, PollFlags::IN)).collect();
            let is_woken = poll(&mut fds, Some(&ROUND)) == Ok(1);
            let Some(hall) = weak.upgrade() else { return };
            if let Some(fifo) = fifo.filter(|_| is_woken) {
                hall.hand_on(&fifo);
                continue;
            }
            match lock(&hall.node).mend() {
                Ok(false) => {}
                Ok(true) => {
                    say!("uhst-relay: files of a running node were removed; they are made anew");
                    hall.ring_all();
                }
                Err(error) => error.log(),
            }
        }
    }

    fn hand_on(&self, fifo: &OwnedFd) {
        let mut messages = vec![0; 64 * 1024];
        let got = rustix::io::read(fifo, &mut messages[..]).unwrap_or(0);
        if got > MANY {
            return self.ring_all();
        }
        for (topic, slot, cause) in messages[..got].chunks(MESSAGE).filter_map(Knock::parse) {
            self.ring(topic, slot, cause);
        }
    }
}

/// As long as this lives, all that listen in this process are one node.
pub struct OneNode(PathBuf);

impl Drop for OneNode {
    fn drop(&mut self) {
        let hall = lock(&HALLS).remove(&self.0);
        // Its files go with it, which nobody has to wait for.
        drop(hall);
    }
}

/// How a listener is woken. As long as it lives, whoever listens by it is there.
pub(super) enum Wakeup {
    /// It is a node of its own.
    Alone(Box<Node>),
    /// It is one of many.
    Among(Among),
}

/// A listener of `serve`.
pub(super) struct Among {
    hall: Arc<Hall>,
    topic: String,
    bell: Arc<Bell>,
}

impl Wakeup {
    /// The node's id.
    pub fn node(&self) -> &str {
        match self {
            Self::Alone(node) => &node.id,
            Self::Among(among) => &among.hall.id,
        }
    }

    /// To be called once the listener has its slot, before anybody is told of it.
    pub fn stand_at(&self, slot: Slot) {
        if let Self::Among(Among { hall, topic, bell }) = self {
            let mut bells = lock(&hall.bells);
            bells.entry(topic.clone()).or_default().push((slot, Arc::downgrade(bell)));
        }
    }

    /// Tells the others of this process how far the listener is. False where there are none: then it has to be written.
    pub fn note(&self, progress: Progress) -> bool {
        match self {
            Self::Alone(_) => false,
            Self::Among(among) => {
                *lock(&among.bell.progress) = progress;
                true
            }
        }
    }

    /// What becomes readable when somebody knocks.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Alone(node) => node.wake.as_ref().map(|wake| wake.fd()),
            Self::Among(among) => Some(among.bell.counter.as_fd()),
        }
    }

    /// Takes the knocks, and says whether one of them was a takeover.
    pub fn hear(&self) -> Cause {
        match self {
            Self::Among(among) => among.bell.hear(),
            Self::Alone(node) => match &node.wake {
                Some(wake) if wake.hear() => Cause::Takeover,
                _ => Cause::News,
            },
        }
    }

    /// Whether every knock is sure to be heard: not without a FIFO, nor on a file system that other machines write to.
    pub fn is_sure(&self) -> bool {
        match self {
            Self::Alone(node) => node.wake.as_ref().is_some_and(Wake::is_sure),
            Self::Among(among) => lock(&among.hall.node).wake.as_ref().is_some_and(Wake::is_sure),
        }
    }

    /// Makes the node's files anew where somebody has removed them. Whether something was made, and so a knock may have
    /// been missed.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn mend(&mut self) -> Result<bool, Error> {
        match self {
            Self::Alone(node) => node.mend(),
            // The thread that reads the FIFO does it.
            Self::Among(_) => Ok(false),
        }
    }
}

impl Drop for Among {
    fn drop(&mut self) {
        let mut bells = lock(&self.hall.bells);
        if let Some(those) = bells.get_mut(&self.topic) {
            those.retain(|(_, bell)| !std::ptr::eq(bell.as_ptr(), Arc::as_ptr(&self.bell)));
            if those.is_empty() {
                bells.remove(&self.topic);
            }
        }
    }
}

/// Which nodes are there: each is looked for once.
pub(super) struct Alive<'a> {
    files: &'a Files,
    seen: BTreeMap<String, bool>,
    /// The way to the first of them: whoever looks for one nearly always knocks at it next.
    way: Option<(String, OwnedFd)>,
}

impl Alive<'_> {
    /// Whether the node is there.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn is(&mut self, node: &str) -> Result<bool, Error> {
        if let Some(is_alive) = self.seen.get(node) {
            return Ok(*is_alive);
        }
        // A FIFO that somebody has open is as good as the lock: it is only ever the node's own.
        if self.way.is_none()
            && !self.files.is_own_node(node)
            && let Some(way) = open_to_knock(&self.files.wake_of(node))?
        {
            self.way = Some((node.to_owned(), way));
            self.seen.insert(node.to_owned(), true);
            return Ok(true);
        }
        let is_alive = self.files.node_is_alive(node)?;
        self.seen.insert(node.to_owned(), is_alive);
        Ok(is_alive)
    }

    /// As [`Files::knock`].
    pub fn knock(&self, knock: &Knock) {
        match &self.way {
            Some((node, way)) if *node == knock.node => _ = rustix::io::write(way, knock.message().as_bytes()),
            _ => _ = self.files.knock(knock),
        }
    }
}

impl Files {
    fn wake_of(&self, node: &str) -> PathBuf {
        self.nodes().join(format!("{node}{WAKE}"))
    }

    fn is_own_node(&self, node: &str) -> bool {
        self.hall().is_some_and(|hall| hall.id == node)
    }

    fn nodes(&self) -> PathBuf {
        self.root.join(NODES)
    }

    /// Makes this process one node, with a thread that hands on what others knock for.
    ///
    /// # Errors
    /// When the node's files cannot be made.
    pub fn one_node(&self) -> Result<OneNode, Error> {
        let node = Node::make(&self.nodes())?;
        let hall = Arc::new(Hall { id: node.id.clone(), node: Mutex::new(node), bells: Mutex::default() });
        let weak = Arc::downgrade(&hall);
        lock(&HALLS).insert(self.root.clone(), hall);
        std::thread::Builder::new().name("knocks".to_owned()).spawn(move || Hall::listen(&weak))?;
        Ok(OneNode(self.root.clone()))
    }

    fn hall(&self) -> Option<Arc<Hall>> {
        lock(&HALLS).get(&self.root).cloned()
    }

    /// Makes what wakes a listener of a topic.
    pub(super) fn wakeup(&self, topic: &str) -> Result<Wakeup, Error> {
        Ok(match self.hall() {
            Some(hall) => Wakeup::Among(Among { hall, topic: topic.to_owned(), bell: Arc::new(Bell::make()?) }),
            None => Wakeup::Alone(Box::new(Node::make(&self.nodes())?)),
        })
    }

    /// Wakes whom it is for, and tells whether the node hears it. Whoever cannot be woken looks by itself within seconds.
    pub(super) fn knock(&self, knock: &Knock) -> bool {
        match self.hall() {
            Some(hall) if hall.id == knock.node => {
                hall.ring(&knock.topic, knock.slot, knock.cause);
                true
            }
            _ => call(&self.wake_of(&knock.node), knock.message().as_bytes()),
        }
    }

    /// How far those of a topic are that listen in this process, and its node; `None` where that is not one for many.
    pub(super) fn progress(&self, topic: &str) -> Option<(String, BTreeMap<Slot, Progress>)> {
        let hall = self.hall()?;
        let bells = lock(&hall.bells);
        let those = bells.get(topic).into_iter().flatten();
        let progress = those.filter_map(|(slot, bell)| Some((*slot, *lock(&bell.upgrade()?.progress))));
        // Of two that stand in one slot the later one counts.
        let all = progress.fold(BTreeMap::new(), |mut all, (slot, progress): (Slot, Progress)| {
            let known: &mut Progress = all.entry(slot).or_default();
            if progress.stream >= known.stream {
                *known = progress;
            }
            all
        });
        Some((hall.id.clone(), all))
    }

    /// To look which nodes are there.
    pub(super) fn alive(&self) -> Alive<'_> {
        Alive { files: self, seen: BTreeMap::new(), way: None }
    }

    fn node_is_alive(&self, node: &str) -> Result<bool, Error> {
        if self.is_own_node(node) {
            return Ok(true);
        }
        match File::open(self.nodes().join(node)) {
            Ok(file) => Ok(is_locked(&file)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes what killed nodes have left, of those whose id begins with these digits.
    pub(super) fn sweep_nodes(&self, shard: u8) -> Result<(), Error> {
        let folder = self.nodes();
        let begin = hex::encode(&[shard]);
        for name in names(&folder)?.iter().filter(|name| name.starts_with(&begin)) {
            let (id, end) = name.split_once('.').unwrap_or((name, ""));
            let path = folder.join(name);
            if end.is_empty() {
                let file = match OpenOptions::new().read(true).write(true).open(&path) {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error.into()),
                };
                // Locked by us from here on, so nobody takes it for a node, and no other is named so.
                if try_lock(&file)? && identity_at(&path)? == Some(identity(&file.metadata()?)) {
                    // It may have been killed while it made its FIFO.
                    remove_file(&folder.join(format!("{id}{WAKE}{NEW}")))?;
                    remove_node(&folder, id)?;
                }
            } else if !folder.join(id).exists()
                && std::fs::symlink_metadata(&path)
                    .and_then(|file| file.modified())
                    .is_ok_and(|made| !is_recent(made, MAKING_TIME))
            {
                remove_file(&path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
