//! The body of a response: how much of it arrived, and its `Content-Encoding`.

use std::io::Read;

use flate2::bufread::MultiGzDecoder;
use http::{HeaderMap, header::CONTENT_ENCODING};
use zeroize::{Zeroize, Zeroizing};

/// The size limit of a body in bytes, both before and after decoding.
pub(super) const BODY_LIMIT: usize = 1024 * 1024;

/// The part of a response body that arrived.
pub(super) struct Body {
    pub(super) bytes: Zeroizing<Vec<u8>>,
    pub(super) end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Whole,
    /// The connection broke, or the attempt timed out.
    Cut,
    TooLarge,
    /// The whole body arrived, but its gzip coding is damaged. The bytes before the damage are
    /// decoded.
    Damaged,
    /// The whole body arrived, in an unrequested coding other than gzip.
    Undecodable,
}

/// How a body is encoded.
enum Coding {
    Identity,
    Gzip,
    Other,
}

impl Body {
    /// Decodes gzip. Some gateways compress despite `Accept-Encoding: identity`
    /// (modelcontextprotocol/typescript-sdk#2408).
    pub(super) fn decoded(self, headers: &HeaderMap) -> Self {
        match coding(headers) {
            Coding::Identity => self,
            _ if self.bytes.is_empty() => self,
            Coding::Gzip => self.gunzipped(),
            Coding::Other => {
                let end = if self.end == End::Whole { End::Undecodable } else { self.end };
                Self { bytes: Zeroizing::default(), end }
            }
        }
    }

    fn gunzipped(self) -> Self {
        // Some middleboxes decode a body but leave the header. The JSON is still readable, but it
        // is not a token response.
        if !self.bytes.starts_with(&[0x1f]) {
            let end = if self.end == End::Whole { End::Damaged } else { self.end };
            return Self { end, ..self };
        }
        let mut bytes = Zeroizing::new(Vec::new());
        let mut reader = MultiGzDecoder::new(&self.bytes[..]);
        let mut chunk = Zeroizing::new([0; 8192]);
        let decoded = loop {
            match reader.read(&mut chunk[..]) {
                Ok(0) => break End::Whole,
                Ok(read) if bytes.len() + read > BODY_LIMIT => {
                    let room = BODY_LIMIT - bytes.len();
                    append(&mut bytes, &chunk[..room]);
                    break End::TooLarge;
                }
                Ok(read) => append(&mut bytes, &chunk[..read]),
                Err(_) => break End::Damaged,
            }
        };
        chunk.zeroize();
        let end = match (self.end, decoded) {
            (End::Whole, decoded) => decoded,
            (_, End::TooLarge) => End::TooLarge,
            (end, _) => end,
        };
        Self { bytes, end }
    }
}

fn coding(headers: &HeaderMap) -> Coding {
    let mut coding = Coding::Identity;
    for value in headers.get_all(CONTENT_ENCODING) {
        for name in value.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            coding = match (coding, name.to_ascii_lowercase().as_slice()) {
                (coding, b"" | b"identity") => coding,
                (Coding::Identity, b"gzip" | b"x-gzip") => Coding::Gzip,
                _ => return Coding::Other,
            };
        }
    }
    coding
}

/// Appends without the reallocation of `Vec`, which would leave unwiped copies behind.
pub(super) fn append(bytes: &mut Zeroizing<Vec<u8>>, more: &[u8]) {
    let needed = bytes.len() + more.len();
    if needed > bytes.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(needed.next_power_of_two().max(4096)));
        larger.extend_from_slice(bytes);
        *bytes = larger;
    }
    bytes.extend_from_slice(more);
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};
    use http::HeaderValue;

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn decoded(codings: &[&'static str], bytes: &[u8], end: End) -> (Vec<u8>, End) {
        let headers = codings
            .iter()
            .map(|coding| (CONTENT_ENCODING, HeaderValue::from_static(coding)))
            .collect();
        let body = Body { bytes: Zeroizing::new(bytes.to_vec()), end }.decoded(&headers);
        (body.bytes.to_vec(), body.end)
    }

    #[test]
    #[allow(clippy::type_complexity, reason = "a table of cases")]
    fn gzip_is_decoded_and_nothing_else() {
        let zipped = gzip(b"text");
        let table: [(&[&'static str], &[u8], &[u8], End); 12] = [
            (&[], b"text", b"text", End::Whole),
            (&["identity"], b"text", b"text", End::Whole),
            (&["", " Identity , "], b"text", b"text", End::Whole),
            (&["gzip"], &zipped, b"text", End::Whole),
            (&["X-GZIP"], &zipped, b"text", End::Whole),
            (&["identity", "gzip"], &zipped, b"text", End::Whole),
            (&["gzip"], b"", b"", End::Whole),
            (&["gzip"], b"text", b"text", End::Damaged),
            (&["br"], b"text", b"", End::Undecodable),
            (&["deflate"], &zipped, b"", End::Undecodable),
            (&["gzip, gzip"], &zipped, b"", End::Undecodable),
            (&["gzip", "br"], &zipped, b"", End::Undecodable),
        ];
        for (codings, bytes, expected, end) in table {
            assert_eq!(
                decoded(codings, bytes, End::Whole),
                (expected.to_vec(), end),
                "{codings:?}"
            );
        }
        let members = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(decoded(&["gzip"], &members, End::Whole), (b"one two".to_vec(), End::Whole));
    }

    #[test]
    fn what_was_decoded_before_the_damage_stays() {
        let mut text = br#"{"refresh_token":"new","#.to_vec();
        text.extend((0..60_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()));
        let zipped = gzip(&text);
        let cut = &zipped[..zipped.len() / 2];
        let mut damaged = zipped.clone();
        let last = damaged.len() - 6;
        damaged[last] ^= 0xff;
        for (bytes, end, expected) in [
            (cut, End::Whole, End::Damaged),
            (cut, End::Cut, End::Cut),
            (&damaged, End::Whole, End::Damaged),
        ] {
            let (bytes, end) = decoded(&["gzip"], bytes, end);
            assert!(bytes.starts_with(br#"{"refresh_token":"new","#));
            assert_eq!(end, expected);
        }
    }

    #[test]
    fn a_body_is_at_most_1_mib_after_decoding() {
        for (size, end) in [(BODY_LIMIT, End::Whole), (BODY_LIMIT + 1, End::TooLarge)] {
            let (bytes, seen) = decoded(&["gzip"], &gzip(&vec![b' '; size]), End::Whole);
            assert_eq!(bytes.len(), BODY_LIMIT);
            assert_eq!(seen, end);
        }
        // A thousand gzip members, each of which inflates a thousandfold.
        let bomb = gzip(&vec![b' '; 1024 * 1024]).repeat(1000);
        assert_eq!(decoded(&["gzip"], &bomb[..BODY_LIMIT], End::TooLarge).1, End::TooLarge);
    }

    #[test]
    fn a_body_buffer_grows_by_our_steps_alone() {
        let mut bytes = Zeroizing::new(Vec::new());
        // The size of each chunk and the expected capacity after it. `Vec`'s own growth would
        // produce other capacities.
        for (size, room) in
            [(2, 4096), (0, 4096), (4094, 4096), (1, 8192), (4095, 8192), (9000, 32_768)]
        {
            let more = vec![b'x'; size];
            let (before, whole) = (bytes.as_ptr(), [&bytes[..], &more].concat());
            let fits = whole.len() <= bytes.capacity();
            append(&mut bytes, &more);
            assert_eq!(&*bytes, &whole, "{size}");
            assert_eq!(bytes.capacity(), room, "{size}");
            assert_eq!(bytes.as_ptr() == before, fits, "{size}");
        }
    }
}
