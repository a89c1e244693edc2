//! TLS in front of a server that speaks none, with certificates made for the test.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
    thread::JoinHandle,
};

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig, crypto::ring, pki_types::PrivateKeyDer,
    server::WebPkiClientVerifier,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener as Listener, TcpStream},
    sync::oneshot,
};
use tokio_rustls::TlsAcceptor;

use crate::host::Host;

/// A CA, and what it signed.
pub struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub fn new() -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self { ca })
    }

    /// The CA's certificate.
    pub fn ca_pem(&self) -> String {
        self.ca.pem()
    }

    /// Writes `ca.pem`, `client.pem` and `client.key` to a directory.
    pub fn write(&self, directory: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(directory)?;
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec!["lbd".to_owned()])?;
        let cert = params.signed_by(&key, &self.ca)?;
        for (name, text) in [
            ("ca.pem", self.ca.pem()),
            ("client.pem", cert.pem()),
            ("client.key", key.serialize_pem()),
        ] {
            std::fs::write(directory.join(name), text)?;
        }
        Ok(())
    }

    fn server(&self, names: &[&str], wants_client: bool) -> anyhow::Result<ServerConfig> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let cert = CertificateParams::new(names)?.signed_by(&key, &self.ca)?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?;
        let builder = match wants_client {
            true => {
                let mut roots = RootCertStore::empty();
                roots.add(self.ca.der().clone())?;
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build()?)
            }
            false => builder.with_no_client_auth(),
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        Ok(builder.with_single_cert(vec![cert.der().clone()], key)?)
    }
}

/// Takes TLS at one address and hands what is in it to another. Ends when dropped.
pub struct Front {
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Front {
    /// `names` stand in its certificate. With `wants_client` whoever has no certificate of the CA is
    /// sent away.
    pub fn start(
        host: &Host,
        pki: &Pki,
        names: &[&str],
        wants_client: bool,
        listen: SocketAddr,
        target: SocketAddr,
    ) -> anyhow::Result<Self> {
        let acceptor = TlsAcceptor::from(Arc::new(pki.server(names, wants_client)?));
        let listener = host
            .run(move || TcpListener::bind(listen))
            .with_context(|| format!("cannot listen on {listen}"))?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (end, ended) = oneshot::channel();
        let thread = host.spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    _ = serve(listener, acceptor, target) => {}
                    _ = ended => {}
                }
            });
        });
        Ok(Self {
            end: Some(end),
            thread: Some(thread),
        })
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    target: SocketAddr,
) -> std::io::Result<()> {
    let listener = Listener::from_std(listener)?;
    loop {
        let (client, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let mut client = acceptor.accept(client).await?;
            let mut server = TcpStream::connect(target).await?;
            copy_bidirectional(&mut client, &mut server).await
        });
    }
}
