//! Where the tests of interleavings may switch between threads: before each lock of a session, and
//! where it publishes a state. In a build without tests these are the plain locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(test)]
mod scheduler;
#[cfg(test)]
mod tests;

/// Locks, whether a thread has panicked with the lock or not.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // One thread at a time runs under the scheduler: waiting for the lock would stop them all.
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
