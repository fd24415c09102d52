//! What a client hears that speaks HTTP without TLS on an `https://` listener of `http.public`. The handshakes are the
//! front's (`net::front`), with the certificates of `[tls]`.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Tells a client without TLS what is wrong, in its own words.
pub(super) async fn explain(mut stream: TcpStream) {
    // What is left unread would turn the answer into a reset.
    let mut request = [0; 4096];
    let _ = stream.read(&mut request).await;
    let text = "this port speaks TLS: ask with https://\n";
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    );
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::SocketAddr;
    use std::sync::Arc;

    use axum::Router;
    use axum::routing::{get, post};
    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsConnector;

    use std::time::Duration;

    use super::*;
    use crate::api::serve::{Bounds, front, tcp_within};
    use crate::net::front::Front;
    use crate::tls::certificates::Files;
    use crate::tls::{HANDSHAKE, Tls};

    const SHORT: Bounds = Bounds {
        connections: 4,
        half_open: 2,
        handshake: Duration::from_millis(400),
        headers: Duration::from_millis(400),
        request: Duration::from_millis(400),
        reader: Duration::from_millis(400),
        connection: Duration::from_secs(2),
    };

    struct Server {
        address: SocketAddr,
        front: Arc<Front>,
        root: CertificateDer<'static>,
    }

    async fn server(bounds: Bounds) -> Server {
        let issued = rcgen::generate_simple_self_signed(["turn.example".to_owned()]).unwrap();
        let directory = std::env::temp_dir().join(format!("throughway-https-{}-{}", std::process::id(), rand()));
        std::fs::create_dir(&directory).unwrap();
        let files =
            Files { certificate: directory.join("c.pem"), private_key: directory.join("k.pem"), stand_in: None };
        std::fs::write(&files.certificate, issued.cert.pem()).unwrap();
        std::fs::write(&files.private_key, issued.signing_key.serialize_pem()).unwrap();
        let tls = Arc::new(Tls::new(&[files]).unwrap());
        std::fs::remove_dir_all(&directory).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/", get(|| async { "here\n" }))
            .route("/length", post(|body: axum::body::Bytes| async move { vec![b'x'; body.len()] }));
        let front = front(bounds);
        tokio::spawn(tcp_within(listener, router, (Some(tls), Arc::clone(&front)), Arc::default(), bounds));
        Server { address, front, root: issued.cert.der().clone() }
    }

    fn rand() -> u32 {
        getrandom::u32().unwrap()
    }

    impl Server {
        fn connector(&self, alpn: &[&str]) -> TlsConnector {
            let mut roots = RootCertStore::empty();
            roots.add(self.root.clone()).unwrap();
            let mut config = ClientConfig::builder_with_provider(crate::tls::provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
            TlsConnector::from(Arc::new(config))
        }

        async fn get(&self, alpn: &[&str]) -> io::Result<String> {
            let name = ServerName::try_from("turn.example").unwrap();
            let mut stream = self.connector(alpn).connect(name, TcpStream::connect(self.address).await?).await?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        }

        fn counts(&self) -> [(&'static str, u64); 4] {
            self.front.counts.handshakes.results()
        }
    }

    async fn rest_of(mut stream: TcpStream) -> String {
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(10), read).await.expect("the server closes the connection");
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn bodies_of_many_records_pass_both_ways_and_close_notify_ends_them() {
        const BYTES: usize = 1_500_000;
        const LONG: Duration = Duration::from_secs(20);
        let server = server(Bounds { request: LONG, reader: LONG, connection: LONG, ..SHORT }).await;
        let name = ServerName::try_from("turn.example").unwrap();
        let stream = TcpStream::connect(server.address).await.unwrap();
        let stream = server.connector(&[]).connect(name, stream).await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let head = format!("POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: {BYTES}\r\nConnection: close\r\n\r\n");
        let writing = async {
            writer.write_all(head.as_bytes()).await?;
            writer.write_all(&vec![b'y'; BYTES]).await
        };
        let mut answer = Vec::new();
        // Without close_notify the end would be an error.
        let (written, read) = tokio::join!(writing, reader.read_to_end(&mut answer));
        written.unwrap();
        read.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(&vec![b'x'; BYTES]), "{}", answer.len());
    }

    #[tokio::test]
    async fn clients_with_and_without_alpn_are_answered_and_other_protocols_are_not() {
        let server = server(SHORT).await;
        for alpn in [&[][..], &["http/1.1"], &["h2", "http/1.1"]] {
            let answer = server.get(alpn).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("here\n"), "{answer}");
        }
        for alpn in ["h2", "stun.turn"] {
            server.get(&[alpn]).await.expect_err("no protocol in common");
        }
        assert_eq!(server.counts(), [("ok", 3), ("failed", 2), ("timeout", 0), ("refused", 0)]);
    }

    #[tokio::test]
    async fn who_speaks_plain_http_is_told_so_and_noise_is_closed() {
        let server = server(SHORT).await;
        let mut plain = TcpStream::connect(server.address).await.unwrap();
        plain.write_all(b"GET /v1/credentials HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let answer = rest_of(plain).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("https://"), "{answer}");
        let mut noise = TcpStream::connect(server.address).await.unwrap();
        noise.write_all(&[0x16, 3, 1, 0xff, 0xff, 1, 2, 3]).await.unwrap();
        rest_of(noise).await;
        let mut binding = TcpStream::connect(server.address).await.unwrap();
        binding.write_all(&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]).await.unwrap();
        rest_of(binding).await;
        assert!(server.get(&[]).await.is_ok());
        let [ok, failed, ..] = server.counts();
        assert_eq!((ok.1, failed.1), (1, 3));
    }

    #[tokio::test]
    async fn a_handshake_that_takes_too_long_is_given_up() {
        let server = server(SHORT).await;
        let silent = TcpStream::connect(server.address).await.unwrap();
        assert_eq!(rest_of(silent).await, "");
        // One byte now and then does not make it longer.
        let mut slow = TcpStream::connect(server.address).await.unwrap();
        let trickle = async {
            for byte in [0x16, 3, 1, 2, 0].into_iter().cycle() {
                if slow.write_all(&[byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), trickle).await.expect("the server closes it");
        assert_eq!(server.counts()[2], ("timeout", 2));
    }

    // F-A8
    #[tokio::test]
    async fn silent_connections_and_begun_handshakes_do_not_keep_others_out() {
        let server = server(Bounds { handshake: Duration::from_secs(60), connections: 64, ..SHORT }).await;
        let mut silent = Vec::new();
        for _ in 0..2 * SHORT.half_open {
            silent.push(TcpStream::connect(server.address).await.unwrap());
        }
        assert!(server.get(&[]).await.unwrap().ends_with("here\n"));
        assert_eq!(server.counts()[3], ("refused", 0), "who says nothing takes no place of a handshake");
        for stream in &mut silent {
            stream.write_all(&[HANDSHAKE]).await.unwrap();
        }
        // From their own address; another one would not have to wait.
        let answer = tokio::time::timeout(Duration::from_secs(10), server.get(&[])).await.expect("a place within 2 s");
        assert!(answer.unwrap().ends_with("here\n"));
        assert!(server.counts()[3].1 > 0);
    }
}
