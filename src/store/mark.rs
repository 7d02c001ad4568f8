//! The mark beside the tokens through which the processes of a fleet share a failure.

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use http::StatusCode;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    error::{Error, ErrorKind, printable},
    token::RefreshToken,
};

/// The maximum length of a text that is read.
const MAX_TEXT: usize = 4096;
/// A proxy requires authentication.
const PROXY: StatusCode = StatusCode::PROXY_AUTHENTICATION_REQUIRED;
/// The maximum duration of a transient failure.
const LONGEST: Duration = Duration::from_secs(300);

/// A failure that is shared by the processes with the same [`TokenStore`](crate::TokenStore), so
/// that only one of them calls the token endpoint.
///
/// It is a text of at most 4 KiB without a secret, which a store keeps unchanged beside the tokens.
/// It contains no date: each reader of a transient failure counts its lifetime from the moment at
/// which that reader first saw it.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredFailure {
    text: String,
    mark: Option<Mark>,
}

/// The content of a mark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Distinguishes two marks with the same content.
    id: String,
    pub(crate) says: Says,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Says {
    /// The token endpoint must not be called for a while.
    Pause {
        for_ms: u64,
        kind: Kind,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
    /// The token endpoint reported that the refresh tokens with these hashes are invalid.
    Dead {
        /// The SHA-256 hash of each refresh token and its recipient.
        of: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<String>,
        #[serde(default)]
        possibly_consumed: bool,
    },
    /// A process that held the refresh tokens with these hashes has logged out.
    Cleared { of: Vec<String> },
    /// The failure is over.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Unavailable,
    BadResponse,
    LoginRequired,
}

impl StoredFailure {
    /// Creates a failure from the text that a store has kept. A text that this version does not
    /// understand, or that is longer than 4 KiB, has no effect.
    pub fn from_text(text: impl Into<String>) -> Self {
        let text = text.into();
        if text.len() > MAX_TEXT {
            return Self { text: String::new(), mark: None };
        }
        let mark = serde_json::from_str(&text).ok();
        Self { text, mark }
    }

    /// Returns the text to store.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns how long the failure counts, for a store that supports expiry. Zero withdraws the
    /// stored failure. `None` means until it is replaced.
    pub fn lifetime(&self) -> Option<Duration> {
        match &self.mark.as_ref()?.says {
            Says::Pause { for_ms, .. } => Some(Duration::from_millis(*for_ms).min(LONGEST)),
            Says::Nothing => Some(Duration::ZERO),
            Says::Dead { .. } | Says::Cleared { .. } => None,
        }
    }

    pub(crate) fn new(says: Says) -> Self {
        let mark = Mark { id: format!("{:016x}", fastrand::u64(..)), says };
        let text = serde_json::to_string(&mark).unwrap_or_default();
        Self { text, mark: Some(mark) }
    }

    pub(crate) fn says(&self) -> Option<&Says> {
        self.mark.as_ref().map(|mark| &mark.says)
    }
}

impl fmt::Debug for StoredFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StoredFailure").field(&printable(&self.text)).finish()
    }
}

impl Says {
    /// Returns what the other processes need to know about this error of the token endpoint, if
    /// anything. `pause` is the cool-down that follows, and `of` has the rejected refresh tokens.
    pub(crate) fn of_error(error: &Error, pause: Duration, of: Vec<String>) -> Option<Self> {
        let status = error.status().map(|status| status.as_u16());
        let code = error.oauth_error().map(str::to_owned);
        let pause_as = |kind| {
            let wait = error.retry_after();
            Some(Self::Pause {
                for_ms: millis(pause.max(wait.unwrap_or_default()).min(LONGEST)),
                kind,
                status,
                code: code.clone(),
                retry_after_ms: wait.map(millis),
            })
        };
        match error.kind() {
            ErrorKind::LoginRequired if error.nothing_to_ask_with() => None,
            ErrorKind::LoginRequired => match error.oauth_error() {
                Some("login_required" | "interaction_required" | "consent_required") => {
                    pause_as(Kind::LoginRequired)
                }
                _ if of.is_empty() => None,
                _ => Some(Self::Dead { of, code, possibly_consumed: error.possibly_consumed() }),
            },
            // Without a status there was no response: a connect error, a certificate or a proxy may
            // concern this process alone. A lost response concerns the endpoint.
            ErrorKind::Unavailable if error.status() == Some(PROXY) => None,
            ErrorKind::Unavailable if error.status().is_some() || error.possibly_consumed() => {
                pause_as(Kind::Unavailable)
            }
            ErrorKind::BadResponse if error.status().is_some_and(|s| s.is_server_error()) => {
                pause_as(Kind::BadResponse)
            }
            _ => None,
        }
    }

    /// Whether a failure of the token endpoint may concern only this process, so that the others
    /// should try.
    pub(crate) fn is_own_trouble(error: &Error) -> bool {
        let of_endpoint = matches!(
            error.kind(),
            ErrorKind::InvalidConfig
                | ErrorKind::ClientRejected
                | ErrorKind::Unavailable
                | ErrorKind::BadResponse
                | ErrorKind::Internal
        );
        of_endpoint && Self::of_error(error, Duration::ZERO, Vec::new()).is_none()
    }

    /// The error of a process that obeys this mark.
    pub(crate) fn error(&self) -> Option<Error> {
        let told = |kind, status: Option<u16>, code: Option<&String>| {
            let mut error = Error::new(kind, "another process reported this failure");
            if let Some(status) = status.and_then(|status| StatusCode::from_u16(status).ok()) {
                error = error.with_status(status);
            }
            match code {
                Some(code) => error.with_oauth_error(code.as_str()),
                None => error,
            }
        };
        match self {
            Self::Pause { kind, status, code, retry_after_ms, .. } => {
                let kind = match kind {
                    Kind::Unavailable => ErrorKind::Unavailable,
                    Kind::BadResponse => ErrorKind::BadResponse,
                    Kind::LoginRequired => ErrorKind::LoginRequired,
                };
                let error = told(kind, *status, code.as_ref());
                Some(match retry_after_ms {
                    Some(wait) => error.with_retry_after(Duration::from_millis(*wait)),
                    None => error,
                })
            }
            Self::Dead { code, possibly_consumed, .. } => {
                let error = told(ErrorKind::LoginRequired, None, code.as_ref());
                Some(if *possibly_consumed { error.with_possibly_consumed() } else { error })
            }
            Self::Cleared { .. } => {
                Some(Error::new(ErrorKind::LoginRequired, "another process logged out"))
            }
            Self::Nothing => None,
        }
    }
}

/// Identifies a refresh token and its recipient without revealing the token.
pub(crate) fn fingerprint(refresh: &RefreshToken, sent_to: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in std::iter::once(refresh.expose_secret()).chain(sent_to.iter().copied()) {
        // Includes each length, so that two different lists never have the same input.
        hash.update(part.len().to_be_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_its_text() {
        let error = Error::of(ErrorKind::Unavailable)
            .with_status(StatusCode::TOO_MANY_REQUESTS)
            .with_retry_after(Duration::from_secs(20));
        let says = Says::of_error(&error, Duration::from_secs(10), Vec::new()).unwrap();
        let mark = StoredFailure::new(says.clone());
        let read = StoredFailure::from_text(mark.as_str());
        assert_eq!(read.says(), Some(&says));
        assert_eq!(read.lifetime(), Some(Duration::from_secs(20)));
        let told = read.says().unwrap().error().unwrap();
        assert_eq!(told.kind(), ErrorKind::Unavailable);
        assert_eq!(told.status(), Some(StatusCode::TOO_MANY_REQUESTS));
        assert_ne!(mark, StoredFailure::new(says), "two failures are two marks");
    }

    #[test]
    fn what_is_shared() {
        let status =
            |kind, status| Error::of(kind).with_status(StatusCode::from_u16(status).unwrap());
        let table = [
            (status(ErrorKind::Unavailable, 503), "pause"),
            (Error::of(ErrorKind::Unavailable).with_possibly_consumed(), "pause"),
            (Error::of(ErrorKind::Unavailable), "nothing"),
            (status(ErrorKind::Unavailable, 407), "nothing"),
            (status(ErrorKind::BadResponse, 200), "nothing"),
            (Error::of(ErrorKind::InvalidConfig), "nothing"),
            (status(ErrorKind::ClientRejected, 401), "nothing"),
            (Error::of(ErrorKind::Internal), "nothing"),
            (Error::of(ErrorKind::LoginRequired).with_nothing_to_ask_with(), "nothing"),
            (Error::of(ErrorKind::LoginRequired).with_oauth_error("invalid_grant"), "dead"),
            (Error::of(ErrorKind::LoginRequired).with_oauth_error("consent_required"), "pause"),
        ];
        for (error, expected) in table {
            let says = Says::of_error(&error, Duration::from_secs(10), vec!["of".into()]);
            let found = match says {
                Some(Says::Pause { .. }) => "pause",
                Some(Says::Dead { .. }) => "dead",
                _ => "nothing",
            };
            assert_eq!(found, expected, "{error:?}");
        }
    }

    #[test]
    fn odd_texts_say_nothing() {
        for text in ["", "x", "{}", r#"{"id":"a","says":{"later":{}}}"#, &"x".repeat(5000)] {
            let odd = StoredFailure::from_text(text);
            assert_eq!(odd.says(), None, "{text}");
            assert_eq!(odd.lifetime(), None, "{text}");
        }
        let far = r#"{"id":"a","says":{"pause":{"for_ms":99999999,"kind":"unavailable"}}}"#;
        assert_eq!(StoredFailure::from_text(far).lifetime(), Some(LONGEST));
        assert_eq!(StoredFailure::new(Says::Nothing).lifetime(), Some(Duration::ZERO));
    }

    #[test]
    fn a_fingerprint_covers_token_and_endpoint() {
        let token = |text: &str| RefreshToken::new(text).unwrap();
        let of = fingerprint(&token("r"), &["https://a", "id"]);
        assert_eq!(of.len(), 64);
        assert_eq!(of, fingerprint(&token("r"), &["https://a", "id"]));
        assert_ne!(of, fingerprint(&token("r"), &["https://ai", "d"]));
        assert_ne!(of, fingerprint(&token("s"), &["https://a", "id"]));
    }
}
