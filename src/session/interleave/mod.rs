//! The points at which the interleaving tests may switch between threads: before each lock of a
//! session, and where it publishes a state. Outside of tests these are plain locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(test)]
mod scheduler;
#[cfg(test)]
mod tests;

/// Locks a mutex, even if it is poisoned.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The scheduler runs one thread at a time, so waiting for the lock would stop all of them.
    #[cfg(test)]
    while scheduler::switch() {
        if let Ok(guard) = mutex.try_lock() {
            return guard;
        }
    }
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Another thread may run here.
#[inline]
pub(super) fn switch() {
    #[cfg(test)]
    scheduler::switch();
}
