//! Reads streaming bodies into memory before they are sent, so that they can be replayed
//! ([`SessionBuilder::buffer_bodies`](crate::SessionBuilder::buffer_bodies)).

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{Extensions, HeaderMap, header::CONTENT_LENGTH};
use http_body::{Body as _, Frame, SizeHint};
use reqwest::{Body, Request};
use reqwest_middleware::Result;
use tokio::time::{Instant, timeout_at};

use super::{ReplayBody, SessionSource};
use crate::session::Session;

/// How long a stream is buffered before it is sent as a stream.
const LONGEST: Duration = Duration::from_secs(1);

/// Whether the request has a body that the session buffers.
#[inline]
pub(super) fn is_wanted(session: &Session, request: &Request) -> bool {
    session.buffer_bodies() > 0 && is_stream(request)
}

pub(super) fn is_stream(request: &Request) -> bool {
    request.body().is_some_and(|body| body.as_bytes().is_none())
}

/// Buffers the body of a request that the session signs.
///
/// # Errors
/// The error of the stream.
pub(super) async fn read(
    source: &SessionSource,
    request: &mut Request,
    extensions: &Extensions,
) -> Result<()> {
    if extensions.get::<ReplayBody>().is_some() {
        return Ok(());
    }
    let limit = match source.for_origin(request, extensions) {
        Ok(Some((session, _))) if is_wanted(&session, request) => session.buffer_bodies(),
        _ => return Ok(()),
    };
    let Some(body) = request.body_mut().take() else {
        return Ok(());
    };
    let fits = expected_length(request.headers(), &body)
        .is_none_or(|length| usize::try_from(length).is_ok_and(|length| length <= limit));
    let body = if fits {
        let longest = request.timeout().map_or(LONGEST, |limit| LONGEST.min(*limit));
        Box::pin(collect(body, limit, Instant::now() + longest)).await?
    } else {
        body
    };
    *request.body_mut() = Some(body);
    Ok(())
}

/// The length of the body, from the caller's header or from the stream itself.
fn expected_length(headers: &HeaderMap, body: &Body) -> Option<u64> {
    let declared = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    declared.max(Some(body.size_hint().lower()).filter(|lower| *lower > 0))
}

/// Reads until the end, the limit or the deadline. If the stream has not ended by then, the
/// buffered part is sent first.
#[allow(clippy::disallowed_methods, reason = "early or late, the request goes out whole")]
async fn collect(mut body: Body, limit: usize, deadline: Instant) -> Result<Body> {
    let mut read: VecDeque<Frame<Bytes>> = VecDeque::new();
    let mut length = 0;
    while Instant::now() < deadline {
        let next = poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        let frame = match timeout_at(deadline, next).await {
            Ok(Some(frame)) => frame?,
            Ok(None) => return Ok(joined(read, length)),
            Err(_) => break,
        };
        let size = frame.data_ref().map(Bytes::len);
        if size != Some(0) {
            read.push_back(frame);
        }
        length += size.unwrap_or(0);
        // Trailers can only be streamed.
        if length > limit || size.is_none() {
            break;
        }
    }
    Ok(Body::wrap(Begun { read, error: None, rest: body }))
}

fn joined(read: VecDeque<Frame<Bytes>>, length: usize) -> Body {
    let mut chunks = read.into_iter().filter_map(|frame| frame.into_data().ok());
    match (chunks.next(), chunks.next()) {
        (None, _) => Body::from(Bytes::new()),
        (Some(only), None) => Body::from(only),
        (Some(first), Some(second)) => {
            let mut all = BytesMut::with_capacity(length);
            all.extend_from_slice(&first);
            all.extend_from_slice(&second);
            chunks.for_each(|chunk| all.extend_from_slice(&chunk));
            Body::from(all.freeze())
        }
    }
}

/// A stream whose first part has been read.
pub(super) struct Begun {
    pub(super) read: VecDeque<Frame<Bytes>>,
    /// The error that ended the buffering.
    pub(super) error: Option<reqwest::Error>,
    pub(super) rest: Body,
}

impl http_body::Body for Begun {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, reqwest::Error>>> {
        if let Some(frame) = self.read.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        match self.error.take() {
            Some(error) => Poll::Ready(Some(Err(error))),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.error.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let read: usize = self.read.iter().filter_map(Frame::data_ref).map(Bytes::len).sum();
        let read = u64::try_from(read).unwrap_or(u64::MAX);
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(read));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(read)) {
            hint.set_upper(upper);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server may want to know the length of a stream that was slow, and is sent as one.
    #[test]
    fn a_begun_body_has_its_whole_length() {
        let read = VecDeque::from([Frame::data(Bytes::from_static(b"012"))]);
        let begun = Begun { read, error: None, rest: Body::from("3456") };
        assert_eq!(begun.size_hint().exact(), Some(7));
        assert!(!http_body::Body::is_end_stream(&begun));
    }
}
