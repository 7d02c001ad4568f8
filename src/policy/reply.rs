//! The result of a call with a credential.

/// The result of a call of [`Session::with_credential`](crate::Session::with_credential), with its
/// value.
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub enum Reply<T> {
    /// The token was accepted.
    Accepted(T),
    /// The API rejected the token. After the second call the caller gets the value nevertheless.
    Rejected(T),
    /// The call says nothing about the token: the connection failed, or the API is down.
    Inconclusive(T),
    /// The call should be repeated with the same token, because the API demands another proof or
    /// nonce. This works once for each token. After that it counts as `Inconclusive`.
    Again(T),
}
