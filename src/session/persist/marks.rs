//! What a session does about the failure beside the tokens (contract 10.8). Pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    error::Error,
    store::{Says, StoredFailure, fingerprint},
    token::RefreshToken,
};

/// The failure beside the tokens, as this session last saw it.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    mark: StoredFailure,
    /// When the session first saw the mark. A transient failure counts for a duration from then on,
    /// not until a date.
    since: Instant,
    /// Whether this session has left the mark. Its own state then decides.
    is_own: bool,
}

impl Heard {
    pub(super) fn own(mark: StoredFailure, now: Instant) -> Self {
        Self { mark, since: now, is_own: true }
    }

    /// The recorded failure after this mark was found. A mark that was seen before keeps its first
    /// time.
    pub(super) fn next(
        before: Option<Box<Self>>,
        found: Option<StoredFailure>,
        now: Instant,
    ) -> Option<Box<Self>> {
        let mark = found?;
        match before {
            Some(before) if before.mark == mark => Some(before),
            _ => Some(Box::new(Self { mark, since: now, is_own: false })),
        }
    }

    pub(super) fn mark(&self) -> &StoredFailure {
        &self.mark
    }

    pub(super) fn says(&self) -> Option<&Says> {
        self.mark.says()
    }
}

/// What a session does before a refresh.
#[derive(Debug)]
pub(in crate::session) enum Advice {
    /// Call the token endpoint, or wait for the lock.
    Ask,
    /// Fail, because no call is made to the token endpoint for this long.
    StandBack { cause: Error, left: Duration },
    /// Do not send this refresh token, because it is invalid.
    Dead(Error),
    /// Fail, because another process has logged out.
    LoggedOut(Error),
}

/// `refresh` is the refresh token to send. `sent_to` identifies its recipient, if it is known.
pub(super) fn advise(
    heard: Option<&Heard>,
    refresh: Option<&RefreshToken>,
    sent_to: Option<&str>,
    now: Instant,
) -> Advice {
    let Some(heard) = heard.filter(|heard| !heard.is_own) else { return Advice::Ask };
    let Some((says, error)) = heard.says().and_then(|says| Some((says, says.error()?))) else {
        return Advice::Ask;
    };
    let names = |of: &[String], parts: &[&str]| {
        refresh.is_some_and(|refresh| of.contains(&fingerprint(refresh, parts)))
    };
    match says {
        Says::Pause { .. } => {
            let lifetime = heard.mark.lifetime().unwrap_or_default();
            let left = lifetime.saturating_sub(now.saturating_duration_since(heard.since));
            if left.is_zero() { Advice::Ask } else { Advice::StandBack { cause: error, left } }
        }
        Says::Dead { of, .. } if sent_to.is_some_and(|sent_to| names(of, &[sent_to])) => {
            Advice::Dead(error)
        }
        Says::Cleared { of } if names(of, &[]) => Advice::LoggedOut(error),
        Says::Dead { .. } | Says::Cleared { .. } | Says::Nothing => Advice::Ask,
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::error::ErrorKind;

    const SECOND: Duration = Duration::from_secs(1);

    fn token(text: &str) -> RefreshToken {
        RefreshToken::new(text).unwrap()
    }

    fn pause(length: Duration) -> Says {
        let error = Error::of(ErrorKind::Unavailable).with_status(StatusCode::SERVICE_UNAVAILABLE);
        Says::of_error(&error, length, Vec::new()).unwrap()
    }

    fn dead(refresh: &str, sent_to: &str) -> Says {
        let error = Error::of(ErrorKind::LoginRequired).with_oauth_error("invalid_grant");
        Says::of_error(&error, SECOND, vec![fingerprint(&token(refresh), &[sent_to])]).unwrap()
    }

    fn cleared(refresh: &str) -> Says {
        Says::Cleared { of: vec![fingerprint(&token(refresh), &[])] }
    }

    fn name(advice: &Advice) -> String {
        match advice {
            Advice::Ask => "ask".to_owned(),
            Advice::StandBack { cause, left } => {
                format!("stand back {} s: {:?}", left.as_secs(), cause.kind())
            }
            Advice::Dead(_) => "dead".to_owned(),
            Advice::LoggedOut(_) => "logged out".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_session_does_about_a_mark() {
        // The columns: the mark, the time since it was seen, the refresh token, its recipient, and
        // the advice.
        let table = [
            (pause(10 * SECOND), 0, Some("r"), Some("e"), "stand back 10 s: Unavailable"),
            (pause(10 * SECOND), 7, None, None, "stand back 3 s: Unavailable"),
            (pause(10 * SECOND), 10, Some("r"), Some("e"), "ask"),
            (pause(3600 * SECOND), 0, Some("r"), Some("e"), "stand back 300 s: Unavailable"),
            (dead("r", "e"), 3600, Some("r"), Some("e"), "dead"),
            (dead("r", "e"), 0, Some("s"), Some("e"), "ask"),
            (dead("r", "e"), 0, Some("r"), Some("f"), "ask"),
            (dead("r", "e"), 0, Some("r"), None, "ask"),
            (dead("r", "e"), 0, None, Some("e"), "ask"),
            (cleared("r"), 3600, Some("r"), None, "logged out"),
            (cleared("r"), 0, Some("s"), Some("e"), "ask"),
            (cleared("r"), 0, None, None, "ask"),
            (Says::Nothing, 0, Some("r"), Some("e"), "ask"),
        ];
        for (says, ago, refresh, sent_to, expected) in table {
            let now = Instant::now();
            let mark = StoredFailure::new(says);
            let heard = Heard::next(None, Some(mark.clone()), now);
            let (refresh, then) = (refresh.map(token), now + SECOND * ago);
            let advice = advise(heard.as_deref(), refresh.as_ref(), sent_to, then);
            assert_eq!(name(&advice), expected, "{mark:?}");
            let own = Heard::own(mark, now);
            let advice = advise(Some(&own), refresh.as_ref(), sent_to, then);
            assert_eq!(name(&advice), "ask", "a mark of its own");
        }
        let advice = advise(None, Some(&token("r")), Some("e"), Instant::now());
        assert_eq!(name(&advice), "ask", "no mark");
    }

    #[tokio::test(start_paused = true)]
    async fn a_mark_counts_from_when_it_was_first_heard() {
        let (mark, now) = (StoredFailure::new(pause(10 * SECOND)), Instant::now());
        let heard = Heard::next(None, Some(mark.clone()), now);
        let heard = Heard::next(heard, Some(mark.clone()), now + 9 * SECOND);
        let at =
            |heard: &Heard, seconds| name(&advise(Some(heard), None, None, now + seconds * SECOND));
        assert_eq!(at(heard.as_deref().unwrap(), 10), "ask");
        let same_again = StoredFailure::new(pause(10 * SECOND));
        let heard = Heard::next(heard, Some(same_again), now + 9 * SECOND);
        assert_eq!(at(heard.as_deref().unwrap(), 10), "stand back 9 s: Unavailable");
        assert!(Heard::next(heard, None, now).is_none());
        let own = Heard::next(Some(Box::new(Heard::own(mark.clone(), now))), Some(mark), now);
        assert_eq!(at(own.as_deref().unwrap(), 1), "ask");
    }
}
