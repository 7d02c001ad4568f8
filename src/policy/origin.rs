//! Where a token may be sent: an origin (RFC 6454 §4), compared after URL normalisation.

use url::{Host, Url};

use crate::error::{Error, ErrorKind};

/// Scheme, host and port, normalised by the URL parser: lower case, IDN as Punycode,
/// percent-encoding and default ports resolved. A trailing dot, another name of the same machine,
/// and an IPv4-mapped IPv6 address each make a different origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    https: bool,
    host: Box<str>,
    port: u16,
    /// The start of each URL of this origin that has no user info, up to and including the slash
    /// after the authority.
    prefix: Box<str>,
}

impl Origin {
    /// Parses an origin from a URL. The path is ignored.
    pub(crate) fn parse(text: &str, allow_plain_http: bool) -> Result<Self, Error> {
        let invalid = |why: &'static str| Error::new(ErrorKind::InvalidConfig, why);
        let url = Url::parse(text).map_err(|error| Error::new(ErrorKind::InvalidConfig, error))?;
        if !matches!(url.scheme(), "https" | "http") {
            return Err(invalid("an origin must start with https:// or http://"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("an origin must not have a user name or password"));
        }
        if url.scheme() == "http" && !allow_plain_http && !is_loopback(&url) {
            return Err(invalid(
                "an origin with plain http sends the token unencrypted: use https, or allow_plain_http",
            ));
        }
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(invalid("an origin must have a host"));
        };
        let prefix = format!("{}/", url.origin().ascii_serialization()).into();
        Ok(Self { https: url.scheme() == "https", host: host.into(), port, prefix })
    }

    /// Whether the URL belongs to this origin and has no user info, so that only the origin's
    /// authority precedes its first slash. A URL for which this is `false` may still belong to the
    /// origin.
    #[inline]
    pub(crate) fn covers_plainly(&self, url: &Url) -> bool {
        url.as_str().starts_with(&*self.prefix)
    }

    /// Whether the URL belongs to this origin.
    pub(crate) fn covers(&self, url: &Url) -> bool {
        // A fast path for almost all URLs.
        if self.covers_plainly(url) {
            return true;
        }
        let scheme = if self.https { "https" } else { "http" };
        url.scheme() == scheme
            && url.port_or_known_default() == Some(self.port)
            && url.host_str() == Some(&*self.host)
    }
}

/// Whether a request to this URL stays on the machine: 127.0.0.0/8, `::1`, `localhost` and its
/// subdomains (RFC 6761 §6.3).
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_compared_after_normalisation() {
        let table = [
            ("https://api.example.com", "https://api.example.com/v1?q", true),
            ("https://api.example.com/base/path", "https://api.example.com/", true),
            ("https://API.Example.COM", "https://api.example.com:443/", true),
            ("https://api.example.com:443", "https://API.EXAMPLE.COM", true),
            ("https://api.example.com", "https://api.example.com:8443/", false),
            ("https://api.example.com", "http://api.example.com/", false),
            ("https://api.example.com", "https://api.example.com./", false),
            ("https://api.example.com", "https://a%70i.example.com/", true),
            ("https://bücher.example", "https://xn--bcher-kva.example/", true),
            ("https://api.example.com", "https://api.example.com@evil.example/", false),
            ("https://api.example.com", "https://evil.example/api.example.com", false),
            ("https://api.example.com", "https://api.example.com.evil.example/", false),
            ("http://127.0.0.1:80", "http://127.0.0.1/", true),
            ("http://127.0.0.1", "http://2130706433/", true),
            ("http://127.0.0.1", "http://localhost/", false),
            ("http://127.0.0.1", "http://[::ffff:127.0.0.1]/", false),
            ("http://[::1]:8080", "http://[0:0::1]:8080/", true),
            ("https://api.example.com", "ftp://api.example.com:443/", false),
            ("https://api.example.com", "data:text/plain,x", false),
        ];
        for (origin, url, expected) in table {
            let origin_ = Origin::parse(origin, false).unwrap();
            assert_eq!(origin_.covers(&Url::parse(url).unwrap()), expected, "{origin} {url}");
        }
    }

    #[test]
    fn equal_origins_are_spelled_differently() {
        // None of these starts with the prefix of a normalised URL, so scheme, host and port
        // decide.
        let table = [
            ("https://api.example.com", "https://user@api.example.com/", true),
            ("http://localhost:8080", "http://user@localhost:8080/", true),
            ("https://api.example.com", "http://user@api.example.com:443/", false),
            ("http://localhost:443", "https://user@localhost/", false),
            ("https://api.example.com", "https://user@api.example.com:8443/", false),
            ("https://api.example.com", "https://user@www.example.com/", false),
        ];
        for (origin, url, expected) in table {
            let covers = Origin::parse(origin, false).unwrap().covers(&Url::parse(url).unwrap());
            assert_eq!(covers, expected, "{origin} {url}");
        }
    }

    #[test]
    fn a_plain_url_has_no_user_info() {
        let table = [
            ("https://api.example.com", true),
            ("https://api.example.com:443/v1?q", true),
            ("https://user@api.example.com/", false),
            ("https://api.example.com@evil.example/", false),
            ("https://api.example.com:8443/", false),
        ];
        let origin = Origin::parse("https://api.example.com", false).unwrap();
        for (url, expected) in table {
            assert_eq!(origin.covers_plainly(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }

    #[test]
    fn what_is_no_safe_origin_is_refused() {
        for bad in [
            "",
            "api.example.com",
            "ftp://api.example.com",
            "https://user@api.example.com",
            "https://:pw@api.example.com",
            "https://",
            "http://api.example.com",
            "http://10.0.0.1",
            "http://localhost.example.com",
            "http://notlocalhost",
            "http://[::ffff:127.0.0.1]",
        ] {
            assert_eq!(
                Origin::parse(bad, false).unwrap_err().kind(),
                ErrorKind::InvalidConfig,
                "{bad}"
            );
        }
        for good in
            ["http://localhost:1", "http://api.localhost", "http://127.9.9.9", "http://[::1]"]
        {
            assert!(Origin::parse(good, false).is_ok(), "{good}");
        }
        assert!(Origin::parse("http://10.0.0.1", true).is_ok());
    }
}
