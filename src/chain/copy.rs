//! The copy from which a request is replayed. It is rarely used.
//!
//! The copy is text in one piece of memory, which is parsed only on use. All requests pay for the
//! copy, but only the few that are replayed pay for the parsing. The copy of a small request has no
//! memory of its own, and lies in the future that sends it.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use reqwest::{Body, Request};
use url::Url;
use zeroize::{Zeroize, Zeroizing};

use crate::policy::has_header;

/// Text up to this length is stored in the copy itself. The future of a request then takes 700
/// bytes.
const ROOM: usize = 167;
/// A body up to this length is copied too, because `reqwest` can share a body only by copying the
/// whole request.
const SMALL_BODY: usize = 4 * 1024;
/// Before each header: the length of its name, the length of its value, and whether it is
/// sensitive.
const LENGTHS: usize = 8;
const SENSITIVE: u64 = 1 << 63;

#[derive(Default)]
pub(super) struct Copy {
    text: Text,
    method: Method,
    timeout: Option<Duration>,
    /// The end of the URL, which is at the start of the text.
    url: usize,
    end: usize,
    version: Version,
    body: Kept,
}

/// How the body is kept.
#[derive(Default)]
enum Kept {
    /// The request cannot be replayed.
    #[default]
    Not,
    /// The request has no body.
    None,
    /// A small body is copied to separate memory, because allocators are fast with small pieces.
    Small(Box<[u8]>),
    /// A large body is shared, which is possible only with the whole request.
    Shared(Box<Request>),
}

impl Copy {
    /// The request's own timeout.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// Copies a request. A streamed body cannot be copied.
    pub(super) fn fill(&mut self, request: &Request) {
        self.fill_and_find(request, None);
    }

    /// Copies a request, and returns whether it has a header of this name.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "for 50 instructions of each request")]
    pub(super) fn fill_and_find(&mut self, request: &Request, own: Option<&HeaderName>) -> bool {
        self.timeout = request.timeout().copied();
        self.version = request.version();
        self.body = match request.body().map(Body::as_bytes) {
            None => Kept::None,
            Some(Some(bytes)) if bytes.len() <= SMALL_BODY => Kept::Small(bytes.into()),
            Some(Some(_)) => shared(request),
            Some(None) => Kept::Not,
        };
        if let Kept::Not | Kept::Shared(_) = self.body {
            return own.is_some_and(|own| has_header(request.headers(), own));
        }
        let own = own.map_or("", HeaderName::as_str);
        // Not `clone_from`, which is not inlined.
        let method = request.method().clone();
        self.method = method;
        if let Some(has_own) = self.write(request, own) {
            return has_own;
        }
        self.write_long(request, own)
    }

    /// Writes text that is longer than the copy itself.
    #[cold]
    fn write_long(&mut self, request: &Request, own: &str) -> bool {
        self.wipe_text();
        self.text = Text::Heap(vec![0; length(request)].into());
        self.write(request, own).unwrap_or_else(|| {
            self.body = Kept::Not;
            request.headers().contains_key(own)
        })
    }

    /// Returns whether the request has a header of that name, or `None` if the text has no room.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "for 30 instructions")]
    fn write(&mut self, request: &Request, own: &str) -> Option<bool> {
        let whole = self.text.room();
        let length = whole.len();
        let url = request.url().as_str().as_bytes();
        let (to, mut rest) = whole.split_at_mut_checked(url.len())?;
        to.copy_from_slice(url);
        let mut has_own = false;
        for (name, value) in request.headers() {
            let (name, value, sensitive) = (name.as_str(), value.as_bytes(), value.is_sensitive());
            has_own |= name.len() == own.len() && name == own;
            let (to, after) = rest.split_first_chunk_mut::<LENGTHS>()?;
            let lengths = (name.len() as u64) << 32 | value.len() as u64;
            *to = (if sensitive { lengths | SENSITIVE } else { lengths }).to_ne_bytes();
            let (to, after) = after.split_at_mut_checked(name.len())?;
            to.copy_from_slice(name.as_bytes());
            let (to, after) = after.split_at_mut_checked(value.len())?;
            to.copy_from_slice(value);
            rest = after;
        }
        self.url = url.len();
        self.end = length - rest.len();
        Some(has_own)
    }

    /// Rebuilds the request. `answered` is the URL of its response. That is almost always the URL
    /// of the request, which then need not be parsed.
    pub(super) fn request(&self, answered: &Url) -> Option<Request> {
        let body = match &self.body {
            Kept::Not => return None,
            Kept::Shared(request) => return request.try_clone(),
            Kept::None => None,
            Kept::Small(bytes) => Some(Bytes::from_owner(Wiped(Zeroizing::new(bytes.to_vec())))),
        };
        let text = match &self.text {
            Text::Here(bytes) => &bytes[..],
            Text::Heap(bytes) => bytes,
        };
        let (url, headers) = text.get(..self.end)?.split_at_checked(self.url)?;
        let text_of_url = std::str::from_utf8(url).ok()?;
        let parsed = if answered.as_str() == text_of_url {
            answered.clone()
        } else {
            Url::parse(text_of_url).ok()?
        };
        let mut request = Request::new(self.method.clone(), parsed);
        *request.version_mut() = self.version;
        if self.timeout.is_some() {
            *request.timeout_mut() = self.timeout;
        }
        if !headers.is_empty() {
            // The values are stored in separate memory, which is wiped like the copy.
            let headers = Bytes::from_owner(Wiped(Zeroizing::new(headers.to_vec())));
            read(&headers, request.headers_mut())?;
        }
        *request.body_mut() = body.map(Body::from);
        Some(request)
    }
}

impl Copy {
    /// Wipes the text, which may contain secrets. A slice is wiped in one go.
    fn wipe_text(&mut self) {
        match &mut self.text {
            // All of it, which is faster than to wipe a part, and needs no count of the part.
            Text::Here(bytes) => bytes[..].zeroize(),
            Text::Heap(bytes) => bytes[..].zeroize(),
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.wipe_text();
        if let Kept::Small(bytes) = &mut self.body {
            bytes[..].zeroize();
        }
    }
}

#[cold]
fn shared(request: &Request) -> Kept {
    request.try_clone().map_or(Kept::Not, |copy| Kept::Shared(Box::new(copy)))
}

/// The length of a copy's text.
fn length(request: &Request) -> usize {
    let headers = request.headers().iter();
    let headers = headers.map(|(name, value)| LENGTHS + name.as_str().len() + value.len());
    request.url().as_str().len() + headers.sum::<usize>()
}

/// Reads the headers of a copy. They are known to be valid.
fn read(text: &Bytes, headers: &mut HeaderMap) -> Option<()> {
    let mut rest = &text[..];
    while let Some((lengths, after)) = rest.split_first_chunk::<LENGTHS>() {
        let lengths = u64::from_ne_bytes(*lengths);
        let value = usize::try_from(lengths & u64::from(u32::MAX)).ok()?;
        let name = usize::try_from((lengths & !SENSITIVE) >> 32).ok()?;
        let (name, after) = after.split_at_checked(name)?;
        let (value, after) = after.split_at_checked(value)?;
        let mut value = HeaderValue::from_maybe_shared(text.slice_ref(value)).ok()?;
        value.set_sensitive(lengths & SENSITIVE != 0);
        headers.append(HeaderName::from_bytes(name).ok()?, value);
        rest = after;
    }
    Some(())
}

/// Where the text of a copy is stored.
enum Text {
    Here([u8; ROOM]),
    Heap(Box<[u8]>),
}

impl Default for Text {
    fn default() -> Self {
        Self::Here([0; ROOM])
    }
}

impl Text {
    fn room(&mut self) -> &mut [u8] {
        match self {
            Self::Here(bytes) => bytes,
            Self::Heap(bytes) => bytes,
        }
    }
}

struct Wiped(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use http::header::{ACCEPT, AUTHORIZATION, COOKIE};

    use super::*;

    fn request(url: &str) -> Request {
        Request::new(Method::PUT, Url::parse(url).unwrap())
    }

    fn again(request: &Request, answered: &str) -> Option<Request> {
        let mut copy = Copy::default();
        copy.fill(request);
        copy.request(&Url::parse(answered).unwrap())
    }

    #[test]
    fn a_copy_is_the_same_request() {
        let short = "https://api.example.com/a%20b?q=1&q=2#there";
        let long = format!("https://api.example.com/?{}", "x".repeat(ROOM));
        for (url, name) in [(short, "x-own"), (&*long, "accept")] {
            for answered in [url, "https://api.example.com/elsewhere"] {
                for body in [None, Some(0), Some(1), Some(SMALL_BODY), Some(SMALL_BODY + 1)] {
                    let mut sent = request(url);
                    *sent.version_mut() = Version::HTTP_2;
                    *sent.timeout_mut() = Some(Duration::from_millis(1));
                    *sent.body_mut() = body.map(|length| vec![b'x'; length].into());
                    let headers = sent.headers_mut();
                    headers.append(HeaderName::from_static("x-own"), HeaderValue::from_static(""));
                    headers.append(
                        HeaderName::from_bytes(name.as_bytes()).unwrap(),
                        HeaderValue::from_static("b"),
                    );
                    headers.append(ACCEPT, HeaderValue::from_bytes(b"\xff").unwrap());
                    let mut secret = HeaderValue::from_static("s");
                    secret.set_sensitive(true);
                    headers.append(COOKIE, secret);
                    let again = again(&sent, answered).unwrap();
                    assert_eq!(again.method(), sent.method());
                    assert_eq!(again.url(), sent.url());
                    assert_eq!(again.version(), sent.version());
                    assert_eq!(again.timeout(), sent.timeout());
                    assert_eq!(again.headers(), sent.headers());
                    assert!(again.headers()[COOKIE].is_sensitive());
                    assert!(!again.headers()[ACCEPT].is_sensitive());
                    let bytes = |request: &Request| {
                        request.body().map(|body| body.as_bytes().unwrap().to_vec())
                    };
                    assert_eq!(bytes(&again), bytes(&sent), "{body:?}");
                }
            }
        }
    }

    #[test]
    fn what_fits_has_no_memory_of_its_own() {
        for (more, fits) in [(0, true), (ROOM - 24, true), (ROOM - 23, false)] {
            let url = format!("https://api.example.com/{}", "x".repeat(more));
            let mut copy = Copy::default();
            assert!(!copy.fill_and_find(&request(&url), Some(&AUTHORIZATION)));
            assert_eq!(matches!(copy.text, Text::Here(_)), fits, "{more}");
            assert_eq!(copy.end, 24 + more);
        }
    }

    #[test]
    fn a_header_of_the_callers_own_is_found() {
        for body in [0, 1, SMALL_BODY + 1] {
            for name in [AUTHORIZATION, ACCEPT] {
                let mut sent = request("https://api.example.com/");
                sent.headers_mut().append(name.clone(), HeaderValue::from_static("mine"));
                *sent.body_mut() = (body > 0).then(|| vec![b'x'; body].into());
                let has_own = Copy::default().fill_and_find(&sent, Some(&AUTHORIZATION));
                assert_eq!(has_own, name == AUTHORIZATION, "{name} {body}");
            }
        }
    }

    #[test]
    fn text_of_a_copy_is_wiped() {
        for more in [0, ROOM] {
            let url = format!("https://api.example.com/{}", "x".repeat(more));
            let mut copy = Copy::default();
            copy.fill(&request(&url));
            copy.wipe_text();
            let text = copy.text.room();
            assert!(text.iter().all(|byte| *byte == 0), "{more}");
        }
    }

    #[test]
    fn a_stream_is_no_copy() {
        let mut sent = request("https://api.example.com/");
        *sent.body_mut() = Some(Body::wrap(Body::from("")));
        assert!(again(&sent, "https://api.example.com/").is_none());
        assert!(Copy::default().request(sent.url()).is_none());
    }
}
