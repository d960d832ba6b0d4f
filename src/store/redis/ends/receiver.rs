//! Where the bytes come.

use super::{Away, End, PIECE, script};
use crate::store::redis::reply::Values;
use crate::store::redis::script::Script;
use crate::store::remote::Remote;
use crate::wake::Ready;

static FETCH: Script = script!(new "fetch.lua");

/// The receiver's end.
pub struct Receiver {
    pub end: End,
    /// What precedes the bytes, until it is taken.
    head: Option<Vec<u8>>,
    /// What has come and its client has not taken yet is after `from`.
    inbox: Vec<u8>,
    from: usize,
    /// Up to where the bytes have come; up to where Redis knows it; and how many there are by now.
    position: u64,
    confirmed: u64,
    sent: u64,
    /// How many of them its client has taken, once it has begun; and whether Redis knows that it has.
    taken: Option<u64>,
    is_begun: bool,
    /// Whether a sender has taken it, and how that has ended: whether all of it was sent.
    is_taken: bool,
    ending: Option<bool>,
    has_place: bool,
}

impl Receiver {
    /// One that nobody has given anything yet.
    pub fn new(end: End) -> Self {
        Self {
            end,
            head: None,
            inbox: Vec::new(),
            from: 0,
            position: 0,
            confirmed: 0,
            sent: 0,
            taken: None,
            is_begun: false,
            is_taken: false,
            ending: None,
            has_place: true,
        }
    }

    /// What to wait for: that there is something to [fetch](Self::exchange).
    pub fn awaited(&self) -> [Option<Ready<'_>>; 2] {
        [None, Some(self.end.awaited())]
    }

    /// Fetches what precedes the bytes, if it is there, and the first of them.
    pub async fn look(&mut self) -> Option<Vec<u8>> {
        self.end.has_reason().await;
        self.fetch(None).await;
        self.head.take()
    }

    /// Says how many bytes the client has taken, and fetches the next where it has them all: where there is a reason to. So many
    /// bytes are `left` to come, where that is known.
    pub async fn exchange(&mut self, left: Option<u64>) {
        let wanted = left.map(|left| self.taken.unwrap_or(0) + left);
        let has_reason = self.end.has_reason().await;
        let is_hungry = self.there() == 0 && (self.position < self.sent || self.confirmed < self.position);
        let has_all = self.has_place && wanted.is_some_and(|wanted| self.position >= wanted);
        if has_reason || is_hungry || has_all || (self.taken.is_some() && !self.is_begun) {
            self.fetch(wanted).await;
        }
    }

    async fn fetch(&mut self, wanted: Option<u64>) {
        let (position, taken) = (self.position, self.taken);
        let size = if self.there() == 0 { PIECE } else { 0 };
        let wanted = wanted.map(|wanted| wanted.to_string()).unwrap_or_default();
        let arguments = self.arguments(size, &wanted, false);
        let arguments: Vec<_> = arguments.iter().map(Vec::as_slice).collect();
        let Some((outcome, mut answer)) =
            self.end.ask(&FETCH, &arguments, |mut answer| Ok((answer.text()?, answer))).await
        else {
            return;
        };
        if outcome == "ok" {
            if self.take(&mut answer).is_ok() {
                self.confirmed = position;
                self.is_begun = taken.is_some();
            }
        } else {
            self.end.way.note(&outcome);
        }
    }

    fn take(&mut self, answer: &mut Values) -> Result<(), Remote> {
        self.is_taken = answer.number()? > 0;
        self.has_place = answer.number()? > 0;
        self.sent = answer.number()?;
        self.ending = match answer.text()?.as_str() {
            "" => None,
            ending => Some(ending == "complete"),
        };
        self.head = answer.bytes()?.strip_prefix(b"h").map(<[u8]>::to_vec);
        let mut pieces = answer.values()?;
        if pieces.left() > 0 {
            self.inbox.clear();
            self.from = 0;
        }
        while pieces.left() > 0 {
            let piece = pieces.bytes()?;
            self.position += piece.len() as u64;
            self.inbox.extend(piece);
        }
        Ok(())
    }

    fn arguments(&self, size: usize, wanted: &str, leaves: bool) -> Vec<Vec<u8>> {
        let end = &self.end;
        let taken = self.taken.map_or_else(|| "-1".to_owned(), |taken| taken.to_string());
        let leaves = if leaves { "1" } else { "" };
        let texts = [&end.way.ticket, &end.name, &self.position.to_string(), &taken, &size.to_string(), wanted, leaves];
        texts.map(|text| text.as_bytes().to_vec()).to_vec()
    }

    /// Whether a sender has taken it, as of the last look.
    pub fn is_taken(&self) -> bool {
        self.is_taken
    }

    /// Why it was sent away, if so.
    pub fn away(&self) -> Option<Away> {
        self.end.way.away()
    }

    /// How many bytes are there.
    pub fn there(&self) -> u64 {
        (self.inbox.len() - self.from) as u64
    }

    /// Gives some of the bytes that are there to `take`, which may leave some of them: how many it has taken.
    pub fn give(&mut self, take: impl FnOnce(&[u8]) -> usize) -> usize {
        let taken = take(&self.inbox[self.from..]);
        self.from += taken;
        taken
    }

    /// Takes the bytes that follow, if `length` of them are there already, and notes that its client has them.
    pub fn take_at_once(&mut self, length: u64) -> Option<Vec<u8>> {
        if self.there() < length {
            return None;
        }
        let mut bytes = self.inbox.split_off(self.from);
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        self.inbox = bytes.split_off(size);
        self.from = 0;
        self.took(length);
        Some(bytes)
    }

    /// Notes that its client has taken so many bytes more.
    pub fn took(&mut self, bytes: u64) {
        self.taken = Some(self.taken.unwrap_or(0) + bytes);
    }

    /// Whether no more will come.
    pub fn has_ended(&self) -> bool {
        let is_last = self.ending.is_some() && self.position == self.sent;
        self.there() == 0 && (is_last || self.away().is_some())
    }

    /// After the last byte: whether the sender has said that it was the last.
    pub fn is_complete(&self) -> bool {
        self.ending == Some(true)
    }

    /// Whether a sender has taken it and left without a word.
    pub fn is_broken_off(&self) -> bool {
        self.is_taken && self.ending.is_some() && self.head.is_none()
    }

    /// Leaves its place to another receiver, unless it has been told that it has left already.
    pub fn leave(&mut self) {
        if std::mem::replace(&mut self.has_place, false) {
            self.end.way.run_last(&FETCH, self.arguments(0, "0", false));
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.end.way.run_last(&FETCH, self.arguments(0, "", true));
    }
}
