//! Nodes: who listens, and how it is woken.
//!
//! A *node* is a process that listens: a stream under CGI, or a whole `serve`. For its life it holds the lock of `nodes/ID`,
//! and sleeps on the FIFO `nodes/ID.wake`. Whether a member is there is known by one try of its node's lock: exact after a
//! kill, because the kernel lets go of the lock, and one try for all members of a node. A [knock](Files::knock) is one
//! write into the FIFO that names whom it is for. Within `serve` no FIFO is needed: there each listener has a notifier, which
//! the task that reads the FIFO uses too.

use super::folder::{is_locked, try_lock};
use super::kept::{close_unused, keep_files};
use super::knock::{Cause, Knock, MESSAGE, SLEEPERS};
use super::log::recent::Recent;
use super::log::writer;
use super::members::{Cursor, Slot};
use super::near::Sleepers;
use super::wake::{NodeFifo, call, open_to_knock};
use super::{Error, FileIdentity, Files, identity, identity_at, if_there, make_dirs, names, private_file, remove_file};
use crate::clock::is_recent;
use crate::hex;
use crate::wake::{self, Bell, Ready};
use crate::workers::{beside, stream_at_disk};
use rustix::fd::{AsFd, OwnedFd};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// The folder of the nodes.
pub(super) const NODES: &str = "nodes";
const WAKE: &str = ".wake";
const NEW: &str = ".new";

/// What is being made for longer than this, its maker was killed.
pub(super) const MAKING_TIME: Duration = Duration::from_secs(60);

/// How often `serve` looks whether somebody has removed its node's files, and closes those that nobody has used since it
/// looked last.
const ROUND: Duration = Duration::from_secs(2);

/// How often it looks for knocks where nothing tells it of them.
const TICK: Duration = Duration::from_millis(20);

/// A FIFO that gives so much at once may have been full, and dropped knocks.
const MANY: usize = 60_000;

/// So many bytes are taken from it at once: whole messages, and more than a full one has.
const MOST: usize = 1260 * MESSAGE;

/// The name that knocks have for the topic whose record stands at `path`.
pub(super) fn topic_of(path: &Path) -> String {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned()
}

/// A node's files, which go with it.
pub(super) struct Node {
    id: String,
    folder: PathBuf,
    lock: File,
    identity: FileIdentity,
    /// `None` on a file system without FIFOs, or while there are no descriptors or no room left.
    wake: Option<Arc<NodeFifo>>,
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

    fn make_wake(folder: &Path, id: &str) -> Option<Arc<NodeFifo>> {
        NodeFifo::make(&folder.join(format!("{id}{WAKE}")), &folder.join(format!("{id}{WAKE}{NEW}"))).map(Arc::new)
    }

    /// Whether every knock is sure to be heard: not without a FIFO, nor on a file system that other machines write to.
    fn is_sure(&self) -> bool {
        self.wake.as_ref().is_some_and(|wake| wake.is_sure)
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
        if self.wake.as_ref().map_or(Ok(true), |wake| wake.fifo.is_lost(&place))? {
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

/// Where a listener of `serve` stands.
#[derive(Default)]
struct Seat {
    /// Its slot in the topic's table, once it has one; and whether what is for all others is not for it.
    slot: OnceLock<Slot>,
    is_apart: OnceLock<()>,
    bell: Bell,
    /// How far its listener is: written to the disk late, because others of this process see it here.
    cursor: Mutex<Cursor>,
}

/// Those of this process that listen to a topic.
#[derive(Default)]
struct Audience {
    seats: Vec<Arc<Seat>>,
    /// What was read last of each of its logs.
    recent: BTreeMap<PathBuf, Arc<Recent>>,
}

impl Audience {
    fn ring(&self, cause: Cause, is_meant: impl Fn(&Seat) -> bool) {
        self.forget_recent();
        self.seats.iter().filter(|seat| is_meant(seat)).for_each(|seat| seat.bell.ring(cause as u64));
    }

    /// What was read last may not be all any more.
    fn forget_recent(&self) {
        self.recent.values().for_each(|recent| recent.knock());
    }
}

/// The node of a process in which many listen.
struct SharedNode {
    id: String,
    /// Locked while somebody is at the disk.
    node: Mutex<Node>,
    /// As of the last look whether it [is](Node::is_sure): whoever asks waits for no disk.
    is_sure: AtomicBool,
    audiences: Mutex<BTreeMap<String, Audience>>,
    sleepers: Arc<Sleepers>,
}

/// Those of this process, by their data folder.
static SHARED: Mutex<BTreeMap<PathBuf, Arc<SharedNode>>> = Mutex::new(BTreeMap::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SharedNode {
    fn ring(&self, topic: &str, slot: Option<Slot>, cause: Cause) {
        if topic == SLEEPERS {
            self.sleepers.call(slot);
        } else if let Some(audience) = lock(&self.audiences).get(topic) {
            audience.ring(cause, |seat| match slot {
                Some(_) => seat.slot.get() == slot.as_ref(),
                None => seat.is_apart.get().is_none(),
            });
        }
    }

    fn forget_recent(&self, topic: &str) {
        if let Some(audience) = lock(&self.audiences).get(topic) {
            audience.forget_recent();
        }
    }

    fn ring_all(&self) {
        lock(&self.audiences).values().for_each(|audience| audience.ring(Cause::News, |_| true));
        self.sleepers.call(None);
    }

    /// Hands on what other processes knock for, as long as the shared node is there, and looks after its files.
    async fn listen(weak: Weak<Self>) {
        let mut messages = vec![0; MOST];
        let mut next_round = Instant::now() + ROUND;
        while let Some(wake) = weak.upgrade().map(|shared| lock(&shared.node).wake.clone()) {
            // Watched until it is another one. Without a FIFO there is nothing to hear, but it may be made later.
            let mut ready = wake.as_ref().map(|wake| Ready::to_read(wake.fifo.fd()));
            loop {
                wake::wait(&mut [&mut ready], next_round.saturating_duration_since(Instant::now())).await;
                let Some(shared) = weak.upgrade() else { return };
                let got = wake.as_ref().map_or(0, |wake| shared.hand_on(wake.fifo.fd(), &mut messages));
                // Also while knocks come all the time.
                if Instant::now() >= next_round {
                    next_round = Instant::now() + ROUND;
                    if stream_at_disk(|| shared.look_after_files()).await {
                        break;
                    }
                } else if got == 0 {
                    // It cannot be watched, and so it is looked at now and then.
                    wake::wait(&mut [], TICK).await;
                }
            }
        }
    }

    /// Whether some had to be made anew.
    fn look_after_files(&self) -> bool {
        close_unused();
        writer::close_unused();
        let mut node = lock(&self.node);
        let is_mended = node.mend().unwrap_or_else(|error| {
            error.log();
            false
        });
        self.is_sure.store(node.is_sure(), Ordering::Relaxed);
        drop(node);
        if is_mended {
            say!("uhst-relay: files of a running node were removed; they are made anew");
            self.ring_all();
        }
        is_mended
    }

    /// Hands on what is in the FIFO, and says how many bytes that was.
    fn hand_on(&self, fifo: impl AsFd, messages: &mut [u8]) -> usize {
        let got = rustix::io::read(fifo, &mut *messages).unwrap_or(0);
        if got > MANY {
            self.ring_all();
        } else {
            for (topic, slot, cause) in messages[..got].chunks(MESSAGE).filter_map(Knock::parse) {
                self.ring(topic, slot, cause);
            }
        }
        got
    }
}

/// As long as this lives, all that listen in this process are one node.
pub struct OneNode(PathBuf);

impl Drop for OneNode {
    fn drop(&mut self) {
        let shared = lock(&SHARED).remove(&self.0);
        // Its files go with it, which nobody has to wait for.
        drop(shared);
    }
}

/// How a listener is woken. As long as it lives, whoever listens by it is there.
pub(super) enum Wakeup {
    /// It is a node of its own.
    Own(Box<Node>),
    /// It is one of many.
    Shared(SharedListener),
}

/// A listener of `serve`.
pub(super) struct SharedListener {
    shared: Arc<SharedNode>,
    topic: String,
    seat: Arc<Seat>,
}

impl Wakeup {
    /// The node's id.
    pub fn node(&self) -> &str {
        match self {
            Self::Own(node) => &node.id,
            Self::Shared(listener) => &listener.shared.id,
        }
    }

    /// To be called once the listener has its slot, before anybody is told of it.
    pub fn stand_at(&self, slot: Slot) {
        if let Self::Shared(listener) = self {
            let _ = listener.seat.slot.set(slot);
        }
    }

    /// Has it woken by what is for it alone, and not by what is for all the others.
    pub fn stand_apart(&self) {
        let Self::Shared(listener) = self else { return };
        let _ = listener.seat.is_apart.set(());
    }

    /// Tells the others of this process how far the listener is. False where there are none: then it has to be written.
    pub fn note(&self, cursor: Cursor) -> bool {
        match self {
            Self::Own(_) => false,
            Self::Shared(listener) => {
                *lock(&listener.seat.cursor) = cursor;
                true
            }
        }
    }

    /// What is ready when somebody knocks.
    pub fn wake(&self) -> Option<Ready<'_>> {
        match self {
            Self::Own(node) => node.wake.as_ref().map(|wake| Ready::to_read(wake.fifo.fd())),
            Self::Shared(listener) => Some(Ready::to_hear(&listener.seat.bell)),
        }
    }

    /// What all that listen to the topic in this process read together of the log at `path`, which is one of the topic's.
    pub fn recent(&self, path: &Path) -> Option<Arc<Recent>> {
        let Self::Shared(listener) = self else { return None };
        let mut audiences = lock(&listener.shared.audiences);
        let recent = &mut audiences.get_mut(&listener.topic)?.recent;
        Some(Arc::clone(recent.entry(path.to_owned()).or_default()))
    }

    /// Takes the knocks, and says whether one of them was a takeover. Whoever comes without one looks by itself, and sees what
    /// nobody has knocked for, too.
    pub fn hear(&self) -> Cause {
        match self {
            Self::Shared(listener) => match listener.seat.bell.hear() {
                0 => {
                    listener.shared.forget_recent(&listener.topic);
                    Cause::News
                }
                rings if rings >= Cause::Takeover as u64 => Cause::Takeover,
                _ => Cause::News,
            },
            Self::Own(node) => match &node.wake {
                Some(wake) if wake.fifo.hear() => Cause::Takeover,
                _ => Cause::News,
            },
        }
    }

    /// Whether every knock is sure to be heard.
    pub fn is_sure(&self) -> bool {
        match self {
            Self::Own(node) => node.is_sure(),
            Self::Shared(listener) => listener.shared.is_sure.load(Ordering::Relaxed),
        }
    }

    /// Makes the node's files anew where somebody has removed them. Whether something was made, and so a knock may have
    /// been missed.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn mend(&mut self) -> Result<bool, Error> {
        match self {
            Self::Own(node) => node.mend(),
            // Whoever reads the FIFO does it.
            Self::Shared(_) => Ok(false),
        }
    }
}

impl Drop for SharedListener {
    fn drop(&mut self) {
        let mut audiences = lock(&self.shared.audiences);
        if let Some(Audience { seats, .. }) = audiences.get_mut(&self.topic) {
            seats.retain(|seat| !Arc::ptr_eq(seat, &self.seat));
            if seats.is_empty() {
                audiences.remove(&self.topic);
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
        if self.way.is_none() && !self.files.is_own_node(node) {
            self.way = open_to_knock(&self.files.wake_of(node))?.map(|way| (node.to_owned(), way));
        }
        let is_alive = self.way.as_ref().is_some_and(|(way_to, _)| way_to == node) || self.files.node_is_alive(node)?;
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
        self.shared().is_some_and(|shared| shared.id == node)
    }

    fn nodes(&self) -> PathBuf {
        self.root.join(NODES)
    }

    /// Makes this process one node, in which somebody hands on what others knock for.
    ///
    /// # Errors
    /// When the node's files cannot be made, or where there is no runtime, a thread.
    pub fn listen_as_one(&self) -> Result<OneNode, Error> {
        let node = Node::make(&self.nodes())?;
        let shared = Arc::new(SharedNode {
            id: node.id.clone(),
            is_sure: AtomicBool::new(node.is_sure()),
            node: Mutex::new(node),
            audiences: Mutex::default(),
            sleepers: Arc::default(),
        });
        let weak = Arc::downgrade(&shared);
        lock(&SHARED).insert(self.root.clone(), shared);
        keep_files();
        beside("knocks", SharedNode::listen(weak))?;
        Ok(OneNode(self.root.clone()))
    }

    fn shared(&self) -> Option<Arc<SharedNode>> {
        // A program for one request has none of the code for many.
        cfg!(feature = "serve").then(|| lock(&SHARED).get(&self.root).cloned())?
    }

    /// Makes what wakes a listener of a topic.
    pub(super) fn wakeup(&self, topic: &str) -> Result<Wakeup, Error> {
        Ok(match self.shared() {
            Some(shared) => {
                let seat = Arc::<Seat>::default();
                lock(&shared.audiences).entry(topic.to_owned()).or_default().seats.push(Arc::clone(&seat));
                Wakeup::Shared(SharedListener { shared, topic: topic.to_owned(), seat })
            }
            None => Wakeup::Own(Box::new(Node::make(&self.nodes())?)),
        })
    }

    /// Wakes whom it is for, and tells whether the node hears it. Whoever cannot be woken looks by itself within seconds.
    pub(super) fn knock(&self, knock: &Knock) -> bool {
        match self.shared() {
            Some(shared) if shared.id == knock.node => {
                shared.ring(&knock.topic, knock.slot, knock.cause);
                true
            }
            _ => call(&self.wake_of(&knock.node), knock.message().as_bytes()),
        }
    }

    /// Hands what was written at the end of a log, after the id `start`, to those of this process that listen to it.
    pub(super) fn written(&self, log: &Path, start: u64, bytes: Vec<u8>) {
        let Some(shared) = self.shared() else { return };
        let name = topic_of(log);
        let audiences = lock(&shared.audiences);
        let audience = audiences.get(name.split('.').next().unwrap_or_default());
        if let Some(recent) = audience.and_then(|audience| audience.recent.get(log)) {
            recent.keep_written(start, bytes);
        }
    }

    /// How far those of a topic are that listen in this process, and its node; `None` where that is not one for many.
    pub(super) fn cursors(&self, topic: &str) -> Option<(String, BTreeMap<Slot, Cursor>)> {
        let shared = self.shared()?;
        let audiences = lock(&shared.audiences);
        let those = audiences.get(topic).into_iter().flat_map(|audience| &audience.seats);
        let cursors = those.filter_map(|seat| Some((*seat.slot.get()?, *lock(&seat.cursor))));
        // Of two that stand in one slot the later one counts.
        let all = cursors.fold(BTreeMap::new(), |mut all, (slot, cursor)| {
            let known = all.entry(slot).or_default();
            *known = cursor.max(*known);
            all
        });
        Some((shared.id.clone(), all))
    }

    /// To look which nodes are there.
    pub(super) fn alive(&self) -> Alive<'_> {
        Alive { files: self, seen: BTreeMap::new(), way: None }
    }

    /// Those who sleep in this process, if that is one node, whose id comes first.
    pub(super) fn sleepers(&self) -> Option<(String, Arc<Sleepers>)> {
        self.shared().map(|shared| (shared.id.clone(), Arc::clone(&shared.sleepers)))
    }

    pub(super) fn node_is_alive(&self, node: &str) -> Result<bool, Error> {
        if self.is_own_node(node) {
            return Ok(true);
        }
        Ok(match if_there(File::open(self.nodes().join(node)))? {
            Some(file) => is_locked(&file)?,
            None => false,
        })
    }

    /// Removes what killed nodes have left, of those whose id begins with these digits.
    pub(super) fn sweep_nodes(&self, shard: u8) -> Result<(), Error> {
        let folder = self.nodes();
        let begin = hex::encode(&[shard]);
        for name in names(&folder)?.iter().filter(|name| name.starts_with(&begin)) {
            let (id, end) = name.split_once('.').unwrap_or((name, ""));
            let path = folder.join(name);
            if end.is_empty() {
                let opened = OpenOptions::new().read(true).write(true).open(&path);
                let Some(file) = if_there(opened)? else { continue };
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
