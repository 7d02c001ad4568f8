//! Builds the error of a failed refresh, without secrets.

use zeroize::Zeroizing;

use super::{
    attempts::{Inner, State},
    codes::known_code,
    failure::{Cause, Failure},
    parameters::Parameter,
    redact::Secrets,
    request,
    response::Members,
    retry::AskedWait,
    settings::{ClientAuth, Settings},
};
use crate::{
    error::{Error, ErrorKind},
    token::Tokens,
};

/// The minimum length of an extra parameter or a query to be treated as a secret. Shorter values
/// are names rather than secrets, and removing them would empty most texts.
const SHORTEST_SECRET_PARAM: usize = 8;

impl Inner {
    pub(super) fn error(
        &self,
        state: &State,
        failure: Failure,
        asked_wait: AskedWait,
        said: &Members,
        cause: Option<Cause>,
    ) -> Error {
        let secrets = self.secrets(said, &state.made);
        let has_cause = cause.is_some();
        let cause = match (said.description(), failure) {
            // The local cause is more precise than the server's text.
            (_, Failure::Rejected) if has_cause => cause,
            (_, Failure::RulePanicked) => Some("the rule of read_response panicked".into()),
            (Some(text), _) => Some(match secrets.clean(text) {
                Some(text) => format!("the token endpoint says: {text}").into(),
                None => "the token endpoint's error text contains a secret and is left out".into(),
            }),
            (None, Failure::Unusable(why)) => Some(why.into()),
            (None, Failure::Salvaged) => {
                Some("a refresh token came without a usable access token".into())
            }
            (None, _) => cause,
        };
        let kind = failure.kind();
        let mut error = cause
            .map_or_else(|| Error::of(kind), |cause| Error::new(kind, cause))
            .with_attempts(state.attempts);
        if let Some(status) = state.last_status {
            error = error.with_status(status);
        }
        let code = said.code().and_then(|code| match known_code(code) {
            Some(known) => Some(known.to_owned()),
            None => secrets.clean(code),
        });
        if let Some(code) = code {
            error = error.with_escaped_oauth_error(&code);
        }
        let asked_wait =
            if kind == ErrorKind::Unavailable { state.last_asked_wait } else { asked_wait };
        if let Some(wait) = asked_wait {
            error = error.with_retry_after(wait);
        }
        if state.lost && self.settings.grant.spends_refresh_token() {
            error = error.with_possibly_consumed();
        }
        if failure == Failure::NothingToAskWith { error.with_nothing_to_ask_with() } else { error }
    }

    /// Everything that a text from outside must not repeat. `made` holds the computed parameters of
    /// the last attempt.
    pub(super) fn secrets(&self, said: &Members, made: &[Zeroizing<String>]) -> Secrets {
        let mut secrets = self.settings.secrets([&self.first_tokens, &self.context.tokens()], made);
        said.echoes().for_each(|echo| secrets.add(echo));
        secrets
    }
}

impl Settings {
    pub(super) fn secrets<'t>(
        &self,
        tokens: impl IntoIterator<Item = &'t Tokens>,
        made: &[Zeroizing<String>],
    ) -> Secrets {
        let mut secrets = Secrets::default();
        for tokens in tokens {
            tokens.access_token().into_iter().for_each(|token| secrets.add(token.expose_secret()));
            tokens.refresh_token().into_iter().for_each(|token| secrets.add(token.expose_secret()));
        }
        match &self.client {
            ClientAuth::Basic { id, secret } => {
                secrets.add(secret);
                secrets.add(&request::basic(id, secret)["Basic ".len()..]);
            }
            ClientAuth::BasicRaw { id, secret } => {
                secrets.add(secret);
                secrets.add(&request::basic_raw(id, secret)["Basic ".len()..]);
            }
            ClientAuth::Post { secret, .. } => secrets.add(secret),
            ClientAuth::Unnamed | ClientAuth::Public { .. } | ClientAuth::Assertion { .. } => {}
        }
        let queries = [self.endpoint.as_ref(), self.revocation.as_deref().and_then(Option::as_ref)]
            .into_iter()
            .flatten()
            .filter_map(|endpoint| endpoint.query());
        let parameters = self.parameters.iter().filter_map(Parameter::known);
        let values = parameters.chain(made.iter().map(|value| value.as_str())).chain(queries);
        values
            .filter(|value| value.len() >= SHORTEST_SECRET_PARAM)
            .for_each(|value| secrets.add(value));
        secrets
    }
}
