use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde_json::{Value, json};
use url::Url;

use super::{
    alg::DpopAlg,
    jwk::Jwk,
    key::DpopKey,
    nonce::{Challenge, Nonces, Role, api_challenge, nonce_in, says_use_nonce},
    proof::{Claims, header, signing_input},
};
use crate::{
    error::{Error, ErrorKind},
    token::AccessToken,
};

macro_rules! pem {
    ($name:literal) => {
        include_bytes!(concat!("test_keys/", $name, ".pem")).as_slice()
    };
}

/// RFC 9449, figure 1 among others.
const EXAMPLE: &str = r#"{"kty":"EC","x":"l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs","y":"9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA","crv":"P-256"}"#;
/// RFC 7638 §3.1.
const RSA_EXAMPLE: &str = r#"{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}"#;

fn decoded(part: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(part).unwrap()
}

fn json_of(part: &str) -> Value {
    serde_json::from_slice(&decoded(part)).unwrap()
}

fn url(text: &str) -> Url {
    Url::parse(text).unwrap()
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

#[test]
fn thumbprints_are_those_of_the_rfcs() {
    let thumbprint = |jwk, alg| Jwk::parse(jwk, alg).unwrap().thumbprint();
    // RFC 9449 §6.1 and RFC 7638 §3.1.
    let ec = thumbprint(EXAMPLE, DpopAlg::Es256);
    assert_eq!(ec, "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I");
    let rsa = thumbprint(RSA_EXAMPLE, DpopAlg::Rs256);
    assert_eq!(rsa, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
}

#[test]
fn a_proof_says_what_rfc_9449_asks_for() {
    let jwk = Jwk::parse(EXAMPLE, DpopAlg::Es256).unwrap();
    let target = url("https://user:pass@resource.example.org/protectedresource?q=1#frag");
    let token = AccessToken::new("Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU").unwrap();
    let claims = Claims {
        method: &Method::GET,
        url: &target,
        ath: Some(token.hash()),
        nonce: Some("eyJ7S_zG.eyJH0-Z.HX4w-7v"),
        issued_at: 1_562_262_618,
        random: [7; 16],
    };
    let input = signing_input(&header("ES256", &jwk.to_json()), &claims);
    let (head, payload) = input.split_once('.').unwrap();
    let mut public: Value = serde_json::from_str(EXAMPLE).unwrap();
    assert_eq!(json_of(head)["jwk"], public.take());
    assert_eq!(json_of(head)["typ"], "dpop+jwt");
    assert_eq!(json_of(head)["alg"], "ES256");
    // The `ath` of RFC 9449, figure 12.
    let expected = json!({
        "jti": URL_SAFE_NO_PAD.encode([7; 16]),
        "htm": "GET",
        "htu": "https://resource.example.org/protectedresource",
        "iat": 1_562_262_618,
        "ath": "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo",
        "nonce": "eyJ7S_zG.eyJH0-Z.HX4w-7v",
    });
    assert_eq!(json_of(payload), expected);
}

#[test]
fn what_is_not_known_is_left_out_of_a_proof() {
    let target = url("http://127.0.0.1:8080/token");
    let claims = Claims {
        method: &Method::POST,
        url: &target,
        ath: None,
        nonce: None,
        issued_at: 1,
        random: [0; 16],
    };
    let input = signing_input("head", &claims);
    let payload = json_of(input.strip_prefix("head.").unwrap());
    let jti = URL_SAFE_NO_PAD.encode([0; 16]);
    let htu = "http://127.0.0.1:8080/token";
    assert_eq!(payload, json!({"jti": jti, "htm": "POST", "htu": htu, "iat": 1}));
}

async fn signed(key: &DpopKey) -> (String, Vec<u8>, Value) {
    let proof = key.proof(&Method::POST, "https://t.example.com/token", None).await.unwrap();
    assert!(proof.is_sensitive());
    let (input, signature) = proof.to_str().unwrap().rsplit_once('.').unwrap();
    let jwk = json_of(input.split_once('.').unwrap().0)["jwk"].take();
    (input.to_owned(), decoded(signature), jwk)
}

#[tokio::test]
async fn each_key_signs_what_its_jwk_verifies() {
    let table = [
        (pem!("p256-sec1"), DpopAlg::Es256),
        (pem!("p256-pkcs8"), DpopAlg::Es256),
        (pem!("p384-sec1"), DpopAlg::Es384),
        (pem!("ed25519"), DpopAlg::EdDsa),
        (pem!("rsa2048-pkcs1"), DpopAlg::Rs256),
        (pem!("rsa2048-pkcs8"), DpopAlg::Rs256),
        (pem!("rsa2048-pkcs1"), DpopAlg::Ps256),
    ];
    for (pem, alg) in table {
        let key = DpopKey::from_pem(pem, alg).unwrap();
        // The exported key is the same key.
        let exported = key.to_pem().unwrap();
        let key = DpopKey::from_pem(exported.expose_secret().as_bytes(), alg).unwrap();
        let (input, signature, jwk) = signed(&key).await;
        let member = |name: &str| decoded(jwk[name].as_str().unwrap());
        let verified = match alg {
            DpopAlg::Es256 | DpopAlg::Es384 => {
                let point = [&[4][..], &member("x"), &member("y")].concat();
                let curve = if alg == DpopAlg::Es256 {
                    &ECDSA_P256_SHA256_FIXED
                } else {
                    &ECDSA_P384_SHA384_FIXED
                };
                UnparsedPublicKey::new(curve, point).verify(input.as_bytes(), &signature)
            }
            DpopAlg::EdDsa => {
                UnparsedPublicKey::new(&ED25519, member("x")).verify(input.as_bytes(), &signature)
            }
            DpopAlg::Rs256 | DpopAlg::Ps256 => {
                let public = RsaPublicKeyComponents { n: member("n"), e: member("e") };
                let padding = if alg == DpopAlg::Rs256 {
                    &RSA_PKCS1_2048_8192_SHA256
                } else {
                    &RSA_PSS_2048_8192_SHA256
                };
                public.verify(padding, input.as_bytes(), &signature)
            }
        };
        assert!(verified.is_ok(), "{alg:?}");
    }
}

#[test]
fn a_key_that_cannot_serve_is_an_error() {
    let table = [
        (pem!("encrypted"), DpopAlg::Es256, "encrypted"),
        (pem!("p256-sec1"), DpopAlg::Es384, "another type"),
        (pem!("p256-pkcs8"), DpopAlg::EdDsa, "another type"),
        (pem!("p256-pkcs8"), DpopAlg::Rs256, "another type"),
        (pem!("ed25519"), DpopAlg::Es256, "another type"),
        (pem!("rsa1024"), DpopAlg::Rs256, "too short"),
        (b"", DpopAlg::Es256, "no private key"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", DpopAlg::Es256, "no"),
    ];
    for (pem, alg, text) in table {
        let error = DpopKey::from_pem(pem, alg).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{text}");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains(text), "{cause}");
    }
}

#[test]
fn a_signers_jwk_fits_its_algorithm() {
    let with = |jwk: &str, alg| DpopKey::with_signer(jwk, alg, |_| std::future::ready(Ok(vec![])));
    assert!(with(EXAMPLE, DpopAlg::Es256).is_ok());
    let private = EXAMPLE.replace(r#""kty""#, r#""d":"AAAA","kty""#);
    let table = [
        (private.as_str(), DpopAlg::Es256),
        (EXAMPLE, DpopAlg::Es384),
        (EXAMPLE, DpopAlg::EdDsa),
        (RSA_EXAMPLE, DpopAlg::Ps256),
        (r#"{"kty":"OKP","crv":"X25519","x":"AAAA"}"#, DpopAlg::EdDsa),
        (r#"{"kty":"OKP","crv":"Ed25519","x":"AAAA"}"#, DpopAlg::EdDsa),
        (r#"{"kty":"RSA","n":"_w","e":"AQAB"}"#, DpopAlg::Rs256),
        (r#"{"kty":"RSA","n":"","e":"AQAB"}"#, DpopAlg::Rs256),
        ("[]", DpopAlg::Es256),
        ("no json", DpopAlg::Es256),
    ];
    for (jwk, alg) in table {
        let error = with(jwk, alg).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{jwk} {alg:?}");
    }
}

#[tokio::test]
async fn a_signers_failure_keeps_its_kind() {
    type Outcome = Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>>;
    async fn kind(sign: impl Fn() -> Outcome + Send + Sync + 'static) -> ErrorKind {
        let key = DpopKey::with_signer(EXAMPLE, DpopAlg::Es256, move |_| {
            let outcome = sign();
            async { outcome }
        });
        let proof = key.unwrap().proof(&Method::GET, "https://a.example.com/", None).await;
        proof.unwrap_err().kind()
    }
    assert_eq!(kind(|| Ok(vec![0; 70])).await, ErrorKind::Internal);
    assert_eq!(kind(|| panic!("no device")).await, ErrorKind::Internal);
    assert_eq!(kind(|| Err("unplugged".into())).await, ErrorKind::Unavailable);
    let typed = || Err(Error::new(ErrorKind::LoginRequired, "PIN blocked").into());
    assert_eq!(kind(typed).await, ErrorKind::LoginRequired);
}

#[test]
fn a_key_shows_its_thumbprint_alone() {
    let key = DpopKey::generate().unwrap();
    let text = format!("{key:?}");
    assert!(text.contains(key.thumbprint()), "{text}");
    assert_eq!(format!("{:?}", key.to_pem().unwrap()), "DpopKeyPem(..)");
    let foreign = DpopKey::with_signer(EXAMPLE, DpopAlg::Es256, |_| std::future::ready(Ok(vec![])));
    assert_eq!(foreign.unwrap().to_pem().unwrap_err().kind(), ErrorKind::InvalidConfig);
    assert!(key.is_generated());
}

#[test]
fn nonces_are_rfc_9449_characters() {
    let long = "n".repeat(512);
    let too_long = "n".repeat(513);
    let table: [(&[&str], Option<&str>); 9] = [
        (&["a.b~!#[]"], Some("a.b~!#[]")),
        (&[&long], Some(&long)),
        (&[&too_long], None),
        (&[""], None),
        (&["a b"], None),
        (&["a\"b"], None),
        (&["a\\b"], None),
        (&["a", "a"], Some("a")),
        (&["a", "b"], None),
    ];
    for (values, expected) in table {
        let pairs: Vec<_> = values.iter().map(|value| ("dpop-nonce", *value)).collect();
        assert_eq!(nonce_in(&headers(&pairs)), expected, "{values:?}");
    }
    assert_eq!(nonce_in(&headers(&[])), None);
}

#[test]
fn a_nonce_is_kept_for_its_origin_and_role() {
    let nonces = Nonces::default();
    let bring = |at: &str, role, nonce| {
        nonces.take(&url(at), role, &headers(&[("dpop-nonce", nonce)]));
    };
    let of = |at: &str, role| nonces.get(&url(at), role).as_deref().map(str::to_owned);
    bring("https://a.example.com/x", Role::Api, "one");
    bring("https://a.example.com/y", Role::TokenEndpoint, "two");
    assert_eq!(of("https://a.example.com/z", Role::Api).as_deref(), Some("one"));
    assert_eq!(of("https://a.example.com:443/", Role::TokenEndpoint).as_deref(), Some("two"));
    assert_eq!(of("https://a.example.com:444/", Role::Api), None);
    bring("https://a.example.com/x", Role::Api, "three");
    assert_eq!(of("https://a.example.com/", Role::Api).as_deref(), Some("three"));
    // A malformed nonce in a response does not replace it.
    bring("https://a.example.com/x", Role::Api, "not good");
    assert_eq!(of("https://a.example.com/", Role::Api).as_deref(), Some("three"));
}

#[test]
fn the_least_recently_used_server_goes() {
    let nonces = Nonces::default();
    let at = |n: usize| url(&format!("https://s{n}.example.com/"));
    for n in 0..8 {
        nonces.take(&at(n), Role::Api, &headers(&[("dpop-nonce", "x")]));
    }
    assert!(nonces.get(&at(0), Role::Api).is_some());
    nonces.take(&at(8), Role::Api, &headers(&[("dpop-nonce", "x")]));
    let kept: Vec<_> = (0..9).filter(|&n| nonces.get(&at(n), Role::Api).is_some()).collect();
    assert_eq!(kept, [0, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
#[allow(clippy::type_complexity, reason = "a table of cases")]
fn the_apis_challenge() {
    let json = ("content-type", "application/json; charset=utf-8");
    let new = ("dpop-nonce", "new");
    let say = |text| ("www-authenticate", text);
    let use_nonce = r#"DPoP error="use_dpop_nonce", error_description="x""#;
    let table: [(u16, &[(&'static str, &str)], Challenge); 12] = [
        (401, &[say(use_nonce), new], Challenge::UseNonce),
        (400, &[say(use_nonce)], Challenge::UseNonce),
        (401, &[say("Bearer, DPoP error=USE_DPOP_NONCE")], Challenge::UseNonce),
        (403, &[say(use_nonce), new], Challenge::Nothing),
        (200, &[new, json], Challenge::Nothing),
        (401, &[say(r#"DPoP error="invalid_dpop_proof""#), new, json], Challenge::InvalidProof),
        (401, &[say(r#"DPoP error="invalid_token""#), new, json], Challenge::Nothing),
        (401, &[say(r#"Bearer error="use_dpop_nonce""#)], Challenge::Nothing),
        (400, &[new, json], Challenge::AskBody),
        (401, &[say("DPoP algs=\"ES256\""), new, json], Challenge::AskBody),
        (400, &[("dpop-nonce", "old"), json], Challenge::Nothing),
        (400, &[new, ("content-type", "text/html")], Challenge::Nothing),
    ];
    for (status, pairs, expected) in table {
        let status = StatusCode::from_u16(status).unwrap();
        let challenge = api_challenge(status, &headers(pairs), Some("old"));
        assert_eq!(challenge, expected, "{status} {pairs:?}");
    }
}

#[test]
fn a_body_asks_for_a_nonce_by_its_error() {
    assert!(says_use_nonce(br#"{"error":"use_dpop_nonce","message":"x"}"#));
    for other in [&br#"{"error":"invalid_token"}"#[..], br#"{"error":{}}"#, b"[]", b"{", b""] {
        assert!(!says_use_nonce(other));
    }
}
