//! Reads a small file that holds a secret, such as a projected token.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    path::{Path, PathBuf},
};

use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

/// The size limit in bytes.
const LIMIT: usize = 64 * 1024;

/// Reads a file of at most 64 KiB and trims surrounding whitespace. Fails if the file is empty or
/// not UTF-8.
pub(crate) async fn read(path: &Path) -> io::Result<Zeroizing<String>> {
    let path: PathBuf = path.to_owned();
    spawn_blocking(move || read_now(&path)).await.unwrap_or_else(|error| Err(error.into()))
}

fn read_now(path: &Path) -> io::Result<Zeroizing<String>> {
    let invalid = |why: &'static str| io::Error::new(ErrorKind::InvalidData, why);
    // Allocated once at full size, so that no shorter copy is left unwiped.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LIMIT + 1));
    File::open(path)?.take(LIMIT as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > LIMIT {
        return Err(invalid("the file is over 64 KiB"));
    }
    let text = str::from_utf8(&bytes).map_err(|_| invalid("the file is not UTF-8"))?.trim();
    if text.is_empty() {
        return Err(invalid("the file is empty"));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_read_trimmed_and_bounded() {
        let (long, longer) = ("x".repeat(LIMIT), "x".repeat(LIMIT + 1));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let table: [(&[u8], Result<&str, ErrorKind>); 6] = [
            (b"token", Ok("token")),
            (b" \r\n\ttoken one\r\n \n", Ok("token one")),
            (long.as_bytes(), Ok(&long)),
            (longer.as_bytes(), Err(ErrorKind::InvalidData)),
            (b" \n", Err(ErrorKind::InvalidData)),
            (b"\xff", Err(ErrorKind::InvalidData)),
        ];
        for (content, expected) in table {
            std::fs::write(&path, content).unwrap();
            let read = read(&path).await;
            assert_eq!(read.as_deref().map(String::as_str).map_err(io::Error::kind), expected);
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read(&path).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
}
