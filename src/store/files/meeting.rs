//! Where the receiver and the senders of a pipe meet, while its session is locked.
//!
//! ```text
//! receiver        what the receiver sleeps on: whether there is one
//! data taken      while no sender has taken it: what the bytes of another process come through, and their receipt
//! sender-NUMBER   what a sender sleeps on
//! ```
//!
//! All of this is under the lock because the names are used again.

use super::ends::{Receiver, Sender, Taking};
use super::folder::Folder;
use super::receipt::ReceiverPaths;
use super::sleeper::{Knocker, Sleeper};
use super::{Error, Files, if_there, make_dir, names, remove_file};
use crate::hex;
use std::path::PathBuf;

const RECEIVER: &str = "receiver";
const DATA: &str = "data";
const TAKEN: &str = "taken";
/// What begins the names of what the senders sleep on.
const SENDER: &str = "sender-";

/// A pipe's meeting place, while its session is locked.
pub(super) struct Meeting<'lock> {
    path: PathBuf,
    files: &'lock Files,
}

impl Meeting<'_> {
    /// The one in the folder `name` of a session.
    pub fn new<'lock, R>(files: &'lock Files, session: &'lock Folder<R>, name: &str) -> Meeting<'lock> {
        Meeting { path: session.path().join(name), files }
    }

    fn paths(&self) -> ReceiverPaths {
        ReceiverPaths { receiver: self.path.join(RECEIVER), data: self.path.join(DATA), receipt: self.path.join(TAKEN) }
    }

    /// Becomes the receiver; `None` where there is one. Senders that wait are woken.
    ///
    /// # Errors
    /// When its files cannot be made, or it cannot be seen who is there.
    pub fn receive(&self) -> Result<Option<Receiver>, Error> {
        let paths = self.paths();
        if paths.are_received(self.files)? {
            return Ok(None);
        }
        make_dir(&self.path)?;
        let senders = self.senders()?;
        let receiver = Receiver::make(self.files, paths, b"", senders.iter().any(Knocker::is_elsewhere))?;
        self.wake(&senders);
        Ok(Some(receiver))
    }

    /// Makes `receiver` ready for another sender, after one has left without a word.
    ///
    /// # Errors
    /// When its files cannot be made.
    pub fn receive_again(&self, receiver: &mut Receiver) -> Result<(), Error> {
        receiver.renew()?;
        self.wake(&self.senders()?);
        Ok(())
    }

    /// Makes `receiver`, which has been called, ready for senders of other processes, if one waits.
    ///
    /// # Errors
    /// As for [receiving](Self::receive).
    pub fn receive_from_others(&self, receiver: &mut Receiver) -> Result<(), Error> {
        let senders = self.senders()?;
        if senders.iter().any(Knocker::is_elsewhere) {
            receiver.admit_others()?;
            self.wake(&senders);
        }
        Ok(())
    }

    fn wake(&self, sleepers: &[Knocker]) {
        for sleeper in sleepers {
            self.files.knock_at(sleeper);
        }
    }

    /// Becomes one of the senders; `None` where there are `most`.
    ///
    /// # Errors
    /// When its file cannot be made, or it cannot be seen who is there.
    pub fn wait_to_send(&self, most: usize) -> Result<Option<Sleeper>, Error> {
        make_dir(&self.path)?;
        if self.senders()?.len() >= most {
            return Ok(None);
        }
        Sleeper::make(self.files, self.path.join(format!("{SENDER}{}", hex::random(8)?))).map(Some)
    }

    /// The ways to the senders that are there. What killed ones have left is removed.
    fn senders(&self) -> Result<Vec<Knocker>, Error> {
        let mut senders = Vec::new();
        for name in names(&self.path)?.iter().filter(|name| name.starts_with(SENDER)) {
            let path = self.path.join(name);
            match self.files.find_sleeper(&path)? {
                Some(sender) => senders.push(sender),
                // Whoever is faster has removed the same thing: its name is never used again.
                None => _ = remove_file(&path),
            }
        }
        Ok(senders)
    }

    /// Takes the receiver that waits; `None` where none does, or not yet for senders of this process: they are woken then.
    ///
    /// # Errors
    /// When its files cannot be opened or their names not removed.
    pub fn take_receiver(&self) -> Result<Option<Sender>, Error> {
        let paths = self.paths();
        let Taking::Taken(sender) = Sender::take(self.files, &paths)? else { return Ok(None) };
        remove_file(&paths.data)?;
        Ok(Some(sender))
    }

    /// Whether a receiver or a sender is there. Removes what killed ones have left behind.
    ///
    /// # Errors
    /// When it cannot be seen who is there, or a leftover not removed.
    pub fn is_in_use(&self) -> Result<bool, Error> {
        let has_senders = !self.senders()?.is_empty();
        let paths = self.paths();
        let is_received = paths.are_received(self.files)?;
        if !is_received {
            paths.remove()?;
        }
        Ok(has_senders || is_received)
    }

    /// Sends the receiver away, which wakes and finds its name removed.
    ///
    /// # Errors
    /// When something cannot be removed, or it cannot be seen whom to wake.
    pub fn send_receiver_away(&self) -> Result<(), Error> {
        self.remove_files(|name| !name.starts_with(SENDER))
    }

    /// The same with the senders.
    ///
    /// # Errors
    /// As for the receiver.
    pub fn send_senders_away(&self) -> Result<(), Error> {
        self.remove_files(|name| name.starts_with(SENDER))
    }

    fn remove_files(&self, which: impl Fn(&str) -> bool) -> Result<(), Error> {
        // Nobody is woken before all are gone: a sender whose receiver leaves has to see why. Nothing is removed before all
        // can be woken.
        let mut names = names(&self.path)?;
        names.retain(|name| which(name));
        let mut ways = Vec::new();
        for name in names.iter().filter(|name| *name == RECEIVER || name.starts_with(SENDER)) {
            ways.extend(self.files.find_sleeper(&self.path.join(name))?);
        }
        let removed = names.iter().try_for_each(|name| remove_file(&self.path.join(name)));
        self.wake(&ways);
        Ok(removed?)
    }

    /// Removes the pipe. Whoever is there wakes and finds its name removed.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove(&self) -> Result<(), Error> {
        self.remove_files(|_| true)?;
        Ok(if_there(std::fs::remove_dir(&self.path)).map(drop)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_dir::TestDir;
    use super::super::wake::make_fifo;
    use super::*;

    struct Scene {
        files: Files,
        folder: Folder<String>,
        dir: TestDir,
    }

    impl Scene {
        fn new() -> Self {
            let dir = TestDir::new();
            Self {
                files: Files::new(&dir.join("data")),
                folder: Folder::open_or_make(&dir.join("session"), super::super::folder::Shape::Folder).unwrap().0,
                dir,
            }
        }

        fn meeting(&self) -> Meeting<'_> {
            Meeting::new(&self.files, &self.folder, "pipe")
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(self.dir.join("session/pipe")).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    #[test]
    fn what_a_killed_sender_leaves_is_no_sender_and_is_removed() {
        let scene = Scene::new();
        let one = scene.meeting().wait_to_send(2).unwrap().unwrap();
        // A name that nobody has open.
        let fifo = scene.dir.join("session/pipe/sender-dead");
        make_fifo(&fifo).unwrap();
        let two = scene.meeting().wait_to_send(2).unwrap();
        assert!(two.is_some() && !fifo.exists());
        drop((one, two));
        assert!(!scene.meeting().is_in_use().unwrap());
    }

    #[test]
    fn nothing_is_left_of_a_transfer_once_it_has_begun_and_nothing_of_a_killed_receiver() {
        let scene = Scene::new();
        let receiver = scene.meeting().receive().unwrap().unwrap();
        let sender = scene.meeting().take_receiver().unwrap().unwrap();
        assert_eq!(scene.names(), [RECEIVER]);
        drop((receiver, sender));
        assert!(scene.names().is_empty());
        for name in [RECEIVER, DATA, TAKEN] {
            make_fifo(&scene.dir.join("session/pipe").join(name)).unwrap();
        }
        assert!(!scene.meeting().is_in_use().unwrap() && scene.names().is_empty());
    }

    #[test]
    fn what_cannot_be_looked_at_stays_and_is_in_nobodys_favour() {
        let scene = Scene::new();
        let receiver = scene.meeting().receive().unwrap().unwrap();
        let sender = scene.meeting().wait_to_send(2).unwrap().unwrap();
        let before = scene.names();
        // Moved behind a link to itself: to look at it is an error now, as without a descriptor.
        let [fifo, aside] = ["session/pipe/receiver", "aside"].map(|name| scene.dir.join(name));
        std::fs::rename(&fifo, &aside).unwrap();
        std::os::unix::fs::symlink(&fifo, &fifo).unwrap();
        assert!(scene.meeting().receive().is_err() && scene.meeting().take_receiver().is_err());
        assert!(scene.meeting().is_in_use().is_err() && scene.meeting().remove().is_err());
        assert_eq!(scene.names().len(), before.len(), "{:?}", scene.names());
        std::fs::rename(&aside, &fifo).unwrap();
        assert!(!receiver.is_removed().unwrap() && !sender.is_removed().unwrap());
        assert!(scene.meeting().take_receiver().unwrap().is_some());
    }
}
