//! Classifies the error of a request that got no response.

use http::StatusCode;
use reqwest_middleware::Error as MiddlewareError;
use reqwest_retry::RetryError;

use super::{codes::by_status, failure::Failure};

/// The error of a request. The user's client may have middleware that wraps it.
pub(super) enum Transport {
    Own(reqwest::Error),
    /// Found inside another error. The text may contain a URL.
    Inside(Failure, Option<StatusCode>),
    /// An error that the user's own middleware raised.
    Foreign(MiddlewareError),
}

pub(super) fn unwrapped(error: MiddlewareError) -> Transport {
    let error = match error {
        MiddlewareError::Reqwest(error) => return Transport::Own(error),
        MiddlewareError::Middleware(error) => error,
    };
    let error = match error.downcast::<RetryError>() {
        Ok(RetryError::Error(err) | RetryError::WithRetries { err, .. }) => return unwrapped(err),
        Err(error) => error,
    };
    let error = match error.downcast::<MiddlewareError>() {
        Ok(error) => return unwrapped(error),
        Err(error) => error,
    };
    match error.downcast::<reqwest::Error>() {
        Ok(error) => Transport::Own(error),
        Err(error) => match error.chain().find_map(inside) {
            Some(seen) => Transport::Inside(failure(seen), seen.status()),
            None => Transport::Foreign(MiddlewareError::Middleware(error)),
        },
    }
}

// `source()` of a transparent wrapper skips the wrapped error, so each link is unwrapped by its
// type.
fn inside<'e>(link: &'e (dyn std::error::Error + 'static)) -> Option<&'e reqwest::Error> {
    if let Some(found) = link.downcast_ref::<reqwest::Error>() {
        return Some(found);
    }
    let wrapped = match link.downcast_ref::<RetryError>() {
        Some(RetryError::Error(err) | RetryError::WithRetries { err, .. }) => err,
        None => link.downcast_ref::<MiddlewareError>()?,
    };
    match wrapped {
        MiddlewareError::Reqwest(found) => Some(found),
        MiddlewareError::Middleware(error) => error.chain().find_map(inside),
    }
}

pub(super) fn failure(error: &reqwest::Error) -> Failure {
    #[cfg(feature = "http2")]
    if is_unprocessed(error) {
        return Failure::Unreached;
    }
    if let Some(status) = error.status() {
        by_status(status).unwrap_or(Failure::Rejected)
    } else if blocked(error).is_some() {
        Failure::Down
    } else if error.is_builder() {
        Failure::Misconfigured
    } else if error.is_redirect() {
        Failure::Rejected
    } else if error.is_connect() {
        Failure::Unreached
    } else {
        Failure::Lost
    }
}

/// Why no attempt can succeed until a setting changes: an untrusted certificate
/// (ramosbugs/oauth2-rs#316), or a proxy that requires authentication. Nothing was sent in either
/// case.
pub(super) fn blocked(error: &reqwest::Error) -> Option<&'static str> {
    if !error.is_connect() {
        return None;
    }
    // The TLS library is the user's choice, and hyper-util's error type is private. The texts are
    // all that they have in common.
    let chain = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let texts: Vec<String> = chain.map(|cause| cause.to_string().to_ascii_lowercase()).collect();
    let says = |word: &str| texts.iter().any(|text| text.contains(word));
    if says("proxy authorization required") {
        Some("the proxy requires authentication (407 Proxy Authentication Required)")
    } else if says("certificate") {
        Some("the certificate of the token endpoint is not trusted")
    } else {
        None
    }
}

/// An error prefixed with its meaning.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(super) struct Named {
    pub(super) what: &'static str,
    pub(super) source: reqwest::Error,
}

/// Whether an HTTP/2 server reports that it has not processed the request, so that the refresh
/// token cannot be spent: `REFUSED_STREAM` (RFC 9113 §8.7), or GOAWAY without an error and without
/// the request's stream (§6.8).
#[cfg(feature = "http2")]
fn is_unprocessed(error: &reqwest::Error) -> bool {
    let chain = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    chain.filter_map(|cause| cause.downcast_ref::<h2::Error>()).any(|error| {
        let rejected = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        let gone = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
        error.is_remote() && (rejected || gone)
    })
}
