//! What was read last of a log, so that all that listen to it in one process read it once.

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
    /// With the line end before it; nothing where there was no more.
    pub bytes: Vec<u8>,
    /// Whether the log ended there.
    pub is_end: bool,
    /// How often somebody had knocked before it was read.
    pub knocks: u64,
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
        let is_known = piece.start == id && !piece.bytes.is_empty();
        // Nobody has written since.
        let is_all = piece.end == id && piece.is_end && piece.knocks == self.knocks();
        (is_known || is_all).then_some(piece)
    }

    pub fn keep(&self, piece: &Arc<Piece>) {
        *self.piece.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(piece));
    }
}
