//! What a script lets the server answer.

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

/// One answer of a script: see
/// [`AuthServer::script_token_endpoint`](super::AuthServer::script_token_endpoint) and
/// [`AuthServer::script_api`](super::AuthServer::script_api).
///
/// "Works" means what the server does without a script: a refresh token is judged and spent, an
/// access token is judged and maybe reissued.
#[derive(Debug)]
#[non_exhaustive]
pub enum Answer {
    /// Works.
    Work,
    /// Works, this much later: a client that gave up before has changed nothing.
    Delay(Duration),
    /// Works at once, and answers this much later: a client that gave up has changed what it does
    /// not know of.
    Late(Duration),
    /// Works, and cuts the connection instead of answering: the client sees a TCP reset, and the
    /// refresh token is spent.
    Lost,
    /// Works, and sends the status, the headers and half of the body, then ends the connection.
    Cut,
    /// Cuts the connection with a TCP reset. Nothing was done.
    Reset,
    /// Never answers. Nothing was done. The connection is cut when the server is dropped.
    Hang,
    /// This status with the HTML page that nginx has for it. Nothing was done. A status that HTTP
    /// does not know becomes 500.
    Status(u16),
    /// The same with a `Retry-After` in whole seconds.
    StatusRetryAfter(u16, Duration),
    /// 200 with an HTML page, as from a captive portal. Nothing was done.
    Html200,
    /// 200 with this JSON. Nothing was done.
    Json(Value),
    /// This answer, word for word. Nothing was done.
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

/// The same answer without the second half of its body.
pub(super) fn cut(response: Response<Bytes>) -> Response<Body> {
    response.map(|body| {
        Body::new(Half {
            whole: body.len() as u64,
            rest: Some(body.slice(..body.len() / 2)),
            sent: false,
        })
    })
}

/// A body that promises `whole` bytes and breaks off.
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
        // The connection writes out what it has when the body has nothing ready; an error at once
        // would drop it.
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
