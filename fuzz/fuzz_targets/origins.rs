//! A session's origin, a line end, and the URL of a request.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reqwest_reauth::fuzzing::origin;
use url::{Host, Url};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    let (trusted, requested) = text.split_once('\n').unwrap_or((text, text));
    let Ok(url) = Url::parse(requested) else { return };
    let safe = origin(trusted, false, &url);
    let any = origin(trusted, true, &url);
    // An origin that is allowed with safe settings is also allowed without them, and means the
    // same.
    assert!(safe.is_none() || safe == any);
    let Some(covered) = any else { return };
    let trusted = Url::parse(trusted).expect("an origin is a URL");
    assert!(trusted.username().is_empty() && trusted.password().is_none());
    assert_eq!(
        covered,
        trusted.origin() == url.origin() && url.origin().is_tuple(),
        "{trusted} {url}"
    );
    if safe.is_some() && trusted.scheme() == "http" {
        assert!(match trusted.host().expect("an origin has a host") {
            Host::Domain(name) => name == "localhost" || name.ends_with(".localhost"),
            Host::Ipv4(address) => address.is_loopback(),
            Host::Ipv6(address) => address.is_loopback(),
        });
    }
});
