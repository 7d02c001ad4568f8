//! The form of a token request. Every grant, and a revocation, fills in the same description.

use std::iter::once;

use form_urlencoded::byte_serialize;
use url::Url;
use zeroize::Zeroizing;

use super::{
    parameters::{NotMade, Parameter},
    request,
    settings::{ClientAuth, Settings},
    wire::TokenRequest,
};
use crate::token::RefreshToken;

const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

impl Settings {
    /// Builds a token request, with a refresh token if the grant uses one.
    pub(super) async fn token_request(
        &self,
        endpoint: &Url,
        refresh_token: Option<&RefreshToken>,
    ) -> Result<TokenRequest, NotMade> {
        let mut members = vec![("grant_type", self.grant.name())];
        members.extend(refresh_token.map(|token| ("refresh_token", token.expose_secret())));
        members.extend(self.scope.as_deref().map(|scope| ("scope", scope)));
        self.request(endpoint, endpoint, members, |_| true).await
    }

    /// Builds a revocation request (RFC 7009 §2.1).
    pub(super) async fn revocation_request(
        &self,
        token_endpoint: &Url,
        endpoint: &Url,
        token: &str,
        hint: &str,
    ) -> Result<TokenRequest, NotMade> {
        let members = vec![("token", token), ("token_type_hint", hint)];
        self.request(token_endpoint, endpoint, members, Parameter::is_of_client).await
    }

    async fn request<'s>(
        &'s self,
        token_endpoint: &Url,
        endpoint: &Url,
        mut members: Vec<(&'s str, &'s str)>,
        is_sent: impl Fn(&Parameter) -> bool,
    ) -> Result<TokenRequest, NotMade> {
        members.extend(self.client.members());
        let mut parameters = Vec::new();
        for parameter in self.parameters.iter().filter(|parameter| is_sent(parameter)) {
            parameters.push((parameter, parameter.made(token_endpoint).await?));
        }
        members.extend(parameters.iter().map(|(parameter, made)| {
            let value = made.as_deref().map(String::as_str).or(parameter.known());
            (parameter.name(), value.unwrap_or_default())
        }));
        Ok(TokenRequest {
            endpoint: endpoint.clone(),
            headers: request::headers(self),
            form: form(&members),
            made: parameters.into_iter().filter_map(|(_, made)| made).collect(),
        })
    }
}

impl ClientAuth {
    /// The form members that authenticate the client.
    fn members(&self) -> Vec<(&str, &str)> {
        match self {
            Self::Unnamed | Self::Basic { .. } | Self::BasicRaw { .. } => Vec::new(),
            Self::Public { id } => vec![("client_id", id)],
            Self::Post { id, secret } => vec![("client_id", id), ("client_secret", secret)],
            Self::Assertion { id } => {
                vec![("client_id", id), ("client_assertion_type", ASSERTION_TYPE)]
            }
        }
    }
}

fn form(members: &[(&str, &str)]) -> Zeroizing<String> {
    let pieces = members.iter().flat_map(|(name, value)| {
        once("&")
            .chain(byte_serialize(name.as_bytes()))
            .chain(once("="))
            .chain(byte_serialize(value.as_bytes()))
    });
    // Skips the `&` before the first pair.
    request::joined(pieces.skip(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OAuthRefresh;

    async fn text(refresher: OAuthRefresh, refresh_token: Option<&str>) -> String {
        let endpoint = Url::parse("https://t.example.com/token").unwrap();
        let token = refresh_token.map(|token| RefreshToken::new(token).unwrap());
        let request = refresher.0.token_request(&endpoint, token.as_ref()).await;
        let form = request.unwrap_or_else(|_| panic!("not made")).form;
        // The string never grew, so no copy was left behind.
        assert_eq!(form.capacity(), form.len());
        form.to_string()
    }

    #[tokio::test]
    async fn the_form_has_each_member_once_and_encoded() {
        let new = || OAuthRefresh::new("https://t.example.com/token");
        let old = Some("old/+=&x");
        let start = "grant_type=refresh_token&refresh_token=old%2F%2B%3D%26x";
        assert_eq!(text(new(), old).await, start);
        assert_eq!(text(new().client_secret_basic("me", "s"), old).await, start);
        assert_eq!(text(new().client_id("me"), old).await, format!("{start}&client_id=me"));
        let refresher = new()
            .client_secret_post("m e", "s&t")
            .scope("a b")
            .param("resource", "x")
            .param("resource", "y");
        assert_eq!(
            text(refresher, old).await,
            format!("{start}&scope=a+b&client_id=m+e&client_secret=s%26t&resource=x&resource=y")
        );
    }

    #[tokio::test]
    async fn other_grants_have_no_refresh_token() {
        let endpoint = "https://t.example.com/token";
        let credentials = OAuthRefresh::client_credentials(endpoint).scope("a");
        assert_eq!(text(credentials, None).await, "grant_type=client_credentials&scope=a");
        let exchange = OAuthRefresh::grant(endpoint, "urn:x").param("subject_token", "t");
        assert_eq!(text(exchange, None).await, "grant_type=urn%3Ax&subject_token=t");
    }

    #[tokio::test]
    async fn late_parameters_keep_their_place() {
        let refresher = OAuthRefresh::client_credentials("https://t.example.com/token")
            .param("a", "1")
            .param_with("b", || async { Ok("2".into()) })
            .client_assertion_with("me", |endpoint| async move { Ok(endpoint.path().into()) })
            .param("c", "3");
        let client = format!("client_id=me&client_assertion_type={ASSERTION_TYPE}");
        assert_eq!(
            text(refresher, None).await,
            format!("grant_type=client_credentials&{client}&a=1&b=2&client_assertion=%2Ftoken&c=3")
                .replace(ASSERTION_TYPE, &ASSERTION_TYPE.replace(':', "%3A"))
        );
    }
}
