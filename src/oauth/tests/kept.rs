//! No body, however malformed, loses a refresh token that can be found in it.

use std::{io::Write as _, time::SystemTime};

use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_ENCODING};
use proptest::{collection::vec, prelude::*};
use zeroize::Zeroizing;

use super::super::{
    body::{Body, End},
    reading::judge_by,
    wire::RawResponse,
};
use crate::token::RefreshToken;

const NEW: &str = "new!refresh|token";

/// Any other member.
fn odd_member() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        Just("error"),
        Just("errors"),
        Just("code"),
        Just("status"),
        Just("access_token"),
        Just("accessToken"),
        Just("token_type"),
        Just("expires_in"),
        Just("expires"),
        Just("refreshToken"),
        Just("x"),
    ];
    let value = prop_oneof![
        Just("null".to_owned()),
        Just("1e400".to_owned()),
        Just("{}".to_owned()),
        Just(r#"{"code":"invalid_grant","refresh_token":"inner"}"#.to_owned()),
        Just(r#"[{"errorType":"invalid_client"},7,"x"]"#.to_owned()),
        Just(r#""mac""#.to_owned()),
        Just(r#""invalid_grant""#.to_owned()),
        Just(r#""\ud800""#.to_owned()),
        Just(r#""a b""#.to_owned()),
        "\"[ -!#-\\[\\]-~]{0,20}\"",
        any::<i64>().prop_map(|number| number.to_string()),
    ];
    (name, value).prop_map(|(name, value)| format!(r#""{name}":{value}"#))
}

#[derive(Clone, Copy, Debug)]
enum Packing {
    Plain,
    Gzip,
    BrokenGzip,
    Cut,
}

fn packed(body: Vec<u8>, packing: Packing) -> RawResponse {
    let mut headers = HeaderMap::new();
    let (bytes, end) = match packing {
        Packing::Plain => (body, End::Whole),
        Packing::Cut => (body, End::Cut),
        Packing::Gzip | Packing::BrokenGzip => {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&body).unwrap();
            let mut zipped = encoder.finish().unwrap();
            if matches!(packing, Packing::BrokenGzip) {
                // The checksum: everything before it can be decoded.
                let last = zipped.len() - 6;
                zipped[last] ^= 0xff;
            }
            (zipped, End::Whole)
        }
    };
    RawResponse::new(StatusCode::OK, headers, Body { bytes: Zeroizing::new(bytes), end })
}

fn rotated(response: RawResponse) -> Option<String> {
    let asked_with = RefreshToken::new("old").unwrap();
    let judgement = judge_by(None, response, Some(&asked_with), SystemTime::UNIX_EPOCH);
    judgement.rotated.map(|token| token.expose_secret().to_owned())
}

fn packing() -> impl Strategy<Value = Packing> {
    prop_oneof![
        Just(Packing::Plain),
        Just(Packing::Gzip),
        Just(Packing::BrokenGzip),
        Just(Packing::Cut)
    ]
}

proptest! {
    #[test]
    fn a_refresh_token_in_json_is_kept(
        before in vec(odd_member(), 0..5),
        after in vec(odd_member(), 0..5),
        rest in "[ -~]{0,12}",
        bom in any::<bool>(),
        packing in packing(),
    ) {
        let own = format!(r#""refresh_token":"{NEW}""#);
        let members: Vec<String> =
            before.into_iter().chain([own]).chain(after).collect();
        // What follows, closed or not, does not matter.
        let start = if bom { "\u{feff} {" } else { "{" };
        let body = format!("{start}{},{rest}", members.join(" ,\n"));
        let kept = rotated(packed(body.into_bytes(), packing));
        prop_assert_eq!(kept.as_deref(), Some(NEW));
    }

    #[test]
    fn a_refresh_token_in_a_form_is_kept(
        before in vec("[a-z_]{1,9}=[!-%'-~]{0,9}", 0..5),
        after in vec("[a-z_]{1,9}=[a-zA-Z0-9%+.-]{0,9}", 1..5),
        packing in packing(),
    ) {
        let before = before.iter().map(|pair| pair.replace(['<', '>', '"', '\'', '{', '}'], ""));
        let own = format!("refresh_token={}", NEW.replace('|', "%7C"));
        let pairs: Vec<String> = before.chain([own]).chain(after).collect();
        let kept = rotated(packed(pairs.join("&").into_bytes(), packing));
        prop_assert_eq!(kept.as_deref(), Some(NEW));
    }

    #[test]
    fn no_body_makes_it_panic(
        status in 100_u16..1000,
        body in vec(any::<u8>(), 0..400),
        packing in packing(),
    ) {
        let status = StatusCode::from_u16(status).unwrap();
        let _ = rotated(RawResponse { status, ..packed(body, packing) });
    }
}
