//! The [`Refresher`] trait: how a session obtains new tokens.

mod context;

use std::{fmt, future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;

pub use self::context::RefreshContext;
pub(crate) use self::context::RefreshLog;
use crate::{error::Error, token::Tokens};

/// A source of new tokens: [`OAuthRefresh`](crate::OAuthRefresh),
/// [`FileRefresh`](crate::FileRefresh), [`refresh_with`], or your own implementation.
///
/// A session runs one refresh at a time. The refresh belongs to the session: it continues when the
/// requests that wait for it are dropped.
/// [`SessionBuilder::refresh_timeout`](crate::SessionBuilder::refresh_timeout) bounds it. If it
/// panics, the requests that wait for it fail with [`Internal`](crate::ErrorKind::Internal).
#[async_trait]
pub trait Refresher: Send + Sync + 'static {
    /// Obtains new tokens. If the result has no refresh token, the session keeps the old one.
    ///
    /// # Errors
    /// The [kind](crate::ErrorKind) of the error decides what follows. `LoginRequired` persists
    /// until [`Session::replace_tokens`](crate::Session::replace_tokens). After `Internal`, the
    /// next request starts a new refresh. After any other kind, a cool-down begins.
    async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error>;

    /// Checks whether the settings can work.
    /// [`SessionBuilder::build`](crate::SessionBuilder::build) calls it. The default accepts
    /// everything.
    ///
    /// # Errors
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig), which `build` returns.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Returns whether these tokens suffice for a refresh. If they do not, a rejected response is
    /// returned to the caller unchanged. The default is `true`.
    ///
    /// The session calls it on each change, with its lock held: inspect only the tokens. With a
    /// store, it is called only during a refresh, after the store has been read.
    fn can_refresh(&self, tokens: &Tokens) -> bool {
        let _ = tokens;
        true
    }

    /// Returns whether the source has anything new. This is for sources that are cheap to inspect,
    /// such as a file. The default is `true`.
    ///
    /// The session calls it before each refresh, with the tokens that it holds. If it returns
    /// `false`, there is no refresh and no event. If the held token was rejected or has expired,
    /// the waiting requests then fail with [`Unavailable`](crate::ErrorKind::Unavailable).
    ///
    /// # Errors
    /// An error counts as a failed refresh. The session reports
    /// [`Event::RefreshFailed`](crate::Event::RefreshFailed) without a preceding
    /// [`Event::RefreshStarted`](crate::Event::RefreshStarted).
    async fn has_news(&self, held: &Tokens) -> Result<bool, Error> {
        let _ = held;
        Ok(true)
    }

    /// Revokes the tokens at their issuer (RFC 7009). The default does nothing.
    ///
    /// [`Session::clear`](crate::Session::clear) calls it after the tokens are gone from the
    /// session and its store. The first call has the session's tokens. If the store held different
    /// tokens of the same login, a second call has those. One
    /// [`store_timeout`](crate::SessionBuilder::store_timeout) bounds all calls together.
    ///
    /// # Errors
    /// An error becomes an [`Event::RevocationFailed`](crate::Event::RevocationFailed). The logout
    /// itself is complete.
    async fn revoke(&self, tokens: &Tokens) -> Result<(), Error> {
        let _ = tokens;
        Ok(())
    }

    /// Returns whether a logout should wait for tokens to [revoke](Self::revoke). The default is
    /// `false`.
    ///
    /// If `true`, [`Session::clear`](crate::Session::clear) reads from the store any tokens that
    /// another process has saved in the meantime. It also waits up to one
    /// [`store_timeout`](crate::SessionBuilder::store_timeout) for a refresh in progress, so that
    /// its tokens are revoked. If `false`, a refresh in progress is abandoned at once.
    fn can_revoke(&self) -> bool {
        false
    }

    /// Identifies the recipient of a refresh token. For [`OAuthRefresh`](crate::OAuthRefresh) that
    /// is its token endpoint, client id, grant and scope. The text must not contain a secret. The
    /// default is `None`.
    ///
    /// When a refresh token becomes invalid, the processes that share a store tell each other. The
    /// processes for which this text is the same do not send that token any more. With `None`, each
    /// process finds out by itself.
    fn sends_to(&self) -> Option<String> {
        None
    }

    /// Returns the longest cool-down after a failed refresh, which takes precedence over
    /// [`SessionBuilder::cooldown`](crate::SessionBuilder::cooldown). The default is no limit.
    fn longest_cooldown(&self) -> Option<Duration> {
        None
    }
}

/// Implements [`Refresher`] for a pointer to a refresher.
macro_rules! forward {
    ($pointer:ident) => {
        #[async_trait]
        impl<R: Refresher + ?Sized> Refresher for $pointer<R> {
            async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
                (**self).refresh(context).await
            }

            fn check(&self) -> Result<(), Error> {
                (**self).check()
            }

            fn can_refresh(&self, tokens: &Tokens) -> bool {
                (**self).can_refresh(tokens)
            }

            async fn has_news(&self, held: &Tokens) -> Result<bool, Error> {
                (**self).has_news(held).await
            }

            async fn revoke(&self, tokens: &Tokens) -> Result<(), Error> {
                (**self).revoke(tokens).await
            }

            fn can_revoke(&self) -> bool {
                (**self).can_revoke()
            }

            fn sends_to(&self) -> Option<String> {
                (**self).sends_to()
            }

            fn longest_cooldown(&self) -> Option<Duration> {
                (**self).longest_cooldown()
            }
        }
    };
}

forward!(Arc);
forward!(Box);

/// Creates a refresher from a closure, for tokens that your program mints or fetches from another
/// service. The closure receives the tokens that are to be replaced. For tokens in a file see
/// [`FileRefresh`](crate::FileRefresh).
///
/// ```
/// use std::time::Duration;
///
/// use reqwest_reauth::{Error, Session, Tokens, refresh_with};
///
/// /// Stands for a signer, or for a call to another service.
/// async fn mint() -> Result<String, Error> {
///     Ok("signed".to_owned())
/// }
///
/// fn main() -> Result<(), Error> {
///     let session = Session::builder(Tokens::empty())
///         .origin("https://api.example.com")
///         .refresher(refresh_with(|_held| async {
///             Ok(Tokens::new(mint().await?)?.with_expires_in(Duration::from_secs(600)))
///         }))
///         .build()?;
///     let client = session.wrap(reqwest::Client::new());
///     Ok(())
/// }
/// ```
pub fn refresh_with<F, R>(mint: F) -> impl Refresher
where
    F: Fn(Tokens) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Tokens, Error>> + Send + 'static,
{
    Mint(mint)
}

struct Mint<F>(F);

#[async_trait]
impl<F, R> Refresher for Mint<F>
where
    F: Fn(Tokens) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Tokens, Error>> + Send + 'static,
{
    async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
        (self.0)(context.tokens()).await
    }
}

/// The source of the error that [`Refresher::revoke`] returns if several tokens could not be
/// revoked.
#[derive(Debug)]
pub(crate) struct Several(Vec<Error>);

impl Several {
    pub(crate) fn result(errors: impl IntoIterator<Item = Option<Error>>) -> Result<(), Error> {
        let mut errors: Vec<Error> = errors.into_iter().flatten().collect();
        match (errors.pop(), errors.is_empty()) {
            (None, _) => Ok(()),
            (Some(only), true) => Err(only),
            (Some(last), false) => {
                errors.push(last);
                Err(Error::new(errors[0].kind(), Self(errors)))
            }
        }
    }

    /// Splits the error of a revocation into the failures of the individual tokens.
    pub(crate) fn each(error: Error) -> Vec<Error> {
        let several = std::error::Error::source(&error).and_then(|source| source.downcast_ref());
        match several {
            Some(Self(errors)) => errors.clone(),
            None => vec![error],
        }
    }
}

impl fmt::Display for Several {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            f.write_str(if at == 0 { "" } else { "; " })?;
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Several {}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::{error::ErrorKind, token::RefreshToken};

    struct Quiet;

    #[async_trait]
    impl RefreshLog for Quiet {
        fn tokens(&self) -> Tokens {
            Tokens::new("old").unwrap()
        }
        fn retrying(&self, _: u32, _: Duration, _: Option<StatusCode>) {}
        async fn keep(&self, _: RefreshToken) {}
    }

    /// A refresher that needs a refresh token.
    struct Picky;

    #[async_trait]
    impl Refresher for Picky {
        async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
            Ok(context.tokens())
        }

        fn check(&self) -> Result<(), Error> {
            Err(Error::of(ErrorKind::InvalidConfig))
        }

        fn can_refresh(&self, tokens: &Tokens) -> bool {
            tokens.refresh_token().is_some()
        }
    }

    #[tokio::test]
    async fn a_shared_refresher_is_the_one_inside() {
        let shared = Arc::new(Picky);
        let context = RefreshContext::new(Arc::new(Quiet));
        assert_eq!(
            shared.refresh(&context).await.unwrap().access_token().unwrap().expose_secret(),
            "old"
        );
        assert_eq!(shared.check().unwrap_err().kind(), ErrorKind::InvalidConfig);
        assert!(!shared.can_refresh(&context.tokens()));
        assert!(shared.can_refresh(&Tokens::from_refresh_token("r").unwrap()));
        let minted = refresh_with(|old| async { Ok(old) });
        assert!(minted.can_refresh(&Tokens::empty()) && minted.check().is_ok());
        assert_eq!(
            minted.refresh(&context).await.unwrap().access_token().unwrap().expose_secret(),
            "old"
        );
    }

    #[test]
    fn attempts_are_counted_in_every_share() {
        let context = RefreshContext::new(Arc::new(Quiet));
        let share = context.share();
        assert_eq!(context.attempts(), 1);
        share.retrying(1, Duration::ZERO, None);
        assert_eq!(context.attempts(), 2);
        assert_eq!(share.attempts(), 2);
        assert_eq!(format!("{context:?}"), "RefreshContext { attempts: 2, .. }");
    }
}
