//! Where a response carries new tokens: in a header or a cookie, possibly with a rotated refresh
//! token.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use cookie::Cookie;
use http::{HeaderMap, HeaderName, HeaderValue, header::SET_COOKIE};

use super::names::has_header;
use crate::{
    error::{Error, ErrorKind},
    event::CaptureIgnored,
    token::{AccessToken, RefreshToken, Trimmed, trim_header, trim_token},
};

/// Where the API's responses carry new tokens. See
/// [`SessionBuilder::capture`](crate::SessionBuilder::capture).
///
/// ```
/// use reqwest_reauth::{CaptureFrom, Error, Session, Tokens};
///
/// fn main() -> Result<(), Error> {
///     let session = Session::builder(Tokens::new("token")?)
///         .origin("https://api.example.com")
///         .capture(CaptureFrom::header("X-New-Access-Token").refresh_header("X-New-Refresh-Token"))
///         .build()?;
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct CaptureFrom {
    access: Place,
    refresh: Option<Place>,
}

#[derive(Clone, Debug)]
enum Place {
    Header(HeaderName),
    Cookie(String),
    BadHeader(Arc<http::Error>),
}

impl CaptureFrom {
    /// Reads the access token from this response header. A leading `Bearer ` is removed.
    ///
    /// An invalid header name is reported as [`InvalidConfig`](ErrorKind::InvalidConfig) by
    /// [`build`](crate::SessionBuilder::build).
    pub fn header<N>(name: N) -> Self
    where
        N: TryInto<HeaderName>,
        N::Error: Into<http::Error>,
    {
        Self { access: Place::header(name), refresh: None }
    }

    /// Also reads a new refresh token from this response header. It is used only together with an
    /// access token that the session adopts.
    pub fn refresh_header<N>(mut self, name: N) -> Self
    where
        N: TryInto<HeaderName>,
        N::Error: Into<http::Error>,
    {
        self.refresh = Some(Place::header(name));
        self
    }

    /// Reads the access token from this cookie in `Set-Cookie`. Cookie names are case-sensitive. A
    /// cookie that is empty or expired is ignored.
    ///
    /// An invalid cookie name is reported as [`InvalidConfig`](ErrorKind::InvalidConfig) by
    /// [`build`](crate::SessionBuilder::build).
    pub fn cookie(name: impl Into<String>) -> Self {
        Self { access: Place::Cookie(name.into()), refresh: None }
    }

    /// Also reads a new refresh token from this cookie. It is used only together with an access
    /// token that the session adopts.
    pub fn refresh_cookie(mut self, name: impl Into<String>) -> Self {
        self.refresh = Some(Place::Cookie(name.into()));
        self
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        std::iter::once(&self.access).chain(&self.refresh)
    }
}

impl From<HeaderName> for CaptureFrom {
    fn from(name: HeaderName) -> Self {
        Self::header(name)
    }
}

impl Place {
    fn header<N>(name: N) -> Self
    where
        N: TryInto<HeaderName>,
        N::Error: Into<http::Error>,
    {
        match name.try_into() {
            Ok(name) => Self::Header(name),
            Err(error) => Self::BadHeader(Arc::new(error.into())),
        }
    }

    fn check(&self) -> Result<(), Error> {
        match self {
            Self::Cookie(name) if !is_cookie_name(name) => Err(Error::new(
                ErrorKind::InvalidConfig,
                "the name of the cookie to capture is invalid",
            )),
            Self::BadHeader(error) => Err(Error::new(ErrorKind::InvalidConfig, Arc::clone(error))),
            Self::Header(_) | Self::Cookie(_) => Ok(()),
        }
    }

    /// The name of the header that carries the token.
    fn name(&self) -> Option<&HeaderName> {
        match self {
            Self::Header(name) => Some(name),
            Self::Cookie(_) => Some(&SET_COOKIE),
            Self::BadHeader(_) => None,
        }
    }
}

/// Accepts more than RFC 6265 §4.1.1, because servers use such names: anything that parsing a
/// `Set-Cookie` line can return as a name.
fn is_cookie_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'=' | b';' | b','))
}

/// All channels of a session.
#[derive(Clone, Debug)]
pub(crate) struct Channels(Arc<Known>);

#[derive(Debug)]
struct Known {
    all: Box<[CaptureFrom]>,
    /// The headers that can carry a token, almost always a single one.
    names: Box<[HeaderName]>,
}

/// The new tokens of a response.
#[derive(Debug, PartialEq)]
pub(crate) struct Brought {
    pub(crate) access: AccessToken,
    pub(crate) refresh: Option<RefreshToken>,
}

impl Channels {
    /// # Errors
    /// `InvalidConfig` for an invalid header or cookie name.
    pub(crate) fn new(all: Vec<CaptureFrom>) -> Result<Self, Error> {
        for place in all.iter().flat_map(CaptureFrom::places) {
            place.check()?;
        }
        let mut names: Vec<HeaderName> = Vec::new();
        for name in all.iter().flat_map(CaptureFrom::places).filter_map(Place::name) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        Ok(Self(Arc::new(Known { all: all.into(), names: names.into() })))
    }

    /// The default channel, `Refreshed-API-Token`. Almost all sessions share it.
    pub(crate) fn standard() -> Self {
        static STANDARD: LazyLock<Channels> = LazyLock::new(|| {
            let name = HeaderName::from_static("refreshed-api-token");
            let (all, names) = ([CaptureFrom::from(name.clone())].into(), [name].into());
            Channels(Arc::new(Known { all, names }))
        });
        STANDARD.clone()
    }

    /// Whether these headers may carry a token. For almost all sessions this looks up a single
    /// name.
    #[inline]
    pub(crate) fn may_bring(&self, headers: &HeaderMap) -> bool {
        self.0.names.iter().any(|name| has_header(headers, name))
    }

    /// Marks every header that may carry a token as sensitive.
    pub(crate) fn conceal(&self, headers: &mut HeaderMap) {
        for name in &self.0.names {
            if has_header(headers, name)
                && let http::header::Entry::Occupied(mut values) = headers.entry(name)
            {
                values.iter_mut().for_each(|value| value.set_sensitive(true));
            }
        }
    }

    /// Whether these headers contain this token, and no other, in its plain form. If so, its value
    /// is marked sensitive.
    ///
    /// This is a fast path for servers that send the token with each response. It compares the
    /// names one by one, and does not parse the value as a token. A result of `false` says nothing.
    pub(crate) fn bring(&self, headers: &mut HeaderMap, token: &AccessToken) -> bool {
        let [CaptureFrom { access: Place::Header(name), refresh: None }] = &*self.0.all else {
            return false;
        };
        let text = token.expose_secret();
        let mut values =
            headers.iter_mut().filter(|(other, _)| *other == name).map(|(_, value)| value);
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let brings = value == text || value == token.header();
        value.set_sensitive(true);
        brings && !text.contains(',')
    }

    /// Returns the new tokens of a response, or `None` if there are none. Channels that disagree
    /// count as none.
    pub(crate) fn read(
        &self,
        headers: &HeaderMap,
        now: SystemTime,
    ) -> Result<Option<Brought>, CaptureIgnored> {
        let mut brought: Option<Brought> = None;
        for channel in &self.0.all {
            let Some(access) = channel.access.read_access(headers, now)? else {
                continue;
            };
            let refresh =
                channel.refresh.as_ref().and_then(|place| place.read_refresh(headers, now));
            match &mut brought {
                None => brought = Some(Brought { access, refresh }),
                Some(first) if first.access != access => return Err(CaptureIgnored::Malformed),
                Some(first) => match (&first.refresh, refresh) {
                    (Some(one), Some(other)) if *one != other => {
                        return Err(CaptureIgnored::Malformed);
                    }
                    (None, other) => first.refresh = other,
                    (Some(_), _) => {}
                },
            }
        }
        Ok(brought)
    }
}

impl Place {
    fn read_access(
        &self,
        headers: &HeaderMap,
        now: SystemTime,
    ) -> Result<Option<AccessToken>, CaptureIgnored> {
        match self.read(headers, now) {
            Found::Nothing => Ok(None),
            Found::One(text) if !text.contains(',') => {
                AccessToken::new(text).map(Some).map_err(|_| CaptureIgnored::Malformed)
            }
            Found::One(_) | Found::Malformed => Err(CaptureIgnored::Malformed),
        }
    }

    /// A malformed refresh token counts as absent.
    fn read_refresh(&self, headers: &HeaderMap, now: SystemTime) -> Option<RefreshToken> {
        match self.read(headers, now) {
            Found::One(text) if !text.contains(',') => RefreshToken::new(text).ok(),
            Found::One(_) | Found::Nothing | Found::Malformed => None,
        }
    }

    fn read<'a>(&self, headers: &'a HeaderMap, now: SystemTime) -> Found<'a> {
        match self {
            Self::Header(name) => agreed(headers.get_all(name).iter().map(in_header)),
            Self::Cookie(name) => agreed(
                headers.get_all(SET_COOKIE).iter().filter_map(|line| in_cookie(line, name, now)),
            ),
            Self::BadHeader(_) => Found::Nothing,
        }
    }
}

/// What one channel found in a response.
#[derive(Debug, PartialEq)]
enum Found<'a> {
    Nothing,
    One(&'a str),
    Malformed,
}

/// The text on which all values agree.
fn agreed<'a>(values: impl Iterator<Item = Found<'a>>) -> Found<'a> {
    values
        .reduce(|first, other| if first == other { first } else { Found::Malformed })
        .unwrap_or(Found::Nothing)
}

/// A header that is present but holds no token is malformed.
fn in_header(value: &HeaderValue) -> Found<'_> {
    match trim_header(value) {
        Some(Trimmed::Token(text)) => Found::One(text),
        Some(Trimmed::Nothing) | None => Found::Malformed,
    }
}

/// Returns `None` for another cookie, and for a removed cookie (RFC 6265 §4.1.2).
fn in_cookie<'a>(line: &'a HeaderValue, name: &str, now: SystemTime) -> Option<Found<'a>> {
    let bytes = line.as_bytes();
    let Ok(text) = line.to_str() else {
        // The name may be readable even if the value is not.
        let is_it = bytes.trim_ascii_start().strip_prefix(name.as_bytes());
        let is_it = is_it.is_some_and(|rest| rest.trim_ascii_start().starts_with(b"="));
        return is_it.then_some(Found::Malformed);
    };
    let cookie = Cookie::parse(text).ok().filter(|cookie| cookie.name() == name)?;
    if is_removed(&cookie, now) {
        return None;
    }
    let Some(value) = cookie.value_raw() else {
        return Some(Found::Malformed);
    };
    let value = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
    let text = trim_token(value);
    (!text.is_empty()).then_some(Found::One(text))
}

/// RFC 6265 §4.1.2.2: `Max-Age` takes precedence over `Expires`.
fn is_removed(cookie: &Cookie<'_>, now: SystemTime) -> bool {
    match (cookie.max_age(), cookie.expires_datetime()) {
        (Some(age), _) => !age.is_positive(),
        (None, Some(at)) => {
            let at = u64::try_from(at.unix_timestamp()).unwrap_or(0);
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(at)).is_some_and(|at| at <= now)
        }
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_that_is_known_is_found_without_reading_it() {
        let header = || CaptureFrom::header("x-new");
        let (plain, comma) = ("an.access.token", "a,b");
        let table: &[(CaptureFrom, &str, &[&str], bool)] = &[
            (header(), plain, &[plain], true),
            (header(), plain, &["Bearer an.access.token"], true),
            // The fast path does not apply to these.
            (header(), plain, &[], false),
            (header(), plain, &["another"], false),
            (header(), plain, &[plain, plain], false),
            (header(), comma, &[comma], false),
            (header().refresh_header("x-other"), plain, &[plain], false),
            (CaptureFrom::cookie("x-new"), plain, &[plain], false),
        ];
        for (channel, token, values, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert("x-first", HeaderValue::from_static("1"));
            for value in *values {
                headers.append("x-new", HeaderValue::from_str(value).unwrap());
            }
            let channels = Channels::new(vec![channel.clone()]).unwrap();
            let token = AccessToken::new(*token).unwrap();
            assert_eq!(channels.bring(&mut headers, &token), *expected, "{channel:?} {values:?}");
            if *expected {
                assert!(headers["x-new"].is_sensitive());
            }
        }
    }

    type Read = Result<Option<(String, Option<String>)>, CaptureIgnored>;

    fn read(channels: &[CaptureFrom], lines: &[(&str, &str)]) -> Read {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let now = httpdate::parse_http_date("Wed, 01 Jan 2025 00:00:00 GMT").unwrap();
        let brought = Channels::new(channels.to_vec()).unwrap().read(&headers, now)?;
        Ok(brought.map(|Brought { access, refresh }| {
            let refresh = refresh.map(|token| token.expose_secret().to_owned());
            (access.expose_secret().to_owned(), refresh)
        }))
    }

    #[allow(clippy::unnecessary_wraps, reason = "it is what the table compares")]
    fn one(access: &str) -> Read {
        Ok(Some((access.to_owned(), None)))
    }

    #[allow(clippy::unnecessary_wraps, reason = "it is what the table compares")]
    fn both(access: &str, refresh: &str) -> Read {
        Ok(Some((access.to_owned(), Some(refresh.to_owned()))))
    }

    const MALFORMED: Read = Err(CaptureIgnored::Malformed);

    #[test]
    fn headers_bring_tokens() {
        let channel = [CaptureFrom::header("X-A").refresh_header("X-R")];
        let table: &[(&[(&str, &str)], Read)] = &[
            (&[], Ok(None)),
            (&[("x-r", "r")], Ok(None)),
            (&[("x-a", "a")], one("a")),
            (&[("x-a", " Bearer a ")], one("a")),
            (&[("x-a", "a"), ("x-a", "Bearer a")], one("a")),
            (&[("x-a", "a"), ("x-r", "r")], both("a", "r")),
            (&[("x-a", "a"), ("x-r", "")], one("a")),
            (&[("x-a", "a"), ("x-r", "r s")], one("a")),
            (&[("x-a", "a"), ("x-r", "r,s")], one("a")),
            (&[("x-a", "a"), ("x-r", "r"), ("x-r", "s")], one("a")),
            (&[("x-a", "")], MALFORMED),
            (&[("x-a", "Bearer")], MALFORMED),
            (&[("x-a", "a b")], MALFORMED),
            (&[("x-a", "a,b")], MALFORMED),
            (&[("x-a", "\u{e4}")], MALFORMED),
            (&[("x-a", "a"), ("x-a", "b")], MALFORMED),
            (&[("x-a", "a"), ("x-a", "")], MALFORMED),
        ];
        for (lines, expected) in table {
            assert_eq!(read(&channel, lines), *expected, "{lines:?}");
        }
    }

    #[test]
    fn cookies_bring_tokens() {
        let channel = [CaptureFrom::cookie("JWT").refresh_cookie("RT")];
        let table: &[(&[&str], Read)] = &[
            (&["session=x; Path=/"], Ok(None)),
            (&["JWT=a; Path=/; HttpOnly"], one("a")),
            (&["JWT=\"a\""], one("a")),
            (&["JWT=Bearer a"], one("a")),
            (&["jwt=a"], Ok(None)),
            (&["JWT="], Ok(None)),
            (&["JWT=\"\""], Ok(None)),
            (&["JWT=a; Max-Age=0"], Ok(None)),
            (&["JWT=a; Expires=Thu, 01 Jan 1970 00:00:00 GMT"], Ok(None)),
            (&["JWT=a; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT"], one("a")),
            (&["JWT=a; Expires=Thu, 01 Jan 2026 00:00:00 GMT"], one("a")),
            (&["JWT=; Path=/old; Max-Age=0", "JWT=a; Path=/"], one("a")),
            (&["JWT=a", "RT=r"], both("a", "r")),
            (&["RT=r"], Ok(None)),
            (&["JWT=a", "RT=r; Max-Age=0"], one("a")),
            (&["JWT=a", "RT=r s"], one("a")),
            (&["JWT=a", "JWT=a"], one("a")),
            (&["JWT=a", "JWT=b"], MALFORMED),
            (&["JWT=a b"], MALFORMED),
            (&["JWT=a,b"], MALFORMED),
            (&["JWT=\u{e4}"], MALFORMED),
            (&["NAME=\u{e4}"], Ok(None)),
        ];
        for (lines, expected) in table {
            let headers: Vec<_> = lines.iter().map(|line| ("set-cookie", *line)).collect();
            assert_eq!(read(&channel, &headers), *expected, "{lines:?}");
        }
    }

    #[test]
    fn channels_have_to_agree() {
        let channels = [
            CaptureFrom::header("x-a"),
            CaptureFrom::header("x-b").refresh_header("x-r"),
            CaptureFrom::cookie("C").refresh_cookie("R"),
        ];
        let table: &[(&[(&str, &str)], Read)] = &[
            (&[("x-b", "b")], one("b")),
            (&[("x-a", "a"), ("x-b", "a")], one("a")),
            (&[("x-a", "a"), ("x-b", "a"), ("x-r", "r")], both("a", "r")),
            (&[("x-a", "a"), ("x-r", "r")], one("a")),
            (&[("x-a", "a"), ("x-b", "b")], MALFORMED),
            (&[("x-a", "a"), ("set-cookie", "C=b")], MALFORMED),
            (&[("x-a", "a"), ("x-b", "b c")], MALFORMED),
            (
                &[("x-b", "a"), ("x-r", "r"), ("set-cookie", "C=a"), ("set-cookie", "R=s")],
                MALFORMED,
            ),
        ];
        for (lines, expected) in table {
            assert_eq!(read(&channels, lines), *expected, "{lines:?}");
        }
    }

    #[test]
    fn a_bad_name_is_an_invalid_config() {
        for bad in [
            CaptureFrom::header(""),
            CaptureFrom::header("x a"),
            CaptureFrom::header("x-a").refresh_header("x\n"),
            CaptureFrom::cookie(""),
            CaptureFrom::cookie("a=b"),
            CaptureFrom::cookie("a;b"),
            CaptureFrom::cookie("a b"),
            CaptureFrom::cookie("a").refresh_cookie("\u{e4}"),
        ] {
            let error = Channels::new(vec![bad.clone()]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{bad:?}");
        }
    }
}
