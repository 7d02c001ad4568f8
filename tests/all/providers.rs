//! The responses of real token endpoints, row by row, for a session that holds the access token
//! `T0` and the refresh token `R0`, and an API that accepts every token but `T0`.
//!
//! Each row names its source: a provider's documentation, or an issue.

use std::{io::Write as _, time::Duration};

use flate2::{Compression, write::GzEncoder};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_reauth::{ClientBuilderExt, Error, ErrorKind, OAuthRefresh, Session, Tokens};

use crate::raw::{Reply, Server};

/// What a row comes to.
enum Wanted {
    /// Used at the first response: the access token, the refresh token that is held then, and the
    /// lifetime in seconds.
    Grant(&'static str, &'static str, Option<u64>),
    /// The login is over after one call, and no further call is made. The code that the error names.
    Over(&'static str),
    /// One call. The refresh token stays.
    Rejected(Option<&'static str>),
    /// Retried in the same refresh, then a grant.
    Retried,
    /// One call and a transient error, and a grant the next time.
    Later(ErrorKind),
}
use Wanted::{Grant, Later, Over, Rejected, Retried};

struct World {
    api: Server,
    endpoint: Server,
    session: Session,
    client: ClientWithMiddleware,
}

impl World {
    /// The token endpoint responds from this script, then with grants.
    async fn new(script: Vec<Reply>, set: impl FnOnce(OAuthRefresh) -> OAuthRefresh) -> Self {
        let api = Server::simple(|seen| {
            Reply::status(if seen.token() == Some("T0") { 401 } else { 200 })
        })
        .await;
        let endpoint = Server::simple(move |seen| {
            let grant = || Reply::status(200).json(r#"{"access_token":"T9","refresh_token":"R9"}"#);
            script.get(seen.number - 1).cloned().unwrap_or_else(grant)
        })
        .await;
        let refresher = OAuthRefresh::new(endpoint.url("/token"))
            .backoff(Duration::from_millis(1), Duration::from_millis(1));
        let session =
            Session::builder(Tokens::new("T0").unwrap().with_refresh_token("R0").unwrap())
                .origin(api.origin())
                .refresher(set(refresher))
                .build()
                .unwrap();
        let client =
            ClientBuilder::new(reqwest::Client::new()).with_session(session.clone()).build();
        Self { api, endpoint, session, client }
    }

    async fn get(&self) -> Result<u16, Error> {
        match self.client.get(self.api.url("/")).send().await {
            Ok(response) => Ok(response.status().as_u16()),
            Err(error) => Err(Error::find_in(&error).expect("an error of ours").clone()),
        }
    }

    fn held(&self) -> (String, String) {
        let tokens = self.session.tokens().unwrap();
        (
            tokens.access_token().unwrap().expose_secret().to_owned(),
            tokens.refresh_token().unwrap().expose_secret().to_owned(),
        )
    }

    async fn check(&self, wanted: &Wanted, row: &str) {
        let result = self.get().await;
        match wanted {
            Grant(access, refresh, lifetime) => {
                assert_eq!(result.expect(row), 200, "{row}");
                assert_eq!(self.held(), ((*access).to_owned(), (*refresh).to_owned()), "{row}");
                let left = self.session.tokens().unwrap().expires_at().map(|at| {
                    let left = at.duration_since(std::time::SystemTime::now()).unwrap();
                    (left + Duration::from_secs(5)).as_secs() / 10
                });
                assert_eq!(left, lifetime.map(|seconds| (seconds + 5) / 10), "{row}");
                assert_eq!(self.endpoint.count(), 1, "{row}");
            }
            Over(code) => {
                let error = result.expect_err(row);
                assert_eq!(error.kind(), ErrorKind::LoginRequired, "{row}");
                assert_eq!(error.oauth_error(), Some(*code), "{row}");
                assert!(!error.possibly_consumed(), "{row}");
                self.session.refresh().await.expect_err(row);
                assert_eq!(self.endpoint.count(), 1, "{row}");
            }
            Rejected(code) => {
                let error = result.expect_err(row);
                assert_eq!(error.kind(), ErrorKind::ClientRejected, "{row}");
                assert_eq!(error.oauth_error(), *code, "{row}");
                assert_eq!(self.endpoint.count(), 1, "{row}");
                assert_eq!(self.held().1.as_str(), "R0", "{row}");
            }
            Retried => {
                assert_eq!(result.expect(row), 200, "{row}");
                assert_eq!(self.endpoint.count(), 2, "{row}");
            }
            Later(kind) => {
                let error = result.expect_err(row);
                assert_eq!(error.kind(), *kind, "{row}");
                assert!(error.is_transient(), "{row}");
                assert_eq!(self.endpoint.count(), 1, "{row}");
                self.session.refresh().await.expect(row);
                assert_eq!(self.get().await.expect(row), 200, "{row}");
            }
        }
    }
}

type Row = (&'static str, Reply, Wanted);

async fn check(rows: Vec<Row>) {
    for (row, reply, wanted) in rows {
        World::new(vec![reply], |refresher| refresher).await.check(&wanted, row).await;
    }
}

fn json(status: u16, body: &str) -> Reply {
    Reply::status(status).json(body)
}

fn ok(body: &str) -> Reply {
    json(200, body)
}

fn form(status: u16, body: &str) -> Reply {
    Reply::status(status)
        .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
        .body(body)
}

fn gzip(body: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// The rows of the issue that asked for this.
#[tokio::test]
async fn grants_in_every_dialect() {
    let zipped = || gzip(r#"{"access_token":"T1","refresh_token":"R1","expires_in":3600}"#);
    check(vec![
        (
            "Salesforce",
            ok(r#"{"access_token":"00D7F0000001I8v!ARgAQOG9W.wPt01KwmHU58D15","token_type":"Bearer","issued_at":"1278448384422"}"#),
            Grant("00D7F0000001I8v!ARgAQOG9W.wPt01KwmHU58D15", "R0", None),
        ),
        (
            "eBay, hkonnet/laravel-ebay#26",
            ok(r#"{"access_token":"v^1.1#i^1#p^3#r^1#I^3#f^0#t^Ul41Xzg6Rj77","token_type":"User Access Token","expires_in":7200}"#),
            Grant("v^1.1#i^1#p^3#r^1#I^3#f^0#t^Ul41Xzg6Rj77", "R0", Some(7200)),
        ),
        (
            "Facebook",
            ok(r#"{"access_token":"1234567890|AbCdEf_gh","token_type":"bearer"}"#),
            Grant("1234567890|AbCdEf_gh", "R0", None),
        ),
        (
            "percent signs",
            ok(r#"{"access_token":"abc%2Bdef%3D","token_type":"Bearer"}"#),
            Grant("abc%2Bdef%3D", "R0", None),
        ),
        (
            "Slack, UsefulSoftwareCo/executor#2050",
            ok(r#"{"access_token":"xoxe.xoxb-1-Mi0yLTEx","token_type":"bot","expires_in":43200,"refresh_token":"xoxe-1-NEW"}"#),
            Grant("xoxe.xoxb-1-Mi0yLTEx", "xoxe-1-NEW", Some(43_200)),
        ),
        (
            "Apigee, DuendeArchive/Support#1413",
            ok(r#"{"issued_at":"1420262924658","expires_in":"1799","token_type":"BearerToken","access_token":"GN4SzvbMGSGmpD","refresh_token":"R1"}"#),
            Grant("GN4SzvbMGSGmpD", "R1", Some(1799)),
        ),
        (
            "a type with a blank",
            ok(r#"{"access_token":"T1","token_type":"Bearer "}"#),
            Grant("T1", "R0", None),
        ),
        ("no type", ok(r#"{"access_token":"T1","token_type":""}"#), Grant("T1", "R0", None)),
        (
            "the scheme in the token",
            ok(r#"{"access_token":"Bearer T1","refresh_token":"R1"}"#),
            Grant("T1", "R1", None),
        ),
        (
            "GitHub without Accept",
            form(200, "access_token=ghu_T1&expires_in=28800&refresh_token=ghr_R1&scope=&token_type=bearer"),
            Grant("ghu_T1", "ghr_R1", Some(28_800)),
        ),
        (
            "camel case",
            ok(r#"{"accessToken":"T1","refreshToken":"R1","expiresIn":3600}"#),
            Grant("T1", "R1", Some(3600)),
        ),
        (
            "gzip, modelcontextprotocol/typescript-sdk#2408",
            ok("").header("content-encoding", "gzip").body(zipped()),
            Grant("T1", "R1", Some(3600)),
        ),
        (
            "x-gzip, medplum/medplum#9558",
            ok("").header("content-encoding", "x-gzip").body(zipped()),
            Grant("T1", "R1", Some(3600)),
        ),
    ])
    .await;
}

#[tokio::test]
async fn logins_that_are_over() {
    let mut rows = Vec::new();
    for status in [200, 400] {
        rows.push((
            "GitHub, speakeasy-api/gram#6088",
            json(status, r#"{"error":"bad_refresh_token","error_description":"The refresh token passed is incorrect or expired."}"#),
            Over("bad_refresh_token"),
        ));
    }
    rows.extend([
        (
            "Microsoft Entra",
            json(400, r#"{"error":"interaction_required","error_codes":[50076],"suberror":"basic_action"}"#),
            Over("interaction_required"),
        ),
        (
            "Microsoft Entra",
            json(400, r#"{"error":"login_required"}"#),
            Over("login_required"),
        ),
        (
            "invalid_token",
            json(401, r#"{"error":"invalid_token","error_description":"Invalid refresh token (expired)"}"#),
            Over("invalid_token"),
        ),
        (
            "the code in code",
            json(400, r#"{"code":"invalid_grant","message":"x"}"#),
            Over("invalid_grant"),
        ),
        (
            "Fitbit",
            json(400, r#"{"errors":[{"errorType":"invalid_grant","message":"Refresh token invalid: R0"}],"success":false}"#),
            Over("invalid_grant"),
        ),
        ("Glewlwyd 2.7", json(400, ""), Rejected(None)),
        (
            "Strava without a rule, dreeveapp/dreeve#1449",
            json(400, r#"{"message":"Bad Request","errors":[{"resource":"RefreshToken","field":"refresh_token","code":"invalid"}]}"#),
            Rejected(Some("invalid")),
        ),
    ]);
    check(rows).await;
}

#[tokio::test]
async fn passing_trouble() {
    let mut rows = vec![
        (
            "Salesforce, segmentio/action-destinations#2300",
            json(
                400,
                r#"{"error":"invalid_grant","error_description":"token request is already being processed"}"#,
            ),
            Retried,
        ),
        ("slow_down", json(400, r#"{"error":"slow_down"}"#), Retried),
        ("Google", json(403, r#"{"error":"rate_limit_exceeded"}"#), Retried),
        (
            "Supabase",
            json(
                409,
                r#"{"code":409,"error_code":"conflict","msg":"Too many concurrent token refresh requests on the same session or refresh token"}"#,
            ),
            Retried,
        ),
        (
            "a captive portal",
            Reply::status(302).header("location", "http://portal.invalid/sign-in"),
            Later(ErrorKind::BadResponse),
        ),
        ("a transparent proxy", Reply::status(407), Later(ErrorKind::Unavailable)),
    ];
    rows.extend([520, 521].map(|status| ("Cloudflare", Reply::status(status), Retried)));
    check(rows).await;
}

#[tokio::test]
async fn responses_lost_behind_a_gateway() {
    // eclipse-tractusx/tractusx-edc#3002.
    for status in [408, 502, 504, 520, 524] {
        let over = json(400, r#"{"error":"invalid_grant"}"#);
        let world = World::new(vec![Reply::status(status), over], |refresher| refresher).await;
        let error = world.get().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LoginRequired);
        assert!(error.possibly_consumed(), "{status}");

        let once = |refresher: OAuthRefresh| refresher.retry_lost(false);
        let world = World::new(vec![Reply::status(status)], once).await;
        let error = world.get().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(world.endpoint.count(), 1);
        assert!(error.possibly_consumed(), "{status}");
    }
}

/// Rows that were right before, and stay so.
#[tokio::test]
async fn responses_that_were_right_stay_right() {
    let long: &'static str = "x".repeat(12 * 1024).leak();
    check(vec![
        (
            "text/plain with a BOM",
            Reply::status(200)
                .header("content-type", "text/plain")
                .body("\u{feff}{\"access_token\":\"T1\"}"),
            Grant("T1", "R0", None),
        ),
        (
            "a lifetime as text with blanks",
            ok(r#"{"access_token":"T1","expires_in":" 3600 "}"#),
            Grant("T1", "R0", Some(3600)),
        ),
        (
            "a lifetime with a unit",
            ok(r#"{"access_token":"T1","expires_in":"1h"}"#),
            Grant("T1", "R0", None),
        ),
        (
            "an empty refresh token",
            ok(r#"{"access_token":"T1","refresh_token":""}"#),
            Grant("T1", "R0", None),
        ),
        (
            "EAAB with expires",
            ok(r#"{"access_token":"EAABx","expires":5183999}"#),
            Grant("EAABx", "R0", Some(5_183_999)),
        ),
        (
            "12 KiB of token",
            ok(&format!(r#"{{"access_token":"{long}"}}"#)),
            Grant(long, "R0", None),
        ),
        ("401", json(401, r#"{"error":"invalid_grant"}"#), Over("invalid_grant")),
        ("403", json(403, r#"{"error":"invalid_grant"}"#), Over("invalid_grant")),
        ("429 without Retry-After", Reply::status(429), Retried),
        (
            "a portal with 200",
            Reply::status(200).body("<html>sign in</html>"),
            Later(ErrorKind::BadResponse),
        ),
        (
            "a portal with 511",
            Reply::status(511).body("<html>sign in</html>"),
            Later(ErrorKind::Unavailable),
        ),
        ("a firewall", Reply::status(403).body("<html>blocked</html>"), Rejected(None)),
    ])
    .await;
}

/// Grants from providers' documentation.
#[tokio::test]
#[allow(clippy::too_many_lines, reason = "a table of cases")]
async fn documented_grants() {
    check(vec![
        (
            "https://developers.google.com/identity/protocols/oauth2/web-server",
            ok(r#"{"access_token":"1/fFAGRNJru1FTz70BzhT3Zg","expires_in":3920,"scope":"a b","token_type":"Bearer"}"#),
            Grant("1/fFAGRNJru1FTz70BzhT3Zg", "R0", Some(3920)),
        ),
        (
            "https://learn.microsoft.com/entra/identity-platform/v2-oauth2-auth-code-flow",
            ok(r#"{"access_token":"EwB4","token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"scope":"a","refresh_token":"M.C519_BAY.0.U.-Cn!x*y$$"}"#),
            Grant("EwB4", "M.C519_BAY.0.U.-Cn!x*y$$", Some(3599)),
        ),
        (
            "https://learn.microsoft.com/azure/active-directory/azuread-dev/v1-protocols-oauth-code",
            ok(r#"{"token_type":"Bearer","expires_in":"3600","expires_on":"1388444763","not_before":"1388440863","resource":"https://service.contoso.com/","access_token":"eyJ0.x.y","refresh_token":"AwABAAAAv"}"#),
            Grant("eyJ0.x.y", "AwABAAAAv", Some(3600)),
        ),
        (
            "https://developers.strava.com/docs/authentication/",
            ok(r#"{"token_type":"Bearer","access_token":"a9b723","expires_at":1568775134,"expires_in":20566,"refresh_token":"b5c569"}"#),
            Grant("a9b723", "b5c569", Some(20_566)),
        ),
        (
            "https://www.zoho.com/crm/developer/docs/api/v8/refresh.html",
            ok(r#"{"access_token":"1000.2deaf8d0c268e3c85daa2a013a843b10","scope":"ZohoCRM.users.ALL","api_domain":"https://www.zohoapis.com","token_type":"Bearer","expires_in":3600}"#),
            Grant("1000.2deaf8d0c268e3c85daa2a013a843b10", "R0", Some(3600)),
        ),
        (
            "https://dev.fitbit.com/build/reference/web-api/authorization/refresh-token/",
            ok(r#"{"access_token":"eyJh","expires_in":28800,"refresh_token":"c643","token_type":"Bearer","user_id":"GGNJL9"}"#),
            Grant("eyJh", "c643", Some(28_800)),
        ),
        (
            "https://developer.spotify.com/documentation/web-api/tutorials/refreshing-tokens",
            ok(r#"{"access_token":"BQBLuPRYBQ","token_type":"Bearer","expires_in":3600,"refresh_token":"AQD-x","scope":"user-read"}"#),
            Grant("BQBLuPRYBQ", "AQD-x", Some(3600)),
        ),
        (
            "https://dev.twitch.tv/docs/authentication/refresh-tokens/: an array as scope",
            ok(r#"{"access_token":"1ssjqs","refresh_token":"eyJfa","scope":["channel:read:subscriptions"],"token_type":"bearer"}"#),
            Grant("1ssjqs", "eyJfa", None),
        ),
        (
            "https://developer.intuit.com/app/developer/qbo/docs/develop/authentication-and-authorization/oauth-2.0",
            ok(r#"{"token_type":"bearer","expires_in":3600,"refresh_token":"Q311488394272","x_refresh_token_expires_in":15551893,"access_token":"eyJlb"}"#),
            Grant("eyJlb", "Q311488394272", Some(3600)),
        ),
        (
            "https://docs.slack.dev/authentication/using-token-rotation",
            ok(r#"{"ok":true,"access_token":"xoxe.xoxp-1-T1","expires_in":43200,"refresh_token":"xoxe-1-R1","token_type":"bot","scope":"commands","bot_user_id":"U0","app_id":"A0","team":{"name":"x","id":"T9"},"enterprise":null}"#),
            Grant("xoxe.xoxp-1-T1", "xoxe-1-R1", Some(43_200)),
        ),
        (
            "https://docs.github.com/apps: refreshing user access tokens",
            ok(r#"{"access_token":"ghu_1","expires_in":28800,"refresh_token":"ghr_1","refresh_token_expires_in":15811200,"scope":"","token_type":"bearer"}"#),
            Grant("ghu_1", "ghr_1", Some(28_800)),
        ),
        (
            "https://docs.gitlab.com/api/oauth2/",
            ok(r#"{"access_token":"c97d1f","token_type":"bearer","expires_in":7200,"refresh_token":"803c1f","created_at":1628711391}"#),
            Grant("c97d1f", "803c1f", Some(7200)),
        ),
        (
            "https://www.keycloak.org/docs: a policy with hyphens",
            ok(r#"{"access_token":"a.b.c","expires_in":300,"refresh_expires_in":1800,"refresh_token":"d.e.f","token_type":"Bearer","not-before-policy":0,"session_state":"s","scope":"email"}"#),
            Grant("a.b.c", "d.e.f", Some(300)),
        ),
        (
            "https://supabase.com/docs/reference/auth: the user beside the tokens",
            ok(r#"{"access_token":"e.y.J","token_type":"bearer","expires_in":3600,"expires_at":1700000000,"refresh_token":"v1.Mr5","user":{"id":"1","code":"x","status":"active"}}"#),
            Grant("e.y.J", "v1.Mr5", Some(3600)),
        ),
        (
            "https://developer.paypal.com/api/rest/authentication/",
            ok(r#"{"scope":"https://uri.paypal.com/services/invoicing","access_token":"A21AAFE-x_y","token_type":"Bearer","app_id":"APP-80W","expires_in":31668,"nonce":"2020-04-03T15:35:36ZaYZlGvEkV4yVSz8g6bAKFoGSEzuy3CQcz3ljhibkOHg"}"#),
            Grant("A21AAFE-x_y", "R0", Some(31_668)),
        ),
        (
            "https://developer.amazon.com/docs/login-with-amazon/access-token.html",
            ok(r#"{"access_token":"Atza|IQEBLjAsAhRmHjNg","token_type":"bearer","expires_in":3600,"refresh_token":"Atzr|IQEBLzAtAhRPpMJx"}"#),
            Grant("Atza|IQEBLjAsAhRmHjNg", "Atzr|IQEBLzAtAhRPpMJx", Some(3600)),
        ),
        (
            "https://docs.snowflake.com/en/user-guide/oauth-custom",
            ok(r#"{"access_token":"ver:1-hint:1036-ETMsDgAAAX==","expires_in":599,"token_type":"Bearer","username":"user1"}"#),
            Grant("ver:1-hint:1036-ETMsDgAAAX==", "R0", Some(599)),
        ),
        (
            "https://learn.microsoft.com/azure/active-directory-b2c: a lifetime as text",
            ok(r#"{"not_before":"1442340812","token_type":"Bearer","access_token":"e.y.J","scope":"a","expires_in":"3600","refresh_token":"AAQf"}"#),
            Grant("e.y.J", "AAQf", Some(3600)),
        ),
        (
            "Facebook's Graph API before v2.3: a form as text/plain",
            Reply::status(200)
                .header("content-type", "text/plain; charset=UTF-8")
                .body("access_token=AAAC|x_y&expires=5183999"),
            Grant("AAAC|x_y", "R0", Some(5_183_999)),
        ),
        (
            "https://yandex.com/dev/id/doc/en/tokens/refresh-client: colons",
            ok(r#"{"token_type":"bearer","access_token":"AQAAAACy1C6Z","expires_in":31536000,"refresh_token":"1:GN686QVt0mmakDd9:A4pYuW9L:A-2dHOmB"}"#),
            Grant("AQAAAACy1C6Z", "1:GN686QVt0mmakDd9:A4pYuW9L:A-2dHOmB", Some(31_536_000)),
        ),
        (
            "https://developers.asana.com/docs/oauth: data beside the tokens",
            ok(r#"{"access_token":"f6ds7fdsa69ags7ag9sd5a","expires_in":3600,"token_type":"bearer","data":{"id":4673218951,"name":"x"},"refresh_token":"hjkl325hjkl4325hj4kl32fjds"}"#),
            Grant("f6ds7fdsa69ags7ag9sd5a", "hjkl325hjkl4325hj4kl32fjds", Some(3600)),
        ),
        (
            "https://developers.tiktok.com/doc/oauth-user-access-token-management (v2)",
            ok(r#"{"access_token":"act.example","expires_in":86400,"open_id":"afd97af1","refresh_expires_in":31536000,"refresh_token":"rft.example","scope":"user.info.basic,video.list","token_type":"Bearer"}"#),
            Grant("act.example", "rft.example", Some(86_400)),
        ),
        (
            "https://docs.nhost.io/reference/auth/post-token-provider-provider",
            ok(r#"{"accessToken":"ya29.a0AfH6SMBx","expiresIn":3599,"expiresAt":"2024-12-31T23:59:59Z","refreshToken":"1//0gK8"}"#),
            Grant("ya29.a0AfH6SMBx", "1//0gK8", Some(3599)),
        ),
        (
            "Seqera Platform: cookies",
            Reply::status(204)
                .header("set-cookie", "JWT=a.b.c; Path=/; HttpOnly")
                .header("set-cookie", "JWT_REFRESH_TOKEN=seqera-r1; Path=/oauth; HttpOnly"),
            Grant("a.b.c", "seqera-r1", None),
        ),
    ])
    .await;
}

/// Rejections from providers' documentation and from issues.
#[tokio::test]
#[allow(clippy::too_many_lines, reason = "a table of cases")]
async fn documented_refusals() {
    check(vec![
        (
            "https://docs.slack.dev/reference/methods/oauth.v2.access",
            ok(r#"{"ok":false,"error":"invalid_refresh_token"}"#),
            Over("invalid_refresh_token"),
        ),
        ("Slack", ok(r#"{"ok":false,"error":"token_expired"}"#), Over("token_expired")),
        ("Slack", ok(r#"{"ok":false,"error":"token_revoked"}"#), Over("token_revoked")),
        (
            "GitHub without Accept",
            form(200, "error=bad_refresh_token&error_description=The+refresh+token+passed+is+incorrect+or+expired."),
            Over("bad_refresh_token"),
        ),
        (
            "https://developers.hubspot.com/docs/api/oauth-quickstart-guide",
            json(400, r#"{"status":"BAD_REFRESH_TOKEN","message":"missing or invalid refresh token","correlationId":"7d"}"#),
            Over("bad_refresh_token"),
        ),
        (
            "https://supabase.com/docs/guides/auth/debugging/error-codes",
            json(400, r#"{"code":400,"error_code":"refresh_token_not_found","msg":"Invalid Refresh Token: Refresh Token Not Found"}"#),
            Over("refresh_token_not_found"),
        ),
        (
            "https://supabase.com/docs/guides/auth/debugging/error-codes",
            json(400, r#"{"code":400,"error_code":"refresh_token_already_used","msg":"Invalid Refresh Token: Already Used"}"#),
            Over("refresh_token_already_used"),
        ),
        (
            "https://auth0.com/docs: 403 for a refresh token that is unknown",
            json(403, r#"{"error":"invalid_grant","error_description":"Unknown or invalid refresh token."}"#),
            Over("invalid_grant"),
        ),
        (
            "blobfile/blobfile#93: Microsoft Entra",
            json(400, r#"{"error":"invalid_grant","error_description":"AADSTS700082: The refresh token has expired due to inactivity.","error_codes":[700082]}"#),
            Over("invalid_grant"),
        ),
        (
            "ChimeHQ/OAuthenticator#23: Bluesky",
            json(400, r#"{"error":"invalid_grant","error_description":"Refresh token exceeded inactivity timeout"}"#),
            Over("invalid_grant"),
        ),
        (
            "https://docs.followupboss.com/docs/oauth-error-codes: 404",
            json(404, r#"{"error":"invalid_grant"}"#),
            Over("invalid_grant"),
        ),
        (
            "https://developers.tiktok.com/doc/oauth-user-access-token-management (v2): 200",
            ok(r#"{"error":"invalid_grant","error_description":"Refresh token is invalid or expired.","log_id":"2022"}"#),
            Over("invalid_grant"),
        ),
        (
            "https://www.keycloak.org/docs",
            json(400, r#"{"error":"invalid_grant","error_description":"Token is not active"}"#),
            Over("invalid_grant"),
        ),
        (
            "Microsoft Entra: consent",
            json(400, r#"{"error":"consent_required","error_codes":[65001]}"#),
            Over("consent_required"),
        ),
        (
            "https://docs.oracle.com/en/cloud/saas/netsuite/ns-online-help/subsect_161252460252.html",
            json(401, r#"{"error":"invalid_client"}"#)
                .header("www-authenticate", "Basic realm=\"123456\""),
            Rejected(Some("invalid_client")),
        ),
        (
            "https://developer.atlassian.com/cloud/jira/platform/oauth-2-3lo-apps/",
            json(403, r#"{"error":"unauthorized_client","error_description":"refresh_token is invalid"}"#),
            Rejected(Some("unauthorized_client")),
        ),
        (
            "lepture/authlib#112",
            json(400, r#"{"error":"invalid_request","error_description":"Invalid \"refresh_token\" in request."}"#),
            Rejected(Some("invalid_request")),
        ),
        (
            "xee-lab/xee-api-docs#82",
            json(400, r#"{"error":"invalid_request"}"#),
            Rejected(Some("invalid_request")),
        ),
        (
            "https://dev.twitch.tv/docs/authentication/refresh-tokens/",
            json(400, r#"{"error":"Bad Request","status":400,"message":"Invalid refresh token"}"#),
            Rejected(Some("Bad Request")),
        ),
        (
            "https://www.reddit.com/dev/api: a number as error",
            json(400, r#"{"message":"Bad Request","error":400}"#),
            Rejected(None),
        ),
        (
            "https://developers.facebook.com/docs/graph-api/guides/error-handling",
            json(400, r#"{"error":{"message":"Session has expired","type":"OAuthException","code":190,"error_subcode":463}}"#),
            Rejected(Some("OAuthException")),
        ),
        (
            "https://www.zoho.com/accounts/protocol/oauth: 200, without a rule",
            ok(r#"{"error":"invalid_code"}"#),
            Rejected(Some("invalid_code")),
        ),
        (
            "https://developers.home-assistant.io/docs/auth_api",
            json(403, r#"{"error":"access_denied","error_description":"User is not active"}"#),
            Rejected(Some("access_denied")),
        ),
    ])
    .await;
}

/// Trouble from providers' documentation and from issues.
#[tokio::test]
async fn documented_trouble() {
    check(vec![
        (
            "https://developer.okta.com/docs/reference/error-codes/: E0000047",
            json(429, r#"{"errorCode":"E0000047","errorSummary":"API call exceeded rate limit"}"#),
            Retried,
        ),
        (
            "https://auth0.com/docs: 429",
            json(429, r#"{"error":"too_many_requests","error_description":"Global limit reached"}"#),
            Retried,
        ),
        (
            "https://developer.box.com/guides/api-calls/permissions-and-errors/",
            json(503, r#"{"error":"temporarily_unavailable"}"#),
            Retried,
        ),
        (
            "Microsoft Entra: AADSTS90033",
            json(400, r#"{"error":"temporarily_unavailable","error_codes":[90033]}"#),
            Retried,
        ),
        (
            "micronaut-projects/micronaut-security#235: 500 for an invalid refresh token",
            Reply::status(500),
            Retried,
        ),
        (
            "https://developer.salesforce.com: unknown_error",
            json(400, r#"{"error":"unknown_error","error_description":"retry your request"}"#),
            Retried,
        ),
        ("RFC 4918: a lock on the token", Reply::status(423), Retried),
        ("RFC 8470: too early", Reply::status(425), Retried),
        ("Cloudflare's 522 page", Reply::status(522).body("<html>522</html>"), Retried),
        ("a site that is overloaded", Reply::status(529), Retried),
        (
            "casdoor/casdoor#611: an error in place of the token",
            ok(r#"{"access_token":"error: token is expired by 23m58.3s","refresh_token":"","token_type":"","expires_in":0}"#),
            Later(ErrorKind::BadResponse),
        ),
        (
            "TikTok v1 without a rule",
            ok(r#"{"data":{"access_token":"T1","refresh_token":"R1","expires_in":86400},"message":"success"}"#),
            Later(ErrorKind::BadResponse),
        ),
        (
            "RFC 8693 §2.2.1: N_A",
            ok(r#"{"access_token":"T1","token_type":"N_A","issued_token_type":"urn:x"}"#),
            Later(ErrorKind::BadResponse),
        ),
        (
            "draft-ietf-oauth-v2-http-mac",
            ok(r#"{"access_token":"T1","token_type":"MAC","mac_key":"x"}"#),
            Later(ErrorKind::BadResponse),
        ),
    ])
    .await;
}
