//! https on the service's own port, with certificates that the test makes: a real handshake, a client that trusts someone
//! else, one that never speaks, a renewed certificate, and files that are none.

use std::{path::Path, sync::Arc, time::Duration};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName},
    },
};

use super::{
    process::{amend, finish, signal},
    server::{Files, Launched},
};

/// A certificate for this machine, written to the files that the service reads.
fn certify(folder: &Path) -> CertificateDer<'static> {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("cert.pem"), cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), signing_key.serialize_pem()).unwrap();
    cert.der().clone()
}

/// What the service answers to a client that trusts this certificate alone.
async fn get(address: &str, trusted: &CertificateDer<'static>, path: &str) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TcpStream::connect(address).await?;
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Sends bytes without a handshake, and reads until the service hangs up.
async fn hung_up_on(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
    // A reset is as good an end as any.
    drop(read.expect("the service did not hang up"));
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn https_is_served_to_who_trusts_the_certificate() {
    let files = Files::tiny();
    let folder = files.folder.path();
    let first = certify(folder);
    let path = |name: &str| folder.join(name).display().to_string();
    let (certificate, key) = (path("cert.pem"), path("key.pem"));
    let options = ["--tls-cert", &certificate, "--tls-key", &key, "--header-timeout", "1"];
    let (mut child, address) = Launched::new(&files, &options).serving().await;

    let answer = get(&address, &first, "/readyz").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\r\n\r\n{"), "{answer}");
    let stranger = tempfile::tempdir().unwrap();
    let refused = get(&address, &certify(stranger.path()), "/readyz").await.unwrap_err();
    assert!(refused.to_string().contains("certificate"), "{refused}");
    // In clear text, or silent: no answer in clear text, and the connection ends.
    for bytes in [&b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n"[..], b""] {
        let answer = hung_up_on(&address, bytes).await;
        assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
    }

    // Renewed, and read again at SIGHUP; what is no certificate changes nothing.
    let second = certify(folder);
    signal("HUP", child.process.id());
    trusted_at_last(&address, &second).await;
    get(&address, &first, "/readyz").await.unwrap_err();
    std::fs::write(&certificate, "nothing").unwrap();
    signal("HUP", child.process.id());
    for _ in 0..200 {
        if child.log.lock().unwrap().contains("could not be read again") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    get(&address, &second, "/readyz").await.unwrap();
    signal("TERM", child.process.id());
    let status = tokio::task::spawn_blocking(move || child.wait()).await.unwrap();
    assert!(status.success(), "{status}");
}

async fn trusted_at_last(address: &str, certificate: &CertificateDer<'static>) {
    for _ in 0..200 {
        if get(address, certificate, "/livez").await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the renewed certificate is not served");
}

#[test]
fn files_that_are_no_certificate_and_key_are_named() {
    let files = Files::tiny();
    let folder = files.folder.path();
    certify(folder);
    let other = tempfile::tempdir().unwrap();
    certify(other.path());
    std::fs::write(folder.join("nothing.pem"), "nothing").unwrap();
    let cases = [
        (folder.join("cert.pem"), folder.join("absent.pem"), "absent.pem: no private key"),
        (folder.join("nothing.pem"), folder.join("key.pem"), "nothing.pem: no certificate"),
        (folder.join("key.pem"), folder.join("key.pem"), "key.pem: no certificate"),
        (folder.join("cert.pem"), other.path().join("key.pem"), "cert.pem and "),
    ];
    for (certificate, key, said) in cases {
        let mut serve = amend();
        serve.args(["serve", "--listen", "127.0.0.1:0"]).args(files.options());
        let error = finish(serve.arg("--tls-cert").arg(&certificate).arg("--tls-key").arg(&key)).refused();
        assert!(error.contains(said), "{said}: {error}");
    }
    let mut serve = amend();
    serve.args(["serve"]).args(files.options()).arg("--tls-cert").arg(folder.join("cert.pem"));
    let alone = finish(&mut serve);
    assert!(!alone.status.success() && alone.stderr.contains("--tls-key"), "{alone:?}");
}
