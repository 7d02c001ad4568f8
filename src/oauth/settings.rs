//! The settings of an [`OAuthRefresh`](super::OAuthRefresh), and their checks.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest_middleware::ClientWithMiddleware;
use url::Url;
use zeroize::Zeroizing;

use super::{doubt::Doubt, grant::Grant, parameters::Parameter, reading::Rule, retry::Pace};
use crate::{
    error::{Error, ErrorKind},
    policy::is_loopback,
    refresher::Refresher,
    token::AccessToken,
};

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) endpoint: Endpoint,
    /// Boxed, because it is rare and a URL is large.
    pub(super) revocation: Option<Box<Endpoint>>,
    pub(super) grant: Grant,
    pub(super) http: Option<ClientWithMiddleware>,
    pub(super) client: ClientAuth,
    pub(super) scope: Option<String>,
    /// In the order of the builder calls.
    pub(super) parameters: Vec<Parameter>,
    pub(super) pace: Pace,
    pub(super) attempt_timeout: Duration,
    pub(super) allow_plain_http: bool,
    pub(super) other: Option<Other>,
    pub(super) read_response: Option<Rule>,
    pub(super) doubt: Doubt,
}

/// The URL of an endpoint, or `None` if its text is not an absolute URL.
pub(super) type Endpoint = Option<Url>;

/// The fallback refresher.
#[derive(Clone)]
pub(super) struct Other {
    pub(super) refresher: Arc<dyn Refresher>,
    /// The access token that the fallback obtained last. The first refresher's revocation endpoint
    /// must not see it.
    pub(super) brought: Arc<Mutex<Option<AccessToken>>>,
}

/// How the client authenticates (RFC 6749 §2.3.1).
#[derive(Clone)]
pub(super) enum ClientAuth {
    Unnamed,
    Public {
        id: String,
    },
    Basic {
        id: String,
        secret: Zeroizing<String>,
    },
    /// Not form-encoded (RFC 7617).
    BasicRaw {
        id: String,
        secret: Zeroizing<String>,
    },
    Post {
        id: String,
        secret: Zeroizing<String>,
    },
    /// RFC 7523 §2.2. The assertion is among the parameters.
    Assertion {
        id: String,
    },
}

impl ClientAuth {
    /// The client's id, if it is set.
    pub(super) fn id(&self) -> Option<&str> {
        match self {
            Self::Unnamed => None,
            Self::Public { id }
            | Self::Basic { id, .. }
            | Self::BasicRaw { id, .. }
            | Self::Post { id, .. }
            | Self::Assertion { id } => Some(id),
        }
    }
}

impl Settings {
    pub(super) fn new(endpoint: &str, grant: Grant) -> Self {
        Self {
            endpoint: Url::parse(endpoint).ok(),
            revocation: None,
            grant,
            http: None,
            client: ClientAuth::Unnamed,
            scope: None,
            parameters: Vec::new(),
            pace: Pace::default(),
            attempt_timeout: Duration::from_secs(10),
            allow_plain_http: false,
            other: None,
            read_response: None,
            doubt: Doubt::default(),
        }
    }

    /// Replaces the client's authentication, including an assertion.
    pub(super) fn set_client(&mut self, client: ClientAuth) {
        self.parameters.retain(|parameter| !parameter.is_of_client());
        self.client = client;
    }

    /// Returns the token endpoint if the settings can work.
    pub(super) fn checked(&self) -> Result<&Url, Error> {
        let invalid = |why: &'static str| Err(Error::new(ErrorKind::InvalidConfig, why));
        let endpoint = self.checked_endpoint("token", self.endpoint.as_ref())?;
        if let Some(revocation) = &self.revocation {
            self.checked_endpoint("revocation", (**revocation).as_ref())?;
        }
        if let Some(why) = self.grant.problem() {
            return invalid(why);
        }
        if let ClientAuth::BasicRaw { id, secret } = &self.client
            && (id.contains(':') || id.chars().chain(secret.chars()).any(char::is_control))
        {
            return invalid(
                "client_secret_basic_raw cannot send an id with a colon, or control characters",
            );
        }
        let names = self.parameters.iter().filter(|parameter| !parameter.is_of_client());
        if names.map(Parameter::name).any(|name| self.sends_itself(name)) {
            return invalid("an extra parameter has the name of a built-in one");
        }
        if self.pace.max_attempts == 0 {
            return invalid("max_attempts is zero");
        }
        if self.attempt_timeout.is_zero() || self.pace.deadline.is_zero() {
            return invalid("attempt_timeout or deadline is zero");
        }
        if let Some(other) = &self.other {
            other.refresher.check()?;
        }
        Ok(endpoint)
    }

    fn checked_endpoint<'u>(&self, which: &str, url: Option<&'u Url>) -> Result<&'u Url, Error> {
        let problem = match url {
            None => "is not an absolute URL",
            Some(url) if !matches!(url.scheme(), "http" | "https") || !url.has_host() => {
                "is neither http nor https"
            }
            Some(url) if !url.username().is_empty() || url.password().is_some() => {
                "has user info: use client_secret_basic"
            }
            Some(url) if url.fragment().is_some() => "has a fragment, which RFC 6749 §3.2 forbids",
            Some(url) if url.scheme() == "http" && !self.allow_plain_http && !is_loopback(url) => {
                "is plain http and not on loopback: use https, or allow_plain_http"
            }
            Some(url) => return Ok(url),
        };
        Err(Error::new(ErrorKind::InvalidConfig, format!("the {which} endpoint {problem}")))
    }

    fn sends_itself(&self, name: &str) -> bool {
        match name {
            "grant_type" | "refresh_token" => true,
            "scope" => self.scope.is_some(),
            "client_id" => matches!(
                self.client,
                ClientAuth::Public { .. } | ClientAuth::Post { .. } | ClientAuth::Assertion { .. }
            ),
            "client_secret" => matches!(self.client, ClientAuth::Post { .. }),
            "client_assertion" | "client_assertion_type" => {
                matches!(self.client, ClientAuth::Assertion { .. })
            }
            _ => false,
        }
    }
}
