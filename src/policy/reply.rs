//! What a call with a credential came to.

/// What a call of [`Session::with_credential`](crate::Session::with_credential) came to, with its
/// value.
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub enum Reply<T> {
    /// The token works.
    Accepted(T),
    /// The API rejected the token. If this was the second call, the value is the caller's all the
    /// same.
    Rejected(T),
    /// Nothing is known about the token: the connection failed, or the API is down.
    Inconclusive(T),
    /// The call is to be made once more with the same token, since the API wants another proof or
    /// nonce. Heeded once for each token; after that it counts as `Inconclusive`.
    Again(T),
}
