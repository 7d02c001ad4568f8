//! A document that is encrypted before it is written:
//! `{"version":2,"sealed":{"alg":"XChaCha20-Poly1305","key":…,"nonce":…,"data":…}}`.
//!
//! The plain text is the document of [`record`](super::record). Each save uses a new nonce. The
//! associated data are the version of the format, the algorithm, the identifier of the key, and the
//! label. They do not include a path, because files move.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use chacha20poly1305::{
    AeadCore, KeyInit, XChaCha20Poly1305, XNonce,
    aead::{AeadInPlace, OsRng},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{mark::hex, record::MAX_BYTES};

const ALGORITHM: &str = "XChaCha20-Poly1305";
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
/// The maximum length of a sealed file: Base64 of the longest document, and the header.
pub(super) const MAX_SEALED_BYTES: usize = (MAX_BYTES + TAG_BYTES).div_ceil(3) * 4 + 512;
/// The start of a sealed document, by which a truncated one is still recognised.
const PREFIX: &[u8] = br#"{"version":2,"sealed":"#;

/// How a store encrypts and decrypts its documents.
#[derive(Clone, Default)]
pub(super) struct Sealing {
    key: Option<Key>,
    old_keys: Vec<Key>,
    label: String,
    read_plain: bool,
}

/// Why a sealed document cannot be opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unopened {
    /// The store has no key.
    NoKey,
    /// The document is not sealed, but the store reads only sealed documents.
    Plain,
    /// The document was sealed with a key that the store does not have.
    OtherKey { sealed_with: String },
    /// The end of the document is missing.
    Cut,
    /// The document was modified, or sealed under another label.
    Changed,
    /// A later version of this crate has written it.
    Newer,
}

#[derive(Clone)]
struct Key {
    id: String,
    bytes: Zeroizing<[u8; 32]>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    version: u64,
    #[serde(borrow)]
    sealed: Option<Header<'a>>,
}

#[derive(Deserialize)]
struct Header<'a> {
    alg: &'a str,
    key: &'a str,
    nonce: &'a str,
    data: &'a str,
}

impl Sealing {
    pub(super) fn encrypt_with(&mut self, key: &[u8; 32]) {
        self.key = Some(Key::new(key));
    }

    pub(super) fn also_decrypt_with(&mut self, key: &[u8; 32]) {
        self.old_keys.push(Key::new(key));
    }

    pub(super) fn label(&mut self, label: String) {
        self.label = label;
    }

    pub(super) fn read_plain(&mut self) {
        self.read_plain = true;
    }

    pub(super) fn is_on(&self) -> bool {
        self.key.is_some()
    }

    /// Returns the plain document. Returns `None` if the document itself is plain and the store
    /// accepts that.
    pub(super) fn open(&self, document: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, Unopened> {
        let envelope = Envelope::parse(document);
        if !self.is_on() {
            return match envelope {
                Ok(None) => Ok(None),
                Err(_) if !document.starts_with(PREFIX) => Ok(None),
                _ => Err(Unopened::NoKey),
            };
        }
        match envelope? {
            Some(header) => self.decrypt(&header).map(Some),
            None if self.read_plain => Ok(None),
            None => Err(Unopened::Plain),
        }
    }

    /// Whether the document is plain although the store has a key.
    pub(super) fn is_plain(&self, document: &[u8]) -> bool {
        self.is_on() && matches!(Envelope::parse(document), Ok(None))
    }

    /// Returns the sealed document, or `None` without a key.
    pub(super) fn seal(&self, plain: &[u8]) -> Option<String> {
        let key = self.key.as_ref()?;
        let nonce = XChaCha20Poly1305::generate_nonce(&mut OsRng);
        // Encrypted in place, so that no plain copy is left behind.
        let mut data = plain.to_vec();
        let tag = key.cipher().encrypt_in_place_detached(
            &nonce,
            &self.associated_data(&key.id),
            &mut data,
        );
        // Fails only for more than 256 GiB.
        data.extend_from_slice(&tag.ok()?);
        Some(format!(
            r#"{{"version":2,"sealed":{{"alg":"{ALGORITHM}","key":"{}","nonce":"{}","data":"{}"}}}}"#,
            key.id,
            BASE64.encode(nonce),
            BASE64.encode(&data)
        ))
    }

    fn decrypt(&self, header: &Header<'_>) -> Result<Zeroizing<Vec<u8>>, Unopened> {
        if header.alg != ALGORITHM {
            return Err(Unopened::Changed);
        }
        let nonce = BASE64.decode(header.nonce).map_err(|_| Unopened::Changed)?;
        let data = BASE64.decode(header.data).map_err(|_| Unopened::Changed)?;
        if nonce.len() != NONCE_BYTES || data.len() < TAG_BYTES {
            return Err(Unopened::Changed);
        }
        let (text, tag) = data.split_at(data.len() - TAG_BYTES);
        let open = |key: &Key| {
            let mut text = Zeroizing::new(text.to_vec());
            let opened = key.cipher().decrypt_in_place_detached(
                XNonce::from_slice(&nonce),
                &self.associated_data(&key.id),
                &mut text,
                tag.into(),
            );
            opened.ok().map(|()| text)
        };
        match self.keys().find(|key| key.id == header.key) {
            Some(key) => open(key).ok_or(Unopened::Changed),
            // The identifier itself may have been modified.
            None if self.keys().any(|key| open(key).is_some()) => Err(Unopened::Changed),
            None => Err(Unopened::OtherKey { sealed_with: crate::error::printable(header.key) }),
        }
    }

    fn keys(&self) -> impl Iterator<Item = &Key> {
        self.key.iter().chain(&self.old_keys)
    }

    fn associated_data(&self, key_id: &str) -> Vec<u8> {
        [b"reqwest-reauth 2 ", ALGORITHM.as_bytes(), b" ", key_id.as_bytes(), b" "]
            .concat()
            .into_iter()
            .chain(self.label.bytes())
            .collect()
    }
}

impl Key {
    fn new(key: &[u8; 32]) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"reqwest-reauth key identifier ");
        hash.update(key);
        Self { id: hex(&hash.finalize()[..8]), bytes: Zeroizing::new(*key) }
    }

    /// The key is wiped on drop.
    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.bytes.as_slice().into())
    }
}

impl<'a> Envelope<'a> {
    /// Returns `None` for a plain document.
    fn parse(document: &'a [u8]) -> Result<Option<Header<'a>>, Unopened> {
        let envelope: Self = match serde_json::from_slice(document) {
            Ok(envelope) => envelope,
            Err(error) if error.is_eof() => return Err(Unopened::Cut),
            Err(_) => return Err(Unopened::Changed),
        };
        match (envelope.version, envelope.sealed) {
            (2, Some(header)) => Ok(Some(header)),
            (3.., _) => Err(Unopened::Newer),
            (_, Some(_)) => Err(Unopened::Changed),
            (_, None) => Ok(None),
        }
    }
}

impl fmt::Display for Unopened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey => f.write_str("is encrypted, and this store has no key (encrypt_with)"),
            Self::Plain => f.write_str(
                "is not encrypted, and this store reads plain files only with also_read_plain",
            ),
            Self::OtherKey { sealed_with } => {
                write!(f, "was encrypted with another key, with the identifier {sealed_with}")
            }
            Self::Cut => f.write_str("was cut short: its end is missing"),
            Self::Changed => f.write_str(
                "is damaged: it was changed since it was encrypted, or has another label",
            ),
            Self::Newer => f.write_str("was written by a later reqwest-reauth"),
        }
    }
}

impl fmt::Debug for Sealing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealing")
            .field("keys", &self.keys().map(|key| &key.id).collect::<Vec<_>>())
            .field("label", &self.label)
            .field("read_plain", &self.read_plain)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &[u8] = br#"{"version":1,"access_token":"a","refresh_token":"r"}"#;

    fn sealing(key: u8, label: &str) -> Sealing {
        let mut sealing = Sealing::default();
        sealing.encrypt_with(&[key; 32]);
        sealing.label(label.to_owned());
        sealing
    }

    fn open(sealing: &Sealing, document: &str) -> Result<Option<Vec<u8>>, Unopened> {
        sealing.open(document.as_bytes()).map(|opened| opened.map(|plain| plain.to_vec()))
    }

    #[test]
    fn each_save_has_its_own_nonce() {
        let sealing = sealing(1, "a");
        let (first, second) = (sealing.seal(PLAIN).unwrap(), sealing.seal(PLAIN).unwrap());
        assert_ne!(first, second);
        assert_eq!(open(&sealing, &first), Ok(Some(PLAIN.to_vec())));
        assert_eq!(open(&sealing, &second), Ok(Some(PLAIN.to_vec())));
        assert!(!first.contains("access_token"));
    }

    #[test]
    fn what_does_not_open_says_why() {
        let document = sealing(1, "a").seal(PLAIN).unwrap();
        let plain = str::from_utf8(PLAIN).unwrap();
        let id = Key::new(&[1; 32]).id;
        let table = [
            (Sealing::default(), document.as_str(), Unopened::NoKey),
            (Sealing::default(), &document[..60], Unopened::NoKey),
            (sealing(1, "a"), plain, Unopened::Plain),
            (sealing(2, "a"), &document, Unopened::OtherKey { sealed_with: id }),
            (sealing(1, "b"), &document, Unopened::Changed),
            (sealing(1, "a"), &document[..document.len() - 1], Unopened::Cut),
            (sealing(1, "a"), "", Unopened::Cut),
            (sealing(1, "a"), r#"{"version":3}"#, Unopened::Newer),
        ];
        for (sealing, document, why) in table {
            assert_eq!(open(&sealing, document), Err(why), "{document}");
        }
        let mut other = sealing(2, "a");
        other.also_decrypt_with(&[1; 32]);
        assert_eq!(open(&other, &document), Ok(Some(PLAIN.to_vec())), "the old key still opens it");
        let mut moving = sealing(1, "a");
        moving.read_plain();
        assert_eq!(open(&moving, plain), Ok(None));
        assert_eq!(open(&Sealing::default(), plain), Ok(None));
    }

    #[test]
    fn no_changed_byte_is_accepted() {
        let mut sealing = sealing(1, "a");
        sealing.read_plain();
        let document = sealing.seal(PLAIN).unwrap();
        for at in 0..document.len() {
            let mut changed = document.clone().into_bytes();
            changed[at] ^= 1;
            let opened = sealing.open(&changed);
            // Under another name the member makes a different document, which contains no token.
            let other = matches!(&opened, Ok(None)) && !changed.starts_with(PREFIX);
            assert!(opened.is_err() || other, "byte {at} of {document}");
        }
        for end in 0..document.len() {
            assert_eq!(open(&sealing, &document[..end]), Err(Unopened::Cut), "{end}");
        }
    }

    #[test]
    fn no_debug_shows_a_key() {
        let text = format!("{:?}", sealing(b'k', "tenant"));
        assert!(
            text.contains("tenant") && !text.contains("kkk") && !text.contains("107"),
            "{text}"
        );
    }
}
