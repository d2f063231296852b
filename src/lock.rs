//! Locks that a panic of another thread does not poison.

use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

/// Locks the mutex, also after a thread has panicked while it held the lock. Whoever needs that
/// thread learns of its panic otherwise, and the value is right after each single change.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
