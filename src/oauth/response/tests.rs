use super::*;

fn read(body: impl AsRef<[u8]>) -> Members {
    Members::read(body.as_ref(), false, true)
}

fn access(members: &Members) -> Option<&str> {
    members.access_token().map(AccessToken::expose_secret)
}

fn refresh(members: &Members) -> Option<&str> {
    members.refresh_token().map(RefreshToken::expose_secret)
}

#[test]
fn an_unreadable_member_spoils_only_itself() {
    let bad = [
        "1e400",
        "-1e400",
        "1e-400",
        "123456789012345678901234567890",
        "null",
        "true",
        "[]",
        "{}",
        r#"{"access_token":"inner"}"#,
        r#""\ud800""#,
        "\"a\u{1}b\"",
        "\"a\nb\"",
        &format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)),
        &format!("{}1{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000)),
    ];
    for value in bad {
        for name in ["x", "scope", "token_type", "refresh_token", "errors", "\\ud800"] {
            let members = read(format!(r#"{{"{name}":{value},"access_token":"good"}}"#));
            assert_eq!(access(&members), Some("good"), "{name}: {value:.40}");
            assert!(members.complete);
        }
    }
    let invalid_utf8 = [br#"{"x":""#, &b"\xff\xfe"[..], br#"","access_token":"good"}"#].concat();
    assert_eq!(access(&read(invalid_utf8)), Some("good"));
}

#[test]
fn expiry_is_a_number_or_a_text_with_one() {
    let table = [
        ("3600", Some(3600.0)),
        ("0", Some(0.0)),
        ("0.5", Some(0.5)),
        ("1e3", Some(1000.0)),
        (r#""3600""#, Some(3600.0)),
        (r#"" 60 ""#, Some(60.0)),
        ("-1", None),
        (r#""-1""#, None),
        ("1e400", None),
        ("1e300", None),
        (r#""inf""#, None),
        (r#""NaN""#, None),
        (r#""1h""#, None),
        (r#""""#, None),
        ("null", None),
        ("[60]", None),
        ("true", None),
    ];
    for (value, expected) in table {
        for name in ["expires_in", "expiresIn", "expires"] {
            let members = read(format!(r#"{{"{name}":{value},"access_token":"a"}}"#));
            assert_eq!(members.lifetime(), expected.map(Duration::from_secs_f64), "{value}");
            assert_eq!(access(&members), Some("a"), "{value}");
        }
    }
    let both = read(r#"{"expires":5183999,"expiresIn":60,"expires_in":30}"#);
    assert_eq!(both.lifetime(), Some(Duration::from_secs(30)));
    for (expires, expected) in [(5_183_999, true), (315_360_000, true), (315_360_001, false)] {
        let members = read(format!(r#"{{"expires":{expires}}}"#));
        assert_eq!(members.lifetime().is_some(), expected, "{expires}");
    }
    assert!(read(r#"{"expires_in":1700000000}"#).lifetime().is_some());
}

#[test]
fn the_last_usable_of_several_wins() {
    assert_eq!(access(&read(r#"{"access_token":"a","access_token":"b"}"#)), Some("b"));
    for spoilt in ["null", "7", r#""""#, r#""b c""#] {
        let body = format!(r#"{{"access_token":"a","access_token":{spoilt}}}"#);
        assert_eq!(access(&read(body)), Some("a"), "{spoilt}");
    }
    assert_eq!(access(&read(r#"{"access\u005ftoken":"escaped"}"#)), Some("escaped"));
}

#[test]
fn snake_case_comes_before_camel_case() {
    let members = read(r#"{"refreshToken":"c","accessToken":"a","tokenType":"t"}"#);
    assert_eq!(access(&members), Some("a"));
    assert_eq!(refresh(&members), Some("c"));
    assert_eq!(members.token_type(), Some("t"));
    let members = read(r#"{"refresh_token":"s","refreshToken":"c","access_token":" "}"#);
    assert_eq!(access(&members), None);
    assert_eq!(refresh(&members), Some("s"));
    assert_eq!(refresh(&read(r#"{"refresh_token":"","refreshToken":"c"}"#)), Some("c"));
}

#[test]
fn blanks_and_scheme_are_cut_from_a_token() {
    for text in ["T1", "Bearer T1", "bearer  T1 ", " T1\\n", "\\tT1"] {
        let members = read(format!(r#"{{"access_token":"{text}","refresh_token":"{text}"}}"#));
        assert_eq!(access(&members), Some("T1"), "{text}");
        assert_eq!(refresh(&members), Some("T1"), "{text}");
    }
    for text in ["Bearer", "Basic T1", "Bearer T1 T2", "T\\u0000"] {
        assert_eq!(access(&read(format!(r#"{{"access_token":"{text}"}}"#))), None, "{text}");
    }
}

#[test]
fn bom_and_trailing_text_do_not_matter() {
    for body in [
        "\u{feff}{\"access_token\":\"a\"}",
        r#"{"access_token":"a"} and more"#,
        "\r\n\t{\"access_token\":\"a\"}\0\0",
    ] {
        let members = read(body);
        assert_eq!(access(&members), Some("a"), "{body:?}");
        assert!(members.complete, "{body:?}");
    }
}

#[test]
fn what_came_before_a_break_stays() {
    for body in [
        r#"{"refresh_token":"new","access_token":"cut"#,
        r#"{"refresh_token":"new","#,
        r#"{"refresh_token":"new""#,
        r#"{"refresh_token":"new","x":NaN,"access_token":"a"}"#,
    ] {
        let members = read(body);
        assert_eq!(refresh(&members), Some("new"), "{body}");
        assert_eq!(access(&members), None, "{body}");
        assert!(!members.complete, "{body}");
    }
    assert_eq!(refresh(&read(r#"{"refresh_token":"ne"#)), None);
}

#[test]
fn only_objects_and_forms_have_members() {
    let utf16: Vec<u8> =
        r#"{"access_token":"a"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let deep = "[".repeat(10_000).into_bytes();
    let others = [
        "",
        "null",
        "[]",
        "\"access_token\"",
        "<html>",
        "<a href=/?x&access_token=a&y>",
        "go to /?access_token=a",
        "{'access_token':'a'}",
        r#"[{"access_token":"a"}]"#,
    ];
    for body in others.map(|text| text.as_bytes().to_vec()).into_iter().chain([utf16, deep]) {
        let members = read(&body);
        assert!(members.access_token().is_none(), "{body:?}");
    }
}

#[test]
fn forms_are_read_to_their_last_closed_pair() {
    let body = "access_token=ghu_%2B1&expires_in=28800&refresh_token=ghr_1&scope=&token_type=b";
    for is_form in [true, false] {
        let members = Members::read(body.as_bytes(), is_form, true);
        assert_eq!(access(&members), Some("ghu_+1"));
        assert_eq!(refresh(&members), Some("ghr_1"));
        assert_eq!(members.lifetime(), Some(Duration::from_secs(28_800)));
        assert_eq!(members.token_type(), Some("b"));
        assert!(members.complete);
    }
    let cut = Members::read(b"refresh_token=r&access_token=half", false, false);
    assert_eq!(access(&cut), None);
    assert_eq!(refresh(&cut), Some("r"));
    assert!(!cut.complete);
    let cut = Members::read(b"refresh_token=half", false, false);
    assert_eq!(refresh(&cut), None);
    let error = read("error=bad_refresh_token&error_description=so+it+is\n");
    assert_eq!(error.code(), Some("bad_refresh_token"));
    assert_eq!(error.description(), Some("so it is"));
    assert!(error.is_error());
    // If its type is declared, a form may contain characters that it should have encoded.
    assert_eq!(access(&Members::read(b"scope=a b&access_token=a", true, true)), Some("a"));
}

#[test]
fn codes_are_found_wherever_providers_put_them() {
    let known = Some("invalid_grant");
    let table = [
        (r#"{"error":"invalid_grant"}"#, known),
        (r#"{"error":"Invalid_Grant"}"#, known),
        (r#"{"error":{"code":"invalid_grant","message":"x"}}"#, known),
        (r#"{"error":{"type":"invalid_grant"}}"#, known),
        (r#"{"code":"invalid_grant","message":"x"}"#, known),
        (r#"{"errorCode":"invalid_grant"}"#, known),
        (r#"{"error_code":"invalid_grant"}"#, known),
        (r#"{"status":"INVALID_GRANT"}"#, known),
        (r#"{"errors":[{"errorType":"invalid_grant"}],"success":false}"#, known),
        (r#"{"errors":[{"code":7},{"code":"x"},{"code":"invalid_grant"}]}"#, known),
        (r#"{"errors":[{"type":"invalid_grant"}]}"#, known),
        (r#"{"error":"odd","code":"invalid_grant"}"#, known),
        (r#"{"code":"invalid_grant","error":"invalid_client"}"#, Some("invalid_client")),
        (r#"{"error_code":"invalid_grant","error":"odd"}"#, known),
        (r#"{"error":"odd","code":"other"}"#, Some("odd")),
        (r#"{"code":400,"error_code":"conflict"}"#, Some("conflict")),
        (r#"{"error":"","code":" "}"#, None),
        (r#"{"errors":"invalid_grant"}"#, None),
        (r#"{"errors":{"code":"invalid_grant"}}"#, None),
    ];
    for (body, expected) in table {
        assert_eq!(read(body).code(), expected, "{body}");
    }
}

#[test]
fn the_member_error_alone_counts_beside_a_token() {
    let table = [
        (r#"{"error":"odd"}"#, Some("odd")),
        (r#"{"error":{"code":"invalid_grant"}}"#, Some("invalid_grant")),
        (r#"{"error":{"code":"ok"}}"#, None),
        (r#"{"code":"invalid_grant"}"#, None),
        (r#"{"errors":[{"code":"invalid_grant"}]}"#, None),
    ];
    for (body, expected) in table {
        assert_eq!(read(body).own_code(), expected, "{body}");
    }
}

#[test]
fn an_empty_error_is_none() {
    let table = [
        (r#""""#, false),
        (r#"["x"]"#, false),
        ("null", false),
        ("false", false),
        ("0", false),
        ("{}", false),
        (r#""x""#, true),
        ("true", true),
        ("40013", true),
        (r#"{"x":1}"#, true),
    ];
    for (value, expected) in table {
        assert_eq!(read(format!(r#"{{"error":{value}}}"#)).is_error(), expected, "{value}");
    }
}

#[test]
fn descriptions_are_found_too() {
    let table = [
        (r#"{"message":"m","error_description":"d"}"#, Some("d")),
        (r#"{"errorDescription":"d","msg":"m"}"#, Some("d")),
        (r#"{"error":{"message":"i"},"message":"m"}"#, Some("i")),
        (r#"{"msg":"m"}"#, Some("m")),
        (r#"{"errors":[{"message":"e"}]}"#, Some("e")),
        ("{}", None),
    ];
    for (body, expected) in table {
        assert_eq!(read(body).description(), expected, "{body}");
    }
}

#[test]
fn a_pointer_finds_the_member_it_names() {
    let body = br#"{"data":{"access_token":"a","x":1e400},"a/b":[{"~":{"access_token":"b"}}],
        "data":{"access_token":"c"}} more"#;
    for (pointer, expected) in [
        ("/data", Some("c")),
        ("/a~1b/0/~0", Some("b")),
        ("", None),
        ("/none", None),
        ("data", None),
        ("/a~1b/1", None),
        ("/a~1b/x", None),
        ("/data/access_token", None),
    ] {
        assert_eq!(access(&Members::read_at(body, pointer)), expected, "{pointer}");
    }
    // A value that is complete before the break is found.
    let cut = br#"{"data":{"refresh_token":"r"},"x":"#;
    assert_eq!(refresh(&Members::read_at(cut, "/data")), Some("r"));
}
