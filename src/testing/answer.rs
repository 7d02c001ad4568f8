//! The scripted responses of the server.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use serde_json::Value;

/// A scripted response. See
/// [`AuthServer::script_token_endpoint`](super::AuthServer::script_token_endpoint) and
/// [`AuthServer::script_api`](super::AuthServer::script_api).
///
/// "Processes the request" means what the server does without a script: a refresh token is checked
/// and spent, an access token is checked and possibly reissued.
#[derive(Debug)]
#[non_exhaustive]
pub enum Answer {
    /// Processes the request and responds.
    Work,
    /// Waits this long, then processes the request. A client that gave up before then has changed
    /// nothing.
    Delay(Duration),
    /// Processes the request at once, and responds this much later. A client that gave up does not
    /// know what its request changed.
    Late(Duration),
    /// Processes the request, then resets the TCP connection instead of responding. The refresh
    /// token is spent.
    Lost,
    /// Processes the request, sends the status, the headers and half of the body, then closes the
    /// connection.
    Cut,
    /// Resets the TCP connection. The request is not processed.
    Reset,
    /// Never responds. The request is not processed. The connection is closed when the server is
    /// dropped.
    Hang,
    /// Responds with this status and nginx's HTML page for it. The request is not processed. An
    /// invalid status becomes 500.
    Status(u16),
    /// Like [`Status`](Self::Status), with a `Retry-After` in whole seconds.
    StatusRetryAfter(u16, Duration),
    /// Responds with 200 and an HTML page, like a captive portal. The request is not processed.
    Html200,
    /// Responds with 200 and this JSON. The request is not processed.
    Json(Value),
    /// Responds with exactly this response. The request is not processed.
    Response(Response<Bytes>),
}

/// nginx's page for a status.
pub(super) fn page(status: u16, retry_after: Option<Duration>) -> Response<Bytes> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let title = format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or_default());
    let mut response = html(&title, "nginx/1.22.1");
    *response.status_mut() = status;
    if let Some(wait) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, wait.as_secs().into());
    }
    response
}

pub(super) fn html(title: &str, footer: &str) -> Response<Bytes> {
    let page = format!(
        "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n\
         <hr><center>{footer}</center>\r\n</body>\r\n</html>\r\n"
    );
    let mut response = Response::new(Bytes::from(page));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
    response
}

pub(super) fn json_response(status: StatusCode, value: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(value.to_string()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The same response without the second half of its body.
pub(super) fn cut(response: Response<Bytes>) -> Response<Body> {
    response.map(|body| {
        Body::new(Half {
            whole: body.len() as u64,
            rest: Some(body.slice(..body.len() / 2)),
            sent: false,
        })
    })
}

/// A body that announces `whole` bytes and breaks off.
struct Half {
    whole: u64,
    rest: Option<Bytes>,
    sent: bool,
}

impl http_body::Body for Half {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(half) = self.rest.take() {
            return Poll::Ready(Some(Ok(Frame::data(half))));
        }
        // The connection flushes its buffer when the body has nothing ready. An immediate error
        // would discard the buffer.
        if !std::mem::replace(&mut self.sent, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(std::io::ErrorKind::BrokenPipe.into())))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.whole)
    }
}
