//! Asking another TURN server whether it takes clients: an Allocate request without credentials, as a client's first one.
//!
//! 401 means that it would take one who knows a credential, and 486, which only servers like this one answer, that it takes
//! clients without a place elsewhere. Everything else, such as 300, means that it takes none. Bounded in time and size; nothing is left behind on the other side.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use crate::address::Transport;
use crate::protocol::pool::PROBE_SOFTWARE;
use crate::tls::provider;
use crate::wire::attribute::{ATTR_REQUESTED_TRANSPORT, ATTR_SOFTWARE, PROTO_UDP};
use crate::wire::message::{
    CLASS_ERROR_RESPONSE, CLASS_REQUEST, Known, METHOD_ALLOCATE, Message, MessageType, TransactionId,
};
use crate::wire::writer::Writer;

/// How long a whole question may take.
const PROBE_TIME: Duration = Duration::from_secs(3);

/// When the request is sent over UDP (RFC 8489 section 6.2.1, cut short by [`PROBE_TIME`]).
const SENDINGS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(500), Duration::from_millis(1500)];

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 1500;

/// Datagrams that are no answer, before the question is given up.
const STRANGE_MAX: usize = 16;

/// Which clients a server takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Takes {
    /// All.
    All,
    /// Those that no other server has a place for: 486.
    WithoutPlace,
}

/// Why a server takes no clients.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unfit {
    /// Nothing came back in time.
    #[error("no answer within {} s", PROBE_TIME.as_secs())]
    Silent,
    /// It answers with another code.
    #[error("it answers {0} to a new client")]
    Refuses(u16),
    /// What came back is no answer to an Allocate request.
    #[error("its answer is not that of a TURN server")]
    Strange,
    /// The way is closed.
    #[error("{0}")]
    System(String),
}

impl From<io::Error> for Unfit {
    fn from(error: io::Error) -> Self {
        Self::System(error.to_string())
    }
}

/// Whether the server takes clients by this transport.
///
/// # Errors
/// [`Unfit`]: why not.
pub async fn ask(server: SocketAddr, transport: Transport, name: Option<&str>) -> Result<Takes, Unfit> {
    let mut id = [0; 12];
    getrandom::fill(&mut id).map_err(|error| Unfit::System(error.to_string()))?;
    let id = TransactionId(id);
    let mut request = [0; 96];
    let kind = MessageType { method: METHOD_ALLOCATE, class: CLASS_REQUEST };
    let mut writer = Writer::new(&mut request, kind, id);
    writer.attribute(ATTR_REQUESTED_TRANSPORT, &[PROTO_UDP.0, 0, 0, 0]).attribute(ATTR_SOFTWARE, PROBE_SOFTWARE);
    let length = writer.finish().ok_or(Unfit::Strange)?;
    let request = &request[..length];
    let asked = async {
        match transport {
            Transport::Udp => over_udp(server, request, id).await,
            Transport::Tcp => over_stream(TcpStream::connect(server).await?, request, id).await,
            Transport::Tls => {
                let stream = TcpStream::connect(server).await?;
                let host = name.map_or_else(|| server.ip().to_string(), ToOwned::to_owned);
                let host = ServerName::try_from(host).map_err(|error| Unfit::System(error.to_string()))?;
                over_stream(connector()?.connect(host, stream).await?, request, id).await
            }
        }
    };
    timeout(PROBE_TIME, asked).await.unwrap_or(Err(Unfit::Silent))
}

async fn over_udp(server: SocketAddr, request: &[u8], id: TransactionId) -> Result<Takes, Unfit> {
    let any = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    // The kernel drops what others send.
    socket.connect(server).await?;
    let begun = Instant::now();
    let (mut answer, mut strange) = ([0; ANSWER_BYTES_MAX], 0);
    for (number, _) in SENDINGS.iter().enumerate() {
        socket.send(request).await?;
        let until = begun + SENDINGS.get(number + 1).copied().unwrap_or(PROBE_TIME);
        while let Ok(received) = timeout_at(until, socket.recv(&mut answer)).await {
            match judge(&answer[..received?], id) {
                Some(judgement) => return judgement,
                None if strange == STRANGE_MAX => return Err(Unfit::Strange),
                None => strange += 1,
            }
        }
    }
    Err(Unfit::Silent)
}

async fn over_stream<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    request: &[u8],
    id: TransactionId,
) -> Result<Takes, Unfit> {
    stream.write_all(request).await?;
    let mut answer = [0; ANSWER_BYTES_MAX];
    stream.read_exact(&mut answer[..20]).await?;
    let length = usize::from(u16::from_be_bytes([answer[2], answer[3]]));
    let body = answer.get_mut(20..20 + length).ok_or(Unfit::Strange)?;
    stream.read_exact(body).await?;
    judge(&answer[..20 + length], id).unwrap_or(Err(Unfit::Strange))
}

/// What an answer says; nothing if it is none.
fn judge(bytes: &[u8], id: TransactionId) -> Option<Result<Takes, Unfit>> {
    let message = Message::parse(bytes).ok().filter(|message| message.transaction_id() == id)?;
    let MessageType { method, class } = message.message_type();
    let code = match message.get(Known::ErrorCode) {
        Some([_, _, class, number, ..]) => u16::from(class & 7) * 100 + u16::from(*number),
        _ => 0,
    };
    Some(match (method, class, code) {
        (METHOD_ALLOCATE, CLASS_ERROR_RESPONSE, 401) => Ok(Takes::All),
        (METHOD_ALLOCATE, CLASS_ERROR_RESPONSE, 486) => Ok(Takes::WithoutPlace),
        (METHOD_ALLOCATE, CLASS_ERROR_RESPONSE, 300..700) => Err(Unfit::Refuses(code)),
        _ => Err(Unfit::Strange),
    })
}

fn connector() -> Result<TlsConnector, Unfit> {
    let provider = provider();
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Unfit::System(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Takes every certificate: nothing secret is sent, and whether a client trusts it depends on the client.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: TransactionId = TransactionId(*b"abcdefghijkl");

    fn answer(class: crate::wire::message::MessageClass, code: u16, id: TransactionId) -> Vec<u8> {
        let mut bytes = [0; 100];
        let mut writer = Writer::new(&mut bytes, MessageType { method: METHOD_ALLOCATE, class }, id);
        if code > 0 {
            writer.error_code(crate::wire::message::ErrorCode(code), "");
        }
        let length = writer.finish().unwrap();
        bytes[..length].to_vec()
    }

    #[test]
    fn only_a_challenge_means_that_clients_are_taken() {
        let judged = |code| judge(&answer(CLASS_ERROR_RESPONSE, code, ID), ID).unwrap();
        assert_eq!((judged(401), judged(486)), (Ok(Takes::All), Ok(Takes::WithoutPlace)));
        for code in [300, 403, 508] {
            assert_eq!(judged(code), Err(Unfit::Refuses(code)));
        }
        assert_eq!(judged(0), Err(Unfit::Strange));
        let success = answer(crate::wire::message::CLASS_SUCCESS_RESPONSE, 0, ID);
        assert_eq!(judge(&success, ID), Some(Err(Unfit::Strange)), "an allocation without a user");
        assert_eq!(judge(&answer(CLASS_ERROR_RESPONSE, 401, TransactionId([0; 12])), ID), None, "another's answer");
        assert_eq!(judge(b"HTTP/1.1 400 Bad Request", ID), None);
    }

    #[tokio::test]
    async fn a_stream_that_ends_lies_about_its_length_or_says_nothing_is_no_server() {
        for (bytes, is_strange) in [(&b"\x01\x13\xff\xff0123456789abcdef"[..], true), (b"\x01", false), (b"", false)] {
            let (mut far, near) = tokio::io::duplex(4096);
            far.write_all(bytes).await.unwrap();
            let reading = tokio::spawn(async move { over_stream(near, b"request", ID).await });
            let mut request = [0; 7];
            far.read_exact(&mut request).await.unwrap();
            drop(far);
            let result = reading.await.unwrap();
            assert_eq!(result == Err(Unfit::Strange), is_strange, "{result:?}");
            assert!(result.is_err());
        }
    }
}
