//! Captures tokens from the API's responses.

use http::HeaderMap;
use url::Url;

use super::{Captured, Session};
use crate::{
    event::{CaptureIgnored, Event},
    policy::Brought,
    time::wall,
    token::{Arrival, Tokens},
};

/// What a response did to the session's token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The session adopted the token of the response.
    pub(crate) adopted: bool,
    /// The response carried a token, and the session now holds that token or a newer one.
    pub(crate) replaced: bool,
}

impl Session {
    /// Captures the tokens of the response to a request of generation `sent`, if there are any, and
    /// reports the result as an event.
    pub(crate) fn take(&self, sent: u64, url: &Url, headers: &HeaderMap) -> Taken {
        let brought = match self.0.channels.read(headers, wall()) {
            Ok(None) => return Taken::default(),
            _ if self.origin_of(url).is_none() => Err(CaptureIgnored::UntrustedOrigin),
            Ok(Some(brought)) => Ok(brought),
            Err(reason) => Err(reason),
        };
        let captured = match brought {
            Ok(brought) => self.capture(sent, brought),
            Err(reason) => {
                self.emit(&Event::CaptureIgnored { reason });
                return Taken::default();
            }
        };
        let mut taken = Taken { adopted: false, replaced: self.generation() != sent };
        match captured {
            Captured::Adopted { generation } => {
                taken.adopted = true;
                self.emit(&Event::Captured { generation });
            }
            Captured::Unchanged => {
                self.emit(&Event::CaptureIgnored { reason: CaptureIgnored::Unchanged });
            }
            Captured::Superseded => {
                self.emit(&Event::CaptureIgnored { reason: CaptureIgnored::Superseded });
            }
        }
        taken
    }

    /// Whether a response from one of the session's origins carries exactly the session's access
    /// token, in the form that almost all servers use, and nothing else to capture.
    pub(crate) fn has_already(&self, headers: &mut HeaderMap) -> bool {
        let state = self.load();
        let has = state.access.as_ref().is_some_and(|token| self.0.channels.bring(headers, token));
        drop(state);
        if has {
            self.emit(&Event::CaptureIgnored { reason: CaptureIgnored::Unchanged });
        }
        has
    }

    /// Adopts the refresh token together with the access token, or not at all.
    fn capture(&self, sent: u64, brought: Brought) -> Captured {
        let Brought { access, refresh } = brought;
        if self.load().access.as_ref() == Some(&access) {
            return Captured::Unchanged;
        }
        let lifetime = Tokens::of(Some(access.clone()), None).lifetime(Arrival::Issued);
        let due = self.due(lifetime);
        let captured = self.update(|state| {
            let captured = state.capture(sent, &access, lifetime, due);
            if let (Captured::Adopted { .. }, Some(refresh)) = (&captured, refresh) {
                state.refresh = Some(refresh);
            }
            captured
        });
        if let Captured::Adopted { .. } = captured {
            self.save_soon();
        }
        captured
    }
}
