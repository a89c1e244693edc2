//! Looks at a connection's first bytes, so that who speaks no HTTP is told so; hyper would answer
//! with an empty 400.

use std::io::{self, Cursor};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// Long enough to tell any method from anything else.
const LENGTH: usize = 4;

pub(super) enum Sniffed<H, S> {
    /// The connection with nothing taken from it.
    Http(H),
    Garbage(S),
    /// The peer closed before it said anything.
    Nothing,
}

pub(super) async fn sniff<S>(
    mut stream: S,
) -> io::Result<Sniffed<impl AsyncRead + AsyncWrite + Unpin + Send, S>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut seen = Vec::with_capacity(LENGTH);
    while seen.len() < LENGTH {
        let missing = (LENGTH - seen.len()) as u64;
        if (&mut stream).take(missing).read_buf(&mut seen).await? == 0 {
            break;
        }
        if !is_method_start(&seen) {
            return Ok(Sniffed::Garbage(stream));
        }
    }
    if seen.is_empty() {
        return Ok(Sniffed::Nothing);
    }
    let (reader, writer) = tokio::io::split(stream);
    Ok(Sniffed::Http(tokio::io::join(
        Cursor::new(seen).chain(reader),
        writer,
    )))
}

fn is_method_start(bytes: &[u8]) -> bool {
    let word = bytes.iter().take_while(|b| b.is_ascii_uppercase()).count();
    word > 0
        && bytes[word..]
            .iter()
            .all(|&b| b == b' ' || b == b'/' || b == b'*')
}

#[cfg(test)]
mod tests {
    use super::is_method_start;

    #[test]
    fn methods_are_told_from_garbage() {
        for http in [&b"G"[..], b"GET ", b"POST", b"PUT ", b"DELE"] {
            assert!(is_method_start(http));
        }
        for garbage in [
            &b"\x16\x03\x01"[..],
            b"get ",
            b"{\"ve",
            b" GET",
            b"\0\0\0\0",
            b"SSH-",
        ] {
            assert!(!is_method_start(garbage));
        }
    }
}
