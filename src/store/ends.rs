//! The two ends of a stream of bytes, and those that wait to become one, in whichever home that is.
//!
//! Those in files are in one process or find each other through the kernel: what they do is done at once. Those in Redis do
//! it in their own memory, and [exchange](Sender::exchange) it before they wait.

use super::either::of_either;
use super::error::Error;
use super::files::{ends as in_files, far_ends, pipes as pipes_in_files, requests as requests_in_files};
use super::pipes::Denied;
use super::redis;
use super::requests::{Claimed, Patience, Progress, RequestId};
use crate::wake::Ready;
use rustix::fd::BorrowedFd;
use std::io;

/// Makes a type that is of either home.
macro_rules! either_of {
    ($(#[$about:meta])* $name:ident, $files:ty, $redis:ty) => {
        $(#[$about])*
        #[allow(clippy::large_enum_variant, reason = "there is one for a request, which has more than that")]
        pub enum $name {
            /// In files.
            Files($files),
            /// In Redis.
            Redis($redis),
        }

        impl From<$files> for $name {
            fn from(it: $files) -> Self {
                Self::Files(it)
            }
        }

        impl From<$redis> for $name {
            fn from(it: $redis) -> Self {
                Self::Redis(it)
            }
        }
    };
}

either_of!(
    /// The receiver's end, once the bytes flow.
    Receiver, in_files::Receiver, redis::Receiver
);
either_of!(
    /// The sender's end, with a receiver of its own.
    Sender, in_files::Sender, redis::Sender
);
either_of!(
    /// A receiver that no sender has given anything yet. When it is dropped, another may come.
    WaitingReceiver, pipes_in_files::WaitingReceiver, redis::WaitingReceiver
);
either_of!(
    /// A sender among those of its direction, from before it has a receiver until its body has been delivered. When it is
    /// dropped, it is none any more.
    WaitingSender, pipes_in_files::WaitingSender, redis::WaitingSender
);

either_of!(
    /// A request, as its client has it until the answer begins. When it is dropped, nothing is left of it.
    PendingRequest, requests_in_files::PendingRequest, redis::PendingRequest
);
either_of!(
    /// A far end that waits for requests. When it is dropped, it has left.
    WaitingFarEnd, far_ends::WaitingFarEnd, redis::WaitingFarEnd
);
/// The answer to a request, which nobody else can answer any more.
pub struct Answer {
    sender: Sender,
    /// What is left of the request in files.
    leftovers: Option<far_ends::Leftovers>,
}

impl From<far_ends::Answer> for Answer {
    fn from(far_ends::Answer { sender, leftovers }: far_ends::Answer) -> Self {
        Self { sender: sender.into(), leftovers: Some(leftovers) }
    }
}

impl From<redis::Sender> for Answer {
    fn from(sender: redis::Sender) -> Self {
        Self { sender: sender.into(), leftovers: None }
    }
}

impl Receiver {
    /// Takes note of what the other end has done, and tells it how many bytes the client has taken; so many are `left` to
    /// come, where that is known. To be called before each wait.
    pub async fn exchange(&mut self, left: Option<u64>) {
        if let Self::Redis(it) = self {
            it.exchange(left).await;
        }
    }

    /// What to wait for: a head or bytes, the sender's end, and to be called. A wait for the last alone is the second.
    #[must_use]
    pub fn awaited(&self) -> [Option<Ready<'_>>; 2] {
        of_either!(self, it => it.awaited())
    }

    /// To be called when [what is awaited](Self::awaited) has come: whether the pipe has been removed.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn is_removed(&self) -> Result<bool, Error> {
        match self {
            Self::Files(it) => it.is_removed(),
            Self::Redis(it) => Ok(it.away().is_some()),
        }
    }

    /// Whether its name is not there any more, though it has not [left](Self::leave).
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn has_lost_place(&self) -> Result<bool, Error> {
        match self {
            Self::Files(it) => it.has_lost_place(),
            Self::Redis(it) => Ok(it.away().is_some()),
        }
    }

    /// The FIFO from which the kernel can move the bytes, where they come through one.
    #[must_use]
    pub fn fifo(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Files(it) => it.fifo(),
            Self::Redis(_) => None,
        }
    }

    /// How many bytes are there.
    #[must_use]
    pub fn there(&self) -> u64 {
        of_either!(self, it => it.there())
    }

    /// Gives some of the bytes that are there to `take`, where that can leave some of them: how many it has taken. `None`
    /// where they have to be [read](Self::read).
    pub fn give(&mut self, take: impl FnOnce(&[u8]) -> usize) -> Option<usize> {
        match self {
            Self::Files(it) => it.give(take),
            Self::Redis(it) => Some(it.give(take)),
        }
    }

    /// Reads some of the bytes that are there; how many.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        match self {
            Self::Files(it) => it.read(buffer),
            Self::Redis(it) => it.give(|bytes| {
                let size = bytes.len().min(buffer.len());
                buffer[..size].copy_from_slice(&bytes[..size]);
                size
            }),
        }
    }

    /// Whether the sender has gone, and no bytes are left.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        of_either!(self, it => it.has_ended())
    }

    /// Takes the bytes that follow, if `length` of them are there already, and notes that its client has them.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn take_at_once(&mut self, length: u64) -> Result<Option<Vec<u8>>, Error> {
        match self {
            Self::Files(it) => it.take_at_once(length),
            Self::Redis(it) => Ok(it.take_at_once(length)),
        }
    }

    /// Notes that its client has taken so many bytes more.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn took(&mut self, bytes: u64) -> Result<(), Error> {
        match self {
            Self::Files(it) => it.took(bytes),
            Self::Redis(it) => {
                it.took(bytes);
                Ok(())
            }
        }
    }

    /// After the last byte: whether the sender has said that it was the last, and was not killed, say.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        of_either!(self, it => it.is_complete())
    }

    /// Leaves the pipe to another receiver, for what the next sender brings.
    pub fn leave(&mut self) {
        of_either!(self, it => it.leave());
    }
}

impl Sender {
    /// Sends what was written, and takes note of what the other end has done. To be called before each wait. False where
    /// the receiver is known to have gone.
    pub async fn exchange(&mut self) -> bool {
        match self {
            Self::Files(_) => true,
            Self::Redis(it) => it.exchange().await,
        }
    }

    /// Whether its bytes have not [ended](Self::end).
    #[must_use]
    pub fn is_open(&self) -> bool {
        of_either!(self, it => it.is_open())
    }

    /// The FIFO into which the kernel can move the bytes, where they go through one.
    #[must_use]
    pub fn fifo(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Files(it) => it.fifo(),
            Self::Redis(_) => None,
        }
    }

    /// Sends some of these bytes; how many.
    ///
    /// # Errors
    /// `WouldBlock` while there is no room, and `BrokenPipe` when the receiver has gone.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        of_either!(self, it => it.write(bytes))
    }

    /// What to wait for: room, and that the receiver has gone. A wait for the last alone is the second.
    #[must_use]
    pub fn awaited(&self) -> [Option<Ready<'_>>; 2] {
        of_either!(self, it => it.awaited())
    }

    /// Takes note of what [was awaited](Self::awaited), and says whether the receiver is there.
    #[must_use]
    pub fn is_received(&self) -> bool {
        of_either!(self, it => it.is_received())
    }

    /// To be called where many bytes are coming. A user may have only so much of it; the usual size does as well.
    pub fn widen(&self) {
        if let Self::Files(it) = self {
            it.widen();
        }
    }

    /// Whether there is room for a head with its first bytes, of so many bytes together, before any other.
    #[must_use]
    pub fn takes_at_once(&self, size: usize) -> bool {
        of_either!(self, it => it.takes_at_once(size))
    }

    /// Sends what precedes the bytes, and the first of them. False when the receiver has gone, or does not take it.
    ///
    /// # Panics
    /// When it is longer than [`LONGEST_HEAD`](super::pipes::LONGEST_HEAD).
    #[must_use]
    pub fn send_head(&mut self, head: &[u8], first: &[u8]) -> bool {
        of_either!(self, it => it.send_head(head, first))
    }

    /// Ends the bytes, and says whether they are complete.
    pub fn end(&mut self, is_complete: bool) {
        of_either!(self, it => it.end(is_complete));
    }

    /// How many bytes the receiver's client has taken so far; all of them once the receiver has gone. `None` where it has
    /// not begun.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn taken(&self) -> Result<Option<u64>, Error> {
        match self {
            Self::Files(it) => it.taken(),
            Self::Redis(it) => Ok(it.taken()),
        }
    }
}

impl WaitingReceiver {
    /// What is ready when there is something to [look](Self::look) at.
    #[must_use]
    pub fn awaited(&self) -> [Option<Ready<'_>>; 2] {
        of_either!(self, it => it.awaited())
    }

    /// What the sender says of its body, once that is there. A sender that leaves without having said it makes room for the
    /// next one.
    ///
    /// # Errors
    /// [`Denied::Removed`], [`Denied::NotTheGuest`], or when what has come cannot be read.
    pub async fn look(&mut self) -> Result<Option<Vec<u8>>, Denied> {
        of_either!(self, it => it.look().await)
    }

    /// Whether a sender has taken it, whose word is on its way. To be asked after a [look](Self::look).
    #[must_use]
    pub fn is_taken(&self) -> bool {
        of_either!(self, it => it.is_taken())
    }

    /// To be called once the sender has said what comes: the way to the bytes.
    #[must_use]
    pub fn begin(self) -> Receiver {
        of_either!(self, it => it.begin().into())
    }
}

impl WaitingSender {
    /// What is ready when a receiver has come, or the sender was sent away.
    #[must_use]
    pub fn awaited(&self) -> Ready<'_> {
        of_either!(self, it => it.awaited())
    }

    /// Takes the receiver that waits, which no other sender has then; `None` where none does.
    ///
    /// # Errors
    /// [`Denied::Removed`], [`Denied::NotTheGuest`].
    pub async fn take_receiver(&mut self) -> Result<Option<Sender>, Denied> {
        of_either!(self, it => Ok(it.take_receiver().await?.map(Into::into)))
    }

    /// To be called when it [was woken](Self::awaited): whether it was sent away, in the middle of a body perhaps.
    #[must_use]
    pub fn is_sent_away(&self) -> bool {
        of_either!(self, it => it.is_sent_away())
    }

    /// Why it was: [`Denied::Removed`] or [`Denied::NotTheGuest`].
    pub async fn why_sent_away(&self) -> Denied {
        match self {
            Self::Files(it) => it.why_sent_away().await,
            Self::Redis(it) => it.why_sent_away(),
        }
    }

    /// Its body is delivered: the session counts as used now.
    pub async fn finish(self) {
        of_either!(self, it => it.finish().await);
    }
}

impl PendingRequest {
    /// What is ready when there is something to [look](Self::look) at.
    #[must_use]
    pub fn awaited(&self) -> [Option<Ready<'_>>; 2] {
        of_either!(self, it => it.awaited())
    }

    /// To be called when [that](Self::awaited) was so, and no less often than [`Patience::look`]: looks for the
    /// answer. Now and then it looks after the request too: where nobody has it, a far end is woken again, and where one
    /// has had it for too long, it is given back.
    ///
    /// # Errors
    /// When what has come cannot be read, or the state of the request not be seen.
    pub async fn look(&mut self, patience: &Patience) -> Result<Progress, Error> {
        of_either!(self, it => it.look(patience).await)
    }

    /// Whether somebody has begun to answer, and the head is on its way.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub async fn is_being_answered(&self) -> Result<bool, Error> {
        of_either!(self, it => it.is_being_answered().await)
    }

    /// Asks once more, after the answer has broken off: nobody can claim what is left of this one. The far ends that have
    /// claimed it count. `None` where `most` wait already.
    ///
    /// # Errors
    /// As for [asking](crate::store::Store::ask).
    pub async fn ask_again(&self, id: &RequestId, request: &[u8], most: u64) -> Result<Option<Self>, Error> {
        of_either!(self, it => Ok(it.ask_again(id, request, most).await?.map(Into::into)))
    }

    /// To be called once the answer has begun: the way to its bytes.
    #[must_use]
    pub fn begin(self) -> Receiver {
        of_either!(self, it => it.begin().into())
    }
}

impl WaitingFarEnd {
    /// What is ready when it is called.
    #[must_use]
    pub fn awaited(&self) -> Ready<'_> {
        of_either!(self, it => it.awaited())
    }

    /// Claims the requests that have waited longest, up to `most`: to be called at first, and when it is
    /// [called](Self::awaited). Nobody else has a claimed request until it is given back.
    ///
    /// # Errors
    /// When the first of them cannot be read.
    pub async fn claim(&mut self, most: usize) -> Result<Vec<Claimed>, Error> {
        of_either!(self, it => it.claim(most).await)
    }

    /// Leaves, and has another far end called for what still waits.
    pub async fn leave(self) {
        of_either!(self, it => it.leave().await);
    }
}

impl Answer {
    /// The way to the client, for the head.
    pub fn sender(&mut self) -> &mut Sender {
        &mut self.sender
    }

    /// To be called once the head has been sent, or could not be: removes what is left of the request, and gives the way for
    /// the bytes.
    pub async fn begin(self) -> Sender {
        if let Some(leftovers) = self.leftovers {
            leftovers.remove().await;
        }
        self.sender
    }
}
