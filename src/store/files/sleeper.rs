//! What somebody sleeps on until others knock, under a name by which they find it: as long as it lives, its owner is there.
//!
//! It is a FIFO, or for those of a process that is [one node](super::node), a bell of this process. Then a *mark* stands in
//! the FIFO's place: a symbolic link to nothing, whose text names the node and the sleeper's number there. It is made and
//! read whole, by one system call. Others knock at the node, whose lock says whether that is there.

use super::knock::Knock;
use super::link::Linked;
use super::near::Near;
use super::wake::{Fifo, knock, open_to_knock};
use super::{Error, Files, remove_file};
use crate::wake::Ready;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::path::{Path, PathBuf};

/// The text of a mark.
#[derive(Debug, PartialEq, Eq)]
struct Mark {
    node: String,
    number: u32,
}

impl Mark {
    fn text(&self) -> String {
        format!("{}.{}", self.node, self.number)
    }

    /// `None` where there is none.
    fn at(path: &Path) -> Result<Option<Self>, Error> {
        let text = match rustix::fs::readlink(path, Vec::new()) {
            Ok(text) => text.into_string().unwrap_or_default(),
            Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let parse = |(node, number): (&str, &str)| Some(Self { node: node.to_owned(), number: number.parse().ok()? });
        Ok(text.split_once('.').and_then(parse))
    }
}

impl Near {
    fn mark(&self) -> Mark {
        Mark { node: self.node.clone(), number: self.number }
    }

    /// Leaves its mark, in place of what may be there.
    pub(super) fn mark_at(&self, path: &Path) -> Result<(), Error> {
        remove_file(path)?;
        Ok(std::os::unix::fs::symlink(self.mark().text(), path)?)
    }

    /// Whether its mark is not there any more.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub(super) fn is_lost(&self, path: &Path) -> Result<bool, Error> {
        Ok(Mark::at(path)? != Some(self.mark()))
    }
}

/// The way to somebody who sleeps.
pub(super) enum Knocker {
    /// By its FIFO, which reports an error (`POLLERR`) once it has gone.
    Fifo(OwnedFd),
    /// It is in this process.
    Near(Linked),
    /// It is in another one, which is one node.
    Node(Knock),
}

impl Knocker {
    /// Whether it is in another process.
    pub(super) fn is_elsewhere(&self) -> bool {
        !matches!(self, Self::Near(_))
    }
}

impl Files {
    /// Somebody new who sleeps in this process, if that is one node.
    #[cfg(feature = "serve")]
    pub(super) fn come_near(&self) -> Option<Near> {
        self.sleepers().map(Near::of)
    }

    #[cfg(not(feature = "serve"))]
    #[expect(clippy::unused_self, reason = "a program for one request is none for many")]
    pub(super) fn come_near(&self) -> Option<Near> {
        None
    }

    /// The way to whoever sleeps at `path`; `None` where nobody does.
    ///
    /// # Errors
    /// When that cannot be seen: it is no sign that nobody does.
    pub(super) fn find_sleeper(&self, path: &Path) -> Result<Option<Knocker>, Error> {
        // A mark leads nowhere, and so is no FIFO.
        if let Some(fifo) = open_to_knock(path)? {
            return Ok(Some(Knocker::Fifo(fifo)));
        }
        let Some(Mark { node, number }) = Mark::at(path)? else { return Ok(None) };
        if let Some((own, sleepers)) = self.sleepers()
            && own == node
        {
            return Ok(sleepers.get(number).map(Knocker::Near));
        }
        Ok(self.node_is_alive(&node)?.then(|| Knocker::Node(Knock::to_sleeper(node, number))))
    }

    /// Wakes whoever sleeps.
    pub(super) fn knock_at(&self, knocker: &Knocker) {
        match knocker {
            Knocker::Fifo(fifo) => knock(fifo),
            Knocker::Near(link) => link.call(),
            Knocker::Node(to_sleeper) => _ = self.knock(to_sleeper),
        }
    }
}

/// See [the module](self).
pub(super) struct Sleeper {
    path: PathBuf,
    way: Way,
}

enum Way {
    Fifo(Fifo),
    Near(Near),
}

impl Sleeper {
    pub fn make(files: &Files, path: PathBuf) -> Result<Self, Error> {
        let way = match files.come_near() {
            Some(near) => {
                near.mark_at(&path)?;
                Way::Near(near)
            }
            None => Way::Fifo(Fifo::make(&path)?),
        };
        Ok(Self { path, way })
    }

    /// What is ready when somebody knocks.
    pub fn awaited(&self) -> Ready<'_> {
        match &self.way {
            Way::Fifo(fifo) => Ready::to_read(fifo.fd()),
            Way::Near(near) => near.link.awaited(),
        }
    }

    /// Takes the knocks, and says whether its name has been removed, or taken by another.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn is_removed(&self) -> Result<bool, Error> {
        match &self.way {
            Way::Fifo(fifo) => {
                fifo.hear();
                fifo.is_lost(&self.path)
            }
            Way::Near(near) => {
                near.link.hears_call();
                near.is_lost(&self.path)
            }
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let is_lost = match &self.way {
            Way::Fifo(fifo) => fifo.is_lost(&self.path),
            Way::Near(near) => near.is_lost(&self.path),
        };
        // Before it ends: as long as it is there nobody else takes this name.
        if matches!(is_lost, Ok(false)) {
            let _ = remove_file(&self.path);
        }
    }
}
