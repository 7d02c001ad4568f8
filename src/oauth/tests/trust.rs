//! No text contains a secret, whatever the token endpoint sends.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};

use super::*;

const SECRET: &str = "Cl1ent/S3cret+x=?y";

fn percent(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[tokio::test]
async fn a_server_that_echoes_secrets_is_not_quoted() {
    let basic = STANDARD.encode(format!("me:{}", percent(SECRET)));
    let mut echoes = vec![basic];
    for secret in [OLD, "old-access-token", SECRET, "fresh-refresh-token", "param-secret-value"] {
        echoes.extend([
            secret.to_owned(),
            percent(secret),
            STANDARD.encode(secret),
            URL_SAFE_NO_PAD.encode(secret),
        ]);
    }
    for echo in &echoes {
        let table = [
            (
                400,
                format!(
                    r#"{{"error":"invalid_grant","error_description":"no such token: {echo}"}}"#
                ),
            ),
            (400, format!(r#"{{"error":"bad {echo}"}}"#)),
            (
                200,
                format!(
                    r#"{{"error":"bad","error_description":"{echo}","refresh_token":"fresh-refresh-token"}}"#
                ),
            ),
            (
                505,
                format!(
                    r#"{{"error":"{echo}","error_description":"{echo}","refresh_token":"fresh-refresh-token"}}"#
                ),
            ),
            (200, format!(r#"{{"access_token":"{echo} {echo}","token_type":"{echo}"}}"#)),
            (200, format!("<html>{echo}</html>")),
        ];
        for (status, body) in table {
            let endpoint = TokenEndpoint::start([Reply::json(status, &body)]).await;
            let refresher = quick(&endpoint)
                .client_secret_basic("me", SECRET)
                .param("assertion", "param-secret-value");
            let error = run(&refresher).await.0.unwrap_err();
            let texts = texts(&error);
            for secret in &echoes {
                assert!(!texts.contains(secret.as_str()), "{secret} of {body} is in {texts}");
            }
            assert!(error.oauth_error().is_none_or(|code| matches!(code, "invalid_grant" | "bad")));
        }
    }
}

#[tokio::test]
async fn text_from_the_server_is_bounded_and_escaped() {
    let body = format!(
        r#"{{"error":"odd\u001b[31m","error_description":"\u0000{}"}}"#,
        "€".repeat(10_000)
    );
    let error = answered(Reply::json(400, body)).await.0.unwrap_err();
    assert_eq!(error.oauth_error(), Some("odd\\u{1b}[31m"));
    let cause = error.source().unwrap().to_string();
    assert!(cause.is_ascii() && cause.len() < 300 && !cause.contains(char::is_control), "{cause}");
    let code = "c".repeat(10_000);
    let error = answered(Reply::json(400, format!(r#"{{"error":"{code}"}}"#))).await.0.unwrap_err();
    assert!(error.oauth_error().unwrap().len() <= 256);
}

#[test]
fn debug_shows_where_but_no_secret() {
    let refresher = OAuthRefresh::new("https://login.example.com/tenant-key/token?key=url-secret")
        .client_secret_basic("me", SECRET)
        .param("assertion", "param-secret-value");
    let text = format!("{refresher:?} {refresher:#?}");
    assert!(text.contains("https://login.example.com"));
    for secret in [SECRET, "url-secret", "tenant-key", "param-secret-value"] {
        assert!(!text.contains(secret), "{text}");
    }
    assert!(format!("{:?}", OAuthRefresh::new("url-secret")).contains("invalid"));
}
