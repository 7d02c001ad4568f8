//! [`FileRefresh`]: tokens that something else renews in a file.

use std::{io, path::PathBuf, time::Duration};

use async_trait::async_trait;

use crate::{
    error::{Error, ErrorKind},
    refresher::{RefreshContext, Refresher},
    secret_file,
    time::wall,
    token::Tokens,
};

/// Brings tokens from a file that something else renews: a projected service account token of
/// Kubernetes, or any other workload identity.
///
/// The file holds one token, at most 64 KiB, with or without outer blanks and line ends. The token
/// ends at its own `exp` against the local clock, since it may be hours old when it is read. The
/// session reads the file again before that, in its
/// [`refresh_ahead`](crate::SessionBuilder::refresh_ahead) window, and when the API rejects the
/// token.
///
/// - A file that has not changed, or whose token has expired, is no refresh: no event, no new
///   generation. If the token was rejected, the request fails with
///   [`Unavailable`](ErrorKind::Unavailable).
/// - A file that cannot be read, or has no token in it, is an
///   [`Event::RefreshFailed`](crate::Event::RefreshFailed). Requests are sent while the token that
///   is held is good.
/// - The cool-down is one second at most, whatever
///   [`SessionBuilder::cooldown`](crate::SessionBuilder::cooldown) says.
///
/// Differs from [`OAuthRefresh::param_file`](crate::OAuthRefresh::param_file), which sends what a
/// file holds to a token endpoint.
///
/// ```
/// use reqwest_reauth::{FileRefresh, Session, Tokens};
///
/// # fn main() -> Result<(), reqwest_reauth::Error> {
/// let session = Session::builder(Tokens::empty())
///     .origin("https://api.example.com")
///     .refresher(FileRefresh::new("/var/run/secrets/tokens/api"))
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FileRefresh {
    path: PathBuf,
}

impl FileRefresh {
    /// A refresher that reads this file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    async fn read(&self) -> Result<Tokens, Error> {
        let failed = |kind, error: &dyn std::fmt::Display| {
            let text = format!("{}: {error}", self.path.display());
            Error::new(ErrorKind::Unavailable, io::Error::new(kind, text))
        };
        let mut text =
            secret_file::read(&self.path).await.map_err(|error| failed(error.kind(), &error))?;
        Tokens::new(std::mem::take(&mut *text)).map(Tokens::with_expiry_from_claims).map_err(
            |error| {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                failed(io::ErrorKind::InvalidData, &cause.unwrap_or_else(|| error.to_string()))
            },
        )
    }
}

#[async_trait]
impl Refresher for FileRefresh {
    async fn refresh(&self, context: &RefreshContext) -> Result<Tokens, Error> {
        let found = self.read().await?;
        if is_news(&found, &context.tokens()) {
            Ok(found)
        } else {
            let text = format!("{}: the file has no newer token", self.path.display());
            Err(Error::new(ErrorKind::Unavailable, text))
        }
    }

    async fn has_news(&self, held: &Tokens) -> Result<bool, Error> {
        Ok(is_news(&self.read().await?, held))
    }

    fn longest_cooldown(&self) -> Option<Duration> {
        Some(Duration::from_secs(1))
    }
}

fn is_news(found: &Tokens, held: &Tokens) -> bool {
    let has_expired = found.expires_at().is_some_and(|at| at <= wall());
    found.access_token() != held.access_token() && !has_expired
}

#[cfg(test)]
mod tests;
