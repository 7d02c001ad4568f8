//! The server's logins, and its verdict on a token. There is no I/O and no clock: the time is an
//! argument.
//!
//! Tokens are self-contained and signed by the server. A grant is a few counters, however long a
//! test runs.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{
    jwt::{self, Claims, Key},
    settings::{Rotation, Settings},
};

const ISSUER: &str = "reqwest-reauth test server";
const AUDIENCE: &str = "api";
const ACCESS: &str = "at";
const REFRESH: &str = "rt";

/// All logins of a server. Times are in seconds since the epoch.
pub(super) struct Grants {
    settings: Settings,
    key: Key,
    by_subject: HashMap<String, Grant>,
}

/// One login. Token numbers increase, so a token's number shows its age.
#[derive(Debug, Default)]
struct Grant {
    /// The number of the newest access token.
    newest: u64,
    /// Access tokens up to this number are rejected.
    dead_up_to: u64,
    /// The number of the valid refresh token.
    refresh: u64,
    revoked: bool,
    /// The thumbprint of the key that the login is bound to.
    bound_to: Option<String>,
}

/// The verdict on a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Valid. With `reissue`, the response carries a new token.
    Good { reissue: bool },
    /// Genuine, but expired, superseded or revoked.
    Over,
    /// From another server, or of no known login.
    Invalid,
}

/// An access token signed by this server, and its claims.
#[derive(Clone, Debug)]
pub(super) struct Presented {
    pub(super) subject: String,
    pub(super) id: String,
    number: u64,
    issued_at: f64,
    expires_at: f64,
    claims: Claims,
}

/// The tokens that the token endpoint issues.
#[derive(Debug)]
pub(super) struct Issued {
    pub(super) subject: String,
    pub(super) access: String,
    pub(super) refresh: Option<String>,
}

/// Why the token endpoint issues no tokens (RFC 6749 §5.2: `invalid_grant`).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotIssued {
    Unknown,
    Revoked,
    /// A spent refresh token was reused, so the grant is revoked.
    Reused(String),
}

impl Grants {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, key: Key::random(), by_subject: HashMap::new() }
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// Creates a login. It ends an earlier login of the same subject.
    pub(super) fn login(&mut self, subject: &str, now: f64) -> Issued {
        let grant = self.by_subject.entry(subject.to_owned()).or_default();
        grant.revoked = false;
        grant.bound_to = None;
        grant.dead_up_to = grant.newest;
        // Skips one number, so that no earlier refresh token counts as the one spent last.
        grant.refresh += 2;
        let refresh = grant.refresh;
        Issued {
            subject: subject.to_owned(),
            access: self.issue(subject, &self.settings.claims.clone(), now),
            refresh: Some(self.refresh_token(subject, refresh)),
        }
    }

    /// Exchanges a refresh token for new tokens.
    pub(super) fn refresh(&mut self, token: &str, now: f64) -> Result<Issued, NotIssued> {
        let (subject, number) = self.read_refresh_token(token).ok_or(NotIssued::Unknown)?;
        let grant = self.by_subject.get_mut(&subject).ok_or(NotIssued::Unknown)?;
        if grant.revoked {
            return Err(NotIssued::Revoked);
        }
        let spent_last = number.checked_add(1) == Some(grant.refresh);
        let successor = match self.settings.rotation {
            Rotation::Off if number == grant.refresh => None,
            Rotation::Off => return Err(NotIssued::Unknown),
            Rotation::SingleUse | Rotation::ReuseGrace if number == grant.refresh => {
                grant.refresh += 1;
                Some(grant.refresh)
            }
            Rotation::ReuseGrace if spent_last => Some(grant.refresh),
            Rotation::SingleUse | Rotation::ReuseGrace => {
                grant.revoked = true;
                return Err(NotIssued::Reused(subject));
            }
        };
        let refresh = successor.map(|number| self.refresh_token(&subject, number));
        let access = self.issue(&subject, &self.settings.claims.clone(), now);
        Ok(Issued { subject, access, refresh })
    }

    /// Issues a new token with the claims of a valid one.
    pub(super) fn reissue(&mut self, old: &Presented, now: f64) -> String {
        self.issue(&old.subject, &old.claims, now)
    }

    /// Checks a token: the signature first, then every claim, and the expiry last.
    pub(super) fn judge(&self, token: &str, now: f64) -> (Option<Presented>, Standing) {
        let Some(presented) = self.read_access_token(token) else {
            return (None, Standing::Invalid);
        };
        let standing = match self.by_subject.get(&presented.subject) {
            Some(grant) => standing(&self.settings, grant, &presented, now),
            None => Standing::Invalid,
        };
        (Some(presented), standing)
    }

    /// Whether this key may use the login's tokens. The first key that is used binds the login.
    #[cfg(feature = "dpop")]
    pub(super) fn is_bound_to(&mut self, subject: &str, thumbprint: &str) -> bool {
        let Some(grant) = self.by_subject.get_mut(subject) else { return false };
        grant.bound_to.get_or_insert_with(|| thumbprint.to_owned()) == thumbprint
    }

    /// Rejects all access tokens issued so far.
    pub(super) fn expire_now(&mut self) {
        for grant in self.by_subject.values_mut() {
            grant.dead_up_to = grant.newest;
        }
    }

    /// Ends the login: both of its tokens are rejected.
    pub(super) fn revoke(&mut self, subject: &str) {
        if let Some(grant) = self.by_subject.get_mut(subject) {
            grant.revoked = true;
        }
    }

    pub(super) fn is_revoked(&self, subject: &str) -> bool {
        self.by_subject.get(subject).is_some_and(|grant| grant.revoked)
    }

    /// The subject of this refresh token, valid or not.
    pub(super) fn subject_of(&self, refresh_token: &str) -> Option<String> {
        Some(self.read_refresh_token(refresh_token)?.0)
    }

    fn issue(&mut self, subject: &str, claims: &Claims, now: f64) -> String {
        let grant = self.by_subject.entry(subject.to_owned()).or_default();
        grant.newest += 1;
        let lifetime = self.settings.lifetime;
        let (now, ends) = if lifetime.subsec_nanos() == 0 && lifetime.as_secs() >= 60 {
            // `now` is positive and below 2^53.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let now = now as u64;
            (json!(now), json!(now + lifetime.as_secs()))
        } else {
            let milliseconds = |seconds: f64| json!((seconds * 1000.0).round() / 1000.0);
            (milliseconds(now), milliseconds(now + lifetime.as_secs_f64()))
        };
        let mut claims = claims.clone();
        claims.insert("iss".into(), ISSUER.into());
        claims.insert("aud".into(), AUDIENCE.into());
        claims.insert("sub".into(), subject.into());
        claims.insert("jti".into(), format!("{subject}#{}", grant.newest).into());
        if let Some(thumbprint) = &grant.bound_to {
            claims.insert("cnf".into(), json!({ "jkt": thumbprint }));
        }
        claims.insert("iat".into(), now);
        claims.insert("exp".into(), ends);
        if self.settings.opaque {
            self.key.opaque(ACCESS, &jwt::json(&claims))
        } else {
            self.key.jwt(&claims)
        }
    }

    fn read_access_token(&self, token: &str) -> Option<Presented> {
        let claims: Claims = if self.settings.opaque {
            serde_json::from_str(&self.key.verify_opaque(ACCESS, token)?).ok()?
        } else {
            self.key.verify_jwt(token)?
        };
        let text = |name| claims.get(name).and_then(Value::as_str);
        let (subject, id) = (text("sub")?.to_owned(), text("jti")?.to_owned());
        if text("iss") != Some(ISSUER) || text("aud") != Some(AUDIENCE) {
            return None;
        }
        let number = id.strip_prefix(&subject)?.strip_prefix('#')?.parse().ok()?;
        let (issued_at, expires_at) = (claims.get("iat")?.as_f64()?, claims.get("exp")?.as_f64()?);
        Some(Presented { subject, id, number, issued_at, expires_at, claims })
    }

    fn refresh_token(&self, subject: &str, number: u64) -> String {
        self.key.opaque(REFRESH, &format!("{subject}#{number}"))
    }

    fn read_refresh_token(&self, token: &str) -> Option<(String, u64)> {
        let text = self.key.verify_opaque(REFRESH, token)?;
        let (subject, number) = text.rsplit_once('#')?;
        Some((subject.to_owned(), number.parse().ok()?))
    }
}

fn standing(settings: &Settings, grant: &Grant, token: &Presented, now: f64) -> Standing {
    let not_yet = token.claims.get("nbf").and_then(Value::as_f64).is_some_and(|nbf| now < nbf);
    if not_yet || token.number > grant.newest {
        return Standing::Invalid;
    }
    let superseded = settings.only_newest && token.number < grant.newest;
    if grant.revoked || superseded || token.number <= grant.dead_up_to {
        return Standing::Over;
    }
    if now >= token.expires_at {
        let in_grace = now < token.expires_at + settings.grace.as_secs_f64();
        return if in_grace { Standing::Good { reissue: true } } else { Standing::Over };
    }
    let due =
        |fraction: f64| now >= token.issued_at + fraction * (token.expires_at - token.issued_at);
    Standing::Good { reissue: settings.reissue_after.is_some_and(due) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::settings::AuthServerBuilder;

    fn grants(settings: AuthServerBuilder) -> Grants {
        Grants::new(settings.settings)
    }

    fn ten_seconds() -> AuthServerBuilder {
        AuthServerBuilder::new().lifetime(Duration::from_secs(10))
    }

    const GOOD: Standing = Standing::Good { reissue: false };
    const REISSUED: Standing = Standing::Good { reissue: true };

    #[test]
    fn a_token_is_worth_what_its_age_says() {
        let plain = ten_seconds();
        let reissuing = ten_seconds().reissue_after(0.8);
        let graceful = ten_seconds().reissue_after(0.8).grace(Duration::from_secs(5));
        let table = [
            (&plain, 0.0, GOOD),
            (&plain, 9.9, GOOD),
            (&plain, 10.0, Standing::Over),
            (&plain, 10.1, Standing::Over),
            (&reissuing, 7.9, GOOD),
            (&reissuing, 8.1, REISSUED),
            (&reissuing, 10.1, Standing::Over),
            (&graceful, 7.9, GOOD),
            (&graceful, 10.1, REISSUED),
            (&graceful, 14.9, REISSUED),
            (&graceful, 15.0, Standing::Over),
            (&graceful, 15.1, Standing::Over),
        ];
        for (settings, age, expected) in table {
            for settings in [settings.clone(), settings.clone().opaque_tokens()] {
                let mut grants = grants(settings);
                let issued = grants.login("a", 1000.0);
                assert_eq!(
                    grants.judge(&issued.access, 1000.0 + age).1,
                    expected,
                    "{:?} at {age}",
                    grants.settings
                );
            }
        }
    }

    #[test]
    fn grace_relaxes_nothing_but_the_expiry() {
        let mut grants =
            grants(ten_seconds().grace(Duration::from_secs(5)).claim("scope", "execution"));
        let issued = grants.login("a", 1000.0);
        let (presented, standing) = grants.judge(&issued.access, 1012.0);
        assert_eq!(standing, REISSUED);
        let presented = presented.unwrap();

        for (name, value) in [
            ("iss", json!("another")),
            ("aud", json!("another")),
            ("sub", json!("b")),
            ("jti", json!("a#2")),
            ("nbf", json!(1013)),
            ("exp", json!("10")),
        ] {
            let mut claims = presented.claims.clone();
            claims.insert(name.into(), value);
            let token = grants.key.jwt(&claims);
            assert_eq!(grants.judge(&token, 1012.0).1, Standing::Invalid, "{name}");
        }
        assert_eq!(
            grants.judge(&Key::random().jwt(&presented.claims), 1012.0).1,
            Standing::Invalid
        );
        let mut from_now_on = presented.claims.clone();
        from_now_on.insert("nbf".into(), json!(1012));
        assert_eq!(grants.judge(&grants.key.jwt(&from_now_on), 1012.0).1, REISSUED);

        let reissued = grants.reissue(&presented, 1012.0);
        let mut claims = grants.judge(&reissued, 1012.0).0.unwrap().claims;
        assert_eq!(&claims["iat"], &json!(1012.0));
        assert_eq!(&claims["exp"], &json!(1022.0));
        for name in ["iat", "exp", "jti"] {
            claims.insert(name.into(), presented.claims[name].clone());
        }
        assert_eq!(claims, presented.claims);
    }

    #[test]
    fn a_revoked_grant_has_no_grace() {
        let mut grants = grants(ten_seconds().grace(Duration::from_secs(5)));
        let issued = grants.login("a", 1000.0);
        grants.revoke("a");
        assert_eq!(grants.judge(&issued.access, 1012.0).1, Standing::Over);
        assert_eq!(
            grants.refresh(&issued.refresh.unwrap(), 1012.0).unwrap_err(),
            NotIssued::Revoked
        );
    }

    #[test]
    fn a_new_login_ends_the_earlier_one() {
        let reused = || NotIssued::Reused("a".into());
        for (rotation, why) in [
            (Rotation::SingleUse, reused()),
            (Rotation::ReuseGrace, reused()),
            (Rotation::Off, NotIssued::Unknown),
        ] {
            let mut grants = grants(ten_seconds().rotation(rotation));
            let first = grants.login("a", 1000.0);
            let second = grants.login("a", 1000.0);
            assert_eq!(grants.judge(&first.access, 1000.0).1, Standing::Over);
            assert_eq!(grants.judge(&second.access, 1000.0).1, GOOD);
            assert_eq!(
                grants.refresh(&first.refresh.unwrap(), 1000.0).unwrap_err(),
                why,
                "{rotation:?}"
            );
        }
    }

    #[test]
    fn spent_refresh_tokens_end_single_use_grants() {
        let mut grants = grants(ten_seconds());
        let login = grants.login("a", 1000.0);
        let spent = login.refresh.unwrap();
        let next = grants.refresh(&spent, 1000.0).unwrap();
        assert_eq!(grants.refresh(&spent, 1000.0).unwrap_err(), NotIssued::Reused("a".into()));
        assert_eq!(grants.refresh(&next.refresh.unwrap(), 1000.0).unwrap_err(), NotIssued::Revoked);
        assert_eq!(grants.judge(&next.access, 1000.0).1, Standing::Over);
    }

    #[test]
    fn reuse_grace_is_one_deep() {
        let mut grants = grants(ten_seconds().rotation(Rotation::ReuseGrace));
        let first = grants.login("a", 1000.0).refresh.unwrap();
        let second = grants.refresh(&first, 1000.0).unwrap().refresh.unwrap();
        assert_eq!(grants.refresh(&first, 1000.0).unwrap().refresh.unwrap(), second);
        grants.refresh(&second, 1000.0).unwrap();
        assert_eq!(grants.refresh(&first, 1000.0).unwrap_err(), NotIssued::Reused("a".into()));
    }

    #[test]
    fn without_rotation_a_refresh_token_stays() {
        let mut grants = grants(ten_seconds().rotation(Rotation::Off));
        let login = grants.login("a", 1000.0).refresh.unwrap();
        for _ in 0..3 {
            assert!(grants.refresh(&login, 1000.0).unwrap().refresh.is_none());
        }
    }

    #[test]
    fn a_strict_server_takes_the_newest_token() {
        let mut grants = grants(ten_seconds().only_newest_token());
        let login = grants.login("a", 1000.0);
        let next = grants.refresh(&login.refresh.unwrap(), 1000.0).unwrap();
        assert_eq!(grants.judge(&login.access, 1000.0).1, Standing::Over);
        assert_eq!(grants.judge(&next.access, 1000.0).1, GOOD);
    }
}
