//! Mutexes whose sections are short, and leave nothing half done.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks it, also after a thread has panicked with it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
