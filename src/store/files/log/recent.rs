//! What was read last of a log, so that all that listen to it in one process read it once.

use super::{Line, Record, parse_line};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What was read last, and how often somebody has knocked because something was written. Whoever writes knocks.
#[derive(Default)]
pub struct Recent {
    knocks: AtomicU64,
    piece: Mutex<Option<Arc<Piece>>>,
}

/// Whole lines of a log. What is behind an id never changes.
pub struct Piece {
    /// The id before it, and its last one.
    pub start: u64,
    pub end: u64,
    bytes: Vec<u8>,
    lines: Vec<Line>,
    /// Whether something of it was dropped on a full disk: a hole, which begins within one record and ends within another.
    pub has_hole: bool,
    /// Whether the log ended there.
    pub is_end: bool,
    /// How often somebody had knocked before it was read.
    pub knocks: u64,
}

impl Piece {
    /// Of lines with the line end before them, which follow the id `start`; of nothing where there was no more. What is no
    /// record is passed over: what a stranger put there must not stop what comes after it.
    pub fn new(start: u64, bytes: Vec<u8>, is_end: bool, knocks: u64) -> Self {
        let mut piece = Self { start, end: start, bytes, lines: Vec::new(), has_hole: false, is_end, knocks };
        // The first line end is that of what was taken before.
        let mut from = 1;
        for to in memchr::memchr_iter(b'\n', &piece.bytes).skip(1) {
            piece.end += (to + 1 - from) as u64;
            match parse_line(&piece.bytes, from, to, piece.end) {
                Some(line) => piece.lines.push(line),
                None if piece.bytes[from..to].contains(&0) => piece.has_hole = true,
                None => say!("uhst-relay: a log holds a line that is no record; it is passed over"),
            }
            from = to + 1;
        }
        piece
    }

    /// Its records; what is made of them is kept where others read them too.
    pub fn records(&self, is_shared: bool) -> impl Iterator<Item = Record<'_>> {
        let text = |range: &Range<usize>| std::str::from_utf8(&self.bytes[range.clone()]).unwrap_or_default();
        self.lines.iter().map(move |line| Record {
            id: line.id,
            time: line.time,
            to: &line.to,
            event: text(&line.event),
            data: text(&line.data),
            made: (cfg!(feature = "serve") && is_shared).then_some(&line.made),
        })
    }
}

impl Recent {
    /// Something was written.
    pub fn knock(&self) {
        self.knocks.fetch_add(1, Ordering::SeqCst);
    }

    pub fn knocks(&self) -> u64 {
        self.knocks.load(Ordering::SeqCst)
    }

    /// What is known of what follows an id, and that is all there is where the piece says so.
    pub fn after(&self, id: u64) -> Option<Arc<Piece>> {
        let piece = self.piece.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let is_known = piece.start == id && piece.end > id;
        // Nobody has written since.
        let is_all = piece.end == id && piece.is_end && piece.knocks == self.knocks();
        (is_known || is_all).then_some(piece)
    }

    pub fn keep(&self, piece: &Arc<Piece>) {
        *self.piece.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(piece));
    }

    /// Keeps what this process has written at the log's end just now, after the id `start`, and will knock for.
    pub fn keep_written(&self, start: u64, bytes: Vec<u8>) {
        self.keep(&Arc::new(Piece::new(start, bytes, true, self.knocks() + 1)));
    }
}
