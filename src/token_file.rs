//! [`FileRefresh`]: tokens in a file that another program renews.

use std::{io, path::PathBuf, time::Duration};

use async_trait::async_trait;

use crate::{
    error::{Error, ErrorKind},
    refresher::{RefreshContext, Refresher},
    secret_file,
    time::wall,
    token::Tokens,
};

/// Reads tokens from a file that another program renews, such as a projected Kubernetes service
/// account token or any other workload identity.
///
/// The file holds one token of at most 64 KiB. Surrounding whitespace is ignored. The token expires
/// at its own `exp` by the local clock, because it may already be hours old when it is read. The
/// session reads the file again when the token enters the
/// [`refresh_ahead`](crate::SessionBuilder::refresh_ahead) window, and when the API rejects the
/// token.
///
/// - If the file is unchanged or its token has expired, there is no refresh: no event and no new
///   generation. If the token was rejected, the request fails with
///   [`Unavailable`](ErrorKind::Unavailable).
/// - If the file cannot be read or holds no token, the session reports
///   [`Event::RefreshFailed`](crate::Event::RefreshFailed). Requests are still sent while the held
///   token is valid.
///
/// [`OAuthRefresh::param_file`](crate::OAuthRefresh::param_file) differs: it sends the content of a
/// file to a token endpoint.
///
/// # Defaults
///
/// | setting | value |
/// | --- | --- |
/// | cool-down after a failed refresh | at most 1 s, whatever [`SessionBuilder::cooldown`](crate::SessionBuilder::cooldown) says |
/// | size of the file | at most 64 KiB |
///
/// # Example
///
/// ```
/// use reqwest_reauth::{Error, FileRefresh, Session, Tokens};
///
/// fn main() -> Result<(), Error> {
///     let session = Session::builder(Tokens::empty())
///         .origin("https://api.example.com")
///         .refresher(FileRefresh::new("/var/run/secrets/tokens/api"))
///         .build()?;
///     let client = session.wrap(reqwest::Client::new());
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct FileRefresh {
    path: PathBuf,
}

impl FileRefresh {
    /// Creates a refresher that reads this file.
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
