//! TLS towards registries.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde::{Deserialize, Serialize};

use crate::discovery::{Class, Failure};

/// `tls:` of a source. Files are read anew every minute, so that they may be exchanged.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Tls {
    /// Certificates, as PEM, of those that may sign the registry's. Without: the system's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ca_file: Option<PathBuf>,
    /// The client's own certificate, as PEM, followed by those between it and its CA.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cert_file: Option<PathBuf>,
    /// Its private key, as PEM.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_file: Option<PathBuf>,
    /// The name in the registry's certificate, if it is not the one it is reached by.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub server_name: Option<String>,
}

impl Tls {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let files = [&self.ca_file, &self.cert_file, &self.key_file];
        files.into_iter().flatten().map(|path| &**path)
    }

    /// What rustls needs. Blocks.
    ///
    /// # Errors
    /// Which file cannot be used, and why; never what it holds.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, Failure> {
        let fault = |what: String| Failure::new(Class::Config, what);
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Failure::new(Class::Internal, format!("TLS: {error}")))?
            .with_root_certificates(self.roots()?);
        let config = match (&self.cert_file, &self.key_file) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let shown = key.display();
                let private = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| fault(format!("no private key in {shown}: {error}")))?;
                builder
                    .with_client_auth_cert(certificates(cert)?, private)
                    .map_err(|error| {
                        let cert = cert.display();
                        fault(format!("{cert} and {shown} cannot be used: {error}"))
                    })?
            }
            _ => return Err(fault("cert_file and key_file go together".to_owned())),
        };
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, Failure> {
        let fault = |what: String| Failure::new(Class::Config, what);
        let mut roots = RootCertStore::empty();
        let Some(file) = &self.ca_file else {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(fault(
                    "the system has no CA certificates; name the registry's in `ca_file`, or \
                     install the package ca-certificates"
                        .to_owned(),
                ));
            }
            return Ok(roots);
        };
        for certificate in certificates(file)? {
            let shown = file.display();
            roots
                .add(certificate)
                .map_err(|error| fault(format!("{shown} cannot be used: {error}")))?;
        }
        Ok(roots)
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let shown = file.display();
    let fault = |what: String| Failure::new(Class::Config, what);
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let certificates: Vec<_> =
        read.map_err(|error| fault(format!("cannot read certificates from {shown}: {error}")))?;
    if certificates.is_empty() {
        return Err(fault(format!("there is no certificate in {shown}")));
    }
    Ok(certificates)
}
