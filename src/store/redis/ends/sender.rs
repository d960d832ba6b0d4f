//! Where the bytes go.

use super::{End, PIECE};
use crate::store::redis::script::Script;
use crate::wake::Ready;
use std::io;

static SEND: Script = Script::new(concat!(
    include_str!("../memory.lua"),
    include_str!("../time.lua"),
    include_str!("begin.lua"),
    include_str!("send.lua")
));

/// The sender's end, with a receiver of its own.
pub struct Sender {
    end: End,
    receiver: String,
    /// What precedes the bytes, until Redis has it.
    head: Option<Vec<u8>>,
    /// The bytes that Redis has not got yet; how many it has; and for how many pieces it has room.
    outbox: Vec<u8>,
    sent: u64,
    room: u64,
    /// Whether it was the last, once that is known; and whether Redis knows it.
    ending: Option<bool>,
    has_told_end: bool,
    has_receiver_left: bool,
    /// How many bytes the receiver's client has taken.
    taken: Option<u64>,
}

impl Sender {
    /// The one of a receiver that it has taken.
    pub fn new(end: End, receiver: String) -> Self {
        Self {
            end,
            receiver,
            head: None,
            outbox: Vec::new(),
            sent: 0,
            room: 1,
            ending: None,
            has_told_end: false,
            has_receiver_left: false,
            taken: None,
        }
    }

    /// What to wait for: room, or that the receiver has gone.
    pub fn awaited(&self) -> [Option<Ready<'_>>; 2] {
        [None, Some(self.end.awaited())]
    }

    /// Sends what there is, and hears how far the receiver is: where there is a reason to. Whether that is there.
    pub async fn exchange(&mut self) -> bool {
        let has_reason = self.end.has_reason().await;
        let has_end = self.ending.is_some() && !self.has_told_end;
        let has_bytes = !self.outbox.is_empty();
        if self.is_received()
            && (has_reason || self.head.is_some() || has_end && !has_bytes || has_bytes && self.room > 0)
        {
            self.send().await;
        }
        self.is_received()
    }

    async fn send(&mut self) {
        let arguments = self.arguments();
        let arguments: Vec<_> = arguments.iter().map(Vec::as_slice).collect();
        let read = |mut answer: super::Values| {
            Ok((answer.text()?, answer.number()?, answer.text()?.parse().ok(), answer.number()?))
        };
        let Some((outcome, sent, taken, room)) = self.end.ask(&SEND, &arguments, read).await else { return };
        self.end.way.note(&outcome);
        self.taken = taken.or(self.taken);
        self.room = room;
        let arrived = sent.checked_sub(self.sent).and_then(|bytes| usize::try_from(bytes).ok());
        match arrived.filter(|bytes| *bytes <= self.outbox.len()) {
            Some(bytes) if outcome == "ok" => {
                self.head = None;
                self.sent = sent;
                self.outbox.drain(..bytes);
                self.has_told_end = self.ending.is_some() && self.outbox.is_empty();
            }
            // The receiver has gone, or Redis has lost what it had.
            _ => self.has_receiver_left = true,
        }
    }

    fn arguments(&self) -> Vec<Vec<u8>> {
        let end = &self.end;
        let head = self.head.as_ref().map(|head| [b"h", &head[..]].concat()).unwrap_or_default();
        let ending = match self.ending {
            None => "",
            Some(true) => "complete",
            Some(false) => "cut",
        };
        let [ticket, receiver, own] =
            [&end.way.ticket, &self.receiver, &end.name].map(|text| text.clone().into_bytes());
        let most = end.way.process.max_data.clone().into();
        vec![ticket, receiver, own, head, self.sent.to_string().into(), self.outbox.clone(), ending.into(), most]
    }

    /// Whether its bytes have not [ended](Self::end).
    pub fn is_open(&self) -> bool {
        self.ending.is_none()
    }

    /// Whether the receiver is there, as of the last [exchange](Self::exchange).
    pub fn is_received(&self) -> bool {
        !self.has_receiver_left
    }

    /// Takes some of these bytes; how many.
    ///
    /// # Errors
    /// `WouldBlock` while there is no room, and `BrokenPipe` when the receiver has gone.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.is_received() || !self.is_open() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let size = bytes.len().min(PIECE - self.outbox.len());
        if size == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.outbox.extend_from_slice(&bytes[..size]);
        Ok(size)
    }

    /// Takes what precedes the bytes, and the first of them. False when the receiver has gone.
    pub fn send_head(&mut self, head: &[u8], first: &[u8]) -> bool {
        self.head = Some(head.to_vec());
        self.outbox.extend_from_slice(first);
        self.is_received()
    }

    /// Whether there is room for a head with its first bytes.
    pub fn takes_at_once(&self, size: usize) -> bool {
        size <= PIECE - self.outbox.len()
    }

    /// Ends the bytes, and says whether they are complete.
    pub fn end(&mut self, is_complete: bool) {
        self.ending.get_or_insert(is_complete);
    }

    /// How many bytes the receiver's client has taken, as of the last [exchange](Self::exchange).
    pub fn taken(&self) -> Option<u64> {
        self.taken
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.end(false);
        if !self.has_told_end && self.is_received() {
            self.end.way.run_last(&SEND, self.arguments());
        }
    }
}
